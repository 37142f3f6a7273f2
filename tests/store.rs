//! The ledger on disk, seen from outside: what was answered is still there after `kill -9`, whatever the disk does spans
//! are answered, and what is wrong is said.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{SLUGGISH, STEADY, TestClient, TestDaemon, message, number, pass, until};

/// Everything that a list gives, page by page, the latest first.
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

fn names(accounts: &[Value]) -> Vec<&str> {
    accounts.iter().map(|account| account["span"].as_str().unwrap()).collect()
}

fn keeping(daemon: &TestDaemon) -> Value {
    daemon.client().call("GetInfo", json!({}))["keeping"].take()
}

#[test]
fn an_account_survives_kill_9_and_is_found_again_by_name_and_filter() {
    let mut daemon = TestDaemon::on(STEADY);
    let mut client = daemon.client();
    let opening = json!({ "span": "a", "name": "question", "attributes": { "model": "m1" }, "weight": 2.5 });
    client.call("OpenSpan", opening);
    client.call("MarkPhase", json!({ "span": "a", "phase": "decode" }));
    pass(20);
    let account = client.settle("a");
    assert_eq!(account["durable"], true);
    client.call("OpenSpan", json!({ "span": "b", "name": "other", "attributes": { "model": "m2" } }));
    client.settle("b");
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
    let opened = number(&account, "opened_unix_ns");
    assert_eq!(names(&fits(json!({ "since_unix_ns": opened + 1 }))), ["b"]);
    assert_eq!(names(&fits(json!({ "since_unix_ns": opened }))), ["b", "a"]);
    let refusal = client.refusal("GetSpan", json!({ "span": "c" }));
    assert_eq!(refusal, ("NoSuchSpan".into(), json!({ "span": "c" })));
    let (refusal, _) = client.refusal("ListSpans", json!({ "since_unix_ns": -1 }));
    assert_eq!(refusal, "InvalidValue");
}

#[test]
fn an_open_span_comes_back_as_interrupted_and_its_name_may_be_used_again() {
    let mut daemon = TestDaemon::on(STEADY);
    let mut client = daemon.client();
    client.call("OpenSpan", json!({ "span": "long", "name": "first" }));
    client.open("cancelled");
    pass(2500);
    client.call("CancelSpan", json!({ "span": "cancelled" }));
    client.open("flush");
    client.settle("flush");
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    let account = client.call("GetSpan", json!({ "span": "long" }))["account"].take();
    assert_eq!((&account["state"], &account["name"]), (&json!("interrupted"), &json!("first")));
    let length = number(&account, "closed_ns") - number(&account, "opened_ns");
    assert!(length >= 1_000_000_000, "{account}");
    // 100 W, as far as readings vouched for it.
    let known_ns = length - number(&account["domains"][0], "unknown_ns").min(length);
    assert!(number(&account, "share_uj") > known_ns / 20_000, "{account}");
    assert_eq!(client.refusal("GetSpan", json!({ "span": "cancelled" })).0, "NoSuchSpan");
    assert_eq!(client.refusal("CloseSpan", json!({ "span": "long" })).0, "NoSuchSpan");
    assert!(daemon.log().contains("1 spans were open"), "{}", daemon.log());
    // The newest of a name is meant; both are listed.
    client.call("OpenSpan", json!({ "span": "long", "name": "second" }));
    assert_eq!(client.call("GetSpan", json!({ "span": "long" }))["account"]["state"], "open");
    let second = client.settle("long");
    assert_eq!(client.refusal("CloseSpan", json!({ "span": "long" })).0, "AlreadyClosed");
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    assert_eq!(client.call("GetSpan", json!({ "span": "long" }))["account"], second);
    assert_eq!(names(&list(&mut client, json!({}))), ["long", "long", "flush"]);
}

#[test]
fn a_stop_keeps_what_is_open_or_not_settled_as_interrupted() {
    let mut daemon = TestDaemon::on(SLUGGISH);
    let mut client = daemon.client();
    client.open("open");
    client.open("closed");
    pass(5);
    let told = client.call("CloseSpan", json!({ "span": "closed" }))["account"].take();
    assert_eq!((&told["state"], told.get("durable")), (&json!("provisional"), None));
    daemon.terminate();
    assert!(daemon.wait().success());
    daemon.restart();
    let mut client = daemon.client();
    let closed = client.call("GetSpan", json!({ "span": "closed" }))["account"].take();
    assert_eq!(closed["state"], "interrupted");
    assert_eq!(closed["closed_ns"], told["closed_ns"]);
    assert_eq!(client.call("GetSpan", json!({ "span": "open" }))["account"]["state"], "interrupted");
}

/// What a client was told, by span.
type Told = HashMap<String, Value>;

/// Opens and closes as fast as it is answered, until the daemon goes away; gives every final account it was told. Half of
/// them ask for it, the others are asked about until they are final.
fn bill(mut client: TestClient, prefix: &str, stop: &AtomicBool) -> Told {
    let mut told = Told::new();
    for batch in 0.. {
        let spans: Vec<String> = (0..8).map(|at| format!("{prefix}-{batch}-{at}")).collect();
        let mut calls = Vec::new();
        for (at, span) in spans.iter().enumerate() {
            calls.extend(message("OpenSpan", json!({ "span": span, "name": prefix }), &["oneway"]));
            let close = json!({ "span": span, "wait_settled": at % 2 == 0 });
            calls.extend(message("CloseSpan", close, &[]));
        }
        if stop.load(Ordering::Relaxed) || !client.send_raw(&calls) {
            return told;
        }
        let mut open: Vec<&String> = Vec::new();
        for span in &spans {
            let Some(mut answer) = client.receive() else { return told };
            let account = answer["parameters"]["account"].take();
            if account["state"] == "settled" {
                told.insert(span.clone(), account);
            } else {
                open.push(span);
            }
        }
        while let Some(span) = open.pop() {
            if !client.send_raw(&message("GetSpan", json!({ "span": span }), &[])) {
                return told;
            }
            let Some(mut answer) = client.receive() else { return told };
            let account = answer["parameters"]["account"].take();
            if account["state"] == "settled" {
                told.insert(span.clone(), account);
            } else {
                open.insert(0, span);
            }
        }
    }
    told
}

/// `WATTSPAN_ROUNDS` of them; 20 where nothing is said.
#[test]
fn of_accounts_once_answered_none_is_lost_by_kill_9_at_random_moments_under_load() {
    let rounds = std::env::var("WATTSPAN_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let mut daemon = TestDaemon::on(STEADY);
    let (mut answered, mut random) = (0, std::process::id());
    let begun = Instant::now();
    for round in 0..rounds {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let life = Duration::from_micros(1000 + u64::from(random >> 8) % 120_000);
        let stop = AtomicBool::new(false);
        let clients: Vec<TestClient> = (0..3).map(|_| daemon.client()).collect();
        let told: Told = std::thread::scope(|scope| {
            let stop = &stop;
            let bill = |(at, client)| scope.spawn(move || bill(client, &format!("r{round}-{at}"), stop));
            let threads: Vec<_> = clients.into_iter().enumerate().map(bill).collect();
            std::thread::sleep(life);
            rustix::process::kill_process(daemon.pid(), rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        daemon.wait();
        daemon.restart();
        let mut client = daemon.client();
        for (span, account) in &told {
            assert_eq!(account["durable"], true, "round {round}: {account}");
            let found = client.exchange("GetSpan", json!({ "span": span }));
            assert_eq!(&found["parameters"]["account"], account, "round {round}: {span}: {found}");
        }
        answered += told.len();
    }
    let (lines, seconds) = (daemon.log().lines().count(), begun.elapsed().as_secs());
    println!("{rounds} rounds in {seconds} s, {answered} accounts answered, none lost");
    assert!(answered > rounds, "the load was none: {answered} accounts in {rounds} rounds");
    assert!(lines <= 2 * (rounds + 1), "{}", daemon.log());
}

/// Closes a span; how it was answered.
fn billed(client: &mut TestClient, span: &str) -> Value {
    client.call("OpenSpan", json!({ "span": span, "attributes": { "filling": "x".repeat(900) } }));
    client.settle(span)
}

#[test]
fn a_damaged_file_is_moved_aside_and_a_fresh_one_begun() {
    let mut daemon = TestDaemon::on(STEADY);
    let state = daemon.state();
    daemon.client().call("GetInfo", json!({}));
    let mut client = daemon.client();
    for at in 0..200 {
        client.open(&format!("s{at}"));
    }
    for at in 0..200 {
        client.settle(&format!("s{at}"));
    }
    daemon.terminate();
    daemon.wait();
    let file = state.join("ledger.sqlite");
    let mut bytes = std::fs::read(&file).unwrap();
    for (damage, told) in [(true, "damaged"), (false, "damaged")] {
        let damaged: Vec<u8> = if damage {
            bytes[..4096].iter_mut().skip(100).for_each(|byte| *byte = 0xa5);
            bytes.clone()
        } else {
            b"this is no database, it only has its name".repeat(100)
        };
        std::fs::write(&file, damaged).unwrap();
        let _ = std::fs::remove_file(state.join("ledger.sqlite-wal"));
        daemon.restart();
        until("the new one is there", || keeping(&daemon)["durable"] == true);
        assert!(daemon.log().contains(told), "{}", daemon.log());
        assert_eq!(billed(&mut daemon.client(), "after")["durable"], true);
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
    let mut daemon = TestDaemon::on(STEADY);
    billed(&mut daemon.client(), "a");
    let file = daemon.state().join("ledger.sqlite");
    daemon.terminate();
    daemon.wait();
    // The schema's version lies at byte 60 of the file, big end first (sqlite.org/fileformat2.html, 1.3).
    let mut bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes[60..64], [0, 0, 0, 1]);
    bytes[63] = 2;
    std::fs::write(&file, &bytes).unwrap();
    daemon.restart();
    until("it is noticed", || keeping(&daemon)["reason"].is_string());
    assert!(keeping(&daemon)["reason"].as_str().unwrap().contains("newer wattspan"));
    assert_eq!(billed(&mut daemon.client(), "b")["durable"], false);
    daemon.terminate();
    daemon.wait();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn of_two_daemons_on_one_directory_the_second_waits_for_the_first_to_go() {
    let mut first = TestDaemon::on(STEADY);
    assert_eq!(billed(&mut first.client(), "a")["durable"], true);
    let second = TestDaemon::with(STEADY, &format!("state_dir = {:?}\n", first.state()));
    until("it is noticed", || keeping(&second)["reason"].is_string());
    assert!(second.log().contains("another wattspand keeps its ledger in"), "{}", second.log());
    assert_eq!(billed(&mut second.client(), "b")["durable"], false);
    first.kill();
    until("the second has it", || keeping(&second)["durable"] == true);
    let mut client = second.client();
    assert_eq!(names(&list(&mut client, json!({}))), ["b", "a"]);
}

#[test]
fn a_simulated_machines_accounts_are_kept_only_where_they_are_told_to() {
    // Whatever names the place keeps the test's support from giving one.
    let daemon = TestDaemon::with(STEADY, "# no state_dir\n");
    assert_eq!(keeping(&daemon), Value::Null);
    assert_eq!(billed(&mut daemon.client(), "a").get("durable"), None);
}

#[test]
fn where_nothing_is_to_be_kept_nothing_is() {
    let daemon = TestDaemon::with(STEADY, "[ledger]\nkeep = false\n");
    let mut client = daemon.client();
    let account = billed(&mut client, "a");
    assert_eq!(account.get("durable"), None, "{account}");
    assert_eq!(keeping(&daemon), Value::Null);
    assert!(!daemon.state().exists());
    assert_eq!(names(&list(&mut client, json!({}))), ["a"]);
}
