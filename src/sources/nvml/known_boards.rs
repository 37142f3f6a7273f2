//! What a search for boards begins with and what it returns, on every system.

use std::collections::BTreeSet;

/// The boards that are measured already.
#[derive(Debug, Clone, Default)]
pub struct KnownBoards {
    /// Their UUIDs.
    pub uuids: BTreeSet<String>,
    /// The numbers in their domains' names.
    pub numbers: BTreeSet<u32>,
    /// The number of devices that the driver lists; 0: unknown.
    pub listed: usize,
}

/// What a search has found, and whether another one may find more.
#[derive(Debug, Clone, Copy, Default)]
pub struct SearchResult {
    /// The boards that are measured, the known ones included.
    pub measured: usize,
    /// NVML lists fewer boards than the driver, all of which are measured: another search finds no more, because the measured
    /// boards keep the library initialised, and only its first initialisation lists the boards.
    pub is_list_outdated: bool,
}
