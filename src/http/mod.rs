//! HTTP for clients of inference servers: base URLs, connection pools, line and server-sent event decoders.
//!
//! Owns the address (`BaseUrl`), the connection pool with TLS (`connection_pool`), the hop-by-hop headers
//! (`hop_by_hop`), and the decoders (`line_decoder`, `sse`), whose result does not depend on chunk boundaries. Contains
//! nothing about energy and nothing about a particular server.

mod base_url;
mod buffered_body;
pub mod connection_pool;
pub mod hop_by_hop;
pub mod line_decoder;
pub mod sse;

pub use base_url::{BaseUrl, ParseBaseUrlError};
pub use buffered_body::BufferedBody;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// Why a body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that comes frame by frame.
pub type BoxBody = UnsyncBoxBody<Bytes, BodyError>;

/// A body of one chunk.
pub fn full_body(bytes: impl Into<Bytes>) -> BoxBody {
    use http_body_util::{BodyExt, Full};
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
