//! The clock of the meter: the machine's, or one that a test sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use wattspan_client::clock::{
    boot_id, boottime_ns, monotonic_now_ns, monotonic_ns, thread_cpu_ns, unix_ns,
};

/// A source of monotonic nanoseconds: the machine's clock, or one that a test sets.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// CLOCK_MONOTONIC; on macOS CLOCK_UPTIME_RAW.
    #[default]
    Machine,
    /// The value that was stored last.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that only [`Clock::set`] moves.
    pub fn manual(start_ns: u64) -> Self {
        Clock::Manual(Arc::new(AtomicU64::new(start_ns)))
    }

    /// The current time in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        match self {
            Clock::Machine => monotonic_ns(),
            Clock::Manual(ns) => ns.load(Ordering::Acquire),
        }
    }

    /// How long the machine has been suspended since boot; 0 for a manual clock. Preemption between the two clock reads
    /// can make the result too small, never too large, so an increase always means a suspend.
    pub fn suspended_ns(&self) -> u64 {
        match self {
            Clock::Machine => {
                let boottime_ns = boottime_ns();
                boottime_ns.saturating_sub(monotonic_ns())
            }
            Clock::Manual(_) => 0,
        }
    }

    /// Sets a manual clock to `ns`; has no effect on the machine's clock.
    pub fn set(&self, ns: u64) {
        if let Clock::Manual(cell) = self {
            cell.store(ns, Ordering::Release);
        }
    }
}
