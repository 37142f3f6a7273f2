//! A proxy whose user has few calls per second measures fewer requests, and leaves no span open.
//!
//! The proxy runs as another user (`setpriv`), so these tests need root.

use crate::other_user;

use std::sync::{Barrier, Mutex};

use crate::http_stub::{HttpConnection, HttpMessage, StubServer, TestProxy, inference_request};
use crate::support::{STEADY_MACHINE, TestDaemon, wait_until};
use serde_json::json;

const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

fn ask(proxy: &TestProxy) -> HttpMessage {
    let mut connection = HttpConnection::connect(proxy.address);
    assert!(connection.send(&inference_request("{}")));
    connection.read_reply().expect("a reply")
}

/// A proxy after the requests of a test, with the programs beside it.
struct LimitedProxy {
    _daemon: TestDaemon,
    _stub: StubServer,
    proxy: TestProxy,
}

/// A hundred requests, `at_once` in parallel, through the proxy of a user with these limits; no span stays open.
fn a_hundred_of_a_limited_user(limits: &str, at_once: usize) -> Option<LimitedProxy> {
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
    Some(LimitedProxy { _daemon: daemon, _stub: stub, proxy })
}

#[test]
fn the_ends_of_spans_are_never_refused_for_the_calls_that_their_openings_used_up() {
    let limits = "calls_per_s = 0.01\ncalls_burst = 110\n";
    let Some(run) = a_hundred_of_a_limited_user(limits, 100) else { return };
    let counters = run.proxy.stop();
    assert_eq!((counters.opened, counters.closed), (100, 100), "{counters:?}");
}

#[test]
fn a_proxy_that_has_used_up_its_calls_leaves_no_span_open() {
    let limits = "calls_per_s = 20\ncalls_burst = 40\n";
    let Some(run) = a_hundred_of_a_limited_user(limits, 4) else { return };
    let counters = run.proxy.stop();
    counters.assert_ended();
    assert!(counters.closed > 0, "{counters:?}");
}

#[test]
fn a_close_whose_attributes_exceed_a_limit_ends_its_own_span_only() {
    let limits = "span_memory_bytes_per_user = 20000\n";
    let Some(run) = a_hundred_of_a_limited_user(limits, 20) else { return };
    wait_until("a close is refused", || {
        let log = run.proxy.log();
        log.contains("without its attributes") || log.contains("did not end a span")
    });
    let counters = run.proxy.stop();
    counters.assert_ended();
    assert_eq!(counters.abandoned, 0, "{counters:?}");
    assert!(counters.closed > 0, "{counters:?}");
}

#[test]
fn a_refused_span_is_logged_with_the_settings_that_limit_it() {
    let limits = "open_spans_per_user = 4\n";
    let Some(run) = a_hundred_of_a_limited_user(limits, 20) else { return };
    wait_until("the refusal is logged", || run.proxy.log().contains("limits.open_spans_per_user"));
    let counters = run.proxy.stop();
    counters.assert_ended();
    assert!(counters.refused > 0 && counters.closed > 0, "{counters:?}");
}
