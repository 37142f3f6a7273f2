//! What stands in where Arrow and Parquet were not built in.
//!
//! Owns the words that say so.

use std::path::Path;

use serde_json::Value;

use super::flat::Flat;
use super::{Record, Unusable};

/// Whether Arrow and Parquet can be read and written.
pub const BUILT_IN: bool = false;

/// Reads nothing.
///
/// # Errors
/// Always.
pub fn each_value(_: &Path, _: impl FnMut(Value)) -> Result<(), Unusable> {
    let instead = "the harness's data-*.arrow files cannot be read; its data set as JSON lines can \
                   (datasets.load_from_disk(DIR).to_json(\"DIR/data.jsonl\"), and give that file)";
    Err(Unusable::WithoutParquet(instead))
}

/// Writes nothing.
///
/// # Errors
/// Always.
pub fn write_flat(_: &Path, _: impl Iterator<Item = Flat>) -> Result<usize, Unusable> {
    Err(Unusable::WithoutParquet("--jsonl writes the same columns as JSON lines"))
}

/// Writes nothing.
///
/// # Errors
/// Always.
pub fn write_records(_: &Path, _: &str, _: &[Record]) -> Result<(), Unusable> {
    Err(Unusable::WithoutParquet("the records are written as JSON lines only"))
}
