//! Stub of `columnar` for builds without the cargo feature `parquet`.
//!
//! Every function returns an error that names an alternative.

use std::path::Path;

use serde_json::Value;

use super::flat_row::FlatRow;
use super::{HarnessError, ProfilingRecord};

/// Whether this build reads and writes Arrow and Parquet.
pub const IS_SUPPORTED: bool = false;

/// Returns an error.
///
/// # Errors
/// Always.
pub fn for_each_value(_: &Path, _: impl FnMut(Value)) -> Result<(), HarnessError> {
    let instead = "the harness's data-*.arrow files cannot be read; its data set as JSON lines can \
                   (datasets.load_from_disk(DIR).to_json(\"DIR/data.jsonl\"), and give that file)";
    Err(HarnessError::ParquetUnsupported(instead))
}

/// Returns an error.
///
/// # Errors
/// Always.
pub fn write_parquet(_: &Path, _: impl Iterator<Item = FlatRow>) -> Result<usize, HarnessError> {
    Err(HarnessError::ParquetUnsupported("--jsonl writes the same columns as JSON lines"))
}

/// Returns an error.
///
/// # Errors
/// Always.
pub fn write_arrow(_: &Path, _: &str, _: &[ProfilingRecord]) -> Result<(), HarnessError> {
    Err(HarnessError::ParquetUnsupported("the records are written as JSON lines only"))
}
