//! The path of the daemon's socket: an explicit path, that of the environment, or the default paths, in this order.
//!
//! Invariant: an explicit path is the only one tried, so that a mistyped path never leads to another daemon.

use std::env;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::client_error::ClientError;

/// The environment variable that names the socket.
pub const SOCKET_ENV: &str = "WATTSPAN_SOCKET";

/// The socket paths to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketPath {
    /// From a flag or from [`SOCKET_ENV`]; no other path is tried.
    Explicit(PathBuf),
    /// The first of these paths that accepts a connection.
    Search(Vec<PathBuf>),
}

impl SocketPath {
    /// The path in [`SOCKET_ENV`], or else the default paths.
    pub fn from_env() -> Self {
        match env::var_os(SOCKET_ENV).filter(|path| !path.is_empty()) {
            Some(path) => SocketPath::Explicit(path.into()),
            None => SocketPath::Search(socket_paths()),
        }
    }

    /// The path for messages about the daemon.
    pub fn display_path(&self) -> &Path {
        match self {
            SocketPath::Explicit(path) => path,
            SocketPath::Search(paths) => paths.first().map_or(Path::new(""), PathBuf::as_path),
        }
    }

    /// The paths to try, in order.
    pub fn candidates(&self) -> &[PathBuf] {
        match self {
            SocketPath::Explicit(path) => std::slice::from_ref(path),
            SocketPath::Search(paths) => paths,
        }
    }

    /// Connects to the first socket that accepts. Of several errors, a denied permission is reported before an absent
    /// socket.
    pub(super) fn connect(&self) -> Result<UnixStream, ClientError> {
        let mut connect_error = None;
        for path in self.candidates() {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    connect_error = Some(ClientError::PermissionDenied { path: path.clone() });
                }
                Err(reason) => {
                    connect_error =
                        connect_error.or(Some(ClientError::Unreachable { path: path.clone(), reason }));
                }
            }
        }
        let not_found = || io::Error::new(io::ErrorKind::NotFound, "no socket path is configured");
        Err(connect_error
            .unwrap_or_else(|| ClientError::Unreachable { path: PathBuf::new(), reason: not_found() }))
    }
}

/// The paths of the daemon's socket in the order in which a client tries them, the system's first.
pub fn socket_paths() -> Vec<PathBuf> {
    socket_paths_for(std::env::consts::OS == "macos", std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
}

/// The socket that launchd creates. It lies directly in /var/run: that directory is emptied at each boot, so a subdirectory
/// would not exist when launchd creates the socket.
pub const LAUNCHD_SOCKET: &str = "/var/run/wattspan.sock";

fn socket_paths_for(is_macos: bool, runtime: Option<PathBuf>) -> Vec<PathBuf> {
    let launchd = is_macos.then(|| LAUNCHD_SOCKET.into());
    let system = if is_macos { "/var/run/wattspan" } else { "/run/wattspan" };
    let own = [Some(system.into()), runtime.map(|dir| dir.join("wattspan"))];
    let own = own.into_iter().flatten().map(|dir: PathBuf| dir.join("wattspan.sock"));
    launchd.into_iter().chain(own).collect()
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
}
