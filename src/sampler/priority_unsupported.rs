//! Scheduling priority on systems without an implementation here: nothing is granted.

/// The scheduling that the thread was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GrantedScheduling {
    /// The thread has a real-time policy.
    pub(super) realtime: bool,
    /// The thread is pinned to the requested CPU.
    pub(super) pinned: bool,
}

/// Requests nothing.
pub(super) fn request_scheduling(_cpu: Option<usize>, _realtime_priority: i32) -> GrantedScheduling {
    GrantedScheduling { realtime: false, pinned: false }
}
