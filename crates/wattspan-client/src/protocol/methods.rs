//! The methods: parameters, replies, and the table that ties them to their names.
//!
//! Field for field those of the interface descriptions; a test compares the names. Times in parameters are signed, so
//! that a value out of range gets an error with the accepted range (`InvalidTime`). An unknown parameter is an error: a
//! caller that misspells one must not get its default. In replies a value that is not known is absent, never 0.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::process_privileges::ProcessPrivileges;
use crate::account::{Account, Balance, Gap, GapReason, Share, SpanState};
use crate::domain::{Absent, DomainKind, Duplicate, Grade, Liveness, REPLAY_SOURCE};

/// A method. The type is that of its parameters, so that each method has exactly one.
pub trait Method: Serialize + DeserializeOwned {
    /// Interface and method, joined by a dot.
    const NAME: &'static str;
    /// The type of the reply.
    type Reply: Serialize + DeserializeOwned;
}

macro_rules! methods {
    ($($parameters:ident = $name:literal -> $reply:ty;)*) => {
        $(impl Method for $parameters {
            const NAME: &'static str = $name;
            type Reply = $reply;
        })*

        /// The names of all methods.
        pub const METHOD_NAMES: &[&str] = &[$($name),*];

        /// The name of a method, for exhaustive matches.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum MethodName {
            $(#[doc = $name] $parameters,)*
        }

        impl MethodName {
            /// Parses interface and method, joined by a dot.
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
    SumSpans = "org.wattspan.Meter.SumSpans" -> SpanSums;
    WatchSpans = "org.wattspan.Meter.WatchSpans" -> WatchedSpan;
    WatchDomains = "org.wattspan.Meter.WatchDomains" -> DomainSnapshot;
    ReadWindow = "org.wattspan.Meter.ReadWindow" -> WindowEnergy;
    GetBalance = "org.wattspan.Meter.GetBalance" -> Balances;
    Reload = "org.wattspan.Meter.Reload" -> ReloadReply;
    GetServiceInfo = "org.varlink.service.GetInfo" -> ServiceInfo;
    GetInterfaceDescription = "org.varlink.service.GetInterfaceDescription" -> InterfaceDescription;
}

/// Returns the daemon, its clock, its domains, and the unavailable sources.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetInfo {}

/// Opens a span, whose account has a share of the energy from `at_ns` on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSpan {
    /// The span id; the daemon chooses one where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub span: Option<String>,
    /// A name for the user.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Attributes, which the account repeats.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<BTreeMap<String, String>>,
    /// The weight in shared energy; 1 where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<f64>,
    /// The domains whose energy the span shares; all where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub domains: Option<Vec<String>>,
    /// The start; now where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_ns: Option<i64>,
    /// The process, with its descendants, of the process share; the caller's own where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process: Option<i64>,
    /// The control group of the process share instead, as in `/proc/PID/cgroup`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroup: Option<String>,
    /// `false`: the account has no process share, for a client that is not itself the load.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_share: Option<bool>,
}

/// Ends the current phase and begins the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkPhase {
    /// The ID that OpenSpan returned.
    pub span: String,
    /// The name of the phase that begins.
    pub phase: String,
    /// The start of the phase; now where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_ns: Option<i64>,
}

/// Changes the weight of a span.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetWeight {
    /// The ID that OpenSpan returned.
    pub span: String,
    /// 0, or from 1/65536 to 1e6; with coarse access at most 1.
    pub weight: f64,
    /// The time of the change; now where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_ns: Option<i64>,
}

/// Closes a span, whose account has no energy after `at_ns`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseSpan {
    /// The ID that OpenSpan returned.
    pub span: String,
    /// Attributes to add; they replace earlier ones of the same key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<BTreeMap<String, String>>,
    /// The end; now where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_ns: Option<i64>,
    /// Reply when the account is settled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wait_settled: Option<bool>,
}

/// Cancels an open span: the daemon discards it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelSpan {
    /// The ID that OpenSpan returned.
    pub span: String,
}

/// Returns the account of an open or closed span.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetSpan {
    /// The ID that OpenSpan returned.
    pub span: String,
}

/// Returns each account when it settles; needs `more`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchSpans {
    /// Begin with the stored accounts after this number, 0 for all; absent: with the next account that settles.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<i64>,
    /// The UUID of the database that `after` belongs to; another database is an error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
}

/// Returns the energy and power of the domains repeatedly; needs `more`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchDomains {
    /// The highest rate of replies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate_hz: Option<f64>,
}

/// Returns the energy of the domains between two past instants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadWindow {
    /// The start of the window.
    pub from_ns: i64,
    /// The end of the window.
    pub to_ns: i64,
}

/// Returns the latest settled accounts, including those on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListSpans {
    /// The most accounts to return; 20 where absent, 256 at most, with `after` 4096.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<i64>,
    /// Only spans that opened at this wall time or later.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_unix_ns: Option<i64>,
    /// Only spans of exactly this name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Only spans with these attributes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<BTreeMap<String, String>>,
    /// Only spans in this state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<SpanState>,
    /// Only accounts older than those of an earlier reply, whose `before` this is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<i64>,
    /// Only stored accounts after this number, in the order of their numbers; 0, or the `after` of an earlier reply.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<i64>,
    /// The UUID of the database that `after` belongs to; another database is an error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
}

/// Returns the sums of stored accounts, in groups.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumSpans {
    /// Any of `model`, `name`, `user`, `operation`, `day`; only the total where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<Vec<String>>,
    /// The time zone of `day`, in minutes east of UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub utc_offset_min: Option<i64>,
    /// Only spans that opened at this wall time or later.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_unix_ns: Option<i64>,
    /// Only spans that opened before this wall time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until_unix_ns: Option<i64>,
    /// Only spans of exactly this name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Only spans with this requested model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// Only spans of this user.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<i64>,
    /// Only spans with these attributes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<BTreeMap<String, String>>,
    /// Only spans in this state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<SpanState>,
}

/// Returns the split of each domain's energy since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetBalance {}

/// Reads the configuration file again; needs the access `admin`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {}

/// Varlink's introspection of the service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetServiceInfo {}

/// Varlink's introspection of an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetInterfaceDescription {
    /// The name of the interface.
    pub interface: String,
}

/// The access of a caller; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Version, health, own access; no energy.
    None,
    /// Own spans with times on a coarse grid.
    Coarse,
    /// Own spans at full precision, and the host's totals.
    Span,
    /// The accounts of all users, and the stream of the domains.
    Telemetry,
    /// All that, and [`Reload`].
    Admin,
}

impl Access {
    /// The name in the contract.
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

/// A limit of a domain's power that the guaranteed error assumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CeilingStatus {
    /// The highest mean power over any window of at least `window_ns`.
    pub limit_mw: u64,
    /// 0: the limit holds at every instant.
    pub window_ns: u64,
    /// Where the limit comes from.
    pub origin: String,
}

/// An interval in which a domain used more energy than a limit of its power allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceededCeiling {
    /// The begin of the interval.
    pub from_ns: u64,
    /// The end of the interval.
    pub to_ns: u64,
    /// The lowest mean power in the interval that agrees with the readings.
    pub power_mw: u64,
    /// The limit that was assumed.
    pub limit_mw: u64,
    /// The window of the limit; 0: every instant.
    pub window_ns: u64,
    /// The origin of the limit.
    pub origin: String,
}

/// The state of a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainStatus {
    /// The name, unique on this machine.
    pub name: String,
    /// What the domain measures.
    pub kind: DomainKind,
    /// The source that reads the counter.
    pub source: String,
    /// An identifier that stays the same over reboots.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device: Option<String>,
    /// The domain that contains this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<String>,
    /// Whether the domain is part of the host's total.
    pub counted: bool,
    /// Whether the domain duplicates another domain's counter; absent where no earlier domain has its kind.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duplicate: Option<Duplicate>,
    /// The name of the duplicated domain.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub duplicate_of: Option<String>,
    /// How the energy is obtained.
    pub grade: Grade,
    /// Whether the counter advances.
    pub liveness: Liveness,
    /// Why the domain is not live, and the remedy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The time between two counter updates.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub update_interval_ns: Option<u64>,
    /// Where `update_interval_ns` comes from: `measured` or `configured`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub update_interval_origin: Option<String>,
    /// The smallest step of the counter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quantum_uj: Option<f64>,
    /// The amount by which the true energy can exceed the counter's value, which the guaranteed error assumes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub assumed_quantum_uj: Option<u64>,
    /// Where `assumed_quantum_uj` comes from: `specification`, `driver`, `assumed`, `rounding`, `recorded` or `configured`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quantum_origin: Option<String>,
    /// The noise that the processor adds to its counter (Intel's energy filtering), in parts per million of the true energy, which
    /// the guaranteed error includes. 0: none; absent: not of this kind.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub filter_error_ppm: Option<u64>,
    /// Where `filter_error_ppm` comes from: `driver` or `configured`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub filter_origin: Option<String>,
    /// The time over which the domain's power sensor averages; absent for counters, and for sensors whose bounds assume none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub averaging_ns: Option<u64>,
    /// Where `averaging_ns` comes from: `driver`, `recorded` or `configured`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub averaging_origin: Option<String>,
    /// The part of the time that the domain's power sensor observes at least, in parts per million; absent where it is not
    /// known that a sensor observes a part only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sampled_ppm: Option<u64>,
    /// Where `sampled_ppm` comes from: `specification` (a publication) or `configured`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sampled_origin: Option<String>,
    /// The time of one read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_cost_ns: Option<u64>,
    /// The ratio of the counter's energy to that of the domain's power readings, minus 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub residual: Option<f64>,
    /// The largest delay from an update of the counter to its appearance in a reading, which the guaranteed error assumes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_ns: Option<u64>,
    /// Where `lag_ns` comes from: `source`, `update_interval` or `configured`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag_origin: Option<String>,
    /// The limits of its power that the guaranteed error assumes; absent if none is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ceilings: Option<Vec<CeilingStatus>>,
    /// The last intervals in which such a limit was exceeded, oldest first; absent if there was none. The guaranteed error
    /// of accounts that overlap one may be too small.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exceeded: Option<Vec<ExceededCeiling>>,
    /// The energy since the daemon started.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub energy_uj: Option<u64>,
    /// The power over the last update intervals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub power_mw: Option<u64>,
}

impl DomainStatus {
    /// Whether the energy comes from a file instead of this machine's hardware.
    pub fn is_simulated(&self) -> bool {
        self.source == REPLAY_SOURCE
    }
}

/// The reply of [`GetInfo`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// The version of the package, such as "0.1.0".
    pub version: String,
    /// The id of the machine's boot; times of two boots cannot be compared.
    pub boot_id: String,
    /// The time on the daemon's clock.
    pub now_ns: u64,
    /// When the daemon started: its energies and its balance count from then. Absent from older daemons.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_ns: Option<u64>,
    /// How late a message can arrive and still take effect at the instant it names.
    pub horizon_ns: u64,
    /// How far [`ReadWindow`] reaches into the past.
    pub history_ns: u64,
    /// In a fixed order; also those whose counters have stopped or not started yet.
    pub domains: Vec<DomainStatus>,
    /// True while a domain is not counted because it can be a duplicate: the total is a lower bound.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
    /// What this machine or its configuration does not offer, with reasons.
    pub absent: Vec<Absent>,
    /// The statistics of the samplers.
    #[serde(default)]
    pub samplers: Vec<SamplerStatus>,
    /// True if a domain is replayed from a file; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simulated: Option<bool>,
    /// The state of the store on disk; absent without a store.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub keeping: Option<StoreStatus>,
    /// The privileges that the daemon dropped and kept; absent for an embedded meter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub confinement: Option<ProcessPrivileges>,
    /// The numbers of spans; absent for a caller who may not see all accounts, and from older daemons.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spans: Option<SpanCounts>,
    /// The access of the caller.
    pub access: Access,
}

/// The numbers of spans of all users since the daemon started: `opened = closed + cancelled + abandoned + open`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanCounts {
    /// Successful OpenSpan calls.
    pub opened: u64,
    /// By CloseSpan, also those that are not settled.
    pub closed: u64,
    /// By CancelSpan.
    pub cancelled: u64,
    /// Closed because their client disconnected.
    pub abandoned: u64,
    /// Open now. Spans of a client that has just disconnected may still be among them.
    pub open: u64,
}

/// The state of the store on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Whether a settled account is on disk before the daemon returns it.
    pub durable: bool,
    /// Why not, and the remedy; where `durable`, which accounts can be lost.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// The size on disk, updated from time to time.
    pub bytes: u64,
    /// Settled accounts that are not yet on disk.
    pub waiting: u64,
    /// Settled accounts since the daemon started that were dropped for lack of space.
    pub not_kept: u64,
    /// The expected retention at the rate of the last hours, in seconds; absent with too few accounts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub keeps_s: Option<u64>,
    /// The limit that applies: `age` (`ledger.days`) or `size` (`ledger.megabytes`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limited_by: Option<String>,
    /// Accounts per hour over the last hours.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accounts_per_h: Option<u64>,
    /// The size of an account on disk.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_per_account: Option<u64>,
    /// The UUID of the database, to which the numbers of accounts belong; absent before it was opened.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
}

/// The statistics of a sampler since the daemon started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplerStatus {
    /// The mechanism it reads.
    pub source: String,
    /// What the domain measures.
    pub domains: Vec<String>,
    /// Ticks with a read.
    pub ticks: u64,
    /// Reads that began late.
    pub late: u64,
    /// Ticks without a read.
    pub missed: u64,
    /// The median delay of a read after its deadline.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lateness_p50_ns: Option<u64>,
    /// The 99th percentile of that delay.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lateness_p99_ns: Option<u64>,
    /// The median time of a read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_cost_ns: Option<u64>,
    /// Whether the thread has a real-time scheduling policy.
    pub realtime: bool,
    /// Whether the thread is pinned to the CPU on which a read is cheapest.
    pub pinned: bool,
    /// When the source is read while spans are open; absent in a reply of a daemon that has one schedule only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub schedule: Option<ReadingSchedule>,
}

/// When a source is read while spans are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadingSchedule {
    /// At the edges of spans, around the counter update after each, and around an update every 20 to 200 ms.
    Edges,
    /// At the fixed rate of the source.
    FixedRate,
}

/// The reply of [`OpenSpan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenedSpan {
    /// The ID in the call, or else a random one.
    pub span: String,
}

/// The reply of methods without a result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EmptyReply {}

/// The reply of [`GetSpan`] and [`CloseSpan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanAccount {
    /// As of now, where its state is open or provisional; else final.
    pub account: Account,
}

/// The repeated reply of [`WatchSpans`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WatchedSpan {
    /// A final account.
    pub account: Account,
    /// The numbers before it that have no account, since the last reply; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gaps: Option<Vec<Gap>>,
    /// The value of [`WatchSpans::after`] that continues after this account; absent in a stream without `after`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<u64>,
    /// The UUID of the database that `after` belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
}

/// The repeated reply of [`WatchDomains`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainSnapshot {
    /// The time on the daemon's clock.
    pub now_ns: u64,
    /// In a fixed order; also those whose counters have stopped or not started yet.
    pub domains: Vec<DomainStatus>,
    /// True while a domain is not counted because it can be a duplicate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
}

/// The reply of [`ReadWindow`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowEnergy {
    /// The whole energy of each domain in the window, as both window and share.
    pub domains: Vec<Share>,
    /// The sum over the counted domains; absent where one of them is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window_uj: Option<u64>,
    /// Guaranteed half-width of that sum.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
    /// The worst grade of the counted domains.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grade: Option<Grade>,
    /// True while the sum is a lower bound.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
}

/// The reply of [`GetBalance`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Balances {
    /// One for each domain.
    pub balance: Vec<Balance>,
}

/// The reply of [`ListSpans`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanAccounts {
    /// The accounts, the latest last.
    pub accounts: Vec<Account>,
    /// The value of [`ListSpans::before`] for older accounts, where there can be any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<u64>,
    /// In a reply to a call with `after`: the value of [`ListSpans::after`] that continues the list.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<u64>,
    /// Whether there was no later account at that time; absent without `after`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_end: Option<bool>,
    /// The numbers between the two values of `after` that have no account; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gaps: Option<Vec<Gap>>,
    /// The UUID of the database that `after` belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
}

impl SpanAccounts {
    /// A list without a position.
    pub fn of_accounts(accounts: Vec<Account>) -> Self {
        Self { accounts, before: None, after: None, at_end: None, gaps: None, database: None }
    }
}

/// The sum of accounts. The sums of energy, tokens and time are over the accounts with energy, and at most 2^63 - 1 each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpanSum {
    /// The requested model; absent for accounts without one, and where the groups are not by model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// The name of the spans, where the groups are by name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// The user, where the groups are by user.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// The attribute `gen_ai.operation.name`, like `model`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<String>,
    /// The date of the close in the time zone of the call, where the groups are by day.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub day: Option<String>,
    /// The number of accounts.
    pub accounts: u64,
    /// The number of accounts without energy.
    pub without_energy: u64,
    /// The sum of the shares; absent if no account has energy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub energy_uj: Option<u64>,
    /// The sum of the guaranteed half-widths; absent if one account has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_uj: Option<u64>,
    /// The sum of the idle parts; absent if one account has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_uj: Option<u64>,
    /// The sum of the input tokens; absent if no account has any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub input_tokens: Option<u64>,
    /// The sum of the output tokens; absent if no account has any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output_tokens: Option<u64>,
    /// The energy of the accounts with output tokens.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token_energy_uj: Option<u64>,
    /// The sum of the durations.
    pub duration_ns: u64,
    /// The wall time of the first close.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_closed_unix_ns: Option<u64>,
    /// The wall time of the last close.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_closed_unix_ns: Option<u64>,
    /// The worst grade.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grade: Option<Grade>,
    /// True if an account is simulated; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simulated: Option<bool>,
    /// True if the sums of an account are lower bounds; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<bool>,
}

/// Stored accounts that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingAccounts {
    /// Lost or damaged.
    pub reason: GapReason,
    /// How many; absent for a caller that sees the accounts of one user only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accounts: Option<u64>,
}

/// The reply of [`SumSpans`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpanSums {
    /// The groups, in the order of their values; empty without `by`.
    pub sums: Vec<SpanSum>,
    /// The sum of the groups beyond the maximum; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub other: Option<SpanSum>,
    /// The sum of all groups.
    pub total: SpanSum,
    /// The spans of the same users that are open now; no sum contains them.
    pub open: u64,
    /// The number of the latest account that was considered; absent for a caller that sees the accounts of one user only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last: Option<u64>,
    /// The accounts that could not be read; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub missing: Option<Vec<MissingAccounts>>,
    /// The UUID of the database.
    pub database: String,
}

/// What has changed in the configuration since it was last read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// The keys whose new values are in effect.
    pub changed: Vec<String>,
    /// The keys whose new values need a restart; the old values stay in effect.
    pub needs_restart: Vec<String>,
}

/// The reply of [`GetServiceInfo`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// The name of the project, "wattspan".
    pub vendor: String,
    /// The program that answers, "wattspand".
    pub product: String,
    /// The version of the package, such as "0.1.0".
    pub version: String,
    /// The address of the documentation.
    pub url: String,
    /// The interfaces of the service.
    pub interfaces: Vec<String>,
}

/// The reply of [`GetInterfaceDescription`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterfaceDescription {
    /// The text of the description.
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
