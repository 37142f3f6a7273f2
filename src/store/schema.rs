//! The schema: the tables, the settings of the connection, and the errors of the database.
//!
//! SQLite's VFS `unix-excl` keeps other processes out and the index of the write-ahead log in the heap: several connections
//! of this process share it without a shared-memory file, whose use on a full disk would end the process with SIGBUS. In
//! write-ahead-log mode a commit is one append; it survives the end of the process without waiting for the disk.

use std::io;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, OpenFlags};

use super::settings::{StoreSettings, SyncMode};

/// The version of the schema. A database of a later version is not changed.
pub(super) const SCHEMA_VERSION: i64 = 2;

pub(super) const CREATE_LAYOUT_TABLE: &str =
    "CREATE TABLE layout (id INTEGER PRIMARY KEY, domains BLOB NOT NULL UNIQUE);";

/// All tables but `layout`, which is the same in version 1.
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

/// The error of an operation on the database.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    #[error(
        "it was written by a newer wattspan (schema {0}; this one supports up to {SCHEMA_VERSION}); install the \
         newer version, or move the file away"
    )]
    NewerSchema(i64),
    #[error("its tables do not have the expected schema")]
    SchemaMismatch,
    #[error("ledger.mark beside it cannot be read or written: {0}")]
    MarkFile(#[from] io::Error),
    #[error("{0}")]
    File(io::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl DatabaseError {
    /// Whether the file is damaged, so that it must be replaced.
    pub fn is_corruption(&self) -> bool {
        // Valid rows break no constraint: a violation means that existing rows are damaged.
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

/// The result of an operation; `None` where SQLite cannot read a page that it needs, for those which the store can do without.
pub(super) fn unless_corrupt<T>(result: rusqlite::Result<T>) -> Result<Option<T>, DatabaseError> {
    match result.map_err(DatabaseError::Sqlite) {
        Err(error) if error.is_corruption() => Ok(None),
        result => result.map(Some),
    }
}

/// Opens the connection that writes; returns it with the version of the schema, 0 for an empty file.
///
/// No other connection of this process may have the file open: they share the index of the write-ahead log in memory, so that
/// SQLite would not read the log again.
pub(super) fn open_connection(
    file: &Path,
    settings: &StoreSettings,
) -> Result<(Connection, i64), DatabaseError> {
    let connection = open_exclusively(file)?;
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
    set_reading_options(&connection)?;
    Ok((connection, schema_version))
}

/// Opens a connection that only reads, while the one that writes is open. A read transaction sees the commits before its
/// begin. While it lasts, the write-ahead log cannot be reset and grows with each commit: keep it short.
pub(super) fn open_read_connection(file: &Path) -> Result<Connection, DatabaseError> {
    // Not SQLITE_OPEN_READ_ONLY: with it `unix-excl` sets locks of its own, which replace the exclusive one of this process.
    let connection = open_exclusively(file)?;
    connection.pragma_update(None, "query_only", "on")?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    set_reading_options(&connection)?;
    Ok(connection)
}

fn open_exclusively(file: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    Connection::open_with_flags_and_vfs(file, flags, c"unix-excl")
}

fn set_reading_options(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cell_size_check", "on")?;
    connection.pragma_update(None, "trusted_schema", "off")
}

/// Checks that the tables are exactly those of the schema: a missing or changed table is damage.
pub(super) fn check_schema(connection: &Connection) -> Result<(), DatabaseError> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn count(connection: &Connection) -> i64 {
        connection.query_row("SELECT count(*) FROM block", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_read_connection_sees_commits_writes_nothing_and_needs_no_shared_memory_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("database");
        std::fs::write(&file, "").unwrap();
        let settings = StoreSettings {
            directory: dir.path().to_owned(),
            max_age: Duration::from_secs(3600),
            max_bytes: 1 << 30,
            max_waiting_bytes: 1 << 26,
            sync: SyncMode::Normal,
            sync_interval: Duration::from_secs(1),
            boot_id: String::new(),
        };
        let (writer, _) = open_connection(&file, &settings).unwrap();
        writer.execute_batch(CREATE_TABLES).unwrap();
        let reader = open_read_connection(&file).unwrap();
        let insert = |id: i64| writer.execute("INSERT INTO block VALUES (?1, '')", [id]).unwrap();
        insert(1);
        let transaction = reader.unchecked_transaction().unwrap();
        assert_eq!(count(&reader), 1);
        insert(2);
        assert_eq!((count(&reader), count(&writer)), (1, 2), "the state at the begin of its transaction");
        drop(transaction);
        assert_eq!(count(&reader), 2);
        reader.execute("DELETE FROM block", []).unwrap_err();
        let mut files: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["database", "database-wal"]);
        drop(reader);
        drop(writer);
        assert!(!dir.path().join("database-wal").exists(), "the last connection empties the log");
    }
}
