//! Processes of other users, which make the calls that a test gives them.
//!
//! Starts them with `setpriv` of util-linux, which sets user and groups. The body of that process is an
//! ignored test, `a_client_of_another_user`, here or in the module that uses this one. Needs root; the tests skip without it.

#![allow(dead_code, reason = "each test uses its own part")]

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::support::{self, TestClient, TestDaemon};

/// A user and its groups. Groups that every Linux has replace those of wattspan; their numbers follow the base
/// system's.
#[derive(Debug, Clone, Copy)]
pub struct TestUser {
    pub uid: u32,
    /// Group names separated by commas; may be empty.
    pub groups: &'static str,
}

/// The configuration that names those groups.
pub const GROUPS: &str = "
[access]
coarse_group = \"games\"
span_group = \"daemon\"
telemetry_group = \"bin\"
";

/// How a user appears that has no number in this user namespace.
pub const UNMAPPED: TestUser = TestUser { uid: 65_534, groups: "games,daemon,bin" };

/// Whether this process can start processes of other users.
pub fn is_supported() -> bool {
    support::skip::can_change_users()
}

/// A command that runs the test `a_client_of_another_user` of `module` (`module_path!()`) as this user.
pub fn command_as(module: &str, directory: &Path, user: TestUser) -> Command {
    // Other users may be unable to read the directory of the test program.
    let program = directory.join("client");
    if !program.exists() {
        // Copied by a separate process: another test's child could inherit our write descriptor, and the copy could not
        // be run.
        let own = std::env::current_exe().unwrap();
        assert!(std::process::Command::new("cp").arg(own).arg(&program).status().unwrap().success());
    }
    let groups = match user.groups {
        "" => "--clear-groups".to_owned(),
        groups => format!("--groups={groups}"),
    };
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={}", user.uid))
        .arg(format!("--regid={}", user.uid))
        .arg(groups)
        .arg(program)
        .args([
            "--exact",
            &support::test_name(module, "a_client_of_another_user"),
            "--ignored",
            "--nocapture",
        ]);
    command
}

/// The daemon's replies to these calls from a process of this user.
pub fn call_as(daemon: &TestDaemon, user: TestUser, calls: Value) -> Vec<Value> {
    call_as_at(&daemon.socket(), user, calls)
}

/// As `call_as`, for any daemon's socket.
pub fn call_as_at(socket: &Path, user: TestUser, calls: Value) -> Vec<Value> {
    run_calls(command_as(module_path!(), socket.parent().unwrap(), user).env("SOCKET", socket), calls)
}

/// As `call_as_at`, from a process that was given this connection instead of making its own.
pub fn call_as_over(socket: &Path, user: TestUser, connection: UnixStream, calls: Value) -> Vec<Value> {
    let mut command = command_as(module_path!(), socket.parent().unwrap(), user);
    let connection = Stdio::from(std::os::fd::OwnedFd::from(connection));
    run_calls(command.env("SOCKET", socket).env("INHERITED", "1").stdin(connection), calls)
}

fn run_calls(command: &mut Command, calls: Value) -> Vec<Value> {
    let output = command.env("CALLS", calls.to_string()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    stdout.lines().filter_map(|line| serde_json::from_str(line.split_once("ANSWER ")?.1).ok()).collect()
}

/// The body of the other user's process: makes the calls in its environment and prints the replies.
///
/// A call is `[method, parameters, connection, [flag, ...]]`; the last two default to 0 and none. Other commands:
/// "connect" (open one more connection and make a call over it), "watch" (a stream that has sent nothing, or its
/// error), "first" (the first reply of a stream over its own connection), "become" (change the user, by number),
/// "hand over" (pass a connection to the process that reads the other end of standard input), and "compare" (the
/// latency of calls about two spans).
#[test]
#[ignore = "a helper that other tests start in a process of another user"]
fn a_client_of_another_user() {
    let socket = std::env::var_os("SOCKET").expect("the variable that the outer test sets");
    let calls: Value = serde_json::from_str(&std::env::var("CALLS").unwrap()).unwrap();
    let connect = || TestClient::from_stream(UnixStream::connect(&socket).unwrap());
    let inherited = std::env::var_os("INHERITED").is_some();
    let first = match inherited {
        true => TestClient::from_stream(std::io::stdin().as_fd().try_clone_to_owned().unwrap().into()),
        false => connect(),
    };
    let (mut clients, mut more) = (vec![first], Vec::new());
    for call in calls.as_array().unwrap() {
        let answer = match call[0].as_str().unwrap() {
            "connect" => {
                let mut next = connect();
                next.send_raw(&support::encode_call("GetInfo", json!({}), &[]));
                let answer = next.receive().unwrap();
                more.push(next);
                answer
            }
            "watch" => {
                let mut next = connect();
                next.send("WatchSpans", json!({}), &["more"]);
                // The daemon has accepted the connection by the first reply, and served it by the second.
                (0..2).for_each(|_| drop(clients[0].call("GetInfo", json!({}))));
                let mut byte = [0; 1];
                let at_once = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
                let silent = rustix::net::recv(next.stream(), &mut byte, at_once).is_err();
                let answer =
                    if silent { json!({ "parameters": "watches" }) } else { next.receive().unwrap() };
                more.push(next);
                answer
            }
            "first" => {
                let mut next = connect();
                next.send(call[1].as_str().unwrap(), json!({}), &["more"]);
                // A span to look at, whether or not this user may open one.
                clients[0].call_raw("OpenSpan", json!({ "span": "seen" }));
                clients[0].call_raw("CloseSpan", json!({ "span": "seen", "wait_settled": true }));
                next.receive().unwrap()
            }
            "become" => {
                let uid = rustix::process::Uid::from_raw(call[1].as_u64().unwrap() as u32);
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                Value::Null
            }
            "hand over" => {
                let mut next = connect();
                let stream = next.stream();
                let descriptors = [stream.as_fd()];
                let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
                let bytes = [IoSlice::new(b"!")];
                sendmsg(std::io::stdin(), &bytes, &mut ancillary, SendFlags::empty()).unwrap();
                Value::Null
            }
            "compare" => {
                compare_latency(&mut clients[0], call[1].as_str().unwrap(), call[2].as_str().unwrap())
            }
            method => {
                let at = call[2].as_u64().unwrap_or(0) as usize;
                while clients.len() <= at {
                    clients.push(connect());
                }
                let flags: Vec<&str> =
                    call[3].as_array().into_iter().flatten().map(|flag| flag.as_str().unwrap()).collect();
                clients[at].send_raw(&support::encode_call(method, call[1].clone(), &flags));
                if flags == ["oneway"] { Value::Null } else { clients[at].receive().unwrap_or(Value::Null) }
            }
        };
        println!("ANSWER {answer}");
    }
}

/// Queries two spans alternately, many times. Returns the median latencies, and the difference of the first's rank sum
/// from its expectation without a difference, in its own standard deviations.
fn compare_latency(client: &mut TestClient, one: &str, other: &str) -> Value {
    const ROUNDS: usize = 50_000;
    let mut took: Vec<(u128, bool)> = Vec::new();
    for turn in 0..ROUNDS {
        // Alternates the order, because the first query comes after the pause.
        for first in [turn % 2 == 0, turn % 2 == 1] {
            let begun = Instant::now();
            client.call_raw("GetSpan", json!({ "span": if first { one } else { other } }));
            took.push((begun.elapsed().as_nanos(), first));
        }
    }
    took.sort_unstable();
    let median = |which: bool| {
        let mut own = took.iter().filter(|(_, first)| *first == which);
        own.nth(ROUNDS / 2).map(|(ns, _)| *ns as u64)
    };
    let ranks: f64 =
        took.iter().enumerate().filter(|(_, (_, first))| *first).map(|(rank, _)| rank as f64 + 1.0).sum();
    let turns = ROUNDS as f64;
    let (expected, deviation) =
        (turns * (2.0 * turns + 1.0) / 2.0, (turns * turns * (2.0 * turns + 1.0) / 12.0).sqrt());
    json!({ "medians_ns": [median(true), median(false)], "deviations": (ranks - expected) / deviation })
}
