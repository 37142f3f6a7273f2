//! The two clocks on macOS: CLOCK_UPTIME_RAW and CLOCK_MONOTONIC_RAW (clock_gettime(3)).
//!
//! They are `mach_absolute_time` and `mach_continuous_time` in nanoseconds. Neither is ever set or slewed, so they
//! differ by exactly the time asleep. CLOCK_MONOTONIC of macOS continues in sleep. rustix provides neither of the two.
#![allow(unsafe_code)]

/// Stops while the machine is asleep.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_UPTIME_RAW)
}

/// Continues while the machine is asleep.
pub fn boottime_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC_RAW)
}

/// The ID of the boot session (`kern.bootsessionuuid`, sysctl(3)); `None` if the kernel has none.
pub fn boot_id() -> Option<String> {
    let mut text = [0_u8; 64];
    let mut length = text.len();
    // SAFETY: the name ends with a zero byte; the kernel writes at most `length` bytes, the size of the buffer, and the
    // number written into `length`. Nothing is set.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.bootsessionuuid".as_ptr(),
            text.as_mut_ptr().cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        )
    };
    let text = text.get(..length).filter(|_| result == 0)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()).filter(|id| !id.is_empty())
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which outlives the call. macOS 10.12 and later have both clocks, so it
    // cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut at) };
    u64::try_from(at.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(at.tv_nsec).unwrap_or(0)
}
