//! Scheduling priority: what the Linux scheduler grants a sampler's thread.
//!
//! Before its first tick a thread requests a CPU, the shortest timer slack and a real-time policy. Each is optional: a
//! refusal is reported in [`GrantedScheduling`], and the thread continues without it.

use std::num::NonZeroU64;

use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};

use super::priority_ffi;

/// The scheduling that the thread was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GrantedScheduling {
    /// The thread has a real-time policy.
    pub(super) realtime: bool,
    /// The thread is pinned to the requested CPU.
    pub(super) pinned: bool,
}

/// Requests real-time scheduling and a CPU for the calling thread.
pub(super) fn request_scheduling(cpu: Option<usize>, realtime_priority: i32) -> GrantedScheduling {
    // Only matters where the real-time policy is refused (it has no slack); costs 50 µs of lateness otherwise,
    // prctl(2), PR_SET_TIMERSLACK. Never refused for the thread itself.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    GrantedScheduling {
        realtime: priority_ffi::become_realtime(realtime_priority),
        pinned: cpu.is_some_and(pin),
    }
}

fn pin(cpu: usize) -> bool {
    if cpu >= CpuSet::MAX_CPU {
        return false;
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own, since what is granted stays.
    fn on_a_thread(cpu: Option<usize>) -> (GrantedScheduling, usize) {
        std::thread::spawn(move || (request_scheduling(cpu, 40), rustix::thread::sched_getcpu()))
            .join()
            .unwrap()
    }

    #[test]
    fn a_thread_pinned_to_a_cpu_runs_there() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let last = (0..CpuSet::MAX_CPU).rfind(|&cpu| allowed.is_set(cpu)).unwrap();
        let (granted, cpu) = on_a_thread(Some(last));
        assert!(granted.pinned);
        assert_eq!(cpu, last);
    }

    #[test]
    fn pinning_to_a_missing_cpu_is_reported_as_refused() {
        assert!(!on_a_thread(Some(CpuSet::MAX_CPU - 1)).0.pinned);
        assert!(!on_a_thread(Some(usize::MAX)).0.pinned);
        assert!(!on_a_thread(None).0.pinned);
    }
}
