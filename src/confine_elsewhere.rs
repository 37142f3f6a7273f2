//! Giving up privilege where there are no capabilities: launchd starts the daemon as a user of its own.
//!
//! Owns the same names as on Linux. Does nothing and says so.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The user it runs as.
    pub uid: u32,
    /// The capabilities kept: this system has none.
    pub capabilities: Vec<String>,
    /// Nothing it starts could have more than it has itself.
    pub no_new_privileges: bool,
    /// Its memory can be read by others of its user.
    pub dumpable: bool,
    /// System calls that it refuses itself since its sources are open.
    #[serde(default)]
    pub refused_system_calls: Vec<String>,
    /// The kernel lets it make only the system calls of a list.
    pub system_calls_filtered: bool,
}

/// What must go on working.
#[derive(Debug)]
pub struct Needs<'a> {
    /// Zones that may have to be opened anew.
    pub powercap: bool,
    /// Where the daemon writes.
    pub state_dir: &'a Path,
    /// It serves others than its own user.
    pub serves_others: bool,
    /// The priority that samplers ask for.
    pub realtime_priority: u64,
}

/// Gives up nothing.
pub fn confine(_needs: &Needs) -> Confinement {
    found()
}

/// What is so.
pub fn found() -> Confinement {
    Confinement { uid: rustix::process::geteuid().as_raw(), dumpable: true, ..Confinement::default() }
}
