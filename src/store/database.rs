//! The open database: the connection, the index in memory, and the times of commits.
//!
//! IDs of accounts are consecutive; `running_s` (see [`super::time`]) and `kept_s` (wall time of the write, in
//! seconds since 1970) never decrease. Invariant: one call of [`Database::write`] is one transaction. After an error
//! the value must be dropped: its memory may differ from the file.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::hooks::Wal;
use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use super::account_index::{
    self, AccountIndex, Gap, HEADS, IndexUpdate, NameEntry, segment_of, segment_start,
};
use super::account_record::{self, AccountIdentity};
use super::account_table::{
    ACCOUNT_COLUMNS, AccountColumns, AccountRow, LayoutTable, SpanName, TransactionWriter, decode_span_name,
    name_bytes, read_journal_row,
};
use super::batch::{Batch, WriteOp};
use super::database_identity::DatabaseIdentity;
use super::filter_build::FilterBuild;
use super::group_build::GroupBuild;
use super::high_water_mark::{BootKey, HighWaterMark, MarkContents, MarkFile, boot_key};
use super::journal_clock::{CLOCK_BLOCK, StoredClocks};
use super::migration;
use super::retention_state::Retention;
use super::schema::{
    CREATE_LAYOUT_TABLE, CREATE_TABLES, DatabaseError, SCHEMA_VERSION, check_schema, open_connection,
    unless_corrupt,
};
use super::segment_filter;
use super::settings::{StoreSettings, SyncMode};
use super::time::{ClockReading, CommitTime};

pub(super) struct Database {
    pub(super) connection: Connection,
    pub(super) identity: DatabaseIdentity,
    pub(super) layouts: LayoutTable,
    pub(super) index: AccountIndex,
    pub(super) retention: Retention,
    mark_file: MarkFile,
    /// The last ID that the mark on the disk reserves; `None` where each commit is synced, or none.
    reserved: Option<i64>,
    boot: BootKey,
    last_commit: CommitTime,
    opened_at: ClockReading,
    opened_running_s: i64,
    /// `None` once all full segments have a filter.
    filter_build: Option<FilterBuild>,
    group_build: GroupBuild,
    /// Descriptions of the gaps found while opening the database.
    pub new_gaps: Vec<String>,
    wal_pages: Arc<AtomicUsize>,
}

impl Database {
    /// Opens the file, which may be empty, migrates an old schema, and checks for lost accounts.
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
        let identity = DatabaseIdentity::load_or_create(&connection)?;
        let (index, retention) = (AccountIndex::empty(), Retention::default());
        let last_commit = CommitTime { kept_s: 0, running_s: 0 };
        let (opened_at, opened_running_s, new_gaps) = (now, 0, Vec::new());
        let mut database = Self {
            connection,
            identity,
            layouts,
            index,
            retention,
            mark_file,
            reserved: None,
            boot: boot_key(&settings.boot_id),
            last_commit,
            opened_at,
            opened_running_s,
            filter_build: None,
            group_build: GroupBuild::new(1),
            new_gaps,
            wal_pages: Arc::default(),
        };
        database.load_index()?;
        if migration::migrate(&mut database.connection, &mut database.layouts, &mut database.index, now)? {
            database.load_index()?;
        }
        database.detect_lost_tail(&mark_contents, schema_version == SCHEMA_VERSION, now)?;
        database.reserved = (settings.sync == SyncMode::Normal).then_some(0);
        database.write_mark()?;
        database.filter_build = Some(FilterBuild::new(segment_of(database.index.last_id + 1)));
        database.group_build = GroupBuild::new(database.index.first_id);
        database.count_wal_pages()?;
        Ok(database)
    }

    /// Builds a bounded part of the filters of groups, and of those that a database of an older version lacks; returns whether
    /// there is more.
    pub fn build_filters(&mut self) -> Result<bool, DatabaseError> {
        let Some(build) = &mut self.filter_build else {
            return self.group_build.step(&self.connection, self.index.last_id);
        };
        let has_more = build.step(&self.connection, &self.layouts, self.index.first_id)?;
        if !has_more {
            self.filter_build = None;
        }
        // The groups are next.
        Ok(true)
    }

    /// The running time of the store, in seconds.
    pub fn running_s(&self, now: ClockReading) -> i64 {
        self.opened_running_s + (now.boot_s - self.opened_at.boot_s).max(0)
    }

    fn commit_time(&self, now: ClockReading) -> CommitTime {
        let running_s = self.running_s(now).max(self.last_commit.running_s);
        CommitTime { kept_s: now.unix_s.max(self.last_commit.kept_s), running_s }
    }

    /// Writes the last commit to the high-water mark.
    pub fn write_mark(&self) -> io::Result<()> {
        self.mark_file.write(&self.mark())
    }

    /// Whether the mark on the disk reserves IDs.
    pub fn has_reserved_ids(&self) -> bool {
        self.reserved.is_some_and(|reserved| reserved > 0)
    }

    /// Closes the connection, which checkpoints and syncs the write-ahead log, and ends the reservation of IDs.
    pub fn close(self) -> Result<(), DatabaseError> {
        let mark = HighWaterMark { reserved: 0, ..self.mark() };
        let mark_file = self.mark_file;
        self.connection.close().map_err(|(_, error)| error)?;
        if self.reserved.is_some() { Ok(mark_file.write_synced(&mark)?) } else { Ok(()) }
    }

    /// Ends the reservation of IDs on the disk. All commits must be synced.
    pub fn release_ids(&mut self) -> io::Result<()> {
        self.reserved = Some(0);
        self.mark_file.write_synced(&self.mark())
    }

    fn mark(&self) -> HighWaterMark {
        let (last, CommitTime { kept_s, running_s }) = (self.index.last_id, self.last_commit);
        HighWaterMark { last, kept_s, running_s, reserved: self.reserved.unwrap_or(0), boot: self.boot }
    }

    /// Saves the running time in the high-water mark if no commit did so for a while.
    pub fn save_running_time(&mut self, now: ClockReading) -> io::Result<()> {
        /// The maximum running time that a crash may lose.
        const MAX_LOST_RUNNING_S: i64 = 600;
        let running_s = self.running_s(now);
        if running_s < self.last_commit.running_s + MAX_LOST_RUNNING_S {
            return Ok(());
        }
        self.last_commit.running_s = running_s;
        self.write_mark()
    }

    /// Stores the spans of the journal as interrupted accounts and returns their number. Only for the journal of a
    /// process that has ended: a span that is still open would get a second account when it settles.
    pub fn recover(&mut self, now: ClockReading) -> Result<usize, DatabaseError> {
        let commit_time = self.commit_time(now);
        let before = self.mark();
        let transaction = self.connection.transaction()?;
        {
            let stored_layouts = LayoutTable::load(&transaction)?;
            let clocks = read_clocks(&transaction)?;
            let mut writer =
                TransactionWriter::new(&transaction, &mut self.layouts, &mut self.index, commit_time);
            let mut open = transaction
                .prepare("SELECT key, uid, layout, span, name, figures, crc FROM journal ORDER BY key")?;
            let mut rows = open.query([])?;
            while let Some(row) = rows.next()? {
                match read_journal_row(row, &stored_layouts) {
                    Some(columns) => {
                        let key = row.get::<_, i64>(0)?.cast_unsigned();
                        let figures = extended_figures(&clocks, key, &columns);
                        let figures = figures.as_deref().unwrap_or(columns.figures);
                        writer.insert_account(&AccountColumns { figures, ..columns })?;
                    }
                    None => writer.insert_gap_of_one()?,
                }
            }
        }
        transaction.execute("DELETE FROM journal", [])?;
        transaction.execute("DELETE FROM block WHERE id = ?1", [CLOCK_BLOCK])?;
        reserve_ids(&self.mark_file, &mut self.reserved, self.index.last_id, before)?;
        transaction.commit()?;
        self.last_commit = commit_time;
        self.write_mark()?;
        Ok((self.index.last_id - before.last) as usize)
    }

    /// Writes batches, in order, in one transaction.
    pub fn write(&mut self, batches: &[Batch], now: ClockReading) -> Result<(), DatabaseError> {
        let commit_time = self.commit_time(now);
        let before = self.mark();
        let transaction = self.connection.transaction()?;
        {
            let mut writer =
                TransactionWriter::new(&transaction, &mut self.layouts, &mut self.index, commit_time);
            for (batch, op) in batches.iter().flat_map(|batch| batch.ops.iter().map(move |op| (batch, op))) {
                match op {
                    WriteOp::InsertAccount { row, journal_key } => {
                        if let Some(key) = journal_key {
                            writer.delete_journal(*key)?;
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
                    WriteOp::DeleteJournal { key } => writer.delete_journal(*key)?,
                    WriteOp::SetJournalClocks { bytes } => writer.set_clocks(batch.packed_bytes(bytes))?,
                }
            }
        }
        reserve_ids(&self.mark_file, &mut self.reserved, self.index.last_id, before)?;
        transaction.commit()?;
        self.last_commit = commit_time;
        Ok(())
    }

    /// The size of the database in bytes, without free pages.
    pub fn size_bytes(&self) -> Result<u64, DatabaseError> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok(pages.max(0) as u64 * pragma("page_size")?.max(0) as u64)
    }

    /// A description of the accounts that may be lost, if any.
    pub fn describe_gaps(&self) -> Option<String> {
        let gaps: Vec<String> = self.index.gaps.iter().map(Gap::describe).collect();
        (!gaps.is_empty()).then(|| gaps.join("; "))
    }

    /// The number of pages in the write-ahead log, as of the last commit.
    pub fn wal_pages(&self) -> usize {
        self.wal_pages.load(Ordering::Relaxed)
    }

    /// Copies the write-ahead log to the database file. If no read transaction began before the last commit, the next commit
    /// begins at the start of the log.
    pub fn checkpoint(&self) -> Result<(), DatabaseError> {
        Ok(self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
    }

    /// Copies the whole write-ahead log to the database file, and empties it. No other connection may be open.
    pub fn empty_log(&self) -> Result<(), DatabaseError> {
        Ok(self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
    }

    /// The changes of the index since the last call.
    pub fn take_index_update(&mut self) -> (IndexUpdate, usize) {
        (self.index.take_update(), self.layouts.len())
    }

    /// Notes the length of the write-ahead log after each commit. This ends the automatic checkpoints of SQLite.
    fn count_wal_pages(&mut self) -> Result<(), DatabaseError> {
        let counter = Arc::clone(&self.wal_pages);
        let count = move |_: &mut Wal, pages: i32| {
            counter.store(pages.unsigned_abs() as usize, Ordering::Relaxed);
            Ok(())
        };
        Ok(self.connection.wal_hook(Some(count))?)
    }

    /// Loads the part of the index that is kept in memory: the range of IDs, the gaps, the open segment and the heads.
    fn load_index(&mut self) -> Result<(), DatabaseError> {
        self.index = AccountIndex::empty();
        self.load_gaps()?;
        self.load_last_id()?;
        self.retention = Retention::load(&self.connection)?;
        let first_unknown = self.retention.first == 0;
        let oldest = if first_unknown { self.oldest_id()? } else { self.retention.first };
        if first_unknown {
            // It is unknown which accounts were deleted: a gap of one ID before the oldest stands for those that may
            // be lost.
            self.retention.first = (oldest - 1).max(1);
        }
        self.extend_index_over_gaps();
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

    fn load_gaps(&mut self) -> Result<(), DatabaseError> {
        let sql = "SELECT first, last, since_s, until_s, running_s FROM gap ORDER BY first";
        let mut statement = self.connection.prepare(sql)?;
        self.index.gaps = statement.query_map([], read_gap)?.collect::<rusqlite::Result<_>>()?;
        Ok(())
    }

    /// Loads the highest ID and its commit time. Damaged rows are skipped: a damaged ID must not become the last one.
    fn load_last_id(&mut self) -> Result<(), DatabaseError> {
        let sql = format!("SELECT {ACCOUNT_COLUMNS} ORDER BY id DESC");
        let mut latest = self.connection.prepare(&sql)?;
        let mut rows = latest.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(stored) = AccountRow::read(row, &self.layouts) {
                self.index.last_id = stored.id;
                self.last_commit = CommitTime { kept_s: stored.kept_s, running_s: stored.running_s };
                break;
            }
        }
        Ok(())
    }

    /// The lowest ID on disk, within the range that an undamaged database can have; 1 if it cannot be read.
    fn oldest_id(&self) -> Result<i64, DatabaseError> {
        let sql = "SELECT min(id) FROM account";
        let lowest = unless_corrupt(self.connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)))?;
        Ok(lowest.flatten().unwrap_or(1).clamp(1, self.index.last_id + 1))
    }

    /// Includes lost accounts after the last one in the range of IDs and in the running time.
    fn extend_index_over_gaps(&mut self) {
        let index = &mut self.index;
        index.first_id = self.retention.first;
        index.last_id =
            index.last_id.max(index.gaps.last().map_or(0, |gap| gap.last)).max(index.first_id - 1);
        let lost_s = index.gaps.iter().map(|gap| gap.running_s).max().unwrap_or(0);
        self.last_commit.running_s = self.last_commit.running_s.max(lost_s);
    }

    /// Loads the open segment; missing rows are recorded as gaps.
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
            let AccountRow { id, kept_s, running_s, previous, columns } = stored;
            if id > next {
                missing.push(Gap { first: next, last: id - 1, since_s, until_s: kept_s, running_s });
            }
            (next, since_s) = (id + 1, kept_s);
            let hash = account_index::name_hash(name_bytes(columns.span));
            index.open_segment.push(NameEntry { hash, uid: columns.uid, id });
            let AccountColumns { uid, layout, name, figures, .. } = columns;
            segment_filter::add_values(|hash| index.add_value(hash), uid, name, figures);
            index.open_sums.add(uid, name, layout, figures, (kept_s, previous));
            index.heads.insert(columns.uid, id);
        }
        drop(rows);
        drop(statement);
        if next <= index.last_id {
            // In a damaged B-tree an ascending scan may end early although a descending scan finds later rows.
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

    /// Loads the latest accounts of users that have none in the open segment.
    fn load_heads(&mut self) -> Result<(), DatabaseError> {
        let index = &mut self.index;
        index.heads_known = false;
        let mut statement = self.connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
        let mut segment = segment_of(index.last_id + 1) - 1;
        while segment >= segment_of(index.first_id) {
            let key = account_index::block_key(segment, HEADS);
            if let Some(block) = segment_filter::read_block(&mut statement, key)? {
                for (uid, id) in account_index::decode_heads(&block) {
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

    /// Compares the last ID with the high-water mark; missing accounts at the end are recorded as a gap.
    fn detect_lost_tail(
        &mut self,
        mark_contents: &MarkContents,
        expect_mark: bool,
        now: ClockReading,
    ) -> Result<(), DatabaseError> {
        let CommitTime { kept_s: since_s, running_s } = self.last_commit;
        let last = self.index.last_id;
        let gap = match mark_contents {
            MarkContents::Valid(mark) if mark.last_used(&self.boot) > last => Some(Gap {
                first: last + 1,
                last: mark.last_used(&self.boot),
                since_s,
                until_s: mark.kept_s,
                running_s: mark.running_s,
            }),
            // Without a mark the end of the database may be lost: a gap of one ID stands for an unknown number of
            // accounts.
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
            // The origin is arbitrary; wall time is readable.
            self.last_commit.running_s = now.unix_s;
        }
        self.opened_running_s = self.last_commit.running_s;
        gap.map_or(Ok(()), |gap| self.add_gap(gap))?;
        // Rows after the last valid one are damaged, and the next accounts need their IDs.
        self.connection.execute("DELETE FROM account WHERE id > ?1", [self.index.last_id])?;
        Ok(())
    }

    /// Records a gap in a transaction of its own.
    fn add_gap(&mut self, gap: Gap) -> Result<(), DatabaseError> {
        let transaction = self.connection.transaction()?;
        TransactionWriter::new(&transaction, &mut self.layouts, &mut self.index, self.last_commit)
            .insert_gap(gap)?;
        transaction.commit()?;
        self.new_gaps.push(gap.describe());
        Ok(())
    }
}

/// Reserves IDs on the disk if `last` is not reserved yet, before the transaction that uses them is committed.
fn reserve_ids(
    mark_file: &MarkFile,
    reserved: &mut Option<i64>,
    last: i64,
    mark: HighWaterMark,
) -> io::Result<()> {
    /// How many at once: a power cut leaves a gap of at most so many IDs, and so many commits wait for one sync.
    const RESERVED_IDS: i64 = 4096;
    let Some(reserved) = reserved.as_mut().filter(|reserved| **reserved < last) else { return Ok(()) };
    *reserved = last + RESERVED_IDS;
    mark_file.write_synced(&HighWaterMark { reserved: *reserved, ..mark })
}

/// Creates the tables; those of version 1 are renamed. The mark is written before the commit, so that a database of the
/// current version without a mark has lost it.
fn create_tables(
    connection: &mut Connection,
    schema_version: i64,
    mark_file: &MarkFile,
    mark_contents: &MarkContents,
    now: ClockReading,
) -> Result<(), DatabaseError> {
    let transaction = connection.transaction()?;
    let mut first = 1;
    let mut mark = HighWaterMark::of_commit(0, 0, 0);
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

/// The journal's record of the clocks; without ticks where it is missing or damaged.
fn read_clocks(transaction: &Transaction<'_>) -> rusqlite::Result<StoredClocks> {
    let mut statement = transaction.prepare("SELECT bytes FROM block WHERE id = ?1")?;
    let bytes = statement.query_row([CLOCK_BLOCK], |row| row.get::<_, Vec<u8>>(0)).optional()?;
    let sound = bytes.as_deref().and_then(|bytes| account_index::strip_checksum(CLOCK_BLOCK, bytes));
    Ok(sound.map(StoredClocks::decode).unwrap_or_default())
}

/// The figures of a row of the journal, extended to the clocks; `None` if they are not valid.
fn extended_figures(clocks: &StoredClocks, key: u64, columns: &AccountColumns<'_>) -> Option<Vec<u8>> {
    let span = decode_span_name(columns.span)?;
    let identity = AccountIdentity { uid: columns.uid, span: &span, name: columns.name };
    let account = clocks.extended_account(key, identity, columns.layout, columns.figures)?;
    let mut figures = Vec::new();
    account_record::encode_figures(&account, &mut figures);
    Some(figures)
}

fn read_gap(row: &Row<'_>) -> rusqlite::Result<Gap> {
    let (first, last, since_s) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(Gap { first, last, since_s, until_s: row.get(3)?, running_s: row.get(4)? })
}
