//! NVML on other systems than Linux: unavailable.

pub use crate::sources::source_settings::NVML as NAME;

use std::collections::BTreeSet;

use crate::clock::Clock;
use crate::sources::{Inventory, SourceSettings};

/// Per-process utilization of a board: stub.
#[path = "process_utilization_unsupported.rs"]
pub mod process_utilization;

/// The boards that are measured already.
#[derive(Debug, Clone, Default)]
pub struct KnownBoards {
    /// Their UUIDs.
    pub uuids: BTreeSet<String>,
    /// The numbers in their domains' names.
    pub numbers: BTreeSet<u32>,
    /// The number of devices that the driver lists.
    pub listed: usize,
}

/// What a search has found, and whether another one may find more.
#[derive(Debug, Clone, Copy, Default)]
pub struct SearchResult {
    /// The boards that are measured.
    pub measured: usize,
    /// Another search finds no more.
    pub is_list_outdated: bool,
}

/// Reports that NVML is unavailable.
pub fn open_each(
    _settings: &SourceSettings,
    _known: KnownBoards,
    _clock: &Clock,
    mut show: impl FnMut(Inventory),
) -> SearchResult {
    let mut found = Inventory::default();
    found.add_absent(NAME, "NVIDIA GPUs are read on Linux only".into());
    show(found);
    SearchResult::default()
}
