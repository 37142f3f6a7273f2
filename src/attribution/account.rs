//! A span's account, per domain and in sum.
//!
//! Owns the figures' shape, field for field that of the contract (`contract/org.wattspan.Meter.varlink`), so that the
//! doors have nothing to convert. A value that is not known is absent, never 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::Grade;

/// How far a span's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpanState {
    /// Still running.
    Open,
    /// Closed; the last counter update has not come yet.
    Provisional,
    /// Final, never changes again.
    Settled,
    /// Its client went away; final.
    Abandoned,
    /// The daemon went away while it was open; final.
    Interrupted,
}

/// A span's part of one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The domain's name.
    pub domain: String,
    /// How far its figures can be trusted.
    pub grade: Grade,
    /// Everything the domain used while the span was open, as far as readings vouch for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window_uj: Option<u64>,
    /// This span's part of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share_uj: Option<u64>,
    /// Of `share_uj`, what the domain would have used anyway; absent while no idle power is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_uj: Option<u64>,
    /// Of `share_uj`, what fell to the account's process or control group by what it used (CPU time, a GPU's time): a
    /// model, whatever the grade. Absent where the domain is not split or the use is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_uj: Option<u64>,
    /// Guaranteed: the true share is within `share_uj ± error_uj`. Absent while no guarantee can be given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
    /// Time inside the span for which no reading vouches.
    pub unknown_ns: u64,
}

/// A part of a span; the phases of a span add up to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// "prefill", "decode"; empty for the time before the first named phase.
    pub name: String,
    /// When it began.
    pub opened_ns: u64,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed_ns: Option<u64>,
    /// The sum over the counted domains.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share_uj: Option<u64>,
    /// Guaranteed half-width.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
}

/// A span's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// The span's name in the protocol.
    pub span: String,
    /// What the client called it.
    pub name: String,
    /// What the client noted about it.
    pub attributes: BTreeMap<String, String>,
    /// How far its life has come.
    pub state: SpanState,
    /// The owner's user id.
    pub uid: u32,
    /// What the split was made with; later than asked where the message came too late.
    pub opened_ns: u64,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed_ns: Option<u64>,
    /// How far its edges (opening, closing, phases, changes of weight) were moved from where the client asked,
    /// together.
    pub moved_ns: u64,
    /// Wall time of the opening.
    pub opened_unix_ns: u64,
    /// Its part of shared energy relative to the other open spans; the latest.
    pub weight: f64,
    /// The sum over the counted domains; absent if one of them is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share_uj: Option<u64>,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window_uj: Option<u64>,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_uj: Option<u64>,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
    /// The process that `process_uj` is about, with its descendants.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process: Option<u32>,
    /// Or the control group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroup: Option<String>,
    /// The sum over the domains that are split by CPU time, each joule once; absent if one of them is unknown. A GPU's
    /// part stands in its own row.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_uj: Option<u64>,
    /// Why that is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_reason: Option<String>,
    /// The worst of the counted domains.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grade: Option<Grade>,
    /// True where a domain of it is replayed from a file, whatever the grade; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simulated: Option<bool>,
    /// `share_uj` over the span's duration.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mean_power_mw: Option<u64>,
    /// Most spans open at once while this one was.
    pub peak_concurrency: u32,
    /// Each domain the span uses.
    pub domains: Vec<Share>,
    /// Its parts, if it marked any.
    pub phases: Vec<Phase>,
    /// Whether a domain is left out of the sums because it was undecided, when the span opened, if it is a second name
    /// of a counted one: then they are lower bounds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
    /// Whether it is on disk; absent before it is final, and where nothing is kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub durable: Option<bool>,
}

/// Where a domain's joules went since the start: `measured = attributed + unattributed`, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The domain's name.
    pub domain: String,
    /// Everything settled so far.
    pub measured_uj: u64,
    /// What accounts were given, open spans so far included.
    pub attributed_uj: u64,
    /// No span open, cancelled spans, and rounding.
    pub unattributed_uj: u64,
}
