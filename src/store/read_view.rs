//! What a query reads: one connection in one transaction, and the index that belongs to it.

use rusqlite::Connection;

use super::account_index::{self, AccountIndex, HEADS, block_key};
use super::account_table::{AccountRow, LayoutTable};
use super::database_identity::DatabaseIdentity;
use super::schema::{DatabaseError, unless_corrupt};
use super::segment_filter;

/// The accounts up to the last ID of the index. The connection may also have later ones.
pub(super) struct ReadView<'a> {
    pub connection: &'a Connection,
    pub identity: DatabaseIdentity,
    pub layouts: &'a LayoutTable,
    pub index: &'a AccountIndex,
}

impl ReadView<'_> {
    /// Reads and converts the row of an account; `None` if the row is missing or damaged.
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
                .and_then(|row| AccountRow::read(row, self.layouts))
                .and_then(|stored| convert(&stored)))
        })();
        Ok(unless_corrupt(found)?.flatten())
    }

    /// The latest account of a user as of the end of a full segment, 0 if there was none; `None`: unknown, because the block is
    /// absent or damaged.
    pub fn latest_of_user(&self, uid: u32, segment: i64) -> Result<Option<i64>, DatabaseError> {
        let mut statement = self.connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
        let heads = segment_filter::read_block(&mut statement, block_key(segment, HEADS))?;
        Ok(heads.map(|heads| account_index::decode_heads(&heads).get(&uid).copied().unwrap_or(0)))
    }
}
