//! Clients that disconnect, flood, lie, send garbage or never read get a typed error or a closed connection. Other
//! clients are not affected, and memory does not grow with what they send.

use crate::support;

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::{
    STEADY_MACHINE, TEST_TIMEOUT, TestClient, TestDaemon, encode_call, error_of, sleep_ms, wait_until,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;

const INVALID: &str = "org.varlink.service.InvalidParameter";

/// Asserts that other clients are served as before.
fn assert_serves(daemon: &TestDaemon) {
    let mut client = daemon.client();
    let span = client.call("OpenSpan", json!({}))["span"].take();
    client.close_and_settle(span.as_str().unwrap());
}

#[test]
fn what_is_no_message_is_refused_once_and_the_connection_closed() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut deep = vec![b'['; 60_000];
    deep.push(0);
    let garbage: [&[u8]; 10] = [
        b"\0",
        b"hello\0",
        b"{\"method\":\"org.wattspan.Meter.GetInfo\"\0",
        b"{\"method\":7}\0",
        b"{}\0",
        b"[1,2]\0",
        b"[\"org.wattspan.Meter.GetInfo\"]\0",
        b"{\"method\":\"\xff\xfe\"}\0",
        b"{\"method\":\"a.b\",\"method\":\"a.b\"}\0",
        &deep,
    ];
    for bytes in garbage {
        let mut client = daemon.client();
        client.send_raw(bytes);
        client.send_raw(&encode_call("GetInfo", json!({}), &[]));
        let (name, parameters) = error_of(client.receive().unwrap());
        assert_eq!((name.as_str(), &parameters["parameter"]), (INVALID, &json!("message")));
        assert!(client.is_disconnected());
    }
    assert_serves(&daemon);
}

#[test]
fn what_was_asked_before_the_garbage_is_still_answered() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let mut bytes = encode_call("OpenSpan", json!({ "span": "a" }), &[]);
    bytes.extend(encode_call("CloseSpan", json!({ "span": "a", "wait_settled": true }), &[]));
    bytes.extend_from_slice(b"garbage\0");
    client.send_raw(&bytes);
    assert_eq!(client.receive().unwrap()["parameters"]["span"], "a");
    assert_eq!(client.receive().unwrap()["parameters"]["account"]["state"], "settled");
    assert_eq!(error_of(client.receive().unwrap()).0, INVALID);
    assert!(client.is_disconnected());
}

#[test]
fn a_message_may_come_byte_by_byte_or_many_at_once() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    for byte in encode_call("OpenSpan", json!({ "span": "slow" }), &[]) {
        assert!(client.send_raw(&[byte]));
    }
    assert_eq!(client.receive().unwrap()["parameters"]["span"], "slow");
    let mut many: Vec<u8> = (0..500)
        .flat_map(|turn| encode_call("OpenSpan", json!({ "span": format!("s{turn}") }), &[]))
        .collect();
    let last = many.split_off(many.len() - 7);
    assert!(client.send_raw(&many));
    for turn in 0..499 {
        assert_eq!(client.receive().unwrap()["parameters"]["span"], format!("s{turn}"));
    }
    assert!(client.send_raw(&last));
    assert_eq!(client.receive().unwrap()["parameters"]["span"], "s499");
}

#[test]
fn a_megabyte_of_label_is_refused_with_the_limit() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let before = daemon.resident_bytes();
    client.send_raw(&encode_call("OpenSpan", json!({ "name": "x".repeat(1 << 20) }), &[]));
    let (name, parameters) = error_of(client.receive().unwrap());
    assert_eq!((name.as_str(), &parameters["field"]), ("InvalidValue", &json!("message")));
    assert!(parameters["reason"].as_str().unwrap().contains("65536"), "{parameters}");
    assert!(client.is_disconnected());
    assert_serves(&daemon);
    assert!(daemon.resident_bytes() < before + (8 << 20), "{} after {before}", daemon.resident_bytes());
}

#[test]
fn the_largest_message_that_is_allowed_is_taken() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let attributes: serde_json::Map<_, _> =
        (0..60).map(|at| (format!("key{at}"), json!("v".repeat(1000)))).collect();
    client.call("OpenSpan", json!({ "span": "large", "attributes": attributes }));
    assert_eq!(client.close_and_settle("large")["attributes"].as_object().unwrap().len(), 60);
}

#[test]
fn partial_and_slow_messages_time_out() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nmessage_s = 0.3\nstall_s = 3600\n");
    let mut quiet = daemon.client();
    let mut half = daemon.client();
    half.send_raw(b"{\"method\":\"org.wattspan");
    let mut drip = daemon.client();
    wait_until("the drip is cut off", || {
        sleep_ms(20);
        !drip.send_raw(b" ")
    });
    assert!(half.is_disconnected());
    // A connection that sends nothing at all stays open.
    quiet.call("GetInfo", json!({}));
    assert_serves(&daemon);
}

#[test]
fn a_caller_that_never_reads_is_not_read_from_and_then_given_up() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nmessage_s = 3600\nstall_s = 1\n");
    let mut client = daemon.client();
    let before = daemon.resident_bytes();
    client.stream().set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let batch: Vec<u8> = (0..500).flat_map(|_| encode_call("GetInfo", json!({}), &[])).collect();
    let mut sent = 0;
    wait_until("it is cut off", || {
        use std::io::Write;
        assert!(sent < 1 << 30, "the daemon reads on and on");
        match client.stream().write(&batch) {
            Ok(length) => {
                sent += length;
                false
            }
            Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => {
                assert_serves(&daemon);
                false
            }
            Err(_) => true,
        }
    });
    assert!(daemon.resident_bytes() < before + (8 << 20), "{} after {before}", daemon.resident_bytes());
    assert_serves(&daemon);
}

#[test]
fn a_caller_that_reads_late_gets_every_answer() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let mut writer = TestClient::from_stream(client.stream().try_clone().unwrap());
    let sender = std::thread::spawn(move || {
        for turn in 0..5000 {
            writer.send("GetSpan", json!({ "span": format!("none-{turn}-{}", "x".repeat(90)) }), &[]);
        }
    });
    sleep_ms(200);
    for turn in 0..5000 {
        let (_, parameters) = error_of(client.receive().unwrap());
        assert!(parameters["span"].as_str().unwrap().starts_with(&format!("none-{turn}-")));
    }
    sender.join().unwrap();
}

#[test]
fn a_watcher_that_never_reads_is_dropped_and_the_others_watch_on() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut deaf, mut keen) = (daemon.client(), daemon.client());
    deaf.send("WatchDomains", json!({ "rate_hz": 1000 }), &["more"]);
    keen.send("WatchDomains", json!({ "rate_hz": 1000 }), &["more"]);
    wait_until("the deaf one is dropped", || {
        keen.receive().unwrap();
        rustix::net::sockopt::socket_error(deaf.stream().as_fd()).is_ok() && peer_is_gone(deaf.stream())
    });
    keen.receive().unwrap();
    assert_serves(&daemon);
}

fn peer_is_gone(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

#[test]
fn a_call_on_a_connection_that_watches_ends_it_with_the_reason() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.send("WatchDomains", json!({}), &["more"]);
    client.receive().unwrap();
    client.send("GetInfo", json!({}), &[]);
    loop {
        let answer = client.receive().unwrap();
        if answer.get("error").is_some() {
            assert_eq!(error_of(answer).1["field"], "message");
            break;
        }
    }
    assert!(client.is_disconnected());
}

#[test]
fn one_connection_too_many_is_refused_with_a_reason_and_the_others_stay() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nconnections = 200\n");
    let mut clients: Vec<TestClient> = (0..200).map(|_| daemon.client()).collect();
    wait_until("all are in", || {
        clients.iter_mut().all(|client| client.call_raw("GetInfo", json!({})).is_object())
    });
    for _ in 0..100 {
        let mut surplus = daemon.client();
        let (name, parameters) = error_of(surplus.receive().unwrap());
        assert_eq!((name.as_str(), &parameters["limit"]), ("QuotaExceeded", &json!(200)));
        assert!(surplus.is_disconnected());
    }
    clients[0].call("GetInfo", json!({}));
    clients.truncate(100);
    wait_until("there is room again", || {
        let mut next = daemon.client();
        next.send("GetInfo", json!({}), &[]);
        next.receive().is_some_and(|answer| answer.get("error").is_none())
    });
}

#[test]
#[ignore = "needs 20,000 descriptors: run it as root with `ulimit -n 20000`"]
fn ten_thousand_connections_are_held_or_refused_and_others_are_served() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nconnections = 8000\n");
    let mut clients: Vec<TestClient> = (0..10_000).map(|_| daemon.client()).collect();
    let mut refused = 0;
    for client in &mut clients {
        client.send_raw(&encode_call("GetInfo", json!({}), &[]));
        refused += usize::from(client.receive().unwrap().get("error").is_some());
    }
    assert_eq!(refused, 2000);
    clients.truncate(7000);
    wait_until("there is room again", || {
        let mut next = daemon.client();
        next.send("GetInfo", json!({}), &[]);
        next.receive().is_some_and(|answer| answer.get("error").is_none())
    });
    assert_serves(&daemon);
}

#[cfg(target_os = "linux")]
#[test]
fn a_daemon_without_descriptors_turns_the_newest_away_and_goes_on() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    warm_up(&daemon);
    let limit = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
    rustix::process::prlimit(Some(daemon.pid()), rustix::process::Resource::Nofile, limit).unwrap();
    let mut clients: Vec<TestClient> = (0..100).map(|_| daemon.client()).collect();
    let mut refused = 0;
    for client in &mut clients {
        client.send_raw(&encode_call("GetInfo", json!({}), &[]));
        let answer = client.receive().expect("an answer or a refusal");
        if answer.get("error").is_some() {
            assert_eq!(error_of(answer).0, "QuotaExceeded");
            refused += 1;
        }
    }
    assert!((30..80).contains(&refused), "{refused}");
    drop(clients);
    wait_until("there is room again", || {
        let mut next = daemon.client();
        next.send("OpenSpan", json!({}), &[]);
        next.receive().is_some_and(|answer| answer.get("error").is_none())
    });
    assert_serves(&daemon);
}

/// The files that the daemon has open.
fn open_files(daemon: &TestDaemon) -> Vec<std::path::PathBuf> {
    let list = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero())).unwrap();
    list.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok()).collect()
}

/// Makes the daemon open its own files: the database, and those from which it reads CPU times.
fn warm_up(daemon: &TestDaemon) {
    let mut first = daemon.client();
    wait_until("the ledger is open", || first.call("GetInfo", json!({}))["keeping"]["durable"] == true);
    first.call("OpenSpan", json!({ "span": "first" }));
    sleep_ms(150);
    first.call("CloseSpan", json!({ "span": "first", "wait_settled": true }));
    wait_until("the first account is kept", || {
        first.call("GetSpan", json!({ "span": "first" }))["account"]["durable"] == true
    });
}

#[test]
fn a_client_that_sends_descriptors_is_refused_and_disconnected() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let held = || open_files(&daemon).len();
    warm_up(&daemon);
    let before = held();
    let file = std::fs::File::open("/dev/null").unwrap();
    let descriptors = [file.as_fd(); 100];
    for _ in 0..5 {
        let mut client = daemon.client();
        client.call("GetInfo", json!({}));
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let bytes = encode_call("GetInfo", json!({}), &[]);
        sendmsg(client.stream(), &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).unwrap();
        let (name, parameters) = error_of(client.receive().unwrap());
        assert_eq!((name.as_str(), &parameters["field"]), ("InvalidValue", &json!("descriptors")));
        assert!(client.is_disconnected());
    }
    wait_until("none of them is kept", || held() <= before);
    assert_serves(&daemon);
}

#[test]
fn a_client_that_stops_sending_still_gets_its_answers() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.open("a");
    client.send("CloseSpan", json!({ "span": "a", "wait_settled": true }), &[]);
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.receive().unwrap()["parameters"]["account"]["state"], "settled");
    assert!(client.is_disconnected());
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let held = || open_files(&daemon).len();
    warm_up(&daemon);
    let before = held();
    for turn in 0..300 {
        let mut client = daemon.client();
        match turn % 4 {
            0 => drop(client),
            1 => drop(client.send_raw(b"half")),
            2 => client.send("CloseSpan", json!({ "span": "none" }), &[]),
            _ => {
                client.send("OpenSpan", json!({ "span": format!("left{turn}") }), &["oneway"]);
                client.send("OpenSpan", json!({}), &[]);
            }
        }
    }
    // May end below `before`, if the harness's first connection was still open when that was counted.
    let deadline = std::time::Instant::now() + support::TEST_TIMEOUT;
    while held() > before {
        assert!(std::time::Instant::now() < deadline, "{before} before, and still {:?}", open_files(&daemon));
        sleep_ms(2);
    }
    let mut client = daemon.client();
    wait_until("their spans are abandoned", || {
        let balance = client.call("GetSpan", json!({ "span": "left3" }));
        balance["account"]["state"] == "abandoned"
    });
}

#[test]
fn a_second_daemon_is_refused_with_a_message_and_the_first_stays() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (status, stderr) = daemon.run_second_daemon();
    assert_eq!(status.code(), Some(75), "{stderr}");
    assert!(stderr.contains("another process listens"), "{stderr}");
    assert_serves(&daemon);
}

#[test]
fn a_squatted_or_linked_socket_path_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("machine.toml"), STEADY_MACHINE).unwrap();
    std::fs::write(dir.path().join("wattspan.toml"), "").unwrap();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let socket = run.join("wattspan.sock");
    let refused = |why: &str| {
        let output =
            support::daemon_command(dir.path()).stderr(std::process::Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(77), "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
    };
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &socket).unwrap();
    refused("is a symbolic link");
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "not a socket").unwrap();
    refused("is not a socket");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "not a socket");
    std::fs::remove_file(&socket).unwrap();
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    refused("can be written by others");
}

#[test]
fn a_flood_of_oneway_opens_stops_at_the_limit_and_is_settled_when_its_client_goes() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nopen_spans = 20000\n");
    let mut client = daemon.client();
    let flood: Vec<u8> = (0..25_000)
        .flat_map(|turn| encode_call("OpenSpan", json!({ "span": format!("f{turn}") }), &["oneway"]))
        .collect();
    client.stream().set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
    assert!(client.send_raw(&flood));
    let mut other = daemon.client();
    client.call("GetInfo", json!({}));
    assert_eq!(other.call_error("OpenSpan", json!({})).0, "QuotaExceeded");
    drop(client);
    wait_until("there is room again", || other.call_raw("OpenSpan", json!({})).get("error").is_none());
}

#[test]
fn a_client_with_expensive_queries_is_scheduled_fairly() {
    const QUESTIONS: usize = 400;
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut costly, mut other) = (daemon.client(), daemon.client());
    costly.open("fast readings");
    sleep_ms(600);
    let now_ns = |info: &serde_json::Value| support::get_u64(info, "now_ns");
    let queried_ns = now_ns(&costly.call("GetInfo", json!({})));
    other.call("GetInfo", json!({}));
    let window = json!({ "from_ns": queried_ns - 500_000_000, "to_ns": queried_ns - 100_000_000 });
    let mut questions = encode_call("ReadWindow", window, &[]).repeat(QUESTIONS);
    questions.extend(encode_call("GetInfo", json!({}), &[]));
    // Stopped, so that it has the calls of both at once, those of the costly client first.
    rustix::process::kill_process(daemon.pid(), rustix::process::Signal::STOP).unwrap();
    assert!(costly.send_raw(&questions));
    assert!(other.send_raw(&encode_call("GetInfo", json!({}), &[]).repeat(20)));
    rustix::process::kill_process(daemon.pid(), rustix::process::Signal::CONT).unwrap();
    let last_ns = |client: &mut TestClient, count: usize| {
        let replies: Vec<_> = (0..count).map(|_| client.receive().unwrap()).collect();
        assert!(replies.iter().all(|reply| reply.get("error").is_none()), "{replies:?}");
        now_ns(&replies[count - 1]["parameters"])
    };
    // The daemon serves a few calls of one client per turn, so the other's twenty calls finish well before.
    let (of_costly_ns, of_other_ns) = (last_ns(&mut costly, QUESTIONS + 1), last_ns(&mut other, 20));
    assert!(of_other_ns < of_costly_ns, "{of_other_ns} ns, after {of_costly_ns} ns");
}

#[test]
fn a_span_that_begins_a_moment_ahead_ends_with_its_client_and_can_be_closed_at_once() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut watcher = daemon.client();
    let ahead = || json!(wattspan::clock::monotonic_ns() + 950_000);
    for turn in 0..20 {
        let span = format!("gone{turn}");
        let mut client = daemon.client();
        client.send("OpenSpan", json!({ "span": span, "at_ns": ahead() }), &["oneway"]);
        drop(client);
        wait_until("the span ends with its client", || {
            let answer = watcher.call_raw("GetSpan", json!({ "span": span }));
            answer["parameters"]["account"]["state"] == "abandoned"
        });
    }
    for turn in 0..20 {
        for (method, span) in
            [("CloseSpan", format!("closed{turn}")), ("CancelSpan", format!("dropped{turn}"))]
        {
            watcher.call("OpenSpan", json!({ "span": span, "at_ns": ahead() }));
            watcher.call("MarkPhase", json!({ "span": span, "phase": "p" }));
            watcher.call("SetWeight", json!({ "span": span, "weight": 2.0 }));
            watcher.call(method, json!({ "span": span }));
        }
    }
    // An event with an explicit instant is still checked against the clock.
    let at_ns = ahead();
    watcher.call("OpenSpan", json!({ "span": "named", "at_ns": at_ns }));
    let before = json!(at_ns.as_u64().unwrap() - 1);
    assert_eq!(watcher.call_error("CloseSpan", json!({ "span": "named", "at_ns": before })).0, "InvalidTime");
}
