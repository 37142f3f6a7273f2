//! The clock of the meter: the machine's, or one that a test sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

pub use wattspan_client::clock::{
    boot_id, boottime_ns, monotonic_now_ns, monotonic_ns, thread_cpu_ns, unix_ns,
};

/// A source of monotonic nanoseconds, with the times asleep and on the wall: the machine's clocks, or those that a test
/// sets.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// CLOCK_MONOTONIC; on macOS CLOCK_UPTIME_RAW.
    #[default]
    Machine,
    /// The values that were stored last.
    Manual(Arc<ManualClock>),
}

/// The values of a clock that only a test moves.
#[derive(Debug)]
pub struct ManualClock {
    monotonic_ns: AtomicU64,
    suspended_ns: AtomicU64,
    /// The wall time minus the boot time.
    wall_offset_ns: AtomicI64,
}

impl Clock {
    /// A clock that only [`Clock::set`], [`Clock::suspend`] and [`Clock::step_wall`] move. It begins at the machine's wall time.
    pub fn manual(start_ns: u64) -> Self {
        let wall_offset_ns = unix_ns().cast_signed() - start_ns.cast_signed();
        Clock::Manual(Arc::new(ManualClock {
            monotonic_ns: AtomicU64::new(start_ns),
            suspended_ns: AtomicU64::new(0),
            wall_offset_ns: AtomicI64::new(wall_offset_ns),
        }))
    }

    /// The current time in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        match self {
            Clock::Machine => monotonic_ns(),
            Clock::Manual(manual) => manual.monotonic_ns.load(Ordering::Acquire),
        }
    }

    /// How long the machine has been suspended since boot. Preemption between the two clock reads can make the result too
    /// small, never too large, so an increase always means a suspend.
    pub fn suspended_ns(&self) -> u64 {
        match self {
            Clock::Machine => {
                let boottime_ns = boottime_ns();
                boottime_ns.saturating_sub(monotonic_ns())
            }
            Clock::Manual(manual) => manual.suspended_ns.load(Ordering::Acquire),
        }
    }

    /// The time since boot, in which suspends count.
    pub fn boottime_ns(&self) -> u64 {
        match self {
            Clock::Machine => boottime_ns(),
            Clock::Manual(_) => self.now_ns() + self.suspended_ns(),
        }
    }

    /// The wall time since 1970.
    pub fn unix_ns(&self) -> u64 {
        match self {
            Clock::Machine => unix_ns(),
            Clock::Manual(manual) => {
                self.boottime_ns().saturating_add_signed(manual.wall_offset_ns.load(Ordering::Acquire))
            }
        }
    }

    /// How long a thread sleeps until `at_ns`. It does not wait for a manual clock, whose owner decides when the thread
    /// looks again.
    pub fn time_until(&self, at_ns: u64) -> Duration {
        match self {
            Clock::Machine => Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())),
            Clock::Manual(_) => Duration::ZERO,
        }
    }

    /// Sets a manual clock to `ns`; has no effect on the machine's clock.
    pub fn set(&self, ns: u64) {
        if let Clock::Manual(manual) = self {
            manual.monotonic_ns.store(ns, Ordering::Release);
        }
    }

    /// Adds a suspend of this length: boot time and wall time advance, the monotonic time does not. Has no effect on the
    /// machine's clock.
    pub fn suspend(&self, ns: u64) {
        if let Clock::Manual(manual) = self {
            manual.suspended_ns.fetch_add(ns, Ordering::AcqRel);
        }
    }

    /// Sets the wall time of a manual clock forward or back, as an administrator or a time server does; has no effect on the
    /// machine's clock.
    pub fn step_wall(&self, by_ns: i64) {
        if let Clock::Manual(manual) = self {
            manual.wall_offset_ns.fetch_add(by_ns, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_wall_clock_moves_no_other_time_and_a_suspend_moves_all_but_the_monotonic_one() {
        let clock = Clock::manual(7_000);
        let unix_ns = clock.unix_ns();
        clock.step_wall(-5_000);
        assert_eq!((clock.now_ns(), clock.boottime_ns(), clock.unix_ns()), (7_000, 7_000, unix_ns - 5_000));
        clock.suspend(300);
        assert_eq!((clock.now_ns(), clock.suspended_ns()), (7_000, 300));
        assert_eq!((clock.boottime_ns(), clock.unix_ns()), (7_300, unix_ns - 4_700));
        clock.set(7_001);
        assert_eq!(clock.unix_ns(), unix_ns - 4_699);
    }
}
