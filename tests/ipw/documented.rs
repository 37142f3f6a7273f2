//! The commands of docs/ipw.md, run as they stand there, with a daemon on a simulated machine.

use std::path::Path;
use std::process::Command;

use crate::programs;
use crate::support::TestDaemon;

const MACHINE: &str = include_str!("../fixtures/hundred-watts.toml");

/// The commands below a heading.
pub struct DocumentedCommands {
    shell: String,
}

impl DocumentedCommands {
    /// Finds the first shell block below a heading of docs/ipw.md.
    pub fn of(heading: &str) -> Self {
        let page = include_str!("../../docs/ipw.md");
        let below = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")).1;
        let section = below.split("\n## ").next().unwrap();
        let block = section.split_once("```sh\n").and_then(|(_, rest)| rest.split_once("```"));
        Self { shell: block.unwrap_or_else(|| panic!("no commands below {heading:?}")).0.to_owned() }
    }

    /// Runs them in a new directory, with these variables; returns it, and what the commands wrote to standard output.
    pub fn run(&self, variables: &[(&str, &str)]) -> (tempfile::TempDir, String) {
        // On a busy machine messages reach the service late; the test does not measure the load of the test machine.
        let daemon = TestDaemon::start_with_config(MACHINE, "horizon_ms = 1000");
        let dir = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::os::unix::fs::symlink(root.join("examples"), dir.path().join("examples")).unwrap();
        let programs = Path::new(programs::wattspan()).parent().unwrap().display().to_string();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        let output = Command::new("sh")
            .args(["-e", "-u", "-c", &self.shell])
            .current_dir(dir.path())
            .envs(variables.iter().copied())
            .env("PATH", path)
            .env("WATTSPAN_SOCKET", daemon.socket())
            .env("COLUMNS", "200")
            .env_remove("OPENAI_API_KEY")
            .output()
            .unwrap();
        let (shown, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{shown}{errors}", self.shell);
        (dir, shown.into_owned())
    }
}
