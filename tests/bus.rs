//! The meter on a message bus: the same service as on the socket, for the same callers.
//!
//! Each test has a private `dbus-daemon` with the policy that is installed. Other users are processes of their own
//! (`setpriv`), so those tests need root; the bus serves only users with a name, hence users that every Debian has.

#![cfg(target_os = "linux")]

#[path = "support/bus.rs"]
mod bus;
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use bus::{Client, INTERFACE, NAME, TestBus, run};
use serde_json::{Value, json};
use support::{PATIENCE, SLUGGISH, STEADY, TestDaemon, number, pass, until};
use zbus::Message;

/// Three groups that every Linux has stand in for ours.
const ACCESS: &str = "[access]\nspan_group = \"daemon\"\ntelemetry_group = \"bin\"\ncoarse_group = \"adm\"\n";

/// The kinds of callers of tests/fixtures/access.toml, by user, groups; none has a primary group of ours.
const CALLERS: &[(&str, u32, &str)] = &[
    ("unmapped", 65_534, "daemon,bin"),
    ("nobody", 5, ""),
    ("coarse", 9, "adm"),
    ("span", 3, "daemon"),
    ("telemetry", 13, "daemon,bin"),
    ("root", 0, ""),
];

/// Another member of the span group.
const NEIGHBOUR: (u32, &str) = (10, "daemon");

fn started(machine: &str, configuration: &str) -> Option<(TestBus, TestDaemon)> {
    let bus = TestBus::start()?;
    let daemon = TestDaemon::with(machine, &(bus.key() + configuration));
    run(async { bus.client().await.await_daemon().await });
    Some((bus, daemon))
}

fn can_be_others() -> bool {
    support::skip::can_change_users()
}

/// A process of this user that makes these calls on one connection, prints the answers, and then waits to be ended.
fn caller(bus: &TestBus, uid: u32, groups: &str, calls: &Value) -> Child {
    let program = bus.place("client");
    if !program.exists() {
        // By a program of its own: a descriptor of ours to write it by would go into whatever another test starts
        // meanwhile, and while that has it open it is "text file busy" for us.
        let own = std::env::current_exe().unwrap();
        assert!(Command::new("cp").arg(own).arg(&program).status().unwrap().success());
    }
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={groups}") };
    Command::new("setpriv")
        .args([format!("--reuid={uid}"), "--regid=65534".to_owned(), groups])
        .arg(program)
        .args(["--exact", "a_client_of_another_user", "--ignored", "--nocapture"])
        .env("BUS", bus.address())
        .env("CALLS", calls.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The answers to these calls of this user: `{"ok": …}` or `{"error": …, "words": …}`.
fn answers(bus: &TestBus, uid: u32, groups: &str, calls: Value) -> Vec<Value> {
    let output = caller(bus, uid, groups, &calls).wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    said.lines().filter_map(|line| serde_json::from_str(line.split_once("ANSWER ")?.1).ok()).collect()
}

#[test]
#[ignore = "a helper that other tests start in a process of another user"]
fn a_client_of_another_user() {
    let address = std::env::var("BUS").expect("the other test says where");
    let calls: Value = serde_json::from_str(&std::env::var("CALLS").unwrap()).unwrap();
    run(async {
        let client = Client::at(&address).await;
        for call in calls.as_array().unwrap() {
            let member = call[0].as_str().unwrap();
            let told = match member {
                "properties" => Ok(client.properties().await),
                "own" => {
                    let asked = client.bus.request_name(NAME).await;
                    asked.map(|()| Value::Null).map_err(|why| (String::new(), why.to_string()))
                }
                "set" => {
                    let value = zbus::Variant::from("x");
                    let properties = Some("org.freedesktop.DBus.Properties");
                    client.at_large(properties, "Set", &(INTERFACE, "Version", value)).await
                }
                _ => client.call(member, call[1].clone()).await,
            };
            match told {
                Ok(told) => println!("ANSWER {}", json!({ "ok": told })),
                Err((error, words)) => println!("ANSWER {}", json!({ "error": error, "words": words })),
            }
        }
        // The connection is kept until the other side has seen what it wanted.
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
    });
}

fn is_denied(answer: &Value) -> bool {
    answer["error"] == "org.wattspan.Wattspan1.Error.AccessDenied"
}

#[test]
fn a_spans_whole_life_goes_over_the_bus_and_the_account_is_that_of_the_socket() {
    let Some((bus, daemon)) = started(STEADY, "") else { return };
    run(async {
        let client = bus.client().await;
        let asked = json!([{ "span": "q1", "name": "a question", "attributes": {"model": "small"}, "weight": 2.5,
            "domains": ["package-0", "dram-0"] }]);
        assert_eq!(client.ask("OpenSpan", asked).await, "q1");
        client.ask("MarkPhase", json!(["q1", "decode", {}])).await;
        client.ask("SetWeight", json!(["q1", 3.0, {}])).await;
        assert_eq!(client.ask("GetSpan", json!(["q1"])).await["state"], "open");
        pass(20);
        let close = json!(["q1", { "wait_settled": true, "attributes": {"tokens": "7"} }]);
        let account = client.ask("CloseSpan", close).await;
        assert_eq!(account["state"], "settled");
        assert_eq!(account["attributes"], json!({"model": "small", "tokens": "7"}));
        assert_eq!(account["weight"], 3.0);
        assert!(number(&account, "share_uj") > 0);
        let by_socket = daemon.client().call("GetSpan", json!({ "span": "q1" }))["account"].take();
        assert_eq!(account, by_socket);
        let listed = client.ask("ListSpans", json!([{ "limit": 5 }])).await;
        assert_eq!(listed, json!([by_socket]));
        client.ask("OpenSpan", json!([{ "span": "q2" }])).await;
        client.ask("CancelSpan", json!(["q2"])).await;
        assert_eq!(client.refusal("GetSpan", json!(["q2"])).await, "NoSuchSpan");
    });
}

#[test]
fn refusals_have_the_words_of_the_socket() {
    let Some((bus, daemon)) = started(STEADY, "") else { return };
    run(async {
        let client = bus.client().await;
        let (name, words) = client.call("CloseSpan", json!(["none", {}])).await.unwrap_err();
        assert_eq!(
            (name.as_str(), words.as_str()),
            ("org.wattspan.Wattspan1.Error.NoSuchSpan", "there is no span \"none\"")
        );
        client.ask("OpenSpan", json!([{ "span": "s" }])).await;
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
            assert_eq!(client.refusal(member, arguments.clone()).await, word, "{member} {arguments}");
        }
        client.ask("CloseSpan", json!(["s", {}])).await;
        assert_eq!(client.refusal("CloseSpan", json!(["s", {}])).await, "AlreadyClosed");
    });
    daemon.client().call("GetInfo", json!({}));
}

#[test]
fn properties_are_what_the_socket_says() {
    let Some((bus, daemon)) = started(STEADY, "") else { return };
    run(async {
        let client = bus.client().await;
        let all = client.properties().await;
        let info = daemon.client().call("GetInfo", json!({}));
        for (property, field) in
            [("Version", "version"), ("BootId", "boot_id"), ("HorizonNs", "horizon_ns"), ("Access", "access")]
        {
            assert_eq!(all[property], info[field]);
            assert_eq!(client.property(property).await.unwrap(), info[field]);
        }
        assert!(number(&all, "NowNs") < number(&client.properties().await, "NowNs"));
        assert_eq!(all["Domains"].as_array().unwrap().len(), 3);
        assert!(all["Balance"].is_array() && all["Absent"].is_array());
        let (unknown, _) = client.property("Nothing").await.unwrap_err();
        assert_eq!(unknown, "org.freedesktop.DBus.Error.UnknownProperty");
    });
}

#[test]
fn the_object_describes_itself_as_the_installed_file_does() {
    let Some((bus, _daemon)) = started(STEADY, "") else { return };
    let installed = include_str!("../systemd/dbus/org.wattspan.Wattspan1.xml");
    run(async {
        let client = bus.client().await;
        let introspectable = Some("org.freedesktop.DBus.Introspectable");
        assert_eq!(client.at_large(introspectable, "Introspect", &()).await.unwrap(), installed);
        for (path, told) in [("/org/wattspan", true), ("/org/elsewhere", false)] {
            let call = Message::method_call(path, "Introspect").destination(NAME);
            let call = call.interface("org.freedesktop.DBus.Introspectable").build(&()).unwrap();
            assert_eq!(client.send(call).await.header().error_name().is_none(), told, "{path}");
        }
    });
}

#[test]
fn who_may_call_what_is_the_same_as_on_the_socket() {
    if !can_be_others() {
        return;
    }
    let Some((bus, _daemon)) = started(STEADY, ACCESS) else { return };
    let table: toml::Table = std::fs::read_to_string("tests/fixtures/access.toml").unwrap().parse().unwrap();
    let ranks = ["none", "coarse", "span", "telemetry", "admin"];
    let rank = |section: &str, key: &str| {
        let word = table[section][key].as_str().unwrap_or_else(|| panic!("{key} is not in the table"));
        ranks.iter().position(|rank| *rank == word).unwrap()
    };
    // In this order, so that there is something to close.
    let calls = [
        ("GetInfo", json!([])),
        ("OpenSpan", json!([{ "span": "s" }])),
        ("MarkPhase", json!(["s", "p", {}])),
        ("SetWeight", json!(["s", 2.0, {}])),
        ("GetSpan", json!(["s"])),
        ("CloseSpan", json!(["s", {}])),
        ("CancelSpan", json!(["s"])),
        ("ListSpans", json!([{}])),
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
        let asked: Value = calls.iter().map(|(member, arguments)| json!([member, arguments])).collect();
        let told = answers(&bus, *uid, groups, asked);
        assert_eq!(told.len(), calls.len());
        for ((method, _), answer) in calls.iter().zip(&told) {
            let may = rank("callers", kind) >= rank("needs", method);
            assert_eq!(!is_denied(answer), may, "{kind} {method}: {answer}");
            let strange = answer["error"].as_str().is_some_and(|error| !error.starts_with(bus::ERROR));
            assert!(!strange, "{kind} {method}: {answer}");
        }
    }
}

#[test]
fn a_stranger_learns_health_but_no_figure() {
    if !can_be_others() {
        return;
    }
    let Some((bus, daemon)) = started(STEADY, ACCESS) else { return };
    let mut root = daemon.client();
    until("there is a figure to hide", || root.call("GetInfo", json!({}))["domains"][0]["power_mw"].is_u64());
    for (kind, uid, groups) in &CALLERS[..2] {
        let told = answers(&bus, *uid, groups, json!([["properties"]]));
        let all = &told[0]["ok"];
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
    if !can_be_others() {
        return;
    }
    let Some((bus, daemon)) = started(STEADY, ACCESS) else { return };
    let mut owner = caller(&bus, 3, "daemon", &json!([["OpenSpan", [{ "span": "s" }]]]));
    let mut root = daemon.client();
    until("the span is open", || root.exchange("GetSpan", json!({ "span": "s" })).get("error").is_none());
    let ask = |span: &str| {
        json!([
            ["GetSpan", [span]],
            ["CloseSpan", [span, {}]],
            ["MarkPhase", [span, "p", {}]],
            ["SetWeight", [span, 1.0, {}]],
            ["CancelSpan", [span]]
        ])
    };
    let theirs = answers(&bus, NEIGHBOUR.0, NEIGHBOUR.1, ask("s"));
    let nobodys = answers(&bus, NEIGHBOUR.0, NEIGHBOUR.1, ask("t"));
    for (theirs, nobodys) in theirs.iter().zip(&nobodys) {
        assert_eq!(theirs["error"], "org.wattspan.Wattspan1.Error.NoSuchSpan");
        assert_eq!(theirs["error"], nobodys["error"]);
        assert_eq!(theirs["words"], nobodys["words"].as_str().unwrap().replace("\"t\"", "\"s\""));
    }
    assert_eq!(
        answers(&bus, NEIGHBOUR.0, NEIGHBOUR.1, json!([["OpenSpan", [{ "span": "s" }]]]))[0]["ok"],
        "s"
    );
    drop(owner.stdin.take());
    assert!(owner.wait().unwrap().success());
}

#[test]
fn the_policy_lets_only_the_daemons_user_own_the_name_and_nobody_set_anything() {
    if !can_be_others() {
        return;
    }
    // As installed: there is no user of that name here, so nobody at all may own it.
    let Some(bus) = TestBus::with_owner("wattspan") else { return };
    if std::fs::read_to_string("/etc/passwd").unwrap_or_default().contains("\nwattspan:") {
        eprintln!("not skipped: this machine has a user wattspan, which is none of the callers");
    }
    for (_, uid, groups) in CALLERS {
        let told = answers(&bus, *uid, groups, json!([["own"]]));
        assert!(
            told[0]["words"].as_str().unwrap().contains("AccessDenied")
                || told[0]["words"].as_str().unwrap().contains("not allowed"),
            "{}",
            told[0]
        );
    }
    let Some((bus, _daemon)) = started(STEADY, "") else { return };
    for (_, uid, groups) in CALLERS {
        let told = answers(&bus, *uid, groups, json!([["set"]]));
        assert_eq!(told[0]["error"], "org.freedesktop.DBus.Error.AccessDenied", "{}", told[0]);
    }
}

#[test]
fn a_client_that_leaves_the_bus_has_its_spans_abandoned_and_a_neighbours_stay() {
    let Some((bus, daemon)) = started(STEADY, "") else { return };
    run(async {
        let (leaves, stays) = (bus.client().await, bus.client().await);
        leaves.ask("OpenSpan", json!([{ "span": "left" }])).await;
        leaves.oneway("OpenSpan", json!([{ "span": "left too" }])).await;
        stays.ask("OpenSpan", json!([{ "span": "kept" }])).await;
        leaves.bus.close().await.unwrap();
        let mut socket = daemon.client();
        for span in ["left", "left too"] {
            until("it is abandoned", || {
                socket.exchange("GetSpan", json!({ "span": span }))["parameters"]["account"]["state"]
                    == "abandoned"
            });
        }
        assert_eq!(stays.ask("GetSpan", json!(["kept"])).await["state"], "open");
    });
}

#[test]
fn a_client_that_is_killed_at_any_moment_leaves_nothing_open() {
    if !can_be_others() {
        return;
    }
    let Some((bus, daemon)) = started(STEADY, ACCESS) else { return };
    let calls: Value = (0..200).map(|at| json!(["OpenSpan", [{ "span": format!("s{at}") }]])).collect();
    for round in 0..8 {
        let mut child = caller(&bus, 3, "daemon", &calls);
        pass(5 + 9 * round);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut socket = daemon.client();
    until("no span is open", || {
        let none = (0..200).all(|at| {
            let told = socket.exchange("GetSpan", json!({ "span": format!("s{at}") }));
            told.get("error").is_some() || told["parameters"]["account"]["state"] != "open"
        });
        none && open_descriptors(&daemon) < 64
    });
}

fn open_descriptors(daemon: &TestDaemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero())).unwrap().count()
}

#[test]
fn a_call_that_wants_no_answer_gets_none_and_is_done() {
    let Some((bus, _daemon)) = started(STEADY, "") else { return };
    run(async {
        let client = bus.client().await;
        client.oneway("OpenSpan", json!([{ "span": "o" }])).await;
        client.oneway("CloseSpan", json!(["nothing", {}])).await;
        client.oneway("MarkPhase", json!(["o", "decode", {}])).await;
        let account = client.ask("CloseSpan", json!(["o", { "wait_settled": true }])).await;
        assert_eq!(account["phases"].as_array().unwrap().last().unwrap()["name"], "decode");
    });
}

#[test]
fn a_close_that_waits_holds_up_no_other_call() {
    let Some((bus, daemon)) = started(SLUGGISH, "patience_ms = 60000\n") else { return };
    run(async {
        let client = bus.client().await;
        client.ask("OpenSpan", json!([{ "span": "slow" }])).await;
        let close = bus::message("CloseSpan", &json!(["slow", { "wait_settled": true }]), Default::default());
        client.bus.send(&close).await.unwrap();
        client.oneway("OpenSpan", json!([{ "span": "next" }])).await;
        let mut socket = daemon.client();
        until("the next span is open", || {
            socket.exchange("GetSpan", json!({ "span": "next" })).get("error").is_none()
        });
    });
}

#[test]
fn garbage_is_refused_and_the_connection_goes_on() {
    let Some((bus, _daemon)) = started(STEADY, "") else { return };
    run(async {
        let client = bus.client().await;
        let ours = Some(INTERFACE);
        let options = BTreeMap::from([("weight", zbus::Variant::from(f64::NAN))]);
        let nan = client.at_large(ours, "OpenSpan", &options).await.unwrap_err();
        assert_eq!(nan.1, "weight: is not a finite number");
        let odd = BTreeMap::from([("weight", zbus::Variant::from((1_u8, "x")))]);
        assert_eq!(
            client.at_large(ours, "OpenSpan", &odd).await.unwrap_err().0,
            format!("{}InvalidValue", bus::ERROR)
        );
        for (interface, member, error) in [
            (ours, "OpenSpan", "InvalidArgs"),
            (ours, "CancelSpan", "InvalidArgs"),
            (ours, "Nothing", "UnknownMethod"),
            (Some("org.freedesktop.DBus.Properties"), "Get", "InvalidArgs"),
            (None, "Nothing", "AccessDenied"),
        ] {
            let (name, _) = client.at_large(interface, member, &7_u32).await.unwrap_err();
            assert_eq!(name, format!("org.freedesktop.DBus.Error.{error}"), "{interface:?} {member}");
        }
        let long = client.at_large(ours, "GetSpan", &"x".repeat(100_000)).await.unwrap_err();
        assert_eq!(long.1, "message: is longer than 65536 bytes");
        // Within the cap on the bus, beyond it in the words of the service.
        let escaped = client.at_large(ours, "GetSpan", &"\u{1}".repeat(40_000)).await.unwrap_err();
        assert_eq!(escaped.1, "message: is longer than 65536 bytes");
        client.ask("GetInfo", json!([])).await;
    });
}

#[test]
fn a_message_with_descriptors_does_not_reach_the_daemon() {
    let Some((bus, daemon)) = started(STEADY, "") else { return };
    run(async {
        let client = bus.client().await;
        client.ask("GetInfo", json!([])).await;
        let before = open_descriptors(&daemon);
        let file = std::fs::File::open("/dev/null").unwrap();
        let descriptor = zbus::Fd::from(std::os::fd::OwnedFd::from(file));
        let (name, _) = client.at_large(Some(INTERFACE), "GetSpan", &descriptor).await.unwrap_err();
        assert_eq!(name, "org.freedesktop.DBus.Error.NotSupported");
        assert_eq!(open_descriptors(&daemon), before);
        client.ask("GetInfo", json!([])).await;
    });
}

#[test]
fn limits_are_those_of_the_socket_and_count_both_doors_together() {
    let limits = "[limits]\nconnections_per_user = 2\nopen_spans_per_user = 2\n";
    if !can_be_others() {
        return;
    }
    let Some((bus, _daemon)) = started(STEADY, &format!("{ACCESS}{limits}")) else { return };
    let open = json!(["OpenSpan", [{}]]);
    let told = answers(&bus, 3, "daemon", json!([open, open, open]));
    assert_eq!(told[2]["error"], "org.wattspan.Wattspan1.Error.QuotaExceeded");
    assert_eq!(told[2]["words"], "the limit of 2 open spans is reached");
    let mut first = caller(&bus, 3, "daemon", &json!([["GetInfo", []]]));
    let mut second = caller(&bus, 3, "daemon", &json!([["GetInfo", []]]));
    for child in [&mut first, &mut second] {
        let mut said = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("ANSWER {\"ok\"")), "both are there");
    }
    let third = answers(&bus, 3, "daemon", json!([["GetInfo", []]])).remove(0);
    assert_eq!(third["words"], "the limit of 2 connections of one user is reached");
    // Whoever was refused may come again once there is room.
    for child in [&mut first, &mut second] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    until("there is room again", || {
        answers(&bus, 3, "daemon", json!([["GetInfo", []]]))[0].get("ok").is_some()
    });
}

#[test]
fn a_bus_that_restarts_or_is_not_there_leaves_the_socket_alone() {
    let Some(mut bus) = TestBus::start() else { return };
    bus.stop();
    let mut daemon = TestDaemon::with(STEADY, &bus.key());
    daemon.client().open("a");
    until("it is told", || daemon.log().contains("is not on the bus"));
    bus.restart();
    run(async { bus.client().await.await_daemon().await });
    let mut socket = daemon.client();
    socket.open("held");
    run(async {
        let client = bus.client().await;
        client.ask("OpenSpan", json!([{ "span": "on the bus" }])).await;
    });
    bus.restart();
    until("it is on the bus again", || daemon.log().matches("answers on the bus").count() == 2);
    run(async { bus.client().await.await_daemon().await });
    assert_eq!(
        daemon.log().matches("bus").count(),
        4 + daemon.log().matches("unix:path").count() * 2,
        "{}",
        daemon.log()
    );
    until("its spans are abandoned", || {
        socket.exchange("GetSpan", json!({ "span": "on the bus" }))["parameters"]["account"]["state"]
            == "abandoned"
    });
    socket.settle("held");
    daemon.terminate();
    assert!(daemon.wait().success());
}

#[test]
fn a_name_that_is_taken_is_told_once_and_had_when_it_is_free() {
    let Some(bus) = TestBus::start() else { return };
    let daemon = run(async {
        let squatter = bus.client().await;
        squatter.bus.request_name(NAME).await.unwrap();
        let daemon = TestDaemon::with(STEADY, &bus.key());
        until("it is told", || daemon.log().contains("another process is org.wattspan.Wattspan1"));
        drop(squatter);
        daemon
    });
    until("the name is had", || daemon.log().contains("answers on the bus"));
    assert_eq!(daemon.log().matches("another process").count(), 1);
}

#[test]
fn a_daemon_that_stops_answers_a_waiting_close_first() {
    let Some((bus, mut daemon)) = started(SLUGGISH, "patience_ms = 60000\n") else { return };
    run(async {
        let client = bus.client().await;
        client.ask("OpenSpan", json!([{ "span": "w" }])).await;
        let close = bus::message("CloseSpan", &json!(["w", { "wait_settled": true }]), Default::default());
        let mut socket = daemon.client();
        let (answer, ()) = both(client.send(close), async {
            let deadline = std::time::Instant::now() + PATIENCE;
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

/// Both, side by side.
async fn both<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
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
