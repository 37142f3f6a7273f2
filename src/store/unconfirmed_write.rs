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
    /// The ID of its last account; `None` without accounts: the journal can be written again.
    last_id: Option<i64>,
}

impl UnconfirmedWrite {
    /// The write of these batches, before it begins.
    pub fn new(database: &Database, batches: &VecDeque<Batch>) -> Self {
        let is_account = |op: &&WriteOp| matches!(op, WriteOp::InsertAccount { .. });
        let accounts = batches.iter().flat_map(|batch| &batch.ops).filter(is_account).count() as i64;
        let last_id = (accounts > 0).then_some(database.index.last_id + accounts);
        Self { database: database.identity.id, batches: batches.len(), last_id }
    }

    /// Whether it is in this database, to which nothing was written since it was opened.
    pub fn is_in(&self, database: &Database) -> bool {
        let index = &database.index;
        let has = |last: i64| index.last_id >= last && index.gap_within(last, last).is_none();
        database.identity.id == self.database && self.last_id.is_some_and(has)
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
        let is_in = |write: &UnconfirmedWrite, database: Database| {
            drop(database);
            write.is_in(&fixture.open())
        };
        let write = UnconfirmedWrite::new(&database, &one);
        assert_eq!(write.batches, 1);
        assert!(!is_in(&write, database), "it was not written");
        // Without the mark the next ID is one of those that may be lost.
        std::fs::remove_file(fixture.dir.path().join("mark")).unwrap();
        database = fixture.open();
        assert_eq!(database.index.last_id, 4);
        assert!(!write.is_in(&database), "a gap is no account");
        let write = UnconfirmedWrite::new(&database, &one);
        database.write(one.make_contiguous(), fixture.now).unwrap();
        assert!(is_in(&write, database));
        assert!(!write.is_in(&Fixture::new().open()), "another database");
        database = fixture.open();
        let write = UnconfirmedWrite::new(&database, &none);
        database.write(none.make_contiguous(), fixture.now).unwrap();
        assert!(!is_in(&write, database), "a journal is written again");
    }
}
