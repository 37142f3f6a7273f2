//! Arrow and Parquet.
//!
//! Owns the only use of the `arrow` and `parquet` crates: the harness's `data-*.arrow` (Arrow's streaming form, as Hugging Face's
//! `Dataset.save_to_disk` writes it; the file form is read too) into JSON values and back, and flat rows as Parquet. Feature
//! `parquet`.

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

use super::export::whole;
use super::flat::{COLUMNS, Cell, Flat, Form};
use super::{Record, Unusable};
use crate::private_file;

/// Whether Arrow and Parquet can be read and written.
pub const BUILT_IN: bool = true;

/// Rows that are in memory together.
const BATCH: usize = 16_384;

/// Every row of an Arrow file as a JSON value.
///
/// # Errors
/// It cannot be read, or is no Arrow.
pub fn each_value(path: &Path, mut take: impl FnMut(Value)) -> Result<(), Unusable> {
    let mut file = BufReader::new(File::open(path).map_err(Unusable::at(path))?);
    let mut magic = [0; 6];
    let in_file_form = file.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
    file.seek(SeekFrom::Start(0)).map_err(Unusable::at(path))?;
    let wrong = |cause: ArrowError| Unusable::nonsense(path, format!("is no Arrow file: {cause}"));
    let mut each = |batch: Result<RecordBatch, ArrowError>| -> Result<(), Unusable> {
        let rows = StructArray::from(batch.map_err(wrong)?);
        (0..rows.len()).for_each(|at| take(value(&rows, at)));
        Ok(())
    };
    if in_file_form {
        FileReader::try_new(file, None).map_err(wrong)?.try_for_each(&mut each)
    } else {
        StreamReader::try_new(file, None).map_err(wrong)?.try_for_each(&mut each)
    }
}

/// One value of a column. What has no counterpart in JSON is null; the harness writes no such thing.
fn value(column: &dyn Array, at: usize) -> Value {
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
        DataType::List(_) => values(&column.as_list::<i32>().value(at)),
        DataType::LargeList(_) => values(&column.as_list::<i64>().value(at)),
        DataType::Struct(fields) => {
            let columns = column.as_struct().columns();
            let pairs = fields.iter().zip(columns).map(|(field, of)| (field.name().clone(), value(of, at)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        _ => Value::Null,
    }
}

fn values(list: &ArrayRef) -> Value {
    Value::Array((0..list.len()).map(|at| value(list, at)).collect())
}

/// Writes the harness's records as Hugging Face's library saves them: an Arrow stream and two files about it.
///
/// # Errors
/// They cannot be written.
pub fn write_records(folder: &Path, model: &str, records: &[Record]) -> Result<(), Unusable> {
    const NAME: &str = "data-00000-of-00001.arrow";
    let path = folder.join(NAME);
    let schema = Arc::new(Schema::new(record_fields(model)));
    whole(&path, |file| {
        let wrong = |cause: ArrowError| Unusable::nonsense(&path, cause);
        let mut writer = StreamWriter::try_new(file, &schema).map_err(wrong)?;
        for some in records.chunks(BATCH) {
            let values: Vec<Value> =
                some.iter().map(|record| serde_json::to_value(record).expect("plain data")).collect();
            let rows = group(schema.fields(), &values.iter().collect::<Vec<_>>());
            writer.write(&RecordBatch::from(rows)).map_err(wrong)?;
        }
        writer.finish().map_err(wrong)
    })?;
    let state = json!({
        "_data_files": [{ "filename": NAME }], "_fingerprint": "0000000000000000", "_format_columns": null,
        "_format_kwargs": {}, "_format_type": null, "_output_all_columns": false, "_split": null
    });
    let about = json!({ "citation": "", "description": "", "homepage": "", "license": "" });
    for (name, text) in [("state.json", state), ("dataset_info.json", about)] {
        let path = folder.join(name);
        private_file::write(&path, format!("{text:#}\n")).map_err(Unusable::at(path.clone()))?;
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

/// JSON objects as a column of their fields.
fn group(fields: &Fields, values: &[&Value]) -> StructArray {
    let columns = fields.iter().map(|field| {
        let of: Vec<&Value> =
            values.iter().map(|value| value.get(field.name()).unwrap_or(&Value::Null)).collect();
        column(field.data_type(), &of)
    });
    let columns: Vec<ArrayRef> = columns.collect();
    let there = values.iter().map(|value| value.is_object()).collect();
    StructArray::try_new_with_length(fields.clone(), columns, Some(there), values.len())
        .expect("each column was made for its field, with as many values")
}

fn column(kind: &DataType, values: &[&Value]) -> ArrayRef {
    fn made<B: ArrayBuilder>(mut builder: B, values: &[&Value], add: impl Fn(&mut B, &Value)) -> ArrayRef {
        values.iter().for_each(|value| add(&mut builder, value));
        builder.finish()
    }
    match kind {
        DataType::Struct(fields) => Arc::new(group(fields, values)),
        DataType::Float64 => {
            made(Float64Builder::new(), values, |to, value| to.append_option(value.as_f64()))
        }
        DataType::Int64 => made(Int64Builder::new(), values, |to, value| to.append_option(value.as_i64())),
        DataType::Boolean => {
            made(BooleanBuilder::new(), values, |to, value| to.append_option(value.as_bool()))
        }
        _ => made(StringBuilder::new(), values, |to, value| to.append_option(value.as_str())),
    }
}

/// Writes flat rows as Parquet, snappy-compressed. Gives how many.
///
/// # Errors
/// It cannot be written; a file that was there stays as it was.
pub fn write_flat(path: &Path, rows: impl Iterator<Item = Flat>) -> Result<usize, Unusable> {
    let fields: Vec<Field> = COLUMNS
        .iter()
        .map(|(name, form)| {
            let kind = match form {
                Form::Text => DataType::Utf8,
                Form::Count => DataType::UInt64,
                Form::Real => DataType::Float64,
                Form::Flag => DataType::Boolean,
            };
            Field::new(*name, kind, true)
        })
        .collect();
    let schema = Arc::new(Schema::new(fields));
    whole(path, |file| {
        let settings = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let wrong = |cause: &dyn std::fmt::Display| Unusable::nonsense(path, cause);
        let mut writer =
            ArrowWriter::try_new(file, Arc::clone(&schema), Some(settings)).map_err(|cause| wrong(&cause))?;
        let (mut rows, mut count) = (rows.peekable(), 0);
        while rows.peek().is_some() {
            let some: Vec<Flat> = rows.by_ref().take(BATCH).collect();
            count += some.len();
            let batch =
                RecordBatch::try_new(Arc::clone(&schema), columns(&some)).map_err(|cause| wrong(&cause))?;
            writer.write(&batch).map_err(|cause| wrong(&cause))?;
        }
        writer.close().map_err(|cause| wrong(&cause))?;
        Ok(count)
    })
}

fn columns(rows: &[Flat]) -> Vec<ArrayRef> {
    let cells: Vec<_> = rows.iter().map(Flat::cells).collect();
    (0..COLUMNS.len())
        .map(|place| -> ArrayRef {
            let of = || cells.iter().map(|row| row[place]);
            match COLUMNS[place].1 {
                Form::Text => {
                    let mut to = StringBuilder::new();
                    of().for_each(|cell| {
                        to.append_option(if let Cell::Text(text) = cell { text } else { None })
                    });
                    Arc::new(to.finish())
                }
                Form::Count => {
                    let mut to = UInt64Builder::new();
                    of().for_each(|cell| {
                        to.append_option(if let Cell::Count(it) = cell { it } else { None })
                    });
                    Arc::new(to.finish())
                }
                Form::Real => {
                    let mut to = Float64Builder::new();
                    of().for_each(|cell| to.append_option(if let Cell::Real(it) = cell { it } else { None }));
                    Arc::new(to.finish())
                }
                Form::Flag => {
                    let mut to = BooleanBuilder::new();
                    of().for_each(|cell| to.append_option(if let Cell::Flag(it) = cell { it } else { None }));
                    Arc::new(to.finish())
                }
            }
        })
        .collect()
}
