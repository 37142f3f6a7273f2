//! HTTP for clients of inference servers: base URLs, connection pools, and the reader of their replies (lines, server-sent
//! events, JSON as they write it, the dialects of their interfaces), which the proxy and `wattspan ipw` share.
//!
//! Invariant: the result of a decoder does not depend on chunk boundaries. Nothing here depends on a particular server.

#![warn(clippy::unwrap_used)]

mod base_url;
mod body;
pub mod connection_pool;
pub mod hop_by_hop;
pub mod json_shortener;
pub mod lenient_json;
pub mod line_decoder;
mod message_buffer;
mod object_decoder;
pub mod prompt_hash;
pub mod reply;
pub mod sse;
pub mod transfer_encoding;

pub use base_url::{BaseUrl, ParseBaseUrlError, redact_url};
pub use body::{BodyError, BoxBody, BufferedBody, full_body};
