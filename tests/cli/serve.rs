//! `wattspan serve`: its figures against those of `top` and `spans`, who gets them, floods, and a daemon that is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::programs;
use crate::support::{STEADY_MACHINE, TEST_TIMEOUT, TestDaemon, fixed_rate_machine, wait_until};

/// A running `wattspan serve`.
struct Server {
    process: Child,
    listen: String,
    url: Option<String>,
}

impl Server {
    fn start(daemon: &TestDaemon, words: &[&str]) -> Self {
        let mut command = Command::new(programs::wattspan());
        command.arg("--socket").arg(daemon.socket()).args(["--json", "serve"]).args(words);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let output: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no address: {line:?}"));
        let url = output["url"].as_str().map(str::to_owned);
        Server { process, listen: output["listen"].as_str().unwrap().to_owned(), url }
    }

    fn start_tcp(daemon: &TestDaemon) -> Self {
        Self::start(daemon, &["--listen", "127.0.0.1:0"])
    }

    fn port(&self) -> u16 {
        self.listen.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    fn token(&self) -> &str {
        self.url.as_ref().unwrap().split_once("?token=").unwrap().1
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream
    }

    /// Sends a request over TCP; `headers` are whole lines.
    fn request(&self, line: &str, headers: &[&str]) -> Reply {
        let mut stream = self.connect();
        send(&mut stream, line, headers);
        Reply::read(stream)
    }

    fn authorization(&self) -> String {
        format!("Authorization: Bearer {}", self.token())
    }

    /// The events of a range.
    fn events(&self, range: &str) -> Events<TcpStream> {
        let mut stream = self.connect();
        send(&mut stream, &format!("GET /events?range={range}"), &["Host: localhost", &self.authorization()]);
        Events::read(stream)
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn send(stream: &mut impl Write, line: &str, headers: &[&str]) {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    stream.write_all(format!("{line} HTTP/1.1\r\n{headers}\r\n").as_bytes()).unwrap();
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn read(stream: impl Read) -> Self {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while reader.read_line(&mut head).unwrap_or(0) > 0 && !head.ends_with("\r\n\r\n") {}
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let head = head.to_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if reader.read_exact(&mut body).is_err() {
            // To HEAD the body is not sent.
            body.clear();
        }
        Reply { status, head, body }
    }
}

/// A stream of events.
struct Events<S> {
    reader: BufReader<S>,
}

impl<S: Read> Events<S> {
    fn read(stream: S) -> Self {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        assert!(
            head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("text/event-stream"),
            "{head}"
        );
        Events { reader }
    }

    /// The next message, without the lines of the chunked encoding.
    fn next(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.reader.read_line(&mut line).unwrap() > 0, "the stream has ended");
            if let Some(message) = line.strip_prefix("data: ") {
                return serde_json::from_str(message).unwrap();
            }
        }
    }

    fn wait_for(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let message = self.next();
            if holds(&message) {
                return message;
            }
            assert!(Instant::now() < deadline, "{what}: {message}");
        }
    }
}

fn close_span(daemon: &TestDaemon, name: &str, model: &str) -> Value {
    let mut client = daemon.client();
    let attributes = json!({"gen_ai.request.model": model, "gen_ai.usage.output_tokens": "10"});
    let open = json!({"name": name, "attributes": attributes, "process_share": false});
    let span = client.call("OpenSpan", open)["span"].clone();
    client.call("MarkPhase", json!({"span": span, "phase": "decode"}));
    std::thread::sleep(std::time::Duration::from_millis(20));
    client.call("CloseSpan", json!({"span": span, "wait_settled": true}))["account"].take()
}

fn group_row<'a>(message: &'a Value, model: &str) -> &'a Value {
    let rows = message["energy"]["rows"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == model).unwrap_or_else(|| panic!("no {model}: {message}"))
}

#[test]
fn a_server_that_cannot_print_its_address_fails() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let socket = daemon.socket().with_file_name("serve.sock");
    let unix = format!("unix:{}", socket.display());
    for (listen, json) in [("127.0.0.1:0", false), ("127.0.0.1:0", true), (&unix, false)] {
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(programs::wattspan());
        command.arg("--socket").arg(daemon.socket()).args(["serve", "--listen", listen]);
        command.args(json.then_some("--json")).stdout(closed).stderr(Stdio::piped());
        let mut server = Server { process: command.spawn().unwrap(), listen: String::new(), url: None };
        let mut status = None;
        wait_until("it ends", || {
            status = server.process.try_wait().unwrap();
            status.is_some()
        });
        let mut printed = String::new();
        server.process.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
        assert_eq!(status.unwrap().code(), Some(1), "{listen}: {printed}");
        assert!(printed.contains("cannot print the address"), "{listen}: {printed}");
    }
}

#[test]
fn its_energies_have_the_digits_of_top_and_of_the_accounts() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let accounts: Vec<Value> =
        ["small", "large", "small"].map(|model| close_span(&daemon, "chat", model)).into();
    let server = Server::start_tcp(&daemon);
    let message = server.events("10m").next();
    assert_eq!((&message["full"], message["requests"].as_array().unwrap().len()), (&json!(true), 3));
    let mut top = Command::new(programs::wattspan());
    top.env("COLUMNS", "200").arg("--socket").arg(daemon.socket());
    let top = String::from_utf8(top.args(["top", "--once"]).output().unwrap().stdout).unwrap();
    assert_eq!(message["energy"]["unit"], "J");
    let mut sums = Command::new(programs::wattspan());
    sums.arg("--socket").arg(daemon.socket()).args(["spans", "--sum", "--by", "model", "--json"]);
    let sums: Value = serde_json::from_slice(&sums.output().unwrap().stdout).unwrap();
    for model in ["small", "large"] {
        let of_model =
            accounts.iter().filter(|account| account["attributes"]["gen_ai.request.model"] == model);
        let sum_uj: u64 = of_model.map(|account| account["share_uj"].as_u64().unwrap()).sum();
        let sums = sums["sums"].as_array().unwrap();
        let stored = sums.iter().find(|sum| sum["model"] == model).unwrap();
        assert_eq!(stored["energy_uj"], sum_uj, "{stored}");
        let shown = group_row(&message, model)["cells"][0].as_str().unwrap();
        assert_eq!(shown, format!("{}.{:03}", (sum_uj + 500) / 1_000_000, (sum_uj + 500) / 1_000 % 1_000));
        let line = top.lines().find(|line| line.starts_with(model)).unwrap();
        assert_eq!(line.split_whitespace().nth(1), Some(shown), "{top}");
        for (cell, text) in group_row(&message, model)["cells"].as_array().unwrap().iter().enumerate().skip(5)
        {
            assert!(line.contains(text.as_str().unwrap()), "{cell}: {text} is not in {line}");
        }
    }
    let digits = |text: &Value| text.as_str().unwrap().replace('.', "").parse::<u64>().unwrap_or(0);
    let rows = message["energy"]["rows"].as_array().unwrap();
    for (cell, machine) in [(0, "machine"), (2, "machine_above_idle")] {
        let sum: u64 = rows.iter().map(|row| digits(&row["cells"][cell])).sum();
        assert_eq!(sum, digits(&message["energy"][machine]), "{message}");
    }
}

#[test]
fn tcp_needs_the_token_the_name_and_the_origin_of_the_page() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let server = Server::start_tcp(&daemon);
    let (page, bearer) = (format!("GET /?token={}", server.token()), server.authorization());
    let host = "Host: localhost";
    let opened = server.request(&page, &[host]);
    assert_eq!(opened.status, 200);
    for header in ["referrer-policy: no-referrer", "cache-control: no-store", "x-frame-options: deny"] {
        assert!(opened.head.contains(header), "{}", opened.head);
    }
    let body = String::from_utf8(opened.body).unwrap();
    let nonce = body.split("<script nonce=\"").nth(1).unwrap().split('"').next().unwrap();
    let policy = format!(
        "content-security-policy: default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    );
    assert!(opened.head.contains(&policy), "{}", opened.head);
    assert!(!opened.head.contains("set-cookie") && !body.contains(server.token()));
    for (status, line, headers) in [
        (401, "GET /", vec![host]),
        (401, "GET /events", vec![host]),
        (401, "GET /events", vec![host, "Authorization: Bearer 00"]),
        (401, "GET /favicon.ico", vec![host]),
        (401, &format!("GET /events?token={}", server.token()), vec![host]),
        (421, &page, vec!["Host: evil.example"]),
        (421, "GET /events", vec!["Host: evil.example:80", &bearer]),
        (400, "GET /events", vec![&bearer]),
        (403, "GET /events", vec![host, &bearer, "Origin: http://evil.example"]),
        (403, "GET /events", vec![host, &bearer, "Origin: http://localhost:1"]),
        (403, "GET /events", vec![host, &bearer, "Sec-Fetch-Site: cross-site"]),
        (405, "POST /events", vec![host, &bearer]),
        (405, "OPTIONS /", vec![host, &bearer]),
        (404, "GET /../../etc/passwd", vec![host, &bearer]),
        (400, "GET /events?range=1y", vec![host, &bearer]),
        (200, "HEAD /", vec![host, &bearer]),
    ] {
        let reply = server.request(line, &headers);
        assert_eq!(reply.status, status, "{line} {headers:?}: {}", String::from_utf8_lossy(&reply.body));
        assert!(!reply.head.contains("access-control"), "{}", reply.head);
        assert!(status == 200 || !String::from_utf8_lossy(&reply.body).contains("package-0"));
    }
}

#[test]
fn a_unix_socket_is_its_owners_and_needs_a_name_of_this_machine() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serve.sock");
    let server = Server::start(&daemon, &["--listen", path.to_str().unwrap()]);
    assert_eq!(
        (server.url.as_deref(), server.listen.as_str()),
        (None, format!("unix:{}", path.display()).as_str())
    );
    let found = std::fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket() && found.mode() & 0o777 == 0o600, "{:o}", found.mode());
    let status = |host: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        send(&mut stream, "GET /", &[&format!("Host: {host}")]);
        Reply::read(stream).status
    };
    assert_eq!((status("localhost:8090"), status("127.0.0.1"), status("evil.example")), (200, 200, 421));
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    send(&mut stream, "GET /events", &["Host: localhost"]);
    assert_eq!(Events::read(stream).next()["full"], true);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&server.process),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    wait_until("the socket file is gone", || !path.exists());
    let group = rustix::process::getegid().as_raw();
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let name = groups.lines().find(|line| line.split(':').nth(2) == Some(&group.to_string())).unwrap();
    let name = name.split(':').next().unwrap();
    let _server = Server::start(&daemon, &["--listen", path.to_str().unwrap(), "--listen-group", name]);
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o660);
}

#[test]
fn by_default_it_listens_in_the_users_runtime_directory() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(programs::wattspan());
    command.env("XDG_RUNTIME_DIR", dir.path()).arg("--socket").arg(daemon.socket()).arg("serve");
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    let mut reader = BufReader::new(process.stdout.take().unwrap());
    (0..3).for_each(|_| assert!(reader.read_line(&mut text).unwrap() > 0, "{text}"));
    let path = dir.path().join("wattspan/serve.sock");
    let is_socket =
        |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let (shown, exists) = (text.contains(path.to_str().unwrap()), is_socket(&path));
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(shown && exists, "{text}");
    // A TCP port that forwards to the socket is open to all users of the other machine.
    assert!(
        text.contains("--listen 127.0.0.1:8090") && text.contains("ssh -L 8090:127.0.0.1:8090 "),
        "{text}"
    );
    assert_eq!(text.matches(path.to_str().unwrap()).count(), 1, "no command forwards the socket: {text}");
}

#[test]
fn viewers_that_never_read_and_floods_take_no_memory_and_do_not_stop_the_others() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let server = Server::start_tcp(&daemon);
    let mut viewer = server.events("10m");
    viewer.next();
    let before = server.resident_bytes();
    // Half of the connections are taken by viewers that never read.
    let stuck: Vec<TcpStream> = (0..30)
        .map(|_| {
            let mut stream = server.connect();
            send(&mut stream, "GET /events?range=24h", &["Host: localhost", &server.authorization()]);
            stream
        })
        .collect();
    for _ in 0..5 {
        // Endless heads, garbage and connections that send nothing.
        let mut heads: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
        for (number, stream) in heads.iter_mut().enumerate() {
            let line =
                [vec![b'x'; 200_000], b"GET / HTTP/1.1\r\n".repeat(1_000), b"\0\xff\r\n\r\n".repeat(100)];
            // The server closes these connections while the rest is written.
            let _ = stream.write_all(&line[number % 3]);
        }
    }
    for _ in 0..10 {
        close_span(&daemon, "chat", "small");
        viewer.next();
    }
    viewer.wait_for("the requests", |message| group_row(message, "small")["cells"][0] != "0.000");
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    let many: Vec<TcpStream> = (0..100).map(|_| server.connect()).collect();
    let mut refused = server.connect();
    send(&mut refused, "GET /", &["Host: localhost"]);
    assert_eq!(Reply::read(refused).status, 503);
    viewer.next();
    drop((stuck, many));
    wait_until("a new page is served", || {
        let page = format!("GET /?token={}", server.token());
        server.request(&page, &["Host: localhost"]).status == 200
    });
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let server = Server::start_tcp(&daemon);
    let mut stream = server.connect();
    let long = format!("X-Long: {}", "x".repeat(1_000_000));
    // The reply can come before the whole head is sent.
    let _ = stream.write_all(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{long}\r\n\r\n").as_bytes());
    // The close of a connection with unread input can take the reply with it.
    let status = Reply::read(stream).status;
    assert!(status == 431 || status == 0, "{status}");
    let headers: Vec<String> = (0..200).map(|number| format!("X-{number}: 1")).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    assert_eq!(server.request("GET /", &headers).status, 431);
}

#[test]
fn a_killed_daemon_is_named_and_the_page_recovers_with_the_new_totals() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    close_span(&daemon, "chat", "early");
    let server = Server::start_tcp(&daemon);
    let mut events = server.events("10m");
    assert_eq!(events.next()["requests"][0]["model"], "early");
    // The first event of the server's own poll replaces all, too, which may come after the viewer.
    events.wait_for("what is new alone", |message| message["full"] == false);
    close_span(&daemon, "chat", "next");
    let message = events.wait_for("the next request", |message| message["requests"][0]["model"] == "next");
    assert_eq!((&message["full"], &message["requests"][0]["tokens"]), (&json!(false), &json!(10)));
    daemon.kill();
    let message = events.wait_for("the loss", |message| message["unreachable"].is_object());
    assert_eq!(message["health"][0]["level"], "alarm");
    assert!(group_row(&message, "early")["cells"][0] != "", "the last figures stay");
    // A page that is opened meanwhile gets them too.
    assert!(server.events("1h").next()["unreachable"].is_object());
    daemon.restart();
    let message = events.wait_for("the recovery", |message| message["full"] == true);
    assert!(message["unreachable"].is_null(), "{message}");
    let rows = message["energy"]["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["kind"] != "group"), "the totals are of the new run: {message}");
    close_span(&daemon, "chat", "after");
    events.wait_for("a request of the new run", |message| message["requests"][0]["model"] == "after");
}

#[test]
fn hostile_names_are_text_without_hidden_characters() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    // The first call builds the program, which can take longer than the minute that the picture covers.
    programs::wattspan();
    let hostile = format!("</script><img src=x>\u{202e}{}", "x".repeat(150));
    close_span(&daemon, &hostile, &hostile);
    let server = Server::start_tcp(&daemon);
    let message = server.events("10m").next();
    let shown = message["requests"][0]["name"].as_str().unwrap();
    assert!(shown.starts_with("</script><img src=x>\\u{202e}xx") && shown.chars().count() == 80, "{shown}");
    let pictures = message["pictures"].to_string();
    assert!(pictures.contains("&lt;/script&gt;&lt;img") && !pictures.contains("<img"), "{pictures}");
    assert!(!message.to_string().contains('\u{202e}'));
}

#[test]
fn a_viewer_does_not_make_the_samplers_run_at_their_full_rate() {
    let daemon = TestDaemon::start_with_config(&fixed_rate_machine(), "idle_rate_hz = 1.0\n");
    let mut client = daemon.client();
    let mut state = || {
        let info = client.call("GetInfo", json!({}));
        (info["samplers"][0]["ticks"].as_u64().unwrap(), info["now_ns"].as_u64().unwrap())
    };
    // The characterisation after the start reads often; it has ended once a second passes with few reads.
    let mut before = state();
    wait_until("the samplers rest", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = state();
        let rests = now.0 - before.0 <= 5;
        before = now;
        rests
    });
    let server = Server::start_tcp(&daemon);
    let mut events = server.events("10m");
    let before = state();
    for _ in 0..6 {
        events.next();
    }
    let now = state();
    let seconds = (now.1 - before.1).div_ceil(1_000_000_000);
    // 1 Hz; a stream of the domains makes it 1000 Hz.
    assert!(now.0 - before.0 <= 2 * seconds + 2, "{} reads in {seconds} s", now.0 - before.0);
}
