//! Arrow and Parquet files as JSON values.
//!
//! The only user of the `arrow` crates: they take long to build, so nothing that the daemon links may depend on this. Reads
//! Arrow's streaming format, as Hugging Face's `Dataset.save_to_disk` writes it, its file format, and Parquet; writes
//! the stream and Parquet. Invariant: a value without a JSON counterpart is read as null, and so is one that does not
//! fit its column written.

#[doc(hidden)]
pub mod fuzz_entry;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
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
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::{Map, Value};

/// A file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ColumnarError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The content of a file is invalid, or cannot be encoded.
    #[error("{0}")]
    Invalid(String),
}

impl ColumnarError {
    fn invalid(cause: impl std::fmt::Display) -> Self {
        Self::Invalid(cause.to_string())
    }
}

/// A column: its name and what its values are. Every value may be null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub kind: ColumnKind,
}

/// What the values of a column are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnKind {
    Text,
    /// A signed integer.
    Integer,
    /// An unsigned integer.
    Count,
    /// A floating-point number.
    Real,
    /// A Boolean.
    Flag,
    /// An object with these columns.
    Group(Vec<Column>),
}

impl Column {
    pub fn new(name: impl Into<String>, kind: ColumnKind) -> Self {
        Self { name: name.into(), kind }
    }

    fn to_field(&self) -> Field {
        let kind = match &self.kind {
            ColumnKind::Text => DataType::Utf8,
            ColumnKind::Integer => DataType::Int64,
            ColumnKind::Count => DataType::UInt64,
            ColumnKind::Real => DataType::Float64,
            ColumnKind::Flag => DataType::Boolean,
            ColumnKind::Group(columns) => DataType::Struct(to_fields(columns)),
        };
        Field::new(&self.name, kind, true)
    }
}

fn to_fields(columns: &[Column]) -> Fields {
    columns.iter().map(Column::to_field).collect()
}

/// Maximum number of rows per batch in memory.
const BATCH_ROWS: usize = 16_384;

/// Calls `visit` with each row of an Arrow or Parquet file as a JSON value.
///
/// # Errors
/// The file cannot be read, or is neither.
pub fn for_each_value(path: &Path, mut visit: impl FnMut(Value)) -> Result<(), ColumnarError> {
    for batch in read_batches(path)? {
        batch_values(batch?).for_each(&mut visit);
    }
    Ok(())
}

/// The rows of a file, batch by batch.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ColumnarError>>>;

fn read_batches(path: &Path) -> Result<Batches, ColumnarError> {
    let mut file = File::open(path)?;
    let mut magic = [0; 6];
    // A file that is shorter is of none of the formats that have one.
    let length = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    if magic[..length].starts_with(b"PAR1") {
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(no_parquet)?;
        if reader.schema().fields().is_empty() {
            return Err(no_parquet("it has no columns"));
        }
        let batches = reader.build().map_err(no_parquet)?;
        return Ok(Box::new(batches.map(|batch| batch.map_err(no_parquet))));
    }
    let max_rows = file.metadata()?.len().saturating_mul(8);
    let file = BufReader::new(file);
    if &magic[..length] == b"ARROW1" {
        let batches = FileReader::try_new(file, None).map_err(no_arrow)?;
        Ok(Box::new(limit_rows(batches, max_rows)))
    } else {
        let batches = StreamReader::try_new(file, None).map_err(no_arrow)?;
        Ok(Box::new(limit_rows(batches, max_rows)))
    }
}

/// Refuses more rows than a file has bits: columns that take no space can state any number of rows.
fn limit_rows(
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    max_rows: u64,
) -> impl Iterator<Item = Result<RecordBatch, ColumnarError>> {
    let mut rows = 0_u64;
    batches.map(move |batch| {
        let batch = batch.map_err(no_arrow)?;
        rows = rows.saturating_add(batch.num_rows() as u64);
        if rows > max_rows {
            return Err(ColumnarError::Invalid("has more rows than its size allows".into()));
        }
        Ok(batch)
    })
}

fn no_arrow(cause: ArrowError) -> ColumnarError {
    ColumnarError::Invalid(format!("is no Arrow file: {cause}"))
}

fn no_parquet(cause: impl std::fmt::Display) -> ColumnarError {
    ColumnarError::Invalid(format!("is no readable Parquet file: {cause}"))
}

fn batch_values(batch: RecordBatch) -> impl Iterator<Item = Value> {
    let rows = StructArray::from(batch);
    (0..rows.len()).map(move |at| array_value(&rows, at))
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

/// Writes rows as an Arrow stream; returns their number.
///
/// # Errors
/// The file cannot be written.
pub fn write_arrow_stream(
    to: impl Write,
    columns: &[Column],
    rows: impl Iterator<Item = Value>,
) -> Result<usize, ColumnarError> {
    let schema = Arc::new(Schema::new(to_fields(columns)));
    let mut writer = StreamWriter::try_new(to, &schema).map_err(ColumnarError::invalid)?;
    let count = for_each_batch(&schema, rows, |batch| writer.write(&batch).map_err(ColumnarError::invalid))?;
    writer.finish().map_err(ColumnarError::invalid)?;
    Ok(count)
}

/// Writes rows as Parquet with snappy compression; returns their number.
///
/// # Errors
/// The file cannot be written.
pub fn write_parquet(
    to: impl Write + Send,
    columns: &[Column],
    rows: impl Iterator<Item = Value>,
) -> Result<usize, ColumnarError> {
    let schema = Arc::new(Schema::new(to_fields(columns)));
    let settings = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer =
        ArrowWriter::try_new(to, Arc::clone(&schema), Some(settings)).map_err(ColumnarError::invalid)?;
    let count = for_each_batch(&schema, rows, |batch| writer.write(&batch).map_err(ColumnarError::invalid))?;
    writer.close().map_err(ColumnarError::invalid)?;
    Ok(count)
}

/// Calls `write` with the rows in batches; returns their number.
fn for_each_batch(
    schema: &Schema,
    rows: impl Iterator<Item = Value>,
    mut write: impl FnMut(RecordBatch) -> Result<(), ColumnarError>,
) -> Result<usize, ColumnarError> {
    let (mut rows, mut count) = (rows.peekable(), 0);
    while rows.peek().is_some() {
        let values: Vec<Value> = rows.by_ref().take(BATCH_ROWS).collect();
        count += values.len();
        let batch = struct_array(schema.fields(), &values.iter().collect::<Vec<_>>());
        write(RecordBatch::from(batch))?;
    }
    Ok(count)
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
        DataType::UInt64 => build(UInt64Builder::new(), values, |to, value| to.append_option(value.as_u64())),
        DataType::Boolean => {
            build(BooleanBuilder::new(), values, |to, value| to.append_option(value.as_bool()))
        }
        _ => build(StringBuilder::new(), values, |to, value| to.append_option(value.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn columns() -> Vec<Column> {
        let group = vec![Column::new("right", ColumnKind::Flag), Column::new("joules", ColumnKind::Real)];
        vec![
            Column::new("id", ColumnKind::Text),
            Column::new("share_uj", ColumnKind::Count),
            Column::new("offset", ColumnKind::Integer),
            Column::new("metrics", ColumnKind::Group(group)),
        ]
    }

    fn rows() -> Vec<Value> {
        vec![
            json!({"id": "a \u{1f50b}", "share_uj": u64::MAX, "offset": -5,
                "metrics": {"right": true, "joules": 0.1}}),
            json!({"id": null, "share_uj": null, "offset": null, "metrics": {"right": null, "joules": null}}),
            json!({"id": "", "share_uj": 0, "offset": i64::MIN, "metrics": null}),
        ]
    }

    fn read(path: &Path) -> Result<Vec<Value>, ColumnarError> {
        let mut found = Vec::new();
        for_each_value(path, |value| found.push(value))?;
        Ok(found)
    }

    #[test]
    fn rows_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let file = File::create(&path).unwrap();
        assert_eq!(write_arrow_stream(file, &columns(), rows().into_iter()).unwrap(), 3);
        assert_eq!(read(&path).unwrap(), rows());
        let file = File::create(&path).unwrap();
        assert_eq!(write_parquet(file, &columns(), rows().into_iter()).unwrap(), 3);
        assert_eq!(read(&path).unwrap(), rows());
        // More than a batch.
        let many = (0..BATCH_ROWS + 7).map(|number| json!({"share_uj": number}));
        let file = File::create(&path).unwrap();
        let column = [Column::new("share_uj", ColumnKind::Count)];
        assert_eq!(write_parquet(file, &column, many.clone()).unwrap(), BATCH_ROWS + 7);
        assert!(read(&path).unwrap().into_iter().eq(many));
    }

    #[test]
    fn rows_that_take_no_space_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let batch = |rows| {
            let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(rows));
            RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options).unwrap()
        };
        for rows in [1_usize << 40, 3] {
            let mut writer = StreamWriter::try_new(File::create(&path).unwrap(), &Schema::empty()).unwrap();
            writer.write(&batch(rows)).unwrap();
            writer.finish().unwrap();
            let mut count = 0_usize;
            let read = for_each_value(&path, |_| count += 1);
            assert_eq!((read.is_ok(), count), if rows == 3 { (true, 3) } else { (false, 0) });
        }
        let mut writer =
            ArrowWriter::try_new(File::create(&path).unwrap(), Arc::new(Schema::empty()), None).unwrap();
        writer.write(&batch(3)).unwrap();
        writer.close().unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no columns"));
    }

    #[test]
    fn garbage_and_cut_files_are_errors_and_no_panics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let mut parquet = Vec::new();
        write_parquet(&mut parquet, &columns(), rows().into_iter()).unwrap();
        let mut arrow = Vec::new();
        write_arrow_stream(&mut arrow, &columns(), rows().into_iter()).unwrap();
        let cut = [&parquet[..parquet.len() / 2], &parquet[..5], &arrow[..arrow.len() / 2]];
        for bytes in [&b"garbage, and more of it"[..], b"", b"ARROW1\0\0abc", b"PAR1\x15\x04PAR1"]
            .into_iter()
            .chain(cut)
        {
            std::fs::write(&path, bytes).unwrap();
            assert!(read(&path).is_err(), "{bytes:?}");
        }
    }
}
