//! perf where the system is no Linux: absent.

use crate::clock::Clock;

use super::{Inventory, SourceSettings};

/// The mechanism's name.
pub const NAME: &str = "perf";

/// Says so.
pub fn open(_settings: &SourceSettings, _clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    found.add_absent(NAME, "only Linux has perf events".into());
    found
}
