//! HTTP as a client of inference servers needs it: whom to dial, a pool that dials, and what a stream of events says.
//!
//! Owns the address ([`Target`]), the pool of connections with TLS ([`dial`]), the headers that belong to one hop
//! ([`hop`]), and the cutting of a byte stream into lines and server-sent events that survives any cut. Knows nothing
//! of energy and of no particular server.

pub mod dial;
pub mod hop;
pub mod line;
pub mod sse;
mod target;

pub use target::{NotATarget, Target};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// Why a body broke off.
pub type Broken = Box<dyn std::error::Error + Send + Sync>;

/// A body that comes frame by frame.
pub type Body = UnsyncBoxBody<Bytes, Broken>;

/// A body of one piece.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    use http_body_util::{BodyExt, Full};
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
