//! Runs of questions by users whom the daemon lets know less, or nothing: nothing is asked for nothing, and few calls a
//! second are enough.

#![cfg(target_os = "linux")]

mod caller;
#[path = "support/llm.rs"]
mod llm;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use caller::{GROUPS, User};
use llm::Llm;
use serde_json::Value;
use support::{STEADY, TestDaemon};

const STRANGER: User = User { uid: 12_301, groups: "" };
const COARSE: User = User { uid: 12_302, groups: "games" };

struct Desk {
    dir: tempfile::TempDir,
    llm: Llm,
    daemon: TestDaemon,
}

impl Desk {
    /// Where this process may be another user's; `limits` as in the configuration.
    fn new(limits: &str) -> Option<Self> {
        if !caller::possible() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        // The program lies where others may not look.
        let own = env!("CARGO_BIN_EXE_wattspan");
        assert!(Command::new("cp").arg(own).arg(dir.path().join("wattspan")).status().unwrap().success());
        // A busy machine tells the meter late, and what is tested is not how busy it is.
        let daemon = TestDaemon::with(STEADY, &format!("horizon_ms = 500\n{GROUPS}{limits}"));
        Some(Self { dir, llm: Llm::start(), daemon })
    }

    fn run(&self, user: User, words: &[&str]) -> Output {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.uid)]);
        match user.groups {
            "" => command.arg("--clear-groups"),
            groups => command.arg(format!("--groups={groups}")),
        };
        command
            .arg(self.dir.path().join("wattspan"))
            .args(["ipw", "run", "--warm-up", "0", "-o", "run", "--socket"])
            .arg(self.daemon.socket())
            .args(["--url", &self.llm.url()])
            .args(words)
            .current_dir(self.dir.path())
            .env_remove("OPENAI_API_KEY");
        command.output().unwrap()
    }

    fn rows(&self) -> Vec<Value> {
        rows(&self.dir.path().join("run"))
    }
}

fn rows(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("rows.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_user_without_access_is_told_before_anything_is_asked() {
    let Some(desk) = Desk::new("") else { return };
    let refused = desk.run(STRANGER, &["--model", "good", "-n", "3"]);
    assert_eq!(refused.status.code(), Some(5), "{}", said(&refused));
    assert!(
        said(&refused).contains("this needs coarse access; membership in the group"),
        "{}",
        said(&refused)
    );
    assert!(said(&refused).contains("--without-meter asks all the same"), "{}", said(&refused));
    assert_eq!((desk.llm.requests(), desk.rows().len()), (0, 0));
    let agreed = desk.run(STRANGER, &["--model", "good", "-n", "3", "--without-meter"]);
    assert!(agreed.status.success(), "{}", said(&agreed));
    assert!(said(&agreed).contains("going on without energies"), "{}", said(&agreed));
    let rows = desk.rows();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["energy"].is_null() && row["unmetered"].is_null()), "{rows:?}");
}

#[test]
fn with_few_calls_a_second_every_query_is_metered_and_nothing_is_guaranteed_that_nobody_knows() {
    // 4 queries of 0.9 s at a time take some 18 calls a second for their spans.
    let limits = "[limits]\ncoarse_calls_per_s = 100\ncoarse_calls_burst = 100\n";
    let Some(desk) = Desk::new(limits) else { return };
    let output = desk.run(COARSE, &["--model", "good-600", "-n", "24", "-c", "4"]);
    assert!(output.status.success(), "{}", said(&output));
    let rows = desk.rows();
    assert_eq!(rows.len(), 24);
    for row in &rows {
        assert!(row["energy"]["share_uj"].is_u64(), "{row}");
        // The grid moved the edges, and only telemetry may know what the machine used in between.
        let moved = row["energy"]["moved_ns"].as_u64() > Some(0);
        assert!(moved && row["energy"]["error_uj"].is_null(), "{row}");
    }
}

#[test]
fn a_query_that_the_grid_is_too_coarse_for_says_so() {
    let Some(desk) = Desk::new("") else { return };
    let output = desk.run(COARSE, &["--model", "good", "-n", "2"]);
    let measured = desk.rows().iter().any(|row| row["energy"]["share_uj"].is_u64());
    assert_eq!(output.status.code(), Some(if measured { 0 } else { 3 }), "{}", said(&output));
    // On a busy machine a query may be as long as the grid is coarse.
    for row in desk.rows().iter().filter(|row| row["duration_ns"].as_u64() < Some(60_000_000)) {
        assert!(row["unmetered"].as_str().is_some_and(|why| why.contains("grid of 100 ms")), "{row}");
    }
}
