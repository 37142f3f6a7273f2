//! A run as the harness's results, or as a flat table.
//!
//! Owns the way back: the harness's columns where it has them, null where the run does not know, and what the schema has
//! no place for (error, idle part, grade, the query's name) as JSON in `dataset_metadata`. Nothing that exists is written over in
//! a directory; a file appears whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufWriter, Write, stdout};
use std::path::Path;

use serde_json::{Value, json};

use super::super::question::Question;
use super::super::row::{Row, Text};
use super::super::run_dir::{self, Manifest};
use super::super::scope::Scope;
use super::flat::Flat;
use super::{
    Gpu, Joules, Kept, Latency, Metrics, Power, Record, Stats, Summary, System, Tokens, Unusable, Watts,
    columnar,
};
use crate::domain::Kind;
use crate::private_file;

/// What an export needs of a run, the last word on each query.
#[derive(Debug)]
pub struct Exported {
    manifest: Manifest,
    questions: HashMap<String, Question>,
    texts: HashMap<(String, u32), Text>,
    rows: Vec<Row>,
}

impl Exported {
    /// Reads a run, with what was said in it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(run: &Path) -> Result<Self, Unusable> {
        let manifest = run_dir::manifest(run)?;
        let questions = run_dir::questions(run)?.into_iter().map(|it| (it.id.clone(), it)).collect();
        let mut texts = HashMap::new();
        run_dir::each_text(run, |text| _ = texts.insert((text.id.clone(), text.repeat), text))?;
        let mut places = HashMap::new();
        let mut rows: Vec<Row> = Vec::new();
        run_dir::each_row(&run.join("rows.jsonl"), |row| match places.get(&row.key()) {
            Some(at) => rows[*at] = row,
            None => {
                places.insert(row.key(), rows.len());
                rows.push(row);
            }
        })?;
        Ok(Self { manifest, questions, texts, rows })
    }

    /// How many queries.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The queries as flat rows.
    pub fn flat(self) -> impl Iterator<Item = Flat> {
        let Self { manifest, questions, mut texts, rows } = self;
        rows.into_iter().map(move |row| {
            let text = texts.remove(&row.key());
            let question = questions.get(&row.id).cloned();
            Flat::of(&manifest, row, question.as_ref(), text.as_ref())
        })
    }

    /// The queries as the harness's records; energies count a scope.
    pub fn records(&self, scope: Scope) -> Vec<Record> {
        let domains = scope.domains(&self.manifest.domains);
        let of = |row: &Row| {
            let (question, text) = (self.questions.get(&row.id), self.texts.get(&row.key()));
            self.record(row, question, text, scope, &domains)
        };
        self.rows.iter().map(of).collect()
    }

    fn record(
        &self,
        row: &Row,
        question: Option<&Question>,
        text: Option<&Text>,
        scope: Scope,
        domains: &[usize],
    ) -> Record {
        let part = row.energy.as_ref().map(|energy| scope.of(energy, domains)).unwrap_or_default();
        let seconds = |ns: u64| Some(ns as f64 / 1e9).filter(|_| ns > 0);
        let joules = part.share_uj.map(|share_uj| share_uj as f64 / 1e6);
        let span_s = row.energy.as_ref().and_then(|energy| seconds(energy.span_ns));
        let watts = part.window_uj.zip(span_s).map(|(window_uj, seconds)| window_uj as f64 / 1e6 / seconds);
        let watts = Stats { avg: watts, ..Stats::default() };
        let (tokens, total_s) = (row.tokens_out.filter(|count| *count > 0), seconds(row.duration_ns));
        let rate = tokens.zip(total_s).map(|(tokens, seconds)| (tokens as f64, seconds));
        let reply = text.map(|text| text.reply.clone()).unwrap_or_default();
        let kept = Kept {
            id: row.id.clone(),
            repeat: row.repeat,
            format: question.map(|question| question.format),
            error: row.error.clone(),
            score: row.score,
            began_ns: Some(row.began_ns),
            grade: row.energy.as_ref().and_then(|energy| energy.grade),
            error_uj: part.error_uj,
            idle_uj: part.idle_uj,
            window_uj: part.window_uj,
        };
        let metrics = Metrics {
            energy_metrics: Joules { per_query_joules: joules, total_joules: None },
            latency_metrics: Latency {
                per_token_ms: rate.map(|(tokens, seconds)| seconds * 1e3 / tokens),
                throughput_tokens_per_sec: rate.map(|(tokens, seconds)| tokens / seconds),
                time_to_first_token_seconds: row.first_token_ns.and_then(seconds),
                total_query_seconds: total_s,
            },
            power_metrics: Power { gpu: Watts { per_query_watts: watts, total_watts: Stats::default() } },
            token_metrics: Tokens {
                input: row.tokens_in,
                output: row.tokens_out,
                total: row.tokens_in.zip(row.tokens_out).map(|(input, output)| input + output),
            },
            gpu_info: self.gpu(),
            system_info: Some(self.system()),
            lm_correctness: row.score.map(|score| score >= 0.5),
            lm_response: reply.clone(),
            ..Metrics::default()
        };
        let model = self.model();
        Record {
            problem: question.map(|question| question.prompt.clone()),
            answer: question.map_or(Value::Null, |question| question.answer.clone().into()),
            subject: Some(row.subject.clone()),
            dataset_metadata: Value::String(json!({ "wattspan": kept }).to_string()),
            model_answers: BTreeMap::from([(model.clone(), Some(reply).filter(|_| row.answered()))]),
            model_metrics: BTreeMap::from([(model, Some(metrics))]),
        }
    }

    fn model(&self) -> String {
        let model = &self.manifest.model;
        if model.is_empty() { "unknown".into() } else { model.clone() }
    }

    fn gpu(&self) -> Option<Gpu> {
        let meter = self.manifest.domains.iter().find(|meter| meter.kind == Kind::Gpu)?;
        let name = meter.device.clone().unwrap_or_else(|| meter.name.clone());
        Some(Gpu { name, backend: meter.source.clone(), device_type: "GPU".into(), ..Gpu::default() })
    }

    fn system(&self) -> System {
        System { cpu_brand: self.manifest.machine.clone(), ..System::default() }
    }

    /// Writes a directory as the harness's: JSON lines, `summary.json`, and Arrow where it was built in.
    ///
    /// # Errors
    /// There are results in it already, or it cannot be written.
    pub fn to_harness(&self, folder: &Path, scope: Scope) -> Result<(), Unusable> {
        private_file::create_dir_all(folder).map_err(Unusable::at(folder))?;
        let taken = fs::read_dir(folder).map_err(Unusable::at(folder))?.next().is_some();
        if taken {
            return Err(Unusable::nonsense(
                folder,
                "is not empty: name another directory; nothing is written over",
            ));
        }
        let records = self.records(scope);
        to_file(&folder.join("data.jsonl"), records.iter())?;
        if columnar::BUILT_IN {
            columnar::write_records(folder, &self.model(), &records)?;
        }
        let summary = Summary {
            model: Some(self.model()),
            dataset: Some(self.manifest.fingerprint.clone()),
            dataset_name: Some(self.manifest.questions.clone()),
            hardware_label: Some(self.manifest.machine.clone()),
            generated_at: Some(self.manifest.began_unix_ns as f64 / 1e9),
            total_queries: Some(records.len() as u64),
            system_info: Some(self.system()),
            gpu_info: self.gpu(),
            output_dir: None,
            energy_scope: Some(scope.title().to_owned()),
        };
        let text = serde_json::to_string_pretty(&summary).expect("a summary is plain data");
        // Last, as the harness does it: a directory with a summary is whole.
        let file = folder.join("summary.json");
        private_file::write(&file, text + "\n").map_err(Unusable::at(file.clone()))
    }
}

/// Writes JSON lines to a file, or to standard output where it is "-". Gives how many.
///
/// # Errors
/// It cannot be written; a file that was there stays as it was.
pub fn to_file<T: serde::Serialize>(path: &Path, lines: impl Iterator<Item = T>) -> Result<usize, Unusable> {
    if path == Path::new("-") {
        return written(&mut stdout().lock(), lines).map_err(Unusable::at(path));
    }
    whole(path, |file| written(file, lines).map_err(Unusable::at(path)))
}

fn written<T: serde::Serialize>(
    to: &mut impl Write,
    lines: impl Iterator<Item = T>,
) -> std::io::Result<usize> {
    let mut to = BufWriter::new(to);
    let mut count = 0;
    for line in lines {
        serde_json::to_writer(&mut to, &line)?;
        to.write_all(b"\n")?;
        count += 1;
    }
    to.flush()?;
    Ok(count)
}

/// A file that takes its name only when it is whole; a device or a pipe is written directly.
pub(super) fn whole<T>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, Unusable>,
) -> Result<T, Unusable> {
    if private_file::is_stream(path) {
        return write(&mut private_file::create(path).map_err(Unusable::at(path))?);
    }
    private_file::check_replaceable(path).map_err(Unusable::at(path))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let mut file = private_file::create(&part).map_err(Unusable::at(part.clone()))?;
    let done = write(&mut file).and_then(|done| {
        file.sync_all().and_then(|()| fs::rename(&part, path)).map_err(Unusable::at(path))?;
        Ok(done)
    });
    if done.is_err() {
        // What is left of it is of no use to anybody.
        let _ = fs::remove_file(&part);
    }
    done
}
