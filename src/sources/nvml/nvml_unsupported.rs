//! NVML on other systems than Linux: unavailable.

pub use crate::sources::source_settings::NVML as NAME;
pub use known_boards::{KnownBoards, SearchResult};

use crate::clock::Clock;
use crate::sources::{Inventory, SourceSettings};

/// Per-process utilization of a board: stub.
#[path = "process_utilization_unsupported.rs"]
pub mod process_utilization;

mod known_boards;

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
