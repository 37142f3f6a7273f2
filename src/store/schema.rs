//! The schema: the tables, the settings of the connection, and the errors of the database.
//!
//! With `locking_mode = exclusive` SQLite needs no shared-memory file, whose use on a full disk would end the process
//! with SIGBUS. In write-ahead-log mode a commit is one append; it survives the end of the process without waiting
//! for the disk.

use std::io;
use std::path::Path;

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

/// Opens the connection; returns it with the version of the schema, 0 for an empty file.
pub(super) fn open_connection(
    file: &Path,
    settings: &StoreSettings,
) -> Result<(Connection, i64), DatabaseError> {
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
