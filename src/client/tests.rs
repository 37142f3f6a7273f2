//! The client against a daemon made of a thread and a script.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::*;
use crate::protocol::{Access, CancelSpan, MESSAGE_TERMINATOR, MarkPhase, MethodError};

/// Answers the n-th message with the n-th script entry (several messages or none in one entry), then hangs up.
/// Gives back what it was sent.
fn scripted_daemon(script: &[&str]) -> (Client, JoinHandle<Vec<String>>) {
    let (client_end, mut daemon_end) = UnixStream::pair().unwrap();
    let script: Vec<String> = script.iter().map(|text| (*text).to_owned()).collect();
    let thread = thread::spawn(move || {
        let mut received = Vec::new();
        for reply in script {
            let mut message = Vec::new();
            let mut byte = [0];
            while daemon_end.read(&mut byte).unwrap_or(0) == 1 && byte[0] != MESSAGE_TERMINATOR {
                message.push(byte[0]);
            }
            received.push(String::from_utf8(message).unwrap());
            daemon_end.write_all(reply.replace('|', "\0").as_bytes()).unwrap();
        }
        received
    });
    (Client::from_stream(client_end).unwrap(), thread)
}

#[test]
fn a_method_error_is_typed_and_keeps_the_connection_usable() {
    let error_reply = r#"{"error":"org.wattspan.Meter.NoSuchSpan","parameters":{"span":"a"}}|"#;
    let (client, _daemon) = scripted_daemon(&[error_reply, "{}|"]);
    let error = client.span_account("a").unwrap_err();
    assert!(matches!(error, ClientError::Method(MethodError::NoSuchSpan { span }) if span == "a"));
    client.call(CancelSpan { span: "b".into() }).unwrap();
}

#[test]
fn an_unknown_method_error_keeps_its_name() {
    let (client, _daemon) =
        scripted_daemon(&[r#"{"error":"org.wattspan.Meter.TooHot","parameters":{"c":99}}|"#]);
    let error = client.info().unwrap_err();
    assert_eq!(error.to_string(), r#"the daemon refused: org.wattspan.Meter.TooHot {"c":99}"#);
}

#[test]
fn a_closed_connection_stays_unusable() {
    let (client, daemon) = scripted_daemon(&[r#"{"parameters":{"spa"#]);
    assert!(matches!(client.open_span("x").unwrap_err(), ClientError::ConnectionClosed));
    daemon.join().unwrap();
    assert!(matches!(client.info().unwrap_err(), ClientError::Desynchronized));
}

#[test]
fn a_late_reply_is_not_matched_to_the_next_call() {
    let (client_end, _daemon_end) = UnixStream::pair().unwrap();
    let client = Client::from_stream(client_end).unwrap();
    client.set_timeout(Some(Duration::from_millis(5))).unwrap();
    assert!(matches!(client.info().unwrap_err(), ClientError::TimedOut));
    assert!(matches!(client.info().unwrap_err(), ClientError::Desynchronized));
}

#[test]
fn a_malformed_reply_is_an_error() {
    let (client, _daemon) = scripted_daemon(&["not json|"]);
    assert!(matches!(client.info().unwrap_err(), ClientError::InvalidReply(_)));
}

#[test]
fn a_pipeline_returns_one_reply_per_call_in_order() {
    let done = "{}|";
    let error_reply = r#"{"error":"org.wattspan.Meter.AlreadyClosed","parameters":{"span":"s1"}}|"#;
    let (client, daemon) = scripted_daemon(&[done, error_reply, done]);
    let mut pipeline = client.pipeline();
    for span in ["s0", "s1", "s2"] {
        pipeline.push(CancelSpan { span: span.into() }).unwrap();
    }
    let replies = pipeline.finish().unwrap();
    assert_eq!(replies.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(daemon.join().unwrap().len(), 3);
}

#[test]
fn a_stream_ends_with_the_last_reply() {
    let tick = r#"{"continues":true,"parameters":{"now_ns":1,"domains":[]}}|{"continues":true,"parameters":{"now_ns":2,"domains":[]}}|{"parameters":{"now_ns":3,"domains":[]}}|"#;
    let (client, _daemon) = scripted_daemon(&[tick]);
    let times: Vec<u64> = client.watch_domains(None).unwrap().map(|tick| tick.unwrap().now_ns).collect();
    assert_eq!(times, [1, 2, 3]);
}

#[test]
fn a_dropped_guard_closes_its_span_without_waiting() {
    let (client, daemon) = scripted_daemon(&[r#"{"parameters":{"span":"s7"}}|"#, "{}|", ""]);
    let mut span = client.open_span("question").unwrap();
    assert_eq!(span.id(), "s7");
    span.set_attribute("model", "small");
    span.mark_phase("decode").unwrap();
    drop(span);
    let received = daemon.join().unwrap();
    let mark = serde_json::from_str::<serde_json::Value>(&received[1]).unwrap();
    serde_json::from_value::<MarkPhase>(mark["parameters"].clone()).unwrap();
    let close: serde_json::Value = serde_json::from_str(&received[2]).unwrap();
    assert_eq!(close["method"], "org.wattspan.Meter.CloseSpan");
    assert_eq!(close["oneway"], true);
    assert_eq!(close["parameters"]["attributes"]["model"], "small");
    assert!(close["parameters"]["at_ns"].as_u64().unwrap() > 0);
}

#[test]
fn info_is_deserialized() {
    let info = r#"{"parameters":{"version":"1","boot_id":"b","now_ns":1,"horizon_ns":2,"history_ns":3,"domains":[],"absent":[],"access":"telemetry"}}|"#;
    let (client, _daemon) = scripted_daemon(&[info]);
    assert_eq!(client.info().unwrap().access, Access::Telemetry);
}

#[test]
fn an_explicit_socket_path_is_the_only_one_tried() {
    let error = Client::connect(&SocketPath::Explicit("/nonexistent/wattspan.sock".into())).unwrap_err();
    assert!(error.to_string().starts_with("no daemon at /nonexistent/wattspan.sock: "), "{error}");
}
