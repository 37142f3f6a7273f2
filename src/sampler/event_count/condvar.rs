//! An event count: waits for an instant or a notification, whichever comes first, with a condition variable.
//!
//! Owns the sampler's sleep where there is no futex with an absolute deadline. A condition variable waits for the time
//! that is left; its lock is held for a moment only by a thread that notifies. Never spins.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::monotonic_ns;

/// An event count: a thread waits on it until an instant, and other threads notify it.
#[derive(Default)]
pub struct EventCount {
    count: Mutex<u32>,
    notified: Condvar,
}

impl EventCount {
    /// Wakes the thread that waits, or keeps it from falling asleep.
    pub fn notify(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.wrapping_add(1);
        self.notified.notify_one();
    }

    /// How often it was notified. To be read before looking for a reason to stay awake, so that a notification in between
    /// is noticed.
    pub fn count(&self) -> u32 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until `deadline_ns` of the monotonic clock, or until it was notified more than `count` times, or at times for
    /// no reason: the caller looks again.
    pub fn wait_until(&self, deadline_ns: u64, count: u32) {
        let timeout = Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns()));
        let guard = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if *guard == count {
            // Whichever way it ends, the caller looks again.
            drop(self.notified.wait_timeout(guard, timeout));
        }
    }
}
