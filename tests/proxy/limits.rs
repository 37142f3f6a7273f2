//! A proxy whose user has few calls per second measures fewer requests, and leaves no span open.
//!
//! The proxy runs as another user (`setpriv`), so these tests need root.

use crate::other_user;

use std::sync::{Barrier, Mutex};

use crate::http_stub::{
    HttpConnection, HttpMessage, ProxyCounters, StubServer, TestProxy, inference_request,
};
use crate::support::{STEADY_MACHINE, TestDaemon, wait_until};
use serde_json::json;

const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

fn ask(proxy: &TestProxy) -> HttpMessage {
    let mut connection = HttpConnection::connect(proxy.address);
    assert!(connection.send(&inference_request("{}")));
    connection.read_reply().expect("a reply")
}

/// A hundred requests, `at_once` in parallel, through the proxy of a user with these limits; no span stays open.
fn a_hundred_of_a_limited_user(limits: &str, at_once: usize) -> Option<ProxyCounters> {
    if !other_user::is_supported() {
        return None;
    }
    let daemon =
        TestDaemon::start_with_config(STEADY_MACHINE, &format!("{}[limits]\n{limits}", other_user::GROUPS));
    // All are open before the first one ends.
    let all_here = Barrier::new(at_once);
    let stub = StubServer::new(move |mut connection| {
        while connection.read_request().is_some() {
            all_here.wait();
            connection.send(REPLY);
        }
    });
    let upstream = format!("http://{}", stub.address);
    let proxy = TestProxy::start_as_user(12_306, "daemon", &upstream, &daemon.socket()).wait_for_daemon();
    let spans = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                for _ in 0..100 / at_once {
                    let reply = ask(&proxy);
                    assert_eq!(reply.status(), 200);
                    let span = reply.header("wattspan-span").unwrap().to_owned();
                    spans.lock().unwrap().push(span);
                }
            });
        }
    });
    let mut root = daemon.client();
    for span in spans.into_inner().unwrap() {
        wait_until("ended, whatever became of it", || {
            let answer = root.call_raw("GetSpan", json!({ "span": span }));
            answer["parameters"]["account"]["state"] != "open"
        });
    }
    Some(proxy.stop())
}

#[test]
fn the_ends_of_spans_are_never_refused_for_the_calls_that_their_openings_used_up() {
    let limits = "calls_per_s = 0.01\ncalls_burst = 110\n";
    let Some(counters) = a_hundred_of_a_limited_user(limits, 100) else { return };
    assert_eq!((counters.opened, counters.closed), (100, 100), "{counters:?}");
}

#[test]
fn a_proxy_that_has_used_up_its_calls_leaves_no_span_open() {
    let limits = "calls_per_s = 20\ncalls_burst = 40\n";
    let Some(counters) = a_hundred_of_a_limited_user(limits, 4) else { return };
    counters.assert_ended();
    assert!(counters.closed > 0, "{counters:?}");
}
