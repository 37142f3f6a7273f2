//! Giving up privilege: what opening the sources needed and reading them does not.
//!
//! Owns what the daemon keeps, and says it. Descriptors of perf events, registers and files stay readable without the
//! privilege that opened them, so capabilities go, and with them the way back: no new privileges, no ambient or bounding
//! set. And every thread refuses perf_event_open and the starting of programs, whatever capability a service manager's
//! filter makes us keep. Not dumpable, where it serves others: nobody of its user may trace it or read its memory. This
//! comes after discovery. Never done by the meter inside a client: that one is the client.

#[cfg(target_os = "linux")]
mod capabilities;
#[cfg(not(target_os = "linux"))]
mod capabilities_unsupported;
#[cfg(target_os = "linux")]
mod seccomp_ffi;

use std::path::Path;

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
pub use capabilities::{current_privileges, drop_privileges};
#[cfg(not(target_os = "linux"))]
pub use capabilities_unsupported::{current_privileges, drop_privileges};

/// What is kept, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPrivileges {
    /// The user it runs as.
    pub uid: u32,
    /// The capabilities kept, as in capabilities(7); none where the system has none.
    pub capabilities: Vec<String>,
    /// Nothing it starts could have more than it has itself.
    pub no_new_privileges: bool,
    /// Its memory can be read by others of its user.
    pub dumpable: bool,
    /// System calls that it refuses itself since its sources are open.
    #[serde(default)]
    pub refused_system_calls: Vec<String>,
    /// The kernel lets it make only the system calls of a list (the service manager's).
    pub system_calls_filtered: bool,
}

/// What must go on working.
#[derive(Debug)]
pub struct RequiredPrivileges<'a> {
    /// A powercap zone that goes away and comes back is opened anew, which needs CAP_DAC_READ_SEARCH for whom it is not
    /// root's own file.
    pub powercap: bool,
    /// Where the daemon writes.
    pub state_dir: &'a Path,
    /// It serves others than its own user, so nobody else of that user is to look into it.
    pub serves_other_users: bool,
    /// The priority that samplers ask for: allowed as a limit, it needs no capability later.
    pub realtime_priority: u64,
}
