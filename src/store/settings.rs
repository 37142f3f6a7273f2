//! How the ledger on disk is set up.
//!
//! Owns the words; the values are chosen in the configuration.

use std::path::PathBuf;
use std::time::Duration;

/// How a commit meets the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// Left to the operating system: survives the end of the process; a power cut may damage the file.
    Off,
    /// The disk is waited for now and then: survives the end of the process; a power cut may take the last seconds, never
    /// more.
    Normal,
    /// The disk is waited for at each commit: survives a power cut too, as far as the disk tells the truth.
    Full,
}

/// How the ledger on disk is set up.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Where it lies; made if it is not there.
    pub directory: PathBuf,
    /// Accounts older than this are let go.
    pub max_age: Duration,
    /// Beyond so many bytes on disk the oldest accounts are let go.
    pub max_bytes: u64,
    /// Most bytes of accounts that wait to be written; what comes beyond is answered, but not kept.
    pub max_waiting_bytes: usize,
    /// How a commit meets the disk.
    pub sync: SyncMode,
}
