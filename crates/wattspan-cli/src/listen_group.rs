//! The group whose members may connect to a Unix socket: `--listen-group` of the commands that serve.

use wattspan_system::groups::lookup_gid;

use super::exit_status::{CliError, USAGE};

/// The group's ID.
///
/// # Errors
/// The command listens at a TCP address, or there is no such group.
pub fn listen_group_gid(name: &str, is_tcp: bool) -> Result<u32, CliError> {
    if is_tcp {
        return Err(CliError::new(USAGE, "--listen-group needs a Unix socket; give --listen unix:PATH"));
    }
    let absent = || CliError::new(USAGE, format!("--listen-group {name}: no such group on this machine"));
    lookup_gid(name).ok_or_else(absent)
}
