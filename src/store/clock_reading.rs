//! An instant on two clocks: wall time, which may be set, and boot time, which may not.
//!
//! Owns the pair. The store's *running time* counts boot time while a store is open and goes on where the last process left
//! it: it never falls and never jumps, so that it orders and ages accounts whatever happens to the wall clock.

use crate::clock;

/// An instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClockReading {
    /// Wall time, in seconds since 1970.
    pub unix_s: i64,
    /// Boot time, in seconds; suspend counts.
    pub boot_s: i64,
}

impl ClockReading {
    pub fn now() -> Self {
        let seconds = |ns: u64| (ns / 1_000_000_000) as i64;
        Self { unix_s: seconds(clock::unix_ns()), boot_s: seconds(clock::boottime_ns()) }
    }
}
