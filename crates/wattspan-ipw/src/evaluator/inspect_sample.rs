//! A sample of a log of inspect-ai, with the figures that the hooks of `wattspan.inspect_ai` put into its metadata.
//!
//! Invariant: figures that contradict each other, or that no meter gives, are no energy.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use wattspan_client::domain::{DomainKind, Grade};

use super::super::row::{DomainEnergy, QueryEnergy};
use super::super::scope::RunDomain;
use super::evaluation::{EvaluatedSample, without_moved_bounds};
use super::inspect_spec::InspectScorer;
use super::score_value::score_value;

/// The key of the figures in the metadata.
const METADATA_KEY: &str = "wattspan";

/// The version of the figures that is read.
const FORMAT: u64 = 1;

/// The keys of the metadata that hold the subject of a question.
pub(super) const SUBJECT_KEYS: [&str; 3] = ["subject", "category", "topic"];

/// A sample; other fields are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectSample {
    pub id: Value,
    pub epoch: Option<u32>,
    pub input: Value,
    pub target: Value,
    pub metadata: Option<BTreeMap<String, Value>>,
    pub output: Option<InspectOutput>,
    pub scores: Option<BTreeMap<String, InspectScore>>,
    pub error: Option<Value>,
    pub attachments: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectOutput {
    pub choices: Option<Vec<InspectChoice>>,
    pub completion: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectChoice {
    pub message: Value,
    pub stop_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectScore {
    pub value: Value,
}

/// The figures of a sample, as `clients/python/src/wattspan/inspect_ai.py` writes them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SampleFigures {
    format: u64,
    meter: Option<String>,
    energy_uj: Option<u64>,
    error_uj: Option<u64>,
    idle_uj: Option<u64>,
    window_uj: Option<u64>,
    duration_ns: u64,
    moved_ns: u64,
    grade: Option<Grade>,
    at_least: bool,
    at_once: Option<u32>,
    tokens_in: Option<u64>,
    tokens_out: Option<u64>,
    domains: Vec<DomainFigures>,
    calls: Vec<CallFigures>,
    reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DomainFigures {
    name: String,
    kind: Option<DomainKind>,
    source: String,
    device: Option<String>,
    parent: Option<String>,
    counted: bool,
    update_interval_ns: Option<u64>,
    grade: Option<Grade>,
    share_uj: Option<u64>,
    error_uj: Option<u64>,
    idle_uj: Option<u64>,
    window_uj: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CallFigures {
    span: String,
    opened_ns: Option<u64>,
    closed_ns: Option<u64>,
    share_uj: Option<u64>,
}

/// Converts samples, and collects the domains of their figures.
#[derive(Debug, Default)]
pub struct SampleReader {
    pub domains: Vec<RunDomain>,
    /// The version of the daemon.
    pub meter: Option<String>,
}

impl SampleReader {
    /// Converts a sample.
    pub fn convert(&mut self, mut sample: InspectSample, scorer: &InspectScorer) -> EvaluatedSample {
        let attachments = sample.attachments.take().unwrap_or_default();
        let metadata = sample.metadata.take().unwrap_or_default();
        let figures = metadata.get(METADATA_KEY).map(SampleFigures::deserialize);
        let (figures, unread) = match figures {
            Some(Ok(figures)) if figures.format == FORMAT => (figures, None),
            Some(Ok(figures)) => {
                (SampleFigures::default(), Some(format!("its figures have format {}", figures.format)))
            }
            Some(Err(cause)) => {
                (SampleFigures::default(), Some(format!("its figures are not understood: {cause}")))
            }
            None => {
                let reason = "the log has no figures: wattspan.inspect_ai.measure() was not called";
                (SampleFigures::default(), Some(reason.to_owned()))
            }
        };
        let choice = sample.output.as_ref().and_then(|output| output.choices.as_ref()?.first());
        let completion = sample.output.as_ref().and_then(|output| output.completion.clone());
        let reply = completion
            .filter(|text| !text.is_empty())
            .or_else(|| choice.map(|choice| text_of(&choice.message["content"])))
            .unwrap_or_default();
        let subject = SUBJECT_KEYS.iter().find_map(|key| Some(metadata.get(*key)?.as_str()?.to_owned()));
        let edges = figures.calls.iter().filter_map(|call| Some((call.opened_ns?, call.closed_ns?)));
        let began_ns = edges.clone().map(|(opened_ns, _)| opened_ns).min().unwrap_or_default();
        let ended_ns = edges.map(|(_, closed_ns)| closed_ns).max().unwrap_or_default();
        EvaluatedSample {
            id: match &sample.id {
                Value::String(id) => id.clone(),
                id => id.to_string(),
            },
            repeat: sample.epoch.unwrap_or(1).saturating_sub(1),
            subject,
            prompt: resolve(text_of(&sample.input), &attachments),
            answer: text_of(&sample.target),
            reply: resolve(reply, &attachments),
            score: sample_score(&sample, scorer),
            is_cut_off: choice.and_then(|choice| choice.stop_reason.as_deref()) == Some("max_tokens"),
            began_ns,
            duration_ns: ended_ns.saturating_sub(began_ns),
            tokens_in: figures.tokens_in,
            tokens_out: figures.tokens_out,
            energy: unread.map_or_else(|| self.energy(&figures), Err),
            prompt_hash: None,
        }
    }

    fn energy(&mut self, figures: &SampleFigures) -> Result<QueryEnergy, String> {
        self.meter = self.meter.take().or_else(|| figures.meter.clone());
        let Some(energy_uj) = figures.energy_uj else {
            return Err(figures.reason.clone().unwrap_or_else(|| "its figures have no energy".into()));
        };
        let calls = figures.calls.iter().try_fold(0_u64, |sum, call| sum.checked_add(call.share_uj?));
        let is_possible =
            calls == Some(energy_uj) && figures.window_uj.is_none_or(|window_uj| energy_uj <= window_uj);
        if !is_possible {
            return Err("its figures contradict each other: they were edited, or the log is damaged".into());
        }
        for domain in &figures.domains {
            self.add_domain(domain);
        }
        let find = |domain: &RunDomain| figures.domains.iter().find(|figures| figures.name == domain.name);
        let part = |domain: &RunDomain| {
            find(domain).map_or_else(DomainEnergy::default, |figures| DomainEnergy {
                share_uj: figures.share_uj,
                error_uj: figures.error_uj,
                idle_uj: figures.idle_uj,
                window_uj: figures.window_uj,
            })
        };
        Ok(without_moved_bounds(QueryEnergy {
            span: figures.calls.last().map(|call| call.span.clone()).unwrap_or_default(),
            share_uj: Some(energy_uj),
            error_uj: figures.error_uj,
            idle_uj: figures.idle_uj,
            window_uj: figures.window_uj,
            grade: figures.grade,
            at_least: figures.at_least,
            span_ns: figures.duration_ns,
            moved_ns: figures.moved_ns,
            at_once: figures.at_once.unwrap_or_default(),
            domains: self.domains.iter().map(part).collect(),
            ..QueryEnergy::default()
        }))
    }

    fn add_domain(&mut self, figures: &DomainFigures) {
        let is_known = self.domains.iter().any(|domain| domain.name == figures.name);
        // Without its kind, which an unreachable daemon did not state, a domain belongs to no scope.
        let (Some(kind), Some(grade), false) = (figures.kind, figures.grade, is_known) else { return };
        self.domains.push(RunDomain {
            name: figures.name.clone(),
            kind,
            source: figures.source.clone(),
            device: figures.device.clone(),
            parent: figures.parent.clone(),
            counted: figures.counted,
            grade,
            update_interval_ns: figures.update_interval_ns,
        });
    }
}

fn sample_score(sample: &InspectSample, scorer: &InspectScorer) -> Result<f64, String> {
    let scores = sample.scores.as_ref().filter(|scores| !scores.is_empty());
    let Some(scores) = scores else {
        return Err(match &sample.error {
            Some(error) => {
                format!("the evaluator did not score it, since it failed: {}", first_line(&error["message"]))
            }
            None => "the evaluator did not score it".into(),
        });
    };
    let score = if scorer.name.is_empty() { scores.values().next() } else { scores.get(&scorer.scorer) };
    let score = score.or_else(|| scores.get(&scorer.name));
    let Some(score) = score else { return Err(format!("it has no score of {}", scorer.name)) };
    match score.value.get(&scorer.name) {
        Some(part) => score_value(part),
        None => score_value(&score.value),
    }
}

fn first_line(message: &Value) -> String {
    message.as_str().unwrap_or_default().lines().next().unwrap_or_default().chars().take(200).collect()
}

/// The text of a string, of a list of strings, of the parts of a message, or of a list of messages.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => {
            all.iter().map(text_of).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
        }
        Value::Object(object) => {
            ["content", "text"].iter().find_map(|key| object.get(*key)).map(text_of).unwrap_or_default()
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Long texts are stored once in a sample, and referred to by their hash.
fn resolve(text: String, attachments: &BTreeMap<String, Value>) -> String {
    let attachment = text.strip_prefix("attachment://").and_then(|hash| attachments.get(hash));
    attachment.and_then(Value::as_str).map(str::to_owned).unwrap_or(text)
}
