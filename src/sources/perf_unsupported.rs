//! perf on other systems than Linux: unavailable.

pub use crate::sources::source_settings::PERF as NAME;

use crate::clock::Clock;

use super::{Inventory, SourceSettings};

/// Reports that perf is unavailable.
pub fn open(_settings: &SourceSettings, _clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    found.add_absent(NAME, "perf events are available on Linux only".into());
    found
}
