//! The pair of clocks that tells a sleep, on Linux: CLOCK_MONOTONIC and CLOCK_BOOTTIME (clock_gettime(2)).
//!
//! Owns their names.

use rustix::time::{ClockId, clock_gettime};

use super::nanoseconds;

/// Stops while the machine sleeps.
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Goes on.
pub fn boottime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}
