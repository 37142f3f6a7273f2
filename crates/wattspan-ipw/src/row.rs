//! The result of one query: the file format of a run.
//!
//! A row is one line of JSON with figures only; prompts and replies are in `texts.jsonl`, so that reports over
//! millions of rows do not read them. Energies are the daemon's integer microjoules. Invariant: an unknown value is
//! absent, and a row with an `error` has no score.

use serde::{Deserialize, Serialize};

use wattspan_client::domain::Grade;

/// The row of one query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueryRow {
    /// The id of the question.
    pub id: String,
    /// The repeat of the question, from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeat: u32,
    /// The subject of the question.
    pub subject: String,
    /// Why the query failed, on one line; absent if it was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Number of failed attempts before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Score: 1 correct, 0 incorrect, or a judge's value in between; absent if not scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Time of the request, monotonic nanoseconds.
    pub began_ns: u64,
    /// Time from the request to the end of the answer.
    pub duration_ns: u64,
    /// Time to first token (TTFT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ns: Option<u64>,
    /// Median and 99th percentile of the inter-token (or inter-chunk) latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between_tokens_ns: Option<(u64, u64)>,
    /// Prompt tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_in: Option<u64>,
    /// Prompt tokens that the server had in its cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_cached: Option<u64>,
    /// Output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_out: Option<u64>,
    /// Whether `tokens_out` counts the chunks of the stream, because the server did not report tokens.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tokens_estimated: bool,
    /// Finish reason: "stop", "length", ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// Mean log-probability of the output tokens, if the server reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_logprob: Option<f64>,
    /// The energy of the query; absent if no account was obtained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<QueryEnergy>,
    /// Why a metered query has no energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmetered: Option<String>,
}

/// The parts of a query's account that reports need.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueryEnergy {
    /// The id of the span.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub span: String,
    /// Share of the counted domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<u64>,
    /// Guaranteed half-width of `share_uj`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
    /// Idle part of `share_uj`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_uj: Option<u64>,
    /// Window energy of the counted domains: all that they used while the span was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_uj: Option<u64>,
    /// What imported figures have beyond whole microjoules, in picojoules, to be added to share and window: their
    /// energies are floating-point numbers. 0 where the daemon measured.
    #[serde(default, skip_serializing_if = "is_zero_pj")]
    pub remainder_pj: i32,
    /// The worst grade among the counted domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Whether the totals are lower bounds: a counted domain may be missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
    /// Duration of the account.
    pub span_ns: u64,
    /// Sum of the distances of its edges from the query's, because the daemon received them late. `error_uj` covers
    /// the energy in between.
    #[serde(default, skip_serializing_if = "is_zero_ns")]
    pub moved_ns: u64,
    /// Peak number of concurrently open spans.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub at_once: u32,
    /// Prefill energy: until the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_uj: Option<u64>,
    /// Decode energy: from the first token on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_uj: Option<u64>,
    /// The energy of each domain, in the order of the run's `domains`; without a share if the domain had no value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainEnergy>,
    /// Domains of the account that are not in the run, because they became live after it began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_domains: Vec<String>,
}

/// A query's energy in one domain.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DomainEnergy {
    /// Share of the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<u64>,
    /// Guaranteed half-width of the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
    /// Idle part of the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_uj: Option<u64>,
    /// Window energy of the domain; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_uj: Option<u64>,
}

/// The reply of a query, beside the row of the same `id` and `repeat`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReplyText {
    /// The id of the question.
    pub id: String,
    /// The repeat of the question.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeat: u32,
    /// The complete reply of the model.
    pub reply: String,
    /// The extracted answer, if a rule could read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<String>,
}

impl QueryRow {
    /// Returns whether the model answered.
    pub fn is_answered(&self) -> bool {
        self.error.is_none()
    }

    /// Returns the key of the row, unique within its run apart from retries.
    pub fn key(&self) -> (String, u32) {
        (self.id.clone(), self.repeat)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero_ns(time_ns: &u64) -> bool {
    *time_ns == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero_pj(remainder_pj: &i32) -> bool {
    *remainder_pj == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !*flag
}
