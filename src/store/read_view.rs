//! What a query reads: one connection in one transaction, and the index that belongs to it.

use rusqlite::Connection;

use super::account_index::AccountIndex;
use super::account_table::{AccountRow, LayoutTable};
use super::database_identity::DatabaseIdentity;
use super::schema::DatabaseError;

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
        match found.map_err(DatabaseError::Sqlite) {
            Err(error) if error.is_corruption() => Ok(None),
            found => found,
        }
    }
}
