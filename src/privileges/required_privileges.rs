//! The privileges that the daemon keeps.

use std::path::Path;

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
