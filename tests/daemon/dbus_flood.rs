//! A flood on the bus from a user without access does not affect the service, the samplers or the memory.
//!
//! The time it costs is printed but not checked, because it depends on the machine. The checks are memory, replies on
//! the socket during the flood, and continued sampling.

use crate::support;
use crate::test_bus;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::support::{STEADY_MACHINE, TestDaemon, get_u64, sleep_ms};
use crate::test_bus::{BusClient, INTERFACE, NAME, PATH, TestBus, block_on};
use serde_json::json;
use zbus::Message;
use zbus::message::Flags;

/// A user that every Debian has, in no access group.
const STRANGER: u32 = 5;

/// The service's limit of connections per user.
const CONNECTIONS: usize = 64;

/// Slightly less than the largest message that the system bus accepts.
const LARGE: usize = 32 * 1024 * 1024 - 4096;

/// Allowed growth of the daemon: queued calls, and the buffers of 64 connections.
const ROOM: u64 = 24 << 20;

fn start_on_bus() -> Option<(TestBus, TestDaemon)> {
    if !support::skip::can_change_users() {
        return None;
    }
    let bus = TestBus::start()?;
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, &bus.config_line());
    block_on(async { bus.client().await.wait_for_daemon().await });
    Some((bus, daemon))
}

/// A process of a stranger that runs the helper test.
fn flood(bus: &TestBus, helper: &str, at_once: usize) -> Child {
    let program = bus.path("flood");
    // Copied by a separate process: another test's child could inherit our write descriptor, and the copy could not be
    // run.
    let own = std::env::current_exe().unwrap();
    assert!(std::process::Command::new("cp").arg(own).arg(&program).status().unwrap().success());
    Command::new("setpriv")
        .args([&format!("--reuid={STRANGER}"), "--regid=65534", "--clear-groups"])
        .arg(program)
        .args(["--exact", &support::test_name(module_path!(), helper), "--ignored", "--nocapture"])
        .env("BUS", bus.address())
        .env("AT_ONCE", at_once.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn connections(count: usize) -> Vec<Arc<BusClient>> {
    let address = std::env::var("BUS").expect("the variable that the outer test sets");
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Arc::new(BusClient::connect(&address).await));
    }
    clients
}

#[test]
#[ignore = "a helper that another test starts in a process of another user"]
fn calls_of_32_mib_side_by_side() {
    block_on(async {
        let at_once = std::env::var("AT_ONCE").unwrap().parse().unwrap();
        let text = "x".repeat(LARGE);
        let call = Message::method_call(PATH, "GetSpan").destination(NAME).interface(INTERFACE);
        let call = call.build(&text).unwrap();
        let mut outcomes = BTreeMap::new();
        let clients = connections(CONNECTIONS).await;
        for group in clients.chunks(at_once) {
            let send = |client: &Arc<BusClient>| {
                let (client, call) = (Arc::clone(client), call.clone());
                tokio::spawn(async move { client.send(call).await })
            };
            let sent: Vec<_> = group.iter().map(send).collect();
            for answer in sent {
                let answer = answer.await.unwrap();
                let name = answer.header().error_name().unwrap().to_string();
                *outcomes.entry(name).or_insert(0) += 1;
            }
        }
        println!("OUTCOMES {outcomes:?}");
    });
}

#[test]
#[ignore = "a helper that another test starts in a process of another user"]
fn many_small_calls_without_reading_replies() {
    block_on(async {
        let clients = connections(CONNECTIONS).await;
        let call = |flags| test_bus::message("GetInfo", &json!([]), flags);
        for _ in 0..200 {
            for client in &clients {
                let calls = [call(Flags::empty()), call(Flags::NO_REPLY_EXPECTED)];
                client.bus.send_all(&calls).await.unwrap();
            }
        }
        println!("OUTCOMES sent");
    });
}

/// Peak resident memory since the previous call, in bytes; resets the peak.
fn peak(daemon: &TestDaemon) -> u64 {
    let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    std::fs::write(format!("{process}/clear_refs"), "5").unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn survives(helper: &str, at_once: usize) {
    let Some((bus, daemon)) = start_on_bus() else { return };
    let mut socket = daemon.client();
    // Makes the samplers and rings allocate all their memory before the flood.
    socket.open("quiet");
    sleep_ms(300);
    socket.close_and_settle("quiet");
    peak(&daemon);
    let quiet = daemon.resident_bytes();
    let ticks = |info: &serde_json::Value| {
        (get_u64(&info["samplers"][0], "ticks"), get_u64(&info["samplers"][0], "missed"))
    };
    socket.open("through the flood");
    let before = ticks(&socket.call("GetInfo", json!({})));
    let mut child = flood(&bus, helper, at_once);
    let (mut rounds, mut slowest) = (0, std::time::Duration::ZERO);
    while child.try_wait().unwrap().is_none() {
        let begun = std::time::Instant::now();
        let span = format!("beside {rounds}");
        socket.open(&span);
        socket.call("CloseSpan", json!({ "span": span }));
        slowest = slowest.max(begun.elapsed());
        rounds += 1;
        sleep_ms(2);
    }
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    let after = ticks(&socket.call("GetInfo", json!({})));
    let peak_bytes = peak(&daemon);
    let outcomes = stdout.lines().find(|line| line.contains("OUTCOMES")).unwrap_or_default();
    println!(
        "{outcomes}; memory {} KiB, at most {} KiB; {} ticks, {} missed; {rounds} spans beside it, the slowest {slowest:?}",
        quiet >> 10,
        peak_bytes >> 10,
        after.0 - before.0,
        after.1 - before.1
    );
    assert!(peak_bytes < quiet + ROOM, "{peak_bytes} bytes after {quiet}");
    assert!(rounds > 0 && after.0 > before.0);
    socket.close_and_settle("through the flood");
    block_on(async {
        let client = bus.client().await;
        client.call_ok("OpenSpan", json!([{}])).await;
    });
}

#[test]
fn sixty_four_calls_of_32_mib_take_no_memory() {
    let available = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = available.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    // The bus buffers every message completely while receiving it.
    let at_once = if kib > 6 << 20 { CONNECTIONS } else { 8 };
    println!("{at_once} at once");
    survives("calls_of_32_mib_side_by_side", at_once);
}

#[test]
fn small_calls_without_end_take_no_memory() {
    survives("many_small_calls_without_reading_replies", CONNECTIONS);
}
