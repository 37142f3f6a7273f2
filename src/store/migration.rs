//! The migration from version 1 of the schema, whose rows have no checksum, to version 2.
//!
//! One transaction renames the old tables, then transactions of bounded size move their rows. Invariant: each row is in
//! exactly one of the two tables, so that an interrupted migration loses nothing and continues at the next start.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, Transaction};

use super::account_index::{AccountIndex, Gap};
use super::account_record::{self, AccountIdentity};
use super::account_table::{AccountColumns, LayoutTable, TransactionWriter, decode_span_name};
use super::high_water_mark::HighWaterMark;
use super::schema::DatabaseError;
use super::time::{ClockReading, CommitTime};

/// The maximum number of rows moved in one transaction.
const ROWS_PER_TRANSACTION: i64 = 16_384;

/// Renames the old tables; returns their lowest ID, and a mark for the highest.
pub(super) fn set_aside_v1_tables(
    transaction: &Transaction<'_>,
    now: ClockReading,
) -> rusqlite::Result<(i64, HighWaterMark)> {
    let sql = "SELECT coalesce(min(id), 1), coalesce(max(id), 0), coalesce(max(kept_s), 0) FROM account";
    let (first, last, kept_s) =
        transaction.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?)))?;
    transaction.execute_batch(
        "DROP INDEX account_by_user; DROP TABLE named;
         ALTER TABLE account RENAME TO account_v1; ALTER TABLE journal RENAME TO journal_v1;",
    )?;
    Ok((first, HighWaterMark::of_commit(last, kept_s, kept_s.min(now.unix_s))))
}

/// Moves the rows that are still in the old tables. Returns true if there were such tables; the caller then reloads the
/// index.
pub(super) fn migrate(
    connection: &mut Connection,
    layouts: &mut LayoutTable,
    index: &mut AccountIndex,
    now: ClockReading,
) -> Result<bool, DatabaseError> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'account_v1'";
    if connection.query_row(sql, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(false);
    }
    while migrate_batch(connection, layouts, index, now)? {}
    let transaction = connection.transaction()?;
    {
        let commit_time = CommitTime { kept_s: 0, running_s: 0 };
        let old_layouts = LayoutTable::load(&transaction)?;
        let mut writer = TransactionWriter::new(&transaction, layouts, index, commit_time);
        let mut open = transaction
            .prepare("SELECT key, uid, layout, span, name, figures FROM journal_v1 ORDER BY key")?;
        let mut rows = open.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(columns) = read_v1_columns(row, 1, &old_layouts) {
                writer.upsert_journal(row.get(0)?, &columns)?;
            }
        }
    }
    transaction.execute_batch("DROP TABLE account_v1; DROP TABLE journal_v1")?;
    transaction.commit()?;
    Ok(true)
}

/// Moves a batch of accounts; returns whether there may be more.
fn migrate_batch(
    connection: &mut Connection,
    layouts: &mut LayoutTable,
    index: &mut AccountIndex,
    now: ClockReading,
) -> Result<bool, DatabaseError> {
    let transaction = connection.transaction()?;
    let mut moved = None;
    {
        let old_layouts = LayoutTable::load(&transaction)?;
        let mut writer =
            TransactionWriter::new(&transaction, layouts, index, CommitTime { kept_s: 0, running_s: 0 });
        let mut old = transaction.prepare(
            "SELECT id, kept_s, uid, layout, span, name, figures FROM account_v1 ORDER BY id LIMIT ?1",
        )?;
        let mut rows = old.query([ROWS_PER_TRANSACTION])?;
        while let Some(row) = rows.next()? {
            let (id, kept_s): (i64, i64) = (row.get(0)?, row.get(1)?);
            moved = Some(id);
            let since_s = writer.commit_time.kept_s;
            // The wall clock may have been ahead at that time.
            writer.commit_time = CommitTime { kept_s, running_s: kept_s.min(now.unix_s) };
            let Some(columns) = read_v1_columns(row, 2, &old_layouts) else { continue };
            let (first, last) = (writer.index.last_id + 1, id - 1);
            if last >= first {
                let running_s = writer.commit_time.running_s;
                writer.insert_gap(Gap { first, last, since_s, until_s: kept_s, running_s })?;
            }
            writer.insert_account(&columns)?;
        }
    }
    if let Some(last) = moved {
        transaction.execute("DELETE FROM account_v1 WHERE id <= ?1", [last])?;
    }
    transaction.commit()?;
    Ok(moved.is_some())
}

/// Reads the account in the columns from `at` on; `None` if it is not valid or its layout is unknown.
fn read_v1_columns<'a>(row: &'a Row<'_>, at: usize, layouts: &'a LayoutTable) -> Option<AccountColumns<'a>> {
    let value = |offset: usize| row.get_ref(at + offset).ok();
    let span: ValueRef<'a> = value(2)?;
    let columns = AccountColumns {
        uid: u32::try_from(value(0)?.as_i64().ok()?).ok()?,
        layout: layouts.resolve(value(1)?)?,
        span,
        name: value(3)?.as_str().ok()?,
        figures: value(4)?.as_blob().ok()?,
    };
    let identity = AccountIdentity { uid: columns.uid, span: &decode_span_name(span)?, name: columns.name };
    account_record::decode(identity, columns.layout, columns.figures).map(|_| columns)
}
