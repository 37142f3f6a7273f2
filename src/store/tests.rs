//! Tests of the store without a service: storing, queries, retention and refusals.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use wattspan_client::account::{Account, SpanState};

use super::account_record::tests::account;
use super::batch::{Batch, LayoutCache, WriteOp};
use super::database::Database;
use super::high_water_mark::{HighWaterMark, MarkContents, MarkFile};
use super::schema::DatabaseError;
use super::time::ClockReading;
use super::*;

pub(super) fn settings(directory: &Path) -> StoreSettings {
    StoreSettings {
        directory: directory.join("state"),
        max_age: Duration::from_secs(3600),
        max_bytes: 1 << 30,
        max_waiting_bytes: 1 << 20,
        sync: SyncMode::Normal,
        sync_interval: Duration::from_secs(1),
        boot_id: String::new(),
    }
}

pub(super) fn store(settings: &StoreSettings) -> Store {
    Store::start(settings.clone(), |_| ()).unwrap()
}

/// A store in the directory of one that has ended, once it has opened the database: on a slow disk the other one may still
/// write, and holds the directory until then.
pub(super) fn reopened(settings: &StoreSettings) -> Store {
    let store = store(settings);
    wait_until("opened", || store.health().durable);
    store
}

pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn append_and_wait(store: &mut Store, account: &Account) {
    let number = store.next_number();
    assert!(store.append(account, None, true));
    store.flush();
    wait_until("committed", || store.committed() >= number);
}

fn query_store(store: &mut Store, query: StoreQuery) -> QueryResult {
    assert!(store.submit_query(7, query));
    let mut answers = Vec::new();
    wait_until("answered", || {
        answers.extend(store.take_query_results());
        !answers.is_empty()
    });
    let (number, found) = answers.pop().unwrap();
    assert_eq!(number, 7);
    found.expect("a database that answers")
}

fn span_query(uid: u32, all_users: bool, span: &str) -> StoreQuery {
    StoreQuery::Span { uid, all_users, span: span.into() }
}

fn list_query(uid: Option<u32>, filter: Filter, limit: usize) -> StoreQuery {
    StoreQuery::List { uid, filter, limit, before: None }
}

fn span_names(found: &QueryResult) -> Vec<&str> {
    found.accounts.iter().map(|account| account.span.as_str()).collect()
}

#[test]
fn accounts_read_back_equal_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let given = account("00ff0123456789abcdef0123456789ab");
    let chosen = account("job \u{1f525}");
    let mut first = store(&settings);
    append_and_wait(&mut first, &given);
    append_and_wait(&mut first, &chosen);
    drop(first);
    let mut second = reopened(&settings);
    for account in [given, chosen] {
        let found = query_store(&mut second, span_query(account.uid, false, &account.span));
        assert_eq!(found.accounts, [account]);
    }
}

#[test]
fn an_account_that_was_written_to_an_unlinked_log_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let mut first = store(&settings);
    append_and_wait(&mut first, &account("a"));
    std::fs::remove_file(settings.directory.join("ledger.sqlite-wal")).unwrap();
    for span in ["b", "c"] {
        append_and_wait(&mut first, &account(span));
    }
    let all = list_query(None, Filter::default(), 9);
    assert_eq!(span_names(&query_store(&mut first, all.clone())), ["c", "b", "a"]);
    assert_eq!(first.waiting_bytes(), 0);
    drop(first);
    let mut second = reopened(&settings);
    assert_eq!(span_names(&query_store(&mut second, all)), ["c", "b", "a"]);
    assert_eq!(second.health().reason, None);
}

#[test]
fn a_user_finds_own_accounts_only_and_telemetry_its_own_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&settings(dir.path()));
    let theirs = Account { uid: 2, ..account("same") };
    append_and_wait(&mut store, &Account { uid: 1, ..account("same") });
    append_and_wait(&mut store, &theirs);
    append_and_wait(&mut store, &Account { uid: 2, ..account("only") });
    assert_eq!(query_store(&mut store, span_query(1, false, "only")), QueryResult::default());
    assert_eq!(query_store(&mut store, span_query(1, true, "only")).accounts.len(), 1);
    assert_eq!(query_store(&mut store, span_query(1, true, "same")).accounts[0].uid, 1);
    assert_eq!(query_store(&mut store, span_query(3, true, "same")).accounts, [theirs]);
    assert_eq!(span_names(&query_store(&mut store, list_query(Some(1), Filter::default(), 9))), ["same"]);
    assert_eq!(
        span_names(&query_store(&mut store, list_query(None, Filter::default(), 2))),
        ["only", "same"]
    );
}

#[test]
fn a_lookup_by_name_returns_the_newest_account() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings { max_waiting_bytes: 1 << 26, ..settings(dir.path()) };
    let mut store = store(&settings);
    let attributes = BTreeMap::from([("task".to_owned(), "first".to_owned())]);
    append_and_wait(
        &mut store,
        &Account { name: "first".into(), attributes: attributes.clone(), ..account("name") },
    );
    for at in 0..20_000 {
        assert!(store.append(&account(&format!("between{at}")), None, false));
    }
    assert_eq!(query_store(&mut store, span_query(1000, false, "name")).accounts[0].name, "first");
    append_and_wait(&mut store, &Account { name: "second".into(), ..account("name") });
    assert_eq!(query_store(&mut store, span_query(1000, false, "name")).accounts[0].name, "second");
    assert_eq!(query_store(&mut store, span_query(1000, false, "between3")).accounts.len(), 1);
    // Names are indexed, other attributes are not: one query reads a bounded number of rows and returns a cursor.
    let named = Filter { name: Some("first".into()), ..Filter::default() };
    assert_eq!(span_names(&query_store(&mut store, list_query(Some(1000), named, 1))), ["name"]);
    let filter = Filter { attributes, ..Filter::default() };
    let part = query_store(&mut store, list_query(Some(1000), filter.clone(), 1));
    assert!(part.accounts.is_empty());
    let rest = StoreQuery::List { uid: Some(1000), filter, limit: 1, before: part.before };
    assert_eq!(span_names(&query_store(&mut store, rest)), ["name"]);
}

#[test]
fn a_filter_matches_accounts_that_meet_all_conditions() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&settings(dir.path()));
    append_and_wait(&mut store, &Account { state: SpanState::Settled, ..account("a") });
    append_and_wait(&mut store, &Account { opened_unix_ns: 5, ..account("b") });
    let mut fits = |filter| span_names(&query_store(&mut store, list_query(None, filter, 9))).join(" ");
    assert_eq!(fits(Filter { since_unix_ns: Some(6), ..Filter::default() }), "a");
    assert_eq!(fits(Filter { state: Some(SpanState::Abandoned), ..Filter::default() }), "b");
    let attributes = |key: &str, value: &str| Filter {
        attributes: [(key.to_owned(), value.to_owned())].into(),
        ..Filter::default()
    };
    assert_eq!(fits(attributes("model", "a")), "b a");
    assert_eq!(fits(attributes("model", "b")), "");
    assert_eq!(fits(Filter { name: Some("Frage".into()), ..Filter::default() }), "");
}

#[test]
fn journalled_spans_of_a_killed_process_become_interrupted_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let mut first = store(&settings);
    let interrupted = Account { state: SpanState::Interrupted, ..account("cut") };
    assert!(first.write_journal(1, &Account { share_uj: Some(1), ..interrupted.clone() }, None));
    assert!(first.write_journal(1, &interrupted, None));
    assert!(
        first.write_journal(2, &account("cancelled"), None)
            && first.write_journal(3, &account("settled"), None)
    );
    first.delete_journal(2);
    assert!(first.append(&account("settled"), Some(3), false));
    drop(first);
    let mut second = reopened(&settings);
    let found = query_store(&mut second, list_query(None, Filter::default(), 9));
    assert_eq!(span_names(&found), ["cut", "settled"]);
    assert_eq!(found.accounts[0], interrupted);
    assert_eq!(query_store(&mut second, span_query(1000, false, "cut")).accounts, [interrupted]);
}

#[test]
fn a_full_queue_refuses_and_counts_accounts_and_memory_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings { directory: "/proc/wattspan".into(), ..settings(dir.path()) };
    let mut store = store(&settings);
    wait_until("failing", || store.is_failing());
    let mut taken = 0;
    while store.append(&account("a"), None, true) {
        store.flush();
        taken += 1;
        assert!(taken < 100_000, "it takes more than it may");
    }
    assert!(store.waiting_bytes() < settings.max_waiting_bytes + 10_000);
    let health = store.health();
    assert_eq!((health.durable, health.waiting, health.not_kept), (false, taken, 1));
    assert!(health.reason.unwrap().contains("/proc/wattspan"));
    assert!(!store.write_journal(1, &account("a"), None), "the journal waits");
}

#[test]
fn the_size_limit_deletes_the_oldest_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings { max_bytes: 1 << 20, max_waiting_bytes: 1 << 26, ..settings(dir.path()) };
    let mut store = store(&settings);
    for at in 0..20_000 {
        assert!(store.append(&account(&format!("s{at}")), None, at == 19_999));
    }
    append_and_wait(&mut store, &account("last"));
    wait_until("deleted", || {
        query_store(&mut store, span_query(1000, false, "s0")) == QueryResult::default()
    });
    wait_until("small enough", || {
        let bytes = store.health().bytes;
        bytes > 0 && bytes <= settings.max_bytes
    });
    assert_eq!(query_store(&mut store, span_query(1000, false, "s19999")).accounts.len(), 1);
}

#[test]
fn the_log_stays_short_beside_searches() {
    const LIMIT_BYTES: u64 = 6_000_000;
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings { sync: SyncMode::Off, ..settings(dir.path()) };
    let mut store = store(&settings);
    let absent = Filter { attributes: [("key".into(), "absent".into())].into(), ..Filter::default() };
    let (mut submitted, mut answered, mut committed_beside) = (0_u64, 0, 0);
    for round in 0..600 {
        while submitted - answered < 3 {
            submitted += 1;
            assert!(store.submit_query(submitted, list_query(None, absent.clone(), 1)));
        }
        for at in 0..50 {
            assert!(store.append(&account(&format!("{round}-{at}")), None, at == 49));
        }
        store.flush();
        let before = answered;
        wait_until("committed", || {
            answered += store.take_query_results().len() as u64;
            store.committed() == store.next_number() - 1
        });
        committed_beside += u64::from(answered < before + 3);
    }
    assert!(committed_beside > 100, "{committed_beside} commits while a search ran");
    let files = ["ledger.sqlite", "ledger.sqlite-wal"].map(|file| settings.directory.join(file));
    let [database, log] = files.map(|file| std::fs::metadata(file).unwrap().len());
    assert!(database > 1_000_000 && log < LIMIT_BYTES, "{database} and {log} bytes");
}

#[test]
fn the_age_limit_deletes_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings { max_age: Duration::from_secs(1), ..settings(dir.path()) };
    let mut first = store(&settings);
    append_and_wait(&mut first, &account("a"));
    drop(first);
    thread::sleep(Duration::from_millis(2100));
    let mut second = reopened(&settings);
    wait_until("gone", || {
        query_store(&mut second, list_query(None, Filter::default(), 9)).accounts.is_empty()
    });
}

#[test]
fn layouts_beyond_the_maximum_are_stored_with_their_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let with_own_layout = |at: usize| {
        let mut account = account(&format!("s{at}"));
        account.domains[0].domain = format!("domain-{at}").into();
        account
    };
    let mut first = store(&settings);
    for at in 0..1100 {
        assert!(first.append(&with_own_layout(at), None, false));
    }
    drop(first);
    let mut second = reopened(&settings);
    for at in [0, 255, 256, 1099] {
        assert_eq!(
            query_store(&mut second, span_query(1000, false, &format!("s{at}"))).accounts,
            [with_own_layout(at)]
        );
    }
}

#[test]
fn only_the_journal_of_another_process_is_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, other) = (dir.path().join("mine"), dir.path().join("other"));
    let mut dead = store(&settings(&other));
    assert!(dead.write_journal(1, &account("of the dead"), None));
    dead.shutdown(Duration::from_secs(60));
    drop(dead);
    let settings = settings(&mine);
    let mut living = store(&settings);
    assert!(living.write_journal(1, &account("open"), None));
    append_and_wait(&mut living, &account("first"));
    // Enough write operations to trigger a check of the directory.
    let noticed = |living: &mut Store, span_there: &str| {
        (0..20_000).for_each(|_| living.delete_journal(99));
        living.flush();
        wait_until("it has opened what is there now", || {
            assert!(living.submit_query(9, list_query(None, Filter::default(), 9)));
            let mut answers = Vec::new();
            wait_until("answered", || {
                answers.extend(living.take_query_results());
                !answers.is_empty()
            });
            let found = answers.pop().and_then(|(_, found)| found.ok());
            found.is_some_and(|found| span_names(&found).contains(&span_there))
        });
    };
    let (state, aside) = (&settings.directory, mine.join("aside"));
    std::fs::rename(state, &aside).unwrap();
    std::fs::rename(other.join("state"), state).unwrap();
    noticed(&mut living, "of the dead");
    std::fs::rename(state, other.join("state")).unwrap();
    std::fs::rename(&aside, state).unwrap();
    noticed(&mut living, "first");
    let found = query_store(&mut living, list_query(None, Filter::default(), 9));
    assert_eq!(span_names(&found), ["first"], "what is open has no account yet");
}

/// A database on manual clocks.
pub(super) struct Fixture {
    pub(super) dir: tempfile::TempDir,
    pub(super) settings: StoreSettings,
    pub(super) now: ClockReading,
    layouts: LayoutCache,
}

pub(super) const START: ClockReading = ClockReading { unix_s: 1_763_000_000, boot_s: 500 };

const DAY_S: i64 = 86_400;

impl Fixture {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = StoreSettings { max_age: Duration::from_secs(30 * 86_400), ..settings(dir.path()) };
        Self { dir, settings, now: START, layouts: LayoutCache::default() }
    }

    pub(super) fn mark_file(&self) -> MarkFile {
        let path = self.dir.path().join("mark");
        MarkFile(
            std::fs::File::options().create(true).truncate(false).read(true).write(true).open(path).unwrap(),
        )
    }

    pub(super) fn open(&self) -> Database {
        let path = self.dir.path().join("database");
        std::fs::File::options().create(true).append(true).open(&path).unwrap();
        Database::open(&path, self.mark_file(), &self.settings, self.now).unwrap()
    }

    pub(super) fn advance(&mut self, seconds: i64) {
        self.now = ClockReading { unix_s: self.now.unix_s + seconds, boot_s: self.now.boot_s + seconds };
    }

    pub(super) fn write(&mut self, database: &mut Database, accounts: impl IntoIterator<Item = Account>) {
        let mut batch = Batch::default();
        for account in accounts {
            let row = batch.pack(&account, &mut self.layouts);
            batch.ops.push(WriteOp::InsertAccount { row, journal_key: None });
        }
        database.write(&[batch], self.now).unwrap();
        database.write_mark().unwrap();
    }

    /// Runs all deletions that are due; returns the number of remaining accounts and the log lines.
    pub(super) fn apply_retention(&self, database: &mut Database) -> (i64, Vec<String>) {
        let mut lines = Vec::new();
        loop {
            let step = retention::run_step(database, &self.settings, self.now).unwrap();
            lines.extend(step.log_lines);
            if !step.more {
                let count = "SELECT count(*) FROM account";
                return (database.connection.query_row(count, [], |row| row.get(0)).unwrap(), lines);
            }
        }
    }
}

pub(super) fn account_of(uid: u32, span: String) -> Account {
    Account { uid, ..account(&span) }
}

#[test]
fn a_clock_that_jumps_forward_deletes_at_most_a_day_per_day() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    for hour in 0..240 {
        fixture.write(&mut database, [account_of(1, format!("s{hour}"))]);
        fixture.advance(3600);
    }
    assert_eq!(fixture.apply_retention(&mut database), (240, vec![]));
    fixture.now.unix_s += 31 * DAY_S;
    for _ in 0..5 {
        fixture.advance(60);
        assert_eq!(fixture.apply_retention(&mut database), (240, vec![]), "right after the jump");
    }
    // A restart does not allow a second day's deletion.
    for restart in 1..=30 {
        fixture.advance(600);
        database.save_running_time(fixture.now).unwrap();
        drop(database);
        database = fixture.open();
        assert_eq!(fixture.apply_retention(&mut database).0, 240, "restart {restart}");
    }
    fixture.advance(DAY_S);
    let (left, lines) = fixture.apply_retention(&mut database);
    assert_eq!(left, 216, "a day's worth after a day");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("deleted 24 accounts, stored from 2025-11-13T02:13:20Z to "), "{lines:?}");
    fixture.advance(3600);
    assert_eq!(fixture.apply_retention(&mut database).0, 216);
    // The clock is corrected.
    fixture.now.unix_s -= 31 * DAY_S;
    fixture.advance(DAY_S);
    assert_eq!(fixture.apply_retention(&mut database).0, 216);
}

#[test]
fn accounts_kept_under_a_wrong_clock_expire_with_their_neighbours() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, [account_of(1, "before".into())]);
    fixture.advance(3600);
    for (span, wrong_s) in [("future", 10 * 365 * DAY_S), ("past", -START.unix_s - 3600)] {
        fixture.now.unix_s += wrong_s;
        fixture.write(&mut database, [account_of(1, span.into())]);
        fixture.now.unix_s -= wrong_s;
        fixture.advance(3600);
    }
    fixture.write(&mut database, [account_of(1, "after".into())]);
    for day in 0..29 {
        fixture.advance(DAY_S);
        assert_eq!(fixture.apply_retention(&mut database).0, 4, "day {day}");
    }
    fixture.advance(2 * DAY_S);
    let (left, lines) = fixture.apply_retention(&mut database);
    assert_eq!((left, lines.len()), (0, 1), "{lines:?}");
    assert!(lines[0].contains("deleted 4 accounts") && lines[0].contains("older than 30 days"), "{lines:?}");
}

#[test]
fn accounts_that_aged_while_the_daemon_was_off_are_deleted_day_by_day() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    for hour in 0..48 {
        fixture.write(&mut database, [account_of(1, format!("s{hour}"))]);
        fixture.advance(3600);
    }
    drop(database);
    fixture.advance(60 * DAY_S);
    let mut database = fixture.open();
    assert_eq!(fixture.apply_retention(&mut database).0, 48);
    fixture.advance(DAY_S);
    assert_eq!(fixture.apply_retention(&mut database).0, 24);
    fixture.advance(DAY_S);
    assert_eq!(fixture.apply_retention(&mut database).0, 0);
}

#[test]
fn it_is_logged_once_that_size_and_not_age_limits_retention() {
    let mut fixture = Fixture::new();
    fixture.settings.max_bytes = 1 << 20;
    let mut database = fixture.open();
    let (mut runs, mut logged) = (0, 0);
    for round in 0..240 {
        fixture.advance(6);
        fixture.write(&mut database, (0..100).map(|at| account_of(1, format!("s{round}-{at}"))));
        let (_, lines) = fixture.apply_retention(&mut database);
        runs += lines.iter().filter(|line| line.starts_with("deleted ")).count();
        let once = |line: &&String| line.contains("size, not age") && line.contains("ledger.megabytes");
        logged += lines.iter().filter(once).count();
    }
    assert!(runs > 1, "{runs} runs");
    assert_eq!(logged, 1);
    let forecast = retention::forecast(&database, &fixture.settings, fixture.now).unwrap().unwrap();
    assert!(forecast.limited_by_size);
    assert!((forecast.accounts_per_h as i64 - 60_000).abs() < 6000, "{forecast:?}");
    // A megabyte of accounts, at 1000 accounts per minute.
    let expected_s = (1 << 20) / forecast.bytes_per_account * 60 / 1000;
    assert!(forecast.retention_s.abs_diff(expected_s) * 5 < expected_s, "{forecast:?}, {expected_s} s");
}

fn query_spans(database: &Database, query: StoreQuery) -> Result<Vec<String>, String> {
    let answer = query::tests::run(database, &query).map_err(|cause| cause.to_string())?;
    Ok(answer.accounts.into_iter().map(|account| account.span).collect())
}

#[test]
fn a_full_segment_is_found_by_name_and_its_damage_is_an_error() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..40_000).map(|at| account_of(at % 3, format!("s{at}"))));
    fixture.write(&mut database, (0..10).map(|at| account_of(7, format!("{at:032x}"))));
    drop(database);
    let database = fixture.open();
    for at in [0, 5, 16_382, 16_383, 16_384, 32_767, 32_768, 39_999] {
        let span = format!("s{at}");
        assert_eq!(query_spans(&database, span_query(at % 3, false, &span)), Ok(vec![span.clone()]));
        assert_eq!(query_spans(&database, span_query(at % 3 + 1, false, &span)), Ok(vec![]));
    }
    assert_eq!(query_spans(&database, span_query(0, true, "none")), Ok(vec![]));
    database
        .connection
        .execute("UPDATE block SET bytes = zeroblob(length(bytes)) WHERE id < 64", [])
        .unwrap();
    assert!(query_spans(&database, span_query(0, true, "s3")).is_err(), "its block is damaged");
    assert!(query_spans(&database, span_query(0, true, "none")).is_err(), "it may be in the damaged block");
    assert!(
        query_spans(&database, span_query(7, true, &format!("{:032x}", 3))).is_ok(),
        "it comes before the damage"
    );
    database.connection.execute("DELETE FROM block WHERE id >> 7 = 1", []).unwrap();
    assert!(query_spans(&database, span_query(1, true, "s20000")).is_err(), "its block is missing");
    database.connection.execute("DELETE FROM account WHERE id = 39999", []).unwrap();
    assert!(query_spans(&database, span_query(0, true, "s39998")).is_err(), "its row is missing");
    assert_eq!(query_spans(&database, span_query(0, true, "s39999")), Ok(vec!["s39999".into()]));
}

#[test]
fn a_list_ends_before_damage_and_goes_on_past_it() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..20_000).map(|at| account_of(at % 2, format!("s{at}"))));
    drop(database);
    let path = fixture.dir.path().join("database");
    let outside = rusqlite::Connection::open(&path).unwrap();
    outside.execute("UPDATE account SET uid = 5 WHERE id = 19991", []).unwrap();
    outside.execute("DELETE FROM account WHERE id BETWEEN 10001 AND 10100", []).unwrap();
    drop(outside);
    let database = fixture.open();
    for uid in [None, Some(0), Some(1)] {
        let (mut before, mut listed, mut damaged) = (None, 0, 0);
        loop {
            let list = StoreQuery::List { uid, filter: Filter::default(), limit: 256, before };
            before = match query::tests::run(&database, &list) {
                Ok(found) => {
                    listed += found.accounts.len();
                    found.before
                }
                Err(account_read::ReadError::Damaged(damage)) => {
                    damaged += 1;
                    Some(damage.first() as u64)
                }
                Err(other) => panic!("{other}"),
            };
            if before.is_none() {
                break;
            }
        }
        // The damaged row belongs to user 0; half of the missing rows belong to each user.
        let expected = match uid {
            None => 20_000 - 1 - 100,
            Some(0) => 10_000 - 1 - 50,
            _ => 10_000 - 50,
        };
        assert_eq!(listed, expected, "{uid:?}");
        assert!(damaged >= 1, "{uid:?}");
    }
}

#[test]
fn a_lost_tail_is_recorded_once_and_ids_continue_after_it() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..100).map(|at| account_of(1, format!("{at:032x}"))));
    fixture.write(&mut database, [account_of(1, "chosen".into())]);
    drop(database);
    fixture.mark_file().write(&HighWaterMark::of_commit(50_000, START.unix_s + 9, START.unix_s)).unwrap();
    let mut database = fixture.open();
    let loss = "accounts 102 to 50000 may be lost since 2025-11-13T02:13:20Z (until 2025-11-13T02:13:29Z)";
    assert_eq!(database.new_gaps, [loss]);
    fixture.write(&mut database, [account_of(1, "next".into())]);
    let MarkContents::Valid(mark) = fixture.mark_file().read().unwrap() else { panic!("no mark") };
    assert_eq!(mark.last, 50_001);
    drop(database);
    let database = fixture.open();
    assert_eq!((database.new_gaps.len(), database.describe_gaps().as_deref()), (0, Some(loss)));
    let given = format!("{:032x}", 17);
    assert_eq!(query_spans(&database, span_query(1, false, "next")), Ok(vec!["next".into()]));
    assert_eq!(
        query_spans(&database, span_query(1, false, &given)),
        Ok(vec![given.clone()]),
        "no other has its name"
    );
    // The latest span of a client's name may be among the lost accounts.
    assert!(query_spans(&database, span_query(1, false, "chosen")).is_err());
    assert!(query_spans(&database, span_query(1, false, "none")).is_err());
    let list = |before| StoreQuery::List { uid: Some(1), filter: Filter::default(), limit: 9, before };
    assert_eq!(query_spans(&database, list(None)), Ok(vec!["next".into()]));
    assert!(query_spans(&database, list(Some(50_001))).is_err());
    assert_eq!(query_spans(&database, list(Some(102))).unwrap()[0], "chosen");
}

/// The tables as version 1 creates them.
const VERSION_1: &str = "
    CREATE TABLE layout (id INTEGER PRIMARY KEY, domains BLOB NOT NULL UNIQUE);
    CREATE TABLE account (
        id INTEGER PRIMARY KEY, uid INTEGER NOT NULL, kept_s INTEGER NOT NULL, layout,
        span NOT NULL, name TEXT NOT NULL, figures BLOB NOT NULL
    );
    CREATE INDEX account_by_user ON account (uid);
    CREATE TABLE named (
        stretch INTEGER NOT NULL, hash INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (stretch, hash, id)
    ) WITHOUT ROWID;
    CREATE TABLE journal (
        key INTEGER PRIMARY KEY, uid INTEGER NOT NULL, layout,
        span NOT NULL, name TEXT NOT NULL, figures BLOB NOT NULL
    );
    PRAGMA user_version = 1;
";

#[test]
fn a_version_1_database_is_migrated_without_loss() {
    let mut fixture = Fixture::new();
    let accounts: Vec<Account> = (0..20_000).map(|at| account_of(at % 2, format!("s{at}"))).collect();
    let mut old = rusqlite::Connection::open(fixture.dir.path().join("database")).unwrap();
    old.execute_batch(VERSION_1).unwrap();
    let transaction = old.transaction().unwrap();
    let (mut layout, mut figures) = (Vec::new(), Vec::new());
    account_record::encode_layout(&accounts[0], &mut layout);
    transaction.execute("INSERT INTO layout VALUES (1, ?1)", [&layout]).unwrap();
    // The accounts below ID 1001 were deleted by age.
    for (account, id) in accounts.iter().zip(1001..) {
        figures.clear();
        account_record::encode_figures(account, &mut figures);
        let (kept_s, span, name) = (START.unix_s - 30_000 + id, &account.span, &account.name);
        let values = rusqlite::params![id, account.uid, kept_s, span, name, figures];
        transaction.execute("INSERT INTO account VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6)", values).unwrap();
    }
    let open = "INSERT INTO journal SELECT 4, uid, layout, 'open', name, figures FROM account LIMIT 1";
    transaction.execute(open, []).unwrap();
    transaction.commit().unwrap();
    drop(old);
    let mut database = fixture.open();
    assert_eq!(database.new_gaps, Vec::<String>::new());
    assert_eq!(database.recover(fixture.now).unwrap(), 1);
    fixture.write(&mut database, [account_of(0, "new".into())]);
    drop(database);
    let database = fixture.open();
    for account in
        accounts.iter().step_by(97).chain([&account_of(0, "new".into()), &account_of(0, "open".into())])
    {
        let answer = query::tests::run(&database, &span_query(account.uid, false, &account.span)).unwrap();
        assert_eq!(answer.accounts, std::slice::from_ref(account));
    }
    assert_eq!(query_spans(&database, span_query(0, true, "none")), Ok(vec![]));
    assert_eq!((database.index.first_id, database.index.last_id), (1001, 21_002));
}

#[test]
fn a_row_with_a_damaged_id_hides_no_later_row() {
    let mut fixture = Fixture::new();
    let mut database = fixture.open();
    fixture.write(&mut database, (0..400).map(|at| account_of(1, format!("s{at}"))));
    let path = fixture.dir.path().join("database");
    drop(database);
    let sound = std::fs::read(&path).unwrap();
    // 200 as a varint (sqlite.org/fileformat2.html, 1.6), at every place of these bytes. One of them is the row's ID,
    // which the flipped bit changes to 8392, above the last ID.
    let places: Vec<usize> = (0..sound.len() - 1).filter(|at| sound[*at..*at + 2] == [0x81, 0x48]).collect();
    assert!(!places.is_empty());
    for at in places {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x40;
        std::fs::write(&path, &damaged).unwrap();
        let Ok(database) = Database::open(&path, fixture.mark_file(), &fixture.settings, fixture.now) else {
            continue;
        };
        for id in (0..400).step_by(7) {
            let span = format!("s{id}");
            let none = query_spans(&database, span_query(1, false, &span)) == Ok(vec![]);
            assert!(!none, "byte {at}: {span} is said not to be there");
        }
    }
}

#[test]
fn a_missing_or_changed_table_is_corruption() {
    for sql in
        ["DROP TABLE block", "ALTER TABLE account RENAME COLUMN uid TO uid2", "PRAGMA user_version = 0"]
    {
        let fixture = Fixture::new();
        drop(fixture.open());
        let path = fixture.dir.path().join("database");
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let error = Database::open(&path, fixture.mark_file(), &fixture.settings, fixture.now).err().unwrap();
        assert!(error.is_corruption() && matches!(error, DatabaseError::SchemaMismatch), "{sql}: {error}");
    }
}
