//! HTTP for clients of inference servers: base URLs, connection pools, line and server-sent event decoders.
//!
//! Owns the address (`BaseUrl`), the connection pool with TLS (`connection_pool`), the hop-by-hop headers
//! (`hop_by_hop`), and the decoders (`line_decoder`, `sse`), whose result does not depend on chunk boundaries. Contains
//! nothing about energy and nothing about a particular server.

mod base_url;
mod body;
pub mod connection_pool;
pub mod hop_by_hop;
pub mod line_decoder;
pub mod sse;

pub use base_url::{BaseUrl, ParseBaseUrlError};
pub use body::{BodyError, BoxBody, BufferedBody, full_body};
