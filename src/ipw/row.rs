//! What one query of a run came to.
//!
//! Owns the row's shape, which is the file format of a run: one JSON object a line, figures only; what was asked and
//! answered stands in a file of its own (`texts.jsonl`), so that a report over a million rows never reads it. Energies are
//! the daemon's whole microjoules. Invariant: what is not known is absent; a row with an `error` has no score.

use serde::{Deserialize, Serialize};

use crate::domain::Grade;

/// One query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueryRow {
    /// The question's name.
    pub id: String,
    /// Which repetition of the question, from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeat: u32,
    /// What the question is about.
    pub subject: String,
    /// Why there is no answer, in one line; a row without it was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How often it was tried in vain before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Right (1), wrong (0), or what a judge gave between; absent: not scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// When the request was sent; the machine's monotonic clock.
    pub began_ns: u64,
    /// From the request to the end of the answer.
    pub duration_ns: u64,
    /// From the request to the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ns: Option<u64>,
    /// Between one token (or chunk) and the next: the median and the 99th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between_tokens_ns: Option<(u64, u64)>,
    /// Tokens of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_in: Option<u64>,
    /// Of those, the ones the server had in its cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_cached: Option<u64>,
    /// Tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_out: Option<u64>,
    /// The server did not tell its tokens: `tokens_out` counts the chunks of its stream.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tokens_estimated: bool,
    /// Why the answer ended: "stop", "length", ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// Mean log-probability of the answer's tokens, where the server tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_logprob: Option<f64>,
    /// The energy that belongs to it; absent where no meter answered or the account never came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<QueryEnergy>,
    /// Why a meter that was asked gave no energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmetered: Option<String>,
}

/// A query's account, as far as reports need it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueryEnergy {
    /// Its span.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub span: String,
    /// Its share of the counted domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<u64>,
    /// Guaranteed half-width of `share_uj`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
    /// Of `share_uj`, what would have been used anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_uj: Option<u64>,
    /// What the counted domains used meanwhile, whoever caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_uj: Option<u64>,
    /// The worst grade among the counted domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// The totals are lower bounds: a counted domain may be missing from them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
    /// How long the account lasted.
    pub span_ns: u64,
    /// How far its edges are from the query's, together: the meter heard of them too late. What that may have cost is in
    /// `error_uj`.
    #[serde(default, skip_serializing_if = "is_zero_ns")]
    pub moved_ns: u64,
    /// How many spans were open at most meanwhile.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub at_once: u32,
    /// Until the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_uj: Option<u64>,
    /// From the first token on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_uj: Option<u64>,
    /// Each domain's part, in the order of the run's `domains`; a part without a share: the domain gave none meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainEnergy>,
    /// Domains of the account that are no part of the run, since they were not live when it began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_domains: Vec<String>,
}

/// A query's part of one domain.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DomainEnergy {
    /// Its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<u64>,
    /// Guaranteed half-width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
    /// Of the share, what would have been used anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_uj: Option<u64>,
    /// All that the domain used meanwhile; earlier versions did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_uj: Option<u64>,
}

/// What was said, beside the row of the same `id` and `repeat`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReplyText {
    /// The question's name.
    pub id: String,
    /// Which repetition.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeat: u32,
    /// The model's reply, whole.
    pub reply: String,
    /// What it settled on, where a rule could read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<String>,
}

impl QueryRow {
    /// Whether the model answered.
    pub fn is_answered(&self) -> bool {
        self.error.is_none()
    }

    /// What tells it from the other rows of its run.
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
fn is_false(flag: &bool) -> bool {
    !*flag
}
