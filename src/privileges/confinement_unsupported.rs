//! Giving up privilege where there are no capabilities: launchd starts the daemon as a user of its own.
//!
//! Does nothing and says so.

use super::{Confinement, Needs};

/// Gives up nothing.
pub fn confine(_needs: &Needs) -> Confinement {
    found()
}

/// What is so.
pub fn found() -> Confinement {
    Confinement { uid: rustix::process::geteuid().as_raw(), dumpable: true, ..Confinement::default() }
}
