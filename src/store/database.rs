//! The database: its schema, and what is written into it.
//!
//! Owns the connection and every number that orders the rows: an account's id grows by one for each, its `kept_s` (wall
//! time when it was written, seconds since 1970) never falls, even where the clock is set back. Invariant: one call of
//! [`Database::write`] is one transaction: all of it is kept, or nothing.
//!
//! The connection is alone with the file (`locking_mode = exclusive`), so that SQLite needs no shared memory beside it,
//! which on a full disk would end the process with SIGBUS. The write-ahead log makes a commit one append without a wait
//! for the disk: it survives the end of the process at any moment.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, Transaction, params};

use super::backlog::{Batch, Order, Row};
use super::settings::{Settings, Sync};

/// The schema's version; a database of a later one is left alone.
const SCHEMA: i64 = 1;

/// Accounts whose names share one stretch of the index: a name is found by one look into each stretch, and writing
/// touches only the pages of the last.
const STRETCH_BITS: u32 = 14;

/// So many layouts are kept once each; further ones (clients may choose domains in any combination) go with their
/// accounts.
const MOST_LAYOUTS: usize = 256;

const TABLES: &str = "
    CREATE TABLE layout (id INTEGER PRIMARY KEY, domains BLOB NOT NULL UNIQUE);
    CREATE TABLE account (
        id INTEGER PRIMARY KEY, uid INTEGER NOT NULL, kept_s INTEGER NOT NULL, layout,
        span NOT NULL, name TEXT NOT NULL, figures BLOB NOT NULL
    );
    CREATE INDEX account_by_user ON account (uid);
    CREATE TABLE named (
        stretch INTEGER NOT NULL, hash INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (stretch, hash, id)
    ) WITHOUT ROWID;
    CREATE TABLE journal (
        key INTEGER PRIMARY KEY, uid INTEGER NOT NULL, layout,
        span NOT NULL, name TEXT NOT NULL, figures BLOB NOT NULL
    );
    PRAGMA user_version = 1;
";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(
        "it was written by a newer wattspan (schema {0}; this one knows {SCHEMA}); install that one again, or \
             move the file away"
    )]
    Newer(i64),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl Broken {
    /// Whether the file is no sound database, so that only another one helps.
    pub fn is_damage(&self) -> bool {
        // Our rows break no constraint, unless what is there already is not what we wrote.
        use rusqlite::ErrorCode::{ConstraintViolation, DatabaseCorrupt, NotADatabase};
        matches!(self, Broken::Sqlite(cause)
            if matches!(cause.sqlite_error_code(), Some(ConstraintViolation | DatabaseCorrupt | NotADatabase)))
    }
}

/// The open database.
pub(super) struct Database {
    pub(super) connection: Connection,
    layouts: HashMap<Arc<[u8]>, i64>,
    last_id: i64,
    kept_s: i64,
}

impl Database {
    /// Opens the file, which may be empty.
    pub fn open(file: &Path, settings: &Settings, now_s: i64) -> Result<Self, Broken> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = Connection::open_with_flags(file, flags)?;
        connection.pragma_update(None, "locking_mode", "exclusive")?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
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
        let transaction = connection.transaction()?;
        if version == 0 {
            transaction.execute_batch(TABLES)?;
        }
        let newest = "SELECT id, kept_s FROM account ORDER BY id DESC LIMIT 1";
        let newest = transaction.query_row(newest, [], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let (last_id, kept_s) = newest.unwrap_or((0, 0));
        let layouts = read_layouts(&transaction)?;
        transaction.commit()?;
        rekey_names(&connection)?;
        Ok(Self { connection, layouts, last_id, kept_s: now_s.max(kept_s) })
    }

    /// Keeps what is in the journal as interrupted; gives how many those were. Only for a journal of a process that is
    /// gone: a span that is still open would get a second account when it settles.
    pub fn recover(&mut self, now_s: i64) -> Result<usize, Broken> {
        let kept_s = self.kept_s.max(now_s);
        let transaction = self.connection.transaction()?;
        let (interrupted, last_id) = recover(&transaction, self.last_id, kept_s)?;
        transaction.commit()?;
        (self.last_id, self.kept_s) = (last_id, kept_s);
        Ok(interrupted)
    }

    /// Keeps batches, in their order, in one transaction.
    pub fn write(&mut self, batches: &[Batch], now_s: i64) -> Result<(), Broken> {
        let kept_s = self.kept_s.max(now_s);
        let transaction = self.connection.transaction()?;
        let mut last_id = self.last_id;
        let fresh = {
            let mut writer = Writer::over(&transaction, &self.layouts)?;
            for (batch, order) in
                batches.iter().flat_map(|batch| batch.orders.iter().map(move |o| (batch, o)))
            {
                match order {
                    Order::Keep { row, forget } => {
                        if let Some(key) = forget {
                            writer.forget.execute([*key as i64])?;
                        }
                        last_id += 1;
                        writer.keep(batch, row, last_id, kept_s)?;
                    }
                    Order::Journal { key, row } => writer.journal(batch, row, *key as i64)?,
                    Order::Forget { key } => drop(writer.forget.execute([*key as i64])?),
                }
            }
            writer.fresh
        };
        transaction.commit()?;
        // Only now: what is rolled back must not be remembered.
        self.layouts.extend(fresh);
        (self.last_id, self.kept_s) = (last_id, kept_s);
        Ok(())
    }

    /// How many bytes the database takes, free pages left out.
    pub fn bytes(&self) -> Result<u64, Broken> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok(pages.max(0) as u64 * pragma("page_size")?.max(0) as u64)
    }
}

/// The statements of one transaction.
struct Writer<'a> {
    insert: rusqlite::Statement<'a>,
    name: rusqlite::Statement<'a>,
    journal: rusqlite::Statement<'a>,
    forget: rusqlite::Statement<'a>,
    transaction: &'a Transaction<'a>,
    layouts: &'a HashMap<Arc<[u8]>, i64>,
    fresh: HashMap<Arc<[u8]>, i64>,
}

impl<'a> Writer<'a> {
    fn over(
        transaction: &'a Transaction<'a>,
        layouts: &'a HashMap<Arc<[u8]>, i64>,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            insert: transaction.prepare("INSERT INTO account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?,
            name: transaction.prepare("INSERT INTO named VALUES (?1, ?2, ?3)")?,
            journal: transaction.prepare("INSERT OR REPLACE INTO journal VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?,
            forget: transaction.prepare("DELETE FROM journal WHERE key = ?1")?,
            transaction,
            layouts,
            fresh: HashMap::new(),
        })
    }

    fn keep(&mut self, batch: &Batch, row: &Row, id: i64, kept_s: i64) -> rusqlite::Result<()> {
        let layout = self.layout(&row.layout)?;
        let (span, name, figures) = batch.texts(row);
        self.insert.execute(params![id, row.uid, kept_s, layout, SpanName(span), name, figures])?;
        self.name.execute(params![stretch(id), name_key(span, row.uid), id])?;
        Ok(())
    }

    fn journal(&mut self, batch: &Batch, row: &Row, key: i64) -> rusqlite::Result<()> {
        let layout = self.layout(&row.layout)?;
        let (span, name, figures) = batch.texts(row);
        self.journal.execute(params![key, row.uid, layout, SpanName(span), name, figures])?;
        Ok(())
    }

    /// The layout's number, or itself where there are too many.
    fn layout<'b>(&mut self, domains: &'b Arc<[u8]>) -> rusqlite::Result<ToSqlOutput<'b>> {
        if let Some(id) = self.layouts.get(domains).or_else(|| self.fresh.get(domains)) {
            return Ok((*id).into());
        }
        if self.layouts.len() + self.fresh.len() >= MOST_LAYOUTS {
            return Ok(ToSqlOutput::Borrowed(ValueRef::Blob(domains)));
        }
        self.transaction.execute("INSERT INTO layout (domains) VALUES (?1)", [&domains[..]])?;
        let id = self.transaction.last_insert_rowid();
        self.fresh.insert(Arc::clone(domains), id);
        Ok(id.into())
    }
}

/// What was in the journal when the daemon went away is final now: moves it to the accounts, in the order of the spans'
/// keys. Gives how many, and the last id.
fn recover(transaction: &Transaction<'_>, mut last_id: i64, kept_s: i64) -> rusqlite::Result<(usize, i64)> {
    let first_id = last_id + 1;
    let mut open = transaction.prepare("SELECT key, span, uid FROM journal ORDER BY key")?;
    let mut rows = open.query([])?;
    let mut keep = transaction.prepare(
        "INSERT INTO account SELECT ?1, uid, ?2, layout, span, name, figures FROM journal WHERE key = ?3",
    )?;
    let mut name = transaction.prepare("INSERT INTO named VALUES (?1, ?2, ?3)")?;
    while let Some(row) = rows.next()? {
        last_id += 1;
        let span = span_name(row.get_ref(1)?).unwrap_or_default();
        keep.execute([last_id, kept_s, row.get(0)?])?;
        name.execute(params![stretch(last_id), name_key(&span, row.get(2)?), last_id])?;
    }
    drop(rows);
    transaction.execute("DELETE FROM journal", [])?;
    Ok(((last_id + 1 - first_id).max(0) as usize, last_id))
}

fn read_layouts(transaction: &Transaction<'_>) -> rusqlite::Result<HashMap<Arc<[u8]>, i64>> {
    let mut all = transaction.prepare("SELECT domains, id FROM layout")?;
    let rows = all.query_map([], |row| Ok((Arc::from(row.get_ref(0)?.as_blob()?), row.get(1)?)))?;
    rows.collect()
}

/// The stretch of the name index that an account's name is in.
pub(super) fn stretch(id: i64) -> i64 {
    id >> STRETCH_BITS
}

/// FNV-1a, 32 bits: finds candidates, which are then compared.
fn hash(span: &str) -> u32 {
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    span.bytes().fold(0x811c_9dc5, mix)
}

/// What a user's span of this name is indexed by: the name's hash, then the user. A look-up for one user never meets the
/// rows of another, so that it takes as long for another user's name as for one that does not exist.
pub(super) fn name_key(span: &str, uid: u32) -> i64 {
    // The highest bit marks this form: keys without the user, which earlier versions wrote, are not negative.
    (i64::from(hash(span) | 1 << 31) << 32) | i64::from(uid)
}

/// Gives the keys that an earlier version wrote the user, one stretch at a time: a large index is no one transaction.
fn rekey_names(connection: &Connection) -> rusqlite::Result<()> {
    let edges = "SELECT (SELECT min(stretch) FROM named), (SELECT max(stretch) FROM named)";
    let edges = connection.query_row(edges, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last)): (Option<i64>, Option<i64>) = edges else { return Ok(()) };
    let mut rekey = connection.prepare(
        "UPDATE named SET hash = ((hash | 0x80000000) << 32)
                              | coalesce((SELECT uid FROM account WHERE account.id = named.id), 0)
         WHERE stretch = ?1 AND hash >= 0",
    )?;
    (first..=last).try_for_each(|stretch| rekey.execute([stretch]).map(drop))
}

/// A span's name as it is kept: the names that the daemon gives are 16 bytes in hexadecimal digits, and kept as these.
pub(super) struct SpanName<'a>(pub &'a str);

impl ToSql for SpanName<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match packed(self.0) {
            Some(bytes) => ToSqlOutput::Owned(bytes.to_vec().into()),
            None => ToSqlOutput::Borrowed(ValueRef::Text(self.0.as_bytes())),
        })
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
            let name = SpanName(span);
            let ToSqlOutput::Borrowed(kept) = name.to_sql().unwrap() else {
                assert_eq!(span, given);
                let bytes = packed(span).unwrap();
                assert_eq!(span_name(ValueRef::Blob(&bytes)).unwrap(), span);
                continue;
            };
            assert_eq!(span_name(kept).unwrap(), span);
        }
    }
}
