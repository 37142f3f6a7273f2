//! The error type of the client. Each variant is a case that a caller can handle differently.

use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use crate::protocol::MethodError;

/// An error of a call to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// None of the sockets accepts a connection.
    #[error("no daemon at {}: {reason}", .path.display())]
    Unreachable {
        /// The explicit path, or the first of the search path.
        path: PathBuf,
        /// The error of the connection attempt.
        reason: io::Error,
    },
    /// The permissions of the socket deny access.
    #[error("permission denied: this user may not connect to {}", .path.display())]
    PermissionDenied {
        /// The last socket path that was tried and denied access.
        path: PathBuf,
    },
    /// The daemon closed the connection.
    #[error("the daemon closed the connection (it stopped, or rejected this client)")]
    ConnectionClosed,
    /// The timeout of a reply passed.
    #[error("the daemon did not answer within the timeout")]
    TimedOut,
    /// Another error of the socket.
    #[error("I/O error on the daemon's socket: {0}")]
    Io(#[source] io::Error),
    /// After an earlier error it is unknown which call the next reply belongs to.
    #[error("the connection is unusable after an earlier error; connect again")]
    Desynchronized,
    /// The reply does not conform to the protocol.
    #[error("invalid reply from the daemon: {0}")]
    InvalidReply(String),
    /// The daemon returned an error.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// The daemon returned an error that this version does not know.
    #[error("the daemon returned an unknown error: {name} {parameters}")]
    UnknownMethodError {
        /// The error's full name.
        name: String,
        /// The error's parameters as JSON text.
        parameters: String,
    },
}

impl ClientError {
    /// The error of a read or write of the socket.
    pub(super) fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::ConnectionClosed,
            _ => ClientError::Io(error),
        }
    }

    /// The error for a reply that this version cannot parse; the name of an unknown method error is kept.
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

    /// Whether the socket or the daemon denied access.
    pub fn is_permission_denied(&self) -> bool {
        matches!(
            self,
            ClientError::PermissionDenied { .. } | ClientError::Method(MethodError::AccessDenied { .. })
        )
    }
}
