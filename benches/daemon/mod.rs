//! A daemon on a simulated machine, with its files in a temporary directory; killed on drop.

#![allow(dead_code, reason = "each bench uses its part")]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wattspan_client::{Client, SocketPath};

const PROGRAM: &str = env!("CARGO_BIN_EXE_wattspand");

/// A machine of four domains.
pub const MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[0.7, 60], [0.3, 140]]
quantum_uj = 61
[[domain]]
name = "core-0"
kind = "core"
parent = "package-0"
profile = [[0.7, 40], [0.3, 110]]
quantum_uj = 61
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[1.0, 12]]
quantum_uj = 15
[[domain]]
name = "gpu-0"
kind = "gpu"
profile = [[0.5, 90], [0.5, 300]]
update_ns = 20_000_000
quantum_uj = 1000
"#;

/// Limits that allow more than 100,000 open spans.
pub const MANY_SPANS: &str = "[limits]\nopen_spans = 131072\nspan_memory_bytes = 268435456\n";

pub struct Daemon {
    pid: Pid,
    /// `None` for a daemon that is no child of this process.
    child: Option<Child>,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts a daemon on this machine with this configuration. It may not listen yet.
    pub fn spawn(machine_toml: &str, config_toml: &str) -> Self {
        Self::spawn_in(tempfile::tempdir().expect("a temporary directory"), machine_toml, config_toml)
    }

    /// As `spawn`, with the store in `state` of this directory, if there is one.
    pub fn spawn_in(dir: tempfile::TempDir, machine_toml: &str, config_toml: &str) -> Self {
        let child = arguments(Command::new(PROGRAM), &dir, machine_toml, config_toml)
            .stderr(Stdio::null())
            .spawn()
            .expect("the daemon starts");
        Self { pid: Pid::from_child(&child), child: Some(child), dir }
    }

    /// As `start`, but its parent ends at once: a client's process share contains that of its children, and the daemon
    /// always runs.
    pub fn start_detached(machine_toml: &str, config_toml: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut shell = Command::new("sh");
        shell.args(["-c", r#""$0" "$@" >/dev/null 2>&1 & echo $!"#, PROGRAM]);
        let output = arguments(shell, &dir, machine_toml, config_toml).output().expect("the daemon starts");
        let pid = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
        let pid = pid.and_then(Pid::from_raw).expect("the daemon's process");
        let daemon = Self { pid, child: None, dir };
        daemon.connect();
        daemon
    }

    /// As `spawn`, and waits until it listens.
    pub fn start(machine_toml: &str, config_toml: &str) -> Self {
        let daemon = Self::spawn(machine_toml, config_toml);
        daemon.connect();
        daemon
    }

    pub fn connect(&self) -> UnixStream {
        let path = self.dir.path().join("run/wattspan.sock");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return stream,
                Err(error) if Instant::now() > deadline => panic!("no daemon: {error}"),
                Err(_) => sleep(Duration::from_micros(200)),
            }
        }
    }

    pub fn client(&self) -> Client {
        Client::connect(&SocketPath::Explicit(self.dir.path().join("run/wattspan.sock"))).expect("a daemon")
    }

    /// CPU time so far of the threads whose name is included, as the scheduler counts it.
    pub fn cpu_time(&self, is_included: impl Fn(&str) -> bool) -> Duration {
        let ns = |task: PathBuf| {
            let text = fs::read_to_string(task.join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(self.tasks(is_included).filter_map(ns).sum())
    }

    /// How often a thread whose name is included has waited so far.
    pub fn wake_ups(&self, is_included: impl Fn(&str) -> bool) -> f64 {
        let count = |task: PathBuf| value_of(&task.join("status"), "voluntary_ctxt_switches:");
        self.tasks(is_included).filter_map(count).sum()
    }

    /// System calls so far that read.
    pub fn read_calls(&self) -> f64 {
        value_of(&self.proc_dir().join("io"), "syscr:").expect("a running daemon")
    }

    /// Memory that is no file's.
    pub fn memory_bytes(&self) -> f64 {
        1024.0 * value_of(&self.proc_dir().join("status"), "RssAnon:").expect("a running daemon")
    }

    pub fn resident_mb(&self) -> f64 {
        value_of(&self.proc_dir().join("status"), "VmRSS:").expect("a running daemon") / 1024.0
    }

    fn proc_dir(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid.as_raw_nonzero()))
    }

    fn tasks(&self, is_included: impl Fn(&str) -> bool) -> impl Iterator<Item = PathBuf> {
        let tasks = fs::read_dir(self.proc_dir().join("task")).expect("a running daemon");
        let paths = tasks.filter_map(|task| Some(task.ok()?.path()));
        paths.filter(move |task| fs::read_to_string(task.join("comm")).is_ok_and(|name| is_included(&name)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// Adds the daemon's arguments to a command, and writes the files that they name.
fn arguments(
    mut command: Command,
    dir: &tempfile::TempDir,
    machine_toml: &str,
    config_toml: &str,
) -> Command {
    let (machine, config) = (dir.path().join("machine.toml"), dir.path().join("wattspan.toml"));
    fs::write(&machine, machine_toml).expect("a file in it");
    fs::write(&config, config_toml).expect("a file in it");
    command
        .args(["--config".as_ref(), config.as_os_str(), "--replay".as_ref(), machine.as_os_str()])
        .args(["--socket".as_ref(), dir.path().join("run/wattspan.sock").as_os_str()])
        .args(["--state-dir".as_ref(), dir.path().join("state").as_os_str()]);
    command
}

/// The number after a name in a file of `/proc`.
fn value_of(file: &Path, name: &str) -> Option<f64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
