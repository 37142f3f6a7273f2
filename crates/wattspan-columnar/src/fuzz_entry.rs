//! The two steps of reading a file, under names that the fuzz targets can call (docs/fuzzing.md).

use std::path::Path;

use arrow_array::RecordBatch;
use serde_json::Value;

use super::{Batches, ColumnarError};

/// The batches of a file; only the crates of Arrow and Parquet decode it.
///
/// # Errors
/// The file cannot be read, or is neither.
pub fn batches(path: &Path) -> Result<Batches, ColumnarError> {
    super::read_batches(path)
}

/// The rows of a batch.
pub fn rows(batch: RecordBatch) -> impl Iterator<Item = Value> {
    super::batch_values(batch)
}
