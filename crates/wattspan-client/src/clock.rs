//! The machine's clocks.
//!
//! All clock reads of the project are here. Times are on one clock that stops while the machine is suspended:
//! CLOCK_MONOTONIC on Linux, CLOCK_UPTIME_RAW on macOS, where CLOCK_MONOTONIC continues in sleep. Python's
//! `time.monotonic`, Rust's `Instant` and IOReport's timestamps use the same clock. Wall time is only a label.

use rustix::time::{ClockId, clock_gettime};

#[cfg(target_os = "macos")]
mod uptime_ffi;
#[cfg(target_os = "macos")]
use uptime_ffi as kernel;

/// The two clocks on Linux (clock_gettime(2)).
#[cfg(not(target_os = "macos"))]
mod kernel {
    use rustix::time::{ClockId, clock_gettime};

    use super::nanoseconds;

    /// Stops while the machine is suspended.
    pub(super) fn monotonic_ns() -> u64 {
        nanoseconds(clock_gettime(ClockId::Monotonic))
    }

    /// Continues while the machine is suspended.
    pub(super) fn boottime_ns() -> u64 {
        nanoseconds(clock_gettime(ClockId::Boottime))
    }

    /// The kernel's random ID of this boot (random(4)).
    pub(super) fn boot_id() -> Option<String> {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
    }
}

/// The monotonic clock in nanoseconds. All processes of the host share it; it stops in suspend.
pub fn monotonic_ns() -> u64 {
    kernel::monotonic_ns()
}

/// [`monotonic_ns`] in the signed type that the protocol's requests use.
pub fn monotonic_now_ns() -> i64 {
    i64::try_from(monotonic_ns()).unwrap_or(i64::MAX)
}

/// The clock that continues in suspend: [`monotonic_ns`] plus the time suspended since boot.
pub fn boottime_ns() -> u64 {
    kernel::boottime_ns()
}

/// Identifies a boot of the machine: the kernel's random ID, else the wall time of the boot.
pub fn boot_id() -> String {
    let by_time = || format!("booted-{}", unix_ns().saturating_sub(boottime_ns()) / 1_000_000_000);
    kernel::boot_id().unwrap_or_else(by_time)
}

/// Wall time in nanoseconds since 1970; only a label.
pub fn unix_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// The CPU time that this thread has used (CLOCK_THREAD_CPUTIME_ID), without the time for which it waits for a CPU.
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::ThreadCPUTime))
}

fn nanoseconds(at: rustix::time::Timespec) -> u64 {
    u64::try_from(at.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(at.tv_nsec).unwrap_or(0)
}
