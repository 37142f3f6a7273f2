//! Import of the harness's results as a run.
//!
//! Interprets the harness's columns. Scores are computed by this project's rules, since the harness has none. An
//! impossible energy is dropped, and a 0 that means "unknown" is absent. The source is never modified.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::Value;
use wattspan_client::domain::Grade;

use super::super::answer_format::AnswerFormat;
use super::super::question::{Question, fingerprint, infer_format, normalize_answer};
use super::super::row::{DomainEnergy, QueryEnergy, QueryRow, ReplyText};
use super::super::run_dir::RunDir;
use super::findings::ImportFindings;
use super::provenance::{import_manifest, metered_domain, wattspan_metadata};
use super::results_reader::HarnessResults;
use super::{GpuInfo, HarnessError, ModelMetrics, ProfilingRecord, WattspanMetadata};

/// An energy above this mean power comes from a counter reset and is dropped.
const MAX_POWER_W: f64 = 1e6;

/// The length of the harness's sample buffer, in seconds.
const SAMPLE_BUFFER_S: f64 = 30.0;

/// The largest relative difference between the energy of a full sample buffer and mean power times its length.
const BUFFER_TOLERANCE: f64 = 0.05;

/// A long query's mean power times its duration exceeds its energy by at most this factor.
const MAX_POWER_RATIO: f64 = 1.2;

/// Imports `source` as a run into the directory `out`.
///
/// # Errors
/// The source lacks the model, or has several and none was named; the run cannot be written.
pub fn import(
    source: &Path,
    results: HarnessResults,
    model: Option<&str>,
    label: Option<&str>,
    out: &Path,
) -> Result<ImportFindings, HarnessError> {
    let model = choose_model(&results, model).map_err(|reason| HarnessError::invalid(source, reason))?;
    let domain = results.records.iter().filter_map(|record| gpu_info(record, &model)).next();
    let domain = domain.or(results.summary.gpu_info.as_ref()).and_then(metered_domain);
    let mut importer = RecordImporter {
        findings: ImportFindings {
            model: model.clone(),
            broken: results.invalid_records,
            ..ImportFindings::default()
        },
        grade: domain.as_ref().map(|(domain, _)| domain.grade),
        clock_ns: 0,
        ratios: Vec::new(),
    };
    let mut queries = Vec::new();
    for (index, record) in results.records.into_iter().enumerate() {
        match importer.import_record(index, record, &model) {
            Some(query) => queries.push(query),
            None => importer.findings.broken += 1,
        }
    }
    let mut findings = importer.finish();
    findings.mechanism = domain.as_ref().map(|(_, words)| (*words).to_owned());
    let mut seen = HashSet::new();
    let questions: Vec<Question> = queries
        .iter()
        .map(|(question, ..)| question)
        .filter(|it| seen.insert(it.id.clone()))
        .cloned()
        .collect();
    let repeats = queries.iter().map(|(_, row, _)| row.repeat + 1).max().unwrap_or(1);
    let mut manifest = import_manifest(source, &results.summary, &findings);
    manifest.label = label.unwrap_or(&model).to_owned();
    manifest.model = model;
    manifest.fingerprint = fingerprint(&questions);
    manifest.count = questions.len();
    manifest.repeats = repeats;
    manifest.domains = domain.into_iter().map(|(domain, _)| domain).collect();
    let mut run = RunDir::create(out, &manifest, &questions)?;
    for (_, row, text) in &queries {
        run.append_row(row, text)?;
    }
    Ok(findings)
}

/// Whether the energy of a long query may be that of the harness's sample buffer alone: older versions subtract the oldest
/// buffered sample, so a query of 120 s has the energy of its last 30 s. The mean power shows which; without it, a long
/// query's energy cannot be trusted.
fn is_truncated(joules: f64, watts: Option<f64>, seconds: f64) -> bool {
    if seconds <= SAMPLE_BUFFER_S {
        return false;
    }
    let Some(watts) = watts.filter(|watts| *watts > 0.0) else { return true };
    let equals_buffer = (joules / (watts * SAMPLE_BUFFER_S) - 1.0).abs() <= BUFFER_TOLERANCE;
    let is_whole = joules >= watts * seconds * (1.0 - BUFFER_TOLERANCE);
    joules * MAX_POWER_RATIO < watts * seconds || (equals_buffer && !is_whole)
}

/// Selects the model whose answers are read.
fn choose_model(results: &HarnessResults, requested: Option<&str>) -> Result<String, String> {
    let mut models = BTreeMap::new();
    for record in &results.records {
        let metrics = record.model_metrics.iter().filter(|(_, of)| of.is_some()).map(|(name, _)| name);
        let answers = record.model_answers.iter().filter(|(_, of)| of.is_some()).map(|(name, _)| name);
        for name in metrics.chain(answers) {
            *models.entry(name.as_str()).or_insert(0_usize) += 1;
        }
    }
    let list = || models.keys().copied().collect::<Vec<_>>().join(", ");
    match requested {
        Some(name) if models.contains_key(name) => return Ok(name.to_owned()),
        Some(name) => return Err(format!("has no answers of {name}; there are: {}", list())),
        None => {}
    }
    if let Some(name) = results.summary.model.as_deref().filter(|name| models.contains_key(name)) {
        return Ok(name.to_owned());
    }
    match models.len() {
        0 => Err("has no model's answers".into()),
        1 => Ok(list()),
        _ => Err(format!("has answers of several models; choose one with --model: {}", list())),
    }
}

fn gpu_info<'a>(record: &'a ProfilingRecord, model: &str) -> Option<&'a GpuInfo> {
    record.model_metrics.get(model)?.as_ref()?.gpu_info.as_ref()
}

/// Converts the records one by one.
struct RecordImporter {
    findings: ImportFindings,
    grade: Option<Grade>,
    clock_ns: u64,
    ratios: Vec<f64>,
}

impl RecordImporter {
    /// Converts a record; `None` if it has nothing of this model.
    fn import_record(
        &mut self,
        index: usize,
        mut record: ProfilingRecord,
        model: &str,
    ) -> Option<(Question, QueryRow, ReplyText)> {
        let metrics = record.model_metrics.remove(model).flatten();
        let reply = record.model_answers.remove(model).flatten();
        if metrics.is_none() && reply.is_none() {
            return None;
        }
        let metrics = metrics.unwrap_or_default();
        let reply = reply.unwrap_or_else(|| metrics.lm_response.clone());
        let metadata = wattspan_metadata(&record.dataset_metadata);
        self.findings.records += 1;
        let question = self.question(index, &record, &metadata);
        let (score, error) = self.score(&question, &reply, &metrics, &metadata);
        let seconds = self.duration_s(&metrics);
        let duration_ns = (seconds.unwrap_or(0.0) * 1e9).round() as u64;
        self.findings.with_beginning += usize::from(metadata.began_ns.is_some());
        let began_ns = metadata.began_ns.unwrap_or(self.clock_ns);
        self.clock_ns += duration_ns;
        let energy = self
            .energy(&metrics, seconds, &metadata)
            .map(|share_uj| self.query_energy(share_uj, duration_ns, &metadata));
        let row = QueryRow {
            id: question.id.clone(),
            repeat: metadata.repeat,
            subject: question.subject.clone(),
            error,
            score,
            began_ns,
            duration_ns,
            first_token_ns: self.first_token_ns(&metrics),
            tokens_in: self.token_count(metrics.token_metrics.input),
            tokens_out: self.token_count(metrics.token_metrics.output),
            energy,
            ..QueryRow::default()
        };
        let settled = question.extract_answer(&reply);
        let text = ReplyText { id: question.id.clone(), repeat: metadata.repeat, reply, settled };
        Some((question, row, text))
    }

    /// Returns the query's duration if it is known.
    fn duration_s(&mut self, metrics: &ModelMetrics) -> Option<f64> {
        let seconds = metrics.latency_metrics.total_query_seconds.filter(|it| it.is_finite() && *it > 0.0);
        self.findings.without_duration += usize::from(seconds.is_none());
        self.findings.longer_than_samples +=
            usize::from(seconds.is_some_and(|seconds| seconds > SAMPLE_BUFFER_S));
        seconds
    }

    /// Returns the time to the first token if it is known; the harness writes 0 for an unknown one.
    fn first_token_ns(&mut self, metrics: &ModelMetrics) -> Option<u64> {
        let seconds = metrics.latency_metrics.time_to_first_token_seconds;
        self.findings.first_token_zero += usize::from(seconds == Some(0.0));
        seconds.filter(|it| it.is_finite() && *it > 0.0).map(|it| (it * 1e9).round() as u64)
    }

    /// Returns a number of tokens if it is known; the harness writes 0 for an unknown one.
    fn token_count(&mut self, count: Option<u64>) -> Option<u64> {
        self.findings.tokens_zero += usize::from(count == Some(0));
        count.filter(|count| *count > 0)
    }

    /// Returns the energy of a row whose share in the metered domain is `share_uj`.
    fn query_energy(&self, share_uj: u64, duration_ns: u64, metadata: &WattspanMetadata) -> QueryEnergy {
        // The harness's energy is a difference of the machine's counter: a window. Our own exports have the window in
        // the metadata.
        let window_uj = if metadata.id.is_empty() { Some(share_uj) } else { metadata.window_uj };
        let (share_uj, error_uj, idle_uj) = (Some(share_uj), metadata.error_uj, metadata.idle_uj);
        let domain_energy = DomainEnergy { share_uj, error_uj, idle_uj, window_uj };
        QueryEnergy {
            share_uj,
            error_uj,
            idle_uj,
            window_uj,
            grade: metadata.grade.or(self.grade),
            span_ns: duration_ns,
            domains: self.grade.map(|_| domain_energy).into_iter().collect(),
            ..QueryEnergy::default()
        }
    }

    fn question(&mut self, index: usize, record: &ProfilingRecord, metadata: &WattspanMetadata) -> Question {
        let prompt = record.problem.clone().unwrap_or_default();
        let answer = match &record.answer {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let is_incomplete = prompt.trim().is_empty() || answer.trim().is_empty();
        self.findings.without_question += usize::from(is_incomplete);
        // An answer that no rule can compare, or that is missing, is left to a judge.
        let format = metadata.format.unwrap_or_else(|| infer_format(&answer, &[]));
        let (format, answer) = match normalize_answer(format, answer.clone(), &[]) {
            Ok(answer) if !is_incomplete => (format, answer),
            _ => (AnswerFormat::Judge, answer),
        };
        // The run's question file must stay valid, so a placeholder replaces a missing text.
        let or = |text: String, instead: &str| if text.trim().is_empty() { instead.to_owned() } else { text };
        Question {
            id: if metadata.id.is_empty() { format!("h{index:06}") } else { metadata.id.clone() },
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
        metrics: &ModelMetrics,
        metadata: &WattspanMetadata,
    ) -> (Option<f64>, Option<String>) {
        let empty = || reply.trim().is_empty().then(|| "the answer is empty".to_owned());
        if let Some(error) = metadata.error.clone().or_else(empty) {
            self.findings.unanswered += 1;
            return (None, Some(error));
        }
        // The harness always writes false; a true comes from a later scoring.
        let score = metadata.score.or((metrics.lm_correctness == Some(true)).then_some(1.0));
        if score.is_some() {
            self.findings.scores_kept += 1;
            return (score, None);
        }
        let right = question.score_reply(reply);
        match right {
            Some(right) => {
                self.findings.scored += 1;
                self.findings.right += usize::from(right);
            }
            None => self.findings.for_judge += 1,
        }
        (right.map(|right| f64::from(u8::from(right))), None)
    }

    /// Returns the query's microjoules if the energy is valid.
    fn energy(
        &mut self,
        metrics: &ModelMetrics,
        seconds: Option<f64>,
        metadata: &WattspanMetadata,
    ) -> Option<u64> {
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
        let is_possible = joules.is_finite()
            && joules > 0.0
            && joules <= MAX_POWER_W * seconds.unwrap_or(SAMPLE_BUFFER_S).max(1.0);
        if !is_possible {
            self.findings.energy_absurd += 1;
            return None;
        }
        // In our own exports power is the machine's and energy a share of it, so they are not compared.
        let is_ours = !metadata.id.is_empty();
        let watts = metrics.power_metrics.gpu.per_query_watts.avg;
        let watts = watts.filter(|watts| watts.is_finite() && !is_ours);
        if seconds.is_some_and(|seconds| !is_ours && is_truncated(joules, watts, seconds)) {
            self.findings.energy_truncated += 1;
            return None;
        }
        self.findings.metered += 1;
        self.findings.with_error += usize::from(metadata.error_uj.is_some());
        if let Some((watts, seconds)) = watts.zip(seconds) {
            let ratio = watts * seconds / joules;
            self.findings.power_disagrees += usize::from(!(0.8..=1.2).contains(&ratio));
            self.ratios.push(ratio);
        }
        Some((joules * 1e6).round() as u64)
    }

    fn finish(mut self) -> ImportFindings {
        self.ratios.sort_unstable_by(f64::total_cmp);
        self.findings.power_known = self.ratios.len();
        self.findings.power_ratio = self.ratios.get(self.ratios.len() / 2).copied();
        self.findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_energy_of_a_long_query_is_truncated_unless_its_power_shows_that_it_is_whole() {
        // A public report: 120 s at 100 W with the 3,000 J of 30 s.
        assert!(is_truncated(3_000.0, Some(100.0), 120.0));
        assert!(!is_truncated(12_000.0, Some(100.0), 120.0));
        assert!(
            !is_truncated(11_000.0, Some(100.0), 120.0),
            "power and energy are sampled at different instants"
        );
        // A buffer and a bit.
        assert!(is_truncated(3_000.0, Some(100.0), 33.0));
        assert!(!is_truncated(3_000.0, Some(100.0), 30.5), "the loss is within the sampling's own error");
        assert!(!is_truncated(3_000.0, Some(100.0), 30.0));
        // Shorter than the buffer: whatever the power says, nothing was cut off.
        assert!(!is_truncated(10.0, Some(100.0), 20.0));
        assert!(!is_truncated(10.0, None, 20.0));
        // Nothing shows whether a long one is whole.
        assert!(is_truncated(12_000.0, None, 120.0));
        assert!(is_truncated(12_000.0, Some(0.0), 120.0));
    }
}
