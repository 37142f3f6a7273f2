//! Loss-free consumption: a client that follows the numbers of accounts gets each stored account once, over kills of the
//! daemon, and learns which numbers have no account. A user without telemetry access gets own accounts and no numbers.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    STEADY_MACHINE, TestClient, TestDaemon, encode_call, get_u64, run_spans_until_it_ends, sleep_ms,
    wait_until,
};
use serde_json::{Value, json};

fn run_spans(client: &mut TestClient, prefix: &str, count: usize) {
    for at in 0..count {
        client.open(&format!("{prefix}{at}"));
        client.close_and_settle(&format!("{prefix}{at}"));
    }
}

fn list_after(client: &mut TestClient, after: u64) -> Value {
    client.call("ListSpans", json!({ "after": after, "limit": 4096 }))
}

fn numbers(accounts: &Value) -> Vec<u64> {
    accounts.as_array().unwrap().iter().map(|account| get_u64(account, "number")).collect()
}

#[test]
fn a_list_after_a_number_continues_over_a_restart_and_names_its_database() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    run_spans(&mut client, "a", 5);
    let page = list_after(&mut client, 0);
    assert_eq!(numbers(&page["accounts"]), [1, 2, 3, 4, 5]);
    assert_eq!((&page["after"], &page["at_end"], page.get("gaps")), (&json!(5), &json!(true), None));
    let database = client.call("GetInfo", json!({}))["keeping"]["database"].take();
    assert_eq!(page["database"], database);
    // Except for the number, it is the account of the other calls.
    let mut third = page["accounts"][2].clone();
    third.as_object_mut().unwrap().remove("number");
    assert_eq!(third, client.call("GetSpan", json!({ "span": "a2" }))["account"]);
    let short = client.call("ListSpans", json!({ "after": 1, "limit": 2 }));
    assert_eq!((numbers(&short["accounts"]), &short["after"]), (vec![2, 3], &json!(3)));
    assert_eq!(short["at_end"], false);
    daemon.kill();
    daemon.restart();
    let mut client = daemon.client();
    run_spans(&mut client, "b", 1);
    let page = client.call("ListSpans", json!({ "after": 5, "database": database }));
    assert_eq!(numbers(&page["accounts"]), [6]);
}

#[test]
fn a_oneway_call_that_would_search_the_store_blocks_no_reply() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    run_spans(&mut client, "a", 1);
    for _ in 0..8 {
        client.send("ListSpans", json!({ "after": 0 }), &["oneway"]);
        client.send("ListSpans", json!({ "name": "none" }), &["oneway"]);
        client.send("GetSpan", json!({ "span": "none" }), &["oneway"]);
    }
    assert!(client.call("GetInfo", json!({}))["version"].is_string());
    assert_eq!(numbers(&list_after(&mut client, 0)["accounts"]), [1]);
}

#[test]
fn a_list_after_a_number_refuses_what_it_cannot_answer() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    run_spans(&mut client, "a", 1);
    let other = "00000000-0000-4000-8000-000000000000";
    for (call, field) in [
        (json!({ "after": -1 }), "after"),
        (json!({ "after": 2 }), "after"),
        (json!({ "after": 0, "database": other }), "database"),
        (json!({ "after": 0, "database": "x" }), "database"),
        (json!({ "database": other }), "database"),
        (json!({ "after": 0, "before": 1 }), "before"),
        (json!({ "after": 0, "state": "open" }), "state"),
        (json!({ "after": 0, "limit": 0 }), "limit"),
    ] {
        let (error, parameters) = client.call_error("ListSpans", call.clone());
        assert_eq!((error.as_str(), &parameters["field"]), ("InvalidValue", &json!(field)), "{call}");
    }
    for (call, field) in [
        (json!({ "after": -1 }), "after"),
        (json!({ "after": 2 }), "after"),
        (json!({ "after": 0, "database": other }), "database"),
    ] {
        let mut watcher = daemon.client();
        watcher.send("WatchSpans", call.clone(), &["more"]);
        let answer = watcher.receive().unwrap();
        assert_eq!(answer["error"], "org.wattspan.Meter.InvalidValue", "{call}");
        assert_eq!(answer["parameters"]["field"], field, "{call}");
    }
    let without_store = TestDaemon::start_with_config(STEADY_MACHINE, "[ledger]\nkeep = false\n");
    for method in ["ListSpans", "WatchSpans"] {
        let mut client = without_store.client();
        client.send(method, json!({ "after": 0 }), &["more"]);
        assert_eq!(client.receive().unwrap()["error"], "org.wattspan.Meter.StoreUnavailable", "{method}");
    }
}

#[test]
fn a_stream_begins_at_a_number_and_a_slow_reader_misses_nothing() {
    const STORED: u64 = 600;
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    // Far more than the 64 KiB of unread replies at which another stream is closed.
    for batch in 0..STORED / 50 {
        store_large_accounts(&mut client, batch * 50..(batch + 1) * 50);
    }
    let mut watcher = daemon.client();
    watcher.send("WatchSpans", json!({ "after": 100 }), &["more"]);
    sleep_ms(300);
    for expected in 101..=STORED {
        let item = watcher.receive().expect("the stream continues");
        assert_eq!(
            (&item["parameters"]["account"]["number"], &item["continues"]),
            (&json!(expected), &json!(true))
        );
        assert_eq!(item["parameters"]["after"], expected);
    }
    for expected in STORED + 1..STORED + 4 {
        run_spans(&mut client, &format!("later{expected}-"), 1);
        assert_eq!(watcher.receive().unwrap()["parameters"]["account"]["number"], expected);
    }
}

/// What a consumer has received: the number of each span, and the ranges without accounts.
#[derive(Default)]
struct Consumed {
    after: u64,
    database: Option<Value>,
    spans: HashMap<String, u64>,
}

impl Consumed {
    /// Takes an account, whose number must be the next one.
    fn take(&mut self, account: &Value, database: &Value) {
        assert_eq!(get_u64(account, "number"), self.after + 1, "each number once, in order");
        assert_eq!(self.database.get_or_insert_with(|| database.clone()), database);
        self.after += 1;
        let known = self.spans.insert(account["span"].as_str().unwrap().to_owned(), self.after);
        assert_eq!(known, None, "one account for each span: {account}");
    }

    /// Follows a daemon by pages until it goes away.
    fn follow_lists(&mut self, mut client: TestClient, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let call = json!({ "after": self.after, "limit": 64, "database": self.database });
            if !client.send_raw(&encode_call("ListSpans", call, &[])) {
                return;
            }
            let Some(mut answer) = client.receive() else { return };
            let page = answer["parameters"].take();
            // A daemon that is being killed may answer that its store is not open yet.
            let Some(accounts) = page["accounts"].as_array() else { continue };
            assert_eq!(page.get("gaps"), None, "nothing was deleted or lost");
            accounts.iter().for_each(|account| self.take(account, &page["database"]));
            assert_eq!(page["after"], self.after);
        }
    }

    /// Follows a daemon by a stream until it goes away.
    fn follow_stream(&mut self, mut client: TestClient) {
        let call = json!({ "after": self.after, "database": self.database });
        if !client.send_raw(&encode_call("WatchSpans", call, &["more"])) {
            return;
        }
        while let Some(answer) = client.receive() {
            let item = &answer["parameters"];
            assert_eq!((answer.get("error"), item.get("gaps")), (None, None), "{answer}");
            self.take(&item["account"], &item["database"]);
            assert_eq!(item["after"], self.after);
        }
    }
}

/// The number of kills is `WATTSPAN_ROUNDS`, 20 by default.
#[test]
fn a_consumer_sees_each_number_once_over_kills_of_the_daemon() {
    let rounds = std::env::var("WATTSPAN_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut by_list, mut by_stream) = (Consumed::default(), Consumed::default());
    let mut random = std::process::id();
    for round in 0..rounds {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let life = Duration::from_micros(1000 + u64::from(random >> 8) % 120_000);
        let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let [one, two, lists, stream] = [0; 4].map(|_| daemon.client());
        std::thread::scope(|scope| {
            let (by_list, by_stream, stop, answered) = (&mut by_list, &mut by_stream, &stop, &answered);
            scope.spawn(move || run_spans_until_it_ends(one, &format!("{round}a"), Duration::ZERO, answered));
            scope.spawn(move || run_spans_until_it_ends(two, &format!("{round}b"), Duration::ZERO, answered));
            scope.spawn(move || by_list.follow_lists(lists, stop));
            scope.spawn(move || by_stream.follow_stream(stream));
            // Every other round waits for its first replies, so that there are some even on a busy machine.
            if round % 2 == 0 {
                wait_until("some are answered", || answered.load(Ordering::Relaxed) >= 8);
            }
            std::thread::sleep(life);
            rustix::process::kill_process(daemon.pid(), rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        daemon.kill();
        daemon.restart();
    }
    // What was stored before the last kill is still to be read.
    let mut client = daemon.client();
    wait_until("all is read", || {
        let page = client.call("ListSpans", json!({ "after": by_list.after, "limit": 4096 }));
        for account in page["accounts"].as_array().unwrap() {
            by_list.take(account, &page["database"]);
        }
        page["at_end"] == true
    });
    let mut watcher = daemon.client();
    watcher.send("WatchSpans", json!({ "after": by_stream.after }), &["more"]);
    while by_stream.after < by_list.after {
        let item = watcher.receive().unwrap()["parameters"].take();
        by_stream.take(&item["account"], &item["database"]);
    }
    assert!(by_list.after >= 4 * rounds, "{} accounts in {rounds} rounds", by_list.after);
    assert_eq!((by_list.spans.len() as u64, &by_list.spans), (by_list.after, &by_stream.spans));
    // All accounts of the store, counted by the other list.
    let mut before = None;
    let mut stored = 0;
    loop {
        let page = client.call("ListSpans", json!({ "limit": 256, "before": before }));
        stored += page["accounts"].as_array().unwrap().len() as u64;
        before = page["before"].as_u64();
        if before.is_none() {
            break;
        }
    }
    assert_eq!(stored, by_list.after);
}

#[test]
fn deleted_accounts_are_a_gap_and_a_lost_database_has_another_uuid() {
    let mut daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[ledger]\nmegabytes = 1\n");
    let mut client = daemon.client();
    let mut written = 0;
    // Each account has 3 KB, so that few of them exceed the size.
    while written < 600 {
        store_large_accounts(&mut client, written..written + 50);
        written += 50;
    }
    wait_until("the oldest are deleted", || list_after(&mut client, 3)["gaps"].is_array());
    run_spans(&mut client, "kept", 2);
    let page = list_after(&mut client, 3);
    let gaps = page["gaps"].as_array().unwrap();
    let next = numbers(&page["accounts"])[0];
    assert_eq!(gaps[..], [json!({ "first": 4, "last": next - 1, "reason": "deleted" })]);
    let database = page["database"].clone();
    // Another database in the same directory: numbers go on, and what was lost is a gap.
    daemon.kill();
    for file in ["ledger.sqlite", "ledger.sqlite-wal"] {
        let _ = std::fs::remove_file(daemon.state().join(file));
    }
    daemon.restart();
    let mut client = daemon.client();
    let (error, words) = client.call_error("ListSpans", json!({ "after": 3, "database": database }));
    assert_eq!((error.as_str(), &words["field"]), ("InvalidValue", &json!("database")));
    run_spans(&mut client, "new", 1);
    let page = list_after(&mut client, 0);
    assert_ne!(page["database"], database);
    let number = numbers(&page["accounts"])[0];
    assert!(number > written, "no number is used twice: {page}");
    assert_eq!(page["gaps"], json!([{ "first": 1, "last": number - 1, "reason": "lost" }]));
}

/// Stores accounts of 3 KB.
fn store_large_accounts(client: &mut TestClient, range: std::ops::Range<u64>) {
    let text = "x".repeat(500);
    let attributes: BTreeMap<String, &String> = (0..5).map(|at| (format!("text{at}"), &text)).collect();
    let mut calls = Vec::new();
    for at in range.clone() {
        let span = format!("s{at}");
        let open = json!({ "span": span, "attributes": attributes });
        calls.extend(encode_call("OpenSpan", open, &["oneway"]));
        calls.extend(encode_call("CloseSpan", json!({ "span": span, "wait_settled": true }), &[]));
    }
    assert!(client.send_raw(&calls));
    range.for_each(|_| assert!(client.receive().unwrap().get("error").is_none()));
}

#[cfg(target_os = "linux")]
#[test]
fn a_user_follows_own_accounts_only_and_learns_no_number() {
    use crate::other_user::{TestUser, call_as};
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, crate::other_user::GROUPS);
    run_spans(&mut daemon.client(), "of_root", 3);
    let (span, coarse) =
        (TestUser { uid: 12_103, groups: "daemon" }, TestUser { uid: 12_102, groups: "games" });
    let own = json!([
        ["OpenSpan", { "span": "own" }],
        ["CloseSpan", { "span": "own", "wait_settled": true }],
        ["ListSpans", { "after": 0 }]
    ]);
    let mut answers = call_as(&daemon, span, own);
    let page = answers.pop().unwrap()["parameters"].take();
    let listed = page["accounts"].as_array().unwrap();
    assert_eq!((listed.len(), &listed[0]["span"], listed[0].get("number")), (1, &json!("own"), None));
    let after = get_u64(&page, "after");
    assert!(after > 1 << 32, "the position {after} is no number of an account");
    run_spans(&mut daemon.client(), "more_of_root", 3);
    let again =
        call_as(&daemon, span, json!([["ListSpans", { "after": after }]])).remove(0)["parameters"].take();
    assert_eq!((&again["accounts"], &again["after"]), (&json!([]), &json!(after)), "others move nothing");
    for (call, user) in
        [(json!({ "after": 4 }), span), (json!({ "after": after }), TestUser { uid: 12_109, ..span })]
    {
        let answer = call_as(&daemon, user, json!([["ListSpans", call]])).remove(0);
        assert_eq!(answer["error"], "org.wattspan.Meter.InvalidValue", "{answer}");
    }
    let denied = call_as(&daemon, coarse, json!([["ListSpans", { "after": 0 }]])).remove(0);
    assert_eq!(denied["parameters"]["needs"], "span", "{denied}");
}
