//! The system calls that the daemon's server makes for one request, counted by strace.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::support::{STEADY_MACHINE, TestDaemon, skip, sleep_ms, wait_until};

/// A running strace of one thread.
struct Trace {
    strace: Child,
    output: tempfile::NamedTempFile,
}

impl Trace {
    /// `None`, with a message, where strace is not installed or may not attach.
    fn attach(thread: rustix::process::Pid) -> Option<Self> {
        let output = tempfile::NamedTempFile::new().unwrap();
        let thread = thread.as_raw_nonzero().to_string();
        let errors = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("strace");
        command.args(["-o"]).arg(output.path()).args(["-p", &thread]);
        command.stdout(Stdio::null()).stderr(errors.reopen().unwrap());
        let Ok(mut strace) = command.spawn() else {
            skip::skip("strace", "it counts the system calls");
            return None;
        };
        let said = || std::fs::read_to_string(errors.path()).unwrap();
        wait_until("attached", || said().contains("attached") || strace.try_wait().unwrap().is_some());
        if strace.try_wait().unwrap().is_some() {
            skip::skip("strace", said());
            return None;
        }
        Some(Self { strace, output })
    }

    /// How often each system call was made.
    fn counts(&self) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(self.output.path()).unwrap();
        let mut counts = BTreeMap::new();
        for name in text.lines().filter_map(|line| line.split_once('(')).map(|(name, _)| name) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
        counts
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

#[test]
fn an_isolated_request_takes_three_system_calls() {
    const REQUESTS: usize = 100;
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.call("GetInfo", json!({}));
    let Some(trace) = Trace::attach(daemon.pid()) else { return };
    for _ in 0..REQUESTS {
        client.call("GetInfo", json!({}));
        sleep_ms(2);
    }
    let counts = trace.counts();
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    // A wait, a read and a write each. There may be one more wait for each due time of the service meanwhile.
    assert_eq!(count("recvmsg"), REQUESTS, "{counts:?}");
    assert!(count("write") + count("sendto") >= REQUESTS, "{counts:?}");
    let total: usize = counts.values().sum();
    assert!(total <= 3 * REQUESTS + REQUESTS / 4, "{counts:?}");
}
