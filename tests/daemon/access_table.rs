//! Every method for every kind of caller, over the socket, against `fixtures/access.toml`, which was written
//! independently of the program's own table. A denied call names only the access it needs; an allowed one returns a
//! sensible reply; no caller sees a figure beyond its access in any reply.

use crate::other_user;
use crate::support;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use crate::other_user::{GROUPS, TestUser, call_as, call_as_at};
use crate::support::{STEADY_MACHINE, TestClient, TestDaemon, error_of, get_u64, wait_until};
use serde_json::{Value, json};
use wattspan_client::protocol::METHOD_NAMES;

/// Methods that the fixture names and that this version may lack.
const MAY_BE_MISSING: &[&str] = &["Reload"];

/// The calls here exceed a stranger's default rate.
const LIMITS: &str = "[limits]\nstranger_calls_burst = 1000\n";

/// Access levels, least first.
const ORDER: [&str; 5] = ["none", "coarse", "span", "telemetry", "admin"];

type Table = BTreeMap<String, String>;

#[derive(serde::Deserialize)]
struct Fixture {
    needs: Table,
    callers: Table,
}

fn fixture() -> Fixture {
    toml::from_str(include_str!("../fixtures/access.toml")).unwrap()
}

/// The methods of the interface.
fn methods() -> Vec<&'static str> {
    METHOD_NAMES.iter().filter_map(|name| name.strip_prefix("org.wattspan.Meter.")).collect()
}

fn rank(access: &str) -> usize {
    ORDER.iter().position(|word| *word == access).unwrap_or_else(|| panic!("{access} is no access"))
}

#[test]
fn the_fixture_and_the_interface_have_the_same_methods() {
    let fixture = fixture();
    for method in methods() {
        assert!(fixture.needs.contains_key(method), "{method} is in no row of fixtures/access.toml");
    }
    for method in fixture.needs.keys() {
        let there = methods().contains(&method.as_str()) || MAY_BE_MISSING.contains(&method.as_str());
        assert!(there, "{method} is in fixtures/access.toml and not in the interface");
    }
    for needs in fixture.needs.values().chain(fixture.callers.values()) {
        rank(needs);
    }
}

/// The user for this kind of caller; `None` for root, which is this process.
fn user(kind: &str) -> Option<TestUser> {
    Some(match kind {
        "unmapped" => other_user::UNMAPPED,
        "nobody" => TestUser { uid: 12_101, groups: "" },
        "coarse" => TestUser { uid: 12_102, groups: "games" },
        "span" => TestUser { uid: 12_103, groups: "daemon" },
        "telemetry" => TestUser { uid: 12_104, groups: "bin" },
        "root" => return None,
        other => panic!("unknown kind of caller: {other}"),
    })
}

/// Each method once, in an order in which each has data to return to a caller with access.
fn calls(now_ns: u64) -> Value {
    let (from_ns, to_ns) = (now_ns - 60_000_000, now_ns - 20_000_000);
    json!([
        ["GetInfo", {}],
        ["OpenSpan", { "span": "a" }],
        ["MarkPhase", { "span": "a", "phase": "p" }],
        ["SetWeight", { "span": "a", "weight": 0.5 }],
        ["GetSpan", { "span": "a" }],
        ["ListSpans", { "state": "open" }],
        ["CloseSpan", { "span": "a", "wait_settled": true }],
        ["ListSpans", {}],
        ["SumSpans", { "by": ["name", "day"], "utc_offset_min": 60 }],
        ["OpenSpan", { "span": "b" }],
        ["CancelSpan", { "span": "b" }],
        ["GetBalance", {}],
        ["ReadWindow", { "from_ns": from_ns, "to_ns": to_ns }],
        ["first", "WatchSpans"],
        ["first", "WatchDomains"],
        ["Reload", {}],
        ["org.varlink.service.GetInfo", {}],
        ["org.varlink.service.GetInterfaceDescription", { "interface": "org.wattspan.Meter" }]
    ])
}

fn method_of(call: &Value) -> &str {
    call[if call[0] == "first" { 1 } else { 0 }].as_str().unwrap()
}

/// Asserts that an allowed reply contains what the method is for.
fn assert_sensible(method: &str, access: &str, uid: u64, answer: &Value) {
    let replies = &answer["parameters"];
    let account = &replies["account"];
    let good = match method {
        "GetInfo" => replies["access"] == access && replies["domains"][0]["liveness"] == "live",
        "OpenSpan" => replies["span"].is_string(),
        "MarkPhase" | "SetWeight" | "CancelSpan" => replies == &json!({}),
        "Reload" => replies.is_object(),
        "GetSpan" => account["state"] == "open" && get_u64(account, "uid") == uid,
        "CloseSpan" => {
            let settled = account["state"] == "settled" && get_u64(account, "uid") == uid;
            settled
                && account["share_uj"].as_u64() > Some(0)
                && account["phases"].as_array().is_some_and(|phases| phases.last().unwrap()["name"] == "p")
        }
        "WatchSpans" => account["share_uj"].is_u64(),
        "ListSpans" => replies["accounts"].as_array().is_some_and(|list| {
            list.iter().any(|account| account["span"] == "a" && get_u64(account, "uid") == uid)
        }),
        "SumSpans" => {
            get_u64(&replies["total"], "accounts") > 0 && get_u64(&replies["total"], "energy_uj") > 0
        }
        "GetBalance" => get_u64(&replies["balance"][0], "measured_uj") > 0,
        "ReadWindow" => replies["window_uj"].is_u64(),
        "WatchDomains" => replies["domains"].as_array().is_some_and(|list| list.len() == 3),
        other => panic!("what does {other} say?"),
    };
    assert!(good && answer.get("error").is_none(), "{access}: {method}: {answer}");
}

/// Collects every energy or power figure of a reply, with its name.
fn figures(value: &Value, into: &mut Vec<(String, f64)>) {
    const NAMES: [&str; 4] = ["lag_ns", "quantum_uj", "residual", "update_interval_ns"];
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let tells = ["_uj", "_mw", "_mj", "_w", "_j"].iter().any(|unit| name.ends_with(unit));
                match value.as_f64() {
                    Some(figure) if tells || NAMES.contains(&name.as_str()) => {
                        into.push((name.clone(), figure))
                    }
                    _ => figures(value, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| figures(item, into)),
        _ => {}
    }
}

/// The figures that an account may show to its owner with coarse access; all others belong to the host.
const OF_ACCOUNTS: [&str; 4] = ["share_uj", "window_uj", "error_uj", "mean_power_mw"];

/// Those that sums of such accounts show; elsewhere they belong to domains.
const OF_SUMS: [&str; 2] = ["energy_uj", "error_uj"];

fn assert_discloses_no_more_than(access: &str, method: &str, answer: &Value) {
    let mut replies = Vec::new();
    figures(answer, &mut replies);
    match access {
        "none" => assert_eq!(replies, [], "{method}: {answer}"),
        "coarse" => {
            for (name, figure) in replies {
                let allowed = if method == "SumSpans" { &OF_SUMS[..] } else { &OF_ACCOUNTS };
                assert!(allowed.contains(&name.as_str()), "{method} tells {name}: {answer}");
                let fine = name.ends_with("_uj") && figure % 1000.0 != 0.0;
                assert!(!fine, "{method} tells {name} in steps of less than 1 mJ: {answer}");
            }
            let replies = &answer["parameters"];
            let open = replies["account"]["state"] == "open" || replies["accounts"][0]["state"] == "open";
            assert!(!open || !answer.to_string().contains("_uj"), "{answer}");
        }
        _ => {}
    }
}

fn assert_answers(fixture: &Fixture, kind: &str, uid: u64, calls: &Value, answers: &[Value]) {
    let access = fixture.callers[kind].as_str();
    let calls = calls.as_array().unwrap();
    assert_eq!(calls.len(), answers.len());
    for (call, answer) in calls.iter().zip(answers) {
        let method = method_of(call);
        assert_discloses_no_more_than(access, method, answer);
        if method.starts_with("org.varlink.service.") {
            // The service's identity and interface are public.
            assert!(answer.get("error").is_none(), "{kind}: {method}: {answer}");
        } else if !methods().contains(&method) {
            assert!(MAY_BE_MISSING.contains(&method));
            assert_eq!(error_of(answer.clone()).0, "org.varlink.service.MethodNotFound", "{kind}: {method}");
        } else if rank(access) < rank(&fixture.needs[method]) {
            let denied = ("AccessDenied".to_owned(), json!({ "needs": fixture.needs[method] }));
            assert_eq!(error_of(answer.clone()), denied, "{kind}: {method}");
        } else {
            assert_sensible(method, access, uid, answer);
        }
    }
    for method in fixture.needs.keys() {
        assert!(calls.iter().any(|call| method_of(call) == method), "{method} is never called");
    }
}

#[test]
fn every_method_answers_every_kind_of_caller_as_the_table_says() {
    if !other_user::is_supported() {
        return;
    }
    let (fixture, daemon) =
        (fixture(), TestDaemon::start_with_config(STEADY_MACHINE, &format!("{GROUPS}{LIMITS}")));
    let mut root = daemon.client();
    wait_until("there are figures to hide", || {
        root.call("GetInfo", json!({}))["domains"][0]["power_mw"].is_u64()
    });
    for kind in fixture.callers.keys() {
        let calls = calls(get_u64(&root.call("GetInfo", json!({})), "now_ns"));
        match user(kind) {
            Some(user) => {
                let replies = call_as(&daemon, user, calls.clone());
                assert_answers(&fixture, kind, user.uid.into(), &calls, &replies);
            }
            None => {
                let replies = as_root(&daemon, &calls);
                assert_answers(&fixture, kind, 0, &calls, &replies);
            }
        }
    }
}

fn as_root(daemon: &TestDaemon, calls: &Value) -> Vec<Value> {
    let mut client = daemon.client();
    let calls = calls.as_array().unwrap();
    calls
        .iter()
        .map(|call| match call[0].as_str().unwrap() {
            "first" => {
                let mut watcher = daemon.client();
                watcher.send(call[1].as_str().unwrap(), json!({}), &["more"]);
                let seen = format!("seen by {}", call[1]);
                client.open(&seen);
                client.close_and_settle(&seen);
                watcher.receive().unwrap()
            }
            method => client.call_raw(method, call[1].clone()),
        })
        .collect()
}

/// A daemon in a user namespace that maps root only.
struct NamespacedDaemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for NamespacedDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `None` where the system does not allow such a namespace.
fn start_in_user_namespace() -> Option<NamespacedDaemon> {
    let can = Command::new("unshare").args(["-U", "-r", "true"]).stderr(Stdio::null()).status();
    if !can.is_ok_and(|status| status.success()) {
        support::skip::skip("user namespaces", "the kernel or its policy forbids them");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("machine.toml"), STEADY_MACHINE).unwrap();
    // Unmapped groups all appear as this one; even naming it must grant nothing.
    let groups =
        "[access]\ncoarse_group = \"nogroup\"\nspan_group = \"nogroup\"\ntelemetry_group = \"nogroup\"\n";
    std::fs::write(dir.path().join("wattspan.toml"), format!("{groups}{LIMITS}")).unwrap();
    let plain = support::daemon_command(dir.path());
    let mut inside = Command::new("unshare");
    inside.args(["-U", "-r", "--"]).arg(plain.get_program()).args(plain.get_args());
    let child = inside.env_remove("WATTSPAN_SOCKET").stderr(Stdio::null()).spawn().unwrap();
    Some(NamespacedDaemon { child, dir })
}

#[test]
fn a_user_not_mapped_into_the_daemons_user_namespace_has_no_access() {
    if !other_user::is_supported() {
        return;
    }
    let Some(confined) = start_in_user_namespace() else { return };
    let socket = confined.dir.path().join("run").join("wattspan.sock");
    wait_until("there is a socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let fixture = fixture();
    let calls = calls(1_000_000_000);
    for user in [TestUser { uid: 12_201, groups: "" }, TestUser { uid: 12_202, groups: "nogroup" }] {
        let replies = call_as_at(&socket, user, calls.clone());
        assert_answers(&fixture, "unmapped", user.uid.into(), &calls, &replies);
    }
    // Root outside is root inside, because it is mapped.
    let mut root = TestClient::from_stream(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    assert_eq!(root.call("GetInfo", json!({}))["access"], "admin");
}
