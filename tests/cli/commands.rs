//! The `wattspan` program from the command line, on simulated machines whose power is known.
//!
//! Covers the contract of the command line: exit statuses, signals, output streams, JSON fields, and that each figure
//! contains the truth within its error. Nothing depends on the speed of this machine: the expected energy is computed
//! from the edges that the account states.

use crate::programs;
use crate::support::{TestClient, domain_row, wait_until};

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A machine that draws 100 W all the time: 80 W in its package, 20 W in its memory.
const HUNDRED_WATTS: &str = include_str!("../fixtures/hundred-watts.toml");

struct CliFixture {
    dir: tempfile::TempDir,
    machine: PathBuf,
}

impl CliFixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = dir.path().join("machine.toml");
        std::fs::write(&machine, HUNDRED_WATTS).unwrap();
        CliFixture { dir, machine }
    }

    /// `wattspan` in an environment without daemon and terminal.
    fn bare(&self) -> Command {
        let mut command = Command::new(programs::wattspan());
        for variable in ["WATTSPAN_SOCKET", "NO_COLOR", "COLUMNS"] {
            command.env_remove(variable);
        }
        command.env("XDG_RUNTIME_DIR", self.dir.path()).stdin(Stdio::null());
        command
    }

    /// `wattspan` on the simulated machine.
    fn wattspan(&self, words: &[&str]) -> Command {
        let mut command = self.bare();
        command.arg("--replay").arg(&self.machine).args(words);
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.wattspan(words).output().unwrap()
    }
}

/// A `wattspand` on the simulated machine; killed on drop.
struct Daemon {
    process: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(fixture: &CliFixture) -> Self {
        let socket = fixture.dir.path().join("daemon.sock");
        let mut process = Command::new(env!("CARGO_BIN_EXE_wattspand"))
            .arg("--socket")
            .arg(&socket)
            .arg("--state-dir")
            .arg(fixture.dir.path())
            .arg("--replay")
            .arg(&fixture.machine)
            .env_remove("WATTSPAN_SOCKET")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It prints a line once it listens.
        let mut line = String::new();
        BufReader::new(process.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("daemon.sock"), "the daemon did not start: {line}");
        Daemon { process, socket }
    }

    fn output(&self, fixture: &CliFixture, words: &[&str]) -> Output {
        fixture.bare().arg("--socket").arg(&self.socket).args(words).output().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A proxy between `wattspan` and its daemon that holds each CloseSpan until the test releases it.
struct Relay {
    socket: PathBuf,
    /// One message for each held CloseSpan.
    blocked_closes: Receiver<()>,
    /// Releases one; once it is dropped, nothing is held any more.
    release: Sender<()>,
}

impl Relay {
    fn start(daemon: &Daemon) -> Self {
        let socket = daemon.socket.with_extension("relay");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = daemon.socket.clone();
        let ((holds, blocked_closes), (release, released)) = (channel(), channel());
        thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut server = UnixStream::connect(daemon).unwrap();
            let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut answers, &mut back));
            let mut bytes = [0; 65_536];
            while let Ok(count @ 1..) = client.read(&mut bytes) {
                if bytes[..count].windows(9).any(|part| part == b"CloseSpan") {
                    let _ = holds.send(());
                    let _ = released.recv();
                }
                server.write_all(&bytes[..count]).unwrap();
            }
            let _ = server.shutdown(std::net::Shutdown::Both);
        });
        Relay { socket, blocked_closes, release }
    }
}

/// Sends a signal and, where the system shows it, waits until it is delivered: equal pending signals merge into one.
fn deliver(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
    let pending = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        if status.lines().any(|line| line.starts_with("State:") && line.contains('Z')) {
            return false;
        }
        let waiting =
            status.lines().filter(|line| line.starts_with("ShdPnd:") || line.starts_with("SigPnd:"));
        waiting.flat_map(|line| line.split_whitespace().skip(1)).any(|bits| bits.contains(|c| c != '0'))
    };
    while pending() {
        thread::yield_now();
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error} in {:?}", text(bytes)))
}

/// How long a command runs whose energy is compared with the truth. Between an edge and the next reading the counters may
/// have moved up to their ceiling, so the error grows with the delay of this reading: a busy machine delays it by many
/// milliseconds, which a short command's energy does not outweigh.
const MEASURED_SECONDS: &str = "1";

/// Compares the account with the energy of a machine of constant power between the account's own edges.
fn assert_holds_the_truth(account: &Value, watts: u64) {
    let field = |name: &str| account[name].as_u64().unwrap_or_else(|| panic!("no {name} in {account}"));
    let truth_uj = watts * (field("closed_ns") - field("opened_ns")) / 1000;
    let (share_uj, error_uj) = (field("share_uj"), field("error_uj"));
    assert!(share_uj.abs_diff(truth_uj) <= error_uj, "{share_uj} ± {error_uj}, but truly {truth_uj}");
    assert!(error_uj < truth_uj / 10, "an error of {error_uj} says nothing of {truth_uj}");
}

#[test]
fn a_commands_exit_status_passes_through() {
    let fixture = CliFixture::new();
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 128 + 15)] {
        let output = fixture.output(&["run", "--", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(status), "{script}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("Energy of: sh -c"), "{}", text(&output.stderr));
    }
}

#[test]
fn the_status_passes_through_also_where_the_parent_ignores_the_end_of_children() {
    let fixture = CliFixture::new();
    let ignore = "import os, signal, sys\n\
                  signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
                  os.execv(sys.argv[1], sys.argv[1:])";
    for (script, status) in [("exit 0", 0), ("exit 3", 3)] {
        let wattspan = fixture.wattspan(&["run", "-r", "2", "--json", "-o", "-", "--", "sh", "-c"]);
        let output = Command::new("python3")
            .args(["-c", ignore])
            .arg(wattspan.get_program())
            .args(wattspan.get_args())
            .arg(script)
            .env("XDG_RUNTIME_DIR", fixture.dir.path())
            .env_remove("WATTSPAN_SOCKET")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
        assert_eq!(json(&output.stdout)["runs"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn a_command_that_does_not_start_gives_what_a_shell_gives() {
    let fixture = CliFixture::new();
    let missing = fixture.output(&["run", "--", "/nonexistent/program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", text(&missing.stderr));
    let locked = fixture.output(&["run", "--", fixture.machine.to_str().unwrap()]);
    assert_eq!(locked.status.code(), Some(126), "{}", text(&locked.stderr));
}

#[test]
fn a_signal_sent_to_us_reaches_the_command() {
    let fixture = CliFixture::new();
    let script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = fixture
        .wattspan(&["run", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));
    let mut report = String::new();
    child.stderr.take().unwrap().read_to_string(&mut report).unwrap();
    assert!(report.contains("Energy of: sh"), "{report}");
}

#[test]
fn signals_while_the_account_settles_cost_neither_the_report_nor_the_status() {
    let fixture = CliFixture::new();
    let daemon = Daemon::start(&fixture);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        let relay = Relay::start(&daemon);
        let mut command = fixture.bare();
        command.arg("--socket").arg(&relay.socket).args(["run", "--", "sh", "-c", "exit 7"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        relay.blocked_closes.recv().unwrap();
        for _ in 0..3 {
            deliver(&child, signal);
        }
        drop(relay.release);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{signal:?}: {:?}", output.status);
        let report = text(&output.stderr);
        assert!(report.contains("Energy of: sh") && report.contains("mean power"), "{signal:?}: {report}");
    }
}

#[test]
fn a_signal_while_an_account_settles_ends_the_repetition_only_where_it_means_the_end() {
    let fixture = CliFixture::new();
    let daemon = Daemon::start(&fixture);
    // Not INT, QUIT or HUP: if the tests run with those ignored, they end nothing.
    for (signal, runs) in [(Signal::TERM, 2), (Signal::USR1, 3), (Signal::USR2, 3)] {
        let relay = Relay::start(&daemon);
        let mut command = fixture.bare();
        command.arg("--socket").arg(&relay.socket);
        command.args(["run", "-r", "3", "--json", "-o", "-", "--", "true"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        relay.blocked_closes.recv().unwrap();
        relay.release.send(()).unwrap();
        relay.blocked_closes.recv().unwrap();
        for _ in 0..3 {
            deliver(&child, signal);
        }
        drop(relay.release);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{signal:?}: {:?}", output.status);
        let json_report = json(&output.stdout);
        let energies =
            json_report["runs"].as_array().unwrap().iter().filter(|run| run["account"].is_object());
        assert_eq!(energies.count(), runs, "{signal:?}: {json_report}");
    }
}

#[test]
fn a_signal_that_was_ignored_stays_ignored_in_the_command() {
    let fixture = CliFixture::new();
    let script = format!(
        "trap '' HUP; exec '{}' --replay '{}' run -- sh -c 'kill -HUP $$; exit 9'",
        programs::wattspan(),
        fixture.machine.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{}", text(&output.stderr));
}

#[test]
fn the_commands_output_is_its_own_and_the_report_stands_on_standard_error() {
    let fixture = CliFixture::new();
    let output = fixture.output(&["run", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(text(&output.stdout), "out\n");
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("err\n"), "{stderr}");
    for part in ["energy", "mean power", "time", "idle part", "package-0", "dram-0", "measured", " ± "] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert!(!stderr.contains('\x1b'), "colours in a pipe: {stderr:?}");
}

#[test]
fn a_report_file_gets_the_report_and_no_stream_does() {
    let fixture = CliFixture::new();
    let file = fixture.dir.path().join("report.json");
    let output =
        fixture.output(&["run", "--json", "--output", file.to_str().unwrap(), "--", "sh", "-c", "echo out"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n", ""));
    assert_eq!(json(&std::fs::read(file).unwrap())["runs"][0]["exit_status"], 0);
}

#[test]
fn an_unwritable_report_path_fails_before_the_command_runs() {
    let fixture = CliFixture::new();
    let mark = fixture.dir.path().join("mark");
    let output =
        fixture.output(&["run", "--output", "/nonexistent/report", "--", "touch", mark.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(!Path::new(&mark).exists());
}

#[test]
fn the_energy_of_a_command_on_a_known_machine_is_known_within_its_error() {
    let fixture = CliFixture::new();
    let output = fixture.output(&[
        "run",
        "--json",
        "-o",
        "-",
        "--name",
        "nap",
        "--attribute",
        "model=small",
        "--",
        "sleep",
        MEASURED_SECONDS,
    ]);
    let json_report = json(&output.stdout);
    let account = &json_report["runs"][0]["account"];
    assert_holds_the_truth(account, 100);
    assert!(account["share_uj"].as_u64().unwrap() >= 100_000_000, "1 s at 100 W are 100 J: {account}");
    assert_eq!(account["state"], "settled");
    assert_eq!(account["grade"], "measured");
    assert_eq!(account["name"], "nap");
    assert_eq!(account["attributes"]["model"], "small");
    assert_eq!(json_report["meter"]["kind"], "embedded");
    assert_eq!(json_report["command"], serde_json::json!(["sleep", MEASURED_SECONDS]));
    for (domain, watts) in [("package-0", 80), ("dram-0", 20)] {
        let shares = account["domains"].as_array().unwrap();
        let mut share = shares.iter().find(|share| share["domain"] == domain).unwrap().clone();
        share["opened_ns"] = account["opened_ns"].clone();
        share["closed_ns"] = account["closed_ns"].clone();
        assert_holds_the_truth(&share, watts);
    }
}

#[test]
fn only_the_domain_that_was_asked_for_is_counted() {
    let fixture = CliFixture::new();
    let words = ["run", "--json", "-o", "-", "--domain", "dram-0", "--", "sleep", MEASURED_SECONDS];
    let output = fixture.output(&words);
    assert_holds_the_truth(&json(&output.stdout)["runs"][0]["account"], 20);
    let unknown = fixture.output(&["run", "--domain", "gpu-9", "--", "true"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("gpu-9"), "{}", text(&unknown.stderr));
}

#[test]
fn repeated_runs_have_a_mean_and_a_spread() {
    let fixture = CliFixture::new();
    let json_report =
        json(&fixture.output(&["run", "-r", "3", "--json", "-o", "-", "--", "sleep", "0.1"]).stdout);
    let runs = json_report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    let shares: Vec<u64> = runs.iter().map(|run| run["account"]["share_uj"].as_u64().unwrap()).collect();
    let spread = &json_report["share_uj"];
    assert_eq!(spread["count"], 3);
    assert_eq!(spread["min"].as_u64(), shares.iter().min().copied());
    assert_eq!(spread["max"].as_u64(), shares.iter().max().copied());
    assert!(spread["mean"].as_u64().unwrap().abs_diff(shares.iter().sum::<u64>() / 3) <= 1);
    assert!(spread["standard_deviation"].is_u64());

    let report = fixture.output(&["run", "-r", "2", "--", "true"]).stderr;
    for part in ["2 runs", "MEAN", "STDDEV", "MIN", "MAX", "mean power"] {
        assert!(text(&report).contains(part), "no {part:?} in {}", text(&report));
    }
}

#[test]
fn the_first_failure_of_repeated_runs_is_the_status_and_a_signal_ends_them() {
    let fixture = CliFixture::new();
    let count = fixture.dir.path().join("count");
    let script = format!("echo x >> '{0}'; exit $(wc -l < '{0}')", count.display());
    let output = fixture.output(&["run", "-r", "3", "--", "sh", "-c", &script]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), 3);
    let killed = fixture.output(&["run", "-r", "3", "--json", "-o", "-", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(killed.status.code(), Some(143));
    assert_eq!(json(&killed.stdout)["runs"].as_array().unwrap().len(), 1);
}

#[test]
fn the_runs_before_one_that_cannot_start_are_reported() {
    let fixture = CliFixture::new();
    let once = fixture.dir.path().join("once");
    // The command removes its own name in the run given last.
    let run = |last: u32, status: i32, words: &[&str]| {
        let _ = std::fs::remove_file(&once);
        std::os::unix::fs::symlink("/bin/sh", &once).unwrap();
        let count = fixture.dir.path().join("count");
        let _ = std::fs::remove_file(&count);
        let once = once.to_str().unwrap();
        let script = format!(
            "echo x >> '{0}'; [ $(wc -l < '{0}') != {last} ] || rm \"$0\"; exit {status}",
            count.display()
        );
        fixture.output(&[&["run", "-r", "4"], words, &["--", once, "-c", &script, once]].concat())
    };
    let output = run(2, 0, &[]);
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(127), "{printed}");
    let (report, error) = printed.split_once("wattspan: cannot run").unwrap_or_else(|| panic!("{printed}"));
    assert!(report.contains("Energy of:") && report.contains(", 2 runs"), "{printed}");
    assert!(error.contains("once"), "{printed}");
    let output = run(1, 3, &["--json", "-o", "-"]);
    assert_eq!(output.status.code(), Some(3), "the first status that is not 0: {}", text(&output.stderr));
    let json_report = json(&output.stdout);
    assert_eq!(json_report["exit_status"], 3);
    let runs = json_report["runs"].as_array().unwrap();
    assert!(runs.len() == 1 && runs[0]["account"]["share_uj"].is_u64(), "{json_report}");
    assert!(text(&output.stderr).contains("wattspan: cannot run"), "{}", text(&output.stderr));
    let output = run(1, 0, &["--json", "-o", "-"]);
    assert_eq!((output.status.code(), &json(&output.stdout)["exit_status"]), (Some(127), &127.into()));
}

#[test]
fn a_signal_that_the_command_handles_ends_the_repetition_where_it_means_the_end() {
    let fixture = CliFixture::new();
    // Not INT, QUIT or HUP: if the tests run with those ignored, a shell cannot trap them.
    for (signal, name, runs) in
        [(Signal::TERM, "TERM", 1), (Signal::USR1, "USR1", 3), (Signal::USR2, "USR2", 3)]
    {
        let count = fixture.dir.path().join(name);
        // Only the first run waits for its signal; it exits with 0.
        let script = format!(
            "echo x >> '{0}'; [ $(wc -l < '{0}') = 1 ] || exit 0; trap 'exit 0' {name}; echo ready; \
             for _ in $(seq 400); do sleep 0.05; done; exit 9",
            count.display()
        );
        let mut child = fixture
            .wattspan(&["run", "-r", "3", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
        assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), runs, "{name}");
    }
}

#[test]
fn a_named_daemon_that_does_not_answer_is_status_4_and_never_replaced() {
    let fixture = CliFixture::new();
    let socket = fixture.dir.path().join("nobody.sock");
    for words in [&["read"][..], &["top"], &["doctor"], &["spans"], &["balance"], &["run", "--", "true"]] {
        let output = fixture.bare().arg("--socket").arg(&socket).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{words:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("nobody.sock"), "{}", text(&output.stderr));
        let by_variable = fixture.bare().env("WATTSPAN_SOCKET", &socket).args(words).output().unwrap();
        assert_eq!(by_variable.status.code(), Some(4), "{words:?}: {}", text(&by_variable.stderr));
    }
}

#[test]
fn a_machine_with_nothing_that_counts_is_status_3_and_the_command_is_not_run() {
    let fixture = CliFixture::new();
    let stuck = HUNDRED_WATTS.replace("quantum_uj", "stuck = true\nquantum_uj");
    std::fs::write(&fixture.machine, stuck).unwrap();
    let mark = fixture.dir.path().join("mark");
    for words in [&["read"][..], &["top"], &["doctor"], &["run", "--", "touch", mark.to_str().unwrap()]] {
        let output = fixture.output(words);
        assert_eq!(output.status.code(), Some(3), "{words:?}: {}", text(&output.stderr));
        assert!(!text(&output.stdout).contains(" 0 W"), "missing is not zero: {}", text(&output.stdout));
    }
    assert!(!mark.exists());
    let reasons = fixture.output(&["read"]).stderr;
    assert!(text(&reasons).contains("package-0: "), "no reason in {}", text(&reasons));
}

/// A sysfs with the counters of a package, which a thread moves until the drop, and of a platform, which never moves.
struct FakeCounters {
    sysfs: PathBuf,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FakeCounters {
    fn start(dir: &Path) -> Self {
        let sysfs = dir.join("sys");
        for (zone, name) in [("intel-rapl:0", "package-0"), ("intel-rapl:1", "psys")] {
            let zone = sysfs.join("class/powercap").join(zone);
            std::fs::create_dir_all(&zone).unwrap();
            std::fs::write(zone.join("name"), format!("{name}\n")).unwrap();
            std::fs::write(zone.join("max_energy_range_uj"), "262143328850\n").unwrap();
            std::fs::write(zone.join("energy_uj"), "1000000\n").unwrap();
        }
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let mut counters = FakeCounters { sysfs, stop, thread: None };
        let (stopped, path) = (std::sync::Arc::clone(&counters.stop), counters.path("intel-rapl:0"));
        counters.thread = Some(thread::spawn(move || {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            for at in 1.. {
                if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let text = format!("{}\n", 1_000_000 + at * 20_000_u64);
                std::os::unix::fs::FileExt::write_at(&file, text.as_bytes(), 0).unwrap();
                thread::sleep(std::time::Duration::from_micros(500));
            }
        }));
        counters
    }

    fn path(&self, zone: &str) -> PathBuf {
        self.sysfs.join("class/powercap").join(zone).join("energy_uj")
    }

    /// A configuration that reads these counters only.
    fn config(&self, dir: &Path) -> PathBuf {
        let path = dir.join("wattspan.toml");
        let text = format!("[source]\nenabled = [\"powercap\"]\nsysfs_root = {:?}\n", self.sysfs);
        wattspan_system::private_file::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    }
}

impl Drop for FakeCounters {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_counter_that_is_still_is_no_part_of_the_account_and_one_that_starts_under_the_command_is_named() {
    let fixture = CliFixture::new();
    let counters = FakeCounters::start(fixture.dir.path());
    let config = counters.config(fixture.dir.path());
    // On a busy machine the thread may not move its counter while the counters are tested.
    let report = |command: &str| {
        let attempt = |_| {
            std::fs::write(counters.path("intel-rapl:1"), "1000000\n").unwrap();
            let mut wattspan = fixture.bare();
            wattspan.args(["--json", "--config"]).arg(&config);
            let output = wattspan.args(["run", "-o", "-", "--", "sh", "-c", command]).output().unwrap();
            (output.status.code() != Some(3)).then(|| json(&output.stdout)["runs"][0].clone())
        };
        (0..50).find_map(attempt).unwrap()
    };
    let domains = |run: &Value| {
        let shares = run["account"]["domains"].as_array().unwrap().iter();
        shares.map(|share| share["domain"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let still = report("sleep 0.3");
    assert_eq!(domains(&still), ["package-0"]);
    assert_eq!(still.get("not_in_account"), None, "{still}");
    assert!(still["account"]["share_uj"].as_u64().is_some_and(|uj| uj > 0), "{still}");
    let psys = counters.path("intel-rapl:1");
    let moves =
        format!("for n in 2 3 4 5 6 7 8 9; do sleep 0.05; echo 10${{n}}0000 1<> {}; done", psys.display());
    let moving = report(&moves);
    assert_eq!(domains(&moving), ["package-0"]);
    assert_eq!(moving["not_in_account"], serde_json::json!(["psys"]), "{moving}");
}

#[test]
fn a_denied_user_gets_status_5_and_a_remedy() {
    let fixture = CliFixture::new();
    let socket = fixture.dir.path().join("strict.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let no = br#"{"error":"org.wattspan.Meter.AccessDenied","parameters":{"needs":"span"}}"#;
            let mut request = [0; 4096];
            while stream.read(&mut request).unwrap_or(0) > 0 {
                stream.write_all(no).unwrap();
                stream.write_all(&[0]).unwrap();
            }
        }
    });
    for words in [&["read"][..], &["top"], &["doctor"], &["spans"], &["balance"], &["run", "--", "true"]] {
        let output = fixture.bare().arg("--socket").arg(&socket).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{words:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("usermod -aG"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_command_measured_by_a_daemon_is_in_its_list_and_its_balance() {
    let fixture = CliFixture::new();
    let daemon = Daemon::start(&fixture);
    let watching = fixture
        .bare()
        .arg("--socket")
        .arg(&daemon.socket)
        .args(["spans", "--watch", "--json", "--count", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The stream shows spans that settle after it starts, and nothing shows when it starts: so the test makes spans
    // until one appears.
    let mut watching = Some(watching);
    let mut spans = Vec::new();
    let seen = loop {
        let run = daemon.output(&fixture, &["run", "--json", "-o", "-", "--", "sleep", MEASURED_SECONDS]);
        let json_report = json(&run.stdout);
        assert_eq!(json_report["meter"]["kind"], "daemon");
        assert_holds_the_truth(&json_report["runs"][0]["account"], 100);
        spans.push(json_report["runs"][0]["account"].clone());
        if watching.as_mut().unwrap().try_wait().unwrap().is_some() {
            break json(&watching.take().unwrap().wait_with_output().unwrap().stdout);
        }
    };
    assert!(spans.contains(&seen), "{seen} is none of {spans:?}");

    // A disk that takes seconds for a write is reported in a reply, and no longer once the account is written.
    let without_durability = |mut account: Value| {
        assert!(
            account.as_object_mut().unwrap().remove("durable").is_some_and(|durable| durable.is_boolean())
        );
        account
    };
    let one = daemon.output(&fixture, &["spans", "--json", seen["span"].as_str().unwrap()]);
    assert_eq!(without_durability(json(&one.stdout)), without_durability(seen));
    let recent = daemon.output(&fixture, &["spans", "--json"]);
    let listed: Vec<Value> =
        text(&recent.stdout).lines().map(|line| without_durability(json(line.as_bytes()))).collect();
    let expected: Vec<Value> = spans.iter().cloned().map(without_durability).collect();
    let latest = spans.len().saturating_sub(20);
    assert_eq!(listed, expected[latest..], "the recent ones, the latest last");
    let unknown = daemon.output(&fixture, &["spans", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("nobody"), "{}", text(&unknown.stderr));

    let balance = json(&daemon.output(&fixture, &["balance", "--json"]).stdout);
    let shares: u64 = spans.iter().map(|account| account["share_uj"].as_u64().unwrap()).sum();
    let sum = |field: &str| -> u64 {
        balance["balance"].as_array().unwrap().iter().map(|domain| domain[field].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("attributed_uj"), shares);
    assert_eq!(sum("measured_uj"), sum("attributed_uj") + sum("unattributed_uj"));
    assert_eq!(daemon.output(&fixture, &["balance"]).status.code(), Some(0));
}

#[test]
fn a_daemon_that_exits_leaves_the_energy_unknown_and_the_status_unchanged() {
    let fixture = CliFixture::new();
    let daemon = Daemon::start(&fixture);
    let script = format!("kill -9 {}; exit 6", daemon.process.id());
    let output = daemon.output(&fixture, &["run", "--", "sh", "-c", &script]);
    assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("unknown (the daemon closed"), "{}", text(&output.stderr));
}

#[test]
fn a_closed_output_pipe_is_no_failure() {
    let fixture = CliFixture::new();
    let mut reading = fixture
        .wattspan(&["read", "--json", "--interval", "0.01"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(reading.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ended = reading.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(0), ""));
}

#[test]
fn a_usage_error_is_status_2() {
    let fixture = CliFixture::new();
    for words in [&["run"][..], &["read", "--interval", "0"], &["run", "-r", "0", "true"], &["dance"]] {
        assert_eq!(fixture.output(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn a_url_that_is_refused_is_printed_without_its_password() {
    let fixture = CliFixture::new();
    let commands: [&[&str]; 6] = [
        &["proxy", "--upstream"],
        &["export", "otlp", "--endpoint"],
        &["ipw", "run", "--url"],
        &["ipw", "sweep", "--url"],
        // In a wrong place.
        &["proxy"],
        &[],
    ];
    for url in [
        "http://user:s3cret@node-7:8000",
        "https://s3cret@node-7/v1",
        "HTTP://user:a/s3cret@node-7",
        "http://user:a@s3cret@node-7",
        "http://user:s3cret@node-7/?key=s3cret#s3cret",
        "http://user:a?s3cret@node-7",
        "http://user:a\u{e9} s3cret@node-7",
    ] {
        for command in commands {
            let output = fixture.bare().args(command).arg(url).output().unwrap();
            let printed = format!("{}{}", text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(2), "{command:?} {url}: {printed}");
            assert!(
                printed.contains("http://***") || printed.contains("https://***"),
                "{command:?} {url}: {printed}"
            );
            assert!(!printed.contains("cret") && !printed.contains("user:"), "{command:?} {url}: {printed}");
        }
    }
    // Without a scheme, it is a URL by the option only.
    let output = fixture.bare().args(["proxy", "--upstream", "user:s3cret@node-7:8000"]).output().unwrap();
    let printed = text(&output.stderr);
    assert!(printed.contains("'***@node-7:8000'") && !printed.contains("cret"), "{printed}");
    // The reason that another option's parser states repeats the value.
    for url in ["http://user:s3cret@node-7/v1", "http://user:a\"s3cret@node-7/v1"] {
        let output = fixture.bare().args(["proxy", "--listen", url]).output().unwrap();
        let printed = text(&output.stderr);
        assert!(printed.contains("***@node-7/v1") && !printed.contains("cret"), "{printed}");
    }
    // Another value with an @ is printed as it is.
    let output = fixture.bare().args(["proxy", "--body-timeout", "a@b"]).output().unwrap();
    assert!(text(&output.stderr).contains("'a@b'"), "{}", text(&output.stderr));
}

#[test]
fn a_reading_shows_every_domain_and_the_machine() {
    let fixture = CliFixture::new();
    let output = fixture.output(&["read"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for part in ["package-0", "dram-0", "this machine:", "W", "measured"] {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
}

#[test]
fn readings_in_json_are_one_object_a_line_with_units_in_their_keys() {
    let fixture = CliFixture::new();
    let output = fixture.output(&["read", "--json", "--interval", "0.1", "--count", "3"]);
    let ticks: Vec<Value> = text(&output.stdout).lines().map(|line| json(line.as_bytes())).collect();
    assert_eq!(ticks.len(), 3);
    for pair in ticks.windows(2) {
        let now = |tick: &Value| tick["now_ns"].as_u64().unwrap();
        let package = |tick: &Value| tick["domains"][0]["energy_uj"].as_u64().unwrap();
        assert!(now(&pair[0]) < now(&pair[1]));
        assert!(package(&pair[0]) < package(&pair[1]));
    }
}

#[test]
fn doctor_lists_every_domain_and_the_callers_access() {
    let fixture = CliFixture::new();
    let output = fixture.output(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let json_report = json(&output.stdout);
    assert_eq!(json_report["access"], "admin");
    assert_eq!(json_report["meter"]["kind"], "embedded");
    assert!(json_report["version"].is_string() && json_report["absent"].is_array());
    let domains = json_report["domains"].as_array().unwrap();
    assert_eq!(domains.len(), 2);
    for domain in domains {
        assert_eq!(domain["source"], "replay", "{domain}");
        assert_eq!(domain["liveness"], "live", "{domain}");
        for figure in ["update_interval_ns", "quantum_uj", "read_cost_ns", "energy_uj", "power_mw"] {
            assert!(domain[figure].is_number(), "no {figure} in {domain}");
        }
    }
    let shown = fixture.output(&["doctor"]).stdout;
    for part in ["DOMAIN", "UPDATES", "STEP", "your access: admin", "package-0", "live", "counted"] {
        assert!(text(&shown).contains(part), "no {part:?} in {}", text(&shown));
    }
}

#[test]
fn doctor_compares_the_battery_with_the_sum_and_never_adds_it() {
    let fixture = CliFixture::new();
    let battery =
        "[[domain]]\nname = \"battery-0\"\nkind = \"battery\"\nprofile = [[1.0, 125]]\nquantum_uj = 61\n";
    std::fs::write(&fixture.machine, format!("{HUNDRED_WATTS}\n{battery}")).unwrap();
    let json_report = json(&fixture.output(&["doctor", "--json"]).stdout);
    let domains = json_report["domains"].as_array().unwrap();
    let battery = domains.iter().find(|domain| domain["name"] == "battery-0").unwrap();
    assert_eq!(battery["counted"], false);
    let shown = fixture.output(&["doctor"]).stdout;
    let words: Vec<_> = text(&shown).split_whitespace().collect();
    assert!(words.join(" ").contains("The battery delivers 12"), "{}", text(&shown));
    assert!(text(&shown).contains("the counted domains together"), "{}", text(&shown));
}

#[test]
fn doctor_compares_mechanisms_by_the_energy_of_the_same_machine() {
    let fixture = CliFixture::new();
    // Of what the machine uses, the battery shows 25 % more than the platform's counter, and the package 20 % less.
    let domain = |name: &str, kind: &str, watts: u32| {
        format!(
            "[[domain]]\nname = \"{name}\"\nkind = \"{kind}\"\nprofile = [[1.0, {watts}]]\nquantum_uj = 61\n"
        )
    };
    let machine = [
        domain("psys", "psys", 100),
        domain("package-0", "package", 80),
        domain("battery-0", "battery", 125),
    ];
    std::fs::write(&fixture.machine, machine.concat()).unwrap();
    let output = fixture.output(&["doctor", "--compare", "1", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = json(&output.stdout);
    let pairs = report["compared"].as_array().unwrap();
    assert_eq!(pairs.len(), 2, "{report}");
    for (pair, second, watts, ppm) in
        [(&pairs[0], "battery-0", 125.0, 250_000_i64), (&pairs[1], "package-0", 80.0, -200_000)]
    {
        assert_eq!(
            (&pair["first"]["domains"][0], &pair["second"]["domains"][0]),
            (&"psys".into(), &second.into())
        );
        let shown = pair["difference_ppm"].as_i64().unwrap();
        assert!(shown.abs_diff(ppm) < 20_000, "{shown} and not {ppm}: {report}");
        let period_s = pair["period_ns"].as_f64().unwrap() / 1e9;
        let energy = |side: &str| pair[side]["energy_uj"].as_f64().unwrap() / 1e6;
        assert!(period_s > 0.5, "{report}");
        assert!((energy("first") / period_s - 100.0).abs() < 2.0, "{report}");
        assert!((energy("second") / period_s - watts).abs() < 2.0, "{report}");
    }
    let shown = fixture.output(&["doctor", "--compare", "1"]).stdout;
    let battery = text(&shown).lines().find(|line| line.contains("battery-0")).unwrap_or_default();
    let percent = battery.split_whitespace().find(|word| word.starts_with('+')).unwrap_or_default();
    assert!((percent.parse::<f64>().unwrap() - 25.0).abs() < 2.0, "{}", text(&shown));
    let refused = fixture.bare().args(["--socket", "x", "doctor", "--compare", "1"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}

#[test]
fn doctor_compares_under_a_load_of_the_user_which_ends_with_it() {
    let fixture = CliFixture::new();
    let pid_file = fixture.machine.with_extension("pid");
    let load = format!("echo $$ > '{}'; while :; do sleep 0.05; done", pid_file.display());
    let output = fixture.output(&["doctor", "--compare", "1", "--json", "--load", &load]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = json(&output.stdout);
    assert_eq!(report["load"], "command");
    assert!(report["compared"].as_array().unwrap().iter().all(|pair| pair["loaded"] == true), "{report}");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "the load is left");
    assert_eq!(json(&fixture.output(&["doctor", "--compare", "1", "--json"]).stdout)["load"], "cpu");
    // A load that is over before the comparison is none.
    let short = fixture.output(&["doctor", "--compare", "1", "--load", "true"]);
    assert_eq!(short.status.code(), Some(1));
    assert!(text(&short.stderr).contains("--load ended"), "{}", text(&short.stderr));
    let alone = fixture.output(&["doctor", "--load", "true"]);
    assert_eq!(alone.status.code(), Some(2), "{}", text(&alone.stderr));
}

#[test]
fn a_narrow_terminal_loses_no_figure() {
    let fixture = CliFixture::new();
    let narrow = fixture.wattspan(&["doctor"]).env("COLUMNS", "40").output().unwrap().stdout;
    for part in ["SOURCE", "STEP", "POWER", "package-0", "dram-0"] {
        assert!(text(&narrow).contains(part), "no {part} in {}", text(&narrow));
    }
    assert!(text(&narrow).lines().all(|line| line.chars().count() <= 40), "{}", text(&narrow));
}

#[test]
fn completions_and_manual_pages_are_made_for_both_programs() {
    let fixture = CliFixture::new();
    for shell in ["bash", "zsh", "fish"] {
        for (more, program) in [(&[][..], "wattspan"), (&["--daemon"], "wattspand")] {
            let words = [&["generate", "completions", shell], more].concat();
            let output = fixture.bare().args(words).output().unwrap();
            assert!(text(&output.stdout).contains(program), "{shell} {program}");
        }
    }
    let dir = fixture.dir.path().join("man");
    let output = fixture.bare().args(["generate", "man"]).arg(&dir).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for page in ["wattspan.1", "wattspan-run.1", "wattspan-doctor.1", "wattspand.8"] {
        let page = std::fs::read_to_string(dir.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(page.contains(".TH"));
    }
    let exit = std::fs::read_to_string(dir.join("wattspan.1")).unwrap();
    assert!(exit.contains("no energy measured"), "the exit statuses are not in the manual: {exit}");
}

#[test]
fn history_is_found_by_age_name_and_attribute_after_the_daemon_was_killed() {
    let fixture = CliFixture::new();
    let daemon = Daemon::start(&fixture);
    let mut accounts: Vec<Value> = Vec::new();
    // After a write that took seconds, a reply does not wait for the disk; a later one does again.
    wait_until("an account is durable", || {
        let run = daemon.output(&fixture, &["run", "--json", "-o", "-", "--", "sleep", "0.05"]);
        accounts.push(json(&run.stdout)["runs"][0]["account"].take());
        accounts.last().unwrap()["durable"] == true
    });
    drop(daemon);
    // The earlier ones were written before it.
    accounts.iter_mut().for_each(|account| account["durable"] = true.into());
    let daemon = Daemon::start(&fixture);
    let name = accounts[0]["name"].as_str().unwrap();
    let listed = |words: &[&str]| {
        let mut output = None;
        wait_until("the disk responds", || {
            let listed = daemon.output(&fixture, &[&["spans", "--json"], words].concat());
            let responds = !text(&listed.stderr).contains("the disk of the ledger does not respond");
            output = Some(listed);
            responds
        });
        let output = output.unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| json(line.as_bytes())).collect::<Vec<Value>>()
    };
    for words in
        [&["--since", "1h"][..], &["--name", name], &["--state", "settled"], &["--since", "2020-01-01"]]
    {
        assert_eq!(listed(words), accounts, "{words:?}");
    }
    for words in [&["--since", "2200-01-01"][..], &["--name", "other"], &["--attribute", "model=none"]] {
        assert!(listed(words).is_empty(), "{words:?}");
    }
    for words in [["--since", "yesterday"], ["--attribute", "model"], ["--state", "open"]] {
        assert_eq!(
            daemon.output(&fixture, &["spans", words[0], words[1]]).status.code(),
            Some(2),
            "{words:?}"
        );
    }
    let doctor = daemon.output(&fixture, &["doctor"]);
    assert!(text(&doctor.stdout).contains("Accounts are on disk"), "{}", text(&doctor.stdout));
}

/// Nested domains, the outermost slow: the energy of a short command is below its error.
const NESTED: &str = r#"
[[domain]]
name = "core-0"
kind = "core"
parent = "package-0"
profile = [[1.0, 50]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "package-0"
kind = "package"
parent = "psys"
profile = [[1.0, 80]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "psys"
kind = "psys"
profile = [[1.0, 100]]
update_ns = 100_000_000
quantum_uj = 61
ceiling_w = 9000
"#;

/// The row of a table that names a domain.
fn row<'a>(table: &'a str, domain: &str) -> &'a str {
    let named = |line: &&str| line.split_whitespace().next() == Some(domain);
    table.lines().find(named).unwrap_or_else(|| panic!("no row of {domain} in {table}"))
}

#[test]
fn a_command_too_short_for_a_counter_says_so_and_json_says_why() {
    let fixture = CliFixture::new();
    std::fs::write(&fixture.machine, NESTED).unwrap();
    let report = fixture.output(&["run", "--", "sleep", "0.02"]).stderr;
    let report = text(&report);
    let energy = row(report, "energy");
    assert!(energy.contains("at most ") && !energy.contains('±'), "{report}");
    assert!(row(report, "mean").contains("at most "), "{report}");
    let short = report.lines().find(|line| line.trim_start().starts_with("too short")).unwrap();
    assert!(short.contains("for psys (") && !short.contains("core-0"), "{report}");
    assert!(
        row(report, "psys").contains("at most ") && row(report, "psys").contains("too short"),
        "{report}"
    );
    let repeated = fixture.output(&["run", "-r", "2", "--", "sleep", "0.02"]).stderr;
    let repeated = text(&repeated);
    assert!(row(repeated, "energy").contains("at most ") && repeated.contains("for psys"), "{repeated}");

    let json_report = json(&fixture.output(&["run", "--json", "-o", "-", "--", "sleep", "0.02"]).stdout);
    let run = &json_report["runs"][0];
    let short = run["too_short"].as_array().unwrap();
    let psys = short.iter().find(|counter| counter["domain"] == "psys").unwrap();
    assert!(
        ["shorter_than_update_interval", "error_not_below_share"].contains(&psys["reason"].as_str().unwrap()),
        "{psys}"
    );
    assert!(psys["duration_ns"].is_u64(), "{psys}");
    for field in ["share_uj", "error_uj"] {
        assert!(run["account"][field].is_u64(), "a number is missing: {run}");
    }

    let long = fixture.output(&["run", "--domain", "package-0", "--", "sleep", "0.3"]).stderr;
    assert!(!text(&long).contains("too short"), "300 steps of its counter are enough: {}", text(&long));
}

#[test]
fn a_span_shorter_than_the_update_interval_is_too_short_also_in_the_lists() {
    let fixture = CliFixture::new();
    // Far longer than the command takes on a busy machine.
    let slow = NESTED.replace("update_ns = 100_000_000", "update_ns = 1_000_000_000");
    assert_ne!(slow, NESTED);
    std::fs::write(&fixture.machine, slow).unwrap();
    let daemon = Daemon::start(&fixture);
    let mut client = TestClient::from_stream(UnixStream::connect(&daemon.socket).unwrap());
    // While a span is open, the counters are read often enough to find the interval.
    let held = serde_json::json!({ "span": "held", "weight": 0.0 });
    client.call("OpenSpan", held);
    wait_until("the update interval is known", || {
        let info = client.call("GetInfo", serde_json::json!({}));
        domain_row(&info["domains"], "psys")["update_interval_ns"].is_u64()
    });
    client.call("CancelSpan", serde_json::json!({ "span": "held" }));
    let report = daemon.output(&fixture, &["run", "--", "true"]).stderr;
    assert!(row(text(&report), "too").contains("psys (updates every "), "{}", text(&report));
    let json_report = json(&daemon.output(&fixture, &["run", "--json", "-o", "-", "--", "true"]).stdout);
    assert!(json_report["runs"][0]["too_short"][0]["update_interval_ns"].is_u64(), "{json_report}");
    let span = json_report["runs"][0]["account"]["span"].as_str().unwrap();
    let one = daemon.output(&fixture, &["spans", span]).stdout;
    assert!(row(text(&one), "energy").contains("at most ") && text(&one).contains("psys"), "{}", text(&one));
    let list = daemon.output(&fixture, &["spans"]).stdout;
    assert!(text(&list).contains("at most "), "{}", text(&list));
    let one = json(&daemon.output(&fixture, &["spans", "--json", span]).stdout);
    assert!(one["too_short"].as_array().unwrap().iter().any(|counter| counter["domain"] == "psys"), "{one}");
    assert!(one["share_uj"].is_u64(), "{one}");
}

#[test]
fn a_counter_that_moves_less_often_than_it_is_read_shows_no_power_of_zero() {
    let fixture = CliFixture::new();
    std::fs::write(&fixture.machine, NESTED).unwrap();
    let lines = fixture.output(&["read", "--interval", "0.02", "--count", "4"]).stdout;
    let lines: Vec<&str> = text(&lines).lines().collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines[1..].iter().any(|line| line.contains("too short")), "{lines:?}");
    assert!(!lines[1..].iter().any(|line| line.contains(" 0 mW")), "{lines:?}");
    let csv = fixture.output(&["read", "--csv", "--interval", "0.02", "--count", "4"]).stdout;
    let psys: Vec<Vec<String>> = text(&csv).lines().map(cells).filter(|line| line[1] == "psys").collect();
    assert!(psys.len() == 4 && psys.iter().any(|line| line[2].is_empty() && !line[4].is_empty()), "{psys:?}");
    assert!(psys.iter().all(|line| line[2] != "0.000"), "{psys:?}");
}

#[test]
fn domain_tables_show_nesting_and_what_the_total_counts() {
    let fixture = CliFixture::new();
    std::fs::write(&fixture.machine, NESTED).unwrap();
    let daemon = Daemon::start(&fixture);
    let run = daemon.output(&fixture, &["run", "--json", "-o", "-", "--", "sleep", "0.1"]);
    let span = json(&run.stdout)["runs"][0]["account"]["span"].as_str().unwrap().to_owned();
    let shown = |words: &[&str]| {
        let output = daemon.output(&fixture, words);
        format!("{}{}", text(&output.stdout), text(&output.stderr))
    };
    let info = json(&daemon.output(&fixture, &["doctor", "--json"]).stdout);
    let counted = |name: &str| {
        let domains = info["domains"].as_array().unwrap();
        domains.iter().find(|domain| domain["name"] == name).unwrap()["counted"] == true
    };
    for words in [
        &["run", "--", "true"][..],
        &["run", "-r", "2", "--", "true"],
        &["spans", &span],
        &["read"],
        &["doctor"],
        &["balance"],
    ] {
        let table = shown(words);
        for (depth, name) in [(0, "psys"), (1, "package-0"), (2, "core-0")] {
            let row = row(&table, name);
            assert!(row.starts_with(&format!("{}{name}", "  ".repeat(depth + 1))), "{words:?}: {table}");
            assert_eq!(row.contains("not counted"), !counted(name), "{words:?}: {row}");
            assert!(row.contains("counted"), "{words:?}: {row}");
        }
        let place = |name: &str| table.lines().position(|line| line.trim_start().starts_with(name)).unwrap();
        assert!(place("psys") < place("package-0") && place("package-0") < place("core-0"), "{table}");
    }
}

#[test]
fn daemon_commands_reject_replay_and_config() {
    let fixture = CliFixture::new();
    let daemon = Daemon::start(&fixture);
    for verb in ["spans", "balance", "reload"] {
        for flag in ["--replay", "--config"] {
            let machine = fixture.machine.to_str().unwrap();
            let output = fixture
                .bare()
                .env("WATTSPAN_SOCKET", &daemon.socket)
                .args([verb, flag, machine])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{verb} {flag}: {}", text(&output.stdout));
            assert!(
                output.stdout.is_empty() && text(&output.stderr).contains(flag),
                "{}",
                text(&output.stderr)
            );
        }
    }
    // --replay overrides the environment, and conflicts with --socket.
    let mut own = fixture.bare();
    own.env("WATTSPAN_SOCKET", &daemon.socket).arg("--replay").arg(&fixture.machine);
    let json_report = json(&own.args(["doctor", "--json"]).output().unwrap().stdout);
    assert_eq!(json_report["meter"]["kind"], "embedded");
    let mut both = fixture.bare();
    both.arg("--replay").arg(&fixture.machine).args(["doctor", "--socket"]).arg(&daemon.socket);
    assert_eq!(both.output().unwrap().status.code(), Some(2));
}

#[test]
fn help_is_a_command_at_every_level_and_shows_all_of_them() {
    let fixture = CliFixture::new();
    let help = |words: &[&str]| {
        let output = fixture.bare().args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    for (words, same) in
        [(&["help", "run"][..], &["run", "--help"][..]), (&["help", "ipw", "run"], &["ipw", "run", "--help"])]
    {
        assert_eq!(help(words), help(same), "{words:?}");
    }
    assert!(help(&["help"]).lines().any(|line| line.trim_start().starts_with("generate ")));
}

#[test]
fn a_proxy_listens_at_a_hosts_name() {
    let fixture = CliFixture::new();
    let daemon = Daemon::start(&fixture);
    let mut proxy = fixture.bare();
    proxy.arg("--socket").arg(&daemon.socket);
    proxy.args(["proxy", "--listen", "localhost:0", "--upstream", "http://localhost:1"]);
    let mut proxy = proxy.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(proxy.stderr.take().unwrap()).lines();
    let listens = lines.any(|line| line.unwrap().contains("listening at http://"));
    let _ = proxy.kill();
    proxy.wait().unwrap();
    assert!(listens);
}

/// The cells of a CSV row (RFC 4180), for files whose cells contain no line break.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut().unwrap().push(c),
        }
    }
    cells
}

#[test]
fn readings_are_written_as_comma_separated_values_with_the_time() {
    let fixture = CliFixture::new();
    let named = HUNDRED_WATTS.replace("\"dram-0\"", "\"=dram, 0\"");
    std::fs::write(&fixture.machine, named).unwrap();
    let output = fixture.output(&["read", "--csv", "--interval", "0.1", "--count", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: Vec<Vec<String>> = text(&output.stdout).lines().map(cells).collect();
    assert_eq!(
        lines[0].join(" "),
        "time domain power_w power_error_w energy_j grade liveness counted simulated"
    );
    assert_eq!(lines.len(), 5, "{lines:?}");
    for line in &lines {
        assert_eq!(line.len(), lines[0].len(), "{lines:?}");
    }
    assert_eq!([&*lines[1][1], &*lines[2][1]], ["package-0", "'=dram, 0"]);
    let energy = |line: &[String]| line[4].parse::<f64>().unwrap();
    assert!(energy(&lines[1]) < energy(&lines[3]) && energy(&lines[2]) < energy(&lines[4]));
    assert!(lines[1][0] < lines[3][0] && lines[1][0] == lines[2][0], "{lines:?}");
    for line in &lines[1..] {
        let time = line[0].as_bytes();
        assert!(time.len() == 24 && time[10] == b'T' && time[19] == b'.' && time[23] == b'Z', "{line:?}");
        assert!(line[2].parse::<f64>().unwrap() > 0.0 && line[7] == "true" && line[8] == "true", "{line:?}");
    }
    let seen = fixture.output(&["read", "--interval", "0.1", "--count", "1"]).stdout;
    assert!(text(&seen).contains("TIME") && text(&seen).contains("Z  "), "{}", text(&seen));
    let timed = json(&fixture.output(&["read", "--json"]).stdout);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let hour_ns = 3_600_000_000_000;
    assert!(timed["unix_ns"].as_u64().unwrap().abs_diff(now.as_nanos() as u64) < hour_ns, "{timed}");
    assert_eq!(fixture.output(&["read", "--csv", "--json"]).status.code(), Some(2));
}

#[test]
fn the_open_spans_are_listed_with_their_figures_so_far() {
    let fixture = CliFixture::new();
    let daemon = Daemon::start(&fixture);
    let none = daemon.output(&fixture, &["spans", "--open"]);
    assert_eq!(text(&none.stdout), "no matching span is open\n");
    let mut client = UnixStream::connect(&daemon.socket).unwrap();
    for (span, name) in [("one", "first"), ("two", "second"), ("three", "first")] {
        let call = serde_json::json!({
            "method": "org.wattspan.Meter.OpenSpan",
            "parameters": { "span": span, "name": name, "attributes": { "model": "small" } }
        });
        client.write_all(format!("{call}\0").as_bytes()).unwrap();
        let mut answer = [0];
        while client.read(&mut answer).unwrap() > 0 && answer[0] != 0 {}
    }
    let listed = |words: &[&str]| -> Vec<Value> {
        let output = daemon.output(&fixture, &[&["spans", "--open", "--json"], words].concat());
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| json(line.as_bytes())).collect()
    };
    let names = |words: &[&str]| -> Vec<String> {
        listed(words).iter().map(|account| account["span"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&[]), ["one", "two", "three"], "the latest last");
    assert_eq!(names(&["--count", "2"]), ["two", "three"]);
    assert_eq!(names(&["--name", "first"]), ["one", "three"]);
    assert_eq!(names(&["--attribute", "model=small", "--since", "1h"]).len(), 3);
    assert!(
        names(&["--attribute", "model=large"]).is_empty() && names(&["--since", "2200-01-01"]).is_empty()
    );
    for account in listed(&[]) {
        assert!(account["state"] == "open" && account["share_uj"].is_u64(), "{account}");
    }
    let shown = daemon.output(&fixture, &["spans", "--open"]).stdout;
    assert!(text(&shown).contains("second (two)  open"), "{}", text(&shown));
    drop(client);
    while !names(&[]).is_empty() {}
    assert_eq!(daemon.output(&fixture, &["spans", "--open", "--watch"]).status.code(), Some(2));
}

/// Every character that moves a cursor, ends a line, changes colors or reorders text.
fn hidden() -> impl Iterator<Item = char> {
    let codes = (1..0x20).chain(0x7f..0xa0).chain([0x200e, 0x200f, 0x61c]);
    codes.chain(0x202a..=0x202e).chain(0x2066..=0x2069).map(|code| char::from_u32(code).unwrap())
}

/// A name that is displayed correctly only if each of its characters is made visible.
fn hostile(name: &str) -> String {
    format!("{name}{}end", hidden().collect::<String>())
}

fn assert_shows_everything(what: &str, bytes: &[u8]) {
    let shown = text(bytes);
    let found: Vec<char> = shown.chars().filter(|&c| c != '\n' && hidden().any(|other| other == c)).collect();
    assert!(found.is_empty(), "{what}: {found:?} in {shown:?}");
}

/// A daemon all of whose texts are hostile.
fn hostile_daemon(socket: &Path) {
    let share =
        serde_json::json!({ "domain": hostile("dram"), "grade": "measured", "share_uj": 1, "unknown_ns": 0 });
    let account = serde_json::json!({
        "span": hostile("span"), "name": hostile("name"), "attributes": { hostile("key"): hostile("value") },
        "state": "settled", "uid": 0, "opened_ns": 1, "closed_ns": 2, "moved_ns": 0, "opened_unix_ns": 1, "weight": 1.0,
        "process_reason": hostile("reason"), "cgroup": hostile("group"), "peak_concurrency": 1, "domains": [share],
        "phases": [{ "name": hostile("phase"), "opened_ns": 1, "closed_ns": 2 }]
    });
    let domain = serde_json::json!({
        "name": hostile("dram"), "kind": "dram", "source": hostile("source"), "device": hostile("device"),
        "counted": true, "grade": "measured", "liveness": "live", "reason": hostile("why"), "energy_uj": 5
    });
    let sampler = serde_json::json!({
        "source": hostile("source"), "domains": [hostile("dram")], "ticks": 1, "late": 0, "missed": 0,
        "realtime": false, "pinned": false
    });
    let info = serde_json::json!({
        "version": hostile("1"), "boot_id": "b", "now_ns": 1, "horizon_ns": 1, "history_ns": 1, "domains": [domain],
        "absent": [{ "source": hostile("source"), "reason": hostile("reason") }], "samplers": [sampler],
        "keeping": { "durable": false, "reason": hostile("reason"), "bytes": 1, "waiting": 0, "not_kept": 0 },
        "access": "admin"
    });
    let balance = serde_json::json!({ "domain": hostile("dram"), "measured_uj": 2, "attributed_uj": 1, "unattributed_uj": 1 });
    let refusal = serde_json::json!({ "field": hostile("field"), "reason": hostile("reason") });
    let answer = move |method: &str, turn: u64| match method {
        "GetInfo" => info.clone(),
        "OpenSpan" => serde_json::json!({ "span": "s" }),
        "GetSpan" | "CloseSpan" | "WatchSpans" => {
            serde_json::json!({ "account": account })
        }
        "ListSpans" => serde_json::json!({ "accounts": [account] }),
        "GetBalance" => serde_json::json!({ "balance": [balance] }),
        "WatchDomains" => {
            let now_ns = turn * 100_000_000;
            serde_json::json!({ "now_ns": now_ns, "domains": info["domains"] })
        }
        "Reload" => serde_json::json!({ "changed": [hostile("key")], "needs_restart": [hostile("key")] }),
        other => panic!("{other}"),
    };
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer, refusal) = (stream.unwrap(), answer.clone(), refusal.clone());
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut call = Vec::new();
                while reader.read_until(0, &mut call).unwrap_or(0) > 0 {
                    let request = json(&call[..call.len() - 1]);
                    call.clear();
                    let method = request["method"].as_str().unwrap().rsplit('.').next().unwrap();
                    let more = request["more"] == true;
                    for turn in 1.. {
                        let mut reply = serde_json::json!({ "parameters": answer(method, turn) });
                        if request["parameters"]["span"] == "none" {
                            reply["error"] = "org.wattspan.Meter.InvalidValue".into();
                            reply["parameters"] = refusal.clone();
                        }
                        if more {
                            reply["continues"] = true.into();
                        }
                        if stream.write_all(format!("{reply}\0").as_bytes()).is_err() || !more {
                            break;
                        }
                        thread::sleep(std::time::Duration::from_millis(1));
                    }
                }
            });
        }
    });
}

#[test]
fn no_text_of_a_daemon_reaches_a_terminal_with_a_hidden_character() {
    let fixture = CliFixture::new();
    let socket = fixture.dir.path().join("hostile.sock");
    hostile_daemon(&socket);
    for words in [
        &["spans"][..],
        &["spans", "--open"],
        &["spans", "--watch", "-n", "2"],
        &["spans", "name"],
        &["balance"],
        &["top", "--once"],
        &["doctor"],
        &["read"],
        &["read", "-n", "2", "-I", "0.01"],
        &["read", "-n", "2", "-I", "0.01", "--csv"],
        &["reload"],
        &["run", "--", "true"],
        &["run", "-r", "2", "--", "true"],
    ] {
        for more in [&[][..], &["--json"]] {
            if words.contains(&"--csv") && !more.is_empty() {
                continue;
            }
            let mut command = fixture.bare();
            command.arg("--socket").arg(&socket).args(more).args(words);
            for width in ["60", "400"] {
                let output = command.env("COLUMNS", width).output().unwrap();
                let all = [output.stdout.as_slice(), &output.stderr].concat();
                assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&all));
                assert_shows_everything(&format!("{words:?} {more:?}"), &all);
                let escape = if more.is_empty() { "\\u{202e}" } else { "\\u202e" };
                assert!(text(&all).contains(escape), "{words:?} {more:?} lost the name: {}", text(&all));
            }
            if more.is_empty() {
                continue;
            }
            for line in text(&command.output().unwrap().stdout).lines() {
                json(line.as_bytes());
            }
        }
    }
    let failed = fixture.bare().arg("--socket").arg(&socket).args(["spans", "none"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert_shows_everything("a refusal", &failed.stderr);
    let forged = text(&failed.stderr).lines().skip(1).find(|line| !line.starts_with(' '));
    assert_eq!(forged, None, "a reason must not look like another message");
    let json_of_one =
        fixture.bare().arg("--socket").arg(&socket).args(["spans", "name", "--json"]).output().unwrap();
    assert_eq!(json(&json_of_one.stdout)["name"], hostile("name"), "JSON means the same");
}

#[test]
fn no_name_of_a_machine_or_a_command_reaches_a_terminal_with_a_hidden_character() {
    let fixture = CliFixture::new();
    let in_toml: String = hostile("dram").chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
    std::fs::write(&fixture.machine, HUNDRED_WATTS.replace("dram-0", &in_toml)).unwrap();
    let word: String = hostile("word");
    let name = "name\u{202e}\u{2066}end";
    for words in [
        &["doctor"][..],
        &["read"],
        &["read", "--csv"],
        &["run", "--name", name, "-a", &format!("{name}={name}"), "--", "true", &word],
        &["run", "--name", &word, "--", "true"],
        &["run", "-r", "2", "--", "true", &word],
        &["run", "--json", "--", "true", &word],
        &["run", "--", &word],
        &["run", "-d", &word, "--", "true"],
        &["run", "-o", &format!("/nonexistent/{word}"), "--", "true"],
    ] {
        let output = fixture.output(words);
        let all = [output.stdout.as_slice(), &output.stderr].concat();
        assert_shows_everything(&format!("{words:?}"), &all);
        let shown = text(&all).contains("u{202e}") || text(&all).contains("u202e");
        assert!(shown || text(&all).contains("contains a control character"), "{words:?}: {}", text(&all));
    }
    for words in [&["spans", "--state", &word][..], &[&word]] {
        let output = fixture.output(words);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert_shows_everything("a usage error", &output.stderr);
    }
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_wattspand"));
    let log = daemon.arg("--config").arg(format!("/nonexistent/{word}")).output().unwrap().stderr;
    assert_shows_everything("the daemon's log", &log);
    assert!(text(&log).contains("u{202e}"), "{}", text(&log));
    let file = fixture.dir.path().join("report");
    fixture.output(&["run", "-o", file.to_str().unwrap(), "--", "true", &word]);
    assert_shows_everything("a report in a file", &std::fs::read(file).unwrap());
}
