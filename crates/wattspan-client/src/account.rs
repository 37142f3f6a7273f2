//! A span's account, per domain and in total.
//!
//! The fields are those of the contract (`src/protocol/org.wattspan.Meter.varlink`), so that no interface has to
//! convert them. Invariant: an unknown value is absent, never 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::{DomainName, Grade};

/// Where a span is on its way from the opening to the final account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpanState {
    /// Not closed yet.
    Open,
    /// Closed; the counters have not moved past its close yet.
    Provisional,
    /// Closed and final.
    Settled,
    /// Closed because its client disconnected; final.
    Abandoned,
    /// The daemon ended while it was open; final.
    Interrupted,
}

impl SpanState {
    /// The state's name in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            SpanState::Open => "open",
            SpanState::Provisional => "provisional",
            SpanState::Settled => "settled",
            SpanState::Abandoned => "abandoned",
            SpanState::Interrupted => "interrupted",
        }
    }
}

/// A span's share of one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The name that GetInfo lists, such as "package-0".
    pub domain: DomainName,
    /// The quality of the domain's values.
    pub grade: Grade,
    /// The domain's whole energy while the span was open, as far as readings cover it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window_uj: Option<u64>,
    /// The span's part of `window_uj`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share_uj: Option<u64>,
    /// The idle part of `share_uj`; absent while no idle power is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_uj: Option<u64>,
    /// The part of `share_uj` that belongs to the account's process or control group, by its CPU time or GPU time: a
    /// model, whatever the grade. Absent where the domain is not split or the use is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_uj: Option<u64>,
    /// Guaranteed half-width: the true share is within `share_uj ± error_uj`. Absent if no guarantee is possible.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
    /// The time inside the span that no reading covers.
    pub unknown_ns: u64,
}

/// A phase of a span. The phases' shares add up to the span's share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// "prefill", "decode"; empty for the time before the first named phase.
    pub name: String,
    /// The begin of the phase.
    pub opened_ns: u64,
    /// The end of the phase.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed_ns: Option<u64>,
    /// The sum of the shares over the counted domains.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share_uj: Option<u64>,
    /// Guaranteed half-width around `share_uj`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
}

/// The account of a span.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// The span's ID in the protocol.
    pub span: String,
    /// The client's name for it.
    pub name: String,
    /// What OpenSpan and CloseSpan have attached: at most 64 texts by key.
    pub attributes: BTreeMap<String, String>,
    /// The figures may change until it is settled, abandoned or interrupted.
    pub state: SpanState,
    /// The owner's user id.
    pub uid: u32,
    /// The opening that the split uses: the requested one, or later if the message came after the horizon.
    pub opened_ns: u64,
    /// The closing that the split uses, like `opened_ns`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed_ns: Option<u64>,
    /// The sum of the times by which its edges (opening, closing, phases, changes of weight) were moved from the
    /// requested ones.
    pub moved_ns: u64,
    /// The wall time of the opening.
    pub opened_unix_ns: u64,
    /// The latest weight, relative to the other open spans.
    pub weight: f64,
    /// The sum of the shares over the counted domains; absent if one of them is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub share_uj: Option<u64>,
    /// The sum of the windows, like `share_uj`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window_uj: Option<u64>,
    /// The sum of the idle parts, like `share_uj`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_uj: Option<u64>,
    /// The sum of the guaranteed half-widths, like `share_uj`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
    /// The process, with its descendants, whose part `process_uj` is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process: Option<u32>,
    /// The control group whose part `process_uj` is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroup: Option<String>,
    /// The sum of the process shares over the domains that are split by CPU time, each joule counted once; absent if
    /// one of them is unknown. A GPU's process share is only in its own [`Share`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_uj: Option<u64>,
    /// The reason why `process_uj` is absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_reason: Option<String>,
    /// The worst grade of the counted domains.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grade: Option<Grade>,
    /// True if one of its domains is replayed from a file, whatever the grade; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simulated: Option<bool>,
    /// `share_uj` divided by the span's duration.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mean_power_mw: Option<u64>,
    /// The maximum number of open spans while this one was open.
    pub peak_concurrency: u32,
    /// The span's share of each of its domains.
    pub domains: Vec<Share>,
    /// The phases; empty if the client began none.
    pub phases: Vec<Phase>,
    /// True if the sums are lower bounds: a domain is left out of them because, at the opening, it was undecided
    /// whether it is a second name of a counted domain.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
    /// Whether it is on disk; absent before it is final, and where the store is off.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub durable: Option<bool>,
    /// Its number in the database, which grows by one for each stored account. Only in replies to calls with `after`, for
    /// callers that see the accounts of all users.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub number: Option<u64>,
}

/// The attribute that names the requested model (OpenTelemetry's semantic conventions for generative AI).
pub const MODEL_ATTRIBUTE: &str = "gen_ai.request.model";

/// What `wattspan ipw` called that attribute before it used [`MODEL_ATTRIBUTE`].
pub const OLD_MODEL_ATTRIBUTE: &str = "model";

/// The attribute that names the operation, such as "chat".
pub const OPERATION_ATTRIBUTE: &str = "gen_ai.operation.name";

/// The attribute with the number of tokens of the prompt.
pub const INPUT_TOKENS_ATTRIBUTE: &str = "gen_ai.usage.input_tokens";

/// The attribute with the number of tokens of the answer.
pub const OUTPUT_TOKENS_ATTRIBUTE: &str = "gen_ai.usage.output_tokens";

impl Account {
    /// The requested model, also under its old name.
    pub fn model(&self) -> Option<&str> {
        let value = |key: &str| self.attributes.get(key).map(String::as_str);
        value(MODEL_ATTRIBUTE).or_else(|| value(OLD_MODEL_ATTRIBUTE))
    }
}

/// Why numbers have no account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// Deleted by age or size.
    Deleted,
    /// Lost with the end of the database: the file was truncated or replaced, or the power failed.
    Lost,
    /// The row on disk is damaged.
    Damaged,
}

/// Numbers without an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first of the numbers; absent for a caller that sees the accounts of one user only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first: Option<u64>,
    /// The last of the numbers, like `first`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last: Option<u64>,
    /// Why they have no account.
    pub reason: GapReason,
}

impl Balance {
    /// Removes the parts, which only callers who see all accounts may have.
    pub fn hide_parts(&mut self) {
        (self.settled_uj, self.abandoned_uj, self.not_kept_uj) = (None, None, None);
        (self.open_uj, self.cancelled_uj, self.rounding_uj) = (None, None, None);
    }
}

/// A domain's energy balance since the start: `measured = attributed + unattributed`, exactly.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The name that GetInfo lists, such as "package-0".
    pub domain: String,
    /// The whole energy that is settled.
    pub measured_uj: u64,
    /// The energy of all accounts, including the open spans so far.
    pub attributed_uj: u64,
    /// The energy while no span was open, of cancelled spans, and of rounding.
    pub unattributed_uj: u64,
    /// The part of `attributed_uj` of closed spans. With `abandoned_uj`, `not_kept_uj` and `open_uj` it adds up to that, exactly.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub settled_uj: Option<u64>,
    /// The part of spans whose client disconnected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub abandoned_uj: Option<u64>,
    /// The part of accounts that the store did not keep for lack of memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_kept_uj: Option<u64>,
    /// The part of spans that are not settled, so far.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub open_uj: Option<u64>,
    /// The part of `unattributed_uj` that was of spans that were cancelled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cancelled_uj: Option<u64>,
    /// What the rounding of coarse accounts has added to their shares: these add up to `settled_uj + abandoned_uj + rounding_uj`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rounding_uj: Option<i64>,
}
