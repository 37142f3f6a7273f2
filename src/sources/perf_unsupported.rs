//! perf where the system is no Linux: absent.

use crate::clock::Clock;

use super::{Inventory, Settings};

/// The mechanism's name.
pub const NAME: &str = "perf";

/// Says so.
pub fn open(_settings: &Settings, _clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    found.miss(NAME, "only Linux has perf events".into());
    found
}
