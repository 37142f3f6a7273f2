//! Parquet: a column for each field and attribute, and the shares of the domains as a list of groups.
//!
//! All columns are optional. Integers that differ from row to row are stored as differences, the IDs of spans as one text with
//! their lengths, other columns by a dictionary, and all are compressed with Zstandard: these encodings have been in all readers
//! for years. The file format's own writer takes the values of a column with their definition levels (how much of the path
//! exists) and repetition levels (0 begins a list, 1 continues it).
//!
//! Columns are encoded in memory while accounts are read. Invariant: a file has one row group, and nothing of it is on disk
//! before [`ColumnFile::finish`].

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use parquet::basic::{Compression, ConvertedType, Encoding, Repetition, Type as PhysicalType, ZstdLevel};
use parquet::column::page::{CompressedPage, PageWriteSpec, PageWriter};
use parquet::column::writer::{ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite};
use parquet::schema::types::{ColumnPath, SchemaDescriptor, Type, TypePtr};
use wattspan_client::account::Account;

use super::columns::{ACCOUNT_COLUMNS, Cell, Column, ColumnType, SHARE_COLUMNS, attribute};

/// Whether this build writes Parquet.
pub const IS_SUPPORTED: bool = true;

/// The columns that other columns give exactly: `closed_unix_ns - opened_unix_ns`, and `share_uj` divided by it. They take a
/// tenth of a file.
const COMPUTED_COLUMNS: [&str; 2] = ["duration_ns", "mean_power_mw"];

/// The rows of a page, at most. A page has a head of some hundred bytes.
const ROWS_PER_PAGE: usize = 65_536;

/// Values that are not encoded yet.
#[derive(Debug)]
enum Values {
    Integer(Vec<i64>),
    Number(Vec<f64>),
    Flag(Vec<bool>),
    /// The bytes of all texts, and the end of each.
    Text(Vec<u8>, Vec<usize>),
}

/// The values of a column with their levels.
#[derive(Debug)]
struct ColumnValues {
    values: Values,
    definitions: Vec<i16>,
    /// Empty for a column outside a list.
    repetitions: Vec<i16>,
}

impl ColumnValues {
    fn new(kind: ColumnType) -> Self {
        let values = match kind {
            ColumnType::Integer => Values::Integer(Vec::new()),
            ColumnType::Number => Values::Number(Vec::new()),
            ColumnType::Flag => Values::Flag(Vec::new()),
            ColumnType::Text => Values::Text(Vec::new(), Vec::new()),
        };
        Self { values, definitions: Vec::new(), repetitions: Vec::new() }
    }

    /// Adds a cell with the definition level of its value; an absent cell has one level less. Returns the bytes of a text.
    fn push(&mut self, cell: Cell<'_>, definition: i16) -> usize {
        match (&mut self.values, cell) {
            (Values::Integer(all), Cell::Integer(value)) => all.push(value.cast_signed()),
            (Values::Number(all), Cell::Number(value)) => all.push(value),
            (Values::Flag(all), Cell::Flag(value)) => all.push(value),
            (Values::Text(all, ends), Cell::Text(value)) => {
                all.extend_from_slice(value.as_bytes());
                ends.push(all.len());
                self.definitions.push(definition);
                return value.len();
            }
            _ => {
                self.definitions.push(definition - 1);
                return 0;
            }
        }
        self.definitions.push(definition);
        0
    }

    fn encode(self, writer: &mut ColumnWriter<'_>) -> Result<(), ParquetError> {
        let definitions = Some(&self.definitions[..]);
        let repetitions = Some(&self.repetitions[..]).filter(|levels| !levels.is_empty());
        let written = match (self.values, writer) {
            (Values::Integer(all), ColumnWriter::Int64ColumnWriter(writer)) => {
                writer.write_batch(&all, definitions, repetitions)
            }
            (Values::Number(all), ColumnWriter::DoubleColumnWriter(writer)) => {
                writer.write_batch(&all, definitions, repetitions)
            }
            (Values::Flag(all), ColumnWriter::BoolColumnWriter(writer)) => {
                writer.write_batch(&all, definitions, repetitions)
            }
            (Values::Text(all, ends), ColumnWriter::ByteArrayColumnWriter(writer)) => {
                let all = Bytes::from(all);
                let starts = [0].into_iter().chain(ends.iter().copied());
                let texts: Vec<ByteArray> =
                    starts.zip(&ends).map(|(start, end)| ByteArray::from(all.slice(start..*end))).collect();
                writer.write_batch(&texts, definitions, repetitions)
            }
            _ => Err(ParquetError::General("a column has another type".into())),
        };
        written.map(drop)
    }
}

/// Accounts as columns that are not encoded yet.
#[derive(Debug)]
pub struct ColumnRows {
    of_accounts: Vec<Column<Account>>,
    columns: Vec<ColumnValues>,
    accounts: usize,
}

impl ColumnRows {
    pub fn new(attributes: &[String]) -> Self {
        let of_accounts: Vec<_> = account_columns().collect();
        let kinds = of_accounts.iter().map(|(_, kind, _)| *kind);
        let kinds = kinds.chain(attributes.iter().map(|_| ColumnType::Text));
        let kinds = kinds.chain(SHARE_COLUMNS.iter().map(|(_, kind, _)| *kind));
        let columns = kinds.map(ColumnValues::new).collect();
        Self { of_accounts, columns, accounts: 0 }
    }

    /// Adds an account; returns the bytes of its texts.
    pub fn push(&mut self, account: &Account, attributes: &[String]) -> usize {
        let (mut columns, mut bytes) = (self.columns.iter_mut(), 0);
        for ((_, _, value), column) in self.of_accounts.iter().zip(&mut columns) {
            bytes += column.push(value(account), 1);
        }
        for (key, column) in attributes.iter().zip(&mut columns) {
            bytes += column.push(attribute(account, key).into(), 1);
        }
        for ((_, _, value), column) in SHARE_COLUMNS.iter().zip(columns) {
            if account.domains.is_empty() {
                // An empty list has one absent cell of level 0.
                column.push(Cell::Absent, 1);
                column.repetitions.push(0);
            }
            for (at, share) in account.domains.iter().enumerate() {
                bytes += column.push(value(share), 2);
                column.repetitions.push(i16::from(at > 0));
            }
        }
        self.accounts += 1;
        bytes
    }

    pub fn len(&self) -> usize {
        self.accounts
    }
}

/// The encoded pages of a column, which its writer and its file share.
#[derive(Clone)]
struct ColumnPages(Arc<Mutex<TrackedWrite<Vec<u8>>>>);

impl ColumnPages {
    fn lock(&self) -> MutexGuard<'_, TrackedWrite<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageWriter for ColumnPages {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec, ParquetError> {
        SerializedPageWriter::new(&mut self.lock()).write_page(page)
    }

    fn close(&mut self) -> Result<(), ParquetError> {
        Ok(())
    }
}

/// A file that grows by accounts, in memory.
pub struct ColumnFile {
    schema: TypePtr,
    properties: WriterPropertiesPtr,
    columns: Vec<(ColumnWriter<'static>, ColumnPages)>,
}

impl ColumnFile {
    pub fn new(attributes: &[String]) -> io::Result<Self> {
        let (schema, properties) = (schema(attributes).map_err(io::Error::other)?, Arc::new(properties()));
        let descriptor = SchemaDescriptor::new(Arc::clone(&schema));
        let writer = |column: &Arc<_>| {
            let pages = ColumnPages(Arc::new(Mutex::new(TrackedWrite::new(Vec::new()))));
            let to = Box::new(pages.clone());
            (get_column_writer(Arc::clone(column), Arc::clone(&properties), to), pages)
        };
        let columns = descriptor.columns().iter().map(writer).collect();
        Ok(Self { schema, properties, columns })
    }

    /// Encodes accounts.
    pub fn append(&mut self, rows: ColumnRows) -> io::Result<()> {
        for ((writer, _), values) in self.columns.iter_mut().zip(rows.columns) {
            values.encode(writer).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Writes the file.
    pub fn finish(self, file: &File) -> io::Result<()> {
        self.write_to(file).map_err(io::Error::other)
    }

    fn write_to(self, file: &File) -> Result<(), ParquetError> {
        let mut writer = SerializedFileWriter::new(file, self.schema, self.properties)?;
        let mut group = writer.next_row_group()?;
        for (column, pages) in self.columns {
            let closed = column.close()?;
            let pages = std::mem::replace(&mut *pages.lock(), TrackedWrite::new(Vec::new()));
            group.append_column(&Bytes::from(pages.into_inner()?), closed)?;
        }
        group.close()?;
        writer.close().map(drop)
    }
}

/// The columns of an account in a file.
fn account_columns() -> impl Iterator<Item = Column<Account>> {
    ACCOUNT_COLUMNS.iter().filter(|(name, ..)| !COMPUTED_COLUMNS.contains(name)).copied()
}

/// Writes rows without attributes.
pub fn write_rows<T>(file: &File, columns: &[Column<T>], rows: &[T]) -> io::Result<()> {
    let write = || {
        let fields = columns.iter().map(|(name, kind, _)| leaf(name, *kind)).collect::<Result<_, _>>()?;
        let schema = Type::group_type_builder("row").with_fields(fields).build()?;
        let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::default())?;
        let mut group = writer.next_row_group()?;
        for (_, kind, value) in columns {
            let mut values = ColumnValues::new(*kind);
            for row in rows {
                values.push(value(row), 1);
            }
            let missing = || ParquetError::General("the schema has fewer columns".into());
            let mut column = group.next_column()?.ok_or_else(missing)?;
            values.encode(column.untyped())?;
            column.close()?;
        }
        group.close()?;
        writer.close().map(drop)
    };
    write().map_err(|error: ParquetError| io::Error::other(error))
}

/// The integers with few values, for which a dictionary is shorter than differences.
const REPEATED_INTEGERS: [&str; 4] = ["uid", "moved_ns", "peak_concurrency", "unknown_ns"];

fn properties() -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_data_page_row_count_limit(ROWS_PER_PAGE);
    let varies = |name: &str, kind| kind == ColumnType::Integer && !REPEATED_INTEGERS.contains(&name);
    let of_accounts = account_columns().filter(|(name, kind, _)| varies(name, *kind));
    let of_shares = SHARE_COLUMNS.iter().filter(|(name, kind, _)| varies(name, *kind));
    let paths = of_accounts.map(|(name, ..)| vec![name.to_owned()]);
    for path in paths.chain(of_shares.map(|(name, ..)| share_path(name))) {
        let path = ColumnPath::new(path);
        builder = builder.set_column_dictionary_enabled(path.clone(), false);
        builder = builder.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
    }
    // Each span has its own ID, whose least and greatest value say nothing.
    let span = ColumnPath::new(vec!["span".into()]);
    builder
        .set_column_dictionary_enabled(span.clone(), false)
        .set_column_encoding(span.clone(), Encoding::DELTA_LENGTH_BYTE_ARRAY)
        .set_column_statistics_enabled(span, EnabledStatistics::None)
        .build()
}

/// The path of a column of the shares, as the schema names it.
fn share_path(name: &str) -> Vec<String> {
    ["domains", "list", "element", name].map(str::to_owned).to_vec()
}

fn schema(attributes: &[String]) -> Result<TypePtr, ParquetError> {
    let mut fields =
        account_columns().map(|(name, kind, _)| leaf(name, kind)).collect::<Result<Vec<_>, _>>()?;
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
    use wattspan_client::account::Share;

    use super::*;

    /// A file with these accounts, `per_piece` of them in each piece.
    fn write(accounts: &[Account], per_piece: usize, attributes: &[String]) -> File {
        let mut written = ColumnFile::new(attributes).unwrap();
        for piece in accounts.chunks(per_piece) {
            let mut rows = ColumnRows::new(attributes);
            for account in piece {
                rows.push(account, attributes);
            }
            assert_eq!(rows.len(), piece.len());
            written.append(rows).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        written.finish(&file).unwrap();
        file
    }

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
        let file = write(&[full.clone(), bare, full], 2, &attributes);
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
                ("closed_unix_ns", "1763000000125456789"),
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
    fn an_account_of_a_request_takes_few_bytes_in_a_long_file() {
        let accounts = requests(65_536);
        let attributes = super::super::DEFAULT_ATTRIBUTES.map(str::to_owned);
        let bytes = write(&accounts, 4096, &attributes).metadata().unwrap().len();
        let per_account = bytes as f64 / accounts.len() as f64;
        // 16.1 for the random ID of the span, and the rest for values that are random here: 57.6 without any loss by encodings.
        assert!(per_account <= 61.5, "{per_account} bytes per account");
    }
}
