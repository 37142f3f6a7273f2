//! An event count: waits for an instant or a notification, whichever comes first, with a condition variable.
//!
//! For systems without a futex. The condition variable waits for the remaining time; a notifier holds the lock only to
//! increment the count. It never spins.

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
    /// Wakes the waiting thread, or prevents its next wait.
    pub fn notify(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.wrapping_add(1);
        self.notified.notify_one();
    }

    /// The number of notifications. The waiter reads it before it checks its condition, so that no later notification
    /// is lost.
    pub fn count(&self) -> u32 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until `deadline_ns` of the monotonic clock or until the count differs from `count`. Spurious wake-ups are
    /// possible: the caller checks its condition again.
    pub fn wait_until(&self, deadline_ns: u64, count: u32) {
        let timeout = Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns()));
        let guard = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if *guard == count {
            // However the wait ends, the caller checks its condition again.
            drop(self.notified.wait_timeout(guard, timeout));
        }
    }
}
