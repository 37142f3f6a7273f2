//! A blocking client of the daemon: typed calls, one connection.
//!
//! A daemon that closes the connection, stalls or sends an invalid reply causes a
//! [`ClientError`], never a panic. After such an error the connection is desynchronized,
//! since the next reply can belong to an earlier call.
//!
//! ```no_run
//! use wattspan_client::{Client, SocketPath};
//!
//! let client = Client::connect(&SocketPath::from_env())?;
//! let mut question = client.open_span("question 17")?;
//! // ... prefill ...
//! question.mark_phase("decode")?;
//! // ... decode ...
//! let account = question.close()?;
//! println!("{:?} µJ", account.share_uj);
//! # Ok::<(), wattspan_client::ClientError>(())
//! ```

#![warn(missing_docs)]
#![warn(clippy::unwrap_used)]

pub mod account;
pub mod clock;
pub mod domain;
pub mod protocol;

mod account_reader;
mod client_error;
mod daemon_client;
mod socket_path;
mod varlink_connection;

pub use account_reader::AccountReader;
pub use client_error::ClientError;
pub use daemon_client::{Client, DEFAULT_TIMEOUT, Pipeline, ReplyStream, SpanGuard};
pub use socket_path::{LAUNCHD_SOCKET, SOCKET_ENV, SocketPath, socket_paths};
