//! Waiting for an instant or a ring, whichever comes first: the Linux way.
//!
//! Owns the sampler's sleep. One system call (`FUTEX_WAIT_BITSET`, whose timeout is an absolute CLOCK_MONOTONIC
//! instant, futex(2)) both waits for the deadline and can be woken, so no deadline drifts and no wake-up is lost. Never
//! spins.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;
use rustix::time::Timespec;

/// Something a thread sleeps on until an instant, and others ring.
#[derive(Default)]
pub(super) struct Alarm {
    rings: AtomicU32,
}

impl Alarm {
    /// Wakes the thread that waits, or keeps it from falling asleep.
    pub(super) fn ring(&self) {
        // Release: what the caller wrote before is seen by the thread that finds the number changed.
        self.rings.fetch_add(1, Ordering::Release);
        // An error here would mean a bad address or an unknown operation: neither can be.
        let _ = futex::wake(&self.rings, futex::Flags::PRIVATE, 1);
    }

    /// How often it rang. To be asked before looking for a reason to stay awake, so that a ring in between is noticed.
    pub(super) fn rings(&self) -> u32 {
        self.rings.load(Ordering::Acquire)
    }

    /// Sleeps until `deadline_ns` of CLOCK_MONOTONIC, or until it has rung more than `rings` times, or at times for no
    /// reason: the caller looks again.
    pub(super) fn wait_until(&self, deadline_ns: u64, rings: u32) {
        let deadline = Timespec {
            tv_sec: (deadline_ns / 1_000_000_000) as i64,
            tv_nsec: (deadline_ns % 1_000_000_000) as _,
        };
        // Timed out, rung before or while asleep, or interrupted by a signal: all the same to the caller.
        let _ =
            futex::wait_bitset(&self.rings, futex::Flags::PRIVATE, rings, Some(&deadline), NonZeroU32::MAX);
    }
}
