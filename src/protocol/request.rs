//! Each method's parameters, field for field those of the descriptions.
//!
//! Owns what a caller may say. Times are signed here, so that a nonsensical one is refused by value and with its bounds
//! (`InvalidTime`). A field that is not known is refused: whoever misspells one must not be billed by its default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::attribution::account::SpanState;

/// The daemon, its clock, every domain, every source that is not there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetInfo {}

/// Opens a span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSpan {
    /// Its name in the protocol; the daemon finds one where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub span: Option<String>,
    /// What the caller calls it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// What the caller notes about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<BTreeMap<String, String>>,
    /// Its part of shared energy; 1 where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<f64>,
    /// The domains it uses; all where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub domains: Option<Vec<String>>,
    /// When it began; now where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_ns: Option<i64>,
    /// The process, with its descendants, whose part is told beside the whole; the caller's own where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process: Option<i64>,
    /// Or the control group, as in `/proc/PID/cgroup`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroup: Option<String>,
    /// `false`: the account has no process share; a client that is not itself the load has no use for its own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_share: Option<bool>,
}

/// Ends the running phase and begins the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkPhase {
    /// Which span.
    pub span: String,
    /// What begins.
    pub phase: String,
    /// When; now where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_ns: Option<i64>,
}

/// Changes a span's part of shared energy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetWeight {
    /// Which span.
    pub span: String,
    /// The new weight.
    pub weight: f64,
    /// From when; now where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_ns: Option<i64>,
}

/// Closes a span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseSpan {
    /// Which span.
    pub span: String,
    /// Notes to add; a key that was there before is overwritten.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<BTreeMap<String, String>>,
    /// When it ended; now where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_ns: Option<i64>,
    /// Answer only with the final account.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wait_settled: Option<bool>,
}

/// Forgets an open span.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelSpan {
    /// Which span.
    pub span: String,
}

/// An open span's account so far, or a closed one's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetSpan {
    /// Which span.
    pub span: String,
}

/// The settled accounts as they settle; needs `more`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchSpans {}

/// Every domain's energy and power again and again; needs `more`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchDomains {
    /// At most this often.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate_hz: Option<f64>,
}

/// What the domains used between two instants of the past.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadWindow {
    /// From here.
    pub from_ns: i64,
    /// To here.
    pub to_ns: i64,
}

/// The latest final accounts, the kept ones of former times included.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListSpans {
    /// At most this many; 20 if absent, never more than 256.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<i64>,
    /// Opened at this wall time or later.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_unix_ns: Option<i64>,
    /// Of this name, exactly.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// With these attributes, among others.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<BTreeMap<String, String>>,
    /// In this state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<SpanState>,
    /// Older than an earlier answer's end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<i64>,
}

/// Where the joules went since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetBalance {}

/// Reads the configuration again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {}

/// Varlink's own question after the service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetServiceInfo {}

/// Varlink's own question after an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetInterfaceDescription {
    /// Which one.
    pub interface: String,
}
