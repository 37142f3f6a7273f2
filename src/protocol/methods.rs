//! The methods: parameters, replies, and the table that ties them to their names.
//!
//! Field for field those of the interface descriptions; a test compares the names. Times in parameters are signed, so
//! that a value out of range gets an error with the accepted range (`InvalidTime`). An unknown parameter is an error: a
//! caller that misspells one must not get its default. In replies a value that is not known is absent, never 0.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::attribution::account::{Account, Balance, Share, SpanState};
use crate::domain::{Absent, DomainKind, Duplicate, Grade, Liveness, REPLAY_SOURCE};
use crate::privileges::ProcessPrivileges;

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
        pub const METHOD_NAMES: &[&str] = &[$($name),*];

        /// A method's name as a value, so that the compiler insists on a place for each in every table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum MethodName {
            $(#[doc = $name] $parameters,)*
        }

        impl MethodName {
            /// The method of this name: interface and method, joined by a dot.
            #[inline]
            pub fn parse(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$parameters),)*
                    _ => None,
                }
            }

            /// Interface and method, joined by a dot.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$parameters => $name,)*
                }
            }
        }
    };
}

methods! {
    GetInfo = "org.wattspan.Meter.GetInfo" -> DaemonInfo;
    OpenSpan = "org.wattspan.Meter.OpenSpan" -> OpenedSpan;
    MarkPhase = "org.wattspan.Meter.MarkPhase" -> EmptyReply;
    SetWeight = "org.wattspan.Meter.SetWeight" -> EmptyReply;
    CloseSpan = "org.wattspan.Meter.CloseSpan" -> SpanAccount;
    CancelSpan = "org.wattspan.Meter.CancelSpan" -> EmptyReply;
    GetSpan = "org.wattspan.Meter.GetSpan" -> SpanAccount;
    ListSpans = "org.wattspan.Meter.ListSpans" -> SpanAccounts;
    WatchSpans = "org.wattspan.Meter.WatchSpans" -> SpanAccount;
    WatchDomains = "org.wattspan.Meter.WatchDomains" -> DomainSnapshot;
    ReadWindow = "org.wattspan.Meter.ReadWindow" -> WindowEnergy;
    GetBalance = "org.wattspan.Meter.GetBalance" -> Balances;
    Reload = "org.wattspan.Meter.Reload" -> ReloadReply;
    GetServiceInfo = "org.varlink.service.GetInfo" -> ServiceInfo;
    GetInterfaceDescription = "org.varlink.service.GetInterfaceDescription" -> InterfaceDescription;
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

/// What a caller may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

impl Access {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Access::None => "none",
            Access::Coarse => "coarse",
            Access::Span => "span",
            Access::Telemetry => "telemetry",
            Access::Admin => "admin",
        }
    }
}

/// A domain as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainStatus {
    /// Unique on this machine.
    pub name: String,
    /// What it meters.
    pub kind: DomainKind,
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
    /// Whether it is a second name of another domain's counter; absent where no earlier domain is of its kind.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duplicate: Option<Duplicate>,
    /// The name of that domain.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duplicate_of: Option<String>,
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
    /// What its counter shows over what its own power readings do, less 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub residual: Option<f64>,
    /// Since the daemon started.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub energy_uj: Option<u64>,
    /// Over the last update intervals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub power_mw: Option<u64>,
}

impl DomainStatus {
    /// Whether its energy comes from a file and not from this machine's hardware.
    pub fn is_simulated(&self) -> bool {
        self.source == REPLAY_SOURCE
    }
}

/// What [`GetInfo`](GetInfo) gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// The daemon's version.
    pub version: String,
    /// The machine's boot; times of two boots cannot be compared.
    pub boot_id: String,
    /// The daemon's clock.
    pub now_ns: u64,
    /// How late a message may come without its edge being moved.
    pub horizon_ns: u64,
    /// How far back [`ReadWindow`](ReadWindow) reaches.
    pub history_ns: u64,
    /// Every domain.
    pub domains: Vec<DomainStatus>,
    /// Whether the counted domains are perhaps not all: one is left out while it is undecided whether it is a duplicate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
    /// Every source that was looked for and is not there.
    pub absent: Vec<Absent>,
    /// What became of the samplers' ticks.
    #[serde(default)]
    pub samplers: Vec<SamplerStatus>,
    /// True where a domain is replayed from a file; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simulated: Option<bool>,
    /// How the ledger on disk is; absent where nothing is kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub keeping: Option<StoreStatus>,
    /// What the daemon gave up and what it kept; absent for the meter inside a client.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub confinement: Option<ProcessPrivileges>,
    /// What the caller may do.
    pub access: Access,
}

/// How the ledger on disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Final accounts are on disk before they are answered.
    pub durable: bool,
    /// Why not, and what would help; where `durable`, which accounts may be lost.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What it takes on disk, as of a while ago.
    pub bytes: u64,
    /// Final accounts that are not yet on disk.
    pub waiting: u64,
    /// Final accounts that found no room since the daemon started, and will not be kept.
    pub not_kept: u64,
    /// How long accounts will be kept at the rate of the last hours, in seconds; absent while there are too few to say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub keeps_s: Option<u64>,
    /// What limits that: `age` (`ledger.days`) or `size` (`ledger.megabytes`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limited_by: Option<String>,
    /// Accounts an hour, over the last hours.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accounts_per_h: Option<u64>,
    /// What an account takes on disk.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_per_account: Option<u64>,
}

/// What became of one sampler's ticks since the daemon started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplerStatus {
    /// The mechanism it reads.
    pub source: String,
    /// What it meters.
    pub domains: Vec<String>,
    /// Reads that were done.
    pub ticks: u64,
    /// Of these, how many began late.
    pub late: u64,
    /// Ticks at which no read was done.
    pub missed: u64,
    /// Half of the reads began within this time after they were due.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lateness_p50_ns: Option<u64>,
    /// 99 of 100 did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lateness_p99_ns: Option<u64>,
    /// Half of the reads took no longer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_cost_ns: Option<u64>,
    /// It runs under a real-time policy.
    pub realtime: bool,
    /// It stays on the CPU on which a read is cheapest.
    pub pinned: bool,
}

/// What [`OpenSpan`](OpenSpan) gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenedSpan {
    /// The span's name in the protocol.
    pub span: String,
}

/// What methods give that have nothing to say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EmptyReply {}

/// What [`GetSpan`](GetSpan), [`CloseSpan`](CloseSpan) and [`WatchSpans`](WatchSpans) give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanAccount {
    /// The account.
    pub account: Account,
}

/// What [`WatchDomains`](WatchDomains) gives each time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainSnapshot {
    /// The daemon's clock.
    pub now_ns: u64,
    /// Every domain.
    pub domains: Vec<DomainStatus>,
    /// Whether the counted domains are perhaps not all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
}

/// What [`ReadWindow`](ReadWindow) gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowEnergy {
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
    /// Whether the sum is perhaps not all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
}

/// What [`GetBalance`](GetBalance) gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Balances {
    /// One for each domain.
    pub balance: Vec<Balance>,
}

/// What [`ListSpans`](ListSpans) gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanAccounts {
    /// The latest last.
    pub accounts: Vec<Account>,
    /// There may be older ones: ask again with this as `before`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<u64>,
}

/// What [`Reload`](Reload) gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// The keys whose new values hold from now on.
    pub changed: Vec<String>,
    /// The keys whose new values need a restart; they stay as they were.
    pub needs_restart: Vec<String>,
}

/// What [`GetServiceInfo`](GetServiceInfo) gives.
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

/// What [`GetInterfaceDescription`](GetInterfaceDescription) gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterfaceDescription {
    /// The description's text.
    pub description: String,
}

#[cfg(test)]
mod tests {
    use super::super::{METER_DESCRIPTION, METER_INTERFACE, SERVICE_DESCRIPTION, SERVICE_INTERFACE};
    use super::*;

    fn described(interface: &str, text: &str) -> Vec<String> {
        let named = text.lines().filter_map(|line| line.strip_prefix("method ")?.split_once('('));
        named.map(|(name, _)| format!("{interface}.{name}")).collect()
    }

    #[test]
    fn method_names_match_the_descriptions() {
        let mut described = [
            described(METER_INTERFACE, METER_DESCRIPTION),
            described(SERVICE_INTERFACE, SERVICE_DESCRIPTION),
        ]
        .concat();
        let mut ours: Vec<String> = METHOD_NAMES.iter().map(|name| (*name).to_owned()).collect();
        described.sort();
        ours.sort();
        assert_eq!(ours, described);
        for name in METHOD_NAMES {
            assert_eq!(MethodName::parse(name).map(MethodName::as_str), Some(*name));
        }
        assert_eq!(MethodName::parse("org.wattspan.Meter.openspan"), None);
    }

    #[test]
    fn unknown_values_are_omitted() {
        let window =
            WindowEnergy { domains: vec![], window_uj: None, error_uj: None, grade: None, at_least: None };
        assert_eq!(serde_json::to_string(&window).unwrap(), r#"{"domains":[]}"#);
    }
}
