//! Privileges on systems without capabilities. launchd starts the daemon as a user of its own, so there is
//! nothing to drop.

use wattspan_client::protocol::ProcessPrivileges;

use super::required_privileges::RequiredPrivileges;

/// Drops nothing.
pub fn drop_privileges(_required: &RequiredPrivileges) -> ProcessPrivileges {
    current_privileges()
}

/// Reads the privileges of this process.
pub fn current_privileges() -> ProcessPrivileges {
    ProcessPrivileges {
        uid: rustix::process::geteuid().as_raw(),
        dumpable: true,
        ..ProcessPrivileges::default()
    }
}
