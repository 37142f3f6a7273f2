//! Waiting for an instant or a ring, whichever comes first: the portable way.
//!
//! Owns the sampler's sleep where there is no futex with an absolute deadline. A condition variable waits for the time
//! that is left; its lock is held for a moment only by whoever rings. Never spins.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::monotonic_ns;

/// Something a thread sleeps on until an instant, and others ring.
#[derive(Default)]
pub(super) struct Alarm {
    rings: Mutex<u32>,
    rung: Condvar,
}

impl Alarm {
    /// Wakes the thread that waits, or keeps it from falling asleep.
    pub(super) fn ring(&self) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        *rings = rings.wrapping_add(1);
        self.rung.notify_one();
    }

    /// How often it rang. To be asked before looking for a reason to stay awake, so that a ring in between is noticed.
    pub(super) fn rings(&self) -> u32 {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until `deadline_ns` of the monotonic clock, or until it has rung more than `rings` times, or at times for
    /// no reason: the caller looks again.
    pub(super) fn wait_until(&self, deadline_ns: u64, rings: u32) {
        let left = Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns()));
        let guard = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if *guard == rings {
            // Whichever way it ends, the caller looks again.
            drop(self.rung.wait_timeout(guard, left));
        }
    }
}
