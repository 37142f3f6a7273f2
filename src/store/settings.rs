//! The settings of the store. The configuration sets the values.

use std::path::PathBuf;
use std::time::Duration;

/// When a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// Never: commits survive the end of the process; a power cut may damage the file.
    Off,
    /// At checkpoints: commits survive the end of the process; a power cut may lose the last seconds.
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
}
