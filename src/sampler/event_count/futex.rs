//! An event count: waits for an instant or a notification, whichever comes first, with a futex.
//!
//! Owns the sampler's sleep. One system call (`FUTEX_WAIT_BITSET`, whose timeout is an absolute CLOCK_MONOTONIC
//! instant, futex(2)) both waits for the deadline and can be woken, so no deadline drifts and no wake-up is lost. Never
//! spins.

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
    /// Wakes the thread that waits, or keeps it from falling asleep.
    pub fn notify(&self) {
        // Release: what the caller wrote before is seen by the thread that finds the number changed.
        self.count.fetch_add(1, Ordering::Release);
        // An error here would mean a bad address or an unknown operation: neither can be.
        let _ = futex::wake(&self.count, futex::Flags::PRIVATE, 1);
    }

    /// How often it was notified. To be read before looking for a reason to stay awake, so that a notification in between
    /// is noticed.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Sleeps until `deadline_ns` of CLOCK_MONOTONIC, or until it was notified more than `count` times, or at times for no
    /// reason: the caller looks again.
    pub fn wait_until(&self, deadline_ns: u64, count: u32) {
        let deadline = Timespec {
            tv_sec: (deadline_ns / 1_000_000_000) as i64,
            tv_nsec: (deadline_ns % 1_000_000_000) as _,
        };
        // Timed out, notified before or while asleep, or interrupted by a signal: all the same to the caller.
        let _ =
            futex::wait_bitset(&self.count, futex::Flags::PRIVATE, count, Some(&deadline), NonZeroU32::MAX);
    }
}
