//! CPU time of the processes that this process has waited for.
#![allow(unsafe_code)]

/// The CPU time of ended children and of the descendants that they waited for, in ns.
pub fn children_cpu_ns() -> u64 {
    // SAFETY: all fields of the struct are integers, for which 0 is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes to the struct, which outlives it.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    assert_eq!(result, 0, "getrusage has no other error than an unknown argument");
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000;
    ns(usage.ru_utime) + ns(usage.ru_stime)
}
