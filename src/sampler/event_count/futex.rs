//! An event count: waits for an instant or a notification, whichever comes first, with a futex.
//!
//! The timeout of `FUTEX_WAIT_BITSET` is an absolute instant of CLOCK_MONOTONIC, futex(2), so that deadlines do not
//! drift. The kernel compares the count before it sleeps, so that no wake-up is lost. It never spins.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;
use rustix::time::Timespec;

/// An event count: a thread waits on it until an instant, and other threads notify it.
#[derive(Default)]
pub struct EventCount {
    count: AtomicU32,
}

impl EventCount {
    /// Wakes the waiting thread, or prevents its next wait.
    pub fn notify(&self) {
        // Release: a thread that sees the new count sees all earlier writes of the caller.
        self.count.fetch_add(1, Ordering::Release);
        // The only errors are a bad address and an unknown operation, which are impossible here.
        let _ = futex::wake(&self.count, futex::Flags::PRIVATE, 1);
    }

    /// The number of notifications. The waiter reads it before it checks its condition, so that no later notification
    /// is lost.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Sleeps until `deadline_ns` of CLOCK_MONOTONIC or until the count differs from `count`. Spurious wake-ups are
    /// possible: the caller checks its condition again.
    pub fn wait_until(&self, deadline_ns: u64, count: u32) {
        let deadline = Timespec {
            tv_sec: (deadline_ns / 1_000_000_000) as i64,
            tv_nsec: (deadline_ns % 1_000_000_000) as _,
        };
        // A timeout, a notification or a signal: the caller checks its condition again.
        let _ =
            futex::wait_bitset(&self.count, futex::Flags::PRIVATE, count, Some(&deadline), NonZeroU32::MAX);
    }
}
