//! Why a call gave nothing.
//!
//! Owns the client's one error type; every variant is something a caller may want to treat differently.

use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use crate::protocol::MethodError;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon answers on any of the sockets.
    #[error("no daemon at {}: {reason}", .path.display())]
    Unreachable {
        /// The explicit path, or the first of the search path.
        path: PathBuf,
        /// What connecting to it said.
        reason: io::Error,
    },
    /// The socket is there, and its permissions keep the caller out.
    #[error("the permissions of {} keep this user out", .path.display())]
    PermissionDenied {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon closed the connection.
    #[error("the daemon closed the connection (it stopped, or turned this client away)")]
    ConnectionClosed,
    /// The daemon took longer than the time-out.
    #[error("the daemon did not answer in time")]
    TimedOut,
    /// The socket failed in another way.
    #[error("the daemon's socket: {0}")]
    Io(#[source] io::Error),
    /// An earlier failure left it unknown which answer comes next.
    #[error("the connection was given up after an earlier failure; connect again")]
    Desynchronized,
    /// What came is not of the protocol.
    #[error("the daemon's answer makes no sense: {0}")]
    InvalidReply(String),
    /// The daemon said no.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// The daemon said no in words that this version does not know.
    #[error("the daemon refused: {name} {parameters}")]
    UnknownMethodError {
        /// The error's full name.
        name: String,
        /// Its parameters, as JSON text.
        parameters: String,
    },
}

impl ClientError {
    /// What a read or write of the socket failed with.
    pub(super) fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::ConnectionClosed,
            _ => ClientError::Io(error),
        }
    }

    /// A message that is an answer, but not one that this version can read: an error keeps its name.
    pub(super) fn from_unknown_reply(message: &[u8], reason: &str) -> Self {
        #[derive(Deserialize)]
        struct ErrorReply {
            error: String,
            #[serde(default)]
            parameters: serde_json::Value,
        }
        match serde_json::from_slice::<ErrorReply>(message) {
            Ok(ErrorReply { error, parameters }) => {
                ClientError::UnknownMethodError { name: error, parameters: parameters.to_string() }
            }
            Err(_) => ClientError::InvalidReply(reason.to_owned()),
        }
    }

    /// The caller may not do what was asked.
    pub fn is_permission_denied(&self) -> bool {
        matches!(
            self,
            ClientError::PermissionDenied { .. } | ClientError::Method(MethodError::AccessDenied { .. })
        )
    }
}
