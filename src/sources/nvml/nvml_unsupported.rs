//! NVML where the system is no Linux: absent.

pub use crate::sources::source_settings::NVML as NAME;

use crate::clock::Clock;
use crate::sources::{Inventory, SourceSettings};

/// Per-process utilization of a board: not on this system.
#[path = "process_utilization_unsupported.rs"]
pub mod process_utilization;

/// Shows that there are none.
pub fn open_each(_settings: &SourceSettings, _clock: &Clock, mut show: impl FnMut(Inventory)) {
    let mut found = Inventory::default();
    found.add_absent(NAME, "NVIDIA GPUs are read on Linux only".into());
    show(found);
}
