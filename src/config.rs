//! Settings: defaults, file, flags, checks (under way).

use std::path::PathBuf;

/// Where the daemon's socket is, the system's first; a client tries them in this order.
pub fn socket_places() -> Vec<PathBuf> {
    let system = if cfg!(target_os = "macos") { "/var/run/wattspan" } else { "/run/wattspan" };
    let user = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("wattspan"));
    [Some(PathBuf::from(system)), user].into_iter().flatten().map(|dir| dir.join("wattspan.sock")).collect()
}
