//! A real daemon on a simulated machine, and clients for it.
//!
//! Owns one `wattspand` process: its directory, machine, configuration and log. Dropping the value kills the process.
//! The clients send bytes over a real socket, so that tests cover the wire format itself.

#![allow(dead_code, reason = "each test uses its own part")]

pub mod in_process;
pub mod skip;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The name of the test `test` in the module `module` (`module_path!()`), for running it alone in a process of its own.
pub fn test_name(module: &str, test: &str) -> String {
    let (_, inside) = module.split_once("::").expect("a module below the crate");
    format!("{inside}::{test}")
}

/// A machine that draws 100 W all the time, with counters as fast as RAPL's, which are read at edges and around updates.
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
ceiling_w = 400
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[1.0, 20]]
quantum_uj = 15
ceiling_w = 100
"#;

/// The same machine with a domain whose ceiling is unknown: all counters are read at the fixed rate.
pub fn fixed_rate_machine() -> String {
    let unlimited = STEADY_MACHINE.replacen("ceiling_w = 400\n", "", 1);
    assert_ne!(unlimited, STEADY_MACHINE);
    unlimited
}

/// A machine whose only counter moves so rarely that nothing settles during a test.
pub const SLOW_COUNTER_MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[1.0, 80]]
update_ns = 20_000_000_000
"#;

/// The time after which a waiting test fails. No test expects anything to take this long.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(20);

pub struct TestDaemon {
    child: Child,
    dir: tempfile::TempDir,
    memory_dir: tempfile::TempDir,
    /// Shell commands that run in the daemon's process before it, at each start: limits and environment.
    setup: String,
}

impl TestDaemon {
    /// Starts it on this machine, with the default configuration.
    pub fn start(machine: &str) -> Self {
        Self::start_with_config(machine, "")
    }

    /// Starts it on this machine, with this configuration.
    pub fn start_with_config(machine: &str, configuration: &str) -> Self {
        Self::try_start(machine, configuration, "")
            .unwrap_or_else(|(daemon, status)| panic!("the daemon ended with {status}: {}", daemon.log()))
    }

    /// Starts it after these shell commands, which set its limits and environment. If it ends instead of serving, the error
    /// has its exit status.
    pub fn try_start(machine: &str, configuration: &str, setup: &str) -> Result<Self, (Self, ExitStatus)> {
        let dir = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        std::fs::write(dir.path().join("machine.toml"), machine).unwrap();
        // Tests do not use the host's own bus.
        let bus = if configuration.contains("bus = ") { "" } else { "bus = false\n" };
        std::fs::write(dir.path().join("wattspan.toml"), format!("{bus}{configuration}")).unwrap();
        let memory_dir = memory_dir();
        let child = set_up_command(dir.path(), &memory_dir.path().join("state"), setup).spawn().unwrap();
        let mut daemon = Self { child, dir, memory_dir, setup: setup.to_owned() };
        match daemon.wait_for_socket() {
            Ok(()) => Ok(daemon),
            Err(status) => Err((daemon, status)),
        }
    }

    /// Starts the daemon again in the same directory, after it exited.
    pub fn restart(&mut self) {
        if let Err(status) = self.try_restart() {
            panic!("the daemon ended with {status}: {}", self.log());
        }
    }

    /// As [`Self::restart`]; the error is the exit status of a daemon that ended instead of serving.
    pub fn try_restart(&mut self) -> Result<(), ExitStatus> {
        self.child = set_up_command(self.dir.path(), &self.state(), &self.setup).spawn().unwrap();
        self.wait_for_socket()
    }

    fn wait_for_socket(&mut self) -> Result<(), ExitStatus> {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !self.is_ready() {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(status);
            }
            assert!(Instant::now() < deadline, "no socket: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        // The time before the first move of a counter is unknown, and an account with such a time has no error. The machines of
        // the tests have moved by then, except for those whose counters move so rarely that no test waits for them.
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    /// Whether it measures: the socket exists before the counters are read; a reply arrives only once they are.
    fn is_ready(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else { return false };
        let sent = stream.write_all(&encode_call("GetInfo", json!({}), &[]));
        sent.is_ok() && stream.read(&mut [0]).is_ok_and(|length| length > 0)
    }

    /// Runs a second daemon on the same socket; returns its exit status and output.
    pub fn run_second_daemon(&self) -> (ExitStatus, String) {
        let output =
            command_with_state(self.dir.path(), &self.state()).stderr(Stdio::piped()).output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run").join("wattspan.sock")
    }

    /// The state directory, unless the configuration names another one.
    pub fn state(&self) -> PathBuf {
        self.memory_dir.path().join("state")
    }

    /// The log so far, without the line about the group database, which differs between machines.
    pub fn log(&self) -> String {
        let all = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let of_the_machine = |line: &&str| line.contains("the group wattspan does not exist");
        all.split_inclusive('\n').filter(|line| !of_the_machine(line)).collect()
    }

    pub fn client(&self) -> TestClient {
        TestClient::from_stream(UnixStream::connect(self.socket()).unwrap())
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Sends SIGTERM without waiting.
    pub fn terminate(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).unwrap();
    }

    /// Kills the process (SIGKILL), as a power failure would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The exit status, if the process has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the process has exited.
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

/// A directory in memory where there is room, else on the disk.
///
/// An account is answered as not durable where the store has not written it within two seconds. On a disk that others write
/// to, a dozen syncs of a new database may take longer.
fn memory_dir() -> tempfile::TempDir {
    const MIN_FREE_BYTES: u64 = 1 << 30;
    let in_memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(in_memory).is_ok_and(|fs| fs.f_bavail * fs.f_frsize > MIN_FREE_BYTES);
    let dir = has_room.then(|| tempfile::tempdir_in(in_memory).ok()).flatten();
    dir.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// A `wattspand` command for this directory and the machine described there.
///
/// `WATTSPAN_TEST_DAEMON` names another build, for tests for which an unoptimised build is too slow.
pub fn daemon_command(dir: &Path) -> Command {
    command_with_state(dir, &dir.join("state"))
}

/// The same with this state directory, unless the configuration names another one.
fn command_with_state(dir: &Path, state: &Path) -> Command {
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
    // A flag would override the test's configuration.
    let configured = std::fs::read_to_string(dir.join("wattspan.toml")).unwrap_or_default();
    if !configured.contains("state_dir") {
        command.args(["--state-dir".as_ref(), state.as_os_str()]);
    }
    command
}

/// The same, after shell commands that set the process's limits and environment.
fn set_up_command(dir: &Path, state: &Path, setup: &str) -> Command {
    let command = command_with_state(dir, state);
    if setup.is_empty() {
        return command;
    }
    let log = std::fs::File::options().append(true).open(dir.join("log")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{setup}\nexec \"$0\" \"$@\"")]).arg(command.get_program());
    shell.args(command.get_args()).env_remove("WATTSPAN_SOCKET").stdin(Stdio::null()).stderr(log);
    shell
}

/// The optimised daemon that is tested instead of the debug build.
pub fn optimised_daemon() -> Option<std::ffi::OsString> {
    std::env::var_os("WATTSPAN_TEST_DAEMON")
}

/// A client that can send any bytes.
pub struct TestClient {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl TestClient {
    /// Uses a connected socket.
    pub fn from_stream(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends raw bytes; returns whether the daemon accepted all of them.
    pub fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a call of the daemon's interface, or of any interface if `method` contains dots.
    pub fn send(&mut self, method: &str, parameters: Value, flags: &[&str]) {
        let bytes = encode_call(method, parameters, flags);
        assert!(self.send_raw(&bytes), "the daemon hung up");
    }

    /// The next reply; `None` if the daemon closed the connection.
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
                Ok(_) => return None,
                Err(cause) => match cause.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return None,
                    _ => panic!("no answer: {cause}"),
                },
            }
        }
    }

    /// Whether the daemon closes the connection without another reply.
    pub fn is_disconnected(&mut self) -> bool {
        self.receive().is_none()
    }

    /// Calls a method and returns the whole reply.
    pub fn call_raw(&mut self, method: &str, parameters: Value) -> Value {
        self.send(method, parameters, &[]);
        self.receive().expect("an answer")
    }

    /// Calls a method that must succeed; returns the reply's parameters.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        let mut answer = self.call_raw(method, parameters);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["parameters"].take()
    }

    /// Calls a method that must fail; returns the error's short name and its parameters.
    pub fn call_error(&mut self, method: &str, parameters: Value) -> (String, Value) {
        error_of(self.call_raw(method, parameters))
    }

    pub fn open(&mut self, span: &str) {
        assert_eq!(self.call("OpenSpan", json!({ "span": span })), json!({ "span": span }));
    }

    /// Closes a span and returns its final account.
    pub fn close_and_settle(&mut self, span: &str) -> Value {
        let account = self.call("CloseSpan", json!({ "span": span, "wait_settled": true }))["account"].take();
        assert_eq!(account["state"], "settled", "{account}");
        account
    }
}

/// The error's short name and its parameters.
pub fn error_of(mut answer: Value) -> (String, Value) {
    let error = answer["error"].as_str().unwrap_or_else(|| panic!("no refusal: {answer}")).to_owned();
    let name = error.strip_prefix("org.wattspan.Meter.").map(str::to_owned).unwrap_or(error);
    (name, answer["parameters"].take())
}

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

/// A number field that must exist.
pub fn get_u64(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or_else(|| panic!("no {name} in {of}"))
}

/// A domain's row of an account, a window or a balance.
pub fn domain_row<'a>(rows: &'a Value, domain: &str) -> &'a Value {
    let named = |row: &&Value| row["domain"] == domain || row["name"] == domain;
    rows.as_array().unwrap().iter().find(named).unwrap_or_else(|| panic!("no {domain} in {rows}"))
}

/// Opens and closes spans in batches until the daemon goes away, with a pause after each, and counts the replies.
pub fn run_spans_until_it_ends(
    mut client: TestClient,
    prefix: &str,
    pause: Duration,
    answered: &AtomicUsize,
) {
    for batch in 0.. {
        let mut calls = Vec::new();
        for at in 0..8 {
            let span = format!("{prefix}-{batch}-{at}");
            calls.extend(encode_call("OpenSpan", json!({ "span": span }), &["oneway"]));
            calls.extend(encode_call("CloseSpan", json!({ "span": span, "wait_settled": true }), &[]));
        }
        if !client.send_raw(&calls) {
            return;
        }
        for _ in 0..8 {
            if client.receive().is_none() {
                return;
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(pause);
    }
}

/// Sleeps while the machine uses energy.
pub fn sleep_ms(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Polls until a condition holds; panics after a minute.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < deadline, "never {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
