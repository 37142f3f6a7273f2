//! The privileges of this process, and those that it must keep.
//!
//! Plain values. [`ProcessPrivileges`] is part of the reply to GetInfo.

use std::path::Path;

use serde::{Deserialize, Serialize};

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
