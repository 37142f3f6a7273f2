//! Parquet: a column for each field and attribute, and the shares of the domains as a list of groups.
//!
//! All columns are optional, and compressed with Snappy. The file format's own writer takes the values of a column with their
//! definition levels (how much of the path exists) and repetition levels (0 begins a list, 1 continues it).

use std::fs::File;
use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, Repetition, Type as PhysicalType};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};
use wattspan_client::account::{Account, Share};

use super::columns::{ACCOUNT_COLUMNS, Cell, ColumnType, SHARE_COLUMNS, attribute};

/// Whether this build writes Parquet.
pub const IS_SUPPORTED: bool = true;

type RowGroup<'a, 'b> = SerializedRowGroupWriter<'a, &'b File>;

pub fn write(file: &File, accounts: &[&Account], attributes: &[String]) -> io::Result<()> {
    write_file(file, accounts, attributes).map_err(io::Error::other)
}

fn write_file(file: &File, accounts: &[&Account], attributes: &[String]) -> Result<(), ParquetError> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(file, schema(attributes)?, Arc::new(properties))?;
    let mut rows = writer.next_row_group()?;
    for (_, kind, value) in ACCOUNT_COLUMNS {
        write_column(&mut rows, *kind, accounts.iter().map(|account| (value(account), 1, None)))?;
    }
    for key in attributes {
        let cells = accounts.iter().map(|account| (Cell::from(attribute(account, key)), 1, None));
        write_column(&mut rows, ColumnType::Text, cells)?;
    }
    for (_, kind, value) in SHARE_COLUMNS {
        let cells = accounts.iter().flat_map(|account| list_cells(&account.domains, *value));
        write_column(&mut rows, *kind, cells)?;
    }
    rows.close()?;
    writer.close()?;
    Ok(())
}

/// A cell, the definition level of its value, and its repetition level in a list. An absent cell has one level less.
type LevelledCell = (Cell, i16, Option<i16>);

/// The cells of a list; an empty list has one absent cell of level 0.
fn list_cells(shares: &[Share], value: fn(&Share) -> Cell) -> Vec<LevelledCell> {
    if shares.is_empty() {
        return vec![(Cell::Absent, 1, Some(0))];
    }
    let repetition = |at: usize| Some(i16::from(at > 0));
    shares.iter().enumerate().map(|(at, share)| (value(share), 2, repetition(at))).collect()
}

fn write_column(
    rows: &mut RowGroup<'_, '_>,
    kind: ColumnType,
    cells: impl Iterator<Item = LevelledCell>,
) -> Result<(), ParquetError> {
    match kind {
        ColumnType::Integer => write_values::<Int64Type>(rows, cells, |cell| match cell {
            Cell::Integer(value) => Some(value.cast_signed()),
            _ => None,
        }),
        ColumnType::Number => write_values::<DoubleType>(rows, cells, |cell| match cell {
            Cell::Number(value) => Some(value),
            _ => None,
        }),
        ColumnType::Flag => write_values::<BoolType>(rows, cells, |cell| match cell {
            Cell::Flag(value) => Some(value),
            _ => None,
        }),
        ColumnType::Text => write_values::<ByteArrayType>(rows, cells, |cell| match cell {
            Cell::Text(value) => Some(ByteArray::from(value.into_bytes())),
            _ => None,
        }),
    }
}

fn write_values<T: DataType>(
    rows: &mut RowGroup<'_, '_>,
    cells: impl Iterator<Item = LevelledCell>,
    convert: impl Fn(Cell) -> Option<T::T>,
) -> Result<(), ParquetError> {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for (cell, definition, repetition) in cells {
        let value = convert(cell);
        definitions.push(definition - i16::from(value.is_none()));
        values.extend(value);
        repetitions.extend(repetition);
    }
    let missing = || ParquetError::General("the schema has fewer columns".into());
    let mut column = rows.next_column()?.ok_or_else(missing)?;
    let repetitions = Some(&repetitions[..]).filter(|levels| !levels.is_empty());
    column.typed::<T>().write_batch(&values, Some(&definitions), repetitions)?;
    column.close()
}

fn schema(attributes: &[String]) -> Result<TypePtr, ParquetError> {
    let mut fields =
        ACCOUNT_COLUMNS.iter().map(|(name, kind, _)| leaf(name, *kind)).collect::<Result<Vec<_>, _>>()?;
    for key in attributes {
        fields.push(leaf(key, ColumnType::Text)?);
    }
    let shares =
        SHARE_COLUMNS.iter().map(|(name, kind, _)| leaf(name, *kind)).collect::<Result<Vec<_>, _>>()?;
    let group = |name: &str, repetition, converted, fields| {
        let builder = Type::group_type_builder(name).with_repetition(repetition);
        builder.with_converted_type(converted).with_fields(fields).build().map(Arc::new)
    };
    let element = group("element", Repetition::REQUIRED, ConvertedType::NONE, shares)?;
    let list = group("list", Repetition::REPEATED, ConvertedType::NONE, vec![element])?;
    fields.push(group("domains", Repetition::REQUIRED, ConvertedType::LIST, vec![list])?);
    Type::group_type_builder("account").with_fields(fields).build().map(Arc::new)
}

fn leaf(name: &str, kind: ColumnType) -> Result<TypePtr, ParquetError> {
    let (physical, converted) = match kind {
        ColumnType::Integer => (PhysicalType::INT64, ConvertedType::NONE),
        ColumnType::Number => (PhysicalType::DOUBLE, ConvertedType::NONE),
        ColumnType::Flag => (PhysicalType::BOOLEAN, ConvertedType::NONE),
        ColumnType::Text => (PhysicalType::BYTE_ARRAY, ConvertedType::UTF8),
    };
    let builder = Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
    builder.with_converted_type(converted).build().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Row;

    use super::*;

    /// The text form of a column's value in a row.
    fn value(row: &Row, column: &str) -> String {
        let found = row.get_column_iter().find(|(name, _)| *name == column);
        found.map(|(_, field)| field.to_string()).unwrap_or_else(|| panic!("no column {column}"))
    }

    #[test]
    fn a_file_holds_what_the_accounts_hold() {
        let full: Account = serde_json::from_str(include_str!("test_account.json")).unwrap();
        let bare = Account { number: Some(8), domains: Vec::new(), share_uj: None, ..full.clone() };
        let attributes = ["gen_ai.request.model".to_owned(), "missing".to_owned()];
        let file = tempfile::tempfile().unwrap();
        write(&file, &[&full, &bare, &full], &attributes).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let rows: Vec<Row> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 3);
        for row in [&rows[0], &rows[2]] {
            let expected = [
                ("number", "7"),
                ("share_uj", "3200000"),
                ("idle_uj", "null"),
                ("weight", "2.5"),
                ("simulated", "false"),
                ("duration_ns", "2000000"),
                ("gen_ai.request.model", "\"llama\""),
                ("missing", "null"),
            ];
            for (column, text) in expected {
                assert_eq!(value(row, column), text, "{column}");
            }
            let domains = value(row, "domains");
            let [first, second] = ["package-0", "gpu-0"].map(|name| domains.find(name).expect(name));
            assert!(first < second && domains[first..second].contains("share_uj: 3200000"), "{domains}");
            assert!(domains[second..].contains("share_uj: null"), "{domains}");
            assert!(domains[second..].contains("unknown_ns: 9"), "{domains}");
        }
        assert_eq!((value(&rows[1], "number"), value(&rows[1], "share_uj")), ("8".into(), "null".into()));
        assert_eq!(value(&rows[1], "domains"), "[]");
    }
}
