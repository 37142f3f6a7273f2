//! What befalls a run of questions: its meter dies, its disk is full, it is told to stop, it is killed. Nothing that was
//! answered is lost, nothing is made up, and no span stays open.

#[path = "support/llm.rs"]
mod llm;
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use llm::Llm;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{STEADY, TestDaemon, until};

/// A busy machine tells the meter late, and what is tested is not how busy it is.
const PATIENT: &str = "horizon_ms = 1000";

struct Desk {
    dir: tempfile::TempDir,
    llm: Llm,
    daemon: TestDaemon,
}

impl Desk {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            llm: Llm::start(),
            daemon: TestDaemon::with(STEADY, PATIENT),
        }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wattspan"));
        command
            .args(["ipw", "run", "--socket"])
            .arg(self.daemon.socket())
            .args(["--url", &self.llm.url()])
            .args(words)
            // One that goes on has its own.
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

    /// The command that a run prints for its continuation, as a shell runs it where the program is not on the PATH.
    fn resumed_as_printed(&self, printed: &str) -> Output {
        let (_, command) = printed.rsplit_once("go on with: ").expect(printed);
        let command = command.lines().next().unwrap();
        Command::new("sh").args(["-c", command]).current_dir(self.dir.path()).output().unwrap()
    }

    /// Every span that the meter was told of has ended. Gives how many did not end well.
    fn none_open(&self) -> usize {
        let mut client = self.daemon.client();
        let rows = self.rows();
        let spans = rows.iter().filter_map(|row| row["energy"]["span"].as_str());
        let runs: BTreeSet<&str> = spans.map(|span| span.rsplit_once('-').unwrap().0).collect();
        assert!(!runs.is_empty(), "{rows:?}");
        let mut abandoned = 0;
        for (run, number) in runs.iter().flat_map(|run| (0..50).map(move |number| (run, number))) {
            until("it has ended", || {
                let answer =
                    client.exchange("GetSpan", json!({ "span": format!("{run}-{}", number * 1000) }));
                let account = &answer["parameters"]["account"];
                abandoned += usize::from(account["state"] == "abandoned");
                // A span that was never asked for is none.
                ["abandoned", "settled"].iter().any(|state| account["state"] == *state)
                    || answer["error"].is_string()
            });
        }
        abandoned
    }
}

/// Whole rows, while a run writes them.
fn rows(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("rows.jsonl")).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn tell(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_meter_that_dies_and_comes_back_costs_energies_and_no_answers() {
    let mut desk = Desk::new();
    let mut run = desk.started(&["--model", "good-80", "-o", "run", "-c", "4", "-r", "40"]);
    until("it is under way", || desk.rows().len() >= 8);
    desk.daemon.kill();
    let before = desk.rows().len();
    until("it goes on without a meter", || desk.rows().len() >= before + 12);
    desk.daemon.restart();
    until("it is metered again", || {
        let rows = desk.rows();
        let away = rows.iter().rposition(|row| row["energy"].is_null());
        away.is_some_and(|away| away + 8 < rows.len())
    });
    tell(&run, Signal::TERM);
    assert_eq!(run.wait().unwrap().code(), Some(130));
    for row in desk.rows() {
        assert_eq!((&row["score"], &row["error"]), (&1.0.into(), &Value::Null), "{row}");
        let (energy, reason) = (&row["energy"], row["unmetered"].as_str());
        assert_eq!(energy.is_null(), reason.is_some(), "{row}");
    }
    // 100 W all the time, shared by four at most: what is told was measured.
    let rows = desk.rows();
    let off_uj = |energy: &Value| {
        let uj = |name: &str| energy[name].as_f64().unwrap();
        ((uj("window_uj") - uj("span_ns") / 10.0).abs(), uj("error_uj") * uj("at_once"), uj("window_uj"))
    };
    // A query that began before the new meter's first reading has no total.
    let whole = |row: &&Value| row["energy"]["error_uj"].is_u64();
    let told: Vec<_> = rows.iter().filter(whole).map(|row| off_uj(&row["energy"])).collect();
    assert!(told.iter().all(|(off_uj, error_uj, _)| off_uj <= error_uj), "{told:?}");
    let close = told.iter().filter(|(off_uj, _, window_uj)| off_uj * 20.0 < *window_uj).count();
    assert!(told.len() >= 8 && close * 2 > told.len(), "{told:?}");
}

#[test]
fn a_run_that_is_told_to_stop_keeps_what_was_answered_and_leaves_no_span_open() {
    let desk = Desk::new();
    let mut run = desk.command(&["--model", "good-200", "-o", "run", "-c", "4"]);
    let run = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is under way", || desk.rows().len() >= 4);
    tell(&run, Signal::INT);
    let ended = run.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    assert!(desk.none_open() <= 4, "what was not answered is abandoned");
    let kept = desk.rows();
    let again = desk.resumed_as_printed(&said(&ended));
    assert!(again.status.success(), "{}", said(&again));
    let rows = desk.rows();
    assert_eq!((rows.len(), &rows[..kept.len()]), (50, &kept[..]), "nothing is lost or asked again");
    desk.none_open();
}

#[test]
fn a_run_that_is_killed_leaves_no_span_open_and_goes_on() {
    let desk = Desk::new();
    let mut run = desk.started(&["--model", "good-40", "-o", "run", "-c", "8"]);
    until("it is under way", || desk.rows().len() >= 8);
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(desk.none_open() <= 8);
    let again = desk.command(&["--resume", "run"]).output().unwrap();
    assert!(again.status.success(), "{}", said(&again));
    let rows = desk.rows();
    let ids: BTreeSet<_> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!((rows.len(), ids.len()), (50, 50), "each question once");
}

#[test]
fn a_full_disk_ends_a_run_with_its_reason_and_the_rest_is_asked_later() {
    let desk = Desk::new();
    // A limit on the size of files, as the kernel's other way to refuse a write.
    let limited = |words: &[&str]| {
        let command = desk.command(words);
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 36; exec \"$0\" \"$@\""]).arg(command.get_program());
        shell.args(command.get_args()).current_dir(desk.dir.path()).output().unwrap()
    };
    let full = limited(&["--model", "good-4", "-o", "run", "-c", "4"]);
    assert_eq!(full.status.code(), Some(1), "{}", said(&full));
    let reason = said(&full);
    assert!(reason.contains(".jsonl: "), "{reason}");
    let kept = desk.rows();
    assert!((1..50).contains(&kept.len()), "{reason}");
    let again = desk.resumed_as_printed(&reason);
    assert!(again.status.success(), "{}", said(&again));
    assert!(said(&again).contains("50 of 50 queries covered"), "{}", said(&again));
    let rows = desk.rows();
    assert_eq!((rows.len(), &rows[..kept.len()]), (50, &kept[..]), "nothing is lost or asked again");
}

#[test]
fn a_run_goes_on_only_as_it_was_begun_and_where_it_was_begun() {
    let desk = Desk::new();
    let begun = desk.command(&["--model", "good-4", "-o", "run", "-n", "2", "--max-tokens", "9", "-c", "2"]);
    assert!({ begun }.status().unwrap().success());
    let other = TestDaemon::on(&STEADY.replace("core-0", "core-7"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_wattspan"));
    command
        .args(["ipw", "run", "--resume", "run", "--socket"])
        .arg(other.socket())
        .current_dir(desk.dir.path());
    let elsewhere = command.output().unwrap();
    assert!(!elsewhere.status.success() && said(&elsewhere).contains("core-7"), "{}", said(&elsewhere));
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
        let output = desk.command(&["--resume", "run"]).args(changed).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{changed:?}: {}", said(&output));
    }
    let asked = desk.llm.requests();
    let mut same = Command::new(env!("CARGO_BIN_EXE_wattspan"));
    same.args(["ipw", "run", "--resume", "run", "--socket"]).arg(desk.daemon.socket());
    let same = same.current_dir(desk.dir.path()).output().unwrap();
    assert!(same.status.success(), "{}", said(&same));
    assert_eq!(desk.llm.requests(), asked, "everything was answered already");
}
