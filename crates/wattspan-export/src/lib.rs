//! The export of stored accounts to files, without loss: each account stands in exactly one file.
//!
//! ```text
//! daemon ─► ListSpans after N ─► range FIRST-LAST ─► state file (fsync) ─► one file for each day (fsync, rename)
//! ```
//!
//! A client of the daemon, and never part of it. The range is on disk before its files are written, so that an export that
//! was killed repeats exactly this range; a file under its final name is complete and is not written again.

mod balance;
mod columns;
mod csv_format;
mod exporter;
mod format;
#[doc(hidden)]
pub mod fuzz_entry;
mod json_format;
mod otlp;
mod partition;
pub mod prometheus;
mod state;
mod trace_format;

#[cfg(feature = "parquet")]
mod parquet_format;
#[cfg(not(feature = "parquet"))]
#[path = "parquet_format_unsupported.rs"]
mod parquet_format;

pub use exporter::{ExportError, ExportSettings, ExportSummary, Exporter, describe_gap};
pub use format::{DEFAULT_ATTRIBUTES, ExportFormat};
pub use otlp::{Backoff, CollectorSettings, OtlpError, OtlpExporter, OtlpSettings, OtlpSignal, OtlpSummary};
