//! HTTP for clients of inference servers: base URLs, connection pools, line and server-sent event decoders.
//!
//! Invariant: the result of a decoder does not depend on chunk boundaries. Nothing here depends on a particular server.

#![warn(clippy::unwrap_used)]

mod base_url;
mod body;
pub mod connection_pool;
pub mod hop_by_hop;
pub mod line_decoder;
pub mod sse;

pub use base_url::{BaseUrl, ParseBaseUrlError};
pub use body::{BodyError, BoxBody, BufferedBody, full_body};
