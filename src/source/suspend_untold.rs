//! Suspend where the system has no clock that goes on in it: never seen.
//!
//! Same face as `suspend`. The sources of such systems have counters that survive a sleep.

use crate::clock::Clock;

/// Watches nothing.
#[derive(Debug, Clone)]
pub struct Suspend;

impl Suspend {
    /// Starts watching nothing.
    pub fn new(_clock: &Clock) -> Self {
        Self
    }

    /// Never.
    pub fn slept(&mut self) -> bool {
        false
    }

    /// Not told.
    pub fn monotonic_ns(&self, _boot_ns: u64) -> Option<u64> {
        None
    }
}
