//! What stands in where Arrow and Parquet were not built in.
//!
//! Owns the words that say so.

use std::path::Path;

use serde_json::Value;

use super::flat_row::FlatRow;
use super::{HarnessError, ProfilingRecord};

/// Whether Arrow and Parquet can be read and written.
pub const IS_SUPPORTED: bool = false;

/// Reads nothing.
///
/// # Errors
/// Always.
pub fn for_each_value(_: &Path, _: impl FnMut(Value)) -> Result<(), HarnessError> {
    let instead = "the harness's data-*.arrow files cannot be read; its data set as JSON lines can \
                   (datasets.load_from_disk(DIR).to_json(\"DIR/data.jsonl\"), and give that file)";
    Err(HarnessError::ParquetUnsupported(instead))
}

/// Writes nothing.
///
/// # Errors
/// Always.
pub fn write_parquet(_: &Path, _: impl Iterator<Item = FlatRow>) -> Result<usize, HarnessError> {
    Err(HarnessError::ParquetUnsupported("--jsonl writes the same columns as JSON lines"))
}

/// Writes nothing.
///
/// # Errors
/// Always.
pub fn write_arrow(_: &Path, _: &str, _: &[ProfilingRecord]) -> Result<(), HarnessError> {
    Err(HarnessError::ParquetUnsupported("the records are written as JSON lines only"))
}
