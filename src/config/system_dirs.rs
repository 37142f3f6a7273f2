//! The directories of the system and of the user: configuration, socket, state.
//!
//! These paths are part of the documentation. Creates nothing.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wattspan_client::{LAUNCHD_SOCKET, socket_paths};

/// The directory of the configuration files.
pub(super) fn config_dir() -> PathBuf {
    (if is_macos() { "/usr/local/etc/wattspan" } else { "/etc/wattspan" }).into()
}

/// The paths at which a daemon may create its socket: the system's first, then the user's.
pub fn listen_paths() -> Vec<PathBuf> {
    let mut paths = socket_paths();
    paths.retain(|path| path != Path::new(LAUNCHD_SOCKET));
    paths
}

/// Whether this process serves the whole machine: it runs as root, or as the owner of the system's directory for the socket
/// or for the state.
pub fn is_system_daemon() -> bool {
    let user = rustix::process::geteuid();
    user.is_root() || [system_runtime_dir(), system_state_dir()].iter().any(|dir| is_owned_by(dir, user))
}

fn system_runtime_dir() -> PathBuf {
    (if is_macos() { "/var/run/wattspan" } else { "/run/wattspan" }).into()
}

fn system_state_dir() -> PathBuf {
    (if is_macos() { "/var/db/wattspan" } else { "/var/lib/wattspan" }).into()
}

fn is_owned_by(path: &Path, user: rustix::process::Uid) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.uid() == user.as_raw())
}

/// The state directory: the system's for root and for its owner, else the user's (`$XDG_STATE_HOME`, XDG base directory
/// specification). `None` where there is neither.
pub fn default_state_dir() -> Option<PathBuf> {
    let system = system_state_dir();
    let user = rustix::process::geteuid();
    if user.is_root() || is_owned_by(&system, user) {
        return Some(system);
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    own.map(|dir| dir.join("wattspan"))
}

fn is_macos() -> bool {
    std::env::consts::OS == "macos"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plist_makes_the_socket_where_clients_look() {
        let plist = include_str!("../../launchd/org.wattspan.wattspand.plist");
        assert!(plist.contains(&format!("<string>{LAUNCHD_SOCKET}</string>")));
    }
}
