//! The export to a collector by OTLP over HTTP, in JSON: each stored account as a span, and the energy of the domains and of
//! the host as metrics.
//!
//! ```text
//! daemon ─► ListSpans after N ─► batch ─► POST /v1/traces ─► answer ─► state file: N (fsync)
//! ```
//!
//! The daemon's store is the queue: a batch is in memory only while it is sent. The state moves after the answer, so that
//! an account whose answer was lost is sent again, with the same IDs, and none is skipped.

mod attributes;
mod backoff;
pub(crate) mod collector;
mod identity;
mod metrics;
pub(crate) mod otlp_exporter;
pub(crate) mod spans;

pub use backoff::Backoff;
pub use collector::CollectorSettings;
pub use otlp_exporter::{OtlpError, OtlpExporter, OtlpSettings, OtlpSignal, OtlpSummary};
