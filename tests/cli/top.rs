//! `wattspan top`: its figures against those of `spans` and `balance`, and the view in a real terminal (tmux).

use crate::support::skip::skip;
use crate::support::{STEADY_MACHINE, TEST_TIMEOUT, TestDaemon, fixed_rate_machine, wait_until};

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::programs;

fn wattspan(daemon: &TestDaemon) -> Command {
    let mut command = Command::new(programs::wattspan());
    for variable in ["WATTSPAN_SOCKET", "NO_COLOR", "COLUMNS"] {
        command.env_remove(variable);
    }
    command.env("XDG_CONFIG_HOME", daemon.socket().parent().unwrap()).arg("--socket").arg(daemon.socket());
    command
}

fn output(daemon: &TestDaemon, words: &[&str]) -> Output {
    let output = wattspan(daemon).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn json_lines(daemon: &TestDaemon, words: &[&str]) -> Vec<Value> {
    let text = String::from_utf8(output(daemon, words).stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn close_span(daemon: &TestDaemon, name: &str, model: &str, tokens: u32) {
    let mut client = daemon.client();
    let attributes = json!({"gen_ai.request.model": model, "gen_ai.usage.output_tokens": tokens.to_string()});
    let open = json!({"name": name, "attributes": attributes, "process_share": false});
    let span = client.call("OpenSpan", open)["span"].clone();
    client.call("MarkPhase", json!({"span": span, "phase": "decode"}));
    std::thread::sleep(std::time::Duration::from_millis(20));
    client.call("CloseSpan", json!({"span": span, "wait_settled": true}));
}

fn rows<'a>(frame: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    frame["energy"]["rows"].as_array().unwrap().iter().filter(move |row| row["kind"] == kind)
}

fn sum(values: &[Value], field: &str) -> u64 {
    values.iter().map(|value| value[field].as_u64().unwrap()).sum()
}

#[test]
fn its_energies_are_those_of_spans_and_balance_and_add_up_to_the_machine() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    close_span(&daemon, "an earlier run", "small", 9);
    daemon.terminate();
    daemon.wait();
    // The store still has the account, but the balance begins at the second start.
    daemon.restart();
    for (name, model) in [("chat", "small"), ("chat", "large"), ("embed", "small"), ("chat", "small")] {
        close_span(&daemon, name, model, 10);
    }
    let frame = &json_lines(&daemon, &["top", "--once", "--json"])[0];
    let mut accounts = json_lines(&daemon, &["spans", "--json", "-n", "100"]);
    assert_eq!(accounts.len(), 5);
    accounts.retain(|account| account["name"] != "an earlier run");
    for row in rows(frame, "group") {
        let of_group = |account: &&Value| account["attributes"]["gen_ai.request.model"] == row["name"];
        let group: Vec<Value> = accounts.iter().filter(of_group).cloned().collect();
        assert_eq!(row["share_uj"], sum(&group, "share_uj"), "{row}");
        assert_eq!(row["requests"], group.len(), "{row}");
        let mean_error_uj = sum(&group, "error_uj").div_ceil(group.len() as u64);
        assert_eq!(row["request_error_uj"], mean_error_uj, "{row}");
    }
    assert_eq!(rows(frame, "group").count(), 2);
    assert_eq!(rows(frame, "other").count(), 0, "every account of this run is listed: {frame}");
    let all = frame["energy"]["rows"].as_array().unwrap();
    assert_eq!(frame["energy"]["machine_uj"], sum(all, "share_uj"));
    assert_eq!(frame["energy"]["machine_uj"], sum(all, "above_idle_uj"));
    let domains = frame["domains"].as_array().unwrap();
    let counted: Vec<Value> = domains.iter().filter(|row| row["counted"] == true).cloned().collect();
    assert_eq!(frame["energy"]["machine_uj"], sum(&counted, "measured_uj"), "measured, not attributed alone");

    // The only request of this model has the figure that `spans` prints for it.
    let printed = |words: &[&str], line: &str| -> String {
        let output = wattspan(&daemon).env("COLUMNS", "200").args(words).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|shown| shown.contains(line)).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let large = accounts.iter().find(|account| account["attributes"]["gen_ai.request.model"] == "large");
    let span = large.unwrap()["span"].as_str().unwrap();
    let in_spans = printed(&["spans"], span);
    let energy: Vec<&str> = in_spans.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let in_top = printed(&["top", "--once"], "large");
    assert!(energy[1].contains(" J ± ") && in_top.contains(energy[1]), "{in_spans}\n{in_top}");

    // Nothing is open any more, so attributed stays while measured grows.
    let balance = &json_lines(&daemon, &["balance", "--json"])[0];
    let balance = balance["balance"].as_array().unwrap();
    let counted: Vec<Value> = balance.iter().filter(|row| row["domain"] != "core-0").cloned().collect();
    let groups: Vec<Value> = rows(frame, "group").cloned().collect();
    assert_eq!(sum(&counted, "attributed_uj"), sum(&groups, "share_uj"));
}

#[test]
fn an_open_span_is_shown_with_its_age_and_its_energy_so_far() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.call("OpenSpan", json!({"span": "waits", "name": "a long question"}));
    wait_until("the open span has energy", || {
        client.call("GetSpan", json!({"span": "waits"}))["account"]["share_uj"].as_u64() > Some(0)
    });
    let frame = &json_lines(&daemon, &["top", "--once", "--json"])[0];
    let open = &frame["open"][0];
    assert_eq!((&open["span"], &open["name"]), (&json!("waits"), &json!("a long question")));
    assert!(open["age_ns"].as_u64() > Some(0) && open["share_uj"].as_u64() > Some(0), "{open}");
    assert!(rows(frame, "open").next().unwrap()["share_uj"].as_u64() > Some(0), "{frame}");
    let text = String::from_utf8(output(&daemon, &["top", "--once"]).stdout).unwrap();
    assert!(text.contains("OPEN SPANS 1") && text.contains("a long question"), "{text}");
}

#[test]
fn without_a_terminal_it_prints_one_frame_also_of_an_embedded_meter() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let text = String::from_utf8(output(&daemon, &["top"]).stdout).unwrap();
    assert!(text.contains("package-0") && text.contains("unattributed") && !text.contains('\x1b'), "{text}");
    let machine = daemon.socket().with_file_name("machine.toml");
    std::fs::write(&machine, STEADY_MACHINE).unwrap();
    let mut embedded = Command::new(programs::wattspan());
    let embedded = embedded.arg("--replay").arg(&machine).args(["top", "--json", "--once"]).output().unwrap();
    let frame: Value = serde_json::from_slice(&embedded.stdout).unwrap();
    assert_eq!(frame["meter"], "embedded");
    assert!(
        frame["power_mw"].as_u64() > Some(0) && frame["energy"]["machine_uj"].as_u64() > Some(0),
        "{frame}"
    );
}

#[test]
fn a_viewer_does_not_make_the_samplers_run_at_their_full_rate() {
    let daemon = TestDaemon::start_with_config(&fixed_rate_machine(), "idle_rate_hz = 1.0\n");
    let mut client = daemon.client();
    let ticks = |client: &mut crate::support::TestClient| -> u64 {
        let info = client.call("GetInfo", json!({}));
        info["samplers"][0]["ticks"].as_u64().unwrap()
    };
    // The characterisation after the start reads often; it has ended once a second passes with few reads.
    let mut before = ticks(&mut client);
    wait_until("the samplers rest", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = ticks(&mut client);
        let rests = now - before <= 5;
        before = now;
        rests
    });
    let before = client.call("GetInfo", json!({}))["now_ns"].as_u64().unwrap();
    let ticks_before = ticks(&mut client);
    for _ in 0..3 {
        output(&daemon, &["top", "--once"]);
    }
    let now_ns = client.call("GetInfo", json!({}))["now_ns"].as_u64().unwrap();
    let seconds = (now_ns - before).div_ceil(1_000_000_000);
    let used = ticks(&mut client) - ticks_before;
    // 1 Hz; a stream of the domains makes it 1000 Hz.
    assert!(used <= 2 * seconds + 2, "{used} reads in {seconds} s");
}

#[test]
fn wrong_settings_and_a_unit_without_its_factor_are_usage_errors() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let folder = daemon.socket().parent().unwrap().join("wattspan");
    std::fs::create_dir(&folder).unwrap();
    let run = |words: &[&str]| {
        let output = wattspan(&daemon).args(words).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (status, text) = run(&["top", "--unit", "cost"]);
    assert!(status == Some(2) && text.contains("cost_per_kwh"), "{text}");
    let settings = "unit = 'cost'\ncost_per_kwh = 0.3\ncurrency = 'EUR'\ngroup = 'user'\n";
    std::fs::write(folder.join("top.toml"), settings).unwrap();
    let (status, text) = run(&["top"]);
    assert!(status == Some(0) && text.contains("COST EUR") && text.contains("USER"), "{text}");
    std::fs::write(folder.join("top.toml"), "colour = 'red'\n").unwrap();
    let (status, text) = run(&["top"]);
    assert!(status == Some(2) && text.contains("top.toml") && text.contains("colour"), "{text}");
}

/// A tmux server of its own, which ends with the value.
struct Tmux {
    socket: std::path::PathBuf,
}

impl Tmux {
    fn start(dir: &Path, columns: u32, program: &str) -> Self {
        let tmux = Tmux { socket: dir.join("tmux.sock") };
        let columns = columns.to_string();
        tmux.run(&["-f", "/dev/null", "new-session", "-d", "-s", "top", "-x", &columns, "-y", "30", program]);
        tmux
    }

    fn run(&self, words: &[&str]) -> String {
        let output =
            Command::new("tmux").env_remove("TMUX").arg("-S").arg(&self.socket).args(words).output().unwrap();
        assert!(output.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn wait_for(&self, what: &str, shows: impl Fn(&str) -> bool) -> String {
        let deadline = std::time::Instant::now() + TEST_TIMEOUT;
        loop {
            let screen = self.run(&["capture-pane", "-p", "-t", "top"]);
            if shows(&screen) {
                return screen;
            }
            assert!(std::time::Instant::now() < deadline, "{what}:\n{screen}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

/// A shell command that runs the view, and then shows its exit status until the session ends.
fn session_of(daemon: &TestDaemon, config: &Path) -> String {
    format!(
        "env XDG_CONFIG_HOME='{}' '{}' --socket '{}' top; echo ended with $?; read line",
        config.display(),
        programs::wattspan(),
        daemon.socket().display()
    )
}

/// The process of the view in a session.
fn view_process(tmux: &Tmux) -> rustix::process::Pid {
    let shell = tmux.run(&["display-message", "-p", "-t", "top", "#{pane_pid}"]);
    let shell = shell.trim();
    let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
    rustix::process::Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

#[test]
fn a_view_that_was_stopped_lists_the_spans_that_settled_meanwhile_and_later() {
    if Command::new("tmux").arg("-V").output().is_err() {
        return skip("tmux", "install tmux");
    }
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nunread_bytes = 4096\n");
    close_span(&daemon, "chat", "early", 10);
    let dir = tempfile::tempdir().unwrap();
    let tmux = Tmux::start(dir.path(), 100, &session_of(&daemon, dir.path()));
    tmux.wait_for("the first frame", |screen| screen.contains("\nearly"));
    let view = view_process(&tmux);
    rustix::process::kill_process(view, rustix::process::Signal::STOP).unwrap();
    // More than the socket and the daemon's queue hold, so that the daemon ends the stream of settled accounts.
    let mut client = daemon.client();
    let mut attributes: serde_json::Map<String, Value> =
        (0..50).map(|key| (format!("key-{key}"), json!("x".repeat(1000)))).collect();
    attributes.insert("gen_ai.request.model".into(), json!("missed"));
    for _ in 0..40 {
        let open = json!({"name": "chat", "attributes": attributes, "process_share": false});
        let span = client.call("OpenSpan", open)["span"].clone();
        client.call("CloseSpan", json!({"span": span, "wait_settled": true}));
    }
    rustix::process::kill_process(view, rustix::process::Signal::CONT).unwrap();
    close_span(&daemon, "chat", "later", 10);
    let lists_all = |screen: &str| {
        screen.contains("\nearly") && screen.contains("\nmissed") && screen.contains("\nlater")
    };
    tmux.wait_for("all groups", lists_all);
}

#[test]
fn a_signal_to_end_leaves_the_terminal_as_it_was() {
    if Command::new("tmux").arg("-V").output().is_err() {
        return skip("tmux", "install tmux");
    }
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    let tmux = Tmux::start(dir.path(), 100, &session_of(&daemon, dir.path()));
    tmux.wait_for("the first frame", |screen| screen.contains("unattributed"));
    rustix::process::kill_process(view_process(&tmux), rustix::process::Signal::TERM).unwrap();
    tmux.wait_for("the end", |screen| screen.contains("ended with 0") && !screen.contains("unattributed"));
    // In raw mode the terminal would not show what is typed.
    tmux.run(&["send-keys", "-t", "top", "typed"]);
    tmux.wait_for("the echo", |screen| screen.contains("typed"));
}

#[test]
fn in_tmux_keys_work_and_a_killed_daemon_is_named_until_it_is_back() {
    if Command::new("tmux").arg("-V").output().is_err() {
        return skip("tmux", "install tmux");
    }
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    close_span(&daemon, "chat", "small", 10);
    let dir = tempfile::tempdir().unwrap();
    let tmux = Tmux::start(dir.path(), 80, &session_of(&daemon, dir.path()));
    let screen = tmux.wait_for("the first frame", |screen| screen.contains("unattributed"));
    assert!(screen.contains("small") && screen.contains("MODEL"), "{screen}");
    tmux.run(&["send-keys", "-t", "top", "g"]);
    tmux.wait_for("names", |screen| screen.contains("NAME") && screen.contains("\nchat"));
    tmux.run(&["send-keys", "-t", "top", "?"]);
    tmux.wait_for("the help", |screen| screen.contains("this help"));
    tmux.run(&["send-keys", "-t", "top", "Escape"]);
    close_span(&daemon, "settles while it watches", "small", 10);
    tmux.wait_for("the new span", |screen| screen.contains("\nsettles while"));
    tmux.run(&["resize-window", "-t", "top", "-x", "60", "-y", "24"]);
    tmux.wait_for("a narrow frame", |screen| screen.contains("chat") && !screen.contains("IDLE PART"));

    // A daemon that hangs delays no key.
    rustix::process::kill_process(daemon.pid(), rustix::process::Signal::STOP).unwrap();
    tmux.wait_for("the silence", |screen| screen.contains("unreachable") && screen.contains("not answer"));
    tmux.run(&["send-keys", "-t", "top", "?"]);
    tmux.wait_for("the help", |screen| screen.contains("this help"));
    tmux.run(&["send-keys", "-t", "top", "Escape"]);
    rustix::process::kill_process(daemon.pid(), rustix::process::Signal::CONT).unwrap();
    tmux.wait_for("the answer", |screen| !screen.contains("unreachable") && screen.contains("\nchat"));

    daemon.kill();
    tmux.wait_for("the loss", |screen| screen.contains("daemon unreachable since"));
    daemon.restart();
    // A screen is read while it is drawn: the end of the frame before may still be there.
    let back = |screen: &str| !screen.contains("unreachable") && screen.contains("unattributed");
    tmux.wait_for("the totals of the new run", |screen| back(screen) && !screen.contains("\nchat"));
    close_span(&daemon, "after the restart", "small", 10);
    tmux.wait_for("a span of the new run", |screen| screen.contains("\nafter the"));
    tmux.run(&["send-keys", "-t", "top", "q"]);
    // The screen before is back.
    tmux.wait_for("the end", |screen| screen.contains("ended with 0") && !screen.contains("unattributed"));
}

/// The number of running processes of `wattspan top` on this daemon.
fn running_views(daemon: &TestDaemon) -> usize {
    let socket = daemon.socket().to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let is_view = |command: &Vec<u8>| {
        let mut words = command.split(|byte| *byte == 0);
        words.clone().any(|word| word == socket.as_bytes()) && words.any(|word| word == b"top")
    };
    commands.filter(is_view).count()
}

#[test]
fn a_terminal_that_is_closed_ends_the_view() {
    if Command::new("tmux").arg("-V").output().is_err() {
        return skip("tmux", "install tmux");
    }
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    // Without the signal that a closed terminal sends: a view that another program started may not get it.
    let view = format!("trap '' HUP; {}", session_of(&daemon, dir.path()));
    let tmux = Tmux::start(dir.path(), 80, &view);
    tmux.wait_for("the first frame", |screen| screen.contains("unattributed"));
    assert_eq!(running_views(&daemon), 1);
    drop(tmux);
    wait_until("the view ends", || running_views(&daemon) == 0);
}
