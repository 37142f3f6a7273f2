//! The privileges of the daemon, a part of the reply to GetInfo.

use serde::{Deserialize, Serialize};

/// What the daemon may still do after it has dropped the rest.
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
