//! Arrow and Parquet input and output (cargo feature `parquet`).
//!
//! The only user of the `arrow` and `parquet` crates. Converts the harness's `data-*.arrow` files to JSON values and
//! back, and writes flat rows as Parquet. The harness writes Arrow's streaming format, as Hugging Face's
//! `Dataset.save_to_disk` does; the file format is read, too.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder, UInt64Builder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::{Map, Value, json};
use wattspan_system::private_file;

use super::flat_row::{COLUMNS, ColumnType, FlatCell, FlatRow};
use super::output::write_atomically;
use super::{HarnessError, ProfilingRecord};

/// Whether this build reads and writes Arrow and Parquet.
pub const IS_SUPPORTED: bool = true;

/// Maximum number of rows per batch in memory.
const BATCH_ROWS: usize = 16_384;

/// Calls `visit` with each row of an Arrow file as a JSON value.
///
/// # Errors
/// The file cannot be read or is not Arrow.
pub fn for_each_value(path: &Path, mut visit: impl FnMut(Value)) -> Result<(), HarnessError> {
    let mut file = BufReader::new(File::open(path).map_err(HarnessError::io(path))?);
    let mut magic = [0; 6];
    let is_file_format = file.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
    file.seek(SeekFrom::Start(0)).map_err(HarnessError::io(path))?;
    let arrow_error = |cause: ArrowError| HarnessError::invalid(path, format!("is no Arrow file: {cause}"));
    let mut visit_batch = |batch: Result<RecordBatch, ArrowError>| -> Result<(), HarnessError> {
        let rows = StructArray::from(batch.map_err(arrow_error)?);
        (0..rows.len()).for_each(|at| visit(array_value(&rows, at)));
        Ok(())
    };
    if is_file_format {
        FileReader::try_new(file, None).map_err(arrow_error)?.try_for_each(&mut visit_batch)
    } else {
        StreamReader::try_new(file, None).map_err(arrow_error)?.try_for_each(&mut visit_batch)
    }
}

/// Converts a value of a column to JSON. A type without a JSON counterpart gives null; the harness writes no such
/// type.
fn array_value(column: &dyn Array, at: usize) -> Value {
    if column.is_null(at) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(at).into(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(at).into(),
        DataType::Utf8View => column.as_string_view().value(at).into(),
        DataType::Boolean => column.as_boolean().value(at).into(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(at).into(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(at).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(at).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(at).into(),
        DataType::UInt8 => column.as_primitive::<UInt8Type>().value(at).into(),
        DataType::UInt16 => column.as_primitive::<UInt16Type>().value(at).into(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(at).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(at).into(),
        DataType::Float32 => column.as_primitive::<Float32Type>().value(at).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(at).into(),
        DataType::List(_) => list_values(&column.as_list::<i32>().value(at)),
        DataType::LargeList(_) => list_values(&column.as_list::<i64>().value(at)),
        DataType::Struct(fields) => {
            let columns = column.as_struct().columns();
            let pairs =
                fields.iter().zip(columns).map(|(field, of)| (field.name().clone(), array_value(of, at)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        _ => Value::Null,
    }
}

fn list_values(list: &ArrayRef) -> Value {
    Value::Array((0..list.len()).map(|at| array_value(list, at)).collect())
}

/// Writes the harness's records as Hugging Face's library saves them: an Arrow stream and two JSON files with
/// metadata.
///
/// # Errors
/// A file cannot be written.
pub fn write_arrow(folder: &Path, model: &str, records: &[ProfilingRecord]) -> Result<(), HarnessError> {
    const NAME: &str = "data-00000-of-00001.arrow";
    let path = folder.join(NAME);
    let schema = Arc::new(Schema::new(record_fields(model)));
    write_atomically(&path, |file| {
        let arrow_error = |cause: ArrowError| HarnessError::invalid(&path, cause);
        let mut writer = StreamWriter::try_new(file, &schema).map_err(arrow_error)?;
        for batch in records.chunks(BATCH_ROWS) {
            let values: Vec<Value> =
                batch.iter().map(|record| serde_json::to_value(record).expect("plain data")).collect();
            let rows = struct_array(schema.fields(), &values.iter().collect::<Vec<_>>());
            writer.write(&RecordBatch::from(rows)).map_err(arrow_error)?;
        }
        writer.finish().map_err(arrow_error)
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

fn record_fields(model: &str) -> Fields {
    let of = |name: &str, kind: DataType| Field::new(name, kind, true);
    let text = |name: &str| of(name, DataType::Utf8);
    let real = |name: &str| of(name, DataType::Float64);
    let count = |name: &str| of(name, DataType::Int64);
    let group = |name: &str, fields: Vec<Field>| of(name, DataType::Struct(fields.into()));
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
        of("lm_correctness", DataType::Boolean),
        group("evaluation", vec![of("is_correct", DataType::Boolean)]),
        text("lm_response"),
    ];
    Fields::from(vec![
        text("problem"),
        text("answer"),
        text("dataset_metadata"),
        text("subject"),
        group("model_answers", vec![text(model)]),
        group("model_metrics", vec![group(model, metrics)]),
    ])
}

/// Builds a struct column from JSON objects.
fn struct_array(fields: &Fields, values: &[&Value]) -> StructArray {
    let columns = fields.iter().map(|field| {
        let field_values: Vec<&Value> =
            values.iter().map(|value| value.get(field.name()).unwrap_or(&Value::Null)).collect();
        build_column(field.data_type(), &field_values)
    });
    let columns: Vec<ArrayRef> = columns.collect();
    let validity = values.iter().map(|value| value.is_object()).collect();
    StructArray::try_new_with_length(fields.clone(), columns, Some(validity), values.len())
        .expect("each column was made for its field, with as many values")
}

fn build_column(kind: &DataType, values: &[&Value]) -> ArrayRef {
    fn build<B: ArrayBuilder>(mut builder: B, values: &[&Value], add: impl Fn(&mut B, &Value)) -> ArrayRef {
        values.iter().for_each(|value| add(&mut builder, value));
        builder.finish()
    }
    match kind {
        DataType::Struct(fields) => Arc::new(struct_array(fields, values)),
        DataType::Float64 => {
            build(Float64Builder::new(), values, |to, value| to.append_option(value.as_f64()))
        }
        DataType::Int64 => build(Int64Builder::new(), values, |to, value| to.append_option(value.as_i64())),
        DataType::Boolean => {
            build(BooleanBuilder::new(), values, |to, value| to.append_option(value.as_bool()))
        }
        _ => build(StringBuilder::new(), values, |to, value| to.append_option(value.as_str())),
    }
}

/// Writes flat rows as Parquet with snappy compression; returns the number of rows.
///
/// # Errors
/// The file cannot be written; an existing file stays unchanged.
pub fn write_parquet(path: &Path, rows: impl Iterator<Item = FlatRow>) -> Result<usize, HarnessError> {
    let fields: Vec<Field> = COLUMNS
        .iter()
        .map(|(name, column_type)| {
            let kind = match column_type {
                ColumnType::Text => DataType::Utf8,
                ColumnType::Count => DataType::UInt64,
                ColumnType::Real => DataType::Float64,
                ColumnType::Flag => DataType::Boolean,
            };
            Field::new(*name, kind, true)
        })
        .collect();
    let schema = Arc::new(Schema::new(fields));
    write_atomically(path, |file| {
        let settings = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let parquet_error = |cause: &dyn std::fmt::Display| HarnessError::invalid(path, cause);
        let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(settings))
            .map_err(|cause| parquet_error(&cause))?;
        let (mut rows, mut count) = (rows.peekable(), 0);
        while rows.peek().is_some() {
            let batch_rows: Vec<FlatRow> = rows.by_ref().take(BATCH_ROWS).collect();
            count += batch_rows.len();
            let batch = RecordBatch::try_new(Arc::clone(&schema), flat_columns(&batch_rows))
                .map_err(|cause| parquet_error(&cause))?;
            writer.write(&batch).map_err(|cause| parquet_error(&cause))?;
        }
        writer.close().map_err(|cause| parquet_error(&cause))?;
        Ok(count)
    })
}

fn flat_columns(rows: &[FlatRow]) -> Vec<ArrayRef> {
    let cells: Vec<_> = rows.iter().map(FlatRow::cells).collect();
    (0..COLUMNS.len())
        .map(|index| -> ArrayRef {
            let column = || cells.iter().map(|row| row[index]);
            match COLUMNS[index].1 {
                ColumnType::Text => {
                    let mut builder = StringBuilder::new();
                    column().for_each(|cell| {
                        builder.append_option(if let FlatCell::Text(text) = cell { text } else { None })
                    });
                    Arc::new(builder.finish())
                }
                ColumnType::Count => {
                    let mut builder = UInt64Builder::new();
                    column().for_each(|cell| {
                        builder.append_option(if let FlatCell::Count(it) = cell { it } else { None })
                    });
                    Arc::new(builder.finish())
                }
                ColumnType::Real => {
                    let mut builder = Float64Builder::new();
                    column().for_each(|cell| {
                        builder.append_option(if let FlatCell::Real(it) = cell { it } else { None })
                    });
                    Arc::new(builder.finish())
                }
                ColumnType::Flag => {
                    let mut builder = BooleanBuilder::new();
                    column().for_each(|cell| {
                        builder.append_option(if let FlatCell::Flag(it) = cell { it } else { None })
                    });
                    Arc::new(builder.finish())
                }
            }
        })
        .collect()
}
