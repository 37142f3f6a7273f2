//! Builds the filters and sums that the full segments of an older version lack, in steps of bounded size, the latest segment
//! first.
//!
//! Invariant: a filter has the values of all accounts of its segment, and its sums have all of them; a segment with a damaged or
//! missing row gets neither.

use std::collections::HashSet;

use rusqlite::Connection;

use super::account_index::{block_key, segment_start};
use super::account_table::{ACCOUNT_COLUMNS, AccountColumns, AccountRow, LayoutTable};
use super::schema::{DatabaseError, unless_corrupt};
use super::segment_filter::{FIRST_FILTER_BLOCK, add_values, encode_filter, write_blocks};
use super::segment_sums::SegmentSums;
use super::sum_blocks::{self, FIRST_SUM_BLOCK};

/// The number of accounts that one step reads.
const ROWS_PER_STEP: i64 = 256;

/// The state between two steps.
#[derive(Debug)]
pub(super) struct FilterBuild {
    segment: i64,
    next_id: i64,
    values: HashSet<u32>,
    sums: SegmentSums,
}

impl FilterBuild {
    /// Begins below the open segment.
    pub(super) fn new(open_segment: i64) -> Self {
        let segment = open_segment - 1;
        Self {
            segment,
            next_id: segment_start(segment),
            values: HashSet::new(),
            sums: SegmentSums::default(),
        }
    }

    /// Runs one step; returns whether there are more.
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
        let keys = [FIRST_FILTER_BLOCK, FIRST_SUM_BLOCK].map(|block| block_key(self.segment, block));
        let sql = "SELECT count(*) FROM block WHERE id IN (?1, ?2)";
        let is_new_segment = self.next_id == segment_start(self.segment);
        // A segment whose blocks cannot be read gets no others: they have the same keys.
        if is_new_segment
            && unless_corrupt(connection.query_row(sql, keys, |row| row.get::<_, i64>(0)))?.unwrap_or(2) == 2
        {
            self.next_segment();
            return Ok(true);
        }
        self.next_id = self.next_id.max(first_id);
        let until = (self.next_id + ROWS_PER_STEP).min(end);
        // Rows that cannot be read are damaged ones: the store goes on without this segment's filter and sums.
        if self.add_rows(connection, layouts, until).unwrap_or(0) < until - self.next_id {
            self.next_segment();
            return Ok(true);
        }
        self.next_id = until;
        if until == end {
            let sum_blocks = sum_blocks::encode(self.segment, &self.sums);
            let blocks = encode_filter(self.segment, &self.values).into_iter().chain(sum_blocks);
            unless_corrupt(write_blocks(connection, blocks))?;
            self.next_segment();
        }
        Ok(true)
    }

    /// Adds the accounts up to an ID; returns how many there were before the first one that is missing or damaged.
    fn add_rows(
        &mut self,
        connection: &Connection,
        layouts: &LayoutTable,
        until: i64,
    ) -> rusqlite::Result<i64> {
        let sql = format!("SELECT {ACCOUNT_COLUMNS} WHERE id >= ?1 AND id < ?2");
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query([self.next_id, until])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let Some(stored) = AccountRow::read(row, layouts) else { break };
            let add = |hash| {
                self.values.insert(hash);
            };
            let AccountRow { kept_s, previous, columns, .. } = stored;
            add_values(add, columns.uid, columns.name, columns.figures);
            let AccountColumns { uid, layout, name, figures, .. } = columns;
            self.sums.add(uid, name, layout, figures, (kept_s, previous));
            count += 1;
        }
        Ok(count)
    }

    fn next_segment(&mut self) {
        self.segment -= 1;
        (self.next_id, self.values) = (segment_start(self.segment), HashSet::new());
        self.sums = SegmentSums::default();
    }
}
