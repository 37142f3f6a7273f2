//! NVML on other systems than Linux: unavailable.

pub use crate::sources::source_settings::NVML as NAME;

use crate::clock::Clock;
use crate::sources::{Inventory, SourceSettings};

/// Per-process utilization of a board: stub.
#[path = "process_utilization_unsupported.rs"]
pub mod process_utilization;

/// Reports that NVML is unavailable.
pub fn open_each(_settings: &SourceSettings, _clock: &Clock, mut show: impl FnMut(Inventory)) {
    let mut found = Inventory::default();
    found.add_absent(NAME, "NVIDIA GPUs are read on Linux only".into());
    show(found);
}
