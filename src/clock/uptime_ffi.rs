//! The pair of clocks that tells a sleep, on macOS: CLOCK_UPTIME_RAW and CLOCK_MONOTONIC_RAW (clock_gettime(3)).
//!
//! Owns their names. They are `mach_absolute_time` and `mach_continuous_time` in nanoseconds; neither is ever set or slewed,
//! so that they part by the time slept and by nothing else. The plain CLOCK_MONOTONIC of macOS goes on in sleep and is no
//! clock for a meter. rustix knows neither of the two.
#![allow(unsafe_code)]

/// Stops while the machine sleeps.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_UPTIME_RAW)
}

/// Goes on.
pub fn boottime_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC_RAW)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which lives through it. It fails for no clock that macOS 10.12 and later have.
    unsafe { libc::clock_gettime(clock, &raw mut at) };
    u64::try_from(at.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(at.tv_nsec).unwrap_or(0)
}
