//! The one scheduling call that has no safe wrapper: `sched_setscheduler`.
//!
//! Owns that call and nothing else. Made as a raw system call, since musl's function of that name refuses on principle;
//! the raw call concerns the calling thread, not the process (sched_setscheduler(2), "C library/kernel differences").
#![allow(unsafe_code)]

/// Puts the calling thread under SCHED_FIFO at `priority` (1 to 99) and keeps the policy from what it forks. Returns
/// false where the system refuses (no CAP_SYS_NICE, RLIMIT_RTPRIO 0, a container's filter).
pub(super) fn become_realtime(priority: i32) -> bool {
    let this_thread = 0;
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `sched_param` is plain integers, for which all zeroes is a value.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = priority;
    // SAFETY: the kernel reads one `sched_param` from the pointer, which lives until the call returns, and keeps nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, this_thread, policy, &raw const param) };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_that_does_not_exist_is_refused() {
        assert!(!become_realtime(0));
        assert!(!become_realtime(1000));
    }
}
