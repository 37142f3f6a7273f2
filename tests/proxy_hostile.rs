//! Clients and servers that mean harm: refused, or passed on in a form that cannot be misread.

mod support;
mod wire;

use std::sync::{Arc, Mutex};

use support::{STEADY, TestDaemon};
use wire::{Message, Stub, Talk, TestProxy, question};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

struct Scene {
    _daemon: TestDaemon,
    _stub: Stub,
    heard: Arc<Mutex<Vec<Message>>>,
    proxy: TestProxy,
}

fn scene() -> Scene {
    let daemon = TestDaemon::on(STEADY);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&heard);
    let stub = Stub::new(move |mut talk| {
        while let Some(request) = talk.request() {
            listener.lock().unwrap().push(request);
            talk.say(OK);
        }
    });
    let proxy =
        TestProxy::before(&format!("http://{}", stub.address), &daemon.socket(), &[]).meets_the_meter();
    Scene { _daemon: daemon, _stub: stub, heard, proxy }
}

fn status(scene: &Scene, request: &[u8]) -> u16 {
    let mut talk = Talk::to(scene.proxy.address);
    talk.say(request);
    talk.reply().map_or(0, |reply| reply.status())
}

#[test]
fn requests_that_two_readers_could_read_in_two_ways_are_refused() {
    let scene = scene();
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
        let status = status(&scene, request);
        assert!((400..500).contains(&status), "{what}: {status}");
    }
    assert!(scene.heard.lock().unwrap().is_empty(), "{:?}", scene.heard.lock().unwrap());
    assert_eq!(status(&scene, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
}

#[test]
fn a_length_beside_chunks_is_dropped_and_the_connection_ends() {
    let scene = scene();
    let mut talk = Talk::to(scene.proxy.address);
    talk.say(b"POST /a HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n");
    let rest = String::from_utf8_lossy(&talk.rest()).into_owned();
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 1, "{rest}");
    let heard = scene.heard.lock().unwrap();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0].header("content-length"), None);
    assert_eq!(heard[0].body, b"hello");
}

#[test]
fn lines_that_end_with_a_bare_lf_go_on_with_crlf() {
    let scene = scene();
    assert_eq!(status(&scene, b"POST /a HTTP/1.1\nHost: t\nX-A: 1\nContent-Length: 2\n\nhi"), 200);
    let heard = scene.heard.lock().unwrap();
    assert_eq!((heard[0].header("x-a"), heard[0].body.as_slice()), (Some("1"), &b"hi"[..]));
}

#[test]
fn a_chunk_whose_size_is_a_trick_ends_the_request() {
    let scene = scene();
    for size in ["-1", "5;\n", "ffffffffffffffff1", " 5", "0x5", ""] {
        let mut talk = Talk::to(scene.proxy.address);
        let request = format!(
            "POST /a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n"
        );
        talk.say(request.as_bytes());
        let _ = talk.rest();
    }
    // The proxy still serves, or it would have kept everything back.
    assert_eq!(status(&scene, b"GET /after HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
    let heard = scene.heard.lock().unwrap();
    assert!(heard.iter().any(|request| request.line.contains("/after")), "{heard:?}");
    assert!(heard.iter().all(|request| !request.line.contains("smuggled")), "{heard:?}");
}

#[test]
fn heads_that_are_too_large_are_refused_and_others_go_on() {
    let scene = scene();
    let long = format!("GET / HTTP/1.1\r\nHost: t\r\nX-A: {}\r\n\r\n", "x".repeat(200_000));
    assert_eq!(status(&scene, long.as_bytes()), 431);
    let many: String = (0..500).map(|at| format!("X-{at}: 1\r\n")).collect();
    assert_eq!(status(&scene, format!("GET / HTTP/1.1\r\nHost: t\r\n{many}\r\n").as_bytes()), 431);
    let path = format!("GET /{} HTTP/1.1\r\nHost: t\r\n\r\n", "x".repeat(100_000));
    assert!(matches!(status(&scene, path.as_bytes()), 414 | 431));
    assert_eq!(status(&scene, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
}

#[test]
fn clients_that_dawdle_keep_nobody_waiting() {
    let scene = scene();
    let slow: Vec<Talk> = (0..200)
        .map(|at| {
            let mut talk = Talk::to(scene.proxy.address);
            talk.say(
                &b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{"[..at % 69],
            );
            talk
        })
        .collect();
    for _ in 0..50 {
        assert_eq!(status(&scene, &question("{}")), 200);
    }
    drop(slow);
    scene.proxy.end().assert_balanced();
}

#[test]
fn servers_that_mean_harm_get_an_error_or_are_passed_on_as_they_are() {
    let daemon = TestDaemon::on(STEADY);
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
        let stub = Stub::new(move |mut talk| {
            if talk.request().is_some() {
                talk.say(&bytes);
            }
        });
        let proxy =
            TestProxy::before(&format!("http://{}", stub.address), &daemon.socket(), &[]).meets_the_meter();
        let mut talk = Talk::to(proxy.address);
        talk.say(&question("{}"));
        let reply = talk.reply().unwrap_or_default();
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
        proxy.end().assert_balanced();
    }
}

#[test]
fn both_lengths_from_a_server_never_reach_the_client() {
    let daemon = TestDaemon::on(STEADY);
    let stub = Stub::saying(
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    for flags in [&["--annotate", "off"][..], &[]] {
        let proxy =
            TestProxy::before(&format!("http://{}", stub.address), &daemon.socket(), flags).meets_the_meter();
        let mut talk = Talk::to(proxy.address);
        talk.say(&question("{}"));
        let reply = talk.reply().unwrap_or_default();
        assert_eq!(reply.status(), 502, "{reply:?}");
    }
}

#[test]
fn a_web_socket_passes_through() {
    let daemon = TestDaemon::on(STEADY);
    let (closing, closed) = std::sync::mpsc::channel();
    let closing = Mutex::new(closing);
    let stub = Stub::new(move |mut talk| {
        let Some(request) = talk.head() else { return };
        assert_eq!(request.header("upgrade"), Some("websocket"));
        talk.say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nfirst\n");
        while let Some(line) = talk.line() {
            talk.say(format!("echo {line}\n").as_bytes());
        }
        let _ = closing.lock().unwrap().send(());
    });
    let proxy =
        TestProxy::before(&format!("http://{}", stub.address), &daemon.socket(), &[]).meets_the_meter();
    let mut talk = Talk::to(proxy.address);
    talk.say(b"GET /v1/realtime HTTP/1.1\r\nHost: t\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n");
    let reply = talk.reply().unwrap();
    assert_eq!((reply.status(), reply.header("sec-websocket-accept")), (101, Some("x")));
    assert_eq!(talk.line().as_deref(), Some("first"));
    for text in ["one", "two", "\u{1}\u{81}"] {
        talk.say(format!("{text}\n").as_bytes());
        assert_eq!(talk.line(), Some(format!("echo {text}")));
    }
    talk.hang_up();
    assert!(closed.recv_timeout(support::PATIENCE).is_ok(), "the server was not told that the client left");
}

const UPGRADE: &[u8] =
    b"GET /v1/realtime HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A server that changes the protocol where it is asked to, and repeats every line from then on.
fn repeating() -> Stub {
    Stub::new(|mut talk| {
        while let Some(request) = talk.request() {
            if request.header("upgrade").is_none() {
                talk.say(OK);
                continue;
            }
            talk.say(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            );
            while let Some(line) = talk.line() {
                talk.say(format!("{line}\n").as_bytes());
            }
        }
    })
}

/// A connection whose protocol has changed.
fn tunnel(proxy: &TestProxy) -> Talk {
    let mut talk = Talk::to(proxy.address);
    talk.say(UPGRADE);
    assert_eq!(talk.reply().unwrap().status(), 101);
    talk.say(b"one\n");
    assert_eq!(talk.line().as_deref(), Some("one"));
    talk
}

#[test]
fn a_connection_whose_protocol_changed_counts_as_long_as_it_is_open() {
    let daemon = TestDaemon::on(STEADY);
    let stub = repeating();
    let upstream = format!("http://{}", stub.address);
    let proxy = TestProxy::before(&upstream, &daemon.socket(), &["--connections", "1"]).meets_the_meter();
    let first = tunnel(&proxy);
    let mut second = Talk::to(proxy.address);
    second.say(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n");
    second.stream().set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    assert_eq!(second.line(), None, "a second connection was served beside the only one");
    second.stream().set_read_timeout(Some(support::PATIENCE)).unwrap();
    first.hang_up();
    assert_eq!(second.reply().unwrap().status(), 200);
}

#[test]
fn a_connection_whose_protocol_changed_has_its_time_when_the_proxy_stops() {
    let daemon = TestDaemon::on(STEADY);
    let stub = repeating();
    let proxy =
        TestProxy::before(&format!("http://{}", stub.address), &daemon.socket(), &[]).meets_the_meter();
    let mut talk = tunnel(&proxy);
    proxy.terminate();
    support::pass(100);
    talk.say(b"two\n");
    assert_eq!(talk.line().as_deref(), Some("two"));
    talk.hang_up();
    proxy.last_words().assert_balanced();
}

#[test]
fn a_server_that_answers_without_asking_for_the_body_ends_nothing_but_the_request() {
    let daemon = TestDaemon::on(STEADY);
    let stub = Stub::new(|mut talk| {
        while let Some(request) = talk.head() {
            let expects = request.header("expect").is_some();
            talk.say(if expects { b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno" } else { OK });
        }
    });
    let proxy =
        TestProxy::before(&format!("http://{}", stub.address), &daemon.socket(), &[]).meets_the_meter();
    for path in ["/v1/chat/completions", "/v1/files"] {
        let mut talk = Talk::to(proxy.address);
        talk.say(
            format!("POST {path} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
                .as_bytes(),
        );
        assert_eq!(talk.reply().map(|reply| reply.status()), Some(401), "{path}");
        // The body is asked for, once more and later than the server would be waited for.
        support::pass(1200);
        let mut other = Talk::to(proxy.address);
        other.say(b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n");
        assert_eq!(other.reply().map(|reply| reply.status()), Some(200), "{path}");
    }
    // Where a panic ends the program it would be gone; a build that unwinds says it all the same.
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
    proxy.end().assert_balanced();
}

#[test]
fn the_meters_words_can_forge_no_line_of_the_log_and_hide_nothing_in_it() {
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
    let proxy = TestProxy::before("http://127.0.0.1:1", &socket, &[]);
    support::until("heard the meter", || proxy.log().contains("requests are forwarded unmeasured"));
    let log = proxy.log();
    assert!(log.contains(r"\u{202e}off\u{1b}[2J\nwattspan: forged\u{9b}"), "{log}");
    assert!(log.chars().all(|c| matches!(c, ' '..='~' | '\n')), "{log:?}");
    assert!(!log.lines().any(|line| line.starts_with("wattspan: forged")), "{log}");
}
