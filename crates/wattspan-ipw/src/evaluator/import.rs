//! Writes an evaluation as a run, so that reports, comparisons, routes and cards work on it.

use std::collections::HashSet;
use std::path::Path;

use serde::Serialize;

use super::super::answer_format::AnswerFormat;
use super::super::question::{Question, fingerprint};
use super::super::row::{QueryRow, ReplyText};
use super::super::run_dir::{FORMAT_VERSION, Manifest, NO_METER, RunDir, RunDirError};
use super::super::run_settings::{CONCURRENCY, MAX_TOKENS, TEMPERATURE};
use super::evaluation::{EvaluatedSample, Evaluation};

/// The longest prompt and answer that a run keeps, bytes; longer ones are cut.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// The most repeats (epochs) of a question. The planned queries of a run are its questions times its repeats, and a damaged
/// number would make them absurd.
const MAX_REPEATS: u32 = 10_000;

/// Scores that differ by more are not the same mean.
const SAME_MEAN: f64 = 1e-9;

/// Why a sample has no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SampleReason {
    /// The id of the question.
    pub id: String,
    pub reason: String,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationFindings {
    pub evaluator: String,
    pub task: String,
    pub model: String,
    pub scorer: String,
    pub samples: usize,
    /// The mean of the samples' scores.
    pub score: Option<f64>,
    /// The evaluator's own mean of the score.
    pub own_score: Option<f64>,
    /// The sum of the samples' energies.
    pub energy_uj: u64,
    /// The most queries that were open at once, or were allowed to be.
    pub concurrency: Option<u64>,
    /// Samples whose answer ended at the answer limit.
    pub cut_off: usize,
    pub without_score: Vec<SampleReason>,
    pub without_energy: Vec<SampleReason>,
    pub remarks: Vec<String>,
}

/// Imports an evaluation as a run into the directory `out`.
///
/// # Errors
/// There is no sample, one is there twice or of an epoch above `MAX_REPEATS`, or the run cannot be written.
pub fn import_evaluation(
    source: &Path,
    evaluation: Evaluation,
    label: Option<&str>,
    out: &Path,
) -> Result<EvaluationFindings, RunDirError> {
    if evaluation.samples.is_empty() {
        let reason = "the evaluation has no samples".to_owned();
        return Err(RunDirError::Invalid { path: source.to_owned(), reason });
    }
    let mut keys = HashSet::new();
    if let Some(twice) = evaluation.samples.iter().find(|it| !keys.insert((it.id.as_str(), it.repeat))) {
        let reason = format!("the sample {:?} is there twice", twice.id);
        return Err(RunDirError::Invalid { path: source.to_owned(), reason });
    }
    if let Some(beyond) = evaluation.samples.iter().find(|it| it.repeat >= MAX_REPEATS) {
        let epoch = u64::from(beyond.repeat) + 1;
        let reason = format!("the sample {:?} is of epoch {epoch}; {MAX_REPEATS} are the most", beyond.id);
        return Err(RunDirError::Invalid { path: source.to_owned(), reason });
    }
    let findings = findings(&evaluation);
    let mut seen = HashSet::new();
    let mut questions: Vec<Question> = evaluation
        .samples
        .iter()
        .filter(|sample| seen.insert(sample.id.as_str()))
        .map(|sample| question(sample, &evaluation.task))
        .collect();
    // Samples stand in the order of their ends, and the fingerprint must not depend on it.
    questions.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    let manifest = manifest(source, &evaluation, &questions, &findings, label);
    let mut run = RunDir::create(out, &manifest, &questions)?;
    for sample in &evaluation.samples {
        let text = ReplyText {
            id: sample.id.clone(),
            repeat: sample.repeat,
            session: None,
            reply: sample.reply.clone(),
            settled: None,
        };
        run.append_row(&row(sample, &evaluation), &text)?;
    }
    run.finish()?;
    Ok(findings)
}

fn question(sample: &EvaluatedSample, task: &str) -> Question {
    // The run's question file must stay valid, so a placeholder replaces a missing text.
    let or = |text: &str, instead: &str| match text.trim().is_empty() {
        true => instead.to_owned(),
        false => truncated(text).to_owned(),
    };
    Question {
        id: sample.id.clone(),
        subject: subject(sample, task),
        // A rule must not replace the evaluator's score.
        format: AnswerFormat::Judge,
        prompt: or(&sample.prompt, "(the question was not kept)"),
        answer: or(&sample.answer, "(the right answer was not kept)"),
        choices: Vec::new(),
    }
}

fn truncated(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

fn subject(sample: &EvaluatedSample, task: &str) -> String {
    sample.subject.clone().filter(|subject| !subject.is_empty()).unwrap_or_else(|| task.to_owned())
}

fn row(sample: &EvaluatedSample, evaluation: &Evaluation) -> QueryRow {
    QueryRow {
        id: sample.id.clone(),
        repeat: sample.repeat,
        subject: subject(sample, &evaluation.task),
        score: sample.score.as_ref().ok().copied(),
        scored_by: Some(format!("{} {}", evaluation.evaluator, evaluation.scorer)),
        began_ns: sample.began_ns,
        duration_ns: sample.duration_ns,
        tokens_in: sample.tokens_in,
        tokens_out: sample.tokens_out,
        energy: sample.energy.as_ref().ok().cloned(),
        unmetered: sample.energy.as_ref().err().cloned(),
        ..QueryRow::default()
    }
}

fn manifest(
    source: &Path,
    evaluation: &Evaluation,
    questions: &[Question],
    findings: &EvaluationFindings,
    label: Option<&str>,
) -> Manifest {
    let repeats = evaluation.samples.iter().map(|sample| sample.repeat + 1).max().unwrap_or(1);
    let planned = evaluation.planned.map_or(0, |planned| planned.div_ceil(repeats as usize));
    let settings = [
        (CONCURRENCY, findings.concurrency.map(|count| count.to_string())),
        (TEMPERATURE, evaluation.temperature.map(|temperature| temperature.to_string())),
        (MAX_TOKENS, evaluation.max_tokens.map(|tokens| tokens.to_string())),
        ("imported from", Some(source.display().to_string())),
        ("evaluator", Some(format!("{} {}", evaluation.evaluator, evaluation.version))),
        ("scorer", Some(evaluation.scorer.clone())),
        ("the evaluator's own score", evaluation.own_score.map(|score| score.to_string())),
        ("remarks", Some(findings.sentences().join("; "))),
    ];
    let settings = settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Manifest {
        version: FORMAT_VERSION,
        label: label.unwrap_or(&evaluation.model).to_owned(),
        model: evaluation.model.clone(),
        server: evaluation.server.clone(),
        settings: settings.filter(|(_, value)| !value.is_empty()).collect(),
        questions: evaluation.task.clone(),
        fingerprint: fingerprint(questions),
        count: questions.len().max(planned),
        repeats,
        meter: match evaluation.meter.as_str() {
            "" => NO_METER.to_owned(),
            version => format!("daemon {version}"),
        },
        idle: "learned by the daemon, or configured".into(),
        domains: evaluation.domains.clone(),
        began_unix_ns: evaluation.began_unix_ns,
        assumptions: evaluation.assumptions.clone(),
        ..Manifest::default()
    }
}

fn findings(evaluation: &Evaluation) -> EvaluationFindings {
    let samples = &evaluation.samples;
    let reasons = |of: &dyn Fn(&EvaluatedSample) -> Option<String>| {
        let found = samples.iter().filter_map(|it| Some(SampleReason { id: it.id.clone(), reason: of(it)? }));
        found.collect::<Vec<_>>()
    };
    let scores: Vec<f64> = samples.iter().filter_map(|sample| sample.score.as_ref().ok().copied()).collect();
    let energies = samples.iter().filter_map(|sample| sample.energy.as_ref().ok()?.share_uj);
    EvaluationFindings {
        evaluator: format!("{} {}", evaluation.evaluator, evaluation.version),
        task: evaluation.task.clone(),
        model: evaluation.model.clone(),
        scorer: evaluation.scorer.clone(),
        samples: samples.len(),
        score: (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64),
        own_score: evaluation.own_score,
        energy_uj: energies.fold(0, u64::saturating_add),
        concurrency: evaluation.concurrency.or_else(|| peak_concurrency(samples)),
        cut_off: samples.iter().filter(|sample| sample.is_cut_off).count(),
        without_score: reasons(&|sample| sample.score.as_ref().err().cloned()),
        without_energy: reasons(&|sample| sample.energy.as_ref().err().cloned()),
        remarks: evaluation.remarks.clone(),
    }
}

/// The most samples whose model calls were open at once; `None` if no time is known.
fn peak_concurrency(samples: &[EvaluatedSample]) -> Option<u64> {
    let timed = samples.iter().filter(|sample| sample.duration_ns > 0);
    let mut edges: Vec<(u64, i64)> = timed
        .flat_map(|sample| [(sample.began_ns, 1), (sample.began_ns.saturating_add(sample.duration_ns), -1)])
        .collect();
    edges.sort_unstable();
    let (mut open, mut peak) = (0, 0);
    for (_, change) in edges {
        open += change;
        peak = peak.max(open);
    }
    u64::try_from(peak).ok().filter(|peak| *peak > 0)
}

impl EvaluationFindings {
    /// Returns the findings as sentences.
    pub fn sentences(&self) -> Vec<String> {
        let scored = self.samples - self.without_score.len();
        let number =
            |score: Option<f64>| score.map_or_else(|| "unknown".to_owned(), |score| format!("{score:.9}"));
        let mut all = vec![format!(
            "scores: {scored} of {} are those of {} ({}), mean {}",
            self.samples,
            self.evaluator,
            self.scorer,
            number(self.score)
        )];
        match (self.score, self.own_score) {
            (Some(score), Some(own)) if (score - own).abs() > SAME_MEAN => all
                .push(format!("its own result is {own:.9}: it reduces or weighs the samples in another way")),
            _ => {}
        }
        let mut push_reasons = |what: &str, without: &[SampleReason]| {
            if let Some(first) = without.first() {
                let reason = &first.reason;
                all.push(format!(
                    "{what}: {} of {} have none; the first one: {reason}",
                    without.len(),
                    self.samples
                ));
            }
        };
        push_reasons("scores", &self.without_score);
        push_reasons("energy", &self.without_energy);
        if self.cut_off > 0 {
            all.push(format!(
                "{} answers ended at the answer limit; the evaluator's scores of them count",
                self.cut_off
            ));
        }
        all.extend(self.remarks.iter().cloned());
        all
    }
}

#[cfg(test)]
mod tests;
