//! A daemon on a simulated machine, with its files in a temporary directory; killed on drop.

#![allow(dead_code, reason = "each bench uses its part")]

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use wattspan_client::{Client, SocketPath};

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
    child: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts a daemon on this machine with this configuration. It may not listen yet.
    pub fn spawn(machine_toml: &str, config_toml: &str) -> Self {
        Self::spawn_in(tempfile::tempdir().expect("a temporary directory"), machine_toml, config_toml)
    }

    /// As `spawn`, with the store in `state` of this directory, if there is one.
    pub fn spawn_in(dir: tempfile::TempDir, machine_toml: &str, config_toml: &str) -> Self {
        let (machine, config) = (dir.path().join("machine.toml"), dir.path().join("wattspan.toml"));
        fs::write(&machine, machine_toml).expect("a file in it");
        fs::write(&config, config_toml).expect("a file in it");
        let child = Command::new(env!("CARGO_BIN_EXE_wattspand"))
            .args(["--config".as_ref(), config.as_os_str(), "--replay".as_ref(), machine.as_os_str()])
            .args(["--socket".as_ref(), dir.path().join("run/wattspan.sock").as_os_str()])
            .args(["--state-dir".as_ref(), dir.path().join("state").as_os_str()])
            .stderr(Stdio::null())
            .spawn()
            .expect("the daemon starts");
        Self { child, dir }
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
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a running daemon");
        let of_task = |task: std::io::Result<fs::DirEntry>| {
            let path = task.ok()?.path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            let schedstat = fs::read_to_string(path.join("schedstat")).ok()?;
            let ns = schedstat.split(' ').next()?.parse::<u64>().ok()?;
            is_included(&name).then_some(ns)
        };
        Duration::from_nanos(tasks.filter_map(of_task).sum())
    }

    pub fn resident_mb(&self) -> f64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running daemon");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux shows it");
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib / 1024.0
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
