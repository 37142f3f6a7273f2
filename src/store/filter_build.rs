//! Builds the filters that the full segments of an older version lack, in steps of bounded size, the latest segment first.
//!
//! Invariant: a filter has the values of all accounts of its segment; a segment with a damaged or missing row gets none.

use std::collections::HashSet;

use rusqlite::Connection;

use super::account_index::{block_key, segment_start};
use super::account_table::{ACCOUNT_COLUMNS, AccountRow, LayoutTable};
use super::schema::DatabaseError;
use super::segment_filter::{FIRST_FILTER_BLOCK, add_values, encode_filter};

/// The number of accounts that one step reads.
const ROWS_PER_STEP: i64 = 256;

/// The state between two steps.
#[derive(Debug)]
pub(super) struct FilterBuild {
    segment: i64,
    next_id: i64,
    values: HashSet<u32>,
}

impl FilterBuild {
    /// Begins below the open segment.
    pub(super) fn new(open_segment: i64) -> Self {
        let segment = open_segment - 1;
        Self { segment, next_id: segment_start(segment), values: HashSet::new() }
    }

    /// Runs one step; returns whether there are more. A segment with a damaged row gets no filter.
    pub(super) fn step(
        &mut self,
        connection: &Connection,
        layouts: &LayoutTable,
        first_id: i64,
    ) -> Result<bool, DatabaseError> {
        let end = segment_start(self.segment + 1);
        if end <= first_id || self.segment < 0 {
            return Ok(false);
        }
        let key = block_key(self.segment, FIRST_FILTER_BLOCK);
        let sql = "SELECT count(*) FROM block WHERE id = ?1";
        let is_new_segment = self.next_id == segment_start(self.segment);
        if is_new_segment && connection.query_row(sql, [key], |row| row.get::<_, i64>(0))? > 0 {
            self.next_segment();
            return Ok(true);
        }
        self.next_id = self.next_id.max(first_id);
        let until = (self.next_id + ROWS_PER_STEP).min(end);
        let sql = format!("SELECT {ACCOUNT_COLUMNS} WHERE id >= ?1 AND id < ?2");
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query([self.next_id, until])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let Some(stored) = AccountRow::read(row, layouts) else { break };
            let add = |hash| {
                self.values.insert(hash);
            };
            add_values(add, stored.columns.uid, stored.columns.name, stored.columns.figures);
            count += 1;
        }
        drop(rows);
        if count < until - self.next_id {
            self.next_segment();
            return Ok(true);
        }
        self.next_id = until;
        if until == end {
            let transaction = connection.unchecked_transaction()?;
            for (key, block) in encode_filter(self.segment, &self.values) {
                transaction.execute("INSERT OR REPLACE INTO block VALUES (?1, ?2)", (key, block))?;
            }
            transaction.commit()?;
            self.next_segment();
        }
        Ok(true)
    }

    fn next_segment(&mut self) {
        self.segment -= 1;
        (self.next_id, self.values) = (segment_start(self.segment), HashSet::new());
    }
}
