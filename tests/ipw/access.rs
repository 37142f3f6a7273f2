//! Runs of questions by users with little or no access to the daemon: without access the run fails before it sends a
//! question, and a low call rate is sufficient.

use crate::other_user;
use crate::programs;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::llm_stub::LlmStub;
use crate::other_user::{GROUPS, TestUser};
use crate::support::{STEADY_MACHINE, TestDaemon};
use serde_json::Value;

const STRANGER: TestUser = TestUser { uid: 12_301, groups: "" };
const COARSE: TestUser = TestUser { uid: 12_302, groups: "games" };

struct IpwFixture {
    dir: tempfile::TempDir,
    llm: LlmStub,
    daemon: TestDaemon,
}

impl IpwFixture {
    /// `None` where this process cannot start others of other users; `limits` is added to the configuration.
    fn new(limits: &str) -> Option<Self> {
        if !other_user::is_supported() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        // Other users may be unable to read the directory of the program.
        let own = programs::wattspan();
        assert!(Command::new("cp").arg(own).arg(dir.path().join("wattspan")).status().unwrap().success());
        // On a busy machine messages reach the service late; the test does not measure the load of the test machine.
        let daemon =
            TestDaemon::start_with_config(STEADY_MACHINE, &format!("horizon_ms = 500\n{GROUPS}{limits}"));
        Some(Self { dir, llm: LlmStub::start(), daemon })
    }

    fn run(&self, user: TestUser, words: &[&str]) -> Output {
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

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_user_without_access_is_refused_before_the_first_question() {
    let Some(fixture) = IpwFixture::new("") else { return };
    let refused = fixture.run(STRANGER, &["--model", "good", "-n", "3"]);
    assert_eq!(refused.status.code(), Some(5), "{}", output_text(&refused));
    assert!(
        output_text(&refused).contains("this needs coarse access; membership in the group"),
        "{}",
        output_text(&refused)
    );
    assert!(
        output_text(&refused).contains("--without-meter runs the questions without one"),
        "{}",
        output_text(&refused)
    );
    assert_eq!((fixture.llm.requests(), fixture.rows().len()), (0, 0));
    let agreed = fixture.run(STRANGER, &["--model", "good", "-n", "3", "--without-meter"]);
    assert!(agreed.status.success(), "{}", output_text(&agreed));
    assert!(output_text(&agreed).contains("continuing without energy"), "{}", output_text(&agreed));
    let rows = fixture.rows();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["energy"].is_null() && row["unmetered"].is_null()), "{rows:?}");
}

#[test]
fn with_few_calls_a_second_every_query_is_metered_without_false_guarantees() {
    // 4 concurrent queries of 0.9 s need some 18 calls per second for their spans.
    let limits = "[limits]\ncoarse_calls_per_s = 100\ncoarse_calls_burst = 100\n";
    let Some(fixture) = IpwFixture::new(limits) else { return };
    let output = fixture.run(COARSE, &["--model", "good-600", "-n", "24", "-c", "4"]);
    assert!(output.status.success(), "{}", output_text(&output));
    let rows = fixture.rows();
    assert_eq!(rows.len(), 24);
    for row in &rows {
        assert!(row["energy"]["share_uj"].is_u64(), "{row}");
        // The grid moved the edges, and only telemetry access reveals the energy in between.
        let moved = row["energy"]["moved_ns"].as_u64() > Some(0);
        assert!(moved && row["energy"]["error_uj"].is_null(), "{row}");
    }
}

#[test]
fn a_query_too_short_for_the_coarse_grid_is_marked() {
    let Some(fixture) = IpwFixture::new("") else { return };
    let output = fixture.run(COARSE, &["--model", "good", "-n", "2"]);
    let measured = fixture.rows().iter().any(|row| row["energy"]["share_uj"].is_u64());
    assert_eq!(output.status.code(), Some(if measured { 0 } else { 3 }), "{}", output_text(&output));
    // On a busy machine a query may be as long as the interval of the grid.
    for row in fixture.rows().iter().filter(|row| row["duration_ns"].as_u64() < Some(60_000_000)) {
        assert!(row["unmetered"].as_str().is_some_and(|why| why.contains("grid of 100 ms")), "{row}");
    }
}
