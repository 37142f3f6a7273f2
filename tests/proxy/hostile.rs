//! Malicious clients and servers: refused, or forwarded in a form that cannot be misread.

use crate::support;

use std::sync::Mutex;

use crate::fixture::{OK, ProxyFixture, fixture};
use crate::http_stub::{HttpConnection, StubServer, TestProxy, inference_request};
use crate::support::{STEADY_MACHINE, TestDaemon};

fn status(fixture: &ProxyFixture, request: &[u8]) -> u16 {
    let mut connection = HttpConnection::connect(fixture.proxy.address);
    connection.send(request);
    connection.read_reply().map_or(0, |reply| reply.status())
}

#[test]
fn requests_that_two_readers_could_read_in_two_ways_are_refused() {
    let fixture = fixture();
    for (what, request) in [
        (
            "two lengths",
            &b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"[..],
        ),
        ("a list of lengths", b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5, 6\r\n\r\nhello!"),
        ("a signed length", b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: +5\r\n\r\nhello"),
        ("a folded header", b"GET / HTTP/1.1\r\nHost: t\r\nX-A: 1\r\n 2\r\n\r\n"),
        ("a space before the colon", b"GET / HTTP/1.1\r\nHost: t\r\nContent-Length : 5\r\n\r\nhello"),
        ("a bare CR", b"GET / HTTP/1.1\r\nHost: t\r\nX-A: 1\rX-B: 2\r\n\r\n"),
        ("a NUL", b"GET / HTTP/1.1\r\nHost: t\r\nX-A: \x00\r\n\r\n"),
        ("another encoding", b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip\r\n\r\n"),
        (
            "chunked not last",
            b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        ),
        ("chunks in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("a tunnel", b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n"),
    ] {
        let status = status(&fixture, request);
        assert!((400..500).contains(&status), "{what}: {status}");
    }
    assert!(fixture.received.lock().unwrap().is_empty(), "{:?}", fixture.received.lock().unwrap());
    assert_eq!(status(&fixture, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
}

#[test]
fn a_length_beside_chunks_is_dropped_and_the_connection_ends() {
    let fixture = fixture();
    let mut connection = HttpConnection::connect(fixture.proxy.address);
    connection.send(b"POST /a HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n");
    let rest = String::from_utf8_lossy(&connection.read_to_end()).into_owned();
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 1, "{rest}");
    let received = fixture.received.lock().unwrap();
    assert_eq!(received.len(), 1, "{received:?}");
    assert_eq!(received[0].header("content-length"), None);
    assert_eq!(received[0].body, b"hello");
}

#[test]
fn lines_that_end_with_a_bare_lf_go_on_with_crlf() {
    let fixture = fixture();
    assert_eq!(status(&fixture, b"POST /a HTTP/1.1\nHost: t\nX-A: 1\nContent-Length: 2\n\nhi"), 200);
    let received = fixture.received.lock().unwrap();
    assert_eq!((received[0].header("x-a"), received[0].body.as_slice()), (Some("1"), &b"hi"[..]));
}

#[test]
fn a_malformed_chunk_size_ends_the_request() {
    let fixture = fixture();
    for size in ["-1", "5;\n", "ffffffffffffffff1", " 5", "0x5", ""] {
        let mut connection = HttpConnection::connect(fixture.proxy.address);
        let request = format!(
            "POST /a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n"
        );
        connection.send(request.as_bytes());
        let _ = connection.read_to_end();
    }
    // The proxy still serves; it has not kept the first requests back.
    assert_eq!(status(&fixture, b"GET /after HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
    let received = fixture.received.lock().unwrap();
    assert!(received.iter().any(|request| request.line.contains("/after")), "{received:?}");
    assert!(received.iter().all(|request| !request.line.contains("smuggled")), "{received:?}");
}

#[test]
fn heads_that_are_too_large_are_refused_and_others_go_on() {
    let fixture = fixture();
    let long = format!("GET / HTTP/1.1\r\nHost: t\r\nX-A: {}\r\n\r\n", "x".repeat(200_000));
    assert_eq!(status(&fixture, long.as_bytes()), 431);
    let many: String = (0..500).map(|at| format!("X-{at}: 1\r\n")).collect();
    assert_eq!(status(&fixture, format!("GET / HTTP/1.1\r\nHost: t\r\n{many}\r\n").as_bytes()), 431);
    let path = format!("GET /{} HTTP/1.1\r\nHost: t\r\n\r\n", "x".repeat(100_000));
    assert!(matches!(status(&fixture, path.as_bytes()), 414 | 431));
    assert_eq!(status(&fixture, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
}

#[test]
fn slow_clients_do_not_delay_others() {
    let fixture = fixture();
    let slow: Vec<HttpConnection> = (0..200)
        .map(|at| {
            let mut connection = HttpConnection::connect(fixture.proxy.address);
            connection.send(
                &b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{"[..at % 69],
            );
            connection
        })
        .collect();
    for _ in 0..50 {
        assert_eq!(status(&fixture, &inference_request("{}")), 200);
    }
    drop(slow);
    fixture.proxy.stop().assert_balanced();
}

#[test]
fn malicious_server_replies_are_rejected_or_passed_on_unchanged() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let long = format!("HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\n", "x".repeat(300_000));
    let deep = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20000\r\n\r\n{}",
        "[".repeat(20_000)
    );
    let endless = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {}\n\n",
        "x".repeat(3_000_000)
    );
    for (what, reply, expected) in [
        ("nothing", "", 502),
        ("no HTTP", "hello\r\n\r\n", 502),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502),
        ("a folded header", "HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok", 502),
        ("a bare CR", "HTTP/1.1 200 OK\r\nX-A: 1\rX-B: 2\r\nContent-Length: 2\r\n\r\nok", 502),
        ("a head too large", &long, 502),
        ("cut off", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nnot all", 502),
        (
            "an unasked change of protocol",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            502,
        ),
        ("deep JSON", &deep, 200),
        ("a line without end", &endless, 200),
        (
            "figures of ours",
            "HTTP/1.1 200 OK\r\nwattspan-energy: state=settled, share_uj=1\r\nContent-Length: 2\r\n\r\nok",
            200,
        ),
    ] {
        let bytes = reply.as_bytes().to_vec();
        let stub = StubServer::new(move |mut connection| {
            if connection.read_request().is_some() {
                connection.send(&bytes);
            }
        });
        let proxy =
            TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &[]).wait_for_daemon();
        let mut connection = HttpConnection::connect(proxy.address);
        connection.send(&inference_request("{}"));
        let reply = connection.read_reply().unwrap_or_default();
        assert_eq!(reply.status(), expected, "{what}: {:?}", reply.line);
        if what == "figures of ours" {
            assert_ne!(reply.header("wattspan-energy"), Some("state=settled, share_uj=1"));
            assert_eq!(
                reply.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("wattspan-energy")).count(),
                1
            );
        }
        if what == "a line without end" {
            assert!(reply.body.len() > 3_000_000, "{}", reply.body.len());
        }
        proxy.stop().assert_balanced();
    }
}

#[test]
fn both_lengths_from_a_server_never_reach_the_client() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    for flags in [&["--annotate", "off"][..], &[]] {
        let proxy =
            TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), flags).wait_for_daemon();
        let mut connection = HttpConnection::connect(proxy.address);
        connection.send(&inference_request("{}"));
        let reply = connection.read_reply().unwrap_or_default();
        assert_eq!(reply.status(), 502, "{reply:?}");
    }
}

#[test]
fn a_web_socket_passes_through() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (closing, closed) = std::sync::mpsc::channel();
    let closing = Mutex::new(closing);
    let stub = StubServer::new(move |mut connection| {
        let Some(request) = connection.read_head() else { return };
        assert_eq!(request.header("upgrade"), Some("websocket"));
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nfirst\n");
        while let Some(line) = connection.read_line() {
            connection.send(format!("echo {line}\n").as_bytes());
        }
        let _ = closing.lock().unwrap().send(());
    });
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &[]).wait_for_daemon();
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(b"GET /v1/realtime HTTP/1.1\r\nHost: t\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n");
    let reply = connection.read_reply().unwrap();
    assert_eq!((reply.status(), reply.header("sec-websocket-accept")), (101, Some("x")));
    assert_eq!(connection.read_line().as_deref(), Some("first"));
    for text in ["one", "two", "\u{1}\u{81}"] {
        connection.send(format!("{text}\n").as_bytes());
        assert_eq!(connection.read_line(), Some(format!("echo {text}")));
    }
    connection.shutdown();
    assert!(
        closed.recv_timeout(support::TEST_TIMEOUT).is_ok(),
        "the server did not see that the client disconnected"
    );
}

const UPGRADE: &[u8] =
    b"GET /v1/realtime HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A server that switches the protocol on request and then echoes every line.
fn repeating() -> StubServer {
    StubServer::new(|mut connection| {
        while let Some(request) = connection.read_request() {
            if request.header("upgrade").is_none() {
                connection.send(OK);
                continue;
            }
            connection.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            );
            while let Some(line) = connection.read_line() {
                connection.send(format!("{line}\n").as_bytes());
            }
        }
    })
}

/// A connection whose protocol has been switched.
fn tunnel(proxy: &TestProxy) -> HttpConnection {
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(UPGRADE);
    assert_eq!(connection.read_reply().unwrap().status(), 101);
    connection.send(b"one\n");
    assert_eq!(connection.read_line().as_deref(), Some("one"));
    connection
}

#[test]
fn requests_cannot_leave_the_measurement_by_an_upgrade_to_another_http() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::new(|mut connection| {
        while let Some(request) = connection.read_request() {
            let offers = request.header("upgrade").is_some() || request.header("http2-settings").is_some();
            connection.send(if offers {
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
            } else {
                OK
            });
        }
    });
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &[]).wait_for_daemon();
    let offers = ["h2c", "H2C", "websocket, h2c", "h2c;q=1", "h2c,\u{e9}", "HTTP/2.0", "TLS/1.2"];
    for offer in offers {
        for path in ["/v1/chat/completions", "/v1/models"] {
            let mut connection = HttpConnection::connect(proxy.address);
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: t\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {offer}\r\n\
                 HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: 2\r\n\r\n{{}}"
            );
            connection.send(head.as_bytes());
            assert_eq!(connection.read_reply().map(|reply| reply.status()), Some(200), "{offer} {path}");
        }
    }
    let counters = proxy.stop();
    assert_eq!((counters.opened, counters.closed), (offers.len() as u64, offers.len() as u64));
}

#[test]
fn a_connection_whose_protocol_changed_counts_as_long_as_it_is_open() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = repeating();
    let upstream = format!("http://{}", stub.address);
    let proxy = TestProxy::start(&upstream, &daemon.socket(), &["--connections", "1"]).wait_for_daemon();
    let first = tunnel(&proxy);
    let mut second = HttpConnection::connect(proxy.address);
    second.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n");
    second.stream().set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    assert_eq!(second.read_line(), None, "a second connection was served beside the only one");
    second.stream().set_read_timeout(Some(support::TEST_TIMEOUT)).unwrap();
    first.shutdown();
    assert_eq!(second.read_reply().unwrap().status(), 200);
}

#[test]
fn a_connection_whose_protocol_changed_has_its_time_when_the_proxy_stops() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = repeating();
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &[]).wait_for_daemon();
    let mut connection = tunnel(&proxy);
    proxy.terminate();
    support::sleep_ms(100);
    connection.send(b"two\n");
    assert_eq!(connection.read_line().as_deref(), Some("two"));
    connection.shutdown();
    proxy.wait_for_exit().assert_balanced();
}

#[test]
fn a_server_that_answers_without_asking_for_the_body_ends_nothing_but_the_request() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::new(|mut connection| {
        while let Some(request) = connection.read_head() {
            let expects = request.header("expect").is_some();
            connection.send(if expects {
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
            } else {
                OK
            });
        }
    });
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &[]).wait_for_daemon();
    for path in ["/v1/chat/completions", "/v1/files"] {
        let mut connection = HttpConnection::connect(proxy.address);
        connection.send(
            format!("POST {path} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
                .as_bytes(),
        );
        assert_eq!(connection.read_reply().map(|reply| reply.status()), Some(401), "{path}");
        // After its wait for "100 Continue" the proxy polls the unsent body; that must affect this request only.
        support::sleep_ms(1200);
        let mut other = HttpConnection::connect(proxy.address);
        other.send(b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n");
        assert_eq!(other.read_reply().map(|reply| reply.status()), Some(200), "{path}");
    }
    // A panic ends a release build; a build that unwinds logs it.
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
    proxy.stop().assert_balanced();
}

#[test]
fn daemon_texts_cannot_forge_or_hide_log_lines() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("meter.sock");
    let meter = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let refusal = "{\"error\":\"org.wattspan.Meter.InvalidValue\",\"parameters\":{\"field\":\"x\",\"reason\":\
                   \"\\u202eoff\\u001b[2J\\nwattspan: forged\\u009b\"}}\0";
    std::thread::spawn(move || {
        for mut stream in meter.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, refusal.as_bytes());
            let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
        }
    });
    let proxy = TestProxy::start("http://127.0.0.1:1", &socket, &[]);
    support::wait_until("the connection is logged", || {
        proxy.log().contains("requests are forwarded unmeasured")
    });
    let log = proxy.log();
    assert!(log.contains(r"\u{202e}off\u{1b}[2J\nwattspan: forged\u{9b}"), "{log}");
    assert!(log.chars().all(|c| matches!(c, ' '..='~' | '\n')), "{log:?}");
    assert!(!log.lines().any(|line| line.starts_with("wattspan: forged")), "{log}");
}
