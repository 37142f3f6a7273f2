//! The store by itself: what it keeps, finds, lets go of and refuses.

use std::path::Path;
use std::time::Instant;

use super::backlog::{Batch, Layouts, Order};
use super::clock_reading::ClockReading;
use super::database::{Broken, Database};
use super::mark::{Mark, Reached, Reading};
use super::record::tests::account;
use super::*;
use crate::attribution::account::{Account, State};

fn settings(directory: &Path) -> Settings {
    Settings {
        directory: directory.join("state"),
        age: Duration::from_secs(3600),
        bytes: 1 << 30,
        waiting_bytes: 1 << 20,
        sync: Sync::Normal,
    }
}

fn store(settings: &Settings) -> Store {
    Store::start(settings.clone(), |_| ()).unwrap()
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < deadline, "never {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn kept(store: &mut Store, account: &Account) {
    let number = store.next();
    assert!(store.keep(account, None, true));
    store.flush();
    until("committed", || store.committed() >= number);
}

fn asked(store: &mut Store, question: Question) -> Found {
    assert!(store.ask(7, question));
    let mut answers = Vec::new();
    until("answered", || {
        answers.extend(store.answers());
        !answers.is_empty()
    });
    let (number, found) = answers.pop().unwrap();
    assert_eq!(number, 7);
    found.expect("a database that answers")
}

fn span(uid: u32, anybody: bool, span: &str) -> Question {
    Question::Span { uid, anybody, span: span.into() }
}

fn all(whose: Option<u32>, filter: Filter, limit: usize) -> Question {
    Question::List { whose, filter, limit, before: None }
}

fn names(found: &Found) -> Vec<&str> {
    found.accounts.iter().map(|account| account.span.as_str()).collect()
}

#[test]
fn what_is_kept_reads_back_equal_in_the_next_life() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let given = account("00ff0123456789abcdef0123456789ab");
    let chosen = account("job \u{1f525}");
    let mut first = store(&settings);
    kept(&mut first, &given);
    kept(&mut first, &chosen);
    drop(first);
    let mut second = store(&settings);
    for account in [given, chosen] {
        let found = asked(&mut second, span(account.uid, false, &account.span));
        assert_eq!(found.accounts, [account]);
    }
}

#[test]
fn nobody_finds_anothers_account_and_telemetry_its_own_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&settings(dir.path()));
    let theirs = Account { uid: 2, ..account("same") };
    kept(&mut store, &Account { uid: 1, ..account("same") });
    kept(&mut store, &theirs);
    kept(&mut store, &Account { uid: 2, ..account("only") });
    assert_eq!(asked(&mut store, span(1, false, "only")), Found::default());
    assert_eq!(asked(&mut store, span(1, true, "only")).accounts.len(), 1);
    assert_eq!(asked(&mut store, span(1, true, "same")).accounts[0].uid, 1);
    assert_eq!(asked(&mut store, span(3, true, "same")).accounts, [theirs]);
    assert_eq!(names(&asked(&mut store, all(Some(1), Filter::default(), 9))), ["same"]);
    assert_eq!(names(&asked(&mut store, all(None, Filter::default(), 2))), ["only", "same"]);
}

#[test]
fn of_one_name_the_newest_is_meant_however_long_ago_the_others_were() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { waiting_bytes: 1 << 26, ..settings(dir.path()) };
    let mut store = store(&settings);
    kept(&mut store, &Account { name: "first".into(), ..account("name") });
    for at in 0..20_000 {
        assert!(store.keep(&account(&format!("between{at}")), None, false));
    }
    assert_eq!(asked(&mut store, span(1000, false, "name")).accounts[0].name, "first");
    kept(&mut store, &Account { name: "second".into(), ..account("name") });
    assert_eq!(asked(&mut store, span(1000, false, "name")).accounts[0].name, "second");
    assert_eq!(asked(&mut store, span(1000, false, "between3")).accounts.len(), 1);
    // A search looks at a part of the past, and says where to go on.
    let filter = Filter { name: Some("first".into()), ..Filter::default() };
    let part = asked(&mut store, all(Some(1000), filter.clone(), 1));
    assert!(part.accounts.is_empty());
    let rest = Question::List { whose: Some(1000), filter, limit: 1, before: part.before };
    assert_eq!(names(&asked(&mut store, rest)), ["name"]);
}

#[test]
fn a_filter_takes_what_fits_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&settings(dir.path()));
    kept(&mut store, &Account { state: State::Settled, ..account("a") });
    kept(&mut store, &Account { opened_unix_ns: 5, ..account("b") });
    let mut fits = |filter| names(&asked(&mut store, all(None, filter, 9))).join(" ");
    assert_eq!(fits(Filter { since_unix_ns: Some(6), ..Filter::default() }), "a");
    assert_eq!(fits(Filter { state: Some(State::Abandoned), ..Filter::default() }), "b");
    let attributes = |key: &str, value: &str| Filter {
        attributes: [(key.to_owned(), value.to_owned())].into(),
        ..Filter::default()
    };
    assert_eq!(fits(attributes("model", "a")), "b a");
    assert_eq!(fits(attributes("model", "b")), "");
    assert_eq!(fits(Filter { name: Some("Frage".into()), ..Filter::default() }), "");
}

#[test]
fn the_journal_of_a_life_that_was_cut_off_is_the_next_ones_past() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let mut first = store(&settings);
    let interrupted = Account { state: State::Interrupted, ..account("cut") };
    assert!(first.journal(1, &Account { share_uj: Some(1), ..interrupted.clone() }));
    assert!(first.journal(1, &interrupted));
    assert!(first.journal(2, &account("cancelled")) && first.journal(3, &account("settled")));
    first.forget(2);
    assert!(first.keep(&account("settled"), Some(3), false));
    drop(first);
    let mut second = store(&settings);
    let found = asked(&mut second, all(None, Filter::default(), 9));
    assert_eq!(names(&found), ["cut", "settled"]);
    assert_eq!(found.accounts[0], interrupted);
    assert_eq!(asked(&mut second, span(1000, false, "cut")).accounts, [interrupted]);
}

#[test]
fn what_finds_no_room_is_refused_and_counted_and_memory_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { directory: "/proc/wattspan".into(), ..settings(dir.path()) };
    let mut store = store(&settings);
    until("failing", || store.is_failing());
    let mut taken = 0;
    while store.keep(&account("a"), None, true) {
        store.flush();
        taken += 1;
        assert!(taken < 100_000, "it takes more than it may");
    }
    assert!(store.waiting_bytes() < settings.waiting_bytes + 10_000);
    let health = store.health();
    assert_eq!((health.durable, health.waiting, health.not_kept), (false, taken, 1));
    assert!(health.reason.unwrap().contains("/proc/wattspan"));
    assert!(!store.journal(1, &account("a")), "the journal stands back");
}

#[test]
fn the_oldest_go_when_there_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { bytes: 1 << 20, waiting_bytes: 1 << 26, ..settings(dir.path()) };
    let mut store = store(&settings);
    for at in 0..20_000 {
        assert!(store.keep(&account(&format!("s{at}")), None, at == 19_999));
    }
    kept(&mut store, &account("last"));
    until("small enough", || {
        let bytes = store.health().bytes;
        bytes > 0 && bytes <= settings.bytes
    });
    assert_eq!(asked(&mut store, span(1000, false, "s0")), Found::default());
    assert_eq!(asked(&mut store, span(1000, false, "s19999")).accounts.len(), 1);
}

#[test]
fn what_is_too_old_goes() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { age: Duration::from_secs(1), ..settings(dir.path()) };
    let mut first = store(&settings);
    kept(&mut first, &account("a"));
    drop(first);
    thread::sleep(Duration::from_millis(2100));
    let mut second = store(&settings);
    until("gone", || asked(&mut second, all(None, Filter::default(), 9)).accounts.is_empty());
}

#[test]
fn more_layouts_than_are_kept_once_go_with_their_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let odd = |at: usize| {
        let mut account = account(&format!("s{at}"));
        account.domains[0].domain = format!("domain-{at}");
        account
    };
    let mut first = store(&settings);
    for at in 0..1100 {
        assert!(first.keep(&odd(at), None, false));
    }
    drop(first);
    let mut second = store(&settings);
    for at in [0, 255, 256, 1099] {
        assert_eq!(asked(&mut second, span(1000, false, &format!("s{at}"))).accounts, [odd(at)]);
    }
}

#[test]
fn another_file_brings_the_past_of_another_process_and_the_own_one_none() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, other) = (dir.path().join("mine"), dir.path().join("other"));
    let mut dead = store(&settings(&other));
    assert!(dead.journal(1, &account("of the dead")));
    drop(dead);
    let settings = settings(&mine);
    let mut living = store(&settings);
    assert!(living.journal(1, &account("open")));
    kept(&mut living, &account("first"));
    // Enough to have it look at its directory.
    let noticed = |living: &mut Store, span_there: &str| {
        (0..20_000).for_each(|_| living.forget(99));
        living.flush();
        until("it has opened what is there now", || {
            assert!(living.ask(9, all(None, Filter::default(), 9)));
            let mut answers = Vec::new();
            until("answered", || {
                answers.extend(living.answers());
                !answers.is_empty()
            });
            let found = answers.pop().and_then(|(_, found)| found.ok());
            found.is_some_and(|found| names(&found).contains(&span_there))
        });
    };
    let (state, aside) = (&settings.directory, mine.join("aside"));
    std::fs::rename(state, &aside).unwrap();
    std::fs::rename(other.join("state"), state).unwrap();
    noticed(&mut living, "of the dead");
    std::fs::rename(state, other.join("state")).unwrap();
    std::fs::rename(&aside, state).unwrap();
    noticed(&mut living, "first");
    let found = asked(&mut living, all(None, Filter::default(), 9));
    assert_eq!(names(&found), ["first"], "what is open has no account yet");
}

/// A database by itself, on clocks that are set by hand.
struct Bench {
    dir: tempfile::TempDir,
    settings: Settings,
    now: ClockReading,
    layouts: Layouts,
}

const START: ClockReading = ClockReading { unix_s: 1_763_000_000, boot_s: 500 };

const DAY_S: i64 = 86_400;

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { age: Duration::from_secs(30 * 86_400), ..settings(dir.path()) };
        Self { dir, settings, now: START, layouts: Layouts::default() }
    }

    fn mark(&self) -> Mark {
        let path = self.dir.path().join("mark");
        Mark(std::fs::File::options().create(true).truncate(false).read(true).write(true).open(path).unwrap())
    }

    fn open(&self) -> Database {
        let path = self.dir.path().join("database");
        std::fs::File::options().create(true).append(true).open(&path).unwrap();
        Database::open(&path, self.mark(), &self.settings, self.now).unwrap()
    }

    /// Both clocks go on.
    fn pass(&mut self, seconds: i64) {
        self.now = ClockReading { unix_s: self.now.unix_s + seconds, boot_s: self.now.boot_s + seconds };
    }

    fn write(&mut self, database: &mut Database, accounts: impl IntoIterator<Item = Account>) {
        let mut batch = Batch::default();
        for account in accounts {
            let row = batch.pack(&account, &mut self.layouts);
            batch.orders.push(Order::Keep { row, forget: None });
        }
        database.write(&[batch], self.now).unwrap();
        database.mark().unwrap();
    }

    /// Deletes what is due; gives how many are left, and what was logged.
    fn tidied(&self, database: &mut Database) -> (i64, Vec<String>) {
        let mut lines = Vec::new();
        loop {
            let step = database.let_go(&self.settings, self.now).unwrap();
            lines.extend(step.lines);
            if !step.more {
                let count = "SELECT count(*) FROM account";
                return (database.connection.query_row(count, [], |row| row.get(0)).unwrap(), lines);
            }
        }
    }
}

fn of(uid: u32, span: String) -> Account {
    Account { uid, ..account(&span) }
}

#[test]
fn a_clock_that_jumps_forward_deletes_a_day_per_day_at_most_and_nothing_at_once() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    for hour in 0..240 {
        bench.write(&mut database, [of(1, format!("s{hour}"))]);
        bench.pass(3600);
    }
    assert_eq!(bench.tidied(&mut database), (240, vec![]));
    bench.now.unix_s += 31 * DAY_S;
    for _ in 0..5 {
        bench.pass(60);
        assert_eq!(bench.tidied(&mut database), (240, vec![]), "right after the jump");
    }
    // Restarts give no second allowance.
    for restart in 1..=30 {
        bench.pass(600);
        database.mark_time(bench.now).unwrap();
        drop(database);
        database = bench.open();
        assert_eq!(bench.tidied(&mut database).0, 240, "restart {restart}");
    }
    bench.pass(DAY_S);
    let (left, lines) = bench.tidied(&mut database);
    assert_eq!(left, 216, "a day's worth after a day");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("deleted 24 accounts, kept from 2025-11-13T02:13:20Z to "), "{lines:?}");
    bench.pass(3600);
    assert_eq!(bench.tidied(&mut database).0, 216);
    // The clock is right again.
    bench.now.unix_s -= 31 * DAY_S;
    bench.pass(DAY_S);
    assert_eq!(bench.tidied(&mut database).0, 216);
}

#[test]
fn accounts_kept_under_a_wrong_clock_expire_with_their_neighbours() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.write(&mut database, [of(1, "before".into())]);
    bench.pass(3600);
    for (span, wrong_s) in [("future", 10 * 365 * DAY_S), ("past", -START.unix_s - 3600)] {
        bench.now.unix_s += wrong_s;
        bench.write(&mut database, [of(1, span.into())]);
        bench.now.unix_s -= wrong_s;
        bench.pass(3600);
    }
    bench.write(&mut database, [of(1, "after".into())]);
    for day in 0..29 {
        bench.pass(DAY_S);
        assert_eq!(bench.tidied(&mut database).0, 4, "day {day}");
    }
    bench.pass(2 * DAY_S);
    let (left, lines) = bench.tidied(&mut database);
    assert_eq!((left, lines.len()), (0, 1), "{lines:?}");
    assert!(lines[0].contains("deleted 4 accounts") && lines[0].contains("older than 30 days"), "{lines:?}");
}

#[test]
fn what_became_too_old_while_the_daemon_was_off_goes_day_by_day() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    for hour in 0..48 {
        bench.write(&mut database, [of(1, format!("s{hour}"))]);
        bench.pass(3600);
    }
    drop(database);
    bench.pass(60 * DAY_S);
    let mut database = bench.open();
    assert_eq!(bench.tidied(&mut database).0, 48);
    bench.pass(DAY_S);
    assert_eq!(bench.tidied(&mut database).0, 24);
    bench.pass(DAY_S);
    assert_eq!(bench.tidied(&mut database).0, 0);
}

#[test]
fn it_is_logged_once_that_size_and_not_age_limits_how_long_accounts_are_kept() {
    let mut bench = Bench::new();
    bench.settings.bytes = 1 << 20;
    let mut database = bench.open();
    let (mut runs, mut told) = (0, 0);
    for round in 0..240 {
        bench.pass(6);
        bench.write(&mut database, (0..100).map(|at| of(1, format!("s{round}-{at}"))));
        let (_, lines) = bench.tidied(&mut database);
        runs += lines.iter().filter(|line| line.starts_with("deleted ")).count();
        let once = |line: &&String| line.contains("size, not age") && line.contains("ledger.megabytes");
        told += lines.iter().filter(once).count();
    }
    assert!(runs > 1, "{runs} runs");
    assert_eq!(told, 1);
    let outlook = database.outlook(&bench.settings, bench.now).unwrap().unwrap();
    assert!(outlook.limited_by_size);
    assert!((outlook.accounts_per_h as i64 - 60_000).abs() < 6000, "{outlook:?}");
    // A megabyte of accounts, at 1000 a minute.
    let expected_s = (1 << 20) / outlook.bytes_per_account * 60 / 1000;
    assert!(outlook.keeps_s.abs_diff(expected_s) * 5 < expected_s, "{outlook:?}, {expected_s} s");
}

fn found(database: &Database, question: Question) -> Result<Vec<String>, String> {
    let answer = database.answer(&question).map_err(|cause| cause.to_string())?;
    Ok(answer.accounts.into_iter().map(|account| account.span).collect())
}

#[test]
fn a_full_stretch_is_found_by_name_and_a_damaged_block_or_row_of_it_is_no_absence() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.write(&mut database, (0..40_000).map(|at| of(at % 3, format!("s{at}"))));
    bench.write(&mut database, (0..10).map(|at| of(7, format!("{at:032x}"))));
    drop(database);
    let database = bench.open();
    for at in [0, 5, 16_382, 16_383, 16_384, 32_767, 32_768, 39_999] {
        let span = format!("s{at}");
        assert_eq!(found(&database, self::span(at % 3, false, &span)), Ok(vec![span.clone()]));
        assert_eq!(found(&database, self::span(at % 3 + 1, false, &span)), Ok(vec![]));
    }
    assert_eq!(found(&database, span(0, true, "none")), Ok(vec![]));
    database
        .connection
        .execute("UPDATE block SET bytes = zeroblob(length(bytes)) WHERE id < 64", [])
        .unwrap();
    assert!(found(&database, span(0, true, "s3")).is_err(), "its block is damaged");
    assert!(found(&database, span(0, true, "none")).is_err(), "it may be in the damaged block");
    assert!(found(&database, span(7, true, &format!("{:032x}", 3))).is_ok(), "it comes before the damage");
    database.connection.execute("DELETE FROM block WHERE id >> 7 = 1", []).unwrap();
    assert!(found(&database, span(1, true, "s20000")).is_err(), "its block is missing");
    database.connection.execute("DELETE FROM account WHERE id = 39999", []).unwrap();
    assert!(found(&database, span(0, true, "s39998")).is_err(), "its row is missing");
    assert_eq!(found(&database, span(0, true, "s39999")), Ok(vec!["s39999".into()]));
}

#[test]
fn a_list_ends_before_damage_and_goes_on_past_it() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.write(&mut database, (0..20_000).map(|at| of(at % 2, format!("s{at}"))));
    drop(database);
    let path = bench.dir.path().join("database");
    let outside = rusqlite::Connection::open(&path).unwrap();
    outside.execute("UPDATE account SET uid = 5 WHERE id = 19991", []).unwrap();
    outside.execute("DELETE FROM account WHERE id BETWEEN 10001 AND 10100", []).unwrap();
    drop(outside);
    let database = bench.open();
    for whose in [None, Some(0), Some(1)] {
        let (mut before, mut listed, mut damaged) = (None, 0, 0);
        loop {
            let list = Question::List { whose, filter: Filter::default(), limit: 256, before };
            before = match database.answer(&list) {
                Ok(found) => {
                    listed += found.accounts.len();
                    found.before
                }
                Err(history::ReadError::Damaged(damage)) => {
                    damaged += 1;
                    Some(damage.first() as u64)
                }
                Err(other) => panic!("{other}"),
            };
            if before.is_none() {
                break;
            }
        }
        // The damaged row was of user 0; of the missing ones each user had half.
        let expected = match whose {
            None => 20_000 - 1 - 100,
            Some(0) => 10_000 - 1 - 50,
            _ => 10_000 - 50,
        };
        assert_eq!(listed, expected, "{whose:?}");
        assert!(damaged >= 1, "{whose:?}");
    }
}

#[test]
fn a_lost_tail_is_noted_once_and_numbers_go_on_after_it() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.write(&mut database, (0..100).map(|at| of(1, format!("{at:032x}"))));
    bench.write(&mut database, [of(1, "chosen".into())]);
    drop(database);
    bench.mark().write(&Reached { last: 50_000, kept_s: START.unix_s + 9, running_s: START.unix_s }).unwrap();
    let mut database = bench.open();
    let loss = "accounts 102 to 50000 may be lost since 2025-11-13T02:13:20Z (until 2025-11-13T02:13:29Z)";
    assert_eq!(database.losses, [loss]);
    bench.write(&mut database, [of(1, "next".into())]);
    let Reading::Reached(reached) = bench.mark().read().unwrap() else { panic!("no mark") };
    assert_eq!(reached.last, 50_001);
    drop(database);
    let database = bench.open();
    assert_eq!((database.losses.len(), database.loss().as_deref()), (0, Some(loss)));
    let given = format!("{:032x}", 17);
    assert_eq!(found(&database, span(1, false, "next")), Ok(vec!["next".into()]));
    assert_eq!(found(&database, span(1, false, &given)), Ok(vec![given.clone()]), "no other has its name");
    // The latest of a chosen name may be among the lost ones.
    assert!(found(&database, span(1, false, "chosen")).is_err());
    assert!(found(&database, span(1, false, "none")).is_err());
    let list = |before| Question::List { whose: Some(1), filter: Filter::default(), limit: 9, before };
    assert_eq!(found(&database, list(None)), Ok(vec!["next".into()]));
    assert!(found(&database, list(Some(50_001))).is_err());
    assert_eq!(found(&database, list(Some(102))).unwrap()[0], "chosen");
}

/// The tables of version 1, as it made them.
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
fn a_database_without_checksums_is_taken_over_without_loss() {
    let mut bench = Bench::new();
    let accounts: Vec<Account> = (0..20_000).map(|at| of(at % 2, format!("s{at}"))).collect();
    let mut old = rusqlite::Connection::open(bench.dir.path().join("database")).unwrap();
    old.execute_batch(VERSION_1).unwrap();
    let transaction = old.transaction().unwrap();
    let (mut layout, mut figures) = (Vec::new(), Vec::new());
    record::write_layout(&accounts[0], &mut layout);
    transaction.execute("INSERT INTO layout VALUES (1, ?1)", [&layout]).unwrap();
    // Those before number 1001 were deleted by age.
    for (account, id) in accounts.iter().zip(1001..) {
        figures.clear();
        record::write_figures(account, &mut figures);
        let (kept_s, span, name) = (START.unix_s - 30_000 + id, &account.span, &account.name);
        let values = rusqlite::params![id, account.uid, kept_s, span, name, figures];
        transaction.execute("INSERT INTO account VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6)", values).unwrap();
    }
    let open = "INSERT INTO journal SELECT 4, uid, layout, 'open', name, figures FROM account LIMIT 1";
    transaction.execute(open, []).unwrap();
    transaction.commit().unwrap();
    drop(old);
    let mut database = bench.open();
    assert_eq!(database.losses, Vec::<String>::new());
    assert_eq!(database.recover(bench.now).unwrap(), 1);
    bench.write(&mut database, [of(0, "new".into())]);
    drop(database);
    let database = bench.open();
    for account in accounts.iter().step_by(97).chain([&of(0, "new".into()), &of(0, "open".into())]) {
        let answer = database.answer(&span(account.uid, false, &account.span)).unwrap();
        assert_eq!(answer.accounts, std::slice::from_ref(account));
    }
    assert_eq!(found(&database, span(0, true, "none")), Ok(vec![]));
    assert_eq!((database.numbers.first, database.numbers.last), (1001, 21_002));
}

#[test]
fn a_row_whose_number_is_damaged_hides_none_of_those_after_it() {
    let mut bench = Bench::new();
    let mut database = bench.open();
    bench.write(&mut database, (0..400).map(|at| of(1, format!("s{at}"))));
    let path = bench.dir.path().join("database");
    drop(database);
    let sound = std::fs::read(&path).unwrap();
    // Number 200 as a varint (sqlite.org/fileformat2.html, 1.6), wherever these bytes are: once it is the row's, which a
    // flipped bit makes 8392, higher than the last.
    let places: Vec<usize> = (0..sound.len() - 1).filter(|at| sound[*at..*at + 2] == [0x81, 0x48]).collect();
    assert!(!places.is_empty());
    for at in places {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x40;
        std::fs::write(&path, &damaged).unwrap();
        let Ok(database) = Database::open(&path, bench.mark(), &bench.settings, bench.now) else { continue };
        for id in (0..400).step_by(7) {
            let span = format!("s{id}");
            let none = found(&database, self::span(1, false, &span)) == Ok(vec![]);
            assert!(!none, "byte {at}: {span} is said not to be there");
        }
    }
}

#[test]
fn a_table_that_is_missing_or_changed_is_damage() {
    for sql in
        ["DROP TABLE block", "ALTER TABLE account RENAME COLUMN uid TO uid2", "PRAGMA user_version = 0"]
    {
        let bench = Bench::new();
        drop(bench.open());
        let path = bench.dir.path().join("database");
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let broken = Database::open(&path, bench.mark(), &bench.settings, bench.now).err().unwrap();
        assert!(broken.is_damage() && matches!(broken, Broken::Schema), "{sql}: {broken}");
    }
}
