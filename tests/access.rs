//! Several users at one daemon: who sees what, and whose limits are whose.
//!
//! The other users are processes of their own (`setpriv` of util-linux gives them user and groups), so these tests need
//! root; elsewhere they say so and stop. The rule itself is tested without users in `ipc::access`.

mod support;

use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::{Value, json};
use support::{STEADY, TestClient, TestDaemon, number, pass, refusal, until};

/// Two groups that every Linux has stand in for ours; their numbers follow the base system's.
const CONFIGURATION: &str = "
[access]
span_group = \"daemon\"
telemetry_group = \"bin\"
[limits]
connections_per_user = 3
open_spans_per_user = 2
streams_per_user = 1
";

/// A user and its groups.
#[derive(Clone, Copy)]
struct User {
    uid: u32,
    groups: &'static str,
}

const ANN: User = User { uid: 12_001, groups: "daemon" };
const BOB: User = User { uid: 12_002, groups: "daemon" };
const OPERATOR: User = User { uid: 12_003, groups: "daemon,bin" };
/// What a user that has no number here looks like.
const UNMAPPED: User = User { uid: 65_534, groups: "daemon,bin" };

fn daemon() -> Option<TestDaemon> {
    let can =
        rustix::process::geteuid().is_root() && Command::new("setpriv").arg("--version").output().is_ok();
    if !can {
        eprintln!("skipped: other users' processes need root and setpriv");
        return None;
    }
    Some(TestDaemon::with(STEADY, CONFIGURATION))
}

/// What the daemon answers to these calls, in a process of this user, on one connection.
fn answers(daemon: &TestDaemon, user: User, calls: Value) -> Vec<Value> {
    // The test program lies where others may not look.
    let program = daemon.socket().with_file_name("client");
    if !program.exists() {
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    }
    let output = Command::new("setpriv")
        .arg(format!("--reuid={}", user.uid))
        .arg(format!("--regid={}", user.uid))
        .arg(format!("--groups={}", user.groups))
        .arg(program)
        .args(["--exact", "a_client_of_another_user", "--ignored", "--nocapture"])
        .env("SOCKET", daemon.socket())
        .env("CALLS", calls.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said.lines().filter_map(|line| serde_json::from_str(line.split_once("ANSWER ")?.1).ok()).collect()
}

#[test]
#[ignore = "a helper that other tests start in a process of another user"]
fn a_client_of_another_user() {
    let socket = std::env::var_os("SOCKET").expect("the other test says where");
    let calls: Value = serde_json::from_str(&std::env::var("CALLS").unwrap()).unwrap();
    let mut client = TestClient::over(UnixStream::connect(&socket).unwrap());
    let mut more = Vec::new();
    for call in calls.as_array().unwrap() {
        let answer = match call[0].as_str().unwrap() {
            "connect" => {
                let mut next = TestClient::over(UnixStream::connect(&socket).unwrap());
                next.send_raw(&support::message("GetInfo", json!({}), &[]));
                let answer = next.receive().unwrap();
                more.push(next);
                answer
            }
            "watch" => {
                let mut next = TestClient::over(UnixStream::connect(&socket).unwrap());
                next.send("WatchSpans", json!({}), &["more"]);
                pass(50);
                next.stream().set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
                let mut byte = [0; 1];
                let silent =
                    rustix::net::recv(next.stream(), &mut byte, rustix::net::RecvFlags::PEEK).is_err();
                let answer =
                    if silent { json!({ "parameters": "watches" }) } else { next.receive().unwrap() };
                more.push(next);
                answer
            }
            method => client.exchange(method, call[1].clone()),
        };
        println!("ANSWER {answer}");
    }
}

#[test]
fn a_member_of_the_span_group_has_its_own_spans_and_the_hosts_totals() {
    let Some(daemon) = daemon() else { return };
    let calls = json!([
        ["GetInfo", {}],
        ["OpenSpan", { "span": "ann's" }],
        ["CloseSpan", { "span": "ann's", "wait_settled": true }],
        ["GetBalance", {}],
        ["ReadWindow", { "from_ns": 1, "to_ns": 2 }],
        ["WatchDomains", {}]
    ]);
    let answers = answers(&daemon, ANN, calls);
    let info = &answers[0]["parameters"];
    assert_eq!(info["access"], "span");
    assert!(info["domains"][0]["energy_uj"].is_u64() || info["domains"][0]["liveness"] == "live");
    assert_eq!(number(&answers[2]["parameters"]["account"], "uid"), u64::from(ANN.uid));
    assert!(answers[3]["parameters"]["balance"].is_array());
    for answer in &answers[4..] {
        assert_eq!(refusal(answer.clone()), ("AccessDenied".into(), json!({ "needs": "telemetry" })));
    }
}

#[test]
fn another_users_span_does_not_exist_for_anybody_but_telemetry_and_root() {
    let Some(daemon) = daemon() else { return };
    let close = json!([["OpenSpan", { "span": "s" }], ["CloseSpan", { "span": "s", "wait_settled": true }]]);
    answers(&daemon, ANN, close);
    let of_bob = answers(
        &daemon,
        BOB,
        json!([
            ["GetSpan", { "span": "s" }],
            ["CloseSpan", { "span": "s" }],
            ["GetSpan", { "span": "nobody's" }],
            ["OpenSpan", { "span": "s" }]
        ]),
    );
    assert_eq!(refusal(of_bob[0].clone()), ("NoSuchSpan".into(), json!({ "span": "s" })));
    assert_eq!(refusal(of_bob[1].clone()).0, "NoSuchSpan");
    assert_eq!(refusal(of_bob[2].clone()).0, "NoSuchSpan");
    assert_eq!(of_bob[3]["parameters"]["span"], "s");
    let seen =
        answers(&daemon, OPERATOR, json!([["GetSpan", { "span": "s" }], ["CloseSpan", { "span": "s" }]]));
    assert_eq!(number(&seen[0]["parameters"]["account"], "uid"), u64::from(ANN.uid));
    assert_eq!(refusal(seen[1].clone()).0, "NoSuchSpan");
    let owners = |whom| -> std::collections::BTreeSet<u64> {
        let listed = answers(&daemon, whom, json!([["ListSpans", {}]]));
        let accounts = listed[0]["parameters"]["accounts"].as_array().unwrap().clone();
        accounts.iter().map(|account| number(account, "uid")).collect()
    };
    let (ann, bob) = (u64::from(ANN.uid), u64::from(BOB.uid));
    until("Bob's own span, left open, has settled", || owners(BOB) == [bob].into());
    assert_eq!(owners(ANN), [ann].into());
    assert_eq!(owners(OPERATOR), [ann, bob].into());
    let of_root = daemon.client().call("GetSpan", json!({ "span": "s" }));
    assert_eq!(number(&of_root["account"], "uid"), u64::from(ANN.uid));
}

#[test]
fn a_user_without_a_number_here_learns_health_but_no_figure() {
    let Some(daemon) = daemon() else { return };
    let mut root = daemon.client();
    until("there is a figure to hide", || root.call("GetInfo", json!({}))["domains"][0]["power_mw"].is_u64());
    let answers = answers(&daemon, UNMAPPED, json!([["GetInfo", {}], ["OpenSpan", {}], ["GetBalance", {}]]));
    let info = &answers[0]["parameters"];
    assert_eq!(info["access"], "none");
    for domain in info["domains"].as_array().unwrap() {
        assert_eq!(domain["liveness"], "live");
        for figure in ["energy_uj", "power_mw", "quantum_uj"] {
            assert!(domain.get(figure).is_none(), "{domain}");
        }
    }
    for answer in &answers[1..] {
        assert_eq!(refusal(answer.clone()), ("AccessDenied".into(), json!({ "needs": "span" })));
    }
}

#[test]
fn limits_are_for_each_user_and_one_at_its_limit_does_not_stop_another() {
    let Some(daemon) = daemon() else { return };
    let full = answers(
        &daemon,
        ANN,
        json!([
            ["OpenSpan", {}],
            ["OpenSpan", {}],
            ["OpenSpan", {}],
            ["watch", {}],
            ["watch", {}],
            ["connect", {}],
            ["connect", {}]
        ]),
    );
    assert_eq!(
        refusal(full[2].clone()),
        ("QuotaExceeded".into(), json!({ "quota": "open spans", "limit": 2 }))
    );
    assert_eq!(full[3]["parameters"], "watches");
    assert_eq!(
        refusal(full[4].clone()),
        ("QuotaExceeded".into(), json!({ "quota": "streams of one user", "limit": 1 }))
    );
    // The refused watcher has gone, which leaves room for one connection of three.
    assert!(full[5].get("error").is_none());
    let too_many = ("QuotaExceeded".into(), json!({ "quota": "connections of one user", "limit": 3 }));
    assert_eq!(refusal(full[6].clone()), too_many);
    let free = answers(&daemon, BOB, json!([["OpenSpan", {}], ["connect", {}]]));
    assert!(free.iter().all(|answer| answer.get("error").is_none()), "{free:?}");
}
