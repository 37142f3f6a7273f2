//! Good requests among malicious clients and malicious replies, all through one proxy and its pool of connections.
//!
//! The order of everything follows from a seed, except for the scheduling of the threads. A good request must get its
//! own reply, whatever the others do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use wattspan_ipw::bootstrap::SplitMix64;

use crate::http_stub::{HttpConnection, HttpMessage, StubServer, TestProxy};
use crate::support::{STEADY_MACHINE, TestDaemon};

/// Good requests of each of the good clients. `WATTSPAN_ROUNDS` sets another number.
const GOOD_REQUESTS: usize = 60;

const GOOD_CLIENTS: u64 = 4;
const HOSTILE_CLIENTS: u64 = 4;

/// What a malicious client sends instead of a request.
const HOSTILE_REQUESTS: [&str; 14] = [
    "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
    "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{\"model\":",
    "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhelloGET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /refused HTTP/1.1\r\nHost: t\r\nContent-Length: 400000\r\n\r\n{\"model\":",
    "POST /refused HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "POST /refused HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    "POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "GET /good/1 HTTP/1.1\r\nHost: t\r\nX-A: 1\r\n 2\r\n\r\n",
    "GET /good/1 HTTP/1.1\r\nHost: t\r\n\r\nGET /good/2 HTTP/1.1\r\nHost: t\r\n\r\n",
    "\x16\x03\x01\x02\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nno frames",
    "GET /good/1 HTT",
];

/// A complete reply that no request has asked for.
const SMUGGLED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"smuggled\":true}";

/// What a malicious server replies, and whether it closes the connection, which no reply announces.
fn hostile_reply(kind: usize) -> (String, bool) {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let head = "HTTP/1.1 200 OK\r\n";
    let error = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
    match kind {
        0 => (format!("{ok}garbage"), false),
        1 => (format!("{ok}{SMUGGLED}"), false),
        2 => (format!("{head}Content-Length: 100\r\n\r\ncut off"), true),
        3 => (format!("{head}Transfer-Encoding: chunked\r\n\r\nxyz\r\n{SMUGGLED}"), false),
        4 => (
            format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{SMUGGLED}"),
            false,
        ),
        5 => (
            format!(
                "{head}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{SMUGGLED}"
            ),
            false,
        ),
        6 => (format!("garbage\r\n\r\n{SMUGGLED}"), false),
        7 => (error("400 Bad Request"), true),
        8 => (error("408 Request Timeout"), true),
        9 => (error("500 Internal Server Error"), true),
        10 => (error("413 Content Too Large"), true),
        11 => (format!("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{SMUGGLED}"), false),
        12 => (format!("HTTP/1.1 304 Not Modified\r\n\r\n{SMUGGLED}"), false),
        _ => (String::new(), true),
    }
}

const HOSTILE_REPLIES: usize = 14;

/// Serves good requests, and what the path asks for.
fn serve(mut connection: HttpConnection) {
    while let Some(mut request) = connection.read_head() {
        let path = request.line.split(' ').nth(1).unwrap_or_default().to_owned();
        if path == "/refused" {
            // Servers answer such a request before its body, and close the connection without an announcement.
            connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno");
            return;
        }
        connection.read_body(&mut request, false);
        let has_body =
            ["transfer-encoding", "content-length"].iter().any(|name| request.header(name).is_some());
        if has_body && !request.is_complete {
            connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno");
            return;
        }
        if let Some(kind) = path.rsplit_once("kind=").and_then(|(_, kind)| kind.parse().ok()) {
            let (reply, closes) = hostile_reply(kind);
            if !connection.send(reply.as_bytes()) || closes {
                return;
            }
            continue;
        }
        let body = format!("{{\"path\":\"{path}\",\"body\":\"{}\"}}", request.text());
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
        if !connection.send(format!("{head}\r\n\r\n{body}").as_bytes()) {
            return;
        }
    }
}

/// Sends good requests, each of which must get its own reply; keeps some connections.
fn run_good_client(proxy: &TestProxy, client: u64, seed: u64, requests: usize) {
    let mut random = SplitMix64::new(seed ^ (client << 32));
    let mut kept: Option<HttpConnection> = None;
    for number in 0..requests {
        let mut connection = kept.take().unwrap_or_else(|| HttpConnection::connect(proxy.address));
        let (method, path, body) = match random.next_below(3) {
            0 => ("GET", format!("/good/{client}-{number}"), String::new()),
            1 => ("POST", format!("/good/{client}-{number}/v1/completions"), format!("b{number}")),
            _ => ("POST", format!("/good/{client}-{number}"), format!("c{number}")),
        };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {}", body.len());
        connection.send(format!("{head}\r\n\r\n{body}").as_bytes());
        let reply = connection.read_reply().unwrap_or_default();
        let expected = format!("{{\"path\":\"{path}\",\"body\":\"{body}\"}}");
        let received = (reply.status(), reply.text());
        assert_eq!(received, (200, expected), "seed {seed}, client {client}, request {number}");
        if random.next_below(4) > 0 {
            kept = Some(connection);
        }
    }
}

/// Sends malicious requests and requests for malicious replies until the good clients have finished.
fn run_hostile_client(proxy: &TestProxy, client: u64, seed: u64, good_clients: &AtomicUsize) -> usize {
    let mut random = SplitMix64::new(seed ^ (client << 48) ^ 1);
    let mut exchanges = 0;
    while good_clients.load(Ordering::Relaxed) > 0 {
        let mut connection = HttpConnection::connect(proxy.address);
        if random.next_below(2) == 0 {
            connection.send(HOSTILE_REQUESTS[random.next_below(HOSTILE_REQUESTS.len())].as_bytes());
        } else {
            let path = ["/v1/completions", "/other"][random.next_below(2)];
            let kind = random.next_below(HOSTILE_REPLIES);
            connection.send(
                format!("POST {path}?kind={kind} HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{{}}")
                    .as_bytes(),
            );
        }
        if random.next_below(3) > 0 {
            let wait = Some(Duration::from_millis(1 + random.next_below(20) as u64));
            connection.stream().set_read_timeout(wait).unwrap();
            let _: Option<HttpMessage> = connection.read_reply();
        }
        exchanges += 1;
    }
    exchanges
}

#[test]
fn good_requests_among_malicious_clients_and_replies_get_their_own_replies() {
    let requests = std::env::var("WATTSPAN_ROUNDS").map_or(GOOD_REQUESTS, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("WATTSPAN_SEED").map_or(20_261_129, |seed| seed.parse().unwrap());
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::new(serve);
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &[]).wait_for_daemon();
    let good_clients = Arc::new(AtomicUsize::new(GOOD_CLIENTS as usize));
    let exchanges: usize = std::thread::scope(|scope| {
        let hostile: Vec<_> = (0..HOSTILE_CLIENTS)
            .map(|client| {
                scope.spawn({
                    let (proxy, good_clients) = (&proxy, &good_clients);
                    move || run_hostile_client(proxy, client, seed, good_clients)
                })
            })
            .collect();
        for client in 0..GOOD_CLIENTS {
            let (proxy, good_clients) = (&proxy, &good_clients);
            scope.spawn(move || {
                let _finished = Finished(good_clients);
                run_good_client(proxy, client, seed, requests);
            });
        }
        hostile.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(exchanges > requests / 10, "only {exchanges} malicious exchanges beside {requests} good ones");
    proxy.stop().assert_balanced();
}

/// Counts a good client as finished, also when it fails.
struct Finished<'a>(&'a AtomicUsize);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
