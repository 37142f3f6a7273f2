//! A blocking client of the daemon: typed calls, one connection.
//!
//! A daemon that closes the connection, stalls or sends an invalid reply causes a
//! [`ClientError`](crate::client::ClientError), never a panic. After such an error the connection is desynchronized,
//! since the next reply can belong to an earlier call.
//!
//! ```no_run
//! use wattspan::client::{Client, SocketPath};
//!
//! let client = Client::connect(&SocketPath::from_env())?;
//! let mut question = client.open_span("question 17")?;
//! // ... prefill ...
//! question.mark_phase("decode")?;
//! // ... decode ...
//! let account = question.close()?;
//! println!("{:?} µJ", account.share_uj);
//! # Ok::<(), wattspan::client::ClientError>(())
//! ```

mod client_error;
mod daemon_client;
mod socket_path;
mod varlink_connection;

pub use client_error::ClientError;
pub use daemon_client::{Client, DEFAULT_TIMEOUT, Pipeline, ReplyStream, SpanGuard};
pub use socket_path::{SOCKET_ENV, SocketPath};
