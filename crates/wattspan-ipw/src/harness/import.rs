//! Import of the harness's results as a run.
//!
//! Interprets the harness's columns. Scores of a judge are kept, rights and wrongs; results that were never judged are
//! scored by this project's rules. An energy that is impossible or does not cover the whole query is dropped with its
//! reason, and a 0 that means "unknown" is absent. The source is never modified.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::Value;

use super::super::answer_format::AnswerFormat;
use super::super::question::{Question, fingerprint, infer_format, normalize_answer};
use super::super::row::{DomainEnergy, QueryEnergy, QueryRow, ReplyText};
use super::super::run_dir::RunDir;
use super::energy_basis::{EnergyBasis, EnergyLayout, to_microjoules};
use super::findings::{HarnessFigures, ImportFindings, RecordReason};
use super::provenance::{import_manifest, wattspan_metadata};
use super::results_reader::HarnessResults;
use super::{HarnessError, ModelMetrics, ProfilingRecord, WattspanMetadata};

/// An energy above this mean power comes from a counter reset and is dropped.
const MAX_POWER_W: f64 = 1e6;

/// The length of the harness's sample buffer in seconds, unless the summary states another one.
const SAMPLE_BUFFER_S: f64 = 30.0;

/// A query longer than the sample buffer has its whole energy if that is at least this part of sampled power × time.
const MIN_COVERED: f64 = 0.99;

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
    let metrics = results.records.iter().filter_map(|record| model_metrics(record, &model));
    let gpu = metrics.clone().find_map(|metrics| metrics.gpu_info.as_ref());
    let layout = EnergyLayout::of(metrics.clone(), gpu.or(results.summary.gpu_info.as_ref()));
    let mut importer = RecordImporter {
        findings: ImportFindings {
            model: model.clone(),
            broken: results.invalid_records,
            mechanism: layout.mechanism.clone(),
            basis: layout.basis.name().to_owned(),
            ..ImportFindings::default()
        },
        judgement: Judgement::of(metrics),
        sample_buffer_s: results.summary.telemetry_buffer_seconds,
        layout,
        clock_ns: 0,
        ratios: Vec::new(),
        figures: FigureSums::default(),
    };
    let mut queries = Vec::new();
    for (index, record) in results.records.into_iter().enumerate() {
        match importer.import_record(index, record, &model) {
            Some(query) => queries.push(query),
            None => importer.findings.broken += 1,
        }
    }
    let domains = importer.layout.domains.clone();
    let findings = importer.finish();
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
    manifest.domains = domains;
    let mut run = RunDir::create(out, &manifest, &questions)?;
    for (_, row, text) in &queries {
        run.append_row(row, text)?;
    }
    run.finish()?;
    Ok(findings)
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

fn model_metrics<'a>(record: &'a ProfilingRecord, model: &str) -> Option<&'a ModelMetrics> {
    record.model_metrics.get(model)?.as_ref()
}

/// Where the scores of a model's results are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    /// In `evaluation.is_correct`; a record without it was not judged.
    Evaluation,
    /// In `lm_correctness`: one is true, so they were judged.
    LmCorrectness,
    /// Nowhere: the harness's first version writes false throughout.
    Absent,
}

impl Judgement {
    fn of<'a>(mut metrics: impl Iterator<Item = &'a ModelMetrics> + Clone) -> Self {
        if metrics.clone().any(|metrics| metrics.evaluation.is_some()) {
            Self::Evaluation
        } else if metrics.any(|metrics| metrics.lm_correctness == Some(true)) {
            Self::LmCorrectness
        } else {
            Self::Absent
        }
    }

    fn is_correct(self, metrics: &ModelMetrics) -> Option<bool> {
        match self {
            Self::Evaluation => metrics.evaluation.as_ref()?.is_correct,
            Self::LmCorrectness => metrics.lm_correctness,
            Self::Absent => None,
        }
    }
}

/// The sums of the harness's own figures: accuracy over the judged records, means over those of them with an energy.
#[derive(Debug, Default)]
struct FigureSums {
    right: usize,
    scored: usize,
    metered: usize,
    energy_j: f64,
    power_w: f64,
}

impl FigureSums {
    fn add(&mut self, is_correct: bool, joules_and_seconds: Option<(f64, f64)>) {
        self.scored += 1;
        self.right += usize::from(is_correct);
        if let Some((joules, seconds)) = joules_and_seconds {
            self.metered += 1;
            self.energy_j += joules;
            self.power_w += joules / seconds;
        }
    }

    fn figures(&self) -> Option<HarnessFigures> {
        let accuracy = (self.scored > 0).then(|| self.right as f64 / self.scored as f64)?;
        let mean = |sum: f64| (self.metered > 0).then(|| sum / self.metered as f64);
        let (energy_j, power_w) = (mean(self.energy_j), mean(self.power_w));
        let per = |cost: Option<f64>| cost.filter(|cost| *cost > 0.0).map(|cost| accuracy / cost);
        let (per_joule, per_watt) = (per(energy_j), per(power_w));
        Some(HarnessFigures { scored: self.scored, accuracy, energy_j, power_w, per_joule, per_watt })
    }
}

/// Converts the records one by one.
struct RecordImporter {
    findings: ImportFindings,
    judgement: Judgement,
    /// The length of the sample buffer, if the summary states it.
    sample_buffer_s: Option<f64>,
    layout: EnergyLayout,
    clock_ns: u64,
    ratios: Vec<f64>,
    figures: FigureSums,
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
        let question = self.question(index, &record, &metrics, &metadata);
        let (score, error) = self.score(&question, &reply, &metrics, &metadata);
        let seconds = self.duration_s(&metrics);
        let duration_ns = (seconds.unwrap_or(0.0) * 1e9).round() as u64;
        self.findings.with_beginning += usize::from(metadata.began_ns.is_some());
        let began_ns = metadata.began_ns.unwrap_or(self.clock_ns);
        self.clock_ns += duration_ns;
        let joules = self.joules(&metrics, seconds, &metadata);
        if let Some(is_correct) = self.judgement.is_correct(&metrics) {
            // The harness itself has no figure of the processors' energy.
            let of_harness = joules.as_ref().ok().filter(|_| self.layout.basis != EnergyBasis::Cpu);
            self.figures.add(is_correct, of_harness.copied().zip(seconds));
        }
        let reason = joules.as_ref().err().cloned();
        if let Some(reason) = &reason {
            self.findings.without_energy.push(RecordReason::new(&question.id, reason));
        }
        let energy = joules.ok().map(|joules| self.query_energy(joules, duration_ns, &metrics, &metadata));
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
            // Our own exports do not keep the reason.
            unmetered: reason.filter(|_| metadata.id.is_empty()),
            ..QueryRow::default()
        };
        let settled = question.extract_answer(&reply);
        let text =
            ReplyText { id: question.id.clone(), repeat: metadata.repeat, session: None, reply, settled };
        Some((question, row, text))
    }

    /// Returns the query's duration if it is known.
    fn duration_s(&mut self, metrics: &ModelMetrics) -> Option<f64> {
        let seconds = metrics.latency_metrics.total_query_seconds.filter(|it| it.is_finite() && *it > 0.0);
        self.findings.without_duration += usize::from(seconds.is_none());
        let buffer_s = self.sample_buffer_s.unwrap_or(SAMPLE_BUFFER_S);
        self.findings.longer_than_samples += usize::from(seconds.is_some_and(|seconds| seconds > buffer_s));
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

    /// Returns the energy of a row whose share in the basis is `joules`.
    fn query_energy(
        &self,
        joules: f64,
        duration_ns: u64,
        metrics: &ModelMetrics,
        metadata: &WattspanMetadata,
    ) -> QueryEnergy {
        let share_uj = to_microjoules(joules);
        // An export of ours has whole microjoules.
        let remainder_pj =
            if metadata.id.is_empty() { (joules * 1e12 - share_uj as f64 * 1e6).round() as i32 } else { 0 };
        // The harness's energy is a difference of the machine's counter: a window. Our own exports have the window in
        // the metadata.
        let window_uj = if metadata.id.is_empty() { Some(share_uj) } else { metadata.window_uj };
        let (share_uj, error_uj, idle_uj) = (Some(share_uj), metadata.error_uj, metadata.idle_uj);
        let domain_energy = DomainEnergy { share_uj, error_uj, idle_uj, window_uj };
        let phase = |joules: Option<f64>| joules.filter(|it| it.is_finite() && *it > 0.0).map(to_microjoules);
        QueryEnergy {
            share_uj,
            error_uj,
            idle_uj,
            window_uj,
            remainder_pj,
            grade: metadata.grade.or(self.layout.grade()),
            span_ns: duration_ns,
            prefill_uj: phase(metrics.phase_metrics.prefill_energy_j),
            decode_uj: phase(metrics.phase_metrics.decode_energy_j),
            domains: self.layout.domain_energies(metrics, domain_energy),
            ..QueryEnergy::default()
        }
    }

    fn question(
        &mut self,
        index: usize,
        record: &ProfilingRecord,
        metrics: &ModelMetrics,
        metadata: &WattspanMetadata,
    ) -> Question {
        let prompt = record.problem.clone().unwrap_or_default();
        let answer = match &record.answer {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let is_incomplete = prompt.trim().is_empty() || answer.trim().is_empty();
        self.findings.without_question += usize::from(is_incomplete);
        // An answer that no rule can compare, or that is missing, is left to a judge. So is one that the harness has
        // judged, so that scoring by rule does not replace the verdict.
        let is_judged = self.judgement.is_correct(metrics).is_some() || metrics.evaluation.is_some();
        let is_judged = is_judged && metadata.format.is_none();
        let format = metadata.format.unwrap_or_else(|| infer_format(&answer, &[]));
        let (format, answer) = match normalize_answer(format, answer.clone(), &[]) {
            Ok(answer) if !is_incomplete && !is_judged => (format, answer),
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
        let is_ours = !metadata.id.is_empty();
        let judged = self.judgement.is_correct(metrics).filter(|_| !is_ours);
        let empty =
            || (reply.trim().is_empty() && judged.is_none()).then(|| "the answer is empty".to_owned());
        if let Some(error) = metadata.error.clone().or_else(empty) {
            self.findings.unanswered += 1;
            return (None, Some(error));
        }
        let score = metadata.score.or(judged.map(|right| f64::from(u8::from(right))));
        if score.is_some() {
            self.findings.scores_kept += 1;
            self.findings.scores_right += usize::from(score == Some(1.0));
            return (score, None);
        }
        if self.judgement != Judgement::Absent && !is_ours {
            let reason = match metrics.evaluation {
                Some(_) => "the harness's evaluation failed (is_correct is null)",
                None => "the harness has not evaluated it",
            };
            self.findings.without_score.push(RecordReason::new(&question.id, reason));
            return (None, None);
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

    /// Returns the query's joules, or why it has none.
    fn joules(
        &mut self,
        metrics: &ModelMetrics,
        seconds: Option<f64>,
        metadata: &WattspanMetadata,
    ) -> Result<f64, String> {
        let energy = &metrics.energy_metrics;
        let basis = self.layout.basis;
        let Some(joules) = basis.joules(energy) else {
            self.findings.energy_absent += 1;
            return Err(format!("the record has no energy in the basis {}", basis.name()));
        };
        self.findings.total_copied += usize::from(energy.total_joules == Some(joules));
        if joules == 0.0 {
            self.findings.energy_zero += 1;
            return Err("0 J: the harness saw a single sample".into());
        }
        let is_possible = joules.is_finite()
            && joules > 0.0
            && joules <= MAX_POWER_W * seconds.unwrap_or(SAMPLE_BUFFER_S).max(1.0);
        if !is_possible {
            self.findings.energy_absurd += 1;
            return Err(format!("{joules:.3} J is impossible: the counter was reset"));
        }
        // In our own exports power is the machine's and energy a share of it, so they are not compared.
        let watts = basis.sampled_watts(metrics).filter(|_| metadata.id.is_empty());
        if metadata.id.is_empty() && self.is_cut(joules, watts, seconds) {
            self.findings.energy_cut += 1;
            let (buffer_s, seconds) =
                (self.sample_buffer_s.unwrap_or(SAMPLE_BUFFER_S), seconds.unwrap_or_default());
            return Err(format!("the energy is that of the last {buffer_s} s of {seconds:.1} s"));
        }
        self.findings.metered += 1;
        self.findings.with_error += usize::from(metadata.error_uj.is_some());
        if let Some((watts, seconds)) = watts.zip(seconds) {
            let ratio = watts * seconds / joules;
            self.findings.power_disagrees += usize::from(!(0.8..=1.2).contains(&ratio));
            self.ratios.push(ratio);
        }
        Ok(joules)
    }

    /// Whether the energy ends with the sample buffer: the query is longer, and power × time does not show that its
    /// energy is whole.
    fn is_cut(&self, joules: f64, watts: Option<f64>, seconds: Option<f64>) -> bool {
        let Some(seconds) = seconds else { return false };
        match self.sample_buffer_s {
            Some(buffer_s) => seconds > buffer_s,
            None if seconds <= SAMPLE_BUFFER_S => false,
            None => watts.is_none_or(|watts| joules < MIN_COVERED * watts * seconds),
        }
    }

    fn finish(mut self) -> ImportFindings {
        self.ratios.sort_unstable_by(f64::total_cmp);
        self.findings.power_known = self.ratios.len();
        self.findings.harness = self.figures.figures();
        self.findings.power_ratio = self.ratios.get(self.ratios.len() / 2).copied();
        self.findings
    }
}
