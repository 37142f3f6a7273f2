//! NVML where the system is no Linux: absent.

use crate::clock::Clock;

use super::{Inventory, Settings};

/// The mechanism's name.
pub const NAME: &str = "nvml";

/// Shows that there are none.
pub fn open_each(_settings: &Settings, _clock: &Clock, mut show: impl FnMut(Inventory)) {
    let mut found = Inventory::default();
    found.miss(NAME, "NVIDIA GPUs are read on Linux only".into());
    show(found);
}
