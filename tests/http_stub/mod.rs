//! HTTP as bytes: a server and a client that say exactly what a test wants, and a proxy between them.
//!
//! Owns the life of one `wattspan proxy` and of the stub before which it stands. The stub answers with bytes, not with
//! messages, so that splits, framings and nonsense of any kind can be sent.

#![allow(dead_code, reason = "each test uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::TEST_TIMEOUT;

/// A message as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpMessage {
    /// The informational replies before it: status line and headers.
    pub informational: Vec<(String, Vec<(String, String)>)>,
    /// Request line or status line.
    pub line: String,
    /// Headers, in their order and case.
    pub headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// The trailers.
    pub trailers: Vec<(String, String)>,
    /// It ended as its framing says.
    pub is_complete: bool,
}

impl HttpMessage {
    /// A header's value, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header_value(&self.headers, name)
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A header's value, whatever its case.
pub fn header_value<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// One end of a connection, read message by message.
pub struct HttpConnection {
    reader: BufReader<TcpStream>,
}

impl HttpConnection {
    /// To this address.
    pub fn connect(address: SocketAddr) -> Self {
        Self::from_stream(TcpStream::connect(address).unwrap())
    }

    /// Over a connection.
    pub fn from_stream(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        HttpConnection { reader: BufReader::new(stream) }
    }

    /// Sends bytes as they are; whether they were taken.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.reader.get_mut().write_all(bytes).is_ok()
    }

    /// Ends the connection at once.
    pub fn shutdown(&self) {
        let _ = self.reader.get_ref().shutdown(Shutdown::Both);
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// The next line without its end; `None` at the connection's end.
    pub fn read_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let count = self.reader.read_until(b'\n', &mut line).ok()?;
        (count > 0 && line.ends_with(b"\n"))
            .then(|| String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Everything up to the connection's end.
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

    /// A reply with its body.
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

    /// A request with its body.
    pub fn read_request(&mut self) -> Option<HttpMessage> {
        let mut message = self.read_head()?;
        self.read_body(&mut message, false);
        Some(message)
    }

    /// A request's head.
    pub fn read_head(&mut self) -> Option<HttpMessage> {
        Some(HttpMessage { line: self.read_line()?, headers: self.read_headers()?, ..HttpMessage::default() })
    }

    /// The body of a message whose head is there.
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

/// A server that answers with bytes.
pub struct StubServer {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl StubServer {
    /// One whose every connection is handled by `handle`, on a thread of its own.
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

    /// One that answers every request with the same bytes, and keeps the connection.
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

/// A running proxy.
pub struct TestProxy {
    child: Child,
    /// Where it listens; unspecified for a Unix socket.
    pub address: SocketAddr,
    /// The listening address as it stated it.
    pub at: String,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl TestProxy {
    /// Before the server at `upstream` (an URL), asking the daemon at `socket`.
    pub fn start(upstream: &str, socket: &Path, flags: &[&str]) -> Self {
        Self::start_with_env(upstream, socket, flags, &[])
    }

    /// The same with environment variables.
    pub fn start_with_env(
        upstream: &str,
        socket: &Path,
        flags: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wattspan"));
        command.envs(environment.iter().copied());
        Self::start_command(command, upstream, socket, flags)
    }

    /// The same as a process of another user, in this group only. Needs root and setpriv.
    pub fn start_as_user(uid: u32, group: &str, upstream: &str, socket: &Path) -> Self {
        Self::start_as_user_with_flags(uid, group, upstream, socket, &[])
    }

    /// The same with flags.
    pub fn start_as_user_with_flags(
        uid: u32,
        group: &str,
        upstream: &str,
        socket: &Path,
        flags: &[&str],
    ) -> Self {
        // The program lies where others may not look.
        let program = socket.parent().unwrap().with_file_name("wattspan");
        // By a program of its own: a descriptor of ours to write it by would go into whatever another test starts.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_wattspan")).arg(&program).status();
        assert!(copied.unwrap().success());
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={uid}"), format!("--groups={group}")]);
        command.arg(program);
        Self::start_command(command, upstream, socket, flags)
    }

    /// The proxy that this command starts.
    pub fn start_command(mut command: Command, upstream: &str, socket: &Path, flags: &[&str]) -> Self {
        command.args(["proxy", "--upstream", upstream]);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        // Elsewhere the user of a TCP connection is not known.
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

    /// What it said so far, but for its first line.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has found the daemon.
    pub fn wait_for_daemon(self) -> Self {
        crate::support::wait_until("met the meter", || self.log().contains("connected to the daemon at"));
        self
    }

    /// Its process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Asks it to end, and waits until it has heard.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        crate::support::wait_until("heard that it is to end", || self.log().contains("stopping"));
    }

    /// Lets it end; the counters of its last words.
    pub fn stop(self) -> ProxyCounters {
        self.terminate();
        self.wait_for_exit()
    }

    /// Waits for it to end; the counters of its last words.
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

/// What a proxy counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyCounters {
    /// Spans by what became of them.
    pub opened: u64,
    /// With an account.
    pub closed: u64,
    /// Forgotten.
    pub cancelled: u64,
    /// Their connection was lost.
    pub abandoned: u64,
    /// By the daemon.
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

    /// Every span that was opened has ended, one way or the other.
    pub fn assert_ended(&self) {
        let ended = self.closed + self.cancelled + self.abandoned + self.refused;
        assert_eq!(self.opened, ended, "{self:?}");
    }

    /// No span was lost.
    pub fn assert_balanced(&self) {
        assert_eq!(self.opened, self.closed + self.cancelled + self.abandoned, "{self:?}");
        assert_eq!(self.refused, 0, "{self:?}");
    }
}

/// A short pause, in which the other side reads what was sent.
pub fn short_pause() {
    std::thread::sleep(Duration::from_micros(200));
}

/// A request for an inference.
pub fn inference_request(body: &str) -> Vec<u8> {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
