//! The store by itself: what it keeps, finds, lets go of and refuses.

use std::path::Path;
use std::time::Instant;

use super::record::tests::account;
use super::*;
use crate::ledger::account::{Account, State};

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
            let found = answers.pop().and_then(|(_, found)| found);
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
