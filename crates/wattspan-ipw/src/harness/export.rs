//! Export of a run as the harness's results or as flat rows.
//!
//! Columns of the harness are null if the run has no value. Data without a column (error, idle part, grade, question
//! id) is stored as JSON in `dataset_metadata`. Invariant: no file in a directory is overwritten, and an output file
//! is complete or absent.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use wattspan_client::domain::DomainKind;
use wattspan_system::private_file;

use super::super::question::Question;
use super::super::row::{DomainEnergy, QueryRow, ReplyText};
use super::super::run_dir::{self, Manifest};
use super::super::scope::Scope;
use super::accuracy::AccuracyAnalysis;
use super::flat_row::FlatRow;
use super::output::write_json_lines;
use super::{
    EnergyMetrics, Evaluation, GpuInfo, HarnessError, HarnessSummary, LatencyMetrics, MetricStats,
    ModelMetrics, PowerComponentMetrics, PowerMetrics, ProfilingRecord, SystemInfo, TokenMetrics,
    WattspanMetadata, columnar,
};

/// The data of a run for export, with the last row of each query.
#[derive(Debug)]
pub struct RunExport {
    manifest: Manifest,
    questions: HashMap<String, Question>,
    texts: HashMap<(String, u32), ReplyText>,
    rows: Vec<QueryRow>,
}

impl RunExport {
    /// Reads a run with its replies.
    ///
    /// # Errors
    /// A file of the run cannot be read.
    pub fn read(run: &Path) -> Result<Self, HarnessError> {
        let manifest = run_dir::read_manifest(run)?;
        let questions = run_dir::read_questions(run)?.into_iter().map(|it| (it.id.clone(), it)).collect();
        let mut texts = HashMap::new();
        run_dir::for_each_text(run, |text| _ = texts.insert((text.id.clone(), text.repeat), text))?;
        let mut indices = HashMap::new();
        let mut rows: Vec<QueryRow> = Vec::new();
        run_dir::for_each_row(&run.join("rows.jsonl"), |row| match indices.get(&row.key()) {
            Some(at) => rows[*at] = row,
            None => {
                indices.insert(row.key(), rows.len());
                rows.push(row);
            }
        })?;
        Ok(Self { manifest, questions, texts, rows })
    }

    /// The number of queries.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no queries.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Converts the queries to flat rows.
    pub fn into_flat_rows(self) -> impl Iterator<Item = FlatRow> {
        let Self { manifest, questions, mut texts, rows } = self;
        rows.into_iter().map(move |row| {
            let text = texts.remove(&row.key()).filter(|text| text.is_of(&row));
            let question = questions.get(&row.id).cloned();
            FlatRow::new(&manifest, row, question.as_ref(), text.as_ref())
        })
    }

    /// Converts the queries to the harness's records, with the energies of a scope.
    pub fn to_records(&self, scope: Scope) -> Vec<ProfilingRecord> {
        let domains = scope.domain_indices(&self.manifest.domains);
        let of = |row: &QueryRow| {
            let (question, text) =
                (self.questions.get(&row.id), self.texts.get(&row.key()).filter(|text| text.is_of(row)));
            self.to_record(row, question, text, scope, &domains)
        };
        self.rows.iter().map(of).collect()
    }

    fn to_record(
        &self,
        row: &QueryRow,
        question: Option<&Question>,
        text: Option<&ReplyText>,
        scope: Scope,
        domains: &[usize],
    ) -> ProfilingRecord {
        let scope_energy =
            row.energy.as_ref().map(|energy| scope.energy(energy, domains)).unwrap_or_default();
        let reply = text.map(|text| text.reply.clone()).unwrap_or_default();
        let metadata = wattspan_metadata(row, question, &scope_energy);
        let metrics = self.model_metrics(row, &scope_energy, reply.clone());
        let model = self.model();
        ProfilingRecord {
            problem: question.map(|question| question.prompt.clone()),
            answer: question.map_or(Value::Null, |question| question.answer.clone().into()),
            subject: Some(row.subject.clone()),
            dataset_metadata: Value::String(json!({ "wattspan": metadata }).to_string()),
            model_answers: BTreeMap::from([(model.clone(), Some(reply).filter(|_| row.is_answered()))]),
            model_metrics: BTreeMap::from([(model, Some(metrics))]),
        }
    }

    fn model_metrics(
        &self,
        row: &QueryRow,
        scope_energy: &DomainEnergy,
        lm_response: String,
    ) -> ModelMetrics {
        let joules = |uj: u64| uj as f64 / 1e6;
        let span_s = row.energy.as_ref().and_then(|energy| positive_seconds(energy.span_ns));
        let watts = scope_energy.window_uj.zip(span_s).map(|(window_uj, span_s)| joules(window_uj) / span_s);
        let is_correct = row.counted_score().map(|score| score >= 0.5);
        let per_query_watts = MetricStats { avg: watts, ..MetricStats::default() };
        ModelMetrics {
            energy_metrics: EnergyMetrics {
                per_query_joules: scope_energy.share_uj.map(joules),
                total_joules: None,
                ..EnergyMetrics::default()
            },
            latency_metrics: latency_metrics(row),
            power_metrics: PowerMetrics {
                gpu: PowerComponentMetrics { per_query_watts, total_watts: MetricStats::default() },
                ..PowerMetrics::default()
            },
            token_metrics: TokenMetrics {
                input: row.tokens_in,
                output: row.tokens_out,
                total: row.tokens_in.zip(row.tokens_out).map(|(input, output)| input + output),
            },
            gpu_info: self.gpu(),
            system_info: Some(self.system()),
            lm_correctness: is_correct,
            evaluation: is_correct.map(|is_correct| Evaluation { is_correct: Some(is_correct) }),
            lm_response,
            ..ModelMetrics::default()
        }
    }

    fn model(&self) -> String {
        let model = &self.manifest.model;
        if model.is_empty() { "unknown".into() } else { model.clone() }
    }

    fn gpu(&self) -> Option<GpuInfo> {
        let domain = self.manifest.domains.iter().find(|domain| domain.kind == DomainKind::Gpu)?;
        let name = domain.device.clone().unwrap_or_else(|| domain.name.clone());
        Some(GpuInfo {
            name,
            backend: domain.source.clone(),
            device_type: "GPU".into(),
            ..GpuInfo::default()
        })
    }

    fn system(&self) -> SystemInfo {
        SystemInfo { cpu_brand: self.manifest.machine.clone(), ..SystemInfo::default() }
    }

    /// Writes a results directory of the harness: JSON lines, `analysis/accuracy.json`, `summary.json`, and Arrow if supported
    /// by the build.
    ///
    /// # Errors
    /// The directory is not empty or cannot be written.
    pub fn write_harness_dir(&self, dir: &Path, scope: Scope) -> Result<(), HarnessError> {
        private_file::create_dir_all(dir).map_err(HarnessError::io(dir))?;
        let is_occupied = fs::read_dir(dir).map_err(HarnessError::io(dir))?.next().is_some();
        if is_occupied {
            return Err(HarnessError::invalid(
                dir,
                "is not empty: name another directory; nothing is written over",
            ));
        }
        let records = self.to_records(scope);
        write_json_lines(&dir.join("data.jsonl"), records.iter())?;
        if columnar::IS_SUPPORTED {
            columnar::write_arrow(dir, &self.model(), &records)?;
        }
        let summary = HarnessSummary {
            model: Some(self.model()),
            dataset: Some(self.manifest.fingerprint.clone()),
            dataset_name: Some(self.manifest.questions.clone()),
            hardware_label: Some(self.manifest.machine.clone()),
            generated_at: Some(self.manifest.began_unix_ns as f64 / 1e9),
            total_queries: Some(records.len() as u64),
            system_info: Some(self.system()),
            gpu_info: self.gpu(),
            energy_scope: Some(scope.title().to_owned()),
            ..HarnessSummary::default()
        };
        let analysis = dir.join("analysis");
        private_file::create_dir_all(&analysis).map_err(HarnessError::io(&analysis))?;
        let text = serde_json::to_string_pretty(&AccuracyAnalysis::new(&records, &self.model()));
        let file = analysis.join("accuracy.json");
        private_file::write(&file, text.expect("figures are plain data") + "\n")
            .map_err(HarnessError::io(file.clone()))?;
        let text = serde_json::to_string_pretty(&summary).expect("a summary is plain data");
        // The summary is written last, as the harness does: a directory with a summary is complete.
        let file = dir.join("summary.json");
        private_file::write(&file, text + "\n").map_err(HarnessError::io(file.clone()))
    }
}

/// Returns the values of a row for which the harness has no column.
fn wattspan_metadata(
    row: &QueryRow,
    question: Option<&Question>,
    scope_energy: &DomainEnergy,
) -> WattspanMetadata {
    WattspanMetadata {
        id: row.id.clone(),
        repeat: row.repeat,
        format: question.map(|question| question.format),
        error: row.error.clone(),
        score: row.score,
        began_ns: Some(row.began_ns),
        grade: row.energy.as_ref().and_then(|energy| energy.grade),
        error_uj: scope_energy.error_uj,
        idle_uj: scope_energy.idle_uj,
        window_uj: scope_energy.window_uj,
    }
}

fn latency_metrics(row: &QueryRow) -> LatencyMetrics {
    let total_s = positive_seconds(row.duration_ns);
    let tokens = row.tokens_out.filter(|count| *count > 0).map(|count| count as f64);
    let tokens_and_seconds = tokens.zip(total_s);
    LatencyMetrics {
        per_token_ms: tokens_and_seconds.map(|(tokens, seconds)| seconds * 1e3 / tokens),
        throughput_tokens_per_sec: tokens_and_seconds.map(|(tokens, seconds)| tokens / seconds),
        time_to_first_token_seconds: row.first_token_ns.and_then(positive_seconds),
        total_query_seconds: total_s,
    }
}

/// Returns a duration in seconds; a duration of 0 is unknown.
fn positive_seconds(ns: u64) -> Option<f64> {
    Some(ns as f64 / 1e9).filter(|_| ns > 0)
}
