//! HTTP as bytes: a stub server, a client, and a `wattspan proxy` between them.
//!
//! Owns the proxy process and the stub. The stub sends bytes instead of messages, so that tests can send any split,
//! framing or malformed reply.

#![allow(dead_code, reason = "each test uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::TEST_TIMEOUT;

/// A received message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpMessage {
    /// The informational replies before it: status line and headers.
    pub informational: Vec<(String, Vec<(String, String)>)>,
    pub line: String,
    /// Headers, in the order and case in which they were received.
    pub headers: Vec<(String, String)>,
    /// The body with the framing removed.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether the message ended as its framing requires.
    pub is_complete: bool,
}

impl HttpMessage {
    /// A header's value; the name is matched case-insensitively.
    pub fn header(&self, name: &str) -> Option<&str> {
        header_value(&self.headers, name)
    }

    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A header's value; the name is matched case-insensitively.
pub fn header_value<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// One end of a connection, read message by message.
pub struct HttpConnection {
    reader: BufReader<TcpStream>,
}

impl HttpConnection {
    pub fn connect(address: SocketAddr) -> Self {
        Self::from_stream(TcpStream::connect(address).unwrap())
    }

    pub fn from_stream(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        HttpConnection { reader: BufReader::new(stream) }
    }

    /// Sends raw bytes; returns whether all were written.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.reader.get_mut().write_all(bytes).is_ok()
    }

    /// Closes the connection at once.
    pub fn shutdown(&self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Both);
    }

    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// The next line without its line break; `None` at the end of the connection.
    pub fn read_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let count = self.reader.read_until(b'\n', &mut line).ok()?;
        (count > 0 && line.ends_with(b"\n"))
            .then(|| String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Everything up to the end of the connection.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.reader.read_to_end(&mut rest);
        rest
    }

    /// The headers up to the empty line.
    pub fn read_headers(&mut self) -> Option<Vec<(String, String)>> {
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Some(headers);
            }
            let (name, value) = line.split_once(':')?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    pub fn read_reply(&mut self) -> Option<HttpMessage> {
        let mut message = HttpMessage::default();
        loop {
            let (line, headers) = (self.read_line()?, self.read_headers()?);
            if line.split(' ').nth(1)?.starts_with('1') && !line.contains(" 101") {
                message.informational.push((line, headers));
                continue;
            }
            (message.line, message.headers) = (line, headers);
            break;
        }
        let empty = matches!(message.status(), 101 | 204 | 304);
        if !empty {
            self.read_body(&mut message, true);
        }
        Some(message)
    }

    pub fn read_request(&mut self) -> Option<HttpMessage> {
        let mut message = self.read_head()?;
        self.read_body(&mut message, false);
        Some(message)
    }

    /// A request's or reply's first line and headers.
    pub fn read_head(&mut self) -> Option<HttpMessage> {
        Some(HttpMessage { line: self.read_line()?, headers: self.read_headers()?, ..HttpMessage::default() })
    }

    /// Reads the body of a message whose head was read.
    pub fn read_body(&mut self, message: &mut HttpMessage, to_the_end: bool) {
        let chunked = message.header("transfer-encoding").is_some();
        let length = message.header("content-length").and_then(|length| length.parse::<usize>().ok());
        if chunked {
            message.is_complete = self.read_chunks(message).is_some();
        } else if let Some(length) = length {
            let mut taken = self.reader.by_ref().take(length as u64);
            let read = taken.read_to_end(&mut message.body);
            message.is_complete = read.is_ok() && message.body.len() == length;
        } else if to_the_end {
            message.is_complete = self.reader.read_to_end(&mut message.body).is_ok();
        }
    }

    fn read_chunks(&mut self, message: &mut HttpMessage) -> Option<()> {
        loop {
            let size = usize::from_str_radix(self.read_line()?.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                message.trailers = self.read_headers()?;
                return Some(());
            }
            let start = message.body.len();
            message.body.resize(start + size, 0);
            self.reader.read_exact(&mut message.body[start..]).ok()?;
            self.read_line()?;
        }
    }
}

/// A server that replies with raw bytes.
pub struct StubServer {
    pub address: SocketAddr,
    stop: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl StubServer {
    /// Runs `handle` for each connection, on a thread of its own.
    pub fn new(handle: impl Fn(HttpConnection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(Mutex::new(false));
        let (stopped, handle) = (Arc::clone(&stop), Arc::new(handle));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if *stopped.lock().unwrap() {
                    return;
                }
                let handle = Arc::clone(&handle);
                std::thread::spawn(move || handle(HttpConnection::from_stream(stream)));
            }
        });
        StubServer { address, stop, thread: Some(thread) }
    }

    /// Answers every request with the same bytes, and keeps the connection open.
    pub fn with_reply(reply: impl Into<Vec<u8>>) -> Self {
        let reply = reply.into();
        StubServer::new(
            move |mut connection| while connection.read_request().is_some() && connection.send(&reply) {},
        )
    }
}

impl Drop for StubServer {
    fn drop(&mut self) {
        *self.stop.lock().unwrap() = true;
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

pub struct TestProxy {
    child: Child,
    /// The listening address; unspecified for a Unix socket.
    pub address: SocketAddr,
    /// The listening address as the proxy printed it.
    pub at: String,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl TestProxy {
    /// Starts a proxy for the server at the URL `upstream`, with the daemon at `socket`.
    pub fn start(upstream: &str, socket: &Path, flags: &[&str]) -> Self {
        Self::start_with_env(upstream, socket, flags, &[])
    }

    /// As `start`, with environment variables.
    pub fn start_with_env(
        upstream: &str,
        socket: &Path,
        flags: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let mut command = Command::new(crate::programs::wattspan());
        command.envs(environment.iter().copied());
        Self::start_command(command, upstream, socket, flags)
    }

    /// As `start`, as a process of another user that is in this group only. Needs root and setpriv.
    pub fn start_as_user(uid: u32, group: &str, upstream: &str, socket: &Path) -> Self {
        Self::start_as_user_with_flags(uid, group, upstream, socket, &[])
    }

    /// As `start_as_user`, with flags.
    pub fn start_as_user_with_flags(
        uid: u32,
        group: &str,
        upstream: &str,
        socket: &Path,
        flags: &[&str],
    ) -> Self {
        // Other users may be unable to read the directory of the program.
        let program = socket.parent().unwrap().with_file_name("wattspan");
        // Copied by a separate process: another test's child could inherit our write descriptor, and the copy could not
        // be run.
        let copied = Command::new("cp").arg(crate::programs::wattspan()).arg(&program).status();
        assert!(copied.unwrap().success());
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={uid}"), format!("--groups={group}")]);
        command.arg(program);
        Self::start_command(command, upstream, socket, flags)
    }

    /// Starts the proxy by this command.
    pub fn start_command(mut command: Command, upstream: &str, socket: &Path, flags: &[&str]) -> Self {
        command.args(["proxy", "--upstream", upstream]);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        // Other systems do not reveal the user of a TCP connection.
        if cfg!(not(target_os = "linux")) && !flags.contains(&"--annotate-all") {
            command.arg("--annotate-all");
        }
        let mut child = command
            .arg("--socket")
            .arg(socket)
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        let at = first.split("listening at ").nth(1).and_then(|rest| rest.split(',').next());
        let at = at.unwrap_or_else(|| panic!("{first}")).to_owned();
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = at.strip_prefix("http://").map_or(nowhere, |address| address.parse().unwrap());
        let written = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                written.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        TestProxy { child, address, at, log, reader: Some(reader) }
    }

    /// The log so far, without the first line.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the proxy has connected to the daemon.
    pub fn wait_for_daemon(self) -> Self {
        crate::support::wait_until("met the meter", || self.log().contains("connected to the daemon at"));
        self
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Sends SIGTERM, and waits until the proxy logs that it is stopping.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        crate::support::wait_until("the stop is logged", || self.log().contains("stopping"));
    }

    /// Stops the proxy; returns the counters that it logs at exit.
    pub fn stop(self) -> ProxyCounters {
        self.terminate();
        self.wait_for_exit()
    }

    /// Waits for the proxy to exit; returns the counters that it logs then.
    pub fn wait_for_exit(mut self) -> ProxyCounters {
        self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        ProxyCounters::read(&self.log())
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The counters that a proxy logs at exit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyCounters {
    /// Spans opened; each is also in one of the next four.
    pub opened: u64,
    /// Spans closed, with an account.
    pub closed: u64,
    /// Spans cancelled, without an account.
    pub cancelled: u64,
    /// Spans whose connection to the daemon was lost.
    pub abandoned: u64,
    /// Spans that the daemon refused to open.
    pub refused: u64,
    /// Requests without a span.
    pub unmeasured: u64,
}

impl ProxyCounters {
    fn read(log: &str) -> Self {
        let line =
            log.lines().rev().find(|line| line.contains(" opened = ")).unwrap_or_else(|| panic!("{log}"));
        let before = |word: &str| {
            let text = line.split(word).next().unwrap();
            text.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{word} in {line}"))
        };
        ProxyCounters {
            opened: before(" opened"),
            closed: before(" closed"),
            cancelled: before(" cancelled"),
            abandoned: before(" abandoned"),
            refused: before(" refused"),
            unmeasured: before(" unmeasured"),
        }
    }

    /// Asserts that every opened span has ended in some way.
    pub fn assert_ended(&self) {
        let ended = self.closed + self.cancelled + self.abandoned + self.refused;
        assert_eq!(self.opened, ended, "{self:?}");
    }

    /// Asserts that no span was lost or refused.
    pub fn assert_balanced(&self) {
        assert_eq!(self.opened, self.closed + self.cancelled + self.abandoned, "{self:?}");
        assert_eq!(self.refused, 0, "{self:?}");
    }
}

/// Sleeps briefly, so that the peer can read what was sent.
pub fn short_pause() {
    std::thread::sleep(Duration::from_micros(200));
}

pub fn inference_request(body: &str) -> Vec<u8> {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
