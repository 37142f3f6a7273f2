//! The privileges of this process, and those that it must keep.
//!
//! Plain values. [`ProcessPrivileges`] is part of the reply to GetInfo.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The privileges of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPrivileges {
    /// The effective user ID.
    pub uid: u32,
    /// The permitted capabilities, named as in capabilities(7). Empty on systems without capabilities.
    pub capabilities: Vec<String>,
    /// Programs that it starts cannot gain privileges.
    pub no_new_privileges: bool,
    /// Other processes of its user can read its memory.
    pub dumpable: bool,
    /// System calls that it blocks since its sources are open.
    #[serde(default)]
    pub refused_system_calls: Vec<String>,
    /// A seccomp filter is active, its own or the service manager's.
    pub system_calls_filtered: bool,
}

/// What the daemon needs after its privileges are dropped.
#[derive(Debug)]
pub struct RequiredPrivileges<'a> {
    /// A powercap zone that reappears is opened again. That needs CAP_DAC_READ_SEARCH if the user is not
    /// root.
    pub powercap: bool,
    /// The directory that the daemon writes to.
    pub state_dir: &'a Path,
    /// It serves other users than its own, so no other process of its user may inspect it.
    pub serves_other_users: bool,
    /// The priority of the sampler threads. If it is within the resource limit, it needs no capability.
    pub realtime_priority: u64,
}
