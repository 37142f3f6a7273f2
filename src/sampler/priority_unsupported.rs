//! Scheduling priority on other systems: the thread runs as it is.
//!
//! Owns the answer "not granted" for systems without a mechanism of their own here. Never fails.

/// The scheduling that the thread was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GrantedScheduling {
    /// It runs before every ordinary thread.
    pub(super) realtime: bool,
    /// It stays on the CPU it asked for.
    pub(super) pinned: bool,
}

/// Asks for nothing.
pub(super) fn request_scheduling(_cpu: Option<usize>, _realtime_priority: i32) -> GrantedScheduling {
    GrantedScheduling { realtime: false, pinned: false }
}
