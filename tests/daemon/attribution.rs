//! Whole daemons on machines whose power is known: the accounts that clients receive over the socket.
//!
//! The truth is computed from the power and from the edges stated in the account, so no test depends on the speed of
//! this machine.

use crate::support;

use std::process::Command;

use crate::support::{
    SLOW_COUNTER_MACHINE, STEADY_MACHINE, TestClient, TestDaemon, domain_row, encode_call,
    fixed_rate_machine, get_u64, sleep_ms, wait_until,
};
use serde_json::{Value, json};

/// The energy of `watts` between two instants, in microjoules.
fn truth_uj(watts: f64, from_ns: u64, to_ns: u64) -> f64 {
    watts * (to_ns - from_ns) as f64 / 1000.0
}

fn assert_holds(figures: &Value, truth_uj: f64) {
    let (share_uj, error_uj) = (get_u64(figures, "share_uj") as f64, get_u64(figures, "error_uj") as f64);
    assert!((share_uj - truth_uj).abs() <= error_uj + 1.0, "{share_uj} ± {error_uj}, but truly {truth_uj}");
}

fn edges(account: &Value) -> (u64, u64) {
    (get_u64(account, "opened_ns"), get_u64(account, "closed_ns"))
}

#[test]
fn a_span_alone_gets_everything_and_its_account_holds_the_truth() {
    for machine in [STEADY_MACHINE, &fixed_rate_machine()] {
        // Where a counter has no ceiling, the error at the opening is the energy since the reading before it.
        let daemon = TestDaemon::start_with_config(machine, "idle_rate_hz = 1000.0\n");
        let mut client = daemon.client();
        client.open("alone");
        // So long that a sampler which is late at both edges of the span widens its error by a few percent only.
        sleep_ms(1200);
        let account = client.close_and_settle("alone");
        let (from_ns, to_ns) = edges(&account);
        for (domain, watts) in [("package-0", 80.0), ("core-0", 50.0), ("dram-0", 20.0)] {
            assert_holds(domain_row(&account["domains"], domain), truth_uj(watts, from_ns, to_ns));
        }
        // The core is part of the package, so the total is the sum of package and memory.
        assert_holds(&account, truth_uj(100.0, from_ns, to_ns));
        // A share is rounded down to whole microjoules after a division whose remainder is carried over (to
        // `unattributed_uj`), so it may be 1 below the window in each of the two counted domains, and is never above it.
        let (share_uj, window_uj) = (get_u64(&account, "share_uj"), get_u64(&account, "window_uj"));
        assert!(share_uj <= window_uj && window_uj - share_uj <= 2, "{share_uj} of {window_uj}");
        assert_eq!((&account["grade"], &account["peak_concurrency"]), (&json!("measured"), &json!(1)));
        assert!((95_000..105_000).contains(&get_u64(&account, "mean_power_mw")), "{account}");
        assert!(get_u64(&account, "error_uj") < get_u64(&account, "share_uj") / 10, "{account}");
    }
}

#[test]
fn overlapping_spans_share_by_weight_and_add_up() {
    for machine in [STEADY_MACHINE, &fixed_rate_machine()] {
        let daemon = TestDaemon::start(machine);
        let mut client = daemon.client();
        client.open("light");
        sleep_ms(40);
        client.call("OpenSpan", json!({ "span": "heavy", "weight": 3.0 }));
        sleep_ms(60);
        let light = client.close_and_settle("light");
        sleep_ms(40);
        let heavy = client.close_and_settle("heavy");
        let ((a, c), (b, d)) = (edges(&light), edges(&heavy));
        assert_holds(&light, truth_uj(100.0, a, b) + truth_uj(25.0, b, c));
        assert_holds(&heavy, truth_uj(75.0, b, c) + truth_uj(100.0, c, d));
        assert_eq!((get_u64(&light, "peak_concurrency"), get_u64(&heavy, "peak_concurrency")), (2, 2));
        let both = get_u64(&light, "share_uj") + get_u64(&heavy, "share_uj");
        let errors = get_u64(&light, "error_uj") + get_u64(&heavy, "error_uj");
        assert!((both as f64 - truth_uj(100.0, a, d)).abs() <= errors as f64);
        assert!(get_u64(&light, "window_uj") + get_u64(&heavy, "window_uj") > both);
    }
}

#[test]
fn what_was_measured_is_what_was_attributed_and_what_was_not_exactly() {
    for machine in [STEADY_MACHINE, &fixed_rate_machine()] {
        let daemon = TestDaemon::start(machine);
        let mut client = daemon.client();
        let mut given = 0;
        for turn in 0..6 {
            client.open(&format!("a{turn}"));
            client.call("OpenSpan", json!({ "span": format!("b{turn}"), "weight": 0.3 }));
            sleep_ms(7);
            given += get_u64(
                domain_row(&client.close_and_settle(&format!("a{turn}"))["domains"], "package-0"),
                "share_uj",
            );
            given += get_u64(
                domain_row(&client.close_and_settle(&format!("b{turn}"))["domains"], "package-0"),
                "share_uj",
            );
        }
        client.open("forgotten");
        sleep_ms(20);
        client.call("CancelSpan", json!({ "span": "forgotten" }));
        sleep_ms(60);
        let balance = client.call("GetBalance", json!({}));
        for of in balance["balance"].as_array().unwrap() {
            let parts = get_u64(of, "attributed_uj") + get_u64(of, "unattributed_uj");
            assert_eq!(get_u64(of, "measured_uj"), parts, "{of}");
        }
        assert_eq!(get_u64(domain_row(&balance["balance"], "package-0"), "attributed_uj"), given);
    }
}

#[test]
fn a_span_pays_only_for_the_domains_it_uses() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.call("OpenSpan", json!({ "span": "memory", "domains": ["dram-0", "dram-0"] }));
    client.open("all");
    sleep_ms(80);
    let memory = client.close_and_settle("memory");
    let all = client.close_and_settle("all");
    assert_eq!(memory["domains"].as_array().unwrap().len(), 1);
    let ((a, c), (b, d)) = (edges(&memory), edges(&all));
    assert_holds(&memory, truth_uj(20.0, a, b) + truth_uj(10.0, b, c));
    assert_holds(domain_row(&all["domains"], "package-0"), truth_uj(80.0, b, d));
    assert_holds(domain_row(&all["domains"], "dram-0"), truth_uj(10.0, b, c) + truth_uj(20.0, c, d));
}

#[test]
fn edges_are_at_the_clients_instants_and_not_before_the_horizon() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let now_ns = |client: &mut TestClient| get_u64(&client.call("GetInfo", json!({})), "now_ns");
    client.open("warm");
    sleep_ms(50);
    let recent_ns = now_ns(&mut client) - 3_000_000;
    let late_ns = recent_ns - 40_000_000;
    client.call("OpenSpan", json!({ "span": "recent", "at_ns": recent_ns }));
    client.call("OpenSpan", json!({ "span": "late", "at_ns": late_ns }));
    sleep_ms(30);
    let recent = client.close_and_settle("recent");
    let late = client.close_and_settle("late");
    // On a slow machine even the recent edge may come after the horizon; then the account must say so.
    assert_eq!(get_u64(&recent, "opened_ns") - get_u64(&recent, "moved_ns"), recent_ns);
    assert!(get_u64(&late, "moved_ns") >= 30_000_000, "{late}");
    assert_eq!(get_u64(&late, "opened_ns") - get_u64(&late, "moved_ns"), late_ns);
}

#[test]
fn phases_add_up_to_their_span() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.open("question");
    client.call("MarkPhase", json!({ "span": "question", "phase": "prefill" }));
    sleep_ms(30);
    client.call("MarkPhase", json!({ "span": "question", "phase": "decode" }));
    sleep_ms(60);
    let account = client.close_and_settle("question");
    let phases = account["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names[names.len() - 2..], ["prefill", "decode"]);
    let sum: u64 = phases.iter().map(|phase| get_u64(phase, "share_uj")).sum();
    assert!(sum.abs_diff(get_u64(&account, "share_uj")) <= phases.len() as u64, "{account}");
    for phase in phases {
        let (from_ns, to_ns) = edges(phase);
        assert_holds(phase, truth_uj(100.0, from_ns, to_ns));
    }
}

#[test]
fn a_past_window_holds_the_energy_of_all_spans() {
    for machine in [STEADY_MACHINE, &fixed_rate_machine()] {
        let daemon = TestDaemon::start(machine);
        let mut client = daemon.client();
        client.open("other");
        sleep_ms(200);
        client.close_and_settle("other");
        let now_ns = get_u64(&client.call("GetInfo", json!({})), "now_ns");
        let (from_ns, to_ns) = (now_ns - 150_000_000, now_ns - 60_000_000);
        let window = client.call("ReadWindow", json!({ "from_ns": from_ns, "to_ns": to_ns }));
        assert_holds(domain_row(&window["domains"], "package-0"), truth_uj(80.0, from_ns, to_ns));
        let (window_uj, error_uj) =
            (get_u64(&window, "window_uj") as f64, get_u64(&window, "error_uj") as f64);
        assert!((window_uj - truth_uj(100.0, from_ns, to_ns)).abs() <= error_uj + 1.0, "{window}");
        assert_eq!(window["grade"], "measured");
    }
}

#[test]
fn the_spans_of_a_killed_client_end_with_it_as_abandoned() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut watcher = daemon.client();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &support::test_name(module_path!(), "a_client_that_opens_a_span_and_waits_to_be_killed"),
        ])
        .arg("--ignored")
        .env("VICTIM_OF", daemon.socket())
        .spawn()
        .unwrap();
    wait_until("the victim opens its span", || {
        watcher.call_raw("GetSpan", json!({ "span": "victim" })).get("error").is_none()
    });
    victim.kill().unwrap();
    victim.wait().unwrap();
    let mut account = json!(null);
    wait_until("the span is abandoned", || {
        account = watcher.call("GetSpan", json!({ "span": "victim" }))["account"].take();
        account["state"] == "abandoned"
    });
    let (from_ns, to_ns) = edges(&account);
    assert_holds(&account, truth_uj(100.0, from_ns, to_ns));
    assert_eq!(watcher.call_error("CloseSpan", json!({ "span": "victim" })).0, "AlreadyClosed");
}

#[test]
#[ignore = "a helper that another test starts in a process of its own"]
fn a_client_that_opens_a_span_and_waits_to_be_killed() {
    let socket = std::env::var_os("VICTIM_OF").expect("the variable that the outer test sets");
    let mut client = TestClient::from_stream(std::os::unix::net::UnixStream::connect(socket).unwrap());
    client.open("victim");
    std::thread::sleep(support::TEST_TIMEOUT);
}

#[test]
fn a_waiting_close_gets_the_provisional_account_when_the_daemon_stops() {
    let mut daemon = TestDaemon::start_with_config(SLOW_COUNTER_MACHINE, "patience_ms = 60000\n");
    let mut client = daemon.client();
    client.open("a");
    client.send("CloseSpan", json!({ "span": "a", "wait_settled": true }), &[]);
    // A call after the close: once it is processed, so is the close.
    client.send("GetInfo", json!({}), &[]);
    let mut other = daemon.client();
    wait_until("the close is received", || {
        other.call("GetSpan", json!({ "span": "a" }))["account"]["state"] != "open"
    });
    daemon.terminate();
    let answer = client.receive().unwrap();
    assert_eq!(answer["parameters"]["account"]["state"], "provisional", "{answer}");
    assert!(client.receive().unwrap()["parameters"]["version"].is_string());
    assert!(client.is_disconnected());
    assert!(daemon.wait().success());
    assert!(!daemon.socket().exists());
}

#[test]
fn a_client_that_reads_gets_every_answer_before_the_daemon_stops() {
    // Their answers are more than the socket's buffer holds. Few domains, because a busy machine has to make them within the
    // 4 s that a shutdown may take.
    const CLOSES: usize = 600;
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let calls = |method: &str, parameters: Value, flags: &[&str]| {
        let one = |at: usize| {
            let mut parameters = parameters.clone();
            parameters["span"] = json!(format!("s{at}"));
            encode_call(method, parameters, flags)
        };
        (0..CLOSES).flat_map(one).collect::<Vec<u8>>()
    };
    assert!(client.send_raw(&calls("OpenSpan", json!({}), &["oneway"])));
    client.call("GetInfo", json!({}));
    let closes = calls("CloseSpan", json!({ "wait_settled": true }), &[]);
    let mut writer = TestClient::from_stream(client.stream().try_clone().unwrap());
    let reader = std::thread::spawn(move || std::iter::from_fn(|| client.receive()).collect::<Vec<_>>());
    assert!(writer.send_raw(&closes));
    daemon.terminate();
    let answers = reader.join().unwrap();
    assert!(daemon.wait().success());
    assert_eq!(answers.len(), CLOSES);
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(answer["parameters"]["account"]["span"], format!("s{at}"), "{answer}");
    }
}

#[test]
fn a_daemon_that_was_killed_starts_again_on_its_stale_socket() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.open("a");
    daemon.kill();
    assert!(client.is_disconnected());
    assert!(daemon.socket().exists());
    daemon.restart();
    assert_eq!(daemon.client().call_error("GetSpan", json!({ "span": "a" })).0, "NoSuchSpan");
}

#[test]
fn a_recording_replays_as_the_machine_it_was_taken_from() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("machine.toml"), STEADY_MACHINE).unwrap();
    std::fs::write(dir.path().join("wattspan.toml"), "").unwrap();
    let trace = dir.path().join("trace.jsonl");
    let mut first = support::daemon_command(dir.path()).arg("--record").arg(&trace).spawn().unwrap();
    // Some seconds of recording, even on a busy machine: at its end the replay restarts with a gap, and the second
    // daemon's span must not cross that gap.
    let lines = || std::fs::read_to_string(&trace).map_or(0, |text| text.lines().count());
    wait_until("enough is recorded", || lines() > 3_000);
    rustix::process::kill_process(rustix::process::Pid::from_child(&first), rustix::process::Signal::TERM)
        .unwrap();
    assert!(first.wait().unwrap().success());
    let recorded = std::fs::read_to_string(&trace).unwrap();
    assert!(recorded.lines().count() > 100, "{} lines", recorded.lines().count());

    let daemon = TestDaemon::start(&recorded);
    let mut client = daemon.client();
    client.open("again");
    sleep_ms(100);
    let account = client.close_and_settle("again");
    let (from_ns, to_ns) = edges(&account);
    assert_holds(&account, truth_uj(100.0, from_ns, to_ns));
}

/// Counters out of step with each other and with the daemon's clock.
const MOVING_MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[1.0, 80]]
quantum_uj = 61
ceiling_w = 250
update_ns = 976_600
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[1.0, 20]]
quantum_uj = 15
ceiling_w = 60
update_ns = 1_003_000
phase_ns = 400_000
"#;

fn schedule(client: &mut TestClient) -> String {
    client.call("GetInfo", json!({}))["samplers"][0]["schedule"].as_str().expect("a schedule").to_owned()
}

#[test]
fn the_machines_of_these_tests_are_read_at_edges_and_at_the_fixed_rate() {
    for (machine, expected) in [(STEADY_MACHINE, "edges"), (&fixed_rate_machine(), "fixed_rate")] {
        let daemon = TestDaemon::start(machine);
        let mut client = daemon.client();
        client.open("warm");
        // The survey at the start, in which the phases are learnt.
        sleep_ms(600);
        wait_until(expected, || schedule(&mut client) == expected);
    }
}

#[test]
fn accounts_hold_the_truth_where_the_counters_are_read_at_edges() {
    let daemon = TestDaemon::start(MOVING_MACHINE);
    let mut client = daemon.client();
    client.open("whole");
    wait_until("read at edges", || schedule(&mut client) == "edges");
    for round in 0..30 {
        let (first, second) = (format!("first {round}"), format!("second {round}"));
        client.open(&first);
        sleep_ms(1 + round % 7);
        client.open(&second);
        sleep_ms(1 + round % 5);
        client.call("MarkPhase", json!({ "span": first, "phase": "decode" }));
        client.call("SetWeight", json!({ "span": second, "weight": 2.5 }));
        sleep_ms(round % 3);
        client.call("CloseSpan", json!({ "span": first }));
        client.call("CloseSpan", json!({ "span": second }));
        sleep_ms(round % 11);
    }
    client.call("CloseSpan", json!({ "span": "whole" }));
    let alone = {
        sleep_ms(50);
        client.open("alone");
        sleep_ms(40);
        client.close_and_settle("alone")
    };
    for (domain, watts) in [("package-0", 80.0), ("dram-0", 20.0)] {
        let (from_ns, to_ns) = edges(&alone);
        assert_holds(domain_row(&alone["domains"], domain), truth_uj(watts, from_ns, to_ns));
        // The whole window of the span that was open all the time.
        let whole = client.call("GetSpan", json!({ "span": "whole" }));
        let (from_ns, to_ns) = edges(&whole["account"]);
        let row = domain_row(&whole["account"]["domains"], domain);
        let window_uj = get_u64(row, "window_uj") as f64;
        let slack_uj = watts * 2_500.0;
        assert!((window_uj - truth_uj(watts, from_ns, to_ns)).abs() <= slack_uj, "{row}");
    }
    let balance = client.call("GetBalance", json!({}));
    for domain in balance["balance"].as_array().unwrap() {
        let part = |key| get_u64(domain, key);
        assert_eq!(part("measured_uj"), part("attributed_uj") + part("unattributed_uj"));
    }
}

#[test]
fn a_watcher_of_the_domains_makes_the_daemon_read_at_the_fixed_rate() {
    let daemon = TestDaemon::start(MOVING_MACHINE);
    let mut client = daemon.client();
    client.open("whole");
    wait_until("read at edges", || schedule(&mut client) == "edges");
    let mut watcher = daemon.client();
    watcher.send("WatchDomains", json!({ "rate_hz": 200 }), &["more"]);
    wait_until("read at the fixed rate", || schedule(&mut client) == "fixed_rate");
    drop(watcher);
    wait_until("read at edges again", || schedule(&mut client) == "edges");
}
