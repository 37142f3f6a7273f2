//! The database: its schema, and what is written into it.
//!
//! Owns the connection and every number that orders the rows. An account's id grows by one for each, its `running_s` (see
//! [`super::clock_reading`]) and its `kept_s` (wall time when it was written, seconds since 1970) never fall. Each row has a
//! checksum over all that is stored of it, its layout's bytes included, and names its user's account before it. Invariant:
//! one call of [`Database::write`] is one transaction: all of it is kept, or nothing. After an error the value is of no more
//! use: what it has in memory may be ahead of the file.
//!
//! The connection is alone with the file (`locking_mode = exclusive`), so that SQLite needs no shared memory beside it,
//! which on a full disk would end the process with SIGBUS. The write-ahead log makes a commit one append without a wait
//! for the disk: it survives the end of the process at any moment.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Error, OpenFlags, OptionalExtension, Row, Transaction, params};

use super::batch::{Batch, WriteOp};
use super::checksum::Checksum;
use super::clock_reading::ClockReading;
use super::gap::Gap;
use super::high_water_mark::{HighWaterMark, MarkContents, MarkFile};
use super::migration;
use super::name_index::{self, HEADS, NameEntry, OpenSegment, segment_of, segment_start};
use super::retention::Retention;
use super::settings::{StoreSettings, SyncMode};

/// The schema's version; a database of a later one is left alone.
const SCHEMA_VERSION: i64 = 2;

/// So many layouts are kept once each; further ones (clients may choose domains in any combination) go with their
/// accounts.
const MAX_LAYOUTS: usize = 256;

pub(super) const CREATE_LAYOUT_TABLE: &str =
    "CREATE TABLE layout (id INTEGER PRIMARY KEY, domains BLOB NOT NULL UNIQUE);";

/// All but the layouts, whose table is as it was in version 1.
pub(super) const CREATE_TABLES: &str = "
    CREATE TABLE account (
        id INTEGER PRIMARY KEY, uid INTEGER NOT NULL, kept_s INTEGER NOT NULL, running_s INTEGER NOT NULL,
        previous INTEGER NOT NULL, layout, span NOT NULL, name TEXT NOT NULL, figures BLOB NOT NULL,
        crc INTEGER NOT NULL
    );
    CREATE TABLE block (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
    CREATE TABLE gap (
        first INTEGER PRIMARY KEY, last INTEGER NOT NULL, since_s INTEGER NOT NULL, until_s INTEGER NOT NULL,
        running_s INTEGER NOT NULL
    );
    CREATE TABLE retention (
        id INTEGER PRIMARY KEY, first INTEGER NOT NULL, day_began_s INTEGER NOT NULL, day_end_s INTEGER NOT NULL,
        crc INTEGER NOT NULL
    );
    CREATE TABLE journal (
        key INTEGER PRIMARY KEY, uid INTEGER NOT NULL, layout, span NOT NULL, name TEXT NOT NULL,
        figures BLOB NOT NULL, crc INTEGER NOT NULL
    );
    PRAGMA user_version = 2;
";

/// The columns of [`AccountRow`], in the order in which they are read.
pub(super) const ACCOUNT_COLUMNS: &str =
    "id, uid, kept_s, running_s, previous, layout, span, name, figures, crc FROM account";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    #[error(
        "it was written by a newer wattspan (schema {0}; this one knows {SCHEMA_VERSION}); install that one again, or \
             move the file away"
    )]
    NewerSchema(i64),
    #[error("its tables are not those that were made")]
    SchemaMismatch,
    #[error("the mark beside it cannot be read or written: {0}")]
    MarkFile(#[from] io::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl DatabaseError {
    /// Whether the file is no sound database, so that only another one helps.
    pub fn is_corruption(&self) -> bool {
        // Our rows break no constraint, unless what is there already is not what we wrote.
        use rusqlite::ErrorCode::{ConstraintViolation, DatabaseCorrupt, NotADatabase};
        match self {
            DatabaseError::SchemaMismatch => true,
            DatabaseError::Sqlite(Error::InvalidColumnType(..) | Error::IntegralValueOutOfRange(..)) => true,
            DatabaseError::Sqlite(cause) => matches!(
                cause.sqlite_error_code(),
                Some(ConstraintViolation | DatabaseCorrupt | NotADatabase)
            ),
            _ => false,
        }
    }
}

/// What an account's row has beside its numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct AccountColumns<'a> {
    pub uid: u32,
    pub layout: &'a [u8],
    /// As it is kept: see [`SpanName`].
    pub span: ValueRef<'a>,
    pub name: &'a str,
    pub figures: &'a [u8],
}

impl AccountColumns<'_> {
    fn checksum(&self, integers: &[i64]) -> i32 {
        let sum = Checksum::default().numbers(integers).numbers(&[i64::from(self.uid)]);
        sum.bytes(self.layout).value(self.span).bytes(self.name.as_bytes()).bytes(self.figures).finish()
    }
}

/// A sound row.
#[derive(Debug, Clone, Copy)]
pub(super) struct AccountRow<'a> {
    pub id: i64,
    pub kept_s: i64,
    pub running_s: i64,
    /// Its user's account before it; 0: there was none. Where it was not known, the number before its own.
    pub previous: i64,
    pub columns: AccountColumns<'a>,
}

impl<'a> AccountRow<'a> {
    /// `None` where the row is not what was written.
    pub fn read(row: &'a Row<'_>, layouts: &'a LayoutTable) -> Option<Self> {
        let number = |at| row.get_ref(at).ok()?.as_i64().ok();
        let (id, kept_s, running_s, previous) = (number(0)?, number(2)?, number(3)?, number(4)?);
        let columns = AccountColumns {
            uid: u32::try_from(number(1)?).ok()?,
            layout: layouts.resolve(row.get_ref(5).ok()?)?,
            span: row.get_ref(6).ok()?,
            name: row.get_ref(7).ok()?.as_str().ok()?,
            figures: row.get_ref(8).ok()?.as_blob().ok()?,
        };
        let sound = number(9)? == i64::from(columns.checksum(&[id, kept_s, running_s, previous]));
        sound.then_some(Self { id, kept_s, running_s, previous, columns })
    }
}

/// The layouts that are kept once.
#[derive(Debug, Default)]
pub(super) struct LayoutTable {
    ids: HashMap<Arc<[u8]>, i64>,
    by_id: HashMap<i64, Arc<[u8]>>,
}

impl LayoutTable {
    pub fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut all = connection.prepare("SELECT id, domains FROM layout")?;
        let mut rows = all.query([])?;
        let mut layouts = Self::default();
        while let Some(row) = rows.next()? {
            // A damaged one is noticed by the checksums of the accounts that have it.
            if let (Ok(id), Ok(domains)) = (row.get(0), row.get_ref(1)?.as_blob()) {
                layouts.insert(id, Arc::from(domains));
            }
        }
        Ok(layouts)
    }

    fn insert(&mut self, id: i64, domains: Arc<[u8]>) {
        self.by_id.insert(id, Arc::clone(&domains));
        self.ids.insert(domains, id);
    }

    /// A layout as its row has it: its number, or itself.
    pub fn resolve<'a>(&'a self, stored: ValueRef<'a>) -> Option<&'a [u8]> {
        match stored {
            ValueRef::Blob(own) => Some(own),
            ValueRef::Integer(id) => self.by_id.get(&id).map(|bytes| &bytes[..]),
            _ => None,
        }
    }
}

/// Which numbers there are, and the end of the indexes, which is in memory.
#[derive(Debug)]
pub(super) struct AccountIndex {
    /// The lowest that was not deleted, and the highest.
    pub first_id: i64,
    pub last_id: i64,
    /// The names of the segment that is being filled.
    pub open_segment: OpenSegment,
    /// Each user's latest account.
    pub heads: HashMap<u32, i64>,
    /// `heads` has every user: else a search has to find one.
    pub heads_known: bool,
    /// In the order of numbers.
    pub gaps: Vec<Gap>,
}

impl AccountIndex {
    /// The highest gap with a number in `from..=to`.
    pub fn gap_within(&self, from: i64, to: i64) -> Option<&Gap> {
        self.gaps.iter().rev().find(|gap| gap.first <= to && gap.last >= from)
    }

    fn append(&mut self, uid: u32, hash: u32) -> (i64, i64) {
        let id = self.last_id + 1;
        self.last_id = id;
        self.open_segment.push(NameEntry { hash, uid, id });
        let unknown = if self.heads_known { 0 } else { id - 1 };
        (id, self.heads.insert(uid, id).unwrap_or(unknown))
    }
}

/// When rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitTime {
    pub kept_s: i64,
    pub running_s: i64,
}

/// The open database.
pub(super) struct Database {
    pub(super) connection: Connection,
    pub(super) layouts: LayoutTable,
    pub(super) index: AccountIndex,
    pub(super) retention: Retention,
    mark_file: MarkFile,
    last_commit: CommitTime,
    opened_at: ClockReading,
    opened_running_s: i64,
    /// Found when it was opened.
    pub new_gaps: Vec<String>,
}

impl Database {
    /// Opens the file, which may be empty.
    pub fn open(
        file: &Path,
        mark_file: MarkFile,
        settings: &StoreSettings,
        now: ClockReading,
    ) -> Result<Self, DatabaseError> {
        let (mut connection, schema_version) = open_connection(file, settings)?;
        let mark_contents = mark_file.read()?;
        if schema_version < SCHEMA_VERSION {
            create_tables(&mut connection, schema_version, &mark_file, &mark_contents, now)?;
        }
        check_schema(&connection)?;
        let layouts = LayoutTable::load(&connection)?;
        let (index, retention) = (AccountIndex::empty(), Retention::default());
        let last_commit = CommitTime { kept_s: 0, running_s: 0 };
        let (opened_at, opened_running_s, new_gaps) = (now, 0, Vec::new());
        let mut database = Self {
            connection,
            layouts,
            index,
            retention,
            mark_file,
            last_commit,
            opened_at,
            opened_running_s,
            new_gaps,
        };
        database.load_index()?;
        migration::migrate(&mut database, now)?;
        database.detect_lost_tail(&mark_contents, schema_version == SCHEMA_VERSION, now)?;
        database.write_mark()?;
        Ok(database)
    }

    /// How long the store has run.
    pub fn running_s(&self, now: ClockReading) -> i64 {
        self.opened_running_s + (now.boot_s - self.opened_at.boot_s).max(0)
    }

    fn commit_time(&self, now: ClockReading) -> CommitTime {
        let running_s = self.running_s(now).max(self.last_commit.running_s);
        CommitTime { kept_s: now.unix_s.max(self.last_commit.kept_s), running_s }
    }

    /// Notes in the mark how far it has come.
    pub fn write_mark(&self) -> io::Result<()> {
        let CommitTime { kept_s, running_s } = self.last_commit;
        self.mark_file.write(&HighWaterMark { last: self.index.last_id, kept_s, running_s })
    }

    /// Notes its running time, where no account did for a while.
    pub fn save_running_time(&mut self, now: ClockReading) -> io::Result<()> {
        /// How much running time a crash may lose.
        const MAX_LOST_RUNNING_S: i64 = 600;
        let running_s = self.running_s(now);
        if running_s < self.last_commit.running_s + MAX_LOST_RUNNING_S {
            return Ok(());
        }
        self.last_commit.running_s = running_s;
        self.write_mark()
    }

    /// Keeps what is in the journal as interrupted; gives how many those were. Only for a journal of a process that is
    /// gone: a span that is still open would get a second account when it settles.
    pub fn recover(&mut self, now: ClockReading) -> Result<usize, DatabaseError> {
        let commit_time = self.commit_time(now);
        let last_before = self.index.last_id;
        let transaction = self.connection.transaction()?;
        {
            let stored_layouts = LayoutTable::load(&transaction)?;
            let mut writer =
                TransactionWriter::new(&transaction, &mut self.layouts, &mut self.index, commit_time)?;
            let mut open = transaction
                .prepare("SELECT key, uid, layout, span, name, figures, crc FROM journal ORDER BY key")?;
            let mut rows = open.query([])?;
            while let Some(row) = rows.next()? {
                match read_journal_row(row, &stored_layouts) {
                    Some(columns) => writer.insert_account(&columns)?,
                    None => writer.insert_gap_of_one()?,
                }
            }
        }
        transaction.execute("DELETE FROM journal", [])?;
        transaction.commit()?;
        self.last_commit = commit_time;
        self.write_mark()?;
        Ok((self.index.last_id - last_before) as usize)
    }

    /// Keeps batches, in their order, in one transaction.
    pub fn write(&mut self, batches: &[Batch], now: ClockReading) -> Result<(), DatabaseError> {
        let commit_time = self.commit_time(now);
        let transaction = self.connection.transaction()?;
        {
            let mut writer =
                TransactionWriter::new(&transaction, &mut self.layouts, &mut self.index, commit_time)?;
            for (batch, op) in batches.iter().flat_map(|batch| batch.ops.iter().map(move |op| (batch, op))) {
                match op {
                    WriteOp::InsertAccount { row, journal_key } => {
                        if let Some(key) = journal_key {
                            writer.delete_journal.execute([*key as i64])?;
                        }
                        let (span, name, figures) = batch.row_fields(row);
                        let stored_name = SpanName::parse(span);
                        let (uid, layout) = (row.uid, &row.layout[..]);
                        writer.insert_account(&AccountColumns {
                            uid,
                            layout,
                            span: stored_name.as_value(),
                            name,
                            figures,
                        })?;
                    }
                    WriteOp::UpsertJournal { key, row } => {
                        let (span, name, figures) = batch.row_fields(row);
                        let stored_name = SpanName::parse(span);
                        let (uid, layout) = (row.uid, &row.layout[..]);
                        writer.upsert_journal(
                            *key as i64,
                            &AccountColumns { uid, layout, span: stored_name.as_value(), name, figures },
                        )?;
                    }
                    WriteOp::DeleteJournal { key } => drop(writer.delete_journal.execute([*key as i64])?),
                }
            }
        }
        transaction.commit()?;
        self.last_commit = commit_time;
        Ok(())
    }

    /// How many bytes the database takes, free pages left out.
    pub fn size_bytes(&self) -> Result<u64, DatabaseError> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok(pages.max(0) as u64 * pragma("page_size")?.max(0) as u64)
    }

    /// What may be lost, if anything.
    pub fn describe_gaps(&self) -> Option<String> {
        let gaps: Vec<String> = self.index.gaps.iter().map(Gap::describe).collect();
        (!gaps.is_empty()).then(|| gaps.join("; "))
    }

    /// One account's row, if it is there and sound, as `convert` makes it.
    pub fn read_row<T>(
        &self,
        statement: &mut rusqlite::Statement<'_>,
        id: i64,
        convert: impl FnOnce(&AccountRow<'_>) -> Option<T>,
    ) -> Result<Option<T>, DatabaseError> {
        let found = (|| {
            let mut rows = statement.query([id])?;
            Ok(rows
                .next()?
                .and_then(|row| AccountRow::read(row, &self.layouts))
                .and_then(|stored| convert(&stored)))
        })();
        match found.map_err(DatabaseError::Sqlite) {
            Err(error) if error.is_corruption() => Ok(None),
            found => found,
        }
    }

    /// Reads what it has in memory: the end of the numbers and of the indexes.
    pub(super) fn load_index(&mut self) -> Result<(), DatabaseError> {
        self.index = AccountIndex::empty();
        let Self { connection, layouts, index, .. } = self;
        let sql = "SELECT first, last, since_s, until_s, running_s FROM gap ORDER BY first";
        index.gaps = connection.prepare(sql)?.query_map([], read_gap)?.collect::<rusqlite::Result<_>>()?;
        let sql = format!("SELECT {ACCOUNT_COLUMNS} ORDER BY id DESC");
        let mut latest = connection.prepare(&sql)?;
        let mut rows = latest.query([])?;
        // Unsound rows are passed over: a damaged number must not become the last one.
        while let Some(row) = rows.next()? {
            if let Some(stored) = AccountRow::read(row, layouts) {
                index.last_id = stored.id;
                self.last_commit = CommitTime { kept_s: stored.kept_s, running_s: stored.running_s };
                break;
            }
        }
        drop(rows);
        drop(latest);
        let lowest =
            connection.query_row("SELECT min(id) FROM account", [], |row| row.get::<_, Option<i64>>(0))?;
        self.retention = Retention::load(connection)?;
        let first_unknown = self.retention.first == 0;
        let oldest = lowest.unwrap_or(1).clamp(1, index.last_id + 1);
        if first_unknown {
            // Which accounts were deleted is not known: the one before the oldest stands for those that may be lost.
            self.retention.first = (oldest - 1).max(1);
        }
        index.first_id = self.retention.first;
        index.last_id =
            index.last_id.max(index.gaps.last().map_or(0, |gap| gap.last)).max(index.first_id - 1);
        let lost_s = index.gaps.iter().map(|gap| gap.running_s).max().unwrap_or(0);
        self.last_commit.running_s = self.last_commit.running_s.max(lost_s);
        self.load_open_segment()?;
        self.load_heads()?;
        if first_unknown && oldest > 1 {
            let (first, CommitTime { kept_s, running_s }) = (oldest - 1, self.last_commit);
            self.add_gap(Gap { first, last: first, since_s: 0, until_s: kept_s, running_s })?;
        }
        if first_unknown {
            self.retention.save(&self.connection)?;
        }
        Ok(())
    }

    /// Reads the segment that is being filled; rows that are not there are noted as gaps.
    fn load_open_segment(&mut self) -> Result<(), DatabaseError> {
        let Self { connection, layouts, index, .. } = self;
        let from = index.first_id.max(segment_start(segment_of(index.last_id + 1)));
        let mut missing = Vec::new();
        let mut statement = connection
            .prepare(&format!("SELECT {ACCOUNT_COLUMNS} WHERE id BETWEEN ?1 AND ?2 ORDER BY id"))?;
        let mut rows = statement.query([from, index.last_id])?;
        let (mut next, mut since_s) = (from, 0);
        while let Some(row) = rows.next()? {
            let Some(stored) = AccountRow::read(row, layouts) else { continue };
            let AccountRow { id, kept_s, running_s, columns, .. } = stored;
            if id > next {
                missing.push(Gap { first: next, last: id - 1, since_s, until_s: kept_s, running_s });
            }
            (next, since_s) = (id + 1, kept_s);
            let hash = name_index::name_hash(name_bytes(columns.span));
            index.open_segment.push(NameEntry { hash, uid: columns.uid, id });
            index.heads.insert(columns.uid, id);
        }
        drop(rows);
        drop(statement);
        if next <= index.last_id {
            // A damaged tree may end early from below and have later rows from above.
            let CommitTime { kept_s: until_s, running_s } = self.last_commit;
            missing.push(Gap { first: next, last: index.last_id, since_s, until_s, running_s });
        }
        missing
            .retain(|gap| !index.gaps.iter().any(|known| known.first <= gap.first && known.last >= gap.last));
        for gap in missing {
            self.add_gap(gap)?;
        }
        Ok(())
    }

    /// Adds the latest accounts of users that have none in the segment that is being filled.
    fn load_heads(&mut self) -> Result<(), DatabaseError> {
        let index = &mut self.index;
        index.heads_known = false;
        let mut statement = self.connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
        let mut segment = segment_of(index.last_id + 1) - 1;
        while segment >= segment_of(index.first_id) {
            let key = name_index::block_key(segment, HEADS);
            let bytes = statement.query_row([key], |row| row.get::<_, Vec<u8>>(0)).optional()?;
            if let Some(bytes) = &bytes {
                let Some(block) = name_index::strip_checksum(key, bytes) else { return Ok(()) };
                for (uid, id) in name_index::decode_heads(block) {
                    index.heads.entry(uid).or_insert(id);
                }
                break;
            }
            let (from, to) = (segment_start(segment).max(index.first_id), segment_start(segment + 1) - 1);
            if !index.gaps.iter().any(|gap| gap.first <= from && gap.last >= to) {
                return Ok(());
            }
            segment -= 1;
        }
        index.heads_known = true;
        Ok(())
    }

    /// Compares what is there with what once was committed; what is missing at the end is noted as a gap.
    fn detect_lost_tail(
        &mut self,
        mark_contents: &MarkContents,
        expect_mark: bool,
        now: ClockReading,
    ) -> Result<(), DatabaseError> {
        let CommitTime { kept_s: since_s, running_s } = self.last_commit;
        let last = self.index.last_id;
        let gap = match mark_contents {
            MarkContents::Valid(mark) if mark.last > last => Some(Gap {
                first: last + 1,
                last: mark.last,
                since_s,
                until_s: mark.kept_s,
                running_s: mark.running_s,
            }),
            // Without its mark a database may end too early: one number stands for whatever is lost.
            MarkContents::Damaged | MarkContents::Empty if expect_mark && last > 0 => {
                Some(Gap { first: last + 1, last: last + 1, since_s, until_s: now.unix_s, running_s })
            }
            _ => None,
        };
        if let MarkContents::Valid(mark) = mark_contents {
            self.last_commit.running_s = running_s.max(mark.running_s);
            self.last_commit.kept_s = since_s.max(mark.kept_s);
        }
        if self.last_commit.running_s == 0 {
            // An arbitrary origin, and a readable one.
            self.last_commit.running_s = now.unix_s;
        }
        self.opened_running_s = self.last_commit.running_s;
        gap.map_or(Ok(()), |gap| self.add_gap(gap))?;
        // What is left there is unsound, and in the way of the next.
        self.connection.execute("DELETE FROM account WHERE id > ?1", [self.index.last_id])?;
        Ok(())
    }

    /// Notes that accounts may be lost.
    fn add_gap(&mut self, gap: Gap) -> Result<(), DatabaseError> {
        let transaction = self.connection.transaction()?;
        TransactionWriter::new(&transaction, &mut self.layouts, &mut self.index, self.last_commit)?
            .insert_gap(gap)?;
        transaction.commit()?;
        self.new_gaps.push(gap.describe());
        Ok(())
    }
}

/// The connection, and the schema's version.
fn open_connection(file: &Path, settings: &StoreSettings) -> Result<(Connection, i64), DatabaseError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    let schema_version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if schema_version > SCHEMA_VERSION {
        return Err(DatabaseError::NewerSchema(schema_version));
    }
    connection.pragma_update(None, "auto_vacuum", "incremental")?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    let synchronous = match settings.sync {
        SyncMode::Off => "off",
        SyncMode::Normal => "normal",
        SyncMode::Full => "full",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cell_size_check", "on")?;
    connection.pragma_update(None, "trusted_schema", "off")?;
    Ok((connection, schema_version))
}

/// Makes the tables, beside those of version 1 where they are there. The mark comes first: from here on a database without
/// one has lost it.
fn create_tables(
    connection: &mut Connection,
    schema_version: i64,
    mark_file: &MarkFile,
    mark_contents: &MarkContents,
    now: ClockReading,
) -> Result<(), DatabaseError> {
    let transaction = connection.transaction()?;
    let mut first = 1;
    let mut mark = HighWaterMark { last: 0, kept_s: 0, running_s: 0 };
    if schema_version == 1 {
        (first, mark) = migration::set_aside_v1_tables(&transaction, now)?;
    } else {
        let tables: i64 =
            transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 {
            return Err(DatabaseError::SchemaMismatch);
        }
        transaction.execute_batch(CREATE_LAYOUT_TABLE)?;
    }
    transaction.execute_batch(CREATE_TABLES)?;
    Retention::starting_at(first).save(&transaction)?;
    if *mark_contents == MarkContents::Empty {
        mark_file.write(&mark)?;
    }
    Ok(transaction.commit()?)
}

/// Whether the tables are exactly those that were made: a table that is missing or changed is damage.
fn check_schema(connection: &Connection) -> Result<(), DatabaseError> {
    let tables = |connection: &Connection| {
        let sql = "SELECT name, sql FROM sqlite_schema \
                   WHERE sql IS NOT NULL AND name NOT IN ('account_v1', 'journal_v1') ORDER BY name";
        let mut all = connection.prepare(sql)?;
        let all = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        all.collect::<rusqlite::Result<Vec<(String, String)>>>()
    };
    let reference = Connection::open_in_memory()?;
    reference.execute_batch(CREATE_LAYOUT_TABLE)?;
    reference.execute_batch(CREATE_TABLES)?;
    if tables(connection).is_ok_and(|found| tables(&reference).is_ok_and(|reference| found == reference)) {
        return Ok(());
    }
    Err(DatabaseError::SchemaMismatch)
}

fn read_gap(row: &Row<'_>) -> rusqlite::Result<Gap> {
    let (first, last, since_s) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(Gap { first, last, since_s, until_s: row.get(3)?, running_s: row.get(4)? })
}

/// A sound row of the journal.
fn read_journal_row<'a>(row: &'a Row<'_>, layouts: &'a LayoutTable) -> Option<AccountColumns<'a>> {
    let number = |at| row.get_ref(at).ok()?.as_i64().ok();
    let columns = AccountColumns {
        uid: u32::try_from(number(1)?).ok()?,
        layout: layouts.resolve(row.get_ref(2).ok()?)?,
        span: row.get_ref(3).ok()?,
        name: row.get_ref(4).ok()?.as_str().ok()?,
        figures: row.get_ref(5).ok()?.as_blob().ok()?,
    };
    (number(6)? == i64::from(columns.checksum(&[number(0)?]))).then_some(columns)
}

/// The statements of one transaction.
pub(super) struct TransactionWriter<'a> {
    insert_account: rusqlite::Statement<'a>,
    upsert_journal: rusqlite::Statement<'a>,
    delete_journal: rusqlite::Statement<'a>,
    transaction: &'a Transaction<'a>,
    layouts: &'a mut LayoutTable,
    pub index: &'a mut AccountIndex,
    pub commit_time: CommitTime,
}

impl<'a> TransactionWriter<'a> {
    pub fn new(
        transaction: &'a Transaction<'a>,
        layouts: &'a mut LayoutTable,
        index: &'a mut AccountIndex,
        commit_time: CommitTime,
    ) -> rusqlite::Result<Self> {
        let sql = "INSERT INTO account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        Ok(Self {
            insert_account: transaction.prepare(sql)?,
            upsert_journal: transaction
                .prepare("INSERT OR REPLACE INTO journal VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?,
            delete_journal: transaction.prepare("DELETE FROM journal WHERE key = ?1")?,
            transaction,
            layouts,
            index,
            commit_time,
        })
    }

    /// Keeps an account under the next number.
    pub fn insert_account(&mut self, columns: &AccountColumns<'_>) -> rusqlite::Result<()> {
        let layout = self.layout_value(columns.layout)?;
        let (id, previous) = self.index.append(columns.uid, name_index::name_hash(name_bytes(columns.span)));
        let CommitTime { kept_s, running_s } = self.commit_time;
        let crc = columns.checksum(&[id, kept_s, running_s, previous]);
        let span = ToSqlOutput::Borrowed(columns.span);
        let AccountColumns { uid, name, figures, .. } = columns;
        let values = params![id, uid, kept_s, running_s, previous, layout, span, name, figures, crc];
        self.insert_account.execute(values)?;
        if segment_of(id + 1) == segment_of(id) { Ok(()) } else { self.seal_segment(segment_of(id)) }
    }

    pub fn upsert_journal(&mut self, key: i64, columns: &AccountColumns<'_>) -> rusqlite::Result<()> {
        let layout = self.layout_value(columns.layout)?;
        let (span, crc) = (ToSqlOutput::Borrowed(columns.span), columns.checksum(&[key]));
        let AccountColumns { uid, name, figures, .. } = columns;
        self.upsert_journal.execute(params![key, uid, layout, span, name, figures, crc])?;
        Ok(())
    }

    /// Notes that the accounts of some numbers may be lost, and goes on after them.
    pub fn insert_gap(&mut self, gap: Gap) -> rusqlite::Result<()> {
        let values = params![gap.first, gap.last, gap.since_s, gap.until_s, gap.running_s];
        self.transaction.execute("INSERT OR REPLACE INTO gap VALUES (?1, ?2, ?3, ?4, ?5)", values)?;
        self.index.gaps.push(gap);
        self.index.gaps.sort_by_key(|gap| gap.first);
        let segment = segment_of(self.index.last_id + 1);
        self.index.last_id = self.index.last_id.max(gap.last);
        if segment_of(self.index.last_id + 1) == segment { Ok(()) } else { self.seal_segment(segment) }
    }

    /// The same for the account that would be next.
    fn insert_gap_of_one(&mut self) -> rusqlite::Result<()> {
        let (id, CommitTime { kept_s, running_s }) = (self.index.last_id + 1, self.commit_time);
        self.insert_gap(Gap { first: id, last: id, since_s: kept_s, until_s: kept_s, running_s })
    }

    /// Writes the indexes of a segment that is full.
    fn seal_segment(&mut self, segment: i64) -> rusqlite::Result<()> {
        let index = &mut *self.index;
        let mut insert = self.transaction.prepare("INSERT OR REPLACE INTO block VALUES (?1, ?2)")?;
        let names = std::mem::take(&mut index.open_segment);
        for (block, bucket) in name_index::encode_blocks(segment, &names).into_iter().zip(0..) {
            insert.execute(params![name_index::block_key(segment, bucket), block])?;
        }
        if index.heads_known {
            index.heads.retain(|_, id| *id >= index.first_id);
            let heads = name_index::encode_heads(segment, &index.heads);
            insert.execute(params![name_index::block_key(segment, HEADS), heads])?;
        }
        Ok(())
    }

    /// The layout's number, or itself where there are too many.
    fn layout_value<'b>(&mut self, domains: &'b [u8]) -> rusqlite::Result<ToSqlOutput<'b>> {
        if let Some(id) = self.layouts.ids.get(domains) {
            return Ok((*id).into());
        }
        if self.layouts.ids.len() >= MAX_LAYOUTS {
            return Ok(ToSqlOutput::Borrowed(ValueRef::Blob(domains)));
        }
        self.transaction.execute("INSERT INTO layout (domains) VALUES (?1)", [domains])?;
        let id = self.transaction.last_insert_rowid();
        self.layouts.insert(id, Arc::from(domains));
        Ok(id.into())
    }
}

impl AccountIndex {
    fn empty() -> Self {
        let (open_segment, heads, gaps) = (OpenSegment::new(), HashMap::new(), Vec::new());
        Self { first_id: 1, last_id: 0, open_segment, heads, heads_known: true, gaps }
    }
}

/// What a name is hashed by: as it is kept.
pub(super) fn name_bytes(span: ValueRef<'_>) -> &[u8] {
    match span {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => &[],
    }
}

/// A span's name as it is kept: the names that the daemon gives are 16 bytes in hexadecimal digits, and kept as these.
#[derive(Debug, Clone, Copy)]
pub(super) enum SpanName<'a> {
    /// Sixteen random bytes: no other span ever has it.
    Generated([u8; 16]),
    /// Text that a client chose.
    Chosen(&'a str),
}

impl<'a> SpanName<'a> {
    pub fn parse(span: &'a str) -> Self {
        parse_generated(span).map_or(Self::Chosen(span), Self::Generated)
    }

    pub fn as_value(&self) -> ValueRef<'_> {
        match self {
            Self::Generated(bytes) => ValueRef::Blob(bytes),
            Self::Chosen(text) => ValueRef::Text(text.as_bytes()),
        }
    }
}

fn parse_generated(span: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = span.as_bytes().try_into().ok()?;
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

/// The name again; `None` where it is nothing that was written here.
pub(super) fn decode_span_name(stored: ValueRef<'_>) -> Option<String> {
    match stored {
        ValueRef::Text(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        ValueRef::Blob(bytes) => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_stored_as_16_bytes_and_others_as_text() {
        let given = "00ff0123456789abcdef0123456789ab";
        for span in [given, "job-17", "", "00FF0123456789abcdef0123456789ab", "Frage \u{1f525}"] {
            let name = SpanName::parse(span);
            assert_eq!(matches!(name, SpanName::Generated(_)), span == given);
            assert_eq!(decode_span_name(name.as_value()).unwrap(), span);
        }
    }
}
