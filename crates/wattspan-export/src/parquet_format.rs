//! Parquet: a column for each field and attribute, and the shares of the domains as a list of groups.
//!
//! All columns are optional. Integers that differ from row to row are stored as differences, other columns by a dictionary,
//! and all are compressed with Zstandard: these encodings have been in all readers for years. The file format's own writer takes the values of a column with their
//! definition levels (how much of the path exists) and repetition levels (0 begins a list, 1 continues it).

use std::fs::File;
use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, Encoding, Repetition, Type as PhysicalType, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{ColumnPath, Type, TypePtr};
use wattspan_client::account::{Account, Share};

use super::columns::{ACCOUNT_COLUMNS, Cell, Column, ColumnType, SHARE_COLUMNS, attribute};

/// Whether this build writes Parquet.
pub const IS_SUPPORTED: bool = true;

type RowGroup<'a, 'b> = SerializedRowGroupWriter<'a, &'b File>;

pub fn write(file: &File, accounts: &[&Account], attributes: &[String]) -> io::Result<()> {
    write_file(file, accounts, attributes).map_err(io::Error::other)
}

/// Writes rows without attributes.
pub fn write_rows<T>(file: &File, columns: &[Column<T>], rows: &[T]) -> io::Result<()> {
    let write = || {
        let fields = columns.iter().map(|(name, kind, _)| leaf(name, *kind)).collect::<Result<_, _>>()?;
        let schema = Type::group_type_builder("row").with_fields(fields).build()?;
        let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::default())?;
        let mut group = writer.next_row_group()?;
        for (_, kind, value) in columns {
            write_column(&mut group, *kind, rows.iter().map(|row| (value(row), 1, None)))?;
        }
        group.close()?;
        writer.close().map(drop)
    };
    write().map_err(|error: ParquetError| io::Error::other(error))
}

fn write_file(file: &File, accounts: &[&Account], attributes: &[String]) -> Result<(), ParquetError> {
    let mut writer = SerializedFileWriter::new(file, schema(attributes)?, Arc::new(properties()))?;
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

/// The integers with few values, for which a dictionary is shorter than differences.
const REPEATED_INTEGERS: [&str; 4] = ["uid", "moved_ns", "peak_concurrency", "unknown_ns"];

fn properties() -> WriterProperties {
    let mut builder = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default()));
    let varies = |name: &str, kind| kind == ColumnType::Integer && !REPEATED_INTEGERS.contains(&name);
    let of_accounts = ACCOUNT_COLUMNS.iter().filter(|(name, kind, _)| varies(name, *kind));
    let of_shares = SHARE_COLUMNS.iter().filter(|(name, kind, _)| varies(name, *kind));
    let paths = of_accounts.map(|(name, ..)| vec![(*name).to_owned()]);
    for path in paths.chain(of_shares.map(|(name, ..)| share_path(name))) {
        let path = ColumnPath::new(path);
        builder = builder.set_column_dictionary_enabled(path.clone(), false);
        builder = builder.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
    }
    // Each span has its own ID.
    builder.set_column_dictionary_enabled(ColumnPath::new(vec!["span".into()]), false).build()
}

/// The path of a column of the shares, as the schema names it.
fn share_path(name: &str) -> Vec<String> {
    ["domains", "list", "element", name].map(str::to_owned).to_vec()
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

    /// Pseudo-random numbers below a limit (splitmix64).
    fn random() -> impl FnMut(u64) -> u64 {
        let mut state = 1_u64;
        move |below| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % below
        }
    }

    /// Accounts in the order in which they settle: 100 requests a second, 0.2 to 8 s long, of 2 to 18 J.
    fn requests(count: u64) -> Vec<Account> {
        let template: Account = serde_json::from_str(include_str!("test_account.json")).unwrap();
        let mut next = random();
        let request = |number: u64| {
            let closed_ns = number * 10_000_000 + next(10_000_000);
            let duration_ns = 200_000_000 + next(7_800_000_000);
            let mut share = |domain: &str, at_least_uj: u64, spread_uj: u64| {
                let share_uj = at_least_uj + next(spread_uj);
                Share {
                    domain: domain.into(),
                    share_uj: Some(share_uj),
                    error_uj: Some(20_000 + next(30_000)),
                    window_uj: Some(8 * share_uj + next(share_uj)),
                    idle_uj: Some(share_uj / 4 + next(share_uj / 8)),
                    ..template.domains[0].clone()
                }
            };
            let domains = vec![share("package-0", 500_000, 4_000_000), share("gpu-0", 1_500_000, 12_000_000)];
            let sum = |value: fn(&Share) -> Option<u64>| domains.iter().map(value).sum::<Option<u64>>();
            let share_uj = sum(|share| share.share_uj);
            let tokens = [20 + next(2000), 10 + next(500)].map(|count| count.to_string());
            let attributes = [
                ("gen_ai.request.model", "meta-llama/Llama-3.1-8B-Instruct"),
                ("gen_ai.response.model", "meta-llama/Llama-3.1-8B-Instruct"),
                ("gen_ai.operation.name", "chat"),
                ("gen_ai.usage.input_tokens", tokens[0].as_str()),
                ("gen_ai.usage.output_tokens", tokens[1].as_str()),
            ];
            Account {
                number: Some(number),
                span: format!("{:016x}{:016x}", next(u64::MAX), next(u64::MAX)),
                name: "POST /v1/chat/completions".into(),
                opened_ns: 100_000_000_000 + closed_ns - duration_ns,
                closed_ns: Some(100_000_000_000 + closed_ns),
                opened_unix_ns: template.opened_unix_ns + closed_ns - duration_ns,
                attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
                share_uj,
                error_uj: sum(|share| share.error_uj),
                window_uj: sum(|share| share.window_uj),
                idle_uj: sum(|share| share.idle_uj),
                mean_power_mw: share_uj.map(|share_uj| share_uj * 1_000_000 / duration_ns),
                weight: 1.0,
                domains,
                ..template.clone()
            }
        };
        (1000..1000 + count).map(request).collect()
    }

    #[test]
    fn an_account_of_a_request_takes_few_bytes_in_a_file_of_a_full_range() {
        let accounts = requests(32_768);
        let attributes = super::super::DEFAULT_ATTRIBUTES.map(str::to_owned);
        let file = tempfile::tempfile().unwrap();
        write(&file, &accounts.iter().collect::<Vec<_>>(), &attributes).unwrap();
        let bytes = file.metadata().unwrap().len();
        let per_account = bytes as f64 / accounts.len() as f64;
        // 69.5: 17.4 for the random ID of the span, and the rest for values that are random here.
        assert!(per_account <= 70.0, "{per_account} bytes per account");
    }
}
