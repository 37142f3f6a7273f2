//! Cost of the socket: round trips, oneway opens and pipelines against the floor of a bare Unix socket in the same run,
//! and the resources of an idle and a full daemon.
//!
//! Prints a table: what, target, value, `ok` or `over`. Ratios within one run, because absolute figures depend on the
//! machine. Run with `cargo bench --bench socket` on a quiet machine; it takes about half a minute.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use wattspan_client::protocol::{Call, CloseSpan, GetInfo, OpenSpan, ReadWindow};

mod daemon;

use daemon::{Daemon, MACHINE, MANY_SPANS};

/// Rounds, alternating with the floor so that both see the same disturbances; the median round counts.
const ROUNDS: usize = 7;

/// Round trips per round.
const ROUND_TRIPS: usize = 4000;

fn main() {
    let mut table = Table::default();
    start_up(&mut table);
    let daemon = Daemon::start(MACHINE, MANY_SPANS);
    idle(&daemon, &mut table);
    round_trips(&daemon, &mut table);
    windows(&daemon, &mut table);
    oneway(&daemon, &mut table);
    pipelined(
        &Daemon::spawn(MACHINE, &format!("{MANY_SPANS}[ledger]\nkeep = false\n")),
        &mut table,
        "accounts not kept",
    );
    pipelined(&daemon, &mut table, "each account to disk");
    many_open(&daemon, &mut table);
    table.print();
}

#[derive(Default)]
struct Table {
    rows: Vec<[String; 4]>,
}

impl Table {
    fn row(&mut self, what: &str, value: f64, target: f64, at_most: bool, unit: &str) {
        let good = if at_most { value <= target } else { value >= target };
        let sign = if at_most { "≤" } else { "≥" };
        let verdict = if good { "ok" } else { "over" };
        self.rows.push([
            what.into(),
            format!("{sign} {target} {unit}"),
            format!("{value:.3} {unit}"),
            verdict.into(),
        ]);
    }

    fn note(&mut self, what: &str, value: String) {
        self.rows.push([what.into(), "".into(), value, "".into()]);
    }

    fn print(&self) {
        println!("{:<58} {:>18} {:>20}", "what", "target", "value");
        for [what, target, value, verdict] in &self.rows {
            println!("{what:<58} {target:>18} {value:>20}  {verdict}");
        }
    }
}

/// CPU time so far, of all threads.
fn cpu_time(daemon: &Daemon) -> Duration {
    daemon.cpu_time(|_| true)
}

fn message(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn open(span: &str, oneway: bool) -> Vec<u8> {
    let parameters = OpenSpan { span: Some(span.into()), ..OpenSpan::default() };
    message(
        |out| if oneway { Call::oneway(parameters).encode(out) } else { Call::new(parameters).encode(out) },
    )
}

fn close(span: &str) -> Vec<u8> {
    message(|out| Call::new(CloseSpan { span: span.into(), ..CloseSpan::default() }).encode(out))
}

/// Sends a request and waits for one reply.
fn round_trip(stream: &mut UnixStream, request: &[u8], buffer: &mut [u8]) {
    stream.write_all(request).expect("a daemon that reads");
    let mut length = 0;
    loop {
        length += stream.read(&mut buffer[length..]).expect("a daemon that answers");
        if buffer[..length].ends_with(&[0]) {
            assert!(buffer.starts_with(b"{\"parameters\""), "{}", String::from_utf8_lossy(&buffer[..length]));
            return;
        }
        assert!(length > 0, "the daemon hung up");
    }
}

/// A bare 64-byte ping-pong between two blocking threads: its p50 in ns.
fn baseline_round_trip_ns() -> f64 {
    let (mut here, mut there) = UnixStream::pair().expect("a pair");
    let echo = std::thread::spawn(move || {
        let mut word = [0; 64];
        while there.read_exact(&mut word).is_ok() {
            let _ = there.write_all(&word);
        }
    });
    let mut word = [7; 64];
    let mut times = Histogram::<u64>::new(3).expect("a histogram");
    for turn in 0..ROUND_TRIPS + ROUND_TRIPS / 4 {
        let begun = Instant::now();
        here.write_all(&word).expect("an echo");
        here.read_exact(&mut word).expect("an echo");
        if turn >= ROUND_TRIPS / 4 {
            note(&mut times, begun.elapsed());
        }
    }
    drop(here);
    let _ = echo.join();
    times.value_at_quantile(0.5) as f64
}

fn note(times: &mut Histogram<u64>, taken: Duration) {
    times.record(taken.as_nanos() as u64).expect("a histogram that grows");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn round_trips(daemon: &Daemon, table: &mut Table) {
    let mut stream = daemon.connect();
    let mut buffer = vec![0; 1 << 20];
    let (mut opens, mut closes, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        floors.push(baseline_round_trip_ns());
        let mut times =
            [Histogram::<u64>::new(3).expect("a histogram"), Histogram::new(3).expect("a histogram")];
        for turn in 0..ROUND_TRIPS {
            let span = format!("trip-{round}-{turn}");
            for (times, request) in times.iter_mut().zip([open(&span, false), close(&span)]) {
                let begun = Instant::now();
                round_trip(&mut stream, &request, &mut buffer);
                note(times, begun.elapsed());
            }
        }
        opens.push(times[0].value_at_quantile(0.5) as f64);
        closes.push(times[1].value_at_quantile(0.5) as f64);
    }
    let ratio =
        |values: &[f64]| median(values.iter().zip(&floors).map(|(value, floor)| value / floor).collect());
    table.note("floor: bare 64-byte round trip, p50", format!("{:.2} us", median(floors.clone()) / 1e3));
    table.row("OpenSpan round trip, p50 over the floor's", ratio(&opens), 3.0, true, "x");
    table.row("CloseSpan round trip, p50 over the floor's", ratio(&closes), 3.0, true, "x");
}

/// A window of the last ten seconds. The daemon replays one machine, so its clock is that of this process.
fn window() -> Vec<u8> {
    let now_ns = wattspan_client::clock::monotonic_ns() as i64;
    let parameters = ReadWindow { from_ns: now_ns - 10_000_000_000, to_ns: now_ns - 50_000_000 };
    message(|out| Call::new(parameters).encode(out))
}

/// The p50 of round trips of requests that `request` makes, ns.
fn p50(stream: &mut UnixStream, trips: usize, request: impl Fn(usize) -> Vec<u8>) -> f64 {
    let mut times = Histogram::<u64>::new(3).expect("a histogram");
    let mut buffer = vec![0; 1 << 16];
    for turn in 0..trips {
        let request = request(turn);
        let begun = Instant::now();
        round_trip(stream, &request, &mut buffer);
        note(&mut times, begun.elapsed());
    }
    times.value_at_quantile(0.5) as f64
}

/// ReadWindow against GetInfo, and OpenSpan and CloseSpan while another client reads windows at the default quota of one user.
fn windows(daemon: &Daemon, table: &mut Table) {
    const QUOTA_PER_S: f64 = 20_000.0;
    let mut stream = daemon.connect();
    let info = message(|out| Call::new(GetInfo {}).encode(out));
    // Ten seconds of samples at the full rate, so that a window has as many as it can have.
    round_trip(&mut stream, &open("held-for-windows", false), &mut vec![0; 1 << 16]);
    std::thread::sleep(Duration::from_secs(11));
    let (mut ratios, mut beside) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let info_ns = p50(&mut stream, 300, |_| info.clone());
        ratios.push(p50(&mut stream, 300, |_| window()) / info_ns);
        let open_close = |turn: usize| {
            let span = format!("w{round}-{}", turn / 2);
            if turn.is_multiple_of(2) { open(&span, false) } else { close(&span) }
        };
        let alone_ns = p50(&mut stream, 1000, open_close);
        let mut reader = daemon.connect();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reading = std::thread::spawn(move || {
            let (begun, mut calls, mut buffer) = (Instant::now(), 0_u32, vec![0; 1 << 16]);
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                round_trip(&mut reader, &window(), &mut buffer);
                calls += 1;
                let due = begun + Duration::from_secs_f64(f64::from(calls) / QUOTA_PER_S);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        beside.push(p50(&mut stream, 1000, |turn| open_close(turn + 1000)) / alone_ns);
        drop(stop);
        reading.join().expect("the reader's thread");
    }
    round_trip(&mut stream, &close("held-for-windows"), &mut vec![0; 1 << 16]);
    table.row("ReadWindow round trip, p50 over that of GetInfo", median(ratios), 3.0, true, "x");
    let row = "OpenSpan, CloseSpan beside a reader of windows, over alone";
    table.row(row, median(beside), 2.0, true, "x");
}

/// The cost of writing to a sleeping peer, p50 in ns; `request` makes the message of each turn.
fn wake_up_cost(stream: &mut UnixStream, request: impl Fn(usize) -> Vec<u8>) -> f64 {
    let mut times = Histogram::<u64>::new(3).expect("a histogram");
    for turn in 0..2000 {
        let request = request(turn);
        let begun = Instant::now();
        stream.write_all(&request).expect("a connected peer");
        note(&mut times, begun.elapsed());
        // The peer sleeps again by the next turn, so the cost includes waking it.
        std::thread::sleep(Duration::from_micros(200));
    }
    times.value_at_quantile(0.5) as f64
}

fn oneway(daemon: &Daemon, table: &mut Table) {
    let (mut here, mut there) = UnixStream::pair().expect("a pair");
    let reader = std::thread::spawn(move || {
        let mut word = [0; 64];
        while there.read_exact(&mut word).is_ok() {}
    });
    let floor = wake_up_cost(&mut here, |_| vec![7; 64]);
    drop(here);
    let _ = reader.join();
    let cost = wake_up_cost(&mut daemon.connect(), |turn| open(&format!("oneway-{turn}"), true));
    table.note("floor: bare 64-byte write to a sleeping reader, p50", format!("{:.2} us", floor / 1e3));
    table.row("oneway OpenSpan, cost to the client, p50", cost / 1e3, 5.0, true, "us");
}

fn pipelined(daemon: &Daemon, table: &mut Table, what: &str) {
    const PAIRS: usize = 200_000;
    const BATCH: usize = 64;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let stream = daemon.connect();
        let mut reading = stream.try_clone().expect("a descriptor");
        let batches: Vec<Vec<u8>> = (0..PAIRS / BATCH)
            .map(|batch| {
                let pair = |at| {
                    let span = format!("p{round}-{batch}-{at}");
                    [open(&span, false), close(&span)].concat()
                };
                (0..BATCH).flat_map(pair).collect()
            })
            .collect();
        let (begun, processor) = (Instant::now(), cpu_time(daemon));
        let answers = std::thread::spawn(move || {
            let (mut buffer, mut answers) = (vec![0; 1 << 16], 0);
            while answers < PAIRS / BATCH * BATCH * 2 {
                let length = reading.read(&mut buffer).expect("a daemon that answers");
                assert!(length > 0, "the daemon hung up");
                // A refusal is fast and would inflate the rate.
                let refused = memchr::memmem::find(&buffer[..length], b"{\"error\"").is_some();
                assert!(!refused, "refused: {}", String::from_utf8_lossy(&buffer[..length.min(400)]));
                answers += buffer[..length].iter().filter(|byte| **byte == 0).count();
            }
        });
        for batch in &batches {
            (&stream).write_all(batch).expect("a daemon that reads");
        }
        answers.join().expect("all answers");
        let pairs = (PAIRS / BATCH * BATCH) as f64;
        rates.push(pairs / begun.elapsed().as_secs_f64());
        costs.push((cpu_time(daemon) - processor).as_secs_f64() * 1e6 / pairs);
    }
    let row = format!("pipelined OpenSpan + CloseSpan, {what}");
    table.row(&row, median(rates), 150_000.0, false, "/s");
    table.note("the daemon's processor time for such a pair", format!("{:.2} us", median(costs)));
}

fn many_open(daemon: &Daemon, table: &mut Table) {
    const SPANS: usize = 100_000;
    // Earlier closes settle first, so that only the open spans are measured.
    std::thread::sleep(Duration::from_secs(2));
    let before = daemon.resident_mb();
    let mut stream = daemon.connect();
    let requests: Vec<u8> = (0..SPANS).flat_map(|span| open(&format!("held-{span}"), true)).collect();
    stream.write_all(&requests).expect("a daemon that reads");
    let mut buffer = vec![0; 1 << 16];
    round_trip(&mut stream, &message(|out| Call::new(GetInfo {}).encode(out)), &mut buffer);
    let more = daemon.resident_mb() - before;
    let mut times = Histogram::<u64>::new(3).expect("a histogram");
    for turn in 0..2000 {
        let span = format!("beside-{turn}");
        for request in [open(&span, false), close(&span)] {
            let begun = Instant::now();
            round_trip(&mut stream, &request, &mut buffer);
            note(&mut times, begun.elapsed());
        }
    }
    table.row("100,000 open spans, more resident memory", more, 64.0, true, "MB");
    let p50 = times.value_at_quantile(0.5) as f64 / 1e3;
    table.note("round trip beside 100,000 open spans, p50", format!("{p50:.2} us"));
}

fn idle(daemon: &Daemon, table: &mut Table) {
    // The characterisation of the counters at the start has finished by then.
    std::thread::sleep(Duration::from_secs(3));
    let (before, begun) = (cpu_time(daemon), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let share = (cpu_time(daemon) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    table.row("idle daemon, processor", share * 100.0, 0.1, true, "%");
    table.row("idle daemon, resident", daemon.resident_mb(), 12.0, true, "MB");
}

fn start_up(table: &mut Table) {
    let times = (0..5).map(|_| {
        let begun = Instant::now();
        let daemon = Daemon::spawn(MACHINE, MANY_SPANS);
        let mut stream = daemon.connect();
        let request = message(|out| Call::new(GetInfo {}).encode(out));
        let mut buffer = vec![0; 1 << 16];
        loop {
            round_trip(&mut stream, &request, &mut buffer);
            let answered = buffer.split(|byte| *byte == 0).next().unwrap_or_default();
            if answered.windows(11).any(|word| word == b"\"energy_uj\"") {
                return begun.elapsed().as_secs_f64() * 1e3;
            }
        }
    });
    table.row("start to first reading", median(times.collect()), 150.0, true, "ms");
}
