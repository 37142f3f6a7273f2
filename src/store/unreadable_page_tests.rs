//! Tests of a database of which SQLite cannot read one page: it is used with the rest, and not moved aside.

use super::account_index::{HEADS, block_key};
use super::account_read::Filter;
use super::database::Database;
use super::query::{self, StoreQuery};
use super::retention;
use super::schema::DatabaseError;
use super::segment_filter::FIRST_FILTER_BLOCK;
use super::segment_sum_tests::two_segments;
use super::sum_blocks::FIRST_SUM_BLOCK;
use super::tests::{Fixture, account_of};

const BLOCK_SQL: &str = "SELECT bytes FROM block WHERE id = ?1";

/// Closes a database, overwrites the leaf of a table that has these bytes, and opens it again.
fn reopen_without_leaf(fixture: &Fixture, database: Database, contents: &[u8]) -> Database {
    drop(database);
    let file = fixture.dir.path().join("database");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(contents.len()).position(|found| found == contents).unwrap();
    let page = at - at % 4096;
    assert_eq!(bytes[page], 0x0d, "a leaf");
    bytes[page..page + 4096].fill(0);
    std::fs::write(&file, bytes).unwrap();
    fixture.open()
}

/// The same for the leaf with the first bytes of a block.
fn reopen_without_block(fixture: &Fixture, database: Database, key: i64) -> Database {
    let block: Vec<u8> = database.connection.query_row(BLOCK_SQL, [key], |row| row.get(0)).unwrap();
    let database = reopen_without_leaf(fixture, database, &block[..block.len().min(32)]);
    let read = database.connection.query_row(BLOCK_SQL, [key], |row| row.get::<_, Vec<u8>>(0));
    assert!(DatabaseError::Sqlite(read.unwrap_err()).is_corruption());
    database
}

fn list(uid: Option<u32>, name: &str, before: Option<u64>) -> StoreQuery {
    let filter = Filter { name: Some(name.into()), ..Filter::default() };
    StoreQuery::List { uid, filter, limit: 100, before }
}

/// The names of the accounts on all pages of a list.
fn all_spans(database: &Database, uid: Option<u32>, name: &str) -> Vec<String> {
    let (mut spans, mut before) = (Vec::new(), None);
    loop {
        let page = query::tests::run(database, &list(uid, name, before)).unwrap();
        spans.extend(page.accounts.into_iter().map(|account| account.span));
        before = page.before;
        if before.is_none() {
            return spans;
        }
    }
}

#[test]
fn blocks_that_cannot_be_read_are_unknown() {
    for damaged in [HEADS, FIRST_FILTER_BLOCK, FIRST_SUM_BLOCK] {
        let (mut fixture, database, _) = two_segments(true);
        let lacking = "DELETE FROM block WHERE id >> 7 = 0 AND id & 127 >= ?1";
        database.connection.execute(lacking, [FIRST_FILTER_BLOCK]).unwrap();
        let mut database = reopen_without_block(&fixture, database, block_key(1, damaged));
        while database.build_filters().unwrap() {}
        let key = block_key(0, FIRST_SUM_BLOCK);
        let is_built = database.connection.prepare(BLOCK_SQL).unwrap().exists([key]).unwrap();
        assert!(is_built, "block {damaged} of a later segment");
        assert_eq!(all_spans(&database, None, "own-20000"), ["s20000"]);
        fixture.write(&mut database, [account_of(1, "after".into())]);
    }
}

#[test]
fn a_list_reads_rows_where_the_latest_accounts_of_users_cannot_be_read() {
    let (fixture, database, truth) = two_segments(true);
    let uid = truth.accounts[&9].0.uid;
    let database = reopen_without_block(&fixture, database, block_key(0, HEADS));
    assert_eq!(all_spans(&database, Some(uid), "absent"), [""; 0]);
    assert_eq!(all_spans(&database, Some(uid), "own-8"), ["s8"]);
}

#[test]
fn retention_passes_accounts_that_cannot_be_read() {
    // More than a segment: the page is not in the open one.
    const ACCOUNTS: i64 = 20_000;
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    for first in (1..=ACCOUNTS).step_by(1000) {
        fixture.write(&mut database, (first..first + 1000).map(|id| account_of(1, format!("account-{id}."))));
        fixture.advance(86_400);
    }
    let mut database = reopen_without_leaf(&fixture, database, b"account-1.");
    let read = database.connection.query_row("SELECT min(id) FROM account", [], |row| row.get::<_, i64>(0));
    assert!(DatabaseError::Sqlite(read.unwrap_err()).is_corruption());
    let forecast = retention::forecast(&database, &fixture.settings, fixture.now).unwrap();
    assert!(forecast.is_some());
    // Four days of accounts are older than 30 days, then all.
    for (days, first_id) in [(14, 4001), (40, ACCOUNTS + 1)] {
        fixture.advance(days * 86_400);
        while retention::run_step(&mut database, &fixture.settings, fixture.now).unwrap().more {}
        let found = database.index.first_id;
        assert!((first_id - 1000..=first_id + 1000).contains(&found), "{found}, not {first_id}");
        drop(database);
        database = fixture.open();
        assert_eq!(database.index.first_id, found);
    }
    let left = "SELECT count(*) FROM account WHERE id > 6000";
    assert_eq!(database.connection.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    fixture.write(&mut database, [account_of(1, "after".into())]);
}
