//! The rows of one user in a full segment, read by the links from each account to the user's previous one, in turns.
//!
//! Invariant: the rows that were found and those that are missing are together the accounts that the segment's sums count for the user.

use rusqlite::{Connection, Statement};

use super::account_index::segment_ids;
use super::account_table::{ACCOUNT_COLUMNS, AccountRow, LayoutTable};
use super::schema::DatabaseError;
use super::segment_sums::UserSums;

/// A user's rows in a segment that are still to be read.
#[derive(Debug)]
pub(super) struct UserWalk {
    uid: u32,
    /// The first ID of the segment.
    first: i64,
    /// The ID to read next, downwards.
    next: i64,
    /// The accounts that were not found so far.
    unfound: u64,
}

impl UserWalk {
    /// The walk over the accounts of a user; `None` if the stored sums are of a form that does not have their number.
    pub fn new(segment: i64, user: &UserSums<'_>) -> Option<Self> {
        let (unfound, last) = user.rows?;
        let (first, last_id) = segment_ids(segment);
        let next = first.checked_add_unsigned(last).filter(|next| *next <= last_id)?;
        (unfound <= last + 1).then_some(Self { uid: user.uid, first, next, unfound })
    }

    /// The accounts that were not found so far.
    pub fn unfound(&self) -> u64 {
        self.unfound
    }

    /// Whether all accounts were found, or none is left to read. Those below `first_id` were deleted.
    pub fn is_over(&self, first_id: i64) -> bool {
        self.unfound == 0 || self.next < self.first.max(first_id)
    }

    /// The accounts that are missing after the end, unless accounts of the segment were deleted.
    pub fn missing(&self, first_id: i64) -> u64 {
        if first_id > self.first { 0 } else { self.unfound }
    }

    /// Reads at most `max_rows` rows, and shows those of the user. `show` returns whether the row is valid. Returns the number of rows
    /// that were read.
    pub fn run_turn(
        &mut self,
        connection: &Connection,
        layouts: &LayoutTable,
        (first_id, max_rows): (i64, u64),
        show: &mut dyn FnMut(&AccountRow<'_>) -> bool,
    ) -> Result<u64, DatabaseError> {
        let sql =
            format!("SELECT {ACCOUNT_COLUMNS} WHERE id <= ?1 AND id >= ?2 ORDER BY id DESC LIMIT {max_rows}");
        let mut statement = connection.prepare(&sql)?;
        let mut rows_read = 0;
        while !self.is_over(first_id) && rows_read < max_rows {
            match self.read_run(&mut statement, layouts, first_id, show) {
                Ok(rows) => rows_read += rows.max(1),
                Err(error) if error.is_corruption() => {
                    // Rows on undamaged pages can be read.
                    self.next -= 1;
                    rows_read += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(rows_read)
    }

    /// Reads rows downwards from `next`, as long as each is the one that the last link names.
    fn read_run(
        &mut self,
        statement: &mut Statement<'_>,
        layouts: &LayoutTable,
        first_id: i64,
        show: &mut dyn FnMut(&AccountRow<'_>) -> bool,
    ) -> Result<u64, DatabaseError> {
        let mut rows = statement.query([self.next, self.first.max(first_id)])?;
        let mut rows_read = 0;
        while let Some(row) = rows.next()? {
            rows_read += 1;
            let id = row.get_ref(0)?.as_i64().unwrap_or(self.next);
            self.take(AccountRow::read(row, layouts).as_ref(), id, show);
            // Where the link skips rows, the search is repeated from there.
            if self.is_over(first_id) || self.next != id - 1 {
                return Ok(rows_read);
            }
        }
        if rows_read == 0 {
            // No row is left, although the link names one.
            self.next = self.first - 1;
        }
        Ok(rows_read)
    }

    /// Takes the row of this ID, and moves to the next one.
    fn take(
        &mut self,
        stored: Option<&AccountRow<'_>>,
        id: i64,
        show: &mut dyn FnMut(&AccountRow<'_>) -> bool,
    ) {
        self.next = id - 1;
        let Some(stored) = stored.filter(|stored| stored.columns.uid == self.uid) else { return };
        if show(stored) {
            self.unfound = self.unfound.saturating_sub(1);
        }
        self.next = stored.previous.min(id - 1);
    }
}
