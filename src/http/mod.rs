//! HTTP as a client of inference servers needs it: whom to dial, a pool that dials, and what a stream of events says.
//!
//! Owns the address (`Target`), the pool of connections with TLS (`dial`), the headers that belong to one hop
//! (`hop`), and the cutting of a byte stream into lines and server-sent events that survives any cut. Knows nothing
//! of energy and of no particular server.

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

/// A body of one piece.
pub fn full_body(bytes: impl Into<Bytes>) -> BoxBody {
    use http_body_util::{BodyExt, Full};
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
