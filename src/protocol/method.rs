//! Each method's parameters and reply, field for field those of the descriptions.
//!
//! Owns the one table that ties a method's name to what it takes and gives. Times that come in are signed, so that
//! a nonsensical one is refused by value and with its bounds (`InvalidTime`); what goes out is never negative.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::energy::{Absent, Grade, Kind, Liveness};
use crate::ledger::account::{Account, Balance, Share};

/// A method: its parameters are the type itself, so that a caller cannot pair the wrong ones.
pub trait Method: Serialize + DeserializeOwned {
    /// Interface and method, joined by a dot.
    const NAME: &'static str;
    /// What it gives.
    type Reply: Serialize + DeserializeOwned;
}

macro_rules! methods {
    ($($parameters:ident = $name:literal -> $reply:ty;)*) => {
        $(impl Method for $parameters {
            const NAME: &'static str = $name;
            type Reply = $reply;
        })*

        /// Every method there is, by name.
        #[cfg(test)]
        const NAMES: &[&str] = &[$($name),*];
    };
}

methods! {
    GetInfo = "org.wattspan.Meter.GetInfo" -> Info;
    OpenSpan = "org.wattspan.Meter.OpenSpan" -> OpenedSpan;
    MarkPhase = "org.wattspan.Meter.MarkPhase" -> Done;
    SetWeight = "org.wattspan.Meter.SetWeight" -> Done;
    CloseSpan = "org.wattspan.Meter.CloseSpan" -> ClosedSpan;
    CancelSpan = "org.wattspan.Meter.CancelSpan" -> Done;
    GetSpan = "org.wattspan.Meter.GetSpan" -> SpanAccount;
    WatchSpans = "org.wattspan.Meter.WatchSpans" -> SpanAccount;
    WatchDomains = "org.wattspan.Meter.WatchDomains" -> DomainTick;
    ReadWindow = "org.wattspan.Meter.ReadWindow" -> Window;
    GetBalance = "org.wattspan.Meter.GetBalance" -> Balances;
    GetServiceInfo = "org.varlink.service.GetInfo" -> ServiceInfo;
    GetInterfaceDescription = "org.varlink.service.GetInterfaceDescription" -> Description;
}

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

/// Where the joules went since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetBalance {}

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

/// What a caller may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Version, health, own access; no energy.
    None,
    /// Own spans on a coarse grid.
    Coarse,
    /// Own spans at full precision, the host's totals.
    Span,
    /// Everybody's accounts, the domains' stream.
    Telemetry,
    /// Everything.
    Admin,
}

/// A domain as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainStatus {
    /// Unique on this machine.
    pub name: String,
    /// What it meters.
    pub kind: Kind,
    /// The mechanism that reads it.
    pub source: String,
    /// What stays the same over reboots.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device: Option<String>,
    /// The domain that contains this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<String>,
    /// Part of the host's total.
    pub counted: bool,
    /// How far its figures can be trusted.
    pub grade: Grade,
    /// Whether its counter moves.
    pub liveness: Liveness,
    /// Why it is not live, and what would mend it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// How often its counter moves.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub update_interval_ns: Option<u64>,
    /// Its smallest step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quantum_uj: Option<f64>,
    /// What one reading takes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_cost_ns: Option<u64>,
    /// Since the daemon started.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub energy_uj: Option<u64>,
    /// Over the last update intervals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub power_mw: Option<u64>,
}

/// What [`GetInfo`] gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The daemon's version.
    pub version: String,
    /// The machine's boot; times of two boots cannot be compared.
    pub boot_id: String,
    /// The daemon's clock.
    pub now_ns: u64,
    /// How late a message may come without its edge being moved.
    pub horizon_ns: u64,
    /// How far back [`ReadWindow`] reaches.
    pub history_ns: u64,
    /// Every domain.
    pub domains: Vec<DomainStatus>,
    /// Every source that was looked for and is not there.
    pub absent: Vec<Absent>,
    /// What the caller may do.
    pub access: Access,
}

/// What [`OpenSpan`] gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenedSpan {
    /// The span's name in the protocol.
    pub span: String,
}

/// What methods give that have nothing to say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {}

/// What [`GetSpan`] and [`WatchSpans`] give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanAccount {
    /// The account.
    pub account: Account,
}

/// What [`CloseSpan`] gives.
pub type ClosedSpan = SpanAccount;

/// What [`WatchDomains`] gives each time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainTick {
    /// The daemon's clock.
    pub now_ns: u64,
    /// Every domain.
    pub domains: Vec<DomainStatus>,
}

/// What [`ReadWindow`] gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Each domain's whole energy in the window, as both window and share.
    pub domains: Vec<Share>,
    /// The sum over the counted domains; absent if one of them is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window_uj: Option<u64>,
    /// Guaranteed half-width of that sum.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
    /// The worst of the counted domains.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grade: Option<Grade>,
}

/// What [`GetBalance`] gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Balances {
    /// One for each domain.
    pub balance: Vec<Balance>,
}

/// What [`GetServiceInfo`] gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Who made it.
    pub vendor: String,
    /// What it is.
    pub product: String,
    /// Its version.
    pub version: String,
    /// Where to read more.
    pub url: String,
    /// The interfaces it offers.
    pub interfaces: Vec<String>,
}

/// What [`GetInterfaceDescription`] gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The description's text.
    pub description: String,
}

#[cfg(test)]
mod tests {
    use super::super::{METER, METER_DESCRIPTION, SERVICE, SERVICE_DESCRIPTION};
    use super::*;

    fn described(interface: &str, text: &str) -> Vec<String> {
        let named = text.lines().filter_map(|line| line.strip_prefix("method ")?.split_once('('));
        named.map(|(name, _)| format!("{interface}.{name}")).collect()
    }

    #[test]
    fn the_methods_here_are_those_of_the_descriptions() {
        let mut described =
            [described(METER, METER_DESCRIPTION), described(SERVICE, SERVICE_DESCRIPTION)].concat();
        let mut ours: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        described.sort();
        ours.sort();
        assert_eq!(ours, described);
    }

    #[test]
    fn what_is_not_known_is_absent_on_the_wire() {
        let window = Window { domains: vec![], window_uj: None, error_uj: None, grade: None };
        assert_eq!(serde_json::to_string(&window).unwrap(), r#"{"domains":[]}"#);
    }
}
