//! The proxy's spans at the daemon: one per request, none lost, and the energy adds up.

use crate::http_stub;
use crate::programs;
use crate::support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fixture::{LONG_PATIENCE, fixture};
use crate::ground_truth::TestRng;
use crate::http_stub::{HttpConnection, HttpMessage, StubServer, TestProxy, inference_request};
use crate::support::{SLOW_COUNTER_MACHINE, STEADY_MACHINE, TEST_TIMEOUT, TestDaemon, wait_until};
use rustix::net::{AddressFamily, SocketType};
use serde_json::{Value, json};

const CHUNK: &str = "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
const EVENTS: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunked(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn stream() -> String {
    [EVENTS, &chunked(CHUNK), &chunked(CHUNK), &chunked(USAGE), "0\r\n\r\n"].concat()
}

fn json_reply(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Starts a proxy, with long patience unless the flags have another one.
fn start_proxy(stub: &StubServer, daemon: &TestDaemon, flags: &[&str]) -> TestProxy {
    let patience: &[&str] = if flags.contains(&"--patience") { &[] } else { &LONG_PATIENCE };
    let flags = [patience, flags].concat();
    TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &flags).wait_for_daemon()
}

fn ask(proxy: &TestProxy, request: &[u8]) -> HttpMessage {
    let mut connection = HttpConnection::connect(proxy.address);
    assert!(connection.send(request));
    connection.read_reply().expect("a reply")
}

/// The `key=value` pairs of the energy header or trailer.
fn energy(text: &str) -> BTreeMap<String, String> {
    text.split(", ").filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

fn account(daemon: &TestDaemon, reply: &HttpMessage) -> Value {
    let span = reply.header("wattspan-span").expect("a span");
    let mut account = Value::Null;
    wait_until("settled", || {
        account = daemon.client().call("GetSpan", json!({ "span": span }))["account"].take();
        account["state"] == "settled"
    });
    account
}

#[test]
fn a_reply_in_one_piece_has_its_energy_in_the_head() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(json_reply(
        r#"{"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
    ));
    let proxy = start_proxy(&stub, &daemon, &[]);
    let body = r#"{"messages":[],"model":"asked"}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nWattspan-Name: question 7\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let reply = ask(&proxy, request.as_bytes());
    let energy_fields = energy(reply.header("wattspan-energy").unwrap());
    assert_eq!(energy_fields["simulated"], "?1", "the tests' machine is replayed");
    let account = account(&daemon, &reply);
    assert_eq!(energy_fields["state"], "settled");
    for field in ["share_uj", "error_uj", "window_uj"] {
        assert_eq!(energy_fields[field], account[field].to_string(), "{field}");
    }
    let share = account["share_uj"].as_u64().unwrap();
    assert_eq!(energy_fields["uj_per_output_token"], share.div_ceil(2).to_string());
    assert_eq!(account["name"], "question 7");
    let notes = &account["attributes"];
    assert_eq!(notes["gen_ai.request.model"], "asked");
    assert_eq!(notes["gen_ai.response.model"], "m");
    assert_eq!(notes["gen_ai.usage.input_tokens"], "3");
    assert_eq!(notes["gen_ai.usage.output_tokens"], "2");
    assert_eq!(notes["http.response.status_code"], "200");
    assert_eq!(notes["url.path"], "/v1/chat/completions");
    assert_eq!(notes["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(notes["parent_span_id"], "00f067aa0ba902b7");
    proxy.stop().assert_balanced();
}

#[test]
fn an_encoded_path_is_measured_and_forwarded_unchanged() {
    let fixture = fixture();
    let path = "/v1/chat/complet%69ons?a=%41&b=%2f";
    let request = format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{{}}");
    let reply = ask(&fixture.proxy, request.as_bytes());
    assert!(reply.status() == 200 && reply.header("wattspan-energy").is_some(), "{reply:?}");
    let received = fixture.received.lock().unwrap();
    assert_eq!(received[0].line, format!("POST {path} HTTP/1.1"));
}

#[test]
fn an_account_has_the_hash_of_the_prompt_only_where_it_is_wanted() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(json_reply(r#"{"model":"m","choices":[]}"#));
    let body = r#"{"model":"m","messages":[{"role":"user","content":"Wie sp\u00e4t ist es?"}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // FNV-1a of "user", 0xFF, the question in UTF-8, 0xFF.
    for (flags, hash) in [(&["--prompt-hash"][..], json!("7fbb103d57e393cc")), (&[], Value::Null)] {
        let proxy = start_proxy(&stub, &daemon, flags);
        let account = account(&daemon, &ask(&proxy, request.as_bytes()));
        assert_eq!(account["attributes"]["wattspan.prompt_hash"], hash, "{account}");
    }
}

#[test]
fn the_trace_goes_on_with_our_span_as_its_parent() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let received = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&received);
    let stub = StubServer::new(move |mut connection| {
        while let Some(request) = connection.read_request() {
            listener.lock().unwrap().push(request);
            connection.send(json_reply("{}").as_bytes());
        }
    });
    let proxy = start_proxy(&stub, &daemon, &[]);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let reply = ask(
        &proxy,
        format!("POST /v1/completions HTTP/1.1\r\nHost: t\r\ntraceparent: {trace}\r\ntracestate: a=b\r\nContent-Length: 0\r\n\r\n").as_bytes(),
    );
    let other = format!("GET /v1/models HTTP/1.1\r\nHost: t\r\ntraceparent: {trace}\r\n\r\n");
    assert!(ask(&proxy, other.as_bytes()).header("wattspan-span").is_none());
    let ours = account(&daemon, &reply)["attributes"]["span_id"].as_str().unwrap().to_owned();
    let received = received.lock().unwrap();
    assert_eq!(
        received[0].header("traceparent").unwrap(),
        format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{ours}-01")
    );
    assert_eq!(received[0].header("tracestate"), Some("a=b"));
    assert_eq!(received[1].header("traceparent"), Some(trace), "requests other than inference are unchanged");
}

#[test]
fn a_stream_has_its_energy_after_it_and_decode_is_marked_at_the_first_token() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::new(|mut connection| {
        while connection.read_request().is_some() {
            connection.send(EVENTS.as_bytes());
            connection.send(
                chunked("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n")
                    .as_bytes(),
            );
            support::sleep_ms(30);
            connection.send(chunked(CHUNK).as_bytes());
            support::sleep_ms(30);
            connection.send([chunked(USAGE), "0\r\n\r\n".into()].concat().as_bytes());
        }
    });
    let proxy = start_proxy(&stub, &daemon, &[]);
    let request =
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nConnection: TE\r\nContent-Length: 2\r\n\r\n{}";
    let reply = ask(&proxy, request);
    let trailer = energy(http_stub::header_value(&reply.trailers, "wattspan-energy").unwrap());
    let comment: Value =
        serde_json::from_str(reply.text().rsplit(": wattspan ").next().unwrap().trim()).unwrap();
    let account = account(&daemon, &reply);
    assert_eq!(comment["share_uj"], account["share_uj"]);
    assert_eq!(trailer["share_uj"], account["share_uj"].to_string());
    let phases = account["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 2, "{account}");
    assert_eq!(phases[1]["name"], "decode");
    // A message that reaches a busy daemon after its horizon moves the opening.
    let opened_ns = account["opened_ns"].as_u64().unwrap() - account["moved_ns"].as_u64().unwrap();
    let first = phases[1]["opened_ns"].as_u64().unwrap() - opened_ns;
    assert!(first >= 30_000_000, "decode began after {first} ns");
    assert_eq!(comment["prefill_uj"], phases[0]["share_uj"]);
    assert_eq!(account["attributes"]["gen_ai.usage.output_tokens"], "2");
    proxy.stop().assert_balanced();
}

#[test]
fn the_last_message_of_a_stream_is_read_whatever_its_length() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::new(|mut connection| {
        while let Some(request) = connection.read_request() {
            let lines = request.line.starts_with("POST /api/generate");
            let kind = if lines { "application/x-ndjson" } else { "text/event-stream" };
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
            let (first, last) = if lines {
                let context =
                    (0..6000).map(|number| (number + 10_000).to_string()).collect::<Vec<_>>().join(",");
                let last = format!(
                    "{{\"model\":\"l\",\"response\":\"\",\"done\":true,\"context\":[{context}],\"eval_count\":2}}\n"
                );
                ("{\"model\":\"l\",\"response\":\"Hi\",\"done\":false}\n".to_owned(), last)
            } else {
                let text = "word ".repeat(200_000);
                let last = format!(
                    "data: {{\"type\":\"response.completed\",\"response\":{{\"model\":\"g\",\"output\":[{{\"text\":\"{text}\"}}],\
                     \"usage\":{{\"input_tokens\":1,\"output_tokens\":2}}}}}}\n\n"
                );
                ("data: {\"type\":\"response.output_text.delta\",\"delta\":\"w\"}\n\n".to_owned(), last)
            };
            connection.send([head, chunked(&first), chunked(&last), "0\r\n\r\n".into()].concat().as_bytes());
        }
    });
    let proxy = start_proxy(&stub, &daemon, &["--annotate", "usage"]);
    for (path, length) in [("/api/generate", 36_000), ("/v1/responses", 1_000_000)] {
        let reply = ask(
            &proxy,
            format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{{}}").as_bytes(),
        );
        assert!(reply.text().len() > length, "{path}: {}", reply.text().len());
        let account = account(&daemon, &reply);
        assert_eq!(account["attributes"]["gen_ai.usage.output_tokens"], "2", "{path}: {account}");
        let energy = format!("\"share_uj\":{}", account["share_uj"]);
        assert!(reply.text().contains(&energy), "{path}: no {energy}");
    }
    proxy.stop().assert_balanced();
}

#[test]
fn a_reply_that_comes_slowly_in_chunks_has_its_energy_in_a_trailer_that_is_announced() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (go_on, held) = std::sync::mpsc::channel();
    let held = Mutex::new(held);
    let stub = StubServer::new(move |mut connection| {
        while connection.read_request().is_some() {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            connection.send([head, &chunked("{\"a\":")].concat().as_bytes());
            held.lock().unwrap().recv().unwrap();
            connection.send([chunked("1}"), "0\r\n\r\n".into()].concat().as_bytes());
        }
    });
    let proxy = start_proxy(&stub, &daemon, &[]);
    let slowly = |request: &[u8]| {
        let mut connection = HttpConnection::connect(proxy.address);
        connection.send(request);
        // The headers arrive before the end of the body.
        let mut reply = connection.read_head().unwrap();
        go_on.send(()).unwrap();
        connection.read_body(&mut reply, true);
        assert!(reply.is_complete && reply.text() == "{\"a\":1}", "{reply:?}");
        reply
    };
    let reply = slowly(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nConnection: TE\r\nContent-Length: 2\r\n\r\n{}",
    );
    assert_eq!(reply.header("trailer"), Some("wattspan-energy"));
    let trailer = energy(http_stub::header_value(&reply.trailers, "wattspan-energy").unwrap());
    let account = account(&daemon, &reply);
    assert_eq!(trailer["share_uj"], account["share_uj"].to_string());
    // A client that did not request trailers gets none.
    let reply = slowly(&inference_request("{}"));
    assert_eq!((reply.header("trailer"), reply.trailers.len()), (None, 0));
}

#[test]
fn usage_carries_the_energy_where_it_is_asked_for() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let whole = r#"{"a":[1, 2],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
    let (one, many) = (StubServer::with_reply(json_reply(whole)), StubServer::with_reply(stream()));
    let proxy = start_proxy(&one, &daemon, &["--annotate", "usage"]);
    let reply = ask(&proxy, &inference_request("{}"));
    let value: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(value["usage"]["energy"]["state"], "settled");
    let account = account(&daemon, &reply);
    assert_eq!(value["usage"]["energy"]["share_uj"], account["share_uj"]);
    let energy = format!("\"energy\":{},", value["usage"]["energy"]);
    assert_eq!(energy.len() + whole.len(), reply.body.len(), "nothing else changed");
    let proxy = start_proxy(&many, &daemon, &["--annotate", "usage"]);
    let reply = ask(&proxy, &inference_request("{}"));
    let chunk = reply.text().lines().find(|line| line.contains("\"usage\"")).unwrap()[6..].to_owned();
    let value: Value = serde_json::from_str(&chunk).unwrap();
    assert_eq!(value["usage"]["energy"]["state"], "settled", "{value}");
    assert_eq!(value["usage"]["completion_tokens"], 2);
    assert_eq!(reply.text().matches("data: [DONE]\n\n").count(), 1);
}

#[test]
fn of_choices_one_after_the_other_the_last_usage_has_the_energy() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let chunk = |index: u32, reason: &str, tokens: u32| {
        chunked(&format!(
            "data: {{\"choices\":[{{\"index\":{index},\"text\":\"x\",\"finish_reason\":{reason}}}],\
             \"usage\":{{\"completion_tokens\":{tokens}}}}}\n\n"
        ))
    };
    for end in [chunked("data: [DONE]\n\n"), String::new()] {
        let choices =
            [chunk(0, "null", 1), chunk(0, "\"stop\"", 2), chunk(1, "null", 3), chunk(1, "\"stop\"", 4)];
        let stub = StubServer::with_reply([EVENTS, &choices.concat(), &end, "0\r\n\r\n"].concat());
        let proxy = start_proxy(&stub, &daemon, &["--annotate", "usage"]);
        let reply = ask(&proxy, &inference_request("{}"));
        let text = reply.text();
        let with_energy: Vec<&str> = text.lines().filter(|line| line.contains("\"energy\"")).collect();
        let [chunk] = with_energy[..] else { panic!("{text}") };
        let value: Value = serde_json::from_str(&chunk["data: ".len()..]).unwrap();
        assert_eq!(value["usage"]["energy"]["state"], "settled", "{value}");
        assert_eq!(value["usage"]["completion_tokens"], 4);
        assert_eq!(account(&daemon, &reply)["attributes"]["gen_ai.usage.output_tokens"], "4");
    }
}

#[test]
fn an_unreachable_daemon_fails_no_request_and_is_used_once_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let stub = StubServer::with_reply(stream());
    let upstream = format!("http://{}", stub.address);
    let proxy = TestProxy::start(&upstream, &dir.path().join("none.sock"), &[]);
    let reply = ask(&proxy, &inference_request("{}"));
    assert_eq!(reply.status(), 200);
    assert!(reply.text().starts_with(CHUNK) && reply.text().contains("\"unmeasured\""), "{}", reply.text());
    wait_until("the missing daemon is logged", || proxy.log().contains("no daemon at"));
    let counters = proxy.stop();
    assert_eq!((counters.opened, counters.unmeasured), (0, 1));

    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let proxy = start_proxy(&stub, &daemon, &[]);
    assert!(ask(&proxy, &inference_request("{}")).text().contains("\"settled\""));
    daemon.kill();
    wait_until("the lost daemon is logged", || proxy.log().contains("unmeasured until"));
    assert!(ask(&proxy, &inference_request("{}")).text().contains("\"unmeasured\""));
    daemon.restart();
    wait_until("measured again", || ask(&proxy, &inference_request("{}")).text().contains("\"settled\""));
    proxy.stop().assert_balanced();
}

#[test]
fn a_daemon_that_stalls_delays_replies_no_more_than_a_bounded_while() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(stream());
    let proxy = start_proxy(&stub, &daemon, &["--patience", "50"]);
    wait_until("measured", || ask(&proxy, &inference_request("{}")).text().contains("\"settled\""));
    rustix::process::kill_process(daemon.pid(), rustix::process::Signal::STOP).unwrap();
    // Each request ends, although the stopped daemon never answers.
    for _ in 0..50 {
        let reply = ask(&proxy, &inference_request("{}"));
        assert!(reply.is_complete && reply.text().contains("\"pending\""), "{}", reply.text());
    }
    rustix::process::kill_process(daemon.pid(), rustix::process::Signal::CONT).unwrap();
    wait_until("measured again", || ask(&proxy, &inference_request("{}")).text().contains("\"settled\""));
    proxy.stop().assert_balanced();
}

#[test]
fn an_account_that_settles_late_is_pending_and_the_reply_goes_out() {
    let daemon = TestDaemon::start(SLOW_COUNTER_MACHINE);
    let stub = StubServer::with_reply(json_reply("{}"));
    let proxy = start_proxy(&stub, &daemon, &["--patience", "20"]);
    let reply = ask(&proxy, &inference_request("{}"));
    assert!(reply.header("wattspan-energy").unwrap().starts_with("state=pending"));
    assert!(reply.header("wattspan-span").is_some());
}

/// An address that refuses connections as long as the socket lives: it is bound and does not listen, so that no other test
/// gets the port.
fn port_without_server() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap();
    (socket, SocketAddr::try_from(address).unwrap())
}

#[test]
fn an_unreachable_server_costs_no_energy_and_is_reported() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (_bound, closed) = port_without_server();
    let proxy = TestProxy::start(&format!("http://{closed}"), &daemon.socket(), &[]).wait_for_daemon();
    let reply = ask(&proxy, &inference_request("{}"));
    assert_eq!(reply.status(), 502);
    assert!(reply.text().contains("no reply from the server"), "{}", reply.text());
    let counters = proxy.stop();
    assert_eq!((counters.opened, counters.cancelled), (1, 1));
}

#[test]
fn energy_before_a_server_disconnect_is_attributed() {
    // A daemon that stands still for 50 ms must not move opening and closing to one instant.
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "horizon_ms = 1000.0\n");
    let stub = StubServer::new(|mut connection| {
        connection.read_request();
        support::sleep_ms(50);
    });
    let proxy = start_proxy(&stub, &daemon, &[]);
    assert_eq!(ask(&proxy, &inference_request("{\"model\":\"m\"}")).status(), 502);
    let mut account = Value::Null;
    wait_until("settled", || {
        let accounts = daemon.client().call("ListSpans", json!({}))["accounts"].take();
        account = accounts.as_array().unwrap().first().cloned().unwrap_or_default();
        account["state"] == "settled"
    });
    assert_eq!(account["attributes"]["error.type"], "no reply from the server");
    assert_eq!(account["attributes"]["gen_ai.request.model"], "m");
    assert!(account["share_uj"].as_u64().unwrap() > 0, "{account}");
    let counters = proxy.stop();
    assert_eq!((counters.closed, counters.cancelled), (1, 0), "{counters:?}");
}

#[test]
fn the_server_sees_the_client_disconnect() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (left, leaving) = std::sync::mpsc::channel();
    let left = Mutex::new(left);
    let stub = StubServer::new(move |mut connection| {
        if connection.read_request().is_none() {
            return;
        }
        connection.send(EVENTS.as_bytes());
        let began = Instant::now();
        while connection.send(chunked(CHUNK).as_bytes()) && began.elapsed() < TEST_TIMEOUT {
            support::sleep_ms(2);
        }
        left.lock().unwrap().send(began.elapsed() < TEST_TIMEOUT).unwrap();
    });
    let proxy = start_proxy(&stub, &daemon, &[]);
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(&inference_request("{}"));
    let head = connection.read_head().unwrap();
    connection.read_line();
    connection.shutdown();
    assert!(leaving.recv_timeout(TEST_TIMEOUT).unwrap(), "the server continued without a client");
    let account = account(&daemon, &head);
    assert_eq!(account["attributes"]["error.type"], "the client left");
    proxy.stop().assert_balanced();
}

#[test]
fn a_client_that_does_not_read_is_not_read_for() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let sent = Arc::new(Mutex::new(0_u64));
    let counted = Arc::clone(&sent);
    let stub = StubServer::new(move |mut connection| {
        connection.stream().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        if connection.read_request().is_none() {
            return;
        }
        connection.send(EVENTS.as_bytes());
        let piece = chunked(&CHUNK.repeat(100));
        while connection.send(piece.as_bytes()) {
            *counted.lock().unwrap() += piece.len() as u64;
        }
    });
    let proxy = start_proxy(&stub, &daemon, &[]);
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(&inference_request("{}"));
    connection.read_head().unwrap();
    let before = proxy.resident_bytes();
    let mut last = u64::MAX;
    wait_until("stopped sending", || {
        support::sleep_ms(400);
        let now = *sent.lock().unwrap();
        std::mem::replace(&mut last, now) == now
    });
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes are kept for a client that does not read; {last} were sent");
}

/// Sends streams of random length; disconnects at random.
fn serve_unreliably(mut connection: HttpConnection) {
    let mut rng = TestRng(0x5eed | u64::from(connection.stream().peer_addr().unwrap().port()) << 20);
    (0..5).for_each(|_| _ = rng.next_u64());
    while connection.read_request().is_some() {
        match rng.range(0, 9) {
            0 => return,
            1 => {
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nnot all");
                return;
            }
            2 => drop(connection.send(json_reply(r#"{"usage":{"completion_tokens":9}}"#).as_bytes())),
            kind => {
                connection.send(EVENTS.as_bytes());
                for _ in 0..rng.range(0, 12) {
                    connection.send(chunked(CHUNK).as_bytes());
                    std::thread::sleep(Duration::from_micros(rng.range(0, 3000)));
                }
                if kind == 3 {
                    return;
                }
                connection.send([chunked(USAGE), "0\r\n\r\n".into()].concat().as_bytes());
            }
        }
    }
}

/// Sends `rounds` requests, and disconnects at random.
fn request_unreliably(address: std::net::SocketAddr, seed: u64, rounds: u64) {
    let mut rng = TestRng(seed * 77 + 1);
    (0..5).for_each(|_| _ = rng.next_u64());
    let mut connection = HttpConnection::connect(address);
    for _ in 0..rounds {
        let mut request = inference_request("{\"model\":\"m\",\"stream\":true}");
        match rng.range(0, 5) {
            0 => {
                request.truncate(rng.range(1, request.len() as u64 - 1) as usize);
                connection.send(&request);
                connection.shutdown();
            }
            1 => {
                connection.send(&request);
                std::thread::sleep(Duration::from_micros(rng.range(0, 5000)));
                connection.shutdown();
            }
            2 => {
                connection.send(&request);
                let _ = connection.read_head().map(|_| connection.read_line());
                connection.shutdown();
            }
            _ => {
                connection.send(&request);
                if connection.read_reply().is_some_and(|reply| reply.is_complete) {
                    continue;
                }
            }
        }
        connection = HttpConnection::connect(address);
    }
}

/// Collects the final accounts so far, by span.
fn settled(daemon: &TestDaemon) -> Arc<Mutex<BTreeMap<String, Value>>> {
    let accounts = Arc::new(Mutex::new(BTreeMap::new()));
    let (mut watcher, into) = (daemon.client(), Arc::clone(&accounts));
    watcher.send("WatchSpans", json!({}), &["more"]);
    watcher.stream().set_read_timeout(None).unwrap();
    std::thread::spawn(move || {
        while let Some(mut answer) = watcher.receive() {
            let account = answer["parameters"]["account"].take();
            into.lock().unwrap().insert(account["span"].as_str().unwrap().to_owned(), account);
        }
    });
    accounts
}

#[test]
fn no_span_is_lost_and_the_energy_adds_up_while_clients_and_server_die_at_random() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let accounts = settled(&daemon);
    let stub = StubServer::new(serve_unreliably);
    let proxy = start_proxy(&stub, &daemon, &["--weight", "tokens"]);
    let address = proxy.address;
    std::thread::scope(|scope| {
        for seed in 0..16 {
            scope.spawn(move || request_unreliably(address, seed, 40));
        }
    });
    let counters = proxy.stop();
    counters.assert_balanced();
    assert!(counters.closed > 100, "{counters:?}");
    assert_eq!(counters.abandoned, 0, "{counters:?}");
    wait_until("settled", || accounts.lock().unwrap().len() as u64 >= counters.closed);
    let accounts = accounts.lock().unwrap();
    assert_eq!(accounts.len() as u64, counters.closed, "{counters:?}");
    for row in daemon.client().call("GetBalance", json!({}))["balance"].as_array().unwrap() {
        let of_domain = |account: &Value| {
            let share = account["domains"].as_array().unwrap().iter().find(|s| s["domain"] == row["domain"]);
            share.and_then(|share| share["share_uj"].as_u64()).unwrap_or(0)
        };
        let shares: u64 = accounts.values().map(of_domain).sum();
        let figure = |name: &str| row[name].as_u64().unwrap();
        assert_eq!(shares + figure("unattributed_uj"), figure("measured_uj"), "{row}");
    }
}

#[test]
fn no_span_is_lost_while_the_daemon_is_killed_and_comes_back() {
    let mut daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(stream());
    let proxy = start_proxy(&stub, &daemon, &[]);
    let address = proxy.address;
    std::thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || {
                for _ in 0..150 {
                    let mut connection = HttpConnection::connect(address);
                    assert!(connection.send(&inference_request("{}")), "{seed}");
                    let reply = connection.read_reply().expect("a reply, whatever the daemon does");
                    assert!(
                        reply.is_complete && reply.text().contains("data: [DONE]\n\n"),
                        "{}",
                        reply.text()
                    );
                }
            });
        }
        for _ in 0..3 {
            support::sleep_ms(150);
            daemon.kill();
            support::sleep_ms(50);
            daemon.restart();
        }
    });
    wait_until("measured again", || ask(&proxy, &inference_request("{}")).text().contains("\"settled\""));
    let counters = proxy.stop();
    counters.assert_balanced();
    assert!(counters.closed > 0, "{counters:?}");
    // Once the proxy has exited, no span is open at the daemon.
    wait_until("closed all", || {
        let accounts = daemon.client().call("ListSpans", json!({ "limit": 256 }))["accounts"].take();
        accounts
            .as_array()
            .unwrap()
            .iter()
            .all(|account| account["state"] == "settled" || account["state"] == "abandoned")
    });
}

#[test]
fn the_proxy_needs_a_daemon_and_says_so() {
    for flag in ["--replay", "--config"] {
        let output = std::process::Command::new(programs::wattspan())
            .args(["proxy", "--upstream", "http://127.0.0.1:1", flag])
            .arg(Path::new("machine.toml"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{flag}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("needs a daemon"), "{flag}");
    }
}

/// The fields of an account that belong to a process share.
fn process_share(account: &Value) -> Vec<&str> {
    ["process", "cgroup", "process_uj", "process_reason"]
        .into_iter()
        .filter(|field| account.get(field).is_some())
        .collect()
}

#[test]
fn without_a_named_server_an_account_has_no_process_share_and_never_the_proxys() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(json_reply("{}"));
    let proxy = start_proxy(&stub, &daemon, &[]);
    let reply = ask(&proxy, &inference_request("{}"));
    let account = account(&daemon, &reply);
    assert_eq!(process_share(&account), [""; 0], "{account}");
    let output = std::process::Command::new(programs::wattspan())
        .arg("--socket")
        .arg(daemon.socket())
        .args(["spans", reply.header("wattspan-span").unwrap()])
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("energy") && !printed.contains("by CPU time"), "{printed}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_named_server_process_is_the_one_of_the_share_until_it_ends() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(json_reply("{}"));
    let mut server = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = server.id().to_string();
    let proxy = start_proxy(&stub, &daemon, &["--upstream-pid", &pid]);
    let named = account(&daemon, &ask(&proxy, &inference_request("{}")));
    assert_eq!(named["process"].to_string(), pid, "{named}");
    server.kill().unwrap();
    server.wait().unwrap();
    wait_until("seen the server end", || proxy.log().contains("it has ended"));
    let later = account(&daemon, &ask(&proxy, &inference_request("{}")));
    assert_eq!(process_share(&later), [""; 0], "{later}");
    proxy.stop().assert_balanced();
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_process_that_the_daemon_refuses_costs_one_measurement_and_a_log_line() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(json_reply("{}"));
    let proxy = start_proxy(&stub, &daemon, &["--upstream-cgroup", "/no/such/group"]);
    assert_eq!(ask(&proxy, &inference_request("{}")).status(), 200);
    wait_until("refused", || proxy.log().contains("control group /no/such/group"));
    let later = account(&daemon, &ask(&proxy, &inference_request("{}")));
    assert_eq!((process_share(&later).len(), &later["state"]), (0, &json!("settled")), "{later}");
    let counters = proxy.stop();
    counters.assert_ended();
    assert_eq!((counters.opened, counters.closed, counters.refused), (2, 1, 1));
    let output = std::process::Command::new(programs::wattspan())
        .args(["proxy", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"])
        .args(["--upstream-pid", "4194305"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--upstream-pid 4194305"));
}
