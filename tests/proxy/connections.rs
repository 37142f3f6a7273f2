//! Connections that send no request, and connections beyond the limit.

use std::io::{Read, Write};
use std::sync::{Mutex, mpsc};

use crate::http_stub::{HttpConnection, StubServer, TestProxy};
use crate::support::{self, STEADY_MACHINE, TestDaemon};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const REQUEST: &[u8] = b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n";
const HTTP2_PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn status(connection: &mut HttpConnection) -> Option<u16> {
    connection.read_reply().map(|reply| reply.status())
}

/// Waits until the proxy closes the connection; fails if it does not.
fn assert_closed(connection: &HttpConnection, what: &str) {
    let mut input = [0; 4096];
    loop {
        match connection.stream().read(&mut input) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{what}: the connection is still open: {error}"),
        }
    }
}

#[test]
fn connections_without_a_complete_head_are_closed_and_others_stay() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub =
        StubServer::new(|mut connection| while connection.read_request().is_some() && connection.send(OK) {});
    let upstream = format!("http://{}", stub.address);
    let proxy = TestProxy::start(&upstream, &daemon.socket(), &["--head-timeout", "1000"]).wait_for_daemon();
    let open = |bytes: &[u8]| {
        let mut connection = HttpConnection::connect(proxy.address);
        connection.send(bytes);
        connection
    };
    let mut idle = open(REQUEST);
    assert_eq!(status(&mut idle), Some(200));
    let mut slow_body = open(b"POST /a HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nab");
    let mut silent = open(b"");
    let firsts = ["G", "GET / HT", "GET / HTTP/1.1\r\nHost: t\r\nX-A: 1\r\n", "P", "PRI ", HTTP2_PREFACE];
    let mut halves: Vec<(&str, HttpConnection)> =
        firsts.iter().flat_map(|first| (0..20).map(|_| (*first, open(first.as_bytes())))).collect();
    // A later head has its time from its first byte.
    let mut later = open(REQUEST);
    assert_eq!(status(&mut later), Some(200));
    later.send(b"GET / HTTP/1.1\r\nX-A: ");
    halves.push(("a later head", later));
    let mut drip = open(b"GET / HTTP/1.1\r\nX-A: ");
    support::wait_until("the dripping head is refused", || {
        support::sleep_ms(20);
        !drip.send(b"x")
    });
    for (first, connection) in &halves {
        assert_closed(connection, first);
    }
    // The timeouts for heads have passed. They apply neither to a body nor to the time before a request.
    silent.send(REQUEST);
    assert_eq!(status(&mut silent), Some(200));
    slow_body.send(b"cd");
    assert_eq!(status(&mut slow_body), Some(200));
    idle.send(REQUEST);
    assert_eq!(status(&mut idle), Some(200));
    proxy.stop().assert_balanced();
}

#[test]
fn an_inference_whose_body_stops_gets_408_and_its_span_is_cancelled() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub =
        StubServer::new(|mut connection| while connection.read_request().is_some() && connection.send(OK) {});
    let upstream = format!("http://{}", stub.address);
    let proxy = TestProxy::start(&upstream, &daemon.socket(), &["--body-timeout", "3000"]).wait_for_daemon();
    let open = |path: &str, head: &str, body: &str| {
        let mut connection = HttpConnection::connect(proxy.address);
        connection.send(format!("POST {path} HTTP/1.1\r\nHost: t\r\n{head}\r\n\r\n{body}").as_bytes());
        connection
    };
    let mut other_path = open("/v1/files", "Content-Length: 4", "ab");
    let mut stopped = [
        open("/v1/chat/completions", "Content-Length: 4", ""),
        open("/v1/chat/completions", "Content-Length: 4", "ab"),
        open("/v1/chat/completions", "Transfer-Encoding: chunked", "2\r\nab\r\n"),
        open("/v1/chat/completions", "Expect: 100-continue\r\nContent-Length: 4", ""),
    ];
    // Longer than the timeout in all, and never without a byte for as long.
    let mut slow = open("/v1/chat/completions", "Content-Length: 8", "");
    for _ in 0..8 {
        support::sleep_ms(500);
        slow.send(b"x");
    }
    assert_eq!(status(&mut slow), Some(200));
    for connection in &mut stopped {
        assert_eq!(status(connection), Some(408));
        assert_closed(connection, "after the timeout");
    }
    other_path.send(b"cd");
    assert_eq!(status(&mut other_path), Some(200));
    let counters = proxy.stop();
    assert_eq!((counters.opened, counters.closed, counters.cancelled), (5, 1, 4), "{counters:?}");
}

#[test]
fn an_inference_whose_body_trickles_gets_408_and_one_whose_server_is_slow_goes_on() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let stub = StubServer::new(move |mut connection| {
        while let Some(mut request) = connection.read_head() {
            if request.line.contains("/slow/") {
                let _ = released.lock().unwrap().recv();
            }
            connection.read_body(&mut request, false);
            connection.send(OK);
        }
    });
    let upstream = format!("http://{}", stub.address);
    let proxy = TestProxy::start(&upstream, &daemon.socket(), &["--body-timeout", "1200"]).wait_for_daemon();
    let open = |path: &str, length: usize| {
        let mut connection = HttpConnection::connect(proxy.address);
        let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n");
        connection.send(head.as_bytes());
        connection
    };
    // More than the buffers of the sockets, so that the client waits for the server.
    const LONG: usize = 64 << 20;
    let mut slow_server = open("/slow/v1/chat/completions", LONG);
    let sender = slow_server.stream().try_clone().unwrap();
    let sender = std::thread::spawn(move || (&sender).write_all(&vec![b'x'; LONG]));
    let mut trickle = open("/v1/chat/completions", 1 << 20);
    let drip = trickle.stream().try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        while (&drip).write_all(b"x").is_ok() {
            support::sleep_ms(20);
        }
    });
    let reply = trickle.read_reply().expect("a reply");
    assert_eq!(reply.status(), 408);
    assert!(reply.text().contains("ten times --body-timeout"), "not the limit in all: {}", reply.text());
    assert_closed(&trickle, "after the timeout");
    drip.join().unwrap();
    // The same time has passed for this body, in which its server read nothing.
    drop(release);
    assert_eq!(status(&mut slow_server), Some(200));
    sender.join().unwrap().unwrap();
    let counters = proxy.stop();
    assert_eq!((counters.opened, counters.closed, counters.cancelled), (2, 1, 1), "{counters:?}");
}

const EARLY_REPLY: &[u8] =
    b"HTTP/1.1 413 Payload Too Large\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nfirst,\r\n";

/// A request whose body lacks its second half.
fn unfinished(proxy: &TestProxy) -> HttpConnection {
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nab");
    connection
}

#[test]
fn a_reply_that_began_before_the_end_of_the_body_is_delivered_whole() {
    const PIECES: usize = 30;
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::new(|mut connection| {
        if connection.read_head().is_some() && connection.send(EARLY_REPLY) {
            // Longer in all than the body may take.
            for _ in 0..PIECES {
                support::sleep_ms(200);
                connection.send(b"2\r\nx,\r\n");
            }
            connection.send(b"0\r\n\r\n");
        }
    });
    let upstream = format!("http://{}", stub.address);
    for annotate in ["off", "headers"] {
        let flags = ["--body-timeout", "500", "--annotate", annotate];
        let proxy = TestProxy::start(&upstream, &daemon.socket(), &flags).wait_for_daemon();
        let reply = unfinished(&proxy).read_reply().expect("a reply");
        assert_eq!(reply.status(), 413, "{annotate}");
        assert!(reply.is_complete, "{annotate}: cut after {:?}", reply.text());
        assert_eq!(reply.text(), format!("first,{}", "x,".repeat(PIECES)), "{annotate}");
        let counters = proxy.stop();
        assert_eq!((counters.opened, counters.closed), (1, 1), "{annotate}: {counters:?}");
    }
}

#[test]
fn a_reply_that_stops_before_the_end_of_the_body_ends_its_span() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::new(|mut connection| {
        if connection.read_head().is_some() && connection.send(EARLY_REPLY) {
            // A server that goes on only after the end of the body.
            let _ = connection.read_to_end();
        }
    });
    let upstream = format!("http://{}", stub.address);
    // On a busy machine too the reply begins within this time. It stops for ten times as long.
    let proxy = TestProxy::start(&upstream, &daemon.socket(), &["--body-timeout", "500"]).wait_for_daemon();
    let reply = unfinished(&proxy).read_reply().expect("a reply");
    assert_eq!((reply.status(), reply.is_complete, reply.text().as_str()), (413, false, "first,"));
    let counters = proxy.stop();
    assert_eq!((counters.opened, counters.closed), (1, 1), "{counters:?}");
}

#[test]
fn connections_beyond_the_limit_get_503_until_one_ends() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let stub = StubServer::new(move |mut connection| {
        while let Some(request) = connection.read_request() {
            if request.line.contains("/held") {
                let _ = released.lock().unwrap().recv();
            }
            connection.send(OK);
        }
    });
    let upstream = format!("http://{}", stub.address);
    let flags = ["--connections", "2", "--head-timeout", "200"];
    let proxy = TestProxy::start(&upstream, &daemon.socket(), &flags).wait_for_daemon();
    let held = |path: &str| {
        let mut connection = HttpConnection::connect(proxy.address);
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").as_bytes());
        connection
    };
    let mut holders = [held("/held"), held("/held")];
    for _ in 0..20 {
        let mut refused = held("/v1/models");
        let reply = refused.read_reply().expect("a reply");
        assert_eq!((reply.status(), reply.header("connection")), (503, Some("close")), "{reply:?}");
        assert!(reply.is_complete && reply.text().contains("all connections are in use"), "{reply:?}");
        assert_closed(&refused, "a refused connection");
    }
    drop(release);
    for holder in &mut holders {
        assert_eq!(status(holder), Some(200));
        assert_closed(holder, "a served connection");
    }
    support::wait_until("a connection is served again", || status(&mut held("/v1/models")) == Some(200));
    proxy.stop().assert_balanced();
}
