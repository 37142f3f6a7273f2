//! A write of which it is unknown whether it is in the database, until the database is opened anew.
//!
//! A commit can be in the file although it was reported as failed: its frames were written and only their sync failed, or the log
//! was unlinked and its open inode is copied to the database at the end of the connection. One write is one transaction, and the
//! IDs of its accounts are consecutive: it is in the database if its last account is.

use std::collections::VecDeque;

use super::batch::{Batch, WriteOp};
use super::database::Database;
use super::database_identity::DatabaseId;

#[derive(Debug)]
pub(super) struct UnconfirmedWrite {
    database: DatabaseId,
    /// The number of its batches, the first that are not known to be on disk.
    pub batches: usize,
    /// The last ID before it.
    last_before: i64,
}

impl UnconfirmedWrite {
    /// The write of so many batches, before it begins.
    pub fn new(database: &Database, batches: usize) -> Self {
        Self { database: database.identity.id, batches, last_before: database.index.last_id }
    }

    /// Whether it is in this database, to which nothing was written since it was opened. `batches`: those of the write, and any that
    /// came after it.
    pub fn is_in(&self, database: &Database, batches: &VecDeque<Batch>) -> bool {
        let is_account = |op: &&WriteOp| matches!(op, WriteOp::InsertAccount { .. });
        let ops = batches.iter().take(self.batches).flat_map(|batch| &batch.ops);
        let accounts = ops.filter(is_account).count() as i64;
        let (index, last) = (&database.index, self.last_before + accounts);
        // Without accounts: the journal can be written again.
        accounts > 0
            && database.identity.id == self.database
            && index.last_id >= last
            && index.gap_within(last, last).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::LayoutCache;
    use super::super::tests::{Fixture, account_of};
    use super::*;

    fn batch(accounts: u32) -> VecDeque<Batch> {
        let mut batch = Batch::default();
        for at in 0..accounts {
            let row = batch.pack(&account_of(at, format!("b{at}")), &mut LayoutCache::default());
            batch.ops.push(WriteOp::InsertAccount { row, journal_key: None });
        }
        batch.ops.push(WriteOp::DeleteJournal { key: 7 });
        [batch].into()
    }

    #[test]
    fn only_accounts_that_the_same_database_has_are_taken_as_written() {
        let mut fixture = Fixture::new();
        let mut database = fixture.open();
        fixture.write(&mut database, (0..3).map(|at| account_of(1, format!("a{at}"))));
        let (mut one, mut none) = (batch(1), batch(0));
        let is_in = |write: &UnconfirmedWrite, database: Database, batches: &VecDeque<Batch>| {
            drop(database);
            write.is_in(&fixture.open(), batches)
        };
        let write = UnconfirmedWrite::new(&database, one.len());
        assert_eq!(write.batches, 1);
        assert!(!is_in(&write, database, &one), "it was not written");
        // Without the mark the next ID is one of those that may be lost.
        std::fs::remove_file(fixture.dir.path().join("mark")).unwrap();
        database = fixture.open();
        assert_eq!(database.index.last_id, 4);
        assert!(!write.is_in(&database, &one), "a gap is no account");
        let write = UnconfirmedWrite::new(&database, one.len());
        database.write(one.make_contiguous(), fixture.now).unwrap();
        // A batch that came after the write is no part of it.
        one.extend(batch(1));
        assert!(is_in(&write, database, &one));
        assert!(!write.is_in(&Fixture::new().open(), &one), "another database");
        database = fixture.open();
        let write = UnconfirmedWrite::new(&database, none.len());
        database.write(none.make_contiguous(), fixture.now).unwrap();
        assert!(!is_in(&write, database, &none), "a journal is written again");
    }
}
