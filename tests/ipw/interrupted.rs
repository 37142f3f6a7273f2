//! Interrupted runs of questions: the daemon dies, the disk is full, the run is stopped or killed. No answer is lost,
//! no result is invented, and no span stays open.

use crate::programs;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::llm_stub::LlmStub;
use crate::support::{STEADY_MACHINE, TestDaemon, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// On a busy machine messages reach the service late; the test does not measure the load of the test machine.
const LONG_HORIZON_CONFIG: &str = "horizon_ms = 1000";

struct IpwFixture {
    dir: tempfile::TempDir,
    llm: LlmStub,
    daemon: TestDaemon,
}

impl IpwFixture {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            llm: LlmStub::start(),
            daemon: TestDaemon::start_with_config(STEADY_MACHINE, LONG_HORIZON_CONFIG),
        }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(programs::wattspan());
        command
            .args(["ipw", "run", "--socket"])
            .arg(self.daemon.socket())
            .args(["--url", &self.llm.url()])
            .args(words)
            // A resumed run has its own setting.
            .args(if words.contains(&"--resume") { &[][..] } else { &["--warm-up", "0"] })
            .current_dir(self.dir.path())
            .env_remove("OPENAI_API_KEY")
            .stdin(Stdio::null());
        command
    }

    fn started(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn rows(&self) -> Vec<Value> {
        rows(&self.run_dir())
    }

    /// Runs the command that a run prints for its continuation, in a shell where the program is not on the PATH.
    fn resumed_as_printed(&self, printed: &str) -> Output {
        let (_, command) = printed.rsplit_once("resume with: ").expect(printed);
        let command = command.lines().next().unwrap();
        Command::new("sh").args(["-c", command]).current_dir(self.dir.path()).output().unwrap()
    }

    /// Waits until every span that the daemon knows has ended. Returns how many were abandoned.
    fn none_open(&self) -> usize {
        let mut client = self.daemon.client();
        let rows = self.rows();
        let spans = rows.iter().filter_map(|row| row["energy"]["span"].as_str());
        let runs: BTreeSet<&str> = spans.map(|span| span.rsplit_once('-').unwrap().0).collect();
        assert!(!runs.is_empty(), "{rows:?}");
        let mut abandoned = 0;
        for (run, number) in runs.iter().flat_map(|run| (0..50).map(move |number| (run, number))) {
            wait_until("it has ended", || {
                let answer =
                    client.call_raw("GetSpan", json!({ "span": format!("{run}-{}", number * 1000) }));
                let account = &answer["parameters"]["account"];
                abandoned += usize::from(account["state"] == "abandoned");
                // A span that was never opened is not found.
                ["abandoned", "settled"].iter().any(|state| account["state"] == *state)
                    || answer["error"].is_string()
            });
        }
        abandoned
    }
}

/// Complete rows so far, while the run writes.
fn rows(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("rows.jsonl")).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn send_signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_restarted_meter_loses_energies_but_no_answers() {
    let mut fixture = IpwFixture::new();
    let mut run = fixture.started(&["--model", "good-80", "-o", "run", "-c", "4", "-r", "40"]);
    wait_until("it is under way", || fixture.rows().len() >= 8);
    fixture.daemon.kill();
    let before = fixture.rows().len();
    wait_until("it continues without a daemon", || fixture.rows().len() >= before + 12);
    fixture.daemon.restart();
    wait_until("it is metered again", || {
        let rows = fixture.rows();
        let away = rows.iter().rposition(|row| row["energy"].is_null());
        away.is_some_and(|away| away + 8 < rows.len())
    });
    send_signal(&run, Signal::TERM);
    assert_eq!(run.wait().unwrap().code(), Some(130));
    for row in fixture.rows() {
        assert_eq!((&row["score"], &row["error"]), (&1.0.into(), &Value::Null), "{row}");
        let (energy, reason) = (&row["energy"], row["unmetered"].as_str());
        assert_eq!(energy.is_null(), reason.is_some(), "{row}");
    }
    // 100 W all the time, shared by at most four: each reported energy must match it.
    let rows = fixture.rows();
    let off_uj = |energy: &Value| {
        let uj = |name: &str| energy[name].as_f64().unwrap();
        ((uj("window_uj") - uj("span_ns") / 10.0).abs(), uj("error_uj") * uj("at_once"), uj("window_uj"))
    };
    // A query that began before the new meter's first reading has no total.
    let whole = |row: &&Value| row["energy"]["error_uj"].is_u64();
    let deviations: Vec<_> = rows.iter().filter(whole).map(|row| off_uj(&row["energy"])).collect();
    assert!(deviations.iter().all(|(off_uj, error_uj, _)| off_uj <= error_uj), "{deviations:?}");
    let close = deviations.iter().filter(|(off_uj, _, window_uj)| off_uj * 20.0 < *window_uj).count();
    assert!(deviations.len() >= 8 && close * 2 > deviations.len(), "{deviations:?}");
}

#[test]
fn a_terminated_run_keeps_its_answers_and_leaves_no_span_open() {
    let fixture = IpwFixture::new();
    let mut run = fixture.command(&["--model", "good-200", "-o", "run", "-c", "4"]);
    let run = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it is under way", || fixture.rows().len() >= 4);
    send_signal(&run, Signal::INT);
    let ended = run.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    assert!(fixture.none_open() <= 4, "what was not answered is abandoned");
    let kept = fixture.rows();
    let again = fixture.resumed_as_printed(&output_text(&ended));
    assert!(again.status.success(), "{}", output_text(&again));
    let rows = fixture.rows();
    assert_eq!((rows.len(), &rows[..kept.len()]), (50, &kept[..]), "nothing is lost or asked again");
    fixture.none_open();
}

#[test]
fn a_run_that_is_killed_leaves_no_span_open_and_goes_on() {
    let fixture = IpwFixture::new();
    let mut run = fixture.started(&["--model", "good-40", "-o", "run", "-c", "8"]);
    wait_until("it is under way", || fixture.rows().len() >= 8);
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(fixture.none_open() <= 8);
    let again = fixture.command(&["--resume", "run"]).output().unwrap();
    assert!(again.status.success(), "{}", output_text(&again));
    let rows = fixture.rows();
    let ids: BTreeSet<_> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!((rows.len(), ids.len()), (50, 50), "each question once");
}

#[test]
fn a_full_disk_ends_a_run_with_its_reason_and_the_rest_is_asked_later() {
    let fixture = IpwFixture::new();
    // A limit on the file size: another way in which the kernel refuses a write.
    let limited = |words: &[&str]| {
        let command = fixture.command(words);
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 36; exec \"$0\" \"$@\""]).arg(command.get_program());
        shell.args(command.get_args()).current_dir(fixture.dir.path()).output().unwrap()
    };
    let full = limited(&["--model", "good-4", "-o", "run", "-c", "4"]);
    assert_eq!(full.status.code(), Some(1), "{}", output_text(&full));
    let reason = output_text(&full);
    assert!(reason.contains(".jsonl: "), "{reason}");
    let kept = fixture.rows();
    assert!((1..50).contains(&kept.len()), "{reason}");
    let again = fixture.resumed_as_printed(&reason);
    assert!(again.status.success(), "{}", output_text(&again));
    assert!(output_text(&again).contains("50 of 50 queries covered"), "{}", output_text(&again));
    let rows = fixture.rows();
    assert_eq!((rows.len(), &rows[..kept.len()]), (50, &kept[..]), "nothing is lost or asked again");
}

#[test]
fn a_run_goes_on_only_as_it_was_begun_and_where_it_was_begun() {
    let fixture = IpwFixture::new();
    let begun =
        fixture.command(&["--model", "good-4", "-o", "run", "-n", "2", "--max-tokens", "9", "-c", "2"]);
    assert!({ begun }.status().unwrap().success());
    let other = TestDaemon::start(&STEADY_MACHINE.replace("core-0", "core-7"));
    let mut command = Command::new(programs::wattspan());
    command
        .args(["ipw", "run", "--resume", "run", "--socket"])
        .arg(other.socket())
        .current_dir(fixture.dir.path());
    let elsewhere = command.output().unwrap();
    assert!(
        !elsewhere.status.success() && output_text(&elsewhere).contains("core-7"),
        "{}",
        output_text(&elsewhere)
    );
    for changed in [
        ["--max-tokens", "10"],
        ["--model", "other"],
        ["-c", "8"],
        ["--rate", "3"],
        ["-r", "2"],
        ["--retries", "0"],
        ["--warm-up", "0"],
        ["--timeout", "9"],
    ] {
        let output = fixture.command(&["--resume", "run"]).args(changed).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{changed:?}: {}", output_text(&output));
    }
    let request_count = fixture.llm.requests();
    let mut same = Command::new(programs::wattspan());
    same.args(["ipw", "run", "--resume", "run", "--socket"]).arg(fixture.daemon.socket());
    let same = same.current_dir(fixture.dir.path()).output().unwrap();
    assert!(same.status.success(), "{}", output_text(&same));
    assert_eq!(fixture.llm.requests(), request_count, "everything was answered already");
}
