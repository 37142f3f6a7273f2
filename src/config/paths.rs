//! Where things are on this kind of system: configuration files and sockets.
//!
//! Owns the paths that an administrator finds in the documentation. Creates nothing.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::ConfigError;

/// Where the configuration is.
pub(super) fn config_dir() -> PathBuf {
    (if is_macos() { "/usr/local/etc/wattspan" } else { "/etc/wattspan" }).into()
}

/// `wattspan.toml` and then `wattspan.toml.d/*.toml` by name, as far as they are there.
///
/// # Errors
/// Something is there and cannot be looked at: settings that are left out in silence are worse than none.
pub(super) fn config_files(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let (main, drop_ins) = (dir.join("wattspan.toml"), dir.join("wattspan.toml.d"));
    let unreadable = |file: &Path| {
        let file = file.to_owned();
        move |cause| ConfigError::Unreadable { file, cause }
    };
    let entries = match std::fs::read_dir(&drop_ins) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Vec::new(),
        entries => {
            entries.and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable(&drop_ins))?
        }
    };
    let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
    files.sort();
    match std::fs::symlink_metadata(&main) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => {}
        found => {
            found.map_err(unreadable(&main))?;
            files.insert(0, main);
        }
    }
    Ok(files)
}

/// Where the daemon's socket may be, the system's first; a client tries them in this order.
pub fn socket_paths() -> Vec<PathBuf> {
    socket_paths_for(is_macos(), std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
}

/// Where a daemon that makes its own socket makes it: the system's place first, then the user's own.
pub fn listen_paths() -> Vec<PathBuf> {
    let mut paths = socket_paths();
    paths.retain(|path| path != Path::new(LAUNCHD_SOCKET));
    paths
}

/// Whether this process serves the machine, not only its own user: it is root, or the user to whom the system's
/// directory for the socket or for the state belongs.
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

/// Where launchd makes the socket: directly in /var/run, which is emptied at each start of the machine, so that a directory
/// of ours would not be there when launchd wants to put a socket in it.
const LAUNCHD_SOCKET: &str = "/var/run/wattspan.sock";

fn socket_paths_for(is_macos: bool, runtime: Option<PathBuf>) -> Vec<PathBuf> {
    let launchd = is_macos.then(|| LAUNCHD_SOCKET.into());
    let system = if is_macos { "/var/run/wattspan" } else { "/run/wattspan" };
    let own = [Some(system.into()), runtime.map(|dir| dir.join("wattspan"))];
    let own = own.into_iter().flatten().map(|dir: PathBuf| dir.join("wattspan.sock"));
    launchd.into_iter().chain(own).collect()
}

/// Where what must last is kept: the system's place for root and for the user to whom it belongs, else the user's own
/// (`$XDG_STATE_HOME`, as the XDG base directory specification has it). `None` where there is neither.
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
    fn a_client_on_macos_looks_for_launchds_socket_first() {
        let user = || Some(PathBuf::from("/run/user/7"));
        let paths =
            |paths: Vec<PathBuf>| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            paths(socket_paths_for(true, user())),
            [
                "/var/run/wattspan.sock",
                "/var/run/wattspan/wattspan.sock",
                "/run/user/7/wattspan/wattspan.sock"
            ]
        );
        assert_eq!(
            paths(socket_paths_for(false, user())),
            ["/run/wattspan/wattspan.sock", "/run/user/7/wattspan/wattspan.sock"]
        );
        assert_eq!(paths(socket_paths_for(false, None)), ["/run/wattspan/wattspan.sock"]);
    }

    #[test]
    fn the_plist_makes_the_socket_where_clients_look() {
        let plist = include_str!("../../launchd/org.wattspan.wattspand.plist");
        assert!(plist.contains(&format!("<string>{LAUNCHD_SOCKET}</string>")));
    }
}
