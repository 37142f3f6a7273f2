//! The service on a message bus: the same methods and access rules as on the socket.
//!
//! Each test has a private `dbus-daemon` with the installed policy. Other users are separate processes (`setpriv`), so
//! those tests need root. The bus serves only users with a name, hence users that every Debian has.

use crate::support;
use crate::test_bus;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::{
    SLOW_COUNTER_MACHINE, STEADY_MACHINE, TEST_TIMEOUT, TestDaemon, get_u64, sleep_ms, wait_until,
};
use crate::test_bus::{BusClient, INTERFACE, NAME, TestBus, block_on};
use serde_json::{Value, json};
use zbus::Message;

/// Three groups that every Linux has replace those of wattspan.
const ACCESS: &str = "[access]\nspan_group = \"daemon\"\ntelemetry_group = \"bin\"\ncoarse_group = \"adm\"\n";

/// The kinds of callers of tests/fixtures/access.toml, by user and groups; none has an access group as primary group.
const CALLERS: &[(&str, u32, &str)] = &[
    ("unmapped", 65_534, "daemon,bin"),
    ("nobody", 5, ""),
    ("coarse", 9, "adm"),
    ("span", 3, "daemon"),
    ("telemetry", 13, "daemon,bin"),
    ("root", 0, ""),
];

/// Another member of the span group.
const OTHER_SPAN_USER: (u32, &str) = (10, "daemon");

fn start_on_bus(machine: &str, configuration: &str) -> Option<(TestBus, TestDaemon)> {
    let bus = TestBus::start()?;
    let daemon = TestDaemon::start_with_config(machine, &(bus.config_line() + configuration));
    block_on(async { bus.client().await.wait_for_daemon().await });
    Some((bus, daemon))
}

fn can_change_users() -> bool {
    support::skip::can_change_users()
}

/// A process of this user that makes these calls on one connection, prints the replies, and waits for end of input.
fn caller(bus: &TestBus, uid: u32, groups: &str, calls: &Value) -> Child {
    let program = bus.path("client");
    if !program.exists() {
        // Copied by a separate process: another test's child could inherit our write descriptor, and running the copy
        // would fail with ETXTBSY.
        let own = std::env::current_exe().unwrap();
        assert!(Command::new("cp").arg(own).arg(&program).status().unwrap().success());
    }
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={groups}") };
    Command::new("setpriv")
        .args([format!("--reuid={uid}"), "--regid=65534".to_owned(), groups])
        .arg(program)
        .args(["--exact", &support::test_name(module_path!(), "a_client_of_another_user")])
        .args(["--ignored", "--nocapture"])
        .env("BUS", bus.address())
        .env("CALLS", calls.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The replies to these calls from this user: `{"ok": …}` or `{"error": …, "words": …}`.
fn answers(bus: &TestBus, uid: u32, groups: &str, calls: Value) -> Vec<Value> {
    let output = caller(bus, uid, groups, &calls).wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    stdout.lines().filter_map(|line| serde_json::from_str(line.split_once("ANSWER ")?.1).ok()).collect()
}

#[test]
#[ignore = "a helper that other tests start in a process of another user"]
fn a_client_of_another_user() {
    let address = std::env::var("BUS").expect("the variable that the outer test sets");
    let calls: Value = serde_json::from_str(&std::env::var("CALLS").unwrap()).unwrap();
    block_on(async {
        let client = BusClient::connect(&address).await;
        for call in calls.as_array().unwrap() {
            let member = call[0].as_str().unwrap();
            let result = match member {
                "properties" => Ok(client.properties().await),
                "own" => {
                    let owned = client.bus.request_name(NAME).await;
                    owned.map(|()| Value::Null).map_err(|why| (String::new(), why.to_string()))
                }
                "set" => {
                    let value = zbus::Variant::from("x");
                    let properties = Some("org.freedesktop.DBus.Properties");
                    client.call_any(properties, "Set", &(INTERFACE, "Version", value)).await
                }
                _ => client.call(member, call[1].clone()).await,
            };
            match result {
                Ok(value) => println!("ANSWER {}", json!({ "ok": value })),
                Err((error, words)) => println!("ANSWER {}", json!({ "error": error, "words": words })),
            }
        }
        // Keeps the connection open until the test has finished with it.
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
    });
}

fn is_denied(answer: &Value) -> bool {
    answer["error"] == "org.wattspan.Wattspan1.Error.AccessDenied"
}

#[test]
fn a_span_over_dbus_gives_the_account_of_the_socket() {
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    block_on(async {
        let client = bus.client().await;
        let span = json!([{ "span": "q1", "name": "a question", "attributes": {"model": "small"}, "weight": 2.5,
            "domains": ["package-0", "dram-0"] }]);
        assert_eq!(client.call_ok("OpenSpan", span).await, "q1");
        client.call_ok("MarkPhase", json!(["q1", "decode", {}])).await;
        client.call_ok("SetWeight", json!(["q1", 3.0, {}])).await;
        assert_eq!(client.call_ok("GetSpan", json!(["q1"])).await["state"], "open");
        sleep_ms(20);
        let close = json!(["q1", { "wait_settled": true, "attributes": {"tokens": "7"} }]);
        let account = client.call_ok("CloseSpan", close).await;
        assert_eq!(account["state"], "settled");
        assert_eq!(account["attributes"], json!({"model": "small", "tokens": "7"}));
        assert_eq!(account["weight"], 3.0);
        assert!(get_u64(&account, "share_uj") > 0);
        let by_socket = daemon.client().call("GetSpan", json!({ "span": "q1" }))["account"].take();
        assert_eq!(account, by_socket);
        let listed = client.call_ok("ListSpans", json!([{ "limit": 5 }])).await;
        assert_eq!(listed, json!([by_socket]));
        let after = client.call_ok("ListSpansAfter", json!([0, { "limit": 5 }])).await;
        assert_eq!(after, daemon.client().call("ListSpans", json!({ "after": 0, "limit": 5 })));
        assert_eq!((&after["accounts"][0]["number"], &after["after"]), (&json!(1), &json!(1)));
        let sums = client.call_ok("SumSpans", json!([{ "by": ["model", "name"] }])).await;
        assert_eq!(sums, daemon.client().call("SumSpans", json!({ "by": ["model", "name"] })));
        assert_eq!((&sums["sums"][0]["model"], &sums["total"]["accounts"]), (&json!("small"), &json!(1)));
        client.call_ok("OpenSpan", json!([{ "span": "q2" }])).await;
        client.call_ok("CancelSpan", json!(["q2"])).await;
        assert_eq!(client.call_error("GetSpan", json!(["q2"])).await, "NoSuchSpan");
    });
}

#[test]
fn errors_match_those_of_the_socket() {
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    block_on(async {
        let client = bus.client().await;
        let (name, words) = client.call("CloseSpan", json!(["none", {}])).await.unwrap_err();
        assert_eq!(
            (name.as_str(), words.as_str()),
            ("org.wattspan.Wattspan1.Error.NoSuchSpan", "there is no span \"none\"")
        );
        client.call_ok("OpenSpan", json!([{ "span": "s" }])).await;
        for (member, arguments, word) in [
            ("OpenSpan", json!([{ "span": "s" }]), "SpanExists"),
            ("OpenSpan", json!([{ "wieght": 2 }]), "InvalidParameter"),
            ("OpenSpan", json!([{ "weight": "heavy" }]), "InvalidParameter"),
            ("OpenSpan", json!([{ "weight": -1.0 }]), "InvalidValue"),
            ("OpenSpan", json!([{ "domains": ["none"] }]), "NoSuchDomain"),
            ("OpenSpan", json!([{ "at_ns": 1 }]), "InvalidTime"),
            ("OpenSpan", json!([{ "name": "a\nb" }]), "InvalidValue"),
            ("SetWeight", json!(["s", -3.0, {}]), "InvalidValue"),
            ("MarkPhase", json!(["s", "", {}]), "InvalidValue"),
            ("CloseSpan", json!(["s", { "span": "t" }]), "InvalidValue"),
            ("ReadWindow", json!([7, 3]), "InvalidTime"),
        ] {
            assert_eq!(client.call_error(member, arguments.clone()).await, word, "{member} {arguments}");
        }
        client.call_ok("CloseSpan", json!(["s", {}])).await;
        assert_eq!(client.call_error("CloseSpan", json!(["s", {}])).await, "AlreadyClosed");
    });
    daemon.client().call("GetInfo", json!({}));
}

/// Calls that fail or succeed alike: the member and its arguments on the bus, and the parameters on the socket.
fn equal_calls() -> Vec<(&'static str, Value, Value)> {
    vec![
        ("OpenSpan", json!([{ "span": "e" }]), json!({ "span": "e" })),
        ("OpenSpan", json!([{ "wieght": 2 }]), json!({ "wieght": 2 })),
        ("OpenSpan", json!([{ "weight": "heavy" }]), json!({ "weight": "heavy" })),
        ("OpenSpan", json!([{ "weight": -1.0 }]), json!({ "weight": -1.0 })),
        ("OpenSpan", json!([{ "name": 5 }]), json!({ "name": 5 })),
        ("OpenSpan", json!([{ "at_ns": 1.5 }]), json!({ "at_ns": 1.5 })),
        ("OpenSpan", json!([{ "at_ns": u64::MAX }]), json!({ "at_ns": u64::MAX })),
        ("OpenSpan", json!([{ "attributes": ["a"] }]), json!({ "attributes": ["a"] })),
        ("OpenSpan", json!([{ "domains": ["none"] }]), json!({ "domains": ["none"] })),
        ("OpenSpan", json!([{ "domains": [] }]), json!({ "domains": [] })),
        ("OpenSpan", json!([{ "span": "a\nb" }]), json!({ "span": "a\nb" })),
        ("MarkPhase", json!(["none", "p", {}]), json!({ "span": "none", "phase": "p" })),
        (
            "MarkPhase",
            json!(["none", "p", { "when": 1 }]),
            json!({ "span": "none", "phase": "p", "when": 1 }),
        ),
        ("SetWeight", json!(["none", 1.0, {}]), json!({ "span": "none", "weight": 1.0 })),
        ("CloseSpan", json!(["none", { "wait_settled": 1 }]), json!({ "span": "none", "wait_settled": 1 })),
        ("GetSpan", json!(["none"]), json!({ "span": "none" })),
        ("ListSpans", json!([{ "state": "gone" }]), json!({ "state": "gone" })),
        ("ListSpans", json!([{ "limit": 0 }]), json!({ "limit": 0 })),
        ("ListSpans", json!([{ "before": -1 }]), json!({ "before": -1 })),
    ]
}

#[test]
fn every_answer_equals_that_of_the_socket() {
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    block_on(async {
        let client = bus.client().await;
        let mut socket = daemon.client();
        // It exists for both.
        socket.call("OpenSpan", json!({ "span": "e" }));
        for (member, arguments, parameters) in equal_calls() {
            let by_socket = socket.call_raw(member, parameters.clone());
            let by_bus = client.call(member, arguments).await;
            let Some(error) = by_socket.get("error").and_then(Value::as_str) else {
                assert!(by_bus.is_ok(), "{member} {parameters}: {by_bus:?}");
                continue;
            };
            let text =
                wattspan_client::protocol::MethodError::parse(error, &by_socket["parameters"].to_string());
            let expected = (
                format!("{}{}", test_bus::ERROR, error.rsplit_once('.').unwrap().1),
                text.unwrap().to_string(),
            );
            assert_eq!(by_bus, Err(expected), "{member} {parameters}");
        }
    });
}

#[test]
fn access_is_checked_before_the_arguments() {
    if !can_change_users() {
        return;
    }
    let Some((bus, _daemon)) = start_on_bus(STEADY_MACHINE, ACCESS) else { return };
    let calls = json!([["OpenSpan", [{ "wieght": 2 }]], ["GetInfo", []]]);
    let replies = answers(&bus, 5, "", calls);
    assert!(is_denied(&replies[0]), "{}", replies[0]);
    assert!(replies[1].get("ok").is_some());
}

#[test]
fn a_call_on_the_bus_wakes_no_other_thread_where_the_service_is_free() {
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    const CALLS: u64 = 400;
    let pid = daemon.pid().as_raw_nonzero();
    // The server's thread is the first one.
    let wakeups = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    block_on(async {
        let client = bus.client().await;
        client.call_ok("GetInfo", json!([])).await;
        let before = wakeups();
        for _ in 0..CALLS {
            client.call_ok("GetInfo", json!([])).await;
        }
        let woken = wakeups() - before;
        assert!(woken < CALLS / 4, "{woken} in {CALLS} calls");
    });
}

#[test]
fn calls_of_users_that_compete_are_all_answered() {
    if !can_change_users() {
        return;
    }
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, ACCESS) else { return };
    let pair = |at| {
        [json!(["OpenSpan", [{ "span": format!("c{at}") }]]), json!(["CloseSpan", [format!("c{at}"), {}]])]
    };
    let calls: Value = (0..100).flat_map(pair).collect();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let replies = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut socket = daemon.client();
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                socket.call("GetInfo", json!({}));
            }
        });
        let replies = answers(&bus, 3, "daemon", calls);
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        replies
    });
    assert_eq!(replies.len(), 200);
    assert!(replies.iter().all(|reply| reply.get("ok").is_some()), "{replies:?}");
}

#[test]
fn properties_are_what_the_socket_says() {
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    block_on(async {
        let client = bus.client().await;
        let all = client.properties().await;
        let info = daemon.client().call("GetInfo", json!({}));
        for (property, field) in
            [("Version", "version"), ("BootId", "boot_id"), ("HorizonNs", "horizon_ns"), ("Access", "access")]
        {
            assert_eq!(all[property], info[field]);
            assert_eq!(client.property(property).await.unwrap(), info[field]);
        }
        assert!(get_u64(&all, "NowNs") < get_u64(&client.properties().await, "NowNs"));
        assert_eq!(all["Domains"].as_array().unwrap().len(), 3);
        assert!(all["Balance"].is_array() && all["Absent"].is_array());
        let (unknown, _) = client.property("Nothing").await.unwrap_err();
        assert_eq!(unknown, "org.freedesktop.DBus.Error.UnknownProperty");
    });
}

#[test]
fn the_object_describes_itself_as_the_installed_file_does() {
    let Some((bus, _daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    let installed = include_str!("../../systemd/dbus/org.wattspan.Wattspan1.xml");
    block_on(async {
        let client = bus.client().await;
        let introspectable = Some("org.freedesktop.DBus.Introspectable");
        assert_eq!(client.call_any(introspectable, "Introspect", &()).await.unwrap(), installed);
        for (path, replies) in [("/org/wattspan", true), ("/org/elsewhere", false)] {
            let call = Message::method_call(path, "Introspect").destination(NAME);
            let call = call.interface("org.freedesktop.DBus.Introspectable").build(&()).unwrap();
            assert_eq!(client.send(call).await.header().error_name().is_none(), replies, "{path}");
        }
    });
}

#[test]
fn who_may_call_what_is_the_same_as_on_the_socket() {
    if !can_change_users() {
        return;
    }
    let Some((bus, _daemon)) = start_on_bus(STEADY_MACHINE, ACCESS) else { return };
    let table: toml::Table = std::fs::read_to_string("tests/fixtures/access.toml").unwrap().parse().unwrap();
    let ranks = ["none", "coarse", "span", "telemetry", "admin"];
    let rank = |section: &str, key: &str| {
        let word = table[section][key].as_str().unwrap_or_else(|| panic!("{key} is not in the table"));
        ranks.iter().position(|rank| *rank == word).unwrap()
    };
    // In this order, so that there is a span to close.
    let calls = [
        ("GetInfo", json!([])),
        ("OpenSpan", json!([{ "span": "s" }])),
        ("MarkPhase", json!(["s", "p", {}])),
        ("SetWeight", json!(["s", 2.0, {}])),
        ("GetSpan", json!(["s"])),
        ("CloseSpan", json!(["s", {}])),
        ("CancelSpan", json!(["s"])),
        ("ListSpans", json!([{}])),
        ("SumSpans", json!([{ "by": ["user", "day"], "utc_offset_min": -60 }])),
        ("GetBalance", json!([])),
        ("ReadWindow", json!([1, 2])),
        ("Reload", json!([])),
    ];
    let streams = ["WatchSpans", "WatchDomains"];
    let needs: Vec<&String> = table["needs"].as_table().unwrap().keys().collect();
    for method in &needs {
        let here = calls.iter().any(|(member, _)| member == method);
        assert_ne!(here, streams.contains(&method.as_str()), "{method} is neither called nor left out");
    }
    assert_eq!(needs.len(), calls.len() + streams.len());
    for (kind, uid, groups) in CALLERS {
        let calls_made: Value = calls.iter().map(|(member, arguments)| json!([member, arguments])).collect();
        let replies = answers(&bus, *uid, groups, calls_made);
        assert_eq!(replies.len(), calls.len());
        for ((method, _), answer) in calls.iter().zip(&replies) {
            let may = rank("callers", kind) >= rank("needs", method);
            assert_eq!(!is_denied(answer), may, "{kind} {method}: {answer}");
            let strange = answer["error"].as_str().is_some_and(|error| !error.starts_with(test_bus::ERROR));
            assert!(!strange, "{kind} {method}: {answer}");
        }
    }
}

#[test]
fn a_user_without_access_sees_health_but_no_figure() {
    if !can_change_users() {
        return;
    }
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, ACCESS) else { return };
    let mut root = daemon.client();
    wait_until("there is a figure to hide", || {
        root.call("GetInfo", json!({}))["domains"][0]["power_mw"].is_u64()
    });
    for (kind, uid, groups) in &CALLERS[..2] {
        let replies = answers(&bus, *uid, groups, json!([["properties"]]));
        let all = &replies[0]["ok"];
        assert_eq!((all["Access"].as_str(), all.get("Balance")), (Some("none"), None), "{kind}");
        let domains = all["Domains"].as_array().unwrap();
        assert_eq!(domains.len(), 3, "{all}");
        for domain in domains {
            assert_eq!(domain["liveness"], "live");
            for figure in ["energy_uj", "power_mw", "quantum_uj"] {
                assert!(domain.get(figure).is_none(), "{kind}: {domain}");
            }
        }
    }
}

#[test]
fn another_users_span_answers_as_one_that_does_not_exist() {
    if !can_change_users() {
        return;
    }
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, ACCESS) else { return };
    let mut owner = caller(&bus, 3, "daemon", &json!([["OpenSpan", [{ "span": "s" }]]]));
    let mut root = daemon.client();
    wait_until("the span is open", || {
        root.call_raw("GetSpan", json!({ "span": "s" })).get("error").is_none()
    });
    let ask = |span: &str| {
        json!([
            ["GetSpan", [span]],
            ["CloseSpan", [span, {}]],
            ["MarkPhase", [span, "p", {}]],
            ["SetWeight", [span, 1.0, {}]],
            ["CancelSpan", [span]]
        ])
    };
    let theirs = answers(&bus, OTHER_SPAN_USER.0, OTHER_SPAN_USER.1, ask("s"));
    let nobodys = answers(&bus, OTHER_SPAN_USER.0, OTHER_SPAN_USER.1, ask("t"));
    for (theirs, nobodys) in theirs.iter().zip(&nobodys) {
        assert_eq!(theirs["error"], "org.wattspan.Wattspan1.Error.NoSuchSpan");
        assert_eq!(theirs["error"], nobodys["error"]);
        assert_eq!(theirs["words"], nobodys["words"].as_str().unwrap().replace("\"t\"", "\"s\""));
    }
    assert_eq!(
        answers(&bus, OTHER_SPAN_USER.0, OTHER_SPAN_USER.1, json!([["OpenSpan", [{ "span": "s" }]]]))[0]["ok"],
        "s"
    );
    drop(owner.stdin.take());
    assert!(owner.wait().unwrap().success());
}

#[test]
fn the_policy_lets_only_the_daemons_user_own_the_name_and_no_user_set_properties() {
    if !can_change_users() {
        return;
    }
    // As installed: this user does not exist here, so no user may own the name.
    let Some(bus) = TestBus::with_owner("wattspan") else { return };
    if std::fs::read_to_string("/etc/passwd").unwrap_or_default().contains("\nwattspan:") {
        eprintln!("not skipped: this machine has a user wattspan, which is none of the callers");
    }
    for (_, uid, groups) in CALLERS {
        let replies = answers(&bus, *uid, groups, json!([["own"]]));
        assert!(
            replies[0]["words"].as_str().unwrap().contains("AccessDenied")
                || replies[0]["words"].as_str().unwrap().contains("not allowed"),
            "{}",
            replies[0]
        );
    }
    let Some((bus, _daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    for (_, uid, groups) in CALLERS {
        let replies = answers(&bus, *uid, groups, json!([["set"]]));
        assert_eq!(replies[0]["error"], "org.freedesktop.DBus.Error.AccessDenied", "{}", replies[0]);
    }
}

#[test]
fn a_client_that_leaves_the_bus_has_its_spans_abandoned_and_others_stay() {
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    block_on(async {
        let (leaves, stays) = (bus.client().await, bus.client().await);
        leaves.call_ok("OpenSpan", json!([{ "span": "left" }])).await;
        leaves.oneway("OpenSpan", json!([{ "span": "left too" }])).await;
        stays.call_ok("OpenSpan", json!([{ "span": "kept" }])).await;
        leaves.bus.close().await.unwrap();
        let mut socket = daemon.client();
        for span in ["left", "left too"] {
            wait_until("it is abandoned", || {
                socket.call_raw("GetSpan", json!({ "span": span }))["parameters"]["account"]["state"]
                    == "abandoned"
            });
        }
        assert_eq!(stays.call_ok("GetSpan", json!(["kept"])).await["state"], "open");
    });
}

#[test]
fn a_client_that_is_killed_at_any_moment_leaves_nothing_open() {
    if !can_change_users() {
        return;
    }
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, ACCESS) else { return };
    let calls: Value = (0..200).map(|at| json!(["OpenSpan", [{ "span": format!("s{at}") }]])).collect();
    for round in 0..8 {
        let mut child = caller(&bus, 3, "daemon", &calls);
        sleep_ms(5 + 9 * round);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut socket = daemon.client();
    wait_until("no span is open", || {
        let none = (0..200).all(|at| {
            let answer = socket.call_raw("GetSpan", json!({ "span": format!("s{at}") }));
            answer.get("error").is_some() || answer["parameters"]["account"]["state"] != "open"
        });
        none && open_descriptors(&daemon) < 64
    });
}

fn open_descriptors(daemon: &TestDaemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero())).unwrap().count()
}

#[test]
fn a_call_that_wants_no_answer_gets_none_and_is_done() {
    let Some((bus, _daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    block_on(async {
        let client = bus.client().await;
        client.oneway("OpenSpan", json!([{ "span": "o" }])).await;
        client.oneway("CloseSpan", json!(["nothing", {}])).await;
        client.oneway("MarkPhase", json!(["o", "decode", {}])).await;
        let account = client.call_ok("CloseSpan", json!(["o", { "wait_settled": true }])).await;
        assert_eq!(account["phases"].as_array().unwrap().last().unwrap()["name"], "decode");
    });
}

#[test]
fn a_waiting_close_does_not_delay_other_calls() {
    let Some((bus, daemon)) = start_on_bus(SLOW_COUNTER_MACHINE, "patience_ms = 60000\n") else { return };
    block_on(async {
        let client = bus.client().await;
        client.call_ok("OpenSpan", json!([{ "span": "slow" }])).await;
        let close =
            test_bus::message("CloseSpan", &json!(["slow", { "wait_settled": true }]), Default::default());
        client.bus.send(&close).await.unwrap();
        client.oneway("OpenSpan", json!([{ "span": "next" }])).await;
        let mut socket = daemon.client();
        wait_until("the next span is open", || {
            socket.call_raw("GetSpan", json!({ "span": "next" })).get("error").is_none()
        });
    });
}

#[test]
fn garbage_is_refused_and_the_connection_goes_on() {
    let Some((bus, _daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    block_on(async {
        let client = bus.client().await;
        let ours = Some(INTERFACE);
        let options = BTreeMap::from([("weight", zbus::Variant::from(f64::NAN))]);
        let nan = client.call_any(ours, "OpenSpan", &options).await.unwrap_err();
        assert_eq!(nan.1, "weight: is not a finite number");
        let invalid_value = BTreeMap::from([("weight", zbus::Variant::from((1_u8, "x")))]);
        assert_eq!(
            client.call_any(ours, "OpenSpan", &invalid_value).await.unwrap_err().0,
            format!("{}InvalidValue", test_bus::ERROR)
        );
        for (interface, member, error) in [
            (ours, "OpenSpan", "InvalidArgs"),
            (ours, "CancelSpan", "InvalidArgs"),
            (ours, "Nothing", "UnknownMethod"),
            (Some("org.freedesktop.DBus.Properties"), "Get", "InvalidArgs"),
            (None, "Nothing", "AccessDenied"),
        ] {
            let (name, _) = client.call_any(interface, member, &7_u32).await.unwrap_err();
            assert_eq!(name, format!("org.freedesktop.DBus.Error.{error}"), "{interface:?} {member}");
        }
        let long = client.call_any(ours, "GetSpan", &"x".repeat(100_000)).await.unwrap_err();
        assert_eq!(long.1, "message: is longer than 65536 bytes");
        // Within the cap of the bus; the JSON form exceeds it and is refused by the service.
        let escaped = client.call_any(ours, "GetSpan", &"\u{1}".repeat(40_000)).await.unwrap_err();
        assert_eq!(escaped.1, "message: is longer than 65536 bytes");
        client.call_ok("GetInfo", json!([])).await;
    });
}

#[test]
fn a_message_with_descriptors_does_not_reach_the_daemon() {
    let Some((bus, daemon)) = start_on_bus(STEADY_MACHINE, "") else { return };
    block_on(async {
        let client = bus.client().await;
        let mut socket = daemon.client();
        wait_until("the ledger is open", || socket.call("GetInfo", json!({}))["keeping"]["durable"] == true);
        client.call_ok("GetInfo", json!([])).await;
        let before = open_descriptors(&daemon);
        let file = std::fs::File::open("/dev/null").unwrap();
        let descriptor = zbus::Fd::from(std::os::fd::OwnedFd::from(file));
        let (name, _) = client.call_any(Some(INTERFACE), "GetSpan", &descriptor).await.unwrap_err();
        assert_eq!(name, "org.freedesktop.DBus.Error.NotSupported");
        // Other threads open files for a moment.
        wait_until("none is kept", || open_descriptors(&daemon) <= before);
        client.call_ok("GetInfo", json!([])).await;
    });
}

#[test]
fn limits_count_socket_and_bus_together() {
    let limits = "[limits]\nconnections_per_user = 2\nopen_spans_per_user = 2\n";
    if !can_change_users() {
        return;
    }
    let Some((bus, _daemon)) = start_on_bus(STEADY_MACHINE, &format!("{ACCESS}{limits}")) else { return };
    let open = json!(["OpenSpan", [{}]]);
    let replies = answers(&bus, 3, "daemon", json!([open, open, open]));
    assert_eq!(replies[2]["error"], "org.wattspan.Wattspan1.Error.QuotaExceeded");
    assert_eq!(replies[2]["words"], "the limit of 2 open spans is reached");
    let mut first = caller(&bus, 3, "daemon", &json!([["GetInfo", []]]));
    let mut second = caller(&bus, 3, "daemon", &json!([["GetInfo", []]]));
    for child in [&mut first, &mut second] {
        let mut stdout = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(stdout.any(|line| line.unwrap().contains("ANSWER {\"ok\"")), "both are there");
    }
    let third = answers(&bus, 3, "daemon", json!([["GetInfo", []]])).remove(0);
    assert_eq!(third["words"], "the limit of 2 connections of one user is reached");
    // The refused user can connect again once there is room.
    for child in [&mut first, &mut second] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    wait_until("there is room again", || {
        answers(&bus, 3, "daemon", json!([["GetInfo", []]]))[0].get("ok").is_some()
    });
}

#[test]
fn a_bus_that_restarts_or_is_not_there_leaves_the_socket_alone() {
    let Some(mut bus) = TestBus::start() else { return };
    bus.stop();
    let mut daemon = TestDaemon::start_with_config(STEADY_MACHINE, &bus.config_line());
    daemon.client().open("a");
    wait_until("the failure is logged", || daemon.log().contains("not connected to the bus"));
    bus.restart();
    block_on(async { bus.client().await.wait_for_daemon().await });
    let mut socket = daemon.client();
    socket.open("held");
    block_on(async {
        let client = bus.client().await;
        client.call_ok("OpenSpan", json!([{ "span": "on the bus" }])).await;
    });
    bus.restart();
    wait_until("it is on the bus again", || daemon.log().matches("connected to the bus as").count() == 2);
    block_on(async { bus.client().await.wait_for_daemon().await });
    assert_eq!(
        daemon.log().matches("bus").count(),
        4 + daemon.log().matches("unix:path").count(),
        "{}",
        daemon.log()
    );
    wait_until("its spans are abandoned", || {
        socket.call_raw("GetSpan", json!({ "span": "on the bus" }))["parameters"]["account"]["state"]
            == "abandoned"
    });
    socket.close_and_settle("held");
    daemon.terminate();
    assert!(daemon.wait().success());
}

#[test]
fn an_owned_bus_name_is_logged_once_and_acquired_when_released() {
    let Some(bus) = TestBus::start() else { return };
    let daemon = block_on(async {
        let squatter = bus.client().await;
        squatter.bus.request_name(NAME).await.unwrap();
        let daemon = TestDaemon::start_with_config(STEADY_MACHINE, &bus.config_line());
        wait_until("the message is logged", || {
            daemon.log().contains("another process owns the name org.wattspan.Wattspan1")
        });
        drop(squatter);
        daemon
    });
    wait_until("the name is acquired", || daemon.log().contains("connected to the bus as"));
    assert_eq!(daemon.log().matches("another process").count(), 1);
}

#[test]
fn a_daemon_that_stops_answers_a_waiting_close_first() {
    let Some((bus, mut daemon)) = start_on_bus(SLOW_COUNTER_MACHINE, "patience_ms = 60000\n") else { return };
    block_on(async {
        let client = bus.client().await;
        client.call_ok("OpenSpan", json!([{ "span": "w" }])).await;
        let close =
            test_bus::message("CloseSpan", &json!(["w", { "wait_settled": true }]), Default::default());
        let mut socket = daemon.client();
        let (answer, ()) = join(client.send(close), async {
            let deadline = std::time::Instant::now() + TEST_TIMEOUT;
            while socket.call("GetSpan", json!({ "span": "w" }))["account"]["state"] != "provisional" {
                assert!(std::time::Instant::now() < deadline);
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            daemon.terminate();
        })
        .await;
        assert!(answer.header().error_name().is_none(), "{answer:?}");
    });
    assert!(daemon.wait().success());
}

/// Runs two futures concurrently.
async fn join<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|context| {
        use std::task::Poll;
        if first.is_none()
            && let Poll::Ready(done) = one.as_mut().poll(context)
        {
            first = Some(done);
        }
        if second.is_none()
            && let Poll::Ready(done) = other.as_mut().poll(context)
        {
            second = Some(done);
        }
        if first.is_some() && second.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (first.unwrap(), second.unwrap())
}
