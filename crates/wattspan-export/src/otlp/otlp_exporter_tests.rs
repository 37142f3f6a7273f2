//! The exporter against a stand-in for a collector, which answers from a script.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use wattspan_client::account::{Account, GapReason};

use super::*;

/// The answer to a request, made from its body.
type Respond = dyn Fn(usize, &Value) -> Vec<u8> + Send + Sync;

/// A collector that records the requests, and answers the n-th one with `respond(n, body)`. An empty answer closes the
/// connection.
struct Collecting {
    url: String,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Collecting {
    fn new(respond: impl Fn(usize, &Value) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (recorded, respond) = (Arc::clone(&requests), Arc::new(respond) as Arc<Respond>);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (recorded, respond) = (Arc::clone(&recorded), Arc::clone(&respond));
                thread::spawn(move || serve(stream, &recorded, &*respond));
            }
        });
        Self { url, requests }
    }

    /// The numbers of the accounts in each request.
    fn numbers(&self) -> Vec<Vec<u64>> {
        self.requests.lock().unwrap().iter().map(|(_, body)| numbers(body)).collect()
    }

    fn bodies(&self) -> Vec<Value> {
        self.requests.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

fn serve(mut stream: TcpStream, recorded: &Mutex<Vec<(String, Value)>>, respond: &Respond) {
    while let Some((head, body)) = read_request(&mut stream) {
        let mut all = recorded.lock().unwrap();
        all.push((head, body.clone()));
        let at = all.len() - 1;
        drop(all);
        let answer = respond(at, &body);
        if answer.is_empty() || stream.write_all(&answer).is_err() {
            break;
        }
        if !answer.starts_with(b"HTTP/1.1 ") || answer.ends_with(b"...") {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn read_request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 1 << 16]);
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let body = bytes.split_off(end + 4);
            if body.len() >= length.unwrap_or(0) {
                return Some((head, serde_json::from_slice(&body).unwrap()));
            }
            bytes.extend_from_slice(&body);
        }
        match stream.read(&mut chunk) {
            Ok(count) if count > 0 => bytes.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
}

fn reply(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn accept() -> Vec<u8> {
    reply("200 OK", "Content-Type: application/json\r\n", "{}")
}

fn spans(body: &Value) -> Vec<Value> {
    body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
}

fn number(span: &Value) -> u64 {
    let attributes = span["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|attribute| attribute["key"] == "wattspan.account.number").unwrap();
    found["value"]["intValue"].as_str().unwrap().parse().unwrap()
}

fn numbers(body: &Value) -> Vec<u64> {
    spans(body).iter().map(number).collect()
}

/// Sends the accounts from 1 to `stored`, changed by `change`.
struct Sending {
    exporter: OtlpExporter,
    stored: u64,
    change: fn(Account) -> Account,
    messages: Vec<String>,
}

impl Sending {
    fn new(url: &str, state: PathBuf, stored: u64) -> Self {
        Self::with_timeout(url, state, stored, Duration::from_secs(20))
    }

    fn with_timeout(url: &str, state: PathBuf, stored: u64, timeout: Duration) -> Self {
        let backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(4) };
        let exporter = OtlpExporter::open(OtlpSettings {
            collector: CollectorSettings {
                endpoint: url.parse().unwrap(),
                headers: vec![(http::header::AUTHORIZATION, "Bearer secret".parse().unwrap())],
                timeout,
            },
            state,
            host: "node-7".into(),
            attributes: vec!["kept".into()],
            signals: vec![OtlpSignal::Traces],
            backoff,
            retry_limit: Some(Duration::from_secs(120)),
        });
        Sending { exporter: exporter.unwrap(), stored, change: |account| account, messages: Vec::new() }
    }

    fn run(&mut self) -> Result<OtlpSummary, OtlpError> {
        let (stored, change) = (self.stored, self.change);
        let template: Account = serde_json::from_str(include_str!("../test_account.json")).unwrap();
        let mut list = |call: ListSpans| {
            let after = u64::try_from(call.after.unwrap()).unwrap();
            let last = stored.min(after + u64::try_from(call.limit.unwrap()).unwrap());
            let accounts =
                (after + 1..=last).map(|number| change(Account { number: Some(number), ..template.clone() }));
            Ok(SpanAccounts {
                after: Some(last),
                at_end: Some(last == stored),
                database: Some("uuid".into()),
                ..SpanAccounts::of_accounts(accounts.collect())
            })
        };
        let messages = &mut self.messages;
        self.exporter.send_listed(&mut list, &mut |message| messages.push(message.to_owned()))
    }
}

fn new_state() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/otlp.json");
    (dir, path)
}

#[test]
fn a_batch_is_repeated_unchanged_over_errors_hang_ups_garbage_and_silence() {
    let collector = Collecting::new(|at, _| match at {
        0 => reply("503 Service Unavailable", "Retry-After: 0\r\n", ""),
        1 => reply("429 Too Many Requests", "", "{\"message\":\"slowly\"}"),
        2 => reply("502 Bad Gateway", "", "<html>"),
        3 => reply("504 Gateway Timeout", "", ""),
        4 => Vec::new(),
        5 => b"garbage\r\n\r\n".to_vec(),
        6 => b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{...".to_vec(),
        7 => {
            thread::sleep(Duration::from_secs(3600));
            Vec::new()
        }
        _ => accept(),
    });
    let (_dir, state) = new_state();
    let mut sending = Sending::with_timeout(&collector.url, state, 3, Duration::from_secs(2));
    let summary = sending.run().unwrap();
    assert_eq!((summary.accounts, summary.rejected), (3, 0));
    let bodies = collector.bodies();
    // On a busy machine an answer may also come too late.
    assert!(bodies.len() >= 9, "{:?}", sending.messages);
    assert!(bodies.iter().all(|body| *body == bodies[0]), "each repetition has the same spans and IDs");
    assert_eq!(sending.messages.len(), bodies.len() - 1);
    assert!(sending.messages.iter().any(|message| message.contains("slowly")), "{:?}", sending.messages);
    assert!(sending.messages.iter().any(|message| message.contains("no answer")), "{:?}", sending.messages);
    let head = collector.requests.lock().unwrap()[0].0.to_lowercase();
    assert!(head.starts_with("post /v1/traces ") && head.contains("authorization: bearer secret"), "{head}");
    assert_eq!(sending.run().unwrap(), OtlpSummary::default(), "nothing is sent twice");
    assert_eq!(collector.bodies().len(), bodies.len());
}

#[test]
fn an_answer_that_repetition_does_not_change_stops_without_a_loss() {
    for (answer, named) in [
        (reply("401 Unauthorized", "", "{\"message\":\"no key\"}"), "no key"),
        (reply("404 Not Found", "", ""), "404"),
        (reply("308 Permanent Redirect", "Location: /x\r\n", ""), "308"),
        (reply("500 Internal Server Error", "", ""), "500"),
        (reply("200 OK", "Content-Type: text/html\r\n", "<html>login</html>"), "not one of OTLP"),
        (reply("400 Bad Request", "", "{\"message\":\"no JSON here\"}"), "no JSON here"),
        (reply("200 OK", "", "{\"partialSuccess\":{\"rejectedSpans\":\"1000\"}}"), "rejects each span"),
    ] {
        let first = answer.clone();
        let collector = Collecting::new(move |_, _| first.clone());
        let (_dir, state) = new_state();
        let mut sending = Sending::new(&collector.url, state.clone(), 3);
        let error = sending.run().unwrap_err().to_string();
        assert!(error.contains(named) && !error.contains("secret"), "{error}");
        assert!(sending.messages.is_empty(), "{:?}", sending.messages);
        drop(sending);
        let collector = Collecting::new(|_, _| accept());
        assert_eq!(Sending::new(&collector.url, state, 3).run().unwrap().accounts, 3);
        assert_eq!(collector.numbers(), [[1, 2, 3]]);
    }
}

#[test]
fn a_span_that_the_collector_finds_invalid_is_counted_and_the_others_arrive() {
    let collector = Collecting::new(|_, body| match numbers(body).contains(&5) {
        true => reply("400 Bad Request", "", "{\"message\":\"name too long\"}"),
        false => accept(),
    });
    let (_dir, state) = new_state();
    let mut sending = Sending::new(&collector.url, state, 9);
    let summary = sending.run().unwrap();
    assert_eq!((summary.accounts, summary.rejected, sending.exporter.rejected()), (8, 1, 1));
    assert_eq!(
        sending.messages,
        ["accounts that are rejected and not sent again: 1 (HTTP 400 Bad Request: name too long)"]
    );
    let mut accepted: Vec<u64> =
        collector.numbers().into_iter().filter(|numbers| !numbers.contains(&5)).flatten().collect();
    accepted.sort_unstable();
    assert_eq!(accepted, [1, 2, 3, 4, 6, 7, 8, 9]);
    assert_eq!(sending.run().unwrap().rejected, 0, "it is not sent again");
}

#[test]
fn a_batch_of_invalid_spans_alone_does_not_end_an_export_that_has_worked() {
    let collector =
        Collecting::new(|_, body| match numbers(body).iter().any(|number| (3..=4).contains(number)) {
            true => reply("400 Bad Request", "", "{\"message\":\"name too long\"}"),
            false => accept(),
        });
    let (_dir, state) = new_state();
    assert_eq!(Sending::new(&collector.url, state.clone(), 2).run().unwrap().accounts, 2);
    let mut sending = Sending::new(&collector.url, state.clone(), 4);
    let summary = sending.run().unwrap();
    assert_eq!((summary.accounts, summary.rejected, sending.exporter.rejected()), (0, 2, 2));
    assert_eq!(
        sending.messages,
        ["accounts that are rejected and not sent again: 2 (HTTP 400 Bad Request: name too long)"]
    );
    drop(sending);
    let summary = Sending::new(&collector.url, state, 6).run().unwrap();
    assert_eq!((summary.accounts, summary.rejected), (2, 0), "those after them arrive");
}

#[test]
fn a_request_that_is_too_large_for_the_collector_is_halved() {
    let collector = Collecting::new(|_, body| match spans(body).len() > 100 {
        true => reply("413 Payload Too Large", "", ""),
        false => accept(),
    });
    let (_dir, state) = new_state();
    let summary = Sending::new(&collector.url, state, 700).run().unwrap();
    assert_eq!((summary.accounts, summary.rejected), (700, 0));
    let accepted = collector.numbers().into_iter().filter(|numbers| numbers.len() <= 100);
    assert_eq!(
        accepted.flatten().collect::<Vec<u64>>(),
        (1..=700).collect::<Vec<u64>>(),
        "in order, each once"
    );
}

#[test]
fn a_partial_success_is_counted_and_not_repeated() {
    let partial = "{\"partialSuccess\":{\"rejectedSpans\":\"2\",\"errorMessage\":\"quota\"}}";
    let collector = Collecting::new(|_, _| reply("200 OK", "", partial));
    let (_dir, state) = new_state();
    let mut sending = Sending::new(&collector.url, state, 3);
    let summary = sending.run().unwrap();
    assert_eq!((summary.accounts, summary.rejected), (1, 2));
    assert_eq!(sending.messages, ["accounts that are rejected and not sent again: 2 (quota)"]);
    assert_eq!(collector.bodies().len(), 1);
}

#[test]
fn requests_are_bounded_in_spans_and_in_bytes() {
    let collector = Collecting::new(|_, _| accept());
    let (_dir, state) = new_state();
    let mut sending = Sending::new(&collector.url, state, 1100);
    sending.run().unwrap();
    let sizes: Vec<usize> = collector.numbers().iter().map(Vec::len).collect();
    assert_eq!(sizes, [512, 512, 76]);
    let collector = Collecting::new(|_, _| accept());
    let (_dir, state) = new_state();
    let mut sending = Sending::new(&collector.url, state, 9);
    sending.change = |mut account| {
        let length = if account.number == Some(4) { 2 << 20 } else { 300 << 10 };
        account.attributes.insert("kept".into(), "x".repeat(length));
        account
    };
    sending.run().unwrap();
    let expected: &[&[u64]] = &[&[1, 2, 3], &[4], &[5, 6, 7], &[8, 9]];
    assert_eq!(collector.numbers(), expected);
}

#[test]
fn what_a_kill_left_unconfirmed_is_sent_again_with_the_same_ids() {
    let collector = Collecting::new(|_, _| accept());
    let (_dir, state) = new_state();
    let mut sending = Sending::new(&collector.url, state.clone(), 600);
    sending.run().unwrap();
    drop(sending);
    // As a kill between an answer and the state leaves it, and one between two batches.
    let confirmed = serde_json::json!({ "database": "uuid", "after": 512 });
    std::fs::write(&state, confirmed.to_string()).unwrap();
    Sending::new(&collector.url, state.clone(), 600).run().unwrap();
    let bodies = collector.bodies();
    assert_eq!((bodies.len(), &bodies[2]), (3, &bodies[1]));
    // A file of a later version is not overwritten.
    std::fs::write(&state, "{\"after\":1,\"unknown\":2}").unwrap();
    let settings = Sending::new(&collector.url, new_state().1, 1).exporter.settings.clone();
    assert!(OtlpExporter::open(OtlpSettings { state: state.clone(), ..settings.clone() }).is_err());
    std::fs::remove_file(&state).unwrap();
    let open = OtlpExporter::open(OtlpSettings { state: state.clone(), ..settings.clone() }).unwrap();
    let second = OtlpExporter::open(OtlpSettings { state, ..settings });
    assert!(matches!(second, Err(OtlpError::Export(ExportError::Locked(_)))));
    drop(open);
}

#[test]
fn an_export_with_a_limit_of_time_ends_when_the_limit_is_reached() {
    // Nothing listens there; a port that was released could be that of another test's collector by now.
    let (_dir, state) = new_state();
    let mut sending = Sending::new("http://127.0.0.1:1", state, 3);
    sending.exporter.settings.retry_limit = Some(Duration::from_millis(50));
    let error = sending.run().unwrap_err();
    assert!(matches!(error, OtlpError::Unavailable { .. }), "{error}");
    assert_eq!(sending.exporter.state, OtlpState::default());
}

#[test]
fn another_database_is_sent_from_its_first_account() {
    let collector = Collecting::new(|_, _| accept());
    let (_dir, state) = new_state();
    let mut sending = Sending::new(&collector.url, state, 3);
    sending.run().unwrap();
    let template: Account = serde_json::from_str(include_str!("../test_account.json")).unwrap();
    let mut list = |call: ListSpans| {
        if call.database.as_deref() == Some("uuid") {
            let error = MethodError::InvalidValue { field: "database".into(), reason: "another".into() };
            return Err(ClientError::Method(error));
        }
        Ok(SpanAccounts {
            after: Some(1),
            at_end: Some(true),
            database: Some("other".into()),
            ..SpanAccounts::of_accounts(vec![Account { number: Some(1), ..template.clone() }])
        })
    };
    let mut messages = Vec::new();
    let mut report = |message: &str| messages.push(message.to_owned());
    assert_eq!(sending.exporter.send_listed(&mut list, &mut report).unwrap().accounts, 1);
    assert_eq!(messages, ["the daemon has another database; its accounts are sent from the first one on"]);
    let bodies = collector.bodies();
    let id = |body: &Value| spans(body)[0]["spanId"].clone();
    assert_ne!(id(&bodies[0]), id(&bodies[1]), "numbers repeat in another database, and IDs do not");
}

#[test]
fn a_failure_after_a_gap_does_not_hide_the_gap() {
    let collector = Collecting::new(|_, body| match numbers(body).contains(&3) {
        true => reply("404 Not Found", "", ""),
        false => accept(),
    });
    let (_dir, state) = new_state();
    let mut sending = Sending::new(&collector.url, state, 0);
    let template: Account = serde_json::from_str(include_str!("../test_account.json")).unwrap();
    // Two requests, because of their length: the first one arrives, and the second one does not.
    let mut list = |_: ListSpans| {
        let long = |number| {
            let attributes = [("kept".to_owned(), "x".repeat(BYTES_PER_REQUEST))].into();
            Account { number: Some(number), attributes, ..template.clone() }
        };
        let gap = |number| Gap { first: Some(number), last: Some(number), reason: GapReason::Deleted };
        Ok(SpanAccounts {
            after: Some(4),
            at_end: Some(true),
            database: Some("uuid".into()),
            gaps: Some(vec![gap(1), gap(4)]),
            ..SpanAccounts::of_accounts(vec![long(2), long(3)])
        })
    };
    let mut messages = Vec::new();
    let mut report = |message: &str| messages.push(message.to_owned());
    sending.exporter.send_listed(&mut list, &mut report).unwrap_err();
    assert_eq!(sending.exporter.state.after, 2);
    let expected = "accounts 1 to 1 are not exported: they were deleted by age or size";
    assert_eq!(messages, [expected], "the other gap is in the next reply too");
}
