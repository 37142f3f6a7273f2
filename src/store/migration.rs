//! From version 1 of the schema, whose rows have no checksum, to version 2.
//!
//! Owns the order of steps: the old tables are set aside in one transaction, then their rows move over in bounded ones. Each
//! row is in exactly one of the two tables, so that a process that ends in between loses nothing and the next one goes on.

use rusqlite::types::ValueRef;
use rusqlite::{Row, Transaction};

use super::clock_reading::ClockReading;
use super::database::{Broken, Columns, Database, Layouts, Stamp, Writer, span_name};
use super::gap::Gap;
use super::mark::Reached;
use super::record::{self, Named};

/// Rows that move in one transaction.
const STEP: i64 = 16_384;

/// Sets the old tables aside; the lowest number there is, and the highest.
pub(super) fn begin(transaction: &Transaction<'_>, now: ClockReading) -> rusqlite::Result<(i64, Reached)> {
    let edge = "SELECT coalesce(min(id), 1), coalesce(max(id), 0), coalesce(max(kept_s), 0) FROM account";
    let (first, last, kept_s) =
        transaction.query_row(edge, [], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?)))?;
    transaction.execute_batch(
        "DROP INDEX account_by_user; DROP TABLE named;
         ALTER TABLE account RENAME TO account_v1; ALTER TABLE journal RENAME TO journal_v1;",
    )?;
    Ok((first, Reached { last, kept_s, running_s: kept_s.min(now.unix_s) }))
}

/// Moves what is still in the old tables.
pub(super) fn convert(database: &mut Database, now: ClockReading) -> Result<(), Broken> {
    let pending = "SELECT count(*) FROM sqlite_schema WHERE name = 'account_v1'";
    if database.connection.query_row(pending, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(());
    }
    while step(database, now)? {}
    let Database { connection, layouts, numbers, .. } = database;
    let transaction = connection.transaction()?;
    {
        let stamp = Stamp { kept_s: 0, running_s: 0 };
        let old_layouts = Layouts::load(&transaction)?;
        let mut writer = Writer::over(&transaction, layouts, numbers, stamp)?;
        let mut open = transaction
            .prepare("SELECT key, uid, layout, span, name, figures FROM journal_v1 ORDER BY key")?;
        let mut rows = open.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(columns) = columns(row, 1, &old_layouts) {
                writer.journal(row.get(0)?, &columns)?;
            }
        }
    }
    transaction.execute_batch("DROP TABLE account_v1; DROP TABLE journal_v1")?;
    transaction.commit()?;
    database.load()
}

/// Moves some accounts; whether there may be more.
fn step(database: &mut Database, now: ClockReading) -> Result<bool, Broken> {
    let Database { connection, layouts, numbers, .. } = database;
    let transaction = connection.transaction()?;
    let mut moved = None;
    {
        let old_layouts = Layouts::load(&transaction)?;
        let mut writer = Writer::over(&transaction, layouts, numbers, Stamp { kept_s: 0, running_s: 0 })?;
        let mut old = transaction.prepare(
            "SELECT id, kept_s, uid, layout, span, name, figures FROM account_v1 ORDER BY id LIMIT ?1",
        )?;
        let mut rows = old.query([STEP])?;
        while let Some(row) = rows.next()? {
            let (id, kept_s): (i64, i64) = (row.get(0)?, row.get(1)?);
            moved = Some(id);
            let since_s = writer.stamp.kept_s;
            // The clock that wrote them may have been ahead.
            writer.stamp = Stamp { kept_s, running_s: kept_s.min(now.unix_s) };
            let Some(columns) = columns(row, 2, &old_layouts) else { continue };
            let (first, last) = (writer.numbers.last + 1, id - 1);
            if last >= first {
                let running_s = writer.stamp.running_s;
                writer.skip(Gap { first, last, since_s, until_s: kept_s, running_s })?;
            }
            writer.keep(&columns)?;
        }
    }
    if let Some(last) = moved {
        transaction.execute("DELETE FROM account_v1 WHERE id <= ?1", [last])?;
    }
    transaction.commit()?;
    Ok(moved.is_some())
}

/// What a row has from a column on; `None` where it is no account, or its layout is unknown.
fn columns<'a>(row: &'a Row<'_>, at: usize, layouts: &'a Layouts) -> Option<Columns<'a>> {
    let value = |offset: usize| row.get_ref(at + offset).ok();
    let span: ValueRef<'a> = value(2)?;
    let columns = Columns {
        uid: u32::try_from(value(0)?.as_i64().ok()?).ok()?,
        layout: layouts.bytes(value(1)?)?,
        span,
        name: value(3)?.as_str().ok()?,
        figures: value(4)?.as_blob().ok()?,
    };
    let named = Named { uid: columns.uid, span: &span_name(span)?, name: columns.name };
    record::read(named, columns.layout, columns.figures).map(|_| columns)
}
