//! The settings of the store. The configuration sets the values.

use std::path::PathBuf;
use std::time::Duration;

/// When a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// Never: commits survive the end of the process; a power cut may damage the file.
    Off,
    /// At intervals: commits survive the end of the process; a power cut loses the commits of the last interval and of the
    /// time that the disk takes for a sync.
    Normal,
    /// At each commit: commits survive a power cut too, if the disk honours its flush commands.
    Full,
}

/// Where accounts are kept, how long, and how safely.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// The state directory; created if missing.
    pub directory: PathBuf,
    /// Accounts older than this are deleted.
    pub max_age: Duration,
    /// Above this size on disk, in bytes, the oldest accounts are deleted.
    pub max_bytes: u64,
    /// Maximum bytes of accounts in memory that wait to be written; further accounts are answered but not stored.
    pub max_waiting_bytes: usize,
    /// When a commit waits for the disk.
    pub sync: SyncMode,
    /// With [`SyncMode::Normal`], the interval between syncs while accounts are stored.
    pub sync_interval: Duration,
    /// Identifies the boot of this system, which a power cut ends.
    pub boot_id: String,
}
