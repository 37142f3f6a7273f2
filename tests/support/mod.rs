//! A real daemon on a simulated machine, and clients for it.
//!
//! Owns the life of one `wattspand`: its directory, machine, configuration and log; it is killed with this value. The
//! clients speak bytes on a real socket, so that what is tested is what anybody sees.

#![allow(dead_code, reason = "each test uses its own part")]

pub mod in_process;
pub mod skip;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A machine that draws 100 W all the time, its counters as quick as RAPL's.
pub const STEADY_MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[1.0, 80]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "core-0"
kind = "core"
parent = "package-0"
profile = [[1.0, 50]]
quantum_uj = 61
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[1.0, 20]]
quantum_uj = 15
ceiling_w = 100
"#;

/// A machine whose only counter moves so seldom that nothing settles during a test.
pub const SLOW_COUNTER_MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[1.0, 80]]
update_ns = 20_000_000_000
"#;

/// How long anything may take before a test gives up; only ever a limit, never an expectation.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A running daemon.
pub struct TestDaemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl TestDaemon {
    /// On this machine, with the default configuration.
    pub fn start(machine: &str) -> Self {
        Self::start_with_config(machine, "")
    }

    /// On this machine, with this configuration.
    pub fn start_with_config(machine: &str, configuration: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        std::fs::write(dir.path().join("machine.toml"), machine).unwrap();
        // The host's own bus is none of a test's business.
        let bus = if configuration.contains("bus = ") { "" } else { "bus = false\n" };
        std::fs::write(dir.path().join("wattspan.toml"), format!("{bus}{configuration}")).unwrap();
        let child = daemon_command(dir.path()).spawn().unwrap();
        let mut daemon = Self { child, dir };
        daemon.wait_for_socket();
        daemon
    }

    /// Starts it anew in the same place, after it ended.
    pub fn restart(&mut self) {
        self.child = daemon_command(self.dir.path()).spawn().unwrap();
        self.wait_for_socket();
    }

    fn wait_for_socket(&mut self) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !self.is_ready() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", self.log());
            }
            assert!(Instant::now() < deadline, "no socket: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether it measures: the socket is there before the counters are read, and answers once they are.
    fn is_ready(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else { return false };
        let sent = stream.write_all(&encode_call("GetInfo", json!({}), &[]));
        sent.is_ok() && stream.read(&mut [0]).is_ok_and(|length| length > 0)
    }

    /// A second daemon on the same socket; how it ended, and what it said.
    pub fn run_second_daemon(&self) -> (ExitStatus, String) {
        let output = daemon_command(self.dir.path()).stderr(Stdio::piped()).output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run").join("wattspan.sock")
    }

    /// Where it keeps its ledger, unless the configuration says otherwise.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What it said so far, but for the group of that name, which one machine has and another has not.
    pub fn log(&self) -> String {
        let all = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let of_the_machine = |line: &&str| line.contains("the group wattspan does not exist");
        all.split_inclusive('\n').filter(|line| !of_the_machine(line)).collect()
    }

    /// A new client.
    pub fn client(&self) -> TestClient {
        TestClient::from_stream(UnixStream::connect(self.socket()).unwrap())
    }

    /// Its process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Asks it to stop; does not wait.
    pub fn terminate(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).unwrap();
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for it to end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `wattspand` in this directory, as the machine of this directory.
///
/// `WATTSPAN_TEST_DAEMON` names another build of it, for what an unoptimised one is too slow for.
pub fn daemon_command(dir: &Path) -> Command {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command =
        Command::new(optimised_daemon().unwrap_or_else(|| env!("CARGO_BIN_EXE_wattspand").into()));
    command
        .env_remove("WATTSPAN_SOCKET")
        .args(["--config".as_ref(), dir.join("wattspan.toml").as_os_str()])
        .args(["--replay".as_ref(), dir.join("machine.toml").as_os_str()])
        .args(["--socket".as_ref(), dir.join("run").join("wattspan.sock").as_os_str()])
        .stdin(Stdio::null())
        .stderr(log);
    // A flag would win over what a test's configuration says.
    let configured = std::fs::read_to_string(dir.join("wattspan.toml")).unwrap_or_default();
    if !configured.contains("state_dir") {
        command.args(["--state-dir".as_ref(), dir.join("state").as_os_str()]);
    }
    command
}

/// The optimised daemon that is tested instead of the test's own build.
pub fn optimised_daemon() -> Option<std::ffi::OsString> {
    std::env::var_os("WATTSPAN_TEST_DAEMON")
}

/// A client that says anything.
pub struct TestClient {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl TestClient {
    /// Over a connected socket.
    pub fn from_stream(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// The socket itself.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends bytes as they are; whether the daemon took them all.
    pub fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a call of the meter's interface, or of any where the name has dots.
    pub fn send(&mut self, method: &str, parameters: Value, flags: &[&str]) {
        let bytes = encode_call(method, parameters, flags);
        assert!(self.send_raw(&bytes), "the daemon hung up");
    }

    /// The next answer; `None` where the daemon hung up.
    pub fn receive(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == 0) {
                let rest = self.buffer.split_off(end + 1);
                let message = std::mem::replace(&mut self.buffer, rest);
                return Some(serde_json::from_slice(&message[..end]).unwrap());
            }
            let mut chunk = [0; 1 << 16];
            match self.stream.read(&mut chunk) {
                Ok(length) if length > 0 => self.buffer.extend_from_slice(&chunk[..length]),
                Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer"),
                _ => return None,
            }
        }
    }

    /// Whether the daemon hangs up without another answer.
    pub fn is_disconnected(&mut self) -> bool {
        self.receive().is_none()
    }

    /// Calls, and gives the whole answer.
    pub fn call_raw(&mut self, method: &str, parameters: Value) -> Value {
        self.send(method, parameters, &[]);
        self.receive().expect("an answer")
    }

    /// Calls, and gives the reply's parameters.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        let mut answer = self.call_raw(method, parameters);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["parameters"].take()
    }

    /// Calls, and gives the refusal's short name and its parameters.
    pub fn call_error(&mut self, method: &str, parameters: Value) -> (String, Value) {
        error_of(self.call_raw(method, parameters))
    }

    /// Opens a span of this name.
    pub fn open(&mut self, span: &str) {
        assert_eq!(self.call("OpenSpan", json!({ "span": span })), json!({ "span": span }));
    }

    /// Closes a span; its final account.
    pub fn close_and_settle(&mut self, span: &str) -> Value {
        let account = self.call("CloseSpan", json!({ "span": span, "wait_settled": true }))["account"].take();
        assert_eq!(account["state"], "settled", "{account}");
        account
    }
}

/// The refusal's short name and its parameters.
pub fn error_of(mut answer: Value) -> (String, Value) {
    let error = answer["error"].as_str().unwrap_or_else(|| panic!("no refusal: {answer}")).to_owned();
    let name = error.strip_prefix("org.wattspan.Meter.").map(str::to_owned).unwrap_or(error);
    (name, answer["parameters"].take())
}

/// A call on the wire.
pub fn encode_call(method: &str, parameters: Value, flags: &[&str]) -> Vec<u8> {
    let method =
        if method.contains('.') { method.to_owned() } else { format!("org.wattspan.Meter.{method}") };
    let mut call = json!({ "method": method, "parameters": parameters });
    for flag in flags {
        call[*flag] = json!(true);
    }
    let mut bytes = serde_json::to_vec(&call).unwrap();
    bytes.push(0);
    bytes
}

/// A number that must be there.
pub fn get_u64(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or_else(|| panic!("no {name} in {of}"))
}

/// The domain's row of an account, a window or a balance.
pub fn domain_row<'a>(rows: &'a Value, domain: &str) -> &'a Value {
    let named = |row: &&Value| row["domain"] == domain || row["name"] == domain;
    rows.as_array().unwrap().iter().find(named).unwrap_or_else(|| panic!("no {domain} in {rows}"))
}

/// Lets time pass in which the machine uses energy.
pub fn sleep_ms(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !so() {
        assert!(Instant::now() < deadline, "never {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
