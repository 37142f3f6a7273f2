//! Giving up privilege where there are no capabilities: launchd starts the daemon as a user of its own.
//!
//! Does nothing and says so.

use super::process_privileges::{ProcessPrivileges, RequiredPrivileges};

/// Gives up nothing.
pub fn drop_privileges(_required: &RequiredPrivileges) -> ProcessPrivileges {
    current_privileges()
}

/// What is so.
pub fn current_privileges() -> ProcessPrivileges {
    ProcessPrivileges {
        uid: rustix::process::geteuid().as_raw(),
        dumpable: true,
        ..ProcessPrivileges::default()
    }
}
