//! The configuration's tables: `[source]`, `[ledger]`, `[limits]`, `[access]`, with every default.
//!
//! Owns the figures that bound what a client may take. Plain data; what makes sense is judged by the whole.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where joules come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Where the kernel's `/sys` is.
    pub sysfs_root: PathBuf,
    /// Where the kernel's `/proc` is.
    pub proc_root: PathBuf,
    /// Where the register files of the CPUs are, for the source `msr`.
    pub msr_root: PathBuf,
    /// A library to load instead of the system's NVML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml_library: Option<PathBuf>,
    /// A library that stands in for Apple's (IOReport, CoreFoundation, IOKit).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apple_library: Option<PathBuf>,
    /// A trace or scripted machine to measure instead of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<PathBuf>,
    /// The sources to try, in order of preference; absent: perf, powercap, amdgpu, intelgpu, hwmon, battery, estimate.
    /// `msr` is tried only where it is named here, after the two that show the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<Vec<String>>,
    /// Power of all CPUs at rest, for a machine without a counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_idle_w: Option<f64>,
    /// Power of all CPUs at full load, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_max_w: Option<f64>,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            sysfs_root: "/sys".into(),
            proc_root: "/proc".into(),
            msr_root: "/dev/cpu".into(),
            nvml_library: None,
            apple_library: None,
            replay: None,
            enabled: None,
            estimate_idle_w: None,
            estimate_max_w: None,
        }
    }
}

/// How accounts are kept on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Whether they are.
    pub keep: bool,
    /// Older accounts are let go, in days.
    pub days: f64,
    /// Beyond so many megabytes (10^6 bytes) on disk the oldest accounts are let go.
    pub megabytes: u64,
    /// Most megabytes of memory that accounts take while the disk cannot be written; more are answered and not kept.
    pub waiting_megabytes: u64,
    /// How a commit meets the disk.
    pub sync: SyncConfig,
}

/// How a commit meets the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncConfig {
    /// Left to the operating system; a power cut may damage the ledger.
    Off,
    /// A killed daemon loses nothing; a power cut may take the last seconds.
    Normal,
    /// Waits for the disk at each commit; a power cut takes nothing either.
    Full,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { keep: true, days: 30.0, megabytes: 2000, waiting_megabytes: 16, sync: SyncConfig::Normal }
    }
}

/// What one client, one user and all together may take.
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
    /// Bytes of names and attributes of one user's open spans; likewise.
    pub notes_bytes_per_user: usize,
    /// Estimated bytes of memory that all spans take until they are settled, all users together: texts, attributes,
    /// phases, weights, what each domain keeps of them, and the allocator's overhead. A quarter is set aside for the
    /// first 512th of each user.
    pub span_memory_bytes: usize,
    /// The same of one user; root and the daemon's own user have only three quarters of the total.
    pub span_memory_bytes_per_user: usize,
    /// Phases of one span.
    pub phases_per_span: usize,
    /// Changes of weight of one span that wait for a counter to move; settled ones are not counted.
    pub weight_changes_per_span: usize,
    /// Streams (WatchSpans, WatchDomains) of one user; likewise.
    pub streams_per_user: usize,
    /// Calls a second of one user with span or telemetry access, all its connections on both doors together; likewise.
    pub calls_per_s: f64,
    /// Calls that such a user may make at once after a pause.
    pub calls_burst: f64,
    /// Calls a second of one user with coarse access.
    pub coarse_calls_per_s: f64,
    /// Calls that such a user may make at once after a pause.
    pub coarse_calls_burst: f64,
    /// Calls a second of one user without access.
    pub stranger_calls_per_s: f64,
    /// Calls that such a user may make at once after a pause.
    pub stranger_calls_burst: f64,
    /// Answers waiting for a client that does not read, in bytes: a stream is dropped, a caller is not read from.
    pub unread_bytes: usize,
    /// A half message, or a client that reads nothing, is given up after this long, in seconds.
    pub stall_s: f64,
    /// Settled accounts that `GetSpan` remembers, all users together.
    pub remembered_accounts: usize,
    /// Estimated bytes of memory that they may take.
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
            // A proxy changes a weight 50 times a second; a counter that has stopped is waited for 2 s.
            weight_changes_per_span: 1024,
            streams_per_user: 8,
            // Some 7 % of one CPU at the measured 300,000 calls a second (benches/socket.rs); a proxy that serves 128
            // answers at a time and weighs each anew 50 times a second needs a third of it.
            calls_per_s: 20_000.0,
            calls_burst: 40_000.0,
            // On the grid more questions have no more answers.
            coarse_calls_per_s: 200.0,
            coarse_calls_burst: 400.0,
            stranger_calls_per_s: 10.0,
            stranger_calls_burst: 20.0,
            unread_bytes: 64 * 1024,
            stall_s: 30.0,
            remembered_accounts: 4096,
            remembered_bytes: 8 << 20,
        }
    }
}

/// Whose members may know what; root and the daemon's own user may everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessGroups {
    /// Own spans on a grid of 100 ms and in steps of 1 mJ, no totals; nobody where no group is named. Where one is, the
    /// socket may be opened by everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coarse_group: Option<String>,
    /// Own spans at full precision, the host's totals.
    pub span_group: String,
    /// Everybody's accounts, the domains' stream; its members have to be in the former too, which opens the socket.
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
