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

use super::backlog::{Batch, Order};
use super::checksum::Checksum;
use super::clock_reading::ClockReading;
use super::gap::Gap;
use super::mark::{Mark, Reached, Reading};
use super::migration;
use super::name_index::{self, HEADS, NameEntry, Recent, stretch, stretch_start};
use super::retention::Retention;
use super::settings::{Settings, Sync};

/// The schema's version; a database of a later one is left alone.
const SCHEMA: i64 = 2;

/// So many layouts are kept once each; further ones (clients may choose domains in any combination) go with their
/// accounts.
const MOST_LAYOUTS: usize = 256;

pub(super) const LAYOUT_TABLE: &str =
    "CREATE TABLE layout (id INTEGER PRIMARY KEY, domains BLOB NOT NULL UNIQUE);";

/// All but the layouts, whose table is as it was in version 1.
pub(super) const TABLES: &str = "
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

/// The columns of [`Stored`], in the order in which they are read.
pub(super) const COLUMNS: &str =
    "id, uid, kept_s, running_s, previous, layout, span, name, figures, crc FROM account";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(
        "it was written by a newer wattspan (schema {0}; this one knows {SCHEMA}); install that one again, or \
             move the file away"
    )]
    Newer(i64),
    #[error("its tables are not those that were made")]
    Schema,
    #[error("the mark beside it cannot be read or written: {0}")]
    Mark(#[from] io::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl Broken {
    /// Whether the file is no sound database, so that only another one helps.
    pub fn is_damage(&self) -> bool {
        // Our rows break no constraint, unless what is there already is not what we wrote.
        use rusqlite::ErrorCode::{ConstraintViolation, DatabaseCorrupt, NotADatabase};
        match self {
            Broken::Schema => true,
            Broken::Sqlite(Error::InvalidColumnType(..) | Error::IntegralValueOutOfRange(..)) => true,
            Broken::Sqlite(cause) => matches!(
                cause.sqlite_error_code(),
                Some(ConstraintViolation | DatabaseCorrupt | NotADatabase)
            ),
            _ => false,
        }
    }
}

/// What an account's row has beside its numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<'a> {
    pub uid: u32,
    pub layout: &'a [u8],
    /// As it is kept: see [`SpanName`].
    pub span: ValueRef<'a>,
    pub name: &'a str,
    pub figures: &'a [u8],
}

impl Columns<'_> {
    fn checksum(&self, numbers: &[i64]) -> i32 {
        let sum = Checksum::default().numbers(numbers).numbers(&[i64::from(self.uid)]);
        sum.bytes(self.layout).value(self.span).bytes(self.name.as_bytes()).bytes(self.figures).finish()
    }
}

/// A sound row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub id: i64,
    pub kept_s: i64,
    pub running_s: i64,
    /// Its user's account before it; 0: there was none. Where it was not known, the number before its own.
    pub previous: i64,
    pub columns: Columns<'a>,
}

impl<'a> Stored<'a> {
    /// `None` where the row is not what was written.
    pub fn read(row: &'a Row<'_>, layouts: &'a Layouts) -> Option<Self> {
        let number = |at| row.get_ref(at).ok()?.as_i64().ok();
        let (id, kept_s, running_s, previous) = (number(0)?, number(2)?, number(3)?, number(4)?);
        let columns = Columns {
            uid: u32::try_from(number(1)?).ok()?,
            layout: layouts.bytes(row.get_ref(5).ok()?)?,
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
pub(super) struct Layouts {
    numbers: HashMap<Arc<[u8]>, i64>,
    bytes: HashMap<i64, Arc<[u8]>>,
}

impl Layouts {
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
        self.bytes.insert(id, Arc::clone(&domains));
        self.numbers.insert(domains, id);
    }

    /// A layout as its row has it: its number, or itself.
    pub fn bytes<'a>(&'a self, kept: ValueRef<'a>) -> Option<&'a [u8]> {
        match kept {
            ValueRef::Blob(own) => Some(own),
            ValueRef::Integer(id) => self.bytes.get(&id).map(|bytes| &bytes[..]),
            _ => None,
        }
    }
}

/// Which numbers there are, and the end of the indexes, which is in memory.
#[derive(Debug)]
pub(super) struct Numbers {
    /// The lowest that was not deleted, and the highest.
    pub first: i64,
    pub last: i64,
    /// The names of the stretch that is being filled.
    pub recent: Recent,
    /// Each user's latest account.
    pub heads: HashMap<u32, i64>,
    /// `heads` has every user: else a search has to find one.
    pub heads_known: bool,
    /// In the order of numbers.
    pub gaps: Vec<Gap>,
}

impl Numbers {
    /// The highest gap with a number in `from..=to`.
    pub fn gap_within(&self, from: i64, to: i64) -> Option<&Gap> {
        self.gaps.iter().rev().find(|gap| gap.first <= to && gap.last >= from)
    }

    fn append(&mut self, uid: u32, hash: u32) -> (i64, i64) {
        let id = self.last + 1;
        self.last = id;
        self.recent.push(NameEntry { hash, uid, id });
        let unknown = if self.heads_known { 0 } else { id - 1 };
        (id, self.heads.insert(uid, id).unwrap_or(unknown))
    }
}

/// When rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub kept_s: i64,
    pub running_s: i64,
}

/// The open database.
pub(super) struct Database {
    pub(super) connection: Connection,
    pub(super) layouts: Layouts,
    pub(super) numbers: Numbers,
    pub(super) retention: Retention,
    mark: Mark,
    newest: Stamp,
    opened: ClockReading,
    opened_running_s: i64,
    /// Found when it was opened.
    pub losses: Vec<String>,
}

impl Database {
    /// Opens the file, which may be empty.
    pub fn open(file: &Path, mark: Mark, settings: &Settings, now: ClockReading) -> Result<Self, Broken> {
        let (mut connection, version) = connect(file, settings)?;
        let reading = mark.read()?;
        if version < SCHEMA {
            create(&mut connection, version, &mark, &reading, now)?;
        }
        check_schema(&connection)?;
        let layouts = Layouts::load(&connection)?;
        let (numbers, retention) = (Numbers::empty(), Retention::default());
        let newest = Stamp { kept_s: 0, running_s: 0 };
        let (opened, opened_running_s, losses) = (now, 0, Vec::new());
        let mut database =
            Self { connection, layouts, numbers, retention, mark, newest, opened, opened_running_s, losses };
        database.load()?;
        migration::convert(&mut database, now)?;
        database.note_losses(&reading, version == SCHEMA, now)?;
        database.mark()?;
        Ok(database)
    }

    /// How long the store has run.
    pub fn running_s(&self, now: ClockReading) -> i64 {
        self.opened_running_s + (now.boot_s - self.opened.boot_s).max(0)
    }

    fn stamp(&self, now: ClockReading) -> Stamp {
        let running_s = self.running_s(now).max(self.newest.running_s);
        Stamp { kept_s: now.unix_s.max(self.newest.kept_s), running_s }
    }

    /// Notes in the mark how far it has come.
    pub fn mark(&self) -> io::Result<()> {
        let Stamp { kept_s, running_s } = self.newest;
        self.mark.write(&Reached { last: self.numbers.last, kept_s, running_s })
    }

    /// Notes its running time, where no account did for a while.
    pub fn mark_time(&mut self, now: ClockReading) -> io::Result<()> {
        /// What a restart may forget of it.
        const FORGOTTEN_S: i64 = 600;
        let running_s = self.running_s(now);
        if running_s < self.newest.running_s + FORGOTTEN_S {
            return Ok(());
        }
        self.newest.running_s = running_s;
        self.mark()
    }

    /// Keeps what is in the journal as interrupted; gives how many those were. Only for a journal of a process that is
    /// gone: a span that is still open would get a second account when it settles.
    pub fn recover(&mut self, now: ClockReading) -> Result<usize, Broken> {
        let stamp = self.stamp(now);
        let before = self.numbers.last;
        let transaction = self.connection.transaction()?;
        {
            let kept = Layouts::load(&transaction)?;
            let mut writer = Writer::over(&transaction, &mut self.layouts, &mut self.numbers, stamp)?;
            let mut open = transaction
                .prepare("SELECT key, uid, layout, span, name, figures, crc FROM journal ORDER BY key")?;
            let mut rows = open.query([])?;
            while let Some(row) = rows.next()? {
                match journalled(row, &kept) {
                    Some(columns) => writer.keep(&columns)?,
                    None => writer.skip_one()?,
                }
            }
        }
        transaction.execute("DELETE FROM journal", [])?;
        transaction.commit()?;
        self.newest = stamp;
        self.mark()?;
        Ok((self.numbers.last - before) as usize)
    }

    /// Keeps batches, in their order, in one transaction.
    pub fn write(&mut self, batches: &[Batch], now: ClockReading) -> Result<(), Broken> {
        let stamp = self.stamp(now);
        let transaction = self.connection.transaction()?;
        {
            let mut writer = Writer::over(&transaction, &mut self.layouts, &mut self.numbers, stamp)?;
            for (batch, order) in
                batches.iter().flat_map(|batch| batch.orders.iter().map(move |o| (batch, o)))
            {
                match order {
                    Order::Keep { row, forget } => {
                        if let Some(key) = forget {
                            writer.forget.execute([*key as i64])?;
                        }
                        let (span, name, figures) = batch.texts(row);
                        let packed = SpanName::of(span);
                        let (uid, layout) = (row.uid, &row.layout[..]);
                        writer.keep(&Columns { uid, layout, span: packed.value(), name, figures })?;
                    }
                    Order::Journal { key, row } => {
                        let (span, name, figures) = batch.texts(row);
                        let packed = SpanName::of(span);
                        let (uid, layout) = (row.uid, &row.layout[..]);
                        writer.journal(
                            *key as i64,
                            &Columns { uid, layout, span: packed.value(), name, figures },
                        )?;
                    }
                    Order::Forget { key } => drop(writer.forget.execute([*key as i64])?),
                }
            }
        }
        transaction.commit()?;
        self.newest = stamp;
        Ok(())
    }

    /// How many bytes the database takes, free pages left out.
    pub fn bytes(&self) -> Result<u64, Broken> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok(pages.max(0) as u64 * pragma("page_size")?.max(0) as u64)
    }

    /// What may be lost, if anything.
    pub fn loss(&self) -> Option<String> {
        let gaps: Vec<String> = self.numbers.gaps.iter().map(Gap::loss).collect();
        (!gaps.is_empty()).then(|| gaps.join("; "))
    }

    /// One account's row, if it is there and sound, to `take`.
    pub fn row<T>(
        &self,
        statement: &mut rusqlite::Statement<'_>,
        id: i64,
        take: impl FnOnce(&Stored<'_>) -> Option<T>,
    ) -> Result<Option<T>, Broken> {
        let found = (|| {
            let mut rows = statement.query([id])?;
            Ok(rows.next()?.and_then(|row| Stored::read(row, &self.layouts)).and_then(|stored| take(&stored)))
        })();
        match found.map_err(Broken::Sqlite) {
            Err(broken) if broken.is_damage() => Ok(None),
            found => found,
        }
    }

    /// Reads what it has in memory: the end of the numbers and of the indexes.
    pub(super) fn load(&mut self) -> Result<(), Broken> {
        self.numbers = Numbers::empty();
        let Self { connection, layouts, numbers, .. } = self;
        let all = "SELECT first, last, since_s, until_s, running_s FROM gap ORDER BY first";
        numbers.gaps = connection.prepare(all)?.query_map([], read_gap)?.collect::<rusqlite::Result<_>>()?;
        let latest = format!("SELECT {COLUMNS} ORDER BY id DESC");
        let mut latest = connection.prepare(&latest)?;
        let mut rows = latest.query([])?;
        // Unsound rows are passed over: a damaged number must not become the last one.
        while let Some(row) = rows.next()? {
            if let Some(stored) = Stored::read(row, layouts) {
                numbers.last = stored.id;
                self.newest = Stamp { kept_s: stored.kept_s, running_s: stored.running_s };
                break;
            }
        }
        drop(rows);
        drop(latest);
        let lowest =
            connection.query_row("SELECT min(id) FROM account", [], |row| row.get::<_, Option<i64>>(0))?;
        self.retention = Retention::load(connection)?;
        let unsound = self.retention.first == 0;
        let oldest = lowest.unwrap_or(1).clamp(1, numbers.last + 1);
        if unsound {
            // Which accounts were deleted is not known: the one before the oldest stands for those that may be lost.
            self.retention.first = (oldest - 1).max(1);
        }
        numbers.first = self.retention.first;
        numbers.last = numbers.last.max(numbers.gaps.last().map_or(0, |gap| gap.last)).max(numbers.first - 1);
        let lost_s = numbers.gaps.iter().map(|gap| gap.running_s).max().unwrap_or(0);
        self.newest.running_s = self.newest.running_s.max(lost_s);
        self.load_recent()?;
        self.load_heads()?;
        if unsound && oldest > 1 {
            let (first, Stamp { kept_s, running_s }) = (oldest - 1, self.newest);
            self.note_gap(Gap { first, last: first, since_s: 0, until_s: kept_s, running_s })?;
        }
        if unsound {
            self.retention.store(&self.connection)?;
        }
        Ok(())
    }

    /// Reads the stretch that is being filled; rows that are not there are noted as gaps.
    fn load_recent(&mut self) -> Result<(), Broken> {
        let Self { connection, layouts, numbers, .. } = self;
        let from = numbers.first.max(stretch_start(stretch(numbers.last + 1)));
        let mut missing = Vec::new();
        let mut recent =
            connection.prepare(&format!("SELECT {COLUMNS} WHERE id BETWEEN ?1 AND ?2 ORDER BY id"))?;
        let mut rows = recent.query([from, numbers.last])?;
        let (mut next, mut since_s) = (from, 0);
        while let Some(row) = rows.next()? {
            let Some(stored) = Stored::read(row, layouts) else { continue };
            let Stored { id, kept_s, running_s, columns, .. } = stored;
            if id > next {
                missing.push(Gap { first: next, last: id - 1, since_s, until_s: kept_s, running_s });
            }
            (next, since_s) = (id + 1, kept_s);
            let hash = name_index::hash(bytes_of(columns.span));
            numbers.recent.push(NameEntry { hash, uid: columns.uid, id });
            numbers.heads.insert(columns.uid, id);
        }
        drop(rows);
        drop(recent);
        if next <= numbers.last {
            // A damaged tree may end early from below and have later rows from above.
            let Stamp { kept_s: until_s, running_s } = self.newest;
            missing.push(Gap { first: next, last: numbers.last, since_s, until_s, running_s });
        }
        missing.retain(|gap| {
            !numbers.gaps.iter().any(|known| known.first <= gap.first && known.last >= gap.last)
        });
        for gap in missing {
            self.note_gap(gap)?;
        }
        Ok(())
    }

    /// Adds the latest accounts of users that have none in the stretch that is being filled.
    fn load_heads(&mut self) -> Result<(), Broken> {
        let numbers = &mut self.numbers;
        numbers.heads_known = false;
        let mut block = self.connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
        let mut before = stretch(numbers.last + 1) - 1;
        while before >= stretch(numbers.first) {
            let key = name_index::key(before, HEADS);
            let bytes = block.query_row([key], |row| row.get::<_, Vec<u8>>(0)).optional()?;
            if let Some(bytes) = &bytes {
                let Some(block) = name_index::opened(key, bytes) else { return Ok(()) };
                for (uid, id) in name_index::decode_heads(block) {
                    numbers.heads.entry(uid).or_insert(id);
                }
                break;
            }
            let (from, to) = (stretch_start(before).max(numbers.first), stretch_start(before + 1) - 1);
            if !numbers.gaps.iter().any(|gap| gap.first <= from && gap.last >= to) {
                return Ok(());
            }
            before -= 1;
        }
        numbers.heads_known = true;
        Ok(())
    }

    /// Compares what is there with what once was committed; what is missing at the end is noted as a gap.
    fn note_losses(&mut self, reading: &Reading, marked: bool, now: ClockReading) -> Result<(), Broken> {
        let Stamp { kept_s: since_s, running_s } = self.newest;
        let last = self.numbers.last;
        let gap = match reading {
            Reading::Reached(reached) if reached.last > last => Some(Gap {
                first: last + 1,
                last: reached.last,
                since_s,
                until_s: reached.kept_s,
                running_s: reached.running_s,
            }),
            // Without its mark a database may end too early: one number stands for whatever is lost.
            Reading::Damaged | Reading::Empty if marked && last > 0 => {
                Some(Gap { first: last + 1, last: last + 1, since_s, until_s: now.unix_s, running_s })
            }
            _ => None,
        };
        if let Reading::Reached(reached) = reading {
            self.newest.running_s = running_s.max(reached.running_s);
            self.newest.kept_s = since_s.max(reached.kept_s);
        }
        if self.newest.running_s == 0 {
            // An arbitrary origin, and a readable one.
            self.newest.running_s = now.unix_s;
        }
        self.opened_running_s = self.newest.running_s;
        gap.map_or(Ok(()), |gap| self.note_gap(gap))?;
        // What is left there is unsound, and in the way of the next.
        self.connection.execute("DELETE FROM account WHERE id > ?1", [self.numbers.last])?;
        Ok(())
    }

    /// Notes that accounts may be lost.
    fn note_gap(&mut self, gap: Gap) -> Result<(), Broken> {
        let transaction = self.connection.transaction()?;
        Writer::over(&transaction, &mut self.layouts, &mut self.numbers, self.newest)?.skip(gap)?;
        transaction.commit()?;
        self.losses.push(gap.loss());
        Ok(())
    }
}

/// The connection, and the schema's version.
fn connect(file: &Path, settings: &Settings) -> Result<(Connection, i64), Broken> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > SCHEMA {
        return Err(Broken::Newer(version));
    }
    connection.pragma_update(None, "auto_vacuum", "incremental")?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    let synchronous = match settings.sync {
        Sync::Off => "off",
        Sync::Normal => "normal",
        Sync::Full => "full",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cell_size_check", "on")?;
    connection.pragma_update(None, "trusted_schema", "off")?;
    Ok((connection, version))
}

/// Makes the tables, beside those of version 1 where they are there. The mark comes first: from here on a database without
/// one has lost it.
fn create(
    connection: &mut Connection,
    version: i64,
    mark: &Mark,
    reading: &Reading,
    now: ClockReading,
) -> Result<(), Broken> {
    let transaction = connection.transaction()?;
    let mut first = 1;
    let mut reached = Reached { last: 0, kept_s: 0, running_s: 0 };
    if version == 1 {
        (first, reached) = migration::begin(&transaction, now)?;
    } else {
        let tables: i64 =
            transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 {
            return Err(Broken::Schema);
        }
        transaction.execute_batch(LAYOUT_TABLE)?;
    }
    transaction.execute_batch(TABLES)?;
    Retention::from(first).store(&transaction)?;
    if *reading == Reading::Empty {
        mark.write(&reached)?;
    }
    Ok(transaction.commit()?)
}

/// Whether the tables are exactly those that were made: a table that is missing or changed is damage.
fn check_schema(connection: &Connection) -> Result<(), Broken> {
    let tables = |connection: &Connection| {
        let sql = "SELECT name, sql FROM sqlite_schema \
                   WHERE sql IS NOT NULL AND name NOT IN ('account_v1', 'journal_v1') ORDER BY name";
        let mut all = connection.prepare(sql)?;
        let all = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        all.collect::<rusqlite::Result<Vec<(String, String)>>>()
    };
    let made = Connection::open_in_memory()?;
    made.execute_batch(LAYOUT_TABLE)?;
    made.execute_batch(TABLES)?;
    if tables(connection).is_ok_and(|found| tables(&made).is_ok_and(|made| found == made)) {
        return Ok(());
    }
    Err(Broken::Schema)
}

fn read_gap(row: &Row<'_>) -> rusqlite::Result<Gap> {
    let (first, last, since_s) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(Gap { first, last, since_s, until_s: row.get(3)?, running_s: row.get(4)? })
}

/// A sound row of the journal.
fn journalled<'a>(row: &'a Row<'_>, layouts: &'a Layouts) -> Option<Columns<'a>> {
    let number = |at| row.get_ref(at).ok()?.as_i64().ok();
    let columns = Columns {
        uid: u32::try_from(number(1)?).ok()?,
        layout: layouts.bytes(row.get_ref(2).ok()?)?,
        span: row.get_ref(3).ok()?,
        name: row.get_ref(4).ok()?.as_str().ok()?,
        figures: row.get_ref(5).ok()?.as_blob().ok()?,
    };
    (number(6)? == i64::from(columns.checksum(&[number(0)?]))).then_some(columns)
}

/// The statements of one transaction.
pub(super) struct Writer<'a> {
    insert: rusqlite::Statement<'a>,
    journal: rusqlite::Statement<'a>,
    forget: rusqlite::Statement<'a>,
    transaction: &'a Transaction<'a>,
    layouts: &'a mut Layouts,
    pub numbers: &'a mut Numbers,
    pub stamp: Stamp,
}

impl<'a> Writer<'a> {
    pub fn over(
        transaction: &'a Transaction<'a>,
        layouts: &'a mut Layouts,
        numbers: &'a mut Numbers,
        stamp: Stamp,
    ) -> rusqlite::Result<Self> {
        let insert = "INSERT INTO account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        Ok(Self {
            insert: transaction.prepare(insert)?,
            journal: transaction
                .prepare("INSERT OR REPLACE INTO journal VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?,
            forget: transaction.prepare("DELETE FROM journal WHERE key = ?1")?,
            transaction,
            layouts,
            numbers,
            stamp,
        })
    }

    /// Keeps an account under the next number.
    pub fn keep(&mut self, columns: &Columns<'_>) -> rusqlite::Result<()> {
        let layout = self.layout(columns.layout)?;
        let (id, previous) = self.numbers.append(columns.uid, name_index::hash(bytes_of(columns.span)));
        let Stamp { kept_s, running_s } = self.stamp;
        let crc = columns.checksum(&[id, kept_s, running_s, previous]);
        let span = ToSqlOutput::Borrowed(columns.span);
        let Columns { uid, name, figures, .. } = columns;
        let values = params![id, uid, kept_s, running_s, previous, layout, span, name, figures, crc];
        self.insert.execute(values)?;
        if stretch(id + 1) == stretch(id) { Ok(()) } else { self.seal(stretch(id)) }
    }

    pub fn journal(&mut self, key: i64, columns: &Columns<'_>) -> rusqlite::Result<()> {
        let layout = self.layout(columns.layout)?;
        let (span, crc) = (ToSqlOutput::Borrowed(columns.span), columns.checksum(&[key]));
        let Columns { uid, name, figures, .. } = columns;
        self.journal.execute(params![key, uid, layout, span, name, figures, crc])?;
        Ok(())
    }

    /// Notes that the accounts of some numbers may be lost, and goes on after them.
    pub fn skip(&mut self, gap: Gap) -> rusqlite::Result<()> {
        let values = params![gap.first, gap.last, gap.since_s, gap.until_s, gap.running_s];
        self.transaction.execute("INSERT OR REPLACE INTO gap VALUES (?1, ?2, ?3, ?4, ?5)", values)?;
        self.numbers.gaps.push(gap);
        self.numbers.gaps.sort_by_key(|gap| gap.first);
        let filled = stretch(self.numbers.last + 1);
        self.numbers.last = self.numbers.last.max(gap.last);
        if stretch(self.numbers.last + 1) == filled { Ok(()) } else { self.seal(filled) }
    }

    /// The same for the account that would be next.
    fn skip_one(&mut self) -> rusqlite::Result<()> {
        let (id, Stamp { kept_s, running_s }) = (self.numbers.last + 1, self.stamp);
        self.skip(Gap { first: id, last: id, since_s: kept_s, until_s: kept_s, running_s })
    }

    /// Writes the indexes of a stretch that is full.
    fn seal(&mut self, stretch: i64) -> rusqlite::Result<()> {
        let numbers = &mut *self.numbers;
        let mut insert = self.transaction.prepare("INSERT OR REPLACE INTO block VALUES (?1, ?2)")?;
        let names = std::mem::take(&mut numbers.recent);
        for (block, bucket) in name_index::blocks(stretch, &names).into_iter().zip(0..) {
            insert.execute(params![name_index::key(stretch, bucket), block])?;
        }
        if numbers.heads_known {
            numbers.heads.retain(|_, id| *id >= numbers.first);
            let heads = name_index::encode_heads(stretch, &numbers.heads);
            insert.execute(params![name_index::key(stretch, HEADS), heads])?;
        }
        Ok(())
    }

    /// The layout's number, or itself where there are too many.
    fn layout<'b>(&mut self, domains: &'b [u8]) -> rusqlite::Result<ToSqlOutput<'b>> {
        if let Some(id) = self.layouts.numbers.get(domains) {
            return Ok((*id).into());
        }
        if self.layouts.numbers.len() >= MOST_LAYOUTS {
            return Ok(ToSqlOutput::Borrowed(ValueRef::Blob(domains)));
        }
        self.transaction.execute("INSERT INTO layout (domains) VALUES (?1)", [domains])?;
        let id = self.transaction.last_insert_rowid();
        self.layouts.insert(id, Arc::from(domains));
        Ok(id.into())
    }
}

impl Numbers {
    fn empty() -> Self {
        let (recent, heads, gaps) = (Recent::new(), HashMap::new(), Vec::new());
        Self { first: 1, last: 0, recent, heads, heads_known: true, gaps }
    }
}

/// What a name is hashed by: as it is kept.
pub(super) fn bytes_of(span: ValueRef<'_>) -> &[u8] {
    match span {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => &[],
    }
}

/// A span's name as it is kept: the names that the daemon gives are 16 bytes in hexadecimal digits, and kept as these.
#[derive(Debug, Clone, Copy)]
pub(super) enum SpanName<'a> {
    /// Sixteen random bytes: no other span ever has it.
    Given([u8; 16]),
    /// Text that a client chose.
    Chosen(&'a str),
}

impl<'a> SpanName<'a> {
    pub fn of(span: &'a str) -> Self {
        packed(span).map_or(Self::Chosen(span), Self::Given)
    }

    pub fn value(&self) -> ValueRef<'_> {
        match self {
            Self::Given(bytes) => ValueRef::Blob(bytes),
            Self::Chosen(text) => ValueRef::Text(text.as_bytes()),
        }
    }
}

fn packed(span: &str) -> Option<[u8; 16]> {
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
pub(super) fn span_name(kept: ValueRef<'_>) -> Option<String> {
    match kept {
        ValueRef::Text(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        ValueRef::Blob(bytes) => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_name_is_kept_in_half_its_length_and_others_as_they_are() {
        let given = "00ff0123456789abcdef0123456789ab";
        for span in [given, "job-17", "", "00FF0123456789abcdef0123456789ab", "Frage \u{1f525}"] {
            let name = SpanName::of(span);
            assert_eq!(matches!(name, SpanName::Given(_)), span == given);
            assert_eq!(span_name(name.value()).unwrap(), span);
        }
    }
}
