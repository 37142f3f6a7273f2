//! NVML where the system is no Linux: absent.

use crate::clock::Clock;

use super::{Inventory, Settings};

/// The mechanism's name.
pub const NAME: &str = "nvml";

/// A search that is over before it began.
pub struct Search;

/// Looks nowhere.
pub fn search(_settings: &Settings, _clock: &Clock) -> Search {
    Search
}

impl Search {
    /// Says so.
    pub fn finish(self) -> Inventory {
        let mut found = Inventory::default();
        found.miss(NAME, "NVIDIA GPUs are read on Linux only".into());
        found
    }
}
