//! Coming first on the machine, where nothing is known about how: the thread runs as it is.
//!
//! Owns the answer "not granted" for systems without a mechanism of their own here. Never fails.

/// What the thread got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    /// It runs before every ordinary thread.
    pub(super) realtime: bool,
    /// It stays on the CPU it asked for.
    pub(super) pinned: bool,
}

/// Asks for nothing.
pub(super) fn claim(_cpu: Option<usize>) -> Granted {
    Granted { realtime: false, pinned: false }
}
