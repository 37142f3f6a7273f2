//! Where things are on this kind of system: configuration files and sockets.
//!
//! Owns the paths that an administrator finds in the documentation. Creates nothing.

use std::path::{Path, PathBuf};

/// Where the configuration is.
pub(super) fn configuration_dir() -> PathBuf {
    (if apple() { "/usr/local/etc/wattspan" } else { "/etc/wattspan" }).into()
}

/// `wattspan.toml` and then `wattspan.toml.d/*.toml` by name, as far as they are there.
pub(super) fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir.join("wattspan.toml.d"))
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
    files.sort();
    files.insert(0, dir.join("wattspan.toml"));
    files.retain(|file| file.exists());
    files
}

/// Where the daemon's socket is, the system's first; a client tries them in this order.
pub fn socket_places() -> Vec<PathBuf> {
    let system = PathBuf::from(if apple() { "/var/run/wattspan" } else { "/run/wattspan" });
    let user = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("wattspan"));
    [Some(system), user].into_iter().flatten().map(|dir| dir.join("wattspan.sock")).collect()
}

/// Where what must last is kept: the system's place for root and for the user to whom it belongs, else the user's own
/// (`$XDG_STATE_HOME`, as the XDG base directory specification has it). `None` where there is neither.
pub fn state_dir() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let system = PathBuf::from(if apple() { "/var/db/wattspan" } else { "/var/lib/wattspan" });
    let user = rustix::process::geteuid();
    if user.is_root() || std::fs::metadata(&system).is_ok_and(|found| found.uid() == user.as_raw()) {
        return Some(system);
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    own.map(|dir| dir.join("wattspan"))
}

fn apple() -> bool {
    std::env::consts::OS == "macos"
}
