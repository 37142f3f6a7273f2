//! The path of the daemon's socket: an explicit path, that of the environment, or the default paths, in this order.
//!
//! Invariant: an explicit path is the only one tried, so that a mistyped path never leads to another daemon.

use std::env;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::client_error::ClientError;
use crate::config::socket_paths;

/// The environment variable that names the socket.
pub const SOCKET_ENV: &str = "WATTSPAN_SOCKET";

/// The socket paths to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketPath {
    /// This path only.
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
