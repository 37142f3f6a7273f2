//! Arrow and Parquet input and output of the harness's records and of flat rows (cargo feature `parquet`).
//!
//! Knows the columns; `wattspan_columnar` reads and writes the files.

use std::path::Path;

use serde_json::{Value, json};
use wattspan_columnar::{Column, ColumnKind, ColumnarError};
use wattspan_system::private_file;

use super::flat_row::{COLUMNS, ColumnType, FlatRow};
use super::output::write_atomically;
use super::{HarnessError, ProfilingRecord};

/// Whether this build reads and writes Arrow and Parquet.
pub const IS_SUPPORTED: bool = true;

fn error_at(path: &Path) -> impl FnOnce(ColumnarError) -> HarnessError {
    move |error| match error {
        ColumnarError::Io(cause) => HarnessError::io(path)(cause),
        ColumnarError::Invalid(reason) => HarnessError::invalid(path, reason),
    }
}

/// Calls `visit` with each row of an Arrow or Parquet file as a JSON value.
///
/// # Errors
/// The file cannot be read or is neither.
pub fn for_each_value(path: &Path, visit: impl FnMut(Value)) -> Result<(), HarnessError> {
    wattspan_columnar::for_each_value(path, visit).map_err(error_at(path))
}

/// Writes the harness's records as Hugging Face's library saves them: an Arrow stream and two JSON files with
/// metadata.
///
/// # Errors
/// A file cannot be written.
pub fn write_arrow(folder: &Path, model: &str, records: &[ProfilingRecord]) -> Result<(), HarnessError> {
    const NAME: &str = "data-00000-of-00001.arrow";
    let path = folder.join(NAME);
    let values = records.iter().map(|record| serde_json::to_value(record).expect("plain data"));
    write_atomically(&path, |file| {
        wattspan_columnar::write_arrow_stream(file, &record_columns(model), values).map_err(error_at(&path))
    })?;
    let state = json!({
        "_data_files": [{ "filename": NAME }], "_fingerprint": "0000000000000000", "_format_columns": null,
        "_format_kwargs": {}, "_format_type": null, "_output_all_columns": false, "_split": null
    });
    let about = json!({ "citation": "", "description": "", "homepage": "", "license": "" });
    for (name, text) in [("state.json", state), ("dataset_info.json", about)] {
        let path = folder.join(name);
        private_file::write(&path, format!("{text:#}\n")).map_err(HarnessError::io(path.clone()))?;
    }
    Ok(())
}

fn record_columns(model: &str) -> Vec<Column> {
    let text = |name: &str| Column::new(name, ColumnKind::Text);
    let real = |name: &str| Column::new(name, ColumnKind::Real);
    let count = |name: &str| Column::new(name, ColumnKind::Integer);
    let flag = |name: &str| Column::new(name, ColumnKind::Flag);
    let group = |name: &str, columns: Vec<Column>| Column::new(name, ColumnKind::Group(columns));
    let stats = |name: &str| group(name, ["avg", "max", "median", "min"].map(real).to_vec());
    let metrics = vec![
        group("compute_metrics", ["flops_per_request", "macs_per_request"].map(real).to_vec()),
        group("energy_metrics", ["per_query_joules", "total_joules"].map(real).to_vec()),
        group(
            "latency_metrics",
            [
                "per_token_ms",
                "throughput_tokens_per_sec",
                "time_to_first_token_seconds",
                "total_query_seconds",
            ]
            .map(real)
            .to_vec(),
        ),
        group("memory_metrics", vec![stats("cpu_mb"), stats("gpu_mb")]),
        group("power_metrics", vec![group("gpu", vec![stats("per_query_watts"), stats("total_watts")])]),
        stats("temperature_metrics"),
        group("token_metrics", ["input", "output", "total"].map(count).to_vec()),
        group(
            "gpu_info",
            vec![text("name"), text("vendor"), count("device_id"), text("device_type"), text("backend")],
        ),
        group(
            "system_info",
            vec![
                text("os_name"),
                text("os_version"),
                text("kernel_version"),
                text("host_name"),
                count("cpu_count"),
                text("cpu_brand"),
            ],
        ),
        flag("lm_correctness"),
        group("evaluation", vec![flag("is_correct")]),
        text("lm_response"),
    ];
    vec![
        text("problem"),
        text("answer"),
        text("dataset_metadata"),
        text("subject"),
        group("model_answers", vec![text(model)]),
        group("model_metrics", vec![group(model, metrics)]),
    ]
}

/// Writes flat rows as Parquet with snappy compression; returns the number of rows.
///
/// # Errors
/// The file cannot be written; an existing file stays unchanged.
pub fn write_parquet(path: &Path, rows: impl Iterator<Item = FlatRow>) -> Result<usize, HarnessError> {
    let of = |(name, column_type): &(&str, ColumnType)| {
        let kind = match column_type {
            ColumnType::Text => ColumnKind::Text,
            ColumnType::Count => ColumnKind::Count,
            ColumnType::Real => ColumnKind::Real,
            ColumnType::Flag => ColumnKind::Flag,
        };
        Column::new(*name, kind)
    };
    let columns: Vec<Column> = COLUMNS.iter().map(of).collect();
    let values = rows.map(|row| serde_json::to_value(row).expect("plain data"));
    write_atomically(path, |file| {
        wattspan_columnar::write_parquet(file, &columns, values).map_err(error_at(path))
    })
}
