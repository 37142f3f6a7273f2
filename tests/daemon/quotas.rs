//! Every quota of `[limits]`, from a table: a call at the limit is accepted, the next one is refused with the quota's
//! name and limit. Fails for a quota without a row here or a named test elsewhere.

use crate::other_user;

use std::io::{Read, Write};

use crate::other_user::{GROUPS, TestUser, call_as};
use crate::support::{
    SLOW_COUNTER_MACHINE, STEADY_MACHINE, TestClient, TestDaemon, encode_call, error_of, sleep_ms, wait_until,
};
use serde_json::{Value, json};

/// Quotas without an exact limit, each with its test in `hostile_client`.
const TESTED_IN_HOSTILE_CLIENT: &[(&str, &str)] = &[
    ("unread_bytes", "a_caller_that_never_reads_is_not_read_from_and_then_given_up"),
    ("message_s", "partial_and_slow_messages_time_out"),
    ("stall_s", "a_caller_that_never_reads_is_not_read_from_and_then_given_up"),
];

/// Quotas with a test of their own below.
const TESTED_SEPARATELY: &[&str] =
    &["message_bytes", "connections", "remembered_accounts", "remembered_bytes", "weight_changes_per_span"];

/// A quota of one user or of all users: its configuration and the calls that reach it.
struct QuotaCase {
    key: &'static str,
    limits: &'static str,
    /// The user's group; absent: root, for quotas of all users together.
    group: Option<&'static str>,
    /// The calls that the limit allows, then the one that it refuses.
    calls: fn() -> Vec<Value>,
    quota: &'static str,
    limit: u64,
}

fn opens(many: usize) -> Vec<Value> {
    (0..many).map(|_| json!(["OpenSpan", {}])).collect()
}

fn questions(many: usize) -> Vec<Value> {
    // Over several connections: the quota is the user's, not the connection's.
    (0..many).map(|at| json!(["GetInfo", {}, at % 3])).collect()
}

/// A span of little text that takes much memory.
fn pairs() -> Value {
    let pairs: serde_json::Map<_, _> = (10..74).map(|at| (at.to_string(), json!("v"))).collect();
    json!(["OpenSpan", { "attributes": pairs }])
}

const QUOTA_CASES: &[QuotaCase] = &[
    QuotaCase {
        key: "span_memory_bytes_per_user",
        limits: "span_memory_bytes_per_user = 8192",
        group: Some("daemon"),
        calls: || vec![json!(["OpenSpan", {}]), pairs()],
        quota: "bytes of memory of one user's spans",
        limit: 8192,
    },
    QuotaCase {
        key: "span_memory_bytes",
        limits: "span_memory_bytes = 65536",
        group: None,
        calls: || vec![pairs(), pairs(), pairs(), pairs()],
        quota: "bytes of memory of all spans",
        limit: 65_536,
    },
    QuotaCase {
        key: "span_memory_bytes_per_user",
        limits: "span_memory_bytes_per_user = 8192",
        group: Some("daemon"),
        calls: || vec![json!(["OpenSpan", { "span": "a" }]), json!(["CloseSpan", { "span": "a" }]), pairs()],
        quota: "bytes of memory of one user's spans",
        limit: 8192,
    },
    QuotaCase {
        key: "phases_per_span",
        limits: "phases_per_span = 2",
        group: Some("daemon"),
        calls: || {
            let mark = |phase: &str| json!(["MarkPhase", { "span": "a", "phase": phase }]);
            vec![json!(["OpenSpan", { "span": "a" }]), mark("p"), mark("q"), mark("r")]
        },
        quota: "phases of a span",
        limit: 2,
    },
    QuotaCase {
        key: "open_spans",
        limits: "open_spans = 3",
        group: None,
        calls: || opens(4),
        quota: "open spans",
        limit: 3,
    },
    QuotaCase {
        key: "open_spans_per_user",
        limits: "open_spans_per_user = 3",
        group: Some("daemon"),
        calls: || opens(4),
        quota: "open spans",
        limit: 3,
    },
    QuotaCase {
        key: "open_spans_per_user",
        limits: "open_spans_per_user = 3",
        group: Some("games"),
        calls: || opens(4),
        quota: "open spans",
        limit: 3,
    },
    QuotaCase {
        key: "connections_per_user",
        limits: "connections_per_user = 3",
        group: Some("daemon"),
        calls: || vec![json!(["GetInfo", {}]), json!(["connect"]), json!(["connect"]), json!(["connect"])],
        quota: "connections of one user",
        limit: 3,
    },
    QuotaCase {
        key: "streams_per_user",
        limits: "streams_per_user = 2",
        group: Some("daemon"),
        calls: || vec![json!(["watch"]), json!(["watch"]), json!(["watch"])],
        quota: "streams of one user",
        limit: 2,
    },
    QuotaCase {
        key: "notes_bytes_per_user",
        limits: "notes_bytes_per_user = 300",
        group: Some("daemon"),
        calls: || {
            let notes =
                |name: &str| json!(["OpenSpan", { "name": name, "attributes": { "key": "v".repeat(97) } }]);
            vec![notes(&"n".repeat(100)), notes(""), json!(["OpenSpan", { "name": "n" }])]
        },
        quota: "bytes of notes on spans",
        limit: 300,
    },
    QuotaCase {
        key: "calls_burst",
        limits: "calls_per_s = 0.01\ncalls_burst = 7",
        group: Some("daemon"),
        calls: || questions(8),
        quota: "calls a second",
        limit: 1,
    },
    QuotaCase {
        key: "calls_per_s",
        limits: "calls_per_s = 0.01\ncalls_burst = 1",
        group: Some("bin"),
        calls: || questions(2),
        quota: "calls a second",
        limit: 1,
    },
    QuotaCase {
        key: "coarse_calls_burst",
        limits: "coarse_calls_per_s = 0.01\ncoarse_calls_burst = 7",
        group: Some("games"),
        calls: || questions(8),
        quota: "calls a second",
        limit: 1,
    },
    QuotaCase {
        key: "coarse_calls_per_s",
        limits: "coarse_calls_per_s = 0.01\ncoarse_calls_burst = 1",
        group: Some("games"),
        calls: || questions(2),
        quota: "calls a second",
        limit: 1,
    },
    QuotaCase {
        key: "stranger_calls_burst",
        limits: "stranger_calls_per_s = 0.01\nstranger_calls_burst = 7",
        group: Some(""),
        calls: || questions(8),
        quota: "calls a second",
        limit: 1,
    },
    QuotaCase {
        key: "stranger_calls_per_s",
        limits: "stranger_calls_per_s = 0.01\nstranger_calls_burst = 1",
        group: Some(""),
        calls: || questions(2),
        quota: "calls a second",
        limit: 1,
    },
];

#[test]
fn what_is_at_the_limit_is_taken_and_one_above_is_refused_with_its_name() {
    for row in QUOTA_CASES {
        let Some(answers) = answers_of(row) else { return };
        let (last, taken) = answers.split_last().unwrap();
        for answer in taken {
            assert!(answer.get("error").is_none(), "{}: {answer}", row.key);
        }
        let replies = ("QuotaExceeded".to_owned(), json!({ "quota": row.quota, "limit": row.limit }));
        assert_eq!(error_of(last.clone()), replies, "{}", row.key);
    }
}

/// The replies to the row's calls; asserts that another user is still served.
fn answers_of(row: &QuotaCase) -> Option<Vec<Value>> {
    let daemon =
        TestDaemon::start_with_config(STEADY_MACHINE, &format!("{GROUPS}[limits]\n{}\n", row.limits));
    let calls = (row.calls)();
    let Some(groups) = row.group else {
        let mut client = daemon.client();
        let exchange = |call: &Value| client.call_raw(call[0].as_str().unwrap(), call[1].clone());
        return Some(calls.iter().map(exchange).collect());
    };
    if !other_user::is_supported() {
        return None;
    }
    let replies = call_as(&daemon, TestUser { uid: 12_301, groups }, calls.into());
    let other = call_as(&daemon, TestUser { uid: 12_302, groups }, json!([["GetInfo", {}]]));
    assert!(other[0].get("error").is_none(), "{}: {}", row.key, other[0]);
    Some(replies)
}

#[test]
fn every_quota_of_the_configuration_is_tried() {
    let limits: toml::Table =
        toml::from_str(&toml::to_string(&wattspan::config::Limits::default()).unwrap()).unwrap();
    let tried: Vec<&str> = QUOTA_CASES
        .iter()
        .map(|row| row.key)
        .chain(TESTED_SEPARATELY.iter().copied())
        .chain(TESTED_IN_HOSTILE_CLIENT.iter().map(|row| row.0))
        .collect();
    for key in limits.keys() {
        assert!(tried.contains(&key.as_str()), "limits.{key} is tried nowhere");
    }
    for key in tried {
        assert!(limits.contains_key(key), "limits.{key} is none");
    }
    for (_, test) in TESTED_IN_HOSTILE_CLIENT {
        assert!(include_str!("hostile_client.rs").contains(&format!("fn {test}()")), "{test}");
    }
}

#[test]
fn the_largest_message_is_taken_and_one_byte_more_is_not() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nmessage_bytes = 1024\n");
    let padded = |bytes: usize| {
        let plain = encode_call("OpenSpan", json!({ "name": "" }), &[]).len() - 1;
        let spaces = " ".repeat(bytes - plain);
        let mut padded = encode_call("OpenSpan", json!({ "name": "" }), &[]);
        padded.splice(0..0, spaces.into_bytes());
        padded
    };
    let mut client = daemon.client();
    client.send_raw(&padded(1024));
    assert!(client.receive().unwrap().get("error").is_none());
    client.send_raw(&padded(1025));
    let (name, replies) = error_of(client.receive().unwrap());
    assert_eq!((name.as_str(), &replies["reason"]), ("InvalidValue", &json!("is longer than 1024 bytes")));
    assert!(client.is_disconnected());
}

#[test]
fn the_last_connection_of_all_is_taken_and_one_more_is_not() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nconnections = 3\n");
    // The harness's connection from the start may still be open.
    let mut three: Vec<TestClient> = Vec::new();
    wait_until("three are in", || {
        let mut client = daemon.client();
        let taken = client.call_raw("GetInfo", json!({})).get("error").is_none();
        three.extend(taken.then_some(client));
        three.len() == 3
    });
    let replies = error_of(daemon.client().receive().unwrap());
    assert_eq!(replies, ("QuotaExceeded".into(), json!({ "quota": "connections", "limit": 3 })));
    three.pop();
    wait_until("the place is free again", || {
        let mut client = daemon.client();
        client.send_raw(&encode_call("GetInfo", json!({}), &[]));
        client.receive().is_some_and(|answer| answer.get("error").is_none())
    });
}

#[test]
fn as_many_accounts_are_remembered_as_there_is_room_for() {
    let daemon = TestDaemon::start_with_config(
        STEADY_MACHINE,
        "[limits]\nremembered_accounts = 2\n[ledger]\nkeep = false\n",
    );
    let mut client = daemon.client();
    for span in ["a", "b"] {
        client.open(span);
        client.close_and_settle(span);
    }
    client.call("GetSpan", json!({ "span": "a" }));
    client.open("c");
    client.close_and_settle("c");
    assert_eq!(client.call_error("GetSpan", json!({ "span": "a" })).0, "NoSuchSpan");
    client.call("GetSpan", json!({ "span": "b" }));
}

#[test]
fn large_accounts_are_forgotten_before_they_take_more_than_their_room() {
    let daemon = TestDaemon::start_with_config(
        STEADY_MACHINE,
        "[limits]\nremembered_bytes = 30000\n[ledger]\nkeep = false\n",
    );
    let mut client = daemon.client();
    let large: serde_json::Map<_, _> =
        (0..20).map(|at| (format!("k{at}"), json!("v".repeat(1000)))).collect();
    for span in ["a", "b"] {
        client.call("OpenSpan", json!({ "span": span, "attributes": large }));
        client.close_and_settle(span);
    }
    assert_eq!(client.call_error("GetSpan", json!({ "span": "a" })).0, "NoSuchSpan");
    client.call("GetSpan", json!({ "span": "b" }));
}

#[test]
fn calls_without_a_waiting_reader_are_never_dropped_silently() {
    if !other_user::is_supported() {
        return;
    }
    let limits = "[limits]\ncalls_per_s = 0.01\ncalls_burst = 3\n";
    let daemon = TestDaemon::start_with_config(SLOW_COUNTER_MACHINE, &format!("{GROUPS}{limits}"));
    let user = TestUser { uid: 12_303, groups: "daemon" };
    let replies = call_as(
        &daemon,
        user,
        json!([
            ["OpenSpan", { "span": "a" }],
            ["SetWeight", { "span": "a", "weight": 2 }, 0, ["oneway"]],
            ["SetWeight", { "span": "a", "weight": 3 }, 0, ["oneway"]],
            ["SetWeight", { "span": "a", "weight": 4 }, 0, ["oneway"]],
            ["CloseSpan", { "span": "a" }],
            ["CloseSpan", { "span": "a" }]
        ]),
    );
    // The third weight is one call too many: the reply says so, and then the daemon closes the connection.
    let exceeded = ("QuotaExceeded".into(), json!({ "quota": "calls a second", "limit": 1 }));
    assert_eq!(error_of(replies[4].clone()), exceeded);
    assert_eq!(replies[5], Value::Null, "hung up");
    let mut root = daemon.client();
    wait_until("the span is over, as far as it was weighed", || {
        let account = root.call("GetSpan", json!({ "span": "a" }))["account"].take();
        account["state"] != "open" && account["weight"] == 3.0
    });
}

#[test]
fn ending_an_open_span_may_overdraw_the_rate_limit_by_one_burst() {
    if !other_user::is_supported() {
        return;
    }
    let limits = "[limits]\ncalls_per_s = 0.01\ncalls_burst = 4\n";
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, &format!("{GROUPS}{limits}"));
    let replies = call_as(
        &daemon,
        TestUser { uid: 12_305, groups: "daemon" },
        json!([
            ["OpenSpan", { "span": "a" }],
            ["OpenSpan", { "span": "b" }],
            ["OpenSpan", { "span": "c" }],
            ["OpenSpan", { "span": "d" }],
            ["CloseSpan", { "span": "a" }],
            ["CancelSpan", { "span": "b" }],
            ["CloseSpan", { "span": "unknown" }],
            ["CloseSpan", { "span": "c" }],
            ["CloseSpan", { "span": "d" }],
            ["GetInfo", {}]
        ]),
    );
    let exceeded = ("QuotaExceeded".into(), json!({ "quota": "calls a second", "limit": 1 }));
    for (at, answer) in replies.iter().take(8).enumerate() {
        match at {
            6 => assert_eq!(error_of(answer.clone()), exceeded),
            _ => assert!(answer.get("error").is_none(), "{at}: {answer}"),
        }
    }
    assert_eq!(error_of(replies[8].clone()), exceeded);
    assert_eq!(replies[9], Value::Null, "hung up");
    let mut root = daemon.client();
    wait_until("the last span ended with the connection", || {
        root.call("GetSpan", json!({ "span": "d" }))["account"]["state"] == "abandoned"
    });
}

#[test]
fn a_flood_of_calls_is_disconnected_and_the_others_are_served() {
    if !other_user::is_supported() {
        return;
    }
    let limits = "[limits]\nstranger_calls_per_s = 0.01\nstranger_calls_burst = 10\n";
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, &format!("{GROUPS}{limits}"));
    let flood: Vec<Value> = (0..100).map(|_| json!(["GetInfo", {}])).collect();
    let replies = call_as(&daemon, TestUser { uid: 12_304, groups: "" }, flood.into());
    let done = replies.iter().filter(|answer| answer["parameters"]["access"] == "none").count();
    let refused = replies.iter().filter(|answer| answer.get("error").is_some()).count();
    // A refusal costs a quarter of a call, and up to ten calls may be owed; the allowance grows slowly meanwhile.
    assert!(done == 10 && (40..50).contains(&refused), "{done} done, {refused} refused");
    let root = daemon.client().call("GetInfo", json!({}));
    assert_eq!(root["access"], "admin");
}

#[test]
fn as_many_changes_of_weight_of_a_span_wait_for_a_counter_as_are_allowed() {
    let limits = "patience_ms = 60000\n[limits]\nweight_changes_per_span = 3\n";
    let daemon = TestDaemon::start_with_config(SLOW_COUNTER_MACHINE, limits);
    let mut client = daemon.client();
    for span in ["a", "b"] {
        client.open(span);
        for weight in 1..=3 {
            client.call("SetWeight", json!({ "span": span, "weight": weight }));
        }
        let replies = client.call_error("SetWeight", json!({ "span": span, "weight": 4 }));
        let quota = "unsettled weight changes of one span";
        assert_eq!(replies, ("QuotaExceeded".into(), json!({ "quota": quota, "limit": 3 })));
        client.call("CloseSpan", json!({ "span": span }));
    }
}

#[test]
fn a_span_whose_weight_changed_often_is_asked_after_as_quickly_as_one_whose_weight_changed_once() {
    const CHANGES: usize = 40_000;
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    for (span, changes) in [("few", 1), ("many", CHANGES)] {
        client.open(span);
        let mut done = 0;
        while done < changes {
            let weight = |at: usize| json!({ "span": span, "weight": at % 9 + 1 });
            let batch = (changes - done).min(200);
            let calls: Vec<u8> =
                (0..batch).flat_map(|at| encode_call("SetWeight", weight(done + at), &[])).collect();
            assert!(client.send_raw(&calls));
            let answers: Vec<Value> = (0..batch).map(|_| client.receive().unwrap()).collect();
            // The others are refused while too many changes wait for a counter update, which settles them in a moment.
            let taken = answers.iter().filter(|answer| answer.get("error").is_none()).count();
            done += taken;
            if taken < batch {
                sleep_ms(2);
            }
        }
    }
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..400 {
        for (took, span) in took.iter_mut().zip(["few", "many"]) {
            let begun = std::time::Instant::now();
            client.call("GetSpan", json!({ "span": span }));
            took.push(begun.elapsed());
        }
    }
    let [few, many] = took.map(|mut took| {
        took.sort_unstable();
        took[took.len() / 2]
    });
    assert!(many < 3 * few, "{many:?} after {CHANGES} changes, {few:?} after one");
}

/// Opens and closes spans as fast as the daemon accepts them, over three connections: settling keeps up with the calls,
/// so that no quota on unsettled data is reached.
#[test]
fn spans_that_are_opened_and_closed_at_full_speed_are_never_refused() {
    const PAIRS: usize = 25_000;
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[ledger]\nkeep = false\n");
    let clients = (0..3).map(|client| {
        let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        let mut reading = stream.try_clone().unwrap();
        let answers = std::thread::spawn(move || {
            let (mut buffer, mut answers, mut refused) = (vec![0; 1 << 16], 0, 0);
            // A reply split across two reads is recognised by its end only; that concerns one in thousands.
            while answers < 2 * PAIRS {
                let length = reading.read(&mut buffer).unwrap();
                assert!(length > 0, "the daemon hung up");
                answers += buffer[..length].iter().filter(|byte| **byte == 0).count();
                refused += buffer[..length].windows(8).filter(|part| part == b"{\"error\"").count();
            }
            refused
        });
        let writing = std::thread::spawn(move || {
            for batch in 0..PAIRS / 50 {
                let pair = |at| {
                    let span = format!("{client}-{batch}-{at}");
                    let close = encode_call("CloseSpan", json!({ "span": span }), &[]);
                    [encode_call("OpenSpan", json!({ "span": span }), &[]), close].concat()
                };
                stream.write_all(&(0..50).flat_map(pair).collect::<Vec<u8>>()).unwrap();
            }
        });
        (writing, answers)
    });
    let clients: Vec<_> = clients.collect();
    for (writing, answers) in clients {
        writing.join().unwrap();
        assert_eq!(answers.join().unwrap(), 0, "refused");
    }
}
