//! Cost of an open and a close over D-Bus, against bare calls (`org.freedesktop.DBus.Peer.Ping`, which the daemon
//! answers without its service) over the same bus in the same run, and against the same pair on the socket.
//!
//! The ratios are of times, and of CPU time as the scheduler counts it, which other load on the machine disturbs less.
//! Skips without `dbus-daemon`. Run with `cargo bench --bench dbus` on a quiet machine.

#[path = "../tests/support/mod.rs"]
mod support;
mod table;
#[path = "../tests/support/test_bus.rs"]
mod test_bus;

use std::collections::BTreeMap;
use std::time::Instant;

use hdrhistogram::Histogram;
use serde_json::json;
use table::Table;
use test_bus::{BusClient, INTERFACE, NAME, PATH};
use zbus::Variant;
use zbus::message::Flags;

/// Rounds, interleaved so that all kinds see the same disturbances; the median round counts.
const ROUNDS: usize = 7;

/// Calls of each kind in a round.
const CALLS: usize = 1000;

/// One round: the p50 of each kind in microseconds, and CPU time of a call or pair in microseconds.
struct Round {
    bare: f64,
    pair: f64,
    oneway_pair: f64,
    socket_pair: f64,
    bare_cpu: CpuTime,
    pair_cpu: CpuTime,
}

/// CPU time of the daemon, and of the daemon, the bus and the client together.
#[derive(Clone, Copy)]
struct CpuTime {
    daemon: f64,
    all: f64,
}

/// CPU time of all threads of a process, in microseconds.
fn cpu_us(process: &str) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("a running process");
    let of_task = |task: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    tasks.filter_map(of_task).sum::<f64>() / 1e3
}

/// Runs calls, and returns their result with the CPU time of each.
async fn with_cpu<T>(
    daemon: &support::TestDaemon,
    bus: &test_bus::TestBus,
    calls: impl Future<Output = T>,
) -> (T, CpuTime) {
    let (daemon_pid, bus_pid) = (daemon.pid().as_raw_nonzero().to_string(), bus.pid().to_string());
    let now = || (cpu_us(&daemon_pid), cpu_us(&bus_pid) + cpu_us("self"));
    let before = now();
    let result = calls.await;
    let after = now();
    let (own, others) = (after.0 - before.0, after.1 - before.1);
    let calls = CALLS as f64;
    (result, CpuTime { daemon: own / calls, all: (own + others) / calls })
}

fn main() {
    let Some(bus) = test_bus::TestBus::start() else { return };
    let daemon = support::TestDaemon::start_with_config(support::STEADY_MACHINE, &bus.config_line());
    let mut rounds = test_bus::block_on(async {
        let client = bus.client().await;
        client.wait_for_daemon().await;
        let mut rounds = Vec::new();
        for at in 0..=ROUNDS {
            let (bare, bare_cpu) = with_cpu(&daemon, &bus, bare(&client)).await;
            let (pair, pair_cpu) = with_cpu(&daemon, &bus, pair(&client, at, false)).await;
            let (oneway_pair, socket_pair) = (pair_oneway(&client, at).await, on_socket(&daemon, at));
            rounds.push(Round { bare, pair, oneway_pair, socket_pair, bare_cpu, pair_cpu });
        }
        rounds
    });
    // The first round is a warm-up.
    rounds.remove(0);
    let of = |what: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(what).collect();
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    };
    let mut table = Table::new("the bus");
    table.note("bare call through the bus, p50", of(|round| round.bare), "us");
    table.note("open + close through the bus, p50", of(|round| round.pair), "us");
    table.at_most(
        "oneway open + close over a bare call",
        of(|round| round.oneway_pair / round.bare),
        2.0,
        "x",
    );
    table.at_most("open + close over a bare call", of(|round| round.pair / round.bare), 2.0, "x");
    table.at_most("open + close over two bare calls", of(|round| round.pair / round.bare / 2.0), 1.5, "x");
    table.at_most(
        "the same, CPU of daemon, bus and client",
        of(|round| round.pair_cpu.all / round.bare_cpu.all / 2.0),
        1.5,
        "x",
    );
    table.note(
        "the same, CPU of the daemon",
        of(|round| round.pair_cpu.daemon / round.bare_cpu.daemon / 2.0),
        "x",
    );
    table.note("CPU of the daemon, a bare call", of(|round| round.bare_cpu.daemon), "us");
    table.note("CPU of the daemon, open + close", of(|round| round.pair_cpu.daemon), "us");
    table.note("CPU of all, a bare call", of(|round| round.bare_cpu.all), "us");
    table.note("CPU of all, open + close", of(|round| round.pair_cpu.all), "us");
    table.note("open + close on the socket, p50", of(|round| round.socket_pair), "us");
}

fn p50(times: &Histogram<u64>) -> f64 {
    times.value_at_quantile(0.5) as f64 / 1e3
}

fn note(times: &mut Histogram<u64>, begun: Instant) {
    times.record(begun.elapsed().as_nanos() as u64).expect("a histogram that grows");
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("a histogram")
}

async fn bare(client: &BusClient) -> f64 {
    let mut times = histogram();
    for _ in 0..CALLS {
        let begun = Instant::now();
        client.ping_bus().await.expect("an answer");
        note(&mut times, begun);
    }
    p50(&times)
}

async fn pair_oneway(client: &BusClient, round: usize) -> f64 {
    pair(client, round, true).await
}

async fn pair(client: &BusClient, round: usize, oneway: bool) -> f64 {
    let mut times = histogram();
    for at in 0..CALLS {
        let span = format!("{round}-{at}-{oneway}");
        let begun = Instant::now();
        if oneway {
            let open = test_bus::message("OpenSpan", &json!([{ "span": span }]), Flags::NO_REPLY_EXPECTED);
            client.bus.send(&open).await.expect("a bus");
        } else {
            let options = BTreeMap::from([("span", Variant::from(span.as_str()))]);
            let opened =
                client.bus.call_method(Some(NAME), PATH, Some(INTERFACE), "OpenSpan", &options).await;
            opened.expect("a span");
        }
        let none = BTreeMap::<&str, Variant>::new();
        let body = (span.as_str(), none);
        let closed = client.bus.call_method(Some(NAME), PATH, Some(INTERFACE), "CloseSpan", &body).await;
        closed.expect("an account");
        note(&mut times, begun);
    }
    p50(&times)
}

fn on_socket(daemon: &support::TestDaemon, round: usize) -> f64 {
    let mut client = daemon.client();
    let mut times = histogram();
    for at in 0..CALLS {
        let span = format!("s{round}-{at}");
        let begun = Instant::now();
        client.open(&span);
        client.call("CloseSpan", json!({ "span": span }));
        note(&mut times, begun);
    }
    p50(&times)
}
