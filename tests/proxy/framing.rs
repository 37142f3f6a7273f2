//! Messages whose framing two readers could understand differently (RFC 9112, section 6), in both directions.
//!
//! The peer of the proxy receives a message framed in one way, or none.

use crate::fixture::fixture;
use crate::http_stub::{HttpConnection, HttpMessage, StubServer, TestProxy, inference_request};
use crate::support::{STEADY_MACHINE, TestDaemon};

/// Transfer codings that the proxy does not forward: the header lines, and the expected status.
const REFUSED_CODINGS: [(&str, u16); 20] = [
    ("Transfer-Encoding: gzip, chunked", 501),
    ("Transfer-Encoding: gzip,chunked", 501),
    ("Transfer-Encoding: GZIP ,\tChunked", 501),
    ("transfer-encoding: gzip\r\nTRANSFER-ENCODING: chunked", 501),
    ("Transfer-Encoding: gzip\r\nX-A: 1\r\nTransfer-Encoding: chunked", 501),
    ("Transfer-Encoding: deflate, gzip, chunked", 501),
    ("Transfer-Encoding: identity, chunked", 501),
    ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", 501),
    ("Transfer-Encoding: x, chunked\r\nContent-Length: 5", 501),
    ("Content-Length: 5\r\nTransfer-Encoding: x, chunked", 501),
    ("Transfer-Encoding: chunked, chunked", 400),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
    ("Transfer-Encoding: , chunked", 400),
    ("Transfer-Encoding:\r\nTransfer-Encoding: chunked", 400),
    ("Transfer-Encoding: \"gzip\", chunked", 400),
    ("Transfer-Encoding: chunked, identity", 400),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400),
    ("Transfer-Encoding: chunked;q=1", 400),
    ("Transfer-Encoding: chunked,", 400),
    ("Transfer-Encoding: gzip", 400),
];

const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

#[test]
fn a_request_with_a_coding_other_than_chunked_is_refused_and_the_connection_ends() {
    let fixture = fixture();
    for (lines, expected) in REFUSED_CODINGS {
        for path in ["/v1/chat/completions", "/other"] {
            let mut connection = HttpConnection::connect(fixture.proxy.address);
            connection.send(
                format!(
                    "POST {path} HTTP/1.1\r\nHost: t\r\n{lines}\r\n\r\n{CHUNKS}GET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n"
                )
                .as_bytes(),
            );
            let rest = String::from_utf8_lossy(&connection.read_to_end()).into_owned();
            assert!(rest.starts_with(&format!("HTTP/1.1 {expected} ")), "{lines:?} {path}: {rest}");
            assert_eq!(rest.matches("HTTP/1.1").count(), 1, "{lines:?} {path}: {rest}");
        }
    }
    let received = fixture.received.lock().unwrap();
    assert!(received.is_empty(), "{received:?}");
    drop(received);
    fixture.proxy.stop().assert_balanced();
}

#[test]
fn chunked_alone_is_forwarded_in_any_spelling() {
    let fixture = fixture();
    for value in ["chunked", "Chunked", "CHUNKED", " \tchunked \t"] {
        let mut connection = HttpConnection::connect(fixture.proxy.address);
        connection.send(
            format!("POST /a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding:{value}\r\n\r\n{CHUNKS}").as_bytes(),
        );
        assert_eq!(connection.read_reply().map(|reply| reply.status()), Some(200), "{value:?}");
        let request = fixture.received.lock().unwrap().pop().unwrap();
        assert_eq!((request.header("transfer-encoding"), &*request.body), (Some("chunked"), &b"hello"[..]));
    }
}

#[test]
fn a_length_after_chunks_is_dropped_and_the_connection_ends() {
    let fixture = fixture();
    for lines in [
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 4",
    ] {
        let mut connection = HttpConnection::connect(fixture.proxy.address);
        connection.send(
            format!("POST /a HTTP/1.1\r\nHost: t\r\n{lines}\r\n\r\n{CHUNKS}GET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n")
                .as_bytes(),
        );
        let rest = String::from_utf8_lossy(&connection.read_to_end()).into_owned();
        assert_eq!(rest.matches("HTTP/1.1").count(), 1, "{lines:?}: {rest}");
        let received: Vec<_> = fixture.received.lock().unwrap().drain(..).collect();
        assert!(received.len() <= 1, "{lines:?}: {received:?}");
        for request in received {
            assert_eq!((request.header("content-length"), &*request.body), (None, &b"hello"[..]));
        }
    }
}

/// The reply of a client whose request the server answers with `reply`, and then closes the connection.
fn reply_through_proxy(daemon: &TestDaemon, flags: &[&str], reply: String) -> HttpMessage {
    let stub = StubServer::new(move |mut connection| {
        if connection.read_request().is_some() {
            connection.send(reply.as_bytes());
        }
    });
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), flags).wait_for_daemon();
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(&inference_request("{}"));
    connection.read_reply().unwrap_or_default()
}

#[test]
fn a_reply_with_a_coding_other_than_chunked_is_refused() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let refused = REFUSED_CODINGS.iter().map(|(lines, _)| format!("HTTP/1.1 200 OK\r\n{lines}"));
    let in_http_1_0 = ["HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked".to_owned()];
    let folded = ["HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked".to_owned()];
    for head in refused.chain(in_http_1_0).chain(folded) {
        let reply = reply_through_proxy(&daemon, &[], format!("{head}\r\n\r\n{CHUNKS}"));
        assert_eq!(reply.status(), 502, "{head:?}: {reply:?}");
        assert!(reply.header("transfer-encoding").is_none(), "{head:?}: {reply:?}");
    }
    for annotate in ["off", "headers"] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked";
        let reply =
            reply_through_proxy(&daemon, &["--annotate", annotate], format!("{head}\r\n\r\n{CHUNKS}"));
        assert_eq!((reply.status(), &*reply.body), (200, &b"hello"[..]), "{annotate}");
    }
}

#[test]
fn equal_lengths_of_a_reply_are_forwarded_as_one() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    for lines in ["Content-Length: 2\r\nContent-Length: 2", "Content-Length: 2, 2"] {
        for annotate in ["off", "headers"] {
            let reply = reply_through_proxy(
                &daemon,
                &["--annotate", annotate],
                format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nok"),
            );
            let lengths: Vec<&str> = reply
                .headers
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map(|(_, value)| value.as_str())
                .collect();
            assert_eq!((reply.status(), lengths, &*reply.body), (200, vec!["2"], &b"ok"[..]), "{lines:?}");
        }
    }
}
