//! The configuration's key `bus` and its tables `[source]`, `[ledger]`, `[limits]` and `[access]`, with all defaults.
//!
//! Plain data; `config.rs` checks the ranges.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sources::SourceSettings;

/// The table `[source]`: the sources of readings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// The mount point of `/sys`.
    pub sysfs_root: PathBuf,
    /// The mount point of `/proc`.
    pub proc_root: PathBuf,
    /// The directory of the CPUs' register files (`/dev/cpu`), for the source `msr`.
    pub msr_root: PathBuf,
    /// A library to load instead of the system's NVML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml_library: Option<PathBuf>,
    /// A library to load instead of Apple's (IOReport, CoreFoundation, IOKit).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apple_library: Option<PathBuf>,
    /// A trace or scripted machine to measure instead of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<PathBuf>,
    /// The sources to try, in order of preference; absent: the defaults of [`SourceSettings`].
    /// `msr` is tried only where it is named here, after `perf` and `powercap`, which read the same registers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<Vec<String>>,
    /// Power of all CPUs at rest, for a machine without a counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_idle_w: Option<f64>,
    /// Power of all CPUs at full load, for a machine without a counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_max_w: Option<f64>,
    /// The noise of Intel's energy filtering in percent of the true energy; absent: 50 where the kernel shows SGX, else 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_filter_percent: Option<f64>,
}

impl Default for SourceConfig {
    fn default() -> Self {
        let SourceSettings { sysfs_root, proc_root, msr_root, .. } = SourceSettings::default();
        Self {
            sysfs_root,
            proc_root,
            msr_root,
            nvml_library: None,
            apple_library: None,
            replay: None,
            enabled: None,
            estimate_idle_w: None,
            estimate_max_w: None,
            energy_filter_percent: None,
        }
    }
}

/// The table `[ledger]`: the accounts on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Whether accounts are kept.
    pub keep: bool,
    /// The age, in days, from which accounts are deleted.
    pub days: f64,
    /// The size on disk, in megabytes (10^6 bytes), beyond which the oldest accounts are deleted.
    pub megabytes: u64,
    /// Maximum megabytes of memory for accounts while the disk cannot be written. Further accounts are answered and not kept.
    pub waiting_megabytes: u64,
    /// How a commit is written to disk.
    pub sync: SyncConfig,
}

/// How a commit is written to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncConfig {
    /// The operating system decides; a power failure may damage the ledger.
    Off,
    /// A killed daemon loses nothing; a power failure may lose the last second and the time of a sync.
    Normal,
    /// Each commit waits for the disk; a power failure loses nothing.
    Full,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { keep: true, days: 30.0, megabytes: 2000, waiting_megabytes: 16, sync: SyncConfig::Normal }
    }
}

/// The key `bus`: `true` (the system bus), `false`, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true (the system bus), false, or the address of a bus in quotes")]
pub enum DbusConfig {
    /// The system bus, or none.
    System(bool),
    /// The bus at this address, which must be a Unix socket.
    Address(String),
}

impl Default for DbusConfig {
    fn default() -> Self {
        DbusConfig::System(true)
    }
}

impl DbusConfig {
    /// Whether the daemon connects to a bus; never on systems other than Linux.
    pub fn is_enabled(&self) -> bool {
        *self != DbusConfig::System(false) && std::env::consts::OS == "linux"
    }

    /// The remedy if the address is invalid.
    pub(super) fn invalid_reason(&self) -> Option<&'static str> {
        match self {
            DbusConfig::Address(address) if !address.starts_with("unix:") => {
                Some("write true, false, or an address such as \"unix:path=/run/dbus/system_bus_socket\"")
            }
            _ => None,
        }
    }
}

/// The table `[limits]`: limits per client, per user and in total.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest message, in bytes.
    pub message_bytes: usize,
    /// Connections, all users together.
    pub connections: usize,
    /// Connections of one user; root and the daemon's own user have only the total.
    pub connections_per_user: usize,
    /// Open spans, all users together.
    pub open_spans: usize,
    /// Open spans of one user; root and the daemon's own user have only the total.
    pub open_spans_per_user: usize,
    /// Bytes of names and attributes of one user's open spans; does not apply to root and the daemon's own user.
    pub notes_bytes_per_user: usize,
    /// Estimated bytes of memory of all unsettled spans, all users together: texts, attributes, phases, weights, the state per
    /// domain, and the allocator's overhead. A quarter is reserved for the first 512th of each user.
    pub span_memory_bytes: usize,
    /// The same of one user; root and the daemon's own user have only three quarters of the total.
    pub span_memory_bytes_per_user: usize,
    /// Phases of one span.
    pub phases_per_span: usize,
    /// Weight changes of one span that wait for a counter to move; settled ones do not count.
    pub weight_changes_per_span: usize,
    /// Streams (WatchSpans, WatchDomains) of one user; does not apply to root and the daemon's own user.
    pub streams_per_user: usize,
    /// Calls per second of one user with span or telemetry access, on all connections of both transports together; does not
    /// apply to root and the daemon's own user.
    pub calls_per_s: f64,
    /// The burst of such a user.
    pub calls_burst: f64,
    /// Calls per second of one user with coarse access.
    pub coarse_calls_per_s: f64,
    /// The burst of such a user.
    pub coarse_calls_burst: f64,
    /// Calls per second of one user without access.
    pub stranger_calls_per_s: f64,
    /// The burst of such a user.
    pub stranger_calls_burst: f64,
    /// Bytes of replies that wait for a client that does not read. Beyond it a stream is dropped, and no further calls are read.
    pub unread_bytes: usize,
    /// Timeout, in seconds, for the rest of a message whose first byte was received.
    pub message_s: f64,
    /// Timeout, in seconds, for a client that does not read its replies.
    pub stall_s: f64,
    /// Settled accounts that `GetSpan` remembers, all users together.
    pub remembered_accounts: usize,
    /// Estimated bytes of memory of these accounts.
    pub remembered_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 64 * 1024,
            connections: 1024,
            connections_per_user: 64,
            open_spans: 131_072,
            open_spans_per_user: 4096,
            notes_bytes_per_user: 16 << 20,
            // With everything else at its limit the daemon stays under half of its unit's MemoryMax.
            span_memory_bytes: 32 << 20,
            span_memory_bytes_per_user: 8 << 20,
            phases_per_span: 256,
            // A proxy changes a weight 50 times per second, and accounts wait 2 s for a stopped counter.
            weight_changes_per_span: 1024,
            streams_per_user: 8,
            // About 7 % of one CPU at the measured 300,000 calls per second (benches/socket.rs). A proxy with 128 concurrent
            // requests and 50 weight changes per second each needs a third of it.
            calls_per_s: 20_000.0,
            calls_burst: 40_000.0,
            // On the coarse grid more calls give no more information.
            coarse_calls_per_s: 200.0,
            coarse_calls_burst: 400.0,
            stranger_calls_per_s: 10.0,
            stranger_calls_burst: 20.0,
            unread_bytes: 64 * 1024,
            message_s: 5.0,
            stall_s: 30.0,
            remembered_accounts: 4096,
            remembered_bytes: 8 << 20,
        }
    }
}

/// The table `[access]`: the groups that have access. Root and the daemon's own user have full access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessGroups {
    /// Coarse access: own spans on a grid of 100 ms and in steps of 1 mJ, no totals. Absent: no user has it. With a group, every
    /// user can open the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coarse_group: Option<String>,
    /// Span access: own spans at full precision, the host's totals.
    pub span_group: String,
    /// Telemetry access: all users' accounts, the stream of domains. Members must be in `span_group` too, which can open the
    /// socket.
    pub telemetry_group: String,
}

impl Default for AccessGroups {
    fn default() -> Self {
        Self {
            coarse_group: None,
            span_group: "wattspan".into(),
            telemetry_group: "wattspan-telemetry".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::daemon_config::Config;
    use super::*;

    #[test]
    fn bus_is_true_false_or_an_address() {
        let read = |text: &str| toml::from_str::<Config>(text).map(|config| config.bus);
        assert_eq!(read("").unwrap(), DbusConfig::System(true));
        assert_eq!(read("bus = false").unwrap(), DbusConfig::System(false));
        assert_eq!(read("bus = \"unix:path=/a\"").unwrap(), DbusConfig::Address("unix:path=/a".into()));
        let error = read("bus = 3").unwrap_err().to_string();
        assert!(error.contains("true (the system bus)"), "{error}");
        let elsewhere = Config { bus: DbusConfig::Address("tcp:host=a".into()), ..Config::default() };
        assert!(elsewhere.check("here").unwrap_err().to_string().contains("bus = tcp:host=a: write true"));
    }
}
