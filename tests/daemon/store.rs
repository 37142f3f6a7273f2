//! The store from a client's view: accounts answered as durable survive `kill -9`, spans are answered whatever the disk
//! does, and faults are reported.

use crate::programs;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{
    SLOW_COUNTER_MACHINE, STEADY_MACHINE, TestClient, TestDaemon, encode_call, get_u64, skip, sleep_ms,
    wait_until,
};
use serde_json::{Value, json};

/// All pages of a list, latest account first.
fn list(client: &mut TestClient, mut question: Value) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let mut page = client.call("ListSpans", question.clone());
        let accounts = page["accounts"].as_array_mut().unwrap();
        accounts.reverse();
        all.append(accounts);
        match page["before"].as_u64() {
            Some(before) => question["before"] = json!(before),
            None => return all,
        }
    }
}

/// The IDs of the accounts.
pub fn names(accounts: &[Value]) -> Vec<&str> {
    accounts.iter().map(|account| account["span"].as_str().unwrap()).collect()
}

/// The state of the store in GetInfo.
pub fn keeping(daemon: &TestDaemon) -> Value {
    daemon.client().call("GetInfo", json!({}))["keeping"].take()
}

#[test]
fn an_account_survives_kill_9_and_is_found_again_by_name_and_filter() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let opening = json!({ "span": "a", "name": "question", "attributes": { "model": "m1" }, "weight": 2.5 });
    client.call("OpenSpan", opening);
    client.call("MarkPhase", json!({ "span": "a", "phase": "decode" }));
    sleep_ms(20);
    let account = client.close_and_settle("a");
    assert_eq!(account["durable"], true);
    client.call("OpenSpan", json!({ "span": "b", "name": "other", "attributes": { "model": "m2" } }));
    client.close_and_settle("b");
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    assert_eq!(client.call("GetSpan", json!({ "span": "a" }))["account"], account);
    let mut fits = |question: Value| list(&mut client, question);
    assert_eq!(names(&fits(json!({}))), ["b", "a"]);
    assert_eq!(names(&fits(json!({ "name": "question" }))), ["a"]);
    assert_eq!(names(&fits(json!({ "attributes": { "model": "m2" } }))), ["b"]);
    assert_eq!(names(&fits(json!({ "state": "settled", "limit": 1 }))), ["b", "a"], "one for each page");
    assert!(fits(json!({ "state": "interrupted" })).is_empty());
    let opened = get_u64(&account, "opened_unix_ns");
    assert_eq!(names(&fits(json!({ "since_unix_ns": opened + 1 }))), ["b"]);
    assert_eq!(names(&fits(json!({ "since_unix_ns": opened }))), ["b", "a"]);
    let refusal = client.call_error("GetSpan", json!({ "span": "c" }));
    assert_eq!(refusal, ("NoSuchSpan".into(), json!({ "span": "c" })));
    let (refusal, _) = client.call_error("ListSpans", json!({ "since_unix_ns": -1 }));
    assert_eq!(refusal, "InvalidValue");
}

#[test]
fn an_open_span_comes_back_as_interrupted_and_its_name_may_be_used_again() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.call("OpenSpan", json!({ "span": "long", "name": "first" }));
    client.open("cancelled");
    sleep_ms(2500);
    client.call("CancelSpan", json!({ "span": "cancelled" }));
    client.open("flush");
    client.close_and_settle("flush");
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    let account = client.call("GetSpan", json!({ "span": "long" }))["account"].take();
    assert_eq!((&account["state"], &account["name"]), (&json!("interrupted"), &json!("first")));
    let length = get_u64(&account, "closed_ns") - get_u64(&account, "opened_ns");
    assert!(length >= 1_000_000_000, "{account}");
    // 100 W for the time covered by readings.
    let known_ns = length - get_u64(&account["domains"][0], "unknown_ns").min(length);
    assert!(get_u64(&account, "share_uj") > known_ns / 20_000, "{account}");
    assert_eq!(client.call_error("GetSpan", json!({ "span": "cancelled" })).0, "NoSuchSpan");
    assert_eq!(client.call_error("CloseSpan", json!({ "span": "long" })).0, "NoSuchSpan");
    assert!(daemon.log().contains("1 spans were open"), "{}", daemon.log());
    // A name refers to its newest span; both are listed.
    client.call("OpenSpan", json!({ "span": "long", "name": "second" }));
    assert_eq!(client.call("GetSpan", json!({ "span": "long" }))["account"]["state"], "open");
    let second = client.close_and_settle("long");
    assert_eq!(client.call_error("CloseSpan", json!({ "span": "long" })).0, "AlreadyClosed");
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    assert_eq!(client.call("GetSpan", json!({ "span": "long" }))["account"], second);
    assert_eq!(names(&list(&mut client, json!({}))), ["long", "long", "flush"]);
}

#[test]
fn a_stop_keeps_what_is_open_or_not_settled_as_interrupted() {
    let mut daemon = TestDaemon::start_with_config(SLOW_COUNTER_MACHINE, "patience_ms = 60000\n");
    let mut client = daemon.client();
    client.open("open");
    client.open("closed");
    sleep_ms(5);
    let account = client.call("CloseSpan", json!({ "span": "closed" }))["account"].take();
    assert_eq!((&account["state"], account.get("durable")), (&json!("provisional"), None));
    daemon.terminate();
    assert!(daemon.wait().success());
    daemon.restart();
    let mut client = daemon.client();
    let closed = client.call("GetSpan", json!({ "span": "closed" }))["account"].take();
    assert_eq!(closed["state"], "interrupted");
    assert_eq!(closed["closed_ns"], account["closed_ns"]);
    assert_eq!(client.call("GetSpan", json!({ "span": "open" }))["account"]["state"], "interrupted");
}

/// The accounts that a client received, by span.
type AnsweredAccounts = HashMap<String, Value>;

/// Opens and closes spans until the daemon goes away; returns every final account received. Half of the closes wait for
/// the final account, the others poll for it.
fn run_spans(
    mut client: TestClient,
    prefix: &str,
    stop: &AtomicBool,
    answered: &AtomicUsize,
) -> AnsweredAccounts {
    let mut answered_accounts = AnsweredAccounts::new();
    for batch in 0.. {
        let spans: Vec<String> = (0..8).map(|at| format!("{prefix}-{batch}-{at}")).collect();
        let mut calls = Vec::new();
        for (at, span) in spans.iter().enumerate() {
            calls.extend(encode_call("OpenSpan", json!({ "span": span, "name": prefix }), &["oneway"]));
            let close = json!({ "span": span, "wait_settled": at % 2 == 0 });
            calls.extend(encode_call("CloseSpan", close, &[]));
        }
        if stop.load(Ordering::Relaxed) || !client.send_raw(&calls) {
            return answered_accounts;
        }
        let mut open: Vec<&String> = Vec::new();
        for span in &spans {
            let Some(mut answer) = client.receive() else { return answered_accounts };
            let account = answer["parameters"]["account"].take();
            if account["state"] == "settled" {
                answered_accounts.insert(span.clone(), account);
                answered.fetch_add(1, Ordering::Relaxed);
            } else {
                open.push(span);
            }
        }
        while let Some(span) = open.pop() {
            if !client.send_raw(&encode_call("GetSpan", json!({ "span": span }), &[])) {
                return answered_accounts;
            }
            let Some(mut answer) = client.receive() else { return answered_accounts };
            let account = answer["parameters"]["account"].take();
            if account["state"] == "settled" {
                answered_accounts.insert(span.clone(), account);
                answered.fetch_add(1, Ordering::Relaxed);
            } else {
                open.insert(0, span);
            }
        }
    }
    answered_accounts
}

/// The number of rounds is `WATTSPAN_ROUNDS`, 20 by default.
#[test]
fn of_accounts_once_answered_none_is_lost_by_kill_9_at_random_moments_under_load() {
    let rounds = std::env::var("WATTSPAN_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut answered, mut random) = (0, std::process::id());
    let begun = Instant::now();
    for round in 0..rounds {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let life = Duration::from_micros(1000 + u64::from(random >> 8) % 120_000);
        let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
        let clients: Vec<TestClient> = (0..3).map(|_| daemon.client()).collect();
        let answered_accounts: AnsweredAccounts = std::thread::scope(|scope| {
            let (stop, answers) = (&stop, &answers);
            let bill = |(at, client)| {
                scope.spawn(move || run_spans(client, &format!("r{round}-{at}"), stop, answers))
            };
            let threads: Vec<_> = clients.into_iter().enumerate().map(bill).collect();
            // Every other round waits for its first replies, so that there are some even on a busy machine.
            if round % 2 == 0 {
                wait_until("some are answered", || answers.load(Ordering::Relaxed) >= 4);
            }
            std::thread::sleep(life);
            rustix::process::kill_process(daemon.pid(), rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        daemon.wait();
        daemon.restart();
        let mut client = daemon.client();
        for (span, account) in &answered_accounts {
            assert_eq!(account["durable"], true, "round {round}: {account}");
            let found = client.call_raw("GetSpan", json!({ "span": span }));
            assert_eq!(&found["parameters"]["account"], account, "round {round}: {span}: {found}");
        }
        answered += answered_accounts.len();
    }
    let (lines, seconds) = (daemon.log().lines().count(), begun.elapsed().as_secs());
    println!("{rounds} rounds in {seconds} s, {answered} accounts answered, none lost");
    assert!(answered > rounds, "the load was none: {answered} accounts in {rounds} rounds");
    assert!(lines <= 2 * (rounds + 1), "{}", daemon.log());
}

/// Opens and closes a span; returns its final account.
pub fn close_state(client: &mut TestClient, span: &str) -> Value {
    client.call("OpenSpan", json!({ "span": span, "attributes": { "filling": "x".repeat(900) } }));
    client.close_and_settle(span)
}

#[test]
fn a_damaged_file_is_moved_aside_and_a_fresh_one_begun() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let state = daemon.state();
    daemon.client().call("GetInfo", json!({}));
    let mut client = daemon.client();
    for at in 0..200 {
        client.open(&format!("s{at}"));
    }
    for at in 0..200 {
        client.close_and_settle(&format!("s{at}"));
    }
    daemon.terminate();
    daemon.wait();
    let file = state.join("ledger.sqlite");
    let mut bytes = std::fs::read(&file).unwrap();
    for (damage, message) in [(true, "damaged"), (false, "damaged")] {
        let damaged: Vec<u8> = if damage {
            bytes[..4096].iter_mut().skip(100).for_each(|byte| *byte = 0xa5);
            bytes.clone()
        } else {
            b"this is no database, it only has its name".repeat(100)
        };
        std::fs::write(&file, damaged).unwrap();
        let _ = std::fs::remove_file(state.join("ledger.sqlite-wal"));
        daemon.restart();
        wait_until("the new one is there", || keeping(&daemon)["durable"] == true);
        assert!(daemon.log().contains(message), "{}", daemon.log());
        assert_eq!(close_state(&mut daemon.client(), "after")["durable"], true);
        daemon.terminate();
        daemon.wait();
        std::thread::sleep(Duration::from_millis(1100));
    }
    let aside = std::fs::read_dir(&state).unwrap().flatten();
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("ledger.damaged-"));
    assert_eq!(aside.count(), 2);
}

#[test]
fn a_ledger_of_a_newer_version_is_left_alone() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    close_state(&mut daemon.client(), "a");
    let file = daemon.state().join("ledger.sqlite");
    daemon.terminate();
    daemon.wait();
    // The schema's version is at byte 60 of the file, big-endian (sqlite.org/fileformat2.html, 1.3).
    let mut bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes[60..64], [0, 0, 0, 2]);
    bytes[63] = 3;
    std::fs::write(&file, &bytes).unwrap();
    daemon.restart();
    wait_until("it is noticed", || keeping(&daemon)["reason"].is_string());
    assert!(keeping(&daemon)["reason"].as_str().unwrap().contains("newer wattspan"));
    assert_eq!(close_state(&mut daemon.client(), "b")["durable"], false);
    daemon.terminate();
    daemon.wait();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn of_two_daemons_on_one_directory_the_second_waits_for_the_first_to_go() {
    let mut first = TestDaemon::start(STEADY_MACHINE);
    assert_eq!(close_state(&mut first.client(), "a")["durable"], true);
    let second = TestDaemon::start_with_config(STEADY_MACHINE, &format!("state_dir = {:?}\n", first.state()));
    wait_until("it is noticed", || keeping(&second)["reason"].is_string());
    assert!(second.log().contains("another wattspand uses the ledger in"), "{}", second.log());
    assert_eq!(close_state(&mut second.client(), "b")["durable"], false);
    first.kill();
    wait_until("the second has it", || keeping(&second)["durable"] == true);
    let mut client = second.client();
    assert_eq!(names(&list(&mut client, json!({}))), ["b", "a"]);
}

#[test]
fn the_database_is_locked_against_other_processes_without_a_shared_memory_file() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    assert_eq!(close_state(&mut client, "a")["durable"], true);
    assert_eq!(names(&list(&mut client, json!({}))), ["a"]);
    let mut files: Vec<_> =
        std::fs::read_dir(daemon.state()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["ledger.mark", "ledger.sqlite", "ledger.sqlite-wal", "lock"]);
    // A second SQLite that only reads would use a shared-memory file.
    let script = "import sqlite3, sys\n\
        database = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True, timeout=0)\n\
        try:\n    database.execute('SELECT count(*) FROM account')\n\
        except sqlite3.OperationalError as error:\n    print(error)\n";
    let mut python = std::process::Command::new("python3");
    let Ok(output) = python.args(["-c", script]).arg(daemon.state().join("ledger.sqlite")).output() else {
        return skip::skip("python3 with sqlite3", "install python3");
    };
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "database is locked", "{output:?}");
    assert!(!daemon.state().join("ledger.sqlite-shm").exists());
}

#[test]
fn a_simulated_machines_accounts_are_kept_only_with_a_state_directory() {
    // If the configuration contains `state_dir`, the test support adds none.
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "# no state_dir\n");
    assert_eq!(keeping(&daemon), Value::Null);
    assert_eq!(close_state(&mut daemon.client(), "a").get("durable"), None);
}

#[test]
fn where_nothing_is_to_be_kept_nothing_is() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[ledger]\nkeep = false\n");
    let mut client = daemon.client();
    let account = close_state(&mut client, "a");
    assert_eq!(account.get("durable"), None, "{account}");
    assert_eq!(keeping(&daemon), Value::Null);
    assert!(!daemon.state().exists());
    assert_eq!(names(&list(&mut client, json!({}))), ["a"]);
}

/// Copies a state directory's files; the copy of the lock file is unlocked.
fn copy_state(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A stopped daemon that had answered accounts as durable; its state directory can be damaged and tried repeatedly.
struct SavedState {
    daemon: TestDaemon,
    saved: PathBuf,
    accounts: Vec<Value>,
}

impl SavedState {
    /// `cleanly`: stopped by SIGTERM, so that all data is in the database; otherwise killed, so that all is in the WAL.
    fn new(count: usize, cleanly: bool) -> Self {
        let mut daemon = TestDaemon::start(STEADY_MACHINE);
        let mut client = daemon.client();
        let mut accounts = Vec::new();
        for at in 0..count {
            // Names chosen by a client, and names like those that the daemon generates.
            let span = if at % 2 == 0 { format!("job-{at}") } else { format!("{at:032x}") };
            client.call(
                "OpenSpan",
                json!({ "span": span, "name": "a question", "attributes": { "at": at.to_string() } }),
            );
            let account = client.close_and_settle(&span);
            assert_eq!(account["durable"], true);
            accounts.push(account);
        }
        if cleanly {
            daemon.terminate();
            daemon.wait();
        } else {
            daemon.kill();
        }
        let saved = daemon.state().with_file_name("saved");
        copy_state(&daemon.state(), &saved);
        Self { daemon, saved, accounts }
    }

    /// Restarts the daemon on the saved state, damaged by `damage`, and queries every account: returns how many were
    /// unchanged. Every other query must return a typed error.
    fn try_damage(&mut self, what: &str, damage: impl FnOnce(&Path)) -> usize {
        let state = self.daemon.state();
        copy_state(&self.saved, &state);
        damage(&state);
        self.daemon.restart();
        let mut client = self.daemon.client();
        let mut unchanged = 0;
        for account in &self.accounts {
            let answer = client.call_raw("GetSpan", json!({ "span": account["span"] }));
            match answer["error"].as_str() {
                None => {
                    assert_eq!(&answer["parameters"]["account"], account, "{what}");
                    unchanged += 1;
                }
                Some("org.wattspan.Meter.StoreDamaged" | "org.wattspan.Meter.StoreUnavailable") => {}
                Some(other) => panic!("{what}: {other} for {account}\n{}", self.daemon.log()),
            }
        }
        let listed = self.list_past_damage(what);
        assert!(listed >= unchanged.min(1), "{what}: {listed} listed, {unchanged} found by name");
        self.daemon.kill();
        unchanged
    }

    /// Lists all accounts; the damage must be reported wherever one is missing. Returns how many were listed.
    fn list_past_damage(&self, what: &str) -> usize {
        let mut client = self.daemon.client();
        let (mut question, mut listed, mut damaged) = (json!({ "limit": 256 }), Vec::new(), false);
        loop {
            let mut answer = client.call_raw("ListSpans", question.clone());
            let mut parameters = answer["parameters"].take();
            match answer["error"].as_str() {
                None => {
                    let page = parameters["accounts"].as_array_mut().unwrap();
                    page.reverse();
                    listed.append(page);
                }
                Some("org.wattspan.Meter.StoreDamaged" | "org.wattspan.Meter.StoreUnavailable") => {
                    damaged = true
                }
                Some(other) => panic!("{what}: {other}"),
            }
            match parameters["before"].as_u64() {
                Some(before) => question["before"] = json!(before),
                None => break,
            }
        }
        for account in &listed {
            assert!(self.accounts.contains(account), "{what}: changed: {account}");
        }
        let is_whole = damaged || listed.len() == self.accounts.len();
        assert!(is_whole, "{what}: {} listed\n{}", listed.len(), self.daemon.log());
        listed.len()
    }
}

/// Flips `count` bits of a file, determined by the seed.
fn flip_bits(file: &Path, seed: u64, count: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..count {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let bit = random as usize % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn an_account_in_a_damaged_database_is_answered_unchanged_or_as_damaged() {
    let mut answered = SavedState::new(400, true);
    assert_eq!(answered.try_damage("sound", |_| ()), 400);
    let mut unchanged = 0;
    for seed in 1..=25 {
        let what = format!("seed {seed}");
        unchanged += answered.try_damage(&what, |state| flip_bits(&state.join("ledger.sqlite"), seed, 5));
    }
    println!("{unchanged} of {} accounts answered unchanged", 25 * 400);
    assert!(unchanged > 0, "a flipped bit does not make every account unreadable");
    assert!(unchanged < 25 * 400, "the flips hit nothing");
}

#[test]
fn an_account_in_a_damaged_log_is_answered_unchanged_or_as_damaged_and_the_loss_is_reported() {
    let mut answered = SavedState::new(200, false);
    assert_eq!(answered.try_damage("sound", |_| ()), 200);
    for seed in 1..=25 {
        let what = format!("seed {seed}");
        answered.try_damage(&what, |state| {
            flip_bits(&state.join("ledger.sqlite-wal"), seed, 1 + seed as usize % 5)
        });
    }
    let lost = |answered: &SavedState, what: &str| {
        let log = answered.daemon.log();
        assert!(log.contains("may be lost"), "{what}: {log}");
    };
    let half = |state: &Path| {
        let file = std::fs::File::options().write(true).open(state.join("ledger.sqlite-wal")).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    let unchanged = answered.try_damage("half of the log", half);
    assert!(unchanged > 0 && unchanged < 200, "{unchanged}");
    lost(&answered, "half of the log");
    let gone = |state: &Path| std::fs::remove_file(state.join("ledger.sqlite-wal")).unwrap();
    assert_eq!(answered.try_damage("no log", gone), 0);
    lost(&answered, "no log");
    // The loss is reported, and new accounts are stored.
    answered.daemon.restart();
    wait_until("it is open", || keeping(&answered.daemon)["durable"] == true);
    assert!(keeping(&answered.daemon)["reason"].as_str().unwrap().contains("may be lost since"));
    let doctor = wattspan(&answered.daemon, &["doctor"]);
    assert!(doctor.contains("may be lost"), "{doctor}");
    let listed = wattspan(&answered.daemon, &["spans"]);
    assert!(listed.contains("accounts are missing from this list"), "{listed}");
    let next = close_state(&mut answered.daemon.client(), "next");
    answered.daemon.kill();
    answered.daemon.restart();
    let mut client = answered.daemon.client();
    assert_eq!(client.call("GetSpan", json!({ "span": "next" }))["account"], next);
    assert_eq!(client.call_error("GetSpan", json!({ "span": "job-0" })).0, "StoreDamaged");
}

#[test]
fn an_emptied_database_and_a_missing_table_are_damage() {
    let mut answered = SavedState::new(60, true);
    let sql = |state: &Path, sql: &str| {
        rusqlite::Connection::open(state.join("ledger.sqlite")).unwrap().execute_batch(sql).unwrap();
    };
    let cut = |state: &Path, length: u64| {
        let file = std::fs::File::options().write(true).open(state.join("ledger.sqlite")).unwrap();
        file.set_len(length).unwrap();
    };
    assert_eq!(answered.try_damage("emptied", |state| cut(state, 0)), 0);
    answered.try_damage("cut", |state| cut(state, 8192));
    answered.try_damage("removed", |state| std::fs::remove_file(state.join("ledger.sqlite")).unwrap());
    assert_eq!(answered.try_damage("no rows", |state| sql(state, "DELETE FROM account")), 0);
    assert_eq!(answered.try_damage("no table", |state| sql(state, "DROP TABLE account")), 0);
    let some = "DELETE FROM account WHERE id BETWEEN 20 AND 29";
    // Of the nineteen rows before the gap, only the nine generated names count: for a chosen name, the missing rows may
    // hold a newer span.
    assert_eq!(answered.try_damage("ten rows missing", |state| sql(state, some)), 31 + 9);
    let all = "UPDATE account SET figures = (SELECT figures FROM account WHERE id = 2)";
    assert_eq!(answered.try_damage("another's figures", |state| sql(state, all)), 1);
    let layout = "UPDATE layout SET domains = replace(domains, 'dram-0', 'dram-1')";
    answered.try_damage("another domain", |state| sql(state, layout));
}

#[test]
fn an_account_in_a_database_that_was_unlinked_is_not_durable() {
    for replaced in [false, true] {
        let mut daemon = TestDaemon::start(STEADY_MACHINE);
        let state = daemon.state();
        let mut client = daemon.client();
        assert_eq!(close_state(&mut client, "before")["durable"], true);
        for file in ["ledger.sqlite", "ledger.sqlite-wal"] {
            std::fs::rename(state.join(file), state.join(format!("{file}.old"))).unwrap();
        }
        if replaced {
            std::fs::File::create(state.join("ledger.sqlite")).unwrap();
        }
        let during = close_state(&mut client, "during");
        wait_until("there is another one", || keeping(&daemon)["durable"] == true);
        let after = close_state(&mut client, "after");
        assert_eq!(after["durable"], true);
        daemon.kill();
        daemon.restart();
        let mut client = daemon.client();
        assert_eq!(client.call("GetSpan", json!({ "span": "after" }))["account"], after);
        // The account was queued and is in the new database: accounts answered as durable are there, and extra ones are
        // harmless.
        let found = client.call("GetSpan", json!({ "span": "during" }))["account"].take();
        assert_eq!((&found["durable"], &found["share_uj"]), (&json!(true), &during["share_uj"]));
        assert_eq!(client.call_error("GetSpan", json!({ "span": "before" })).0, "StoreDamaged");
    }
}

#[test]
fn an_account_that_was_written_to_an_unlinked_log_is_stored_once() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    assert_eq!(close_state(&mut client, "a")["durable"], true);
    std::fs::remove_file(daemon.state().join("ledger.sqlite-wal")).unwrap();
    let removed = close_state(&mut client, "b");
    assert_eq!(removed["durable"], false);
    wait_until("the database is open again", || keeping(&daemon)["durable"] == true);
    // The end of the connection copied its log to the database, which was not unlinked.
    assert_eq!(names(&list(&mut client, json!({}))), ["b", "a"]);
    assert_eq!(close_state(&mut client, "c")["durable"], true);
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    assert_eq!(names(&list(&mut client, json!({}))), ["c", "b", "a"]);
    let found = client.call("GetSpan", json!({ "span": "b" }))["account"].take();
    assert_eq!((&found["durable"], &found["share_uj"]), (&json!(true), &removed["share_uj"]));
    assert!(!daemon.log().contains("incomplete"), "{}", daemon.log());
}

/// The output of a `wattspan` command, both streams on one line.
fn wattspan(daemon: &TestDaemon, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(programs::wattspan());
    let output = command.args(arguments).arg("--socket").arg(daemon.socket()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn how_long_accounts_are_kept_at_the_present_rate_is_shown() {
    let mut daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[ledger]\nmegabytes = 1\ndays = 30\n");
    let mut client = daemon.client();
    for at in 0..150 {
        close_state(&mut client, &format!("s{at}"));
    }
    wait_until("there is a rate", || keeping(&daemon)["keeps_s"].is_u64());
    let health = keeping(&daemon);
    assert_eq!(health["limited_by"], "size", "{health}");
    let fills_s = 3600.0 * 1e6
        / get_u64(&health, "bytes_per_account") as f64
        / get_u64(&health, "accounts_per_h") as f64;
    let keeps_s = get_u64(&health, "keeps_s") as f64;
    // The three figures are rounded separately.
    assert!((keeps_s - fills_s).abs() < 2.0 + fills_s / 20.0, "{health}");
    let doctor = wattspan(&daemon, &["doctor"]);
    assert!(
        doctor.contains("they are kept for") && doctor.contains("ledger.megabytes limits that"),
        "{doctor}"
    );
    let check = |daemon: &TestDaemon| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wattspand"));
        let config = daemon.socket().parent().unwrap().with_file_name("wattspan.toml");
        let output =
            command.arg("--check").arg("--config").arg(config).arg("--state-dir").arg(daemon.state());
        let text = String::from_utf8(output.output().unwrap().stdout).unwrap();
        assert!(text.parse::<toml::Table>().is_ok(), "{text}");
        text
    };
    let running = check(&daemon);
    assert!(running.contains("cannot be read now") && running.contains("at 100 a second"), "{running}");
    daemon.terminate();
    daemon.wait();
    let before = std::fs::read(daemon.state().join("ledger.sqlite")).unwrap();
    let stopped = check(&daemon);
    assert!(stopped.contains("At the rate of the last hours"), "{stopped}");
    assert!(stopped.contains("ledger.megabytes limits that"), "{stopped}");
    assert_eq!(std::fs::read(daemon.state().join("ledger.sqlite")).unwrap(), before);
    assert!(!daemon.state().join("ledger.sqlite-wal").exists(), "it makes nothing");
}
