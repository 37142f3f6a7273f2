//! Tests of sums: equal to those of the listed accounts, in bounded turns, with each account that cannot be read counted.

use std::sync::atomic::Ordering;

use wattspan_client::account::{Account, GapReason, MODEL_ATTRIBUTE, SpanState};
use wattspan_client::protocol::MissingAccounts;

use super::account_read::Filter;
use super::account_sums::SumField;
use super::database::Database;
use super::high_water_mark::HighWaterMark;
use super::query::QueryError;
use super::retention;
use super::sum_query::SumQuery;
use super::sum_scan::{SumRange, SumResult, SumScan};
use super::tests::{Fixture, START, account_of, append_and_wait, settings, store, wait_until};

pub(super) fn begin(database: &Database, query: SumQuery) -> SumScan {
    let range = SumRange::new(&database.index, database.identity.id, query.uid);
    SumScan::begin(query, range, &database.connection).unwrap()
}

pub(super) fn sum(database: &Database, query: SumQuery) -> SumResult {
    let mut scan = begin(database, query);
    while scan.run_turn(&database.connection).unwrap() {}
    scan.finish()
}

fn of_user(uid: u32) -> SumQuery {
    SumQuery { uid: Some(uid), ..SumQuery::default() }
}

pub(super) fn total(result: &SumResult) -> (u64, Option<u64>) {
    (result.grouped.total.accounts, result.grouped.total.energy_uj)
}

/// The number and the energy of some accounts.
fn expected<'a>(accounts: impl IntoIterator<Item = &'a Account>) -> (u64, Option<u64>) {
    accounts.into_iter().fold((0, None), |(count, uj), account| {
        (count + 1, Some(uj.unwrap_or(0) + account.share_uj.unwrap_or(0)))
    })
}

/// Accounts of three users, of two models, with different energies.
fn mixed(count: u64) -> Vec<Account> {
    let mixed = |at: u64| {
        let model = if at.is_multiple_of(5) { "large" } else { "small" };
        Account {
            share_uj: Some(at * at),
            name: format!("n{}", at % 7),
            state: if at.is_multiple_of(11) { SpanState::Abandoned } else { SpanState::Settled },
            opened_unix_ns: START.unix_s.unsigned_abs() * 1_000_000_000 - 1000 + at,
            attributes: [(MODEL_ATTRIBUTE.to_owned(), model.to_owned())].into(),
            ..account_of((at % 3) as u32, format!("s{at}"))
        }
    };
    (0..count).map(mixed).collect()
}

fn damage(database: &Database, id: i64) {
    let sql = "UPDATE account SET figures = zeroblob(length(figures)) WHERE id = ?1";
    assert_eq!(database.connection.execute(sql, [id]).unwrap(), 1);
}

pub(super) fn missing(reason: GapReason, accounts: Option<u64>) -> MissingAccounts {
    MissingAccounts { reason, accounts }
}

#[test]
fn sums_are_those_of_the_accounts_for_each_user_and_each_filter() {
    let accounts = mixed(20_000);
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, accounts.iter().cloned());
    let check = |query: SumQuery, matches: &dyn Fn(&Account) -> bool| {
        for uid in [None, Some(0), Some(1), Some(2), Some(9)] {
            let found = sum(&database, SumQuery { uid, ..query.clone() });
            let own = |account: &&Account| uid.is_none_or(|uid| uid == account.uid) && matches(account);
            assert_eq!(total(&found), expected(accounts.iter().filter(own)), "{uid:?} {query:?}");
            assert_eq!((found.missing, found.last), (vec![], 20_000));
        }
    };
    let filter = |filter: Filter| SumQuery { filter, ..SumQuery::default() };
    check(SumQuery::default(), &|_| true);
    check(filter(Filter { name: Some("n3".into()), ..Filter::default() }), &|account| account.name == "n3");
    let abandoned = filter(Filter { state: Some(SpanState::Abandoned), ..Filter::default() });
    check(abandoned, &|account| account.state == SpanState::Abandoned);
    let attributes = [(MODEL_ATTRIBUTE.to_owned(), "large".to_owned())].into();
    let large = |account: &Account| account.model() == Some("large");
    check(filter(Filter { attributes, ..Filter::default() }), &large);
    check(SumQuery { model: Some("large".into()), ..SumQuery::default() }, &large);
    check(SumQuery { model: Some("none".into()), ..SumQuery::default() }, &|_| false);
    let middle_ns = accounts[500].opened_unix_ns;
    let since = filter(Filter { since_unix_ns: Some(middle_ns), ..Filter::default() });
    check(since, &|account| account.opened_unix_ns >= middle_ns);
    let until = SumQuery { until_unix_ns: Some(middle_ns), ..SumQuery::default() };
    check(until, &|account| account.opened_unix_ns < middle_ns);
    let is_visible: Option<fn(&Account) -> bool> =
        Some(|account| account.share_uj.unwrap().is_multiple_of(2));
    check(SumQuery { is_visible, ..SumQuery::default() }, &|account| {
        account.share_uj.unwrap().is_multiple_of(2)
    });
    let by = vec![SumField::User, SumField::Model];
    let grouped = sum(&database, SumQuery { by, ..SumQuery::default() }).grouped;
    let rows: Vec<_> =
        grouped.sums.iter().map(|sum| (sum.uid.unwrap(), sum.model.as_deref().unwrap())).collect();
    assert_eq!(rows, [(0, "large"), (0, "small"), (1, "large"), (1, "small"), (2, "large"), (2, "small")]);
}

#[test]
fn a_turn_reads_a_bounded_number_of_rows_and_a_user_only_own_rows() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    // One user has every third account of the first half, and all accounts of the second.
    let uid = |at: u32| if at < 5000 { at % 3 } else { 0 };
    fixture.write(&mut database, (0..10_000).map(|at| account_of(uid(at), format!("s{at}"))));
    for (query, rows) in
        [(SumQuery::default(), 10_000), (of_user(0), 6667), (of_user(1), 1667), (of_user(7), 0)]
    {
        let (mut scan, mut before) = (begin(&database, query), 0);
        loop {
            let has_more = scan.run_turn(&database.connection).unwrap();
            assert!(scan.rows_read - before <= 2 * 2048);
            before = scan.rows_read;
            if !has_more {
                break;
            }
        }
        assert_eq!((scan.rows_read, scan.finish().grouped.total.accounts), (rows, rows));
    }
}

#[test]
fn a_turn_is_bounded_where_long_runs_of_one_user_are_interrupted_by_another() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture
        .write(&mut database, (0..16_000).map(|at| account_of(u32::from(at % 500 == 499), format!("s{at}"))));
    let (mut scan, mut before, mut turns) = (begin(&database, of_user(0)), 0, 0);
    while scan.run_turn(&database.connection).unwrap() {
        assert!(scan.rows_read - before <= 2 * 2048, "{} rows", scan.rows_read - before);
        (before, turns) = (scan.rows_read, turns + 1);
    }
    assert!(turns >= 4, "{turns} turns");
    assert_eq!(scan.finish().grouped.total.accounts, 16_000 - 32);
}

#[test]
fn a_search_for_late_accounts_reads_few_of_the_earlier_ones() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, mixed(10_000));
    fixture.advance(3600);
    let late_ns = (START.unix_s + 3600).unsigned_abs() * 1_000_000_000;
    let late = |at: u64| Account { opened_unix_ns: late_ns, ..account_of((at % 3) as u32, format!("t{at}")) };
    fixture.write(&mut database, (0..30).map(late));
    for (uid, count) in [(None, 30), (Some(1), 10)] {
        let filter = Filter { since_unix_ns: Some(late_ns), ..Filter::default() };
        let found = sum(&database, SumQuery { uid, filter, ..SumQuery::default() });
        assert_eq!(found.grouped.total.accounts, count);
        assert!(found.rows_read <= count + 1, "{} rows", found.rows_read);
    }
}

#[test]
fn damaged_rows_are_counted_and_the_others_are_summed() {
    let accounts = mixed(3000);
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, accounts.iter().cloned());
    // Account 1 is the first, and that of ID `at` is the one at `at - 1`.
    let damaged = [1, 700, 701, 3000];
    damaged.iter().for_each(|id| damage(&database, *id));
    database.connection.execute("DELETE FROM account WHERE id = 900", []).unwrap();
    let is_sound = |at: usize| !damaged.contains(&(at as i64 + 1)) && at != 899;
    let sound = || accounts.iter().enumerate().filter(|(at, _)| is_sound(*at)).map(|(_, account)| account);
    let all = sum(&database, SumQuery::default());
    assert_eq!(total(&all), expected(sound()));
    assert_eq!(all.missing, [missing(GapReason::Damaged, Some(5))]);
    for uid in 0..3 {
        let own = sum(&database, of_user(uid));
        assert_eq!(total(&own), expected(sound().filter(|account| account.uid == uid)), "{uid}");
        assert_eq!(own.missing, [missing(GapReason::Damaged, None)]);
    }
}

#[test]
fn lost_accounts_are_counted() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, mixed(10));
    drop(database);
    let mark = HighWaterMark::of_commit(15, START.unix_s, START.unix_s);
    fixture.mark_file().write(&mark).unwrap();
    let mut database = fixture.open();
    let lost = |accounts| vec![missing(GapReason::Lost, accounts)];
    assert_eq!(sum(&database, of_user(1)).missing, lost(None), "after its last account");
    fixture.write(&mut database, mixed(10));
    let all = sum(&database, SumQuery::default());
    assert_eq!((all.grouped.total.accounts, all.missing, all.last), (20, lost(Some(5)), 25));
    let own = sum(&database, of_user(1));
    assert_eq!((own.grouped.total.accounts, own.missing), (6, lost(None)));
}

#[test]
fn accounts_that_retention_deletes_during_the_scan_are_not_missing() {
    for query in [SumQuery::default(), of_user(1)] {
        let mut fixture = Fixture::new();
        let mut database = fixture.open();
        fixture.write(&mut database, mixed(15_000));
        let mut scan = begin(&database, query);
        assert!(scan.run_turn(&database.connection).unwrap());
        fixture.settings.max_bytes = 0;
        let step = retention::run_step(&mut database, &fixture.settings, START).unwrap();
        assert!(step.more);
        for _ in 0..4 {
            retention::run_step(&mut database, &fixture.settings, START).unwrap();
        }
        assert_eq!(database.index.first_id, 10_001);
        while scan.run_turn(&database.connection).unwrap() {}
        assert_eq!(scan.finish().missing, []);
    }
}

#[test]
fn sums_see_every_account_appended_before_them_and_accounts_are_stored_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&settings(dir.path()));
    let mut results = Vec::new();
    for number in 1..=20 {
        assert!(store.append(&account_of(1, format!("s{number}")), None, false));
        store.begin_sums(number, SumQuery::default());
        wait_until("summed", || {
            results.append(&mut store.take_sum_results());
            results.len() as u64 == number
        });
    }
    append_and_wait(&mut store, &account_of(1, "last".into()));
    for (number, result) in results {
        let result = result.unwrap();
        assert_eq!((result.grouped.total.accounts, result.last), (number, number));
    }
}

#[test]
fn a_cancelled_query_ends_with_an_error_and_a_shutdown_ends_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&settings(dir.path()));
    append_and_wait(&mut store, &account_of(1, "a".into()));
    let cancelled = SumQuery::default();
    cancelled.is_cancelled.store(true, Ordering::Relaxed);
    store.begin_sums(1, cancelled);
    let mut results = Vec::new();
    wait_until("ended", || {
        results.append(&mut store.take_sum_results());
        !results.is_empty()
    });
    assert!(matches!(&results[..], [(1, Err(QueryError::Unavailable { .. }))]), "{results:?}");
    store.begin_sums(2, SumQuery::default());
    store.shutdown(std::time::Duration::from_secs(20));
    let number_of = |(number, _): (u64, _)| number;
    assert_eq!(store.take_sum_results().into_iter().map(number_of).collect::<Vec<u64>>(), [2]);
}
