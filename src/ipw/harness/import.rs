//! Results of the harness as a run.
//!
//! Owns the meaning of each of its columns. Scores come from our rules, since the harness has none; its energies are
//! taken where they can be energies; 0 where it means "not known" is absent. Nothing of the source is changed.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::Value;

use super::super::extract;
use super::super::question::{Format, Question, fingerprint, guess, readable};
use super::super::row::{Energy, Part, Row, Text};
use super::super::run_dir::RunDir;
use super::about::{kept, manifest, meter_of};
use super::findings::Findings;
use super::source::Found;
use super::{Gpu, Kept, Metrics, Record, Unusable};
use crate::domain::Grade;

/// Above this power an energy is a counter that was set back, and no energy.
const MOST_WATTS: f64 = 1e6;

/// How many seconds of samples the harness keeps.
const SAMPLES_S: f64 = 30.0;

/// Writes what was found in `source` as a run into `out`.
///
/// # Errors
/// The model is not in it, or several are and none was named; the run cannot be written.
pub fn import(
    source: &Path,
    found: Found,
    model: Option<&str>,
    label: Option<&str>,
    out: &Path,
) -> Result<Findings, Unusable> {
    let model = chosen(&found, model).map_err(|reason| Unusable::nonsense(source, reason))?;
    let meter = found.records.iter().filter_map(|record| gpu(record, &model)).next();
    let meter = meter.or(found.summary.gpu_info.as_ref()).and_then(meter_of);
    let mut reading = Reading {
        findings: Findings { model: model.clone(), broken: found.broken, ..Findings::default() },
        grade: meter.as_ref().map(|(meter, _)| meter.grade),
        clock_ns: 0,
        ratios: Vec::new(),
    };
    let mut queries = Vec::new();
    for (place, record) in found.records.into_iter().enumerate() {
        match reading.query(place, record, &model) {
            Some(query) => queries.push(query),
            None => reading.findings.broken += 1,
        }
    }
    let mut findings = reading.ended();
    findings.mechanism = meter.as_ref().map(|(_, words)| (*words).to_owned());
    let mut seen = HashSet::new();
    let questions: Vec<Question> = queries
        .iter()
        .map(|(question, ..)| question)
        .filter(|it| seen.insert(it.id.clone()))
        .cloned()
        .collect();
    let repeats = queries.iter().map(|(_, row, _)| row.repeat + 1).max().unwrap_or(1);
    let mut manifest = manifest(source, &found.summary, &findings);
    manifest.label = label.unwrap_or(&model).to_owned();
    manifest.model = model;
    manifest.fingerprint = fingerprint(&questions);
    manifest.count = questions.len();
    manifest.repeats = repeats;
    manifest.domains = meter.into_iter().map(|(meter, _)| meter).collect();
    let mut run = RunDir::begin(out, &manifest, &questions)?;
    for (_, row, text) in &queries {
        run.add(row, text)?;
    }
    Ok(findings)
}

/// The model whose answers are read.
fn chosen(found: &Found, named: Option<&str>) -> Result<String, String> {
    let mut models = BTreeMap::new();
    for record in &found.records {
        let metrics = record.model_metrics.iter().filter(|(_, of)| of.is_some()).map(|(name, _)| name);
        let answers = record.model_answers.iter().filter(|(_, of)| of.is_some()).map(|(name, _)| name);
        for name in metrics.chain(answers) {
            *models.entry(name.as_str()).or_insert(0_usize) += 1;
        }
    }
    let list = || models.keys().copied().collect::<Vec<_>>().join(", ");
    match named {
        Some(name) if models.contains_key(name) => return Ok(name.to_owned()),
        Some(name) => return Err(format!("has no answers of {name}; there are: {}", list())),
        None => {}
    }
    if let Some(name) = found.summary.model.as_deref().filter(|name| models.contains_key(name)) {
        return Ok(name.to_owned());
    }
    match models.len() {
        0 => Err("has no model's answers".into()),
        1 => Ok(list()),
        _ => Err(format!("has answers of several models; choose one with --model: {}", list())),
    }
}

fn gpu<'a>(record: &'a Record, model: &str) -> Option<&'a Gpu> {
    record.model_metrics.get(model)?.as_ref()?.gpu_info.as_ref()
}

/// The reading of one record after the other.
struct Reading {
    findings: Findings,
    grade: Option<Grade>,
    clock_ns: u64,
    ratios: Vec<f64>,
}

impl Reading {
    /// A query; `None` where the record has nothing of this model.
    fn query(&mut self, place: usize, mut record: Record, model: &str) -> Option<(Question, Row, Text)> {
        let metrics = record.model_metrics.remove(model).flatten();
        let reply = record.model_answers.remove(model).flatten();
        if metrics.is_none() && reply.is_none() {
            return None;
        }
        let metrics = metrics.unwrap_or_default();
        let reply = reply.unwrap_or_else(|| metrics.lm_response.clone());
        let kept = kept(&record.dataset_metadata);
        self.findings.records += 1;
        let question = self.question(place, &record, &kept);
        let (score, error) = self.score(&question, &reply, &metrics, &kept);
        let seconds = metrics.latency_metrics.total_query_seconds.filter(|it| it.is_finite() && *it > 0.0);
        self.findings.without_duration += usize::from(seconds.is_none());
        self.findings.longer_than_samples += usize::from(seconds.is_some_and(|seconds| seconds > SAMPLES_S));
        self.findings.with_beginning += usize::from(kept.began_ns.is_some());
        let duration_ns = (seconds.unwrap_or(0.0) * 1e9).round() as u64;
        let began_ns = kept.began_ns.unwrap_or(self.clock_ns);
        self.clock_ns += duration_ns;
        let energy = self.energy(&metrics, seconds, &kept).map(|share_uj| {
            // The harness takes a difference of the machine's counter: a window. What we wrote says what its window was.
            let window_uj = if kept.id.is_empty() { Some(share_uj) } else { kept.window_uj };
            let (error_uj, idle_uj) = (kept.error_uj, kept.idle_uj);
            let part = Part { share_uj: Some(share_uj), error_uj, idle_uj, window_uj };
            Energy {
                share_uj: part.share_uj,
                error_uj,
                idle_uj,
                window_uj,
                grade: kept.grade.or(self.grade),
                span_ns: duration_ns,
                domains: self.grade.map(|_| part).into_iter().collect(),
                ..Energy::default()
            }
        });
        let mut tokens = |count: Option<u64>| {
            self.findings.tokens_zero += usize::from(count == Some(0));
            count.filter(|count| *count > 0)
        };
        let (tokens_in, tokens_out) =
            (tokens(metrics.token_metrics.input), tokens(metrics.token_metrics.output));
        let first = metrics.latency_metrics.time_to_first_token_seconds;
        self.findings.first_token_zero += usize::from(first == Some(0.0));
        let first_token_ns =
            first.filter(|it| it.is_finite() && *it > 0.0).map(|it| (it * 1e9).round() as u64);
        let settled = extract::answer(&question, &reply);
        let text = Text { id: question.id.clone(), repeat: kept.repeat, reply, settled };
        let row = Row {
            id: question.id.clone(),
            repeat: kept.repeat,
            subject: question.subject.clone(),
            error,
            score,
            began_ns,
            duration_ns,
            first_token_ns,
            tokens_in,
            tokens_out,
            energy,
            ..Row::default()
        };
        Some((question, row, text))
    }

    fn question(&mut self, place: usize, record: &Record, kept: &Kept) -> Question {
        let prompt = record.problem.clone().unwrap_or_default();
        let answer = match &record.answer {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let lacking = prompt.trim().is_empty() || answer.trim().is_empty();
        self.findings.without_question += usize::from(lacking);
        // What no rule can compare is left to a judge, as is what has no right answer.
        let format = kept.format.unwrap_or_else(|| guess(&answer, &[]));
        let (format, answer) = match readable(format, answer.clone(), &[]) {
            Ok(answer) if !lacking => (format, answer),
            _ => (Format::Judge, answer),
        };
        // The run's own file of questions must stay readable; where the harness kept nothing, that is what it says.
        let or = |text: String, instead: &str| if text.trim().is_empty() { instead.to_owned() } else { text };
        Question {
            id: if kept.id.is_empty() { format!("h{place:06}") } else { kept.id.clone() },
            subject: record.subject.clone().filter(|it| !it.is_empty()).unwrap_or_else(|| "general".into()),
            format,
            prompt: or(prompt, "(the question was not kept)"),
            answer: or(answer, "(the right answer was not kept)"),
            choices: Vec::new(),
        }
    }

    fn score(
        &mut self,
        question: &Question,
        reply: &str,
        metrics: &Metrics,
        kept: &Kept,
    ) -> (Option<f64>, Option<String>) {
        let empty = || reply.trim().is_empty().then(|| "the answer is empty".to_owned());
        if let Some(error) = kept.error.clone().or_else(empty) {
            self.findings.unanswered += 1;
            return (None, Some(error));
        }
        // The harness wrote false everywhere; true was put there by somebody who scored.
        let told = kept.score.or((metrics.lm_correctness == Some(true)).then_some(1.0));
        if told.is_some() {
            self.findings.scores_kept += 1;
            return (told, None);
        }
        let right = extract::score(question, reply);
        match right {
            Some(right) => {
                self.findings.scored += 1;
                self.findings.right += usize::from(right);
            }
            None => self.findings.for_judge += 1,
        }
        (right.map(|right| f64::from(u8::from(right))), None)
    }

    /// Microjoules, where what stands there is an energy.
    fn energy(&mut self, metrics: &Metrics, seconds: Option<f64>, kept: &Kept) -> Option<u64> {
        let energy = &metrics.energy_metrics;
        let Some(joules) = energy.per_query_joules else {
            self.findings.energy_absent += 1;
            return None;
        };
        self.findings.total_copied += usize::from(energy.total_joules == Some(joules));
        if joules == 0.0 {
            self.findings.energy_zero += 1;
            return None;
        }
        let possible = joules.is_finite()
            && joules > 0.0
            && joules <= MOST_WATTS * seconds.unwrap_or(SAMPLES_S).max(1.0);
        if !possible {
            self.findings.energy_absurd += 1;
            return None;
        }
        self.findings.metered += 1;
        self.findings.with_error += usize::from(kept.error_uj.is_some());
        // What we wrote there is the machine's power, and the energy a share of it.
        let watts = metrics.power_metrics.gpu.per_query_watts.avg;
        let watts = watts.filter(|watts| watts.is_finite() && kept.id.is_empty());
        if let Some((watts, seconds)) = watts.zip(seconds) {
            let ratio = watts * seconds / joules;
            self.findings.power_disagrees += usize::from(!(0.8..=1.2).contains(&ratio));
            self.ratios.push(ratio);
        }
        Some((joules * 1e6).round() as u64)
    }

    fn ended(mut self) -> Findings {
        self.ratios.sort_unstable_by(f64::total_cmp);
        self.findings.power_known = self.ratios.len();
        self.findings.power_ratio = self.ratios.get(self.ratios.len() / 2).copied();
        self.findings
    }
}
