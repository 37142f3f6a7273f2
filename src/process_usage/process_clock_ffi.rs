//! A process's CPU time in nanoseconds, from its own clock (Linux, clock_getcpuclockid(3)).
//!
//! Owns the one call. The clock counts all threads, ended ones too, up to this moment, where `/proc` shows ticks of 10 ms.
#![allow(unsafe_code)]

/// The CPU time that a process has used itself; `None` where it is gone.
pub fn cpu_time_ns(pid: u32) -> Option<u64> {
    // The number goes into the clock's id, shifted; Linux gives none above 2^22 (PID_MAX_LIMIT), and larger ones would fall
    // out of it.
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| (1..=1 << 22).contains(pid))?;
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one clock id to `clock`, which lives as long as the call.
    if unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } != 0 {
        return None;
    }
    // SAFETY: the call writes one timespec to `time`, which lives as long as the call; an id that is no clock is refused.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_nsec).ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_clock_advances_and_an_invalid_pid_has_none() {
        let before = cpu_time_ns(std::process::id()).unwrap();
        let mut x = 1_u64;
        while cpu_time_ns(std::process::id()).unwrap() == before {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert_eq!(cpu_time_ns(0), None);
        assert_eq!(cpu_time_ns(u32::MAX), None);
        assert_eq!(cpu_time_ns(i32::MAX as u32), None);
    }
}
