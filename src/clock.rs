//! Time: the machine's monotonic clock, and a manual clock for tests.
//!
//! Owns every clock read of the program. One timeline, which stops while the machine sleeps: CLOCK_MONOTONIC, and on macOS,
//! where that clock goes on in sleep, CLOCK_UPTIME_RAW (`mach_absolute_time` in nanoseconds: Python's `time.monotonic`,
//! Rust's `Instant`, IOReport's stamps). Wall time appears only as a label. Never sleeps and never compares wall times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

#[cfg(not(target_os = "macos"))]
mod boottime;
#[cfg(target_os = "macos")]
mod uptime_ffi;

#[cfg(not(target_os = "macos"))]
use boottime as kernel;
#[cfg(target_os = "macos")]
use uptime_ffi as kernel;

/// A source of monotonic nanoseconds: the machine's, or one that a test turns by hand.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// CLOCK_MONOTONIC; on macOS CLOCK_UPTIME_RAW.
    #[default]
    Machine,
    /// Whatever was last stored.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands still until [`Clock::set`].
    pub fn manual(start_ns: u64) -> Self {
        Clock::Manual(Arc::new(AtomicU64::new(start_ns)))
    }

    /// Nanoseconds on this clock.
    pub fn now_ns(&self) -> u64 {
        match self {
            Clock::Machine => monotonic_ns(),
            Clock::Manual(ns) => ns.load(Ordering::Acquire),
        }
    }

    /// How long the machine has been suspended since it booted, as far as the system tells; a manual clock never sleeps. May
    /// come out too small by the time for which the caller itself was held up in here, never too large: a step up is
    /// a suspend.
    pub fn suspended_ns(&self) -> u64 {
        match self {
            Clock::Machine => {
                let boottime_ns = boottime_ns();
                boottime_ns.saturating_sub(monotonic_ns())
            }
            Clock::Manual(_) => 0,
        }
    }

    /// Turns a manual clock to `ns`; the machine's clock cannot be set and ignores it.
    pub fn set(&self, ns: u64) {
        if let Clock::Manual(cell) = self {
            cell.store(ns, Ordering::Release);
        }
    }
}

/// The meter's clock in nanoseconds: shared by all processes of the host, stops in suspend.
pub fn monotonic_ns() -> u64 {
    kernel::monotonic_ns()
}

/// [`monotonic_ns`] in the signed type that the protocol's requests use.
pub fn monotonic_now_ns() -> i64 {
    i64::try_from(monotonic_ns()).unwrap_or(i64::MAX)
}

/// The clock beside it that goes on in suspend: apart from the meter's by the time slept since the machine started.
pub fn boottime_ns() -> u64 {
    kernel::boottime_ns()
}

/// Wall time in nanoseconds since 1970; only ever a label.
pub fn unix_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

fn nanoseconds(at: rustix::time::Timespec) -> u64 {
    u64::try_from(at.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(at.tv_nsec).unwrap_or(0)
}
