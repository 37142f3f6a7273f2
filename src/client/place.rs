//! Where the daemon's socket is looked for.
//!
//! Owns the order: what the caller names, the environment, the usual places. A place that was named is the only one
//! tried, so that a mistyped path is never answered by another daemon.

use std::env;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::config::socket_paths;

/// The environment variable that names the socket.
pub const SOCKET_VARIABLE: &str = "WATTSPAN_SOCKET";

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Here and nowhere else.
    Named(PathBuf),
    /// The first of these that answers.
    Usual(Vec<PathBuf>),
}

impl Place {
    /// What the environment names, else the usual places.
    pub fn usual() -> Self {
        match env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => Place::Named(path.into()),
            None => Place::Usual(socket_paths()),
        }
    }

    /// The place that a message about the daemon should name.
    pub fn path(&self) -> &Path {
        match self {
            Place::Named(path) => path,
            Place::Usual(paths) => paths.first().map_or(Path::new(""), PathBuf::as_path),
        }
    }

    /// The places to look at, in their order.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Place::Named(path) => std::slice::from_ref(path),
            Place::Usual(paths) => paths,
        }
    }

    /// Connects to the first place that answers. Of several failures a closed door is told before an absent one.
    pub(super) fn connect(&self) -> Result<UnixStream, Failure> {
        let mut failure = None;
        for path in self.paths() {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    failure = Some(Failure::KeptOut { path: path.clone() });
                }
                Err(reason) => {
                    failure = failure.or(Some(Failure::Unreachable { path: path.clone(), reason }));
                }
            }
        }
        let nowhere = || io::Error::new(io::ErrorKind::NotFound, "no place to look at");
        Err(failure.unwrap_or_else(|| Failure::Unreachable { path: PathBuf::new(), reason: nowhere() }))
    }
}
