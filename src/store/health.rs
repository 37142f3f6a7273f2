//! How the ledger on disk is, for the administrator.
//!
//! Owns the words and nothing else.

/// How the ledger on disk is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Accounts are on disk before they are answered.
    pub durable: bool,
    /// Why not, and what would mend it.
    pub reason: Option<String>,
    /// What it takes on disk, as of a while ago.
    pub bytes: u64,
    /// Accounts taken and not yet on disk.
    pub waiting: u64,
    /// Accounts that found no room, since the start.
    pub not_kept: u64,
}
