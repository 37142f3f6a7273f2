//! The daemon under a service manager: its notifications, and reloading its configuration while it runs.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use crate::support::{
    STEADY_MACHINE, TEST_TIMEOUT, TestDaemon, daemon_command, encode_call, error_of, get_u64, wait_until,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::json;

fn configuration(daemon: &TestDaemon) -> PathBuf {
    daemon.socket().parent().unwrap().with_file_name("wattspan.toml")
}

#[test]
fn a_reload_changes_what_it_can_names_what_it_cannot_and_takes_nothing_that_is_broken() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nstall_s = 20\n");
    let mut client = daemon.client();
    let file = configuration(&daemon);
    std::fs::write(
        &file,
        "bus = false\nhistory_s = 4\n[limits]\nstall_s = 20\nmessage_bytes = 1024\n[idle_w]\ncore-0 = 3\n",
    )
    .unwrap();
    let reloaded = client.call("Reload", json!({}));
    let changed =
        json!({ "changed": ["idle_w.core-0", "limits.message_bytes"], "needs_restart": ["history_s"] });
    assert_eq!(reloaded, changed);
    // The new limit applies to existing connections too.
    let long = json!({ "span": "a", "name": "x".repeat(2000) });
    for (broken, key) in [
        ("[limits]\nmessage_bytes = 60000\nstall_s = 'soon'\n", "stall_s"),
        ("[limits]\nmessage_bites = 60000\n", "message_bites"),
        ("rate_hz = 0\n", "rate_hz = 0"),
    ] {
        std::fs::write(&file, broken).unwrap();
        let (name, parameters) = client.call_error("Reload", json!({}));
        let reason = parameters["reason"].as_str().unwrap();
        assert_eq!((name.as_str(), &parameters["field"]), ("InvalidValue", &json!("configuration")));
        assert!(reason.contains(file.to_str().unwrap()) && reason.contains(key), "{reason}");
    }
    let (name, parameters) = client.call_error("OpenSpan", long);
    assert_eq!((name.as_str(), &parameters["field"]), ("InvalidValue", &json!("message")));
    let log = daemon.log();
    assert_eq!(
        log.matches("reloaded: idle_w.core-0, limits.message_bytes changed; history_s needs a restart")
            .count(),
        1,
        "{log}"
    );
    assert_eq!(log.matches("not reloaded, nothing changed: in the configuration ").count(), 2, "{log}");
}

#[test]
fn what_holds_only_in_part_until_a_restart_is_named_on_both_sides() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[access]\nspan_group = 'daemon'\n");
    let mut client = daemon.client();
    let mut reload = |access: &str| {
        std::fs::write(configuration(&daemon), format!("bus = false\n[access]\n{access}")).unwrap();
        let reloaded = client.call("Reload", json!({}));
        (reloaded["changed"].clone(), reloaded["needs_restart"].clone())
    };
    // The socket was created for the group configured then.
    let (span, coarse) = (json!(["access.span_group"]), json!(["access.coarse_group"]));
    assert_eq!(reload("span_group = 'games'\n"), (span.clone(), span.clone()));
    assert_eq!(reload("span_group = 'games'\n"), (json!([]), span.clone()), "as long as it is so");
    assert_eq!(reload("span_group = 'daemon'\n"), (span, json!([])));
    assert_eq!(reload("span_group = 'daemon'\ncoarse_group = 'games'\n"), (coarse.clone(), coarse));
    assert!(daemon.log().contains("access.coarse_group changed; access.coarse_group needs a restart"));

    // There is no bus at this address; the daemon keeps trying.
    let bus = "bus = 'unix:path=/nonexistent/bus'\n";
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, bus);
    std::fs::write(configuration(&daemon), format!("{bus}[limits]\nmessage_bytes = 2048\n")).unwrap();
    let reloaded = daemon.client().call("Reload", json!({}));
    let key = json!(["limits.message_bytes"]);
    assert_eq!(reloaded, json!({ "changed": key, "needs_restart": key }), "the bus keeps its limit");
}

#[test]
fn a_hangup_reads_the_configuration_again_and_the_daemon_goes_on() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "idle_rate_hz = 0.1\n");
    let mut client = daemon.client();
    let mut ticks = || get_u64(&client.call("GetInfo", json!({}))["samplers"][0], "ticks");
    std::fs::write(configuration(&daemon), "idle_rate_hz = 200.0\n").unwrap();
    kill_process(daemon.pid(), Signal::HUP).unwrap();
    wait_until("the reload is logged", || daemon.log().contains("reloaded: idle_rate_hz changed"));
    // At the old rate, this many ticks would take longer than the test's timeout.
    let before = ticks();
    wait_until("the samplers tick at the new rate", || ticks() > before + 100);
    std::fs::write(configuration(&daemon), "idle_rate_hz = \n").unwrap();
    kill_process(daemon.pid(), Signal::HUP).unwrap();
    wait_until("the reason is logged", || daemon.log().contains("not reloaded, nothing changed"));
}

/// A daemon under a fake service manager.
struct ManagedDaemon {
    child: Child,
    manager: UnixDatagram,
    _dir: tempfile::TempDir,
}

impl ManagedDaemon {
    fn start(watchdog_us: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("machine.toml"), STEADY_MACHINE).unwrap();
        std::fs::write(dir.path().join("wattspan.toml"), "").unwrap();
        let notify = dir.path().join("notify");
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let child = daemon_command(dir.path())
            .env("NOTIFY_SOCKET", &notify)
            .env("WATCHDOG_USEC", watchdog_us.to_string())
            .spawn()
            .unwrap();
        Self { child, manager, _dir: dir }
    }

    fn receive(&self) -> String {
        let mut bytes = [0; 512];
        let length = self.manager.recv(&mut bytes).expect("output of the daemon");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// The next message other than WATCHDOG=1.
    fn next_message(&self) -> String {
        std::iter::repeat_with(|| self.receive()).find(|message| message != "WATCHDOG=1\n").unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for ManagedDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sd_notify_reports_ready_reloading_and_stopping() {
    let mut managed = ManagedDaemon::start(60_000_000);
    assert_eq!(managed.next_message(), "READY=1\nSTATUS=measures package-0, core-0, dram-0\n");
    managed.signal(Signal::HUP);
    assert!(managed.next_message().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(managed.next_message().starts_with("READY=1\n"));
    managed.signal(Signal::TERM);
    assert!(managed.next_message().starts_with("STOPPING=1\n"));
    assert!(managed.child.wait().unwrap().success());
}

#[test]
fn the_watchdog_is_notified_while_it_runs_and_not_while_it_is_stopped() {
    let managed = ManagedDaemon::start(300_000);
    assert!(managed.receive().starts_with("READY=1\n"));
    for _ in 0..5 {
        assert_eq!(managed.receive(), "WATCHDOG=1\n");
    }
    managed.signal(Signal::STOP);
    let stopped = waitpid(Some(Pid::from_child(&managed.child)), WaitOptions::UNTRACED).unwrap();
    assert!(stopped.is_some_and(|(_, status)| status.stopped()));
    // Messages sent before the stop are still queued.
    managed.manager.set_nonblocking(true).unwrap();
    let mut bytes = [0; 512];
    while managed.manager.recv(&mut bytes).is_ok() {}
    managed.manager.set_nonblocking(false).unwrap();
    managed.manager.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    assert!(managed.manager.recv(&mut bytes).is_err(), "it is fed although the daemon is stopped");
    managed.signal(Signal::CONT);
    managed.manager.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    assert_eq!(managed.receive(), "WATCHDOG=1\n");
}

#[test]
fn a_reload_takes_no_parameters() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "");
    let mut client = daemon.client();
    // An unknown parameter must be refused, not ignored.
    client.send_raw(&encode_call("Reload", json!({ "force": true }), &[]));
    let (name, parameters) = error_of(client.receive().unwrap());
    assert_eq!(
        (name.as_str(), &parameters["parameter"]),
        ("org.varlink.service.InvalidParameter", &json!("force"))
    );
}

#[test]
fn a_reading_above_a_ceiling_raises_it_and_info_and_log_name_the_interval() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[ceiling_w]\npackage-0 = 20\n");
    let mut client = daemon.client();
    let mut info = json!(null);
    client.call("OpenSpan", json!({ "span": "a" }));
    wait_until("the ceiling is exceeded", || {
        info = client.call("GetInfo", json!({}))["domains"].take();
        info[0]["exceeded"].is_array()
    });
    let account = client.call("CloseSpan", json!({ "span": "a", "wait_settled": true }))["account"].take();
    let (domain, exceeded) = (&info[0], &info[0]["exceeded"][0]);
    assert_eq!((&exceeded["origin"], get_u64(exceeded, "limit_mw")), (&json!("configured"), 20_000));
    assert!(get_u64(exceeded, "from_ns") < get_u64(exceeded, "to_ns"), "{exceeded}");
    assert!(get_u64(exceeded, "power_mw") > 20_000, "{exceeded}");
    let raised = &domain["ceilings"][0];
    assert_eq!(raised["origin"], "raised by a reading");
    assert!(get_u64(raised, "limit_mw") >= 2 * get_u64(exceeded, "power_mw"), "{domain}");
    let log = daemon.log();
    let interval = format!("from {} to {} ns", exceeded["from_ns"], exceeded["to_ns"]);
    assert!(
        log.contains("more than its ceiling of 20000 mW (configured)") && log.contains(&interval),
        "{log}"
    );
    // The energy above the ceiling is measured, not rejected.
    let share = &account["domains"][0];
    assert!(get_u64(share, "share_uj") > 0 && get_u64(share, "unknown_ns") == 0, "{account}");
}
