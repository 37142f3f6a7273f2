//! Growth of the daemon's work with open spans, domains, clients, watchers and stored accounts.
//!
//! The work is the CPU time of all threads of the daemon, as the scheduler counts it, for a fixed number of operations; the
//! smallest of several rounds counts, because disturbances only add to it. The exponent is the slope between the smallest and
//! the largest size on logarithmic scales: 0 is work that does not grow, 1 is work in proportion. Then what open spans cost
//! while nothing happens is counted: wake-ups, reads of files and memory. Exits with 1 if an exponent or a count is over its
//! limit, because that is a defect on any machine. Run with `cargo bench --bench growth`; with `-- --short` it takes
//! little more than a minute.

use std::io::{Read, Write};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use wattspan_client::protocol::{Call, CloseSpan, ListSpans, OpenSpan, WatchSpans};

mod daemon;

use daemon::{Daemon, MANY_SPANS};

/// Pairs of an opening and a close in one message, and their number in a round.
const BATCH: usize = 32;

/// What idle open spans may cost. The wake-ups are those of the server (5), of the source (two for each of 5 pairs) and of
/// the store (one commit).
const MAX_WAKE_UPS: f64 = 40.0;
const MAX_READ_CALLS: f64 = 40.0;
const MAX_BYTES: f64 = 800.0;

/// What grows, and how it is measured at one size: CPU time of an operation in ns.
struct Dimension {
    name: &'static str,
    operation: &'static str,
    sizes: &'static [usize],
    short_sizes: &'static [usize],
    max_exponent: f64,
    measure: fn(usize, &Effort) -> f64,
}

/// How much is measured.
struct Effort {
    rounds: usize,
    batches: usize,
}

const DIMENSIONS: [Dimension; 6] = [
    Dimension {
        name: "open spans",
        operation: "open + close beside them",
        sizes: &[100, 1_000, 10_000, 100_000],
        short_sizes: &[100, 20_000],
        max_exponent: 0.15,
        measure: pair_beside_open_spans,
    },
    Dimension {
        name: "idle open spans",
        operation: "a second of nothing",
        sizes: &[100, 1_000, 10_000, 100_000],
        short_sizes: &[100, 20_000],
        max_exponent: 0.15,
        measure: idle_second,
    },
    Dimension {
        name: "domains",
        operation: "open + close",
        sizes: &[1, 4, 16, 48],
        short_sizes: &[1, 16],
        max_exponent: 1.0,
        measure: pair_over_domains,
    },
    Dimension {
        name: "clients",
        operation: "open + close beside them",
        sizes: &[1, 10, 100, 400],
        short_sizes: &[1, 200],
        max_exponent: 0.15,
        measure: pair_beside_clients,
    },
    Dimension {
        name: "watchers",
        operation: "open + close that all see",
        sizes: &[1, 10, 100],
        short_sizes: &[1, 50],
        max_exponent: 1.0,
        measure: pair_before_watchers,
    },
    Dimension {
        name: "stored accounts",
        operation: "a search for an absent name",
        sizes: &[1_000, 10_000, 100_000, 1_000_000],
        short_sizes: &[1_000, 50_000],
        max_exponent: 0.5,
        measure: search_of_accounts,
    },
];

fn main() -> ExitCode {
    let is_short = std::env::args().any(|argument| argument == "--short");
    let effort =
        if is_short { Effort { rounds: 3, batches: 20 } } else { Effort { rounds: 7, batches: 100 } };
    println!("{:<16} {:<28} {:>8} {:>14} {:>10}", "what grows", "operation", "size", "CPU time", "exponent");
    let mut is_over = false;
    for dimension in &DIMENSIONS {
        let sizes = if is_short { dimension.short_sizes } else { dimension.sizes };
        let work: Vec<f64> = sizes.iter().map(|size| (dimension.measure)(*size, &effort)).collect();
        for (size, ns) in sizes.iter().zip(&work) {
            println!("{:<16} {:<28} {size:>8} {:>11.1} us", dimension.name, dimension.operation, ns / 1e3);
        }
        let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else { continue };
        let rise = work[work.len() - 1] / work[0].max(1.0);
        let exponent = rise.max(f64::MIN_POSITIVE).ln() / (*last as f64 / *first as f64).ln();
        let verdict = if exponent <= dimension.max_exponent { "ok" } else { "over" };
        is_over |= verdict == "over";
        println!("{:<68} {exponent:>10.2}  ≤ {:.2}  {verdict}", dimension.name, dimension.max_exponent);
    }
    is_over |= is_idle_work_over(if is_short { 20_000 } else { 100_000 });
    ExitCode::from(u8::from(is_over))
}

/// Counts what open spans cost while nothing happens, long after their opening, and prints each count beside its limit;
/// returns whether one is over.
fn is_idle_work_over(spans: usize) -> bool {
    const QUIET: Duration = Duration::from_secs(12);
    const COUNTED_S: u64 = 10;
    let daemon = MeasuredDaemon::start(4, true);
    let held = daemon.open_many(spans);
    wait_for_the_journal(&daemon);
    std::thread::sleep(QUIET);
    let (cpu_ns, wake_ups, reads) = (daemon.cpu_ns(|_| true), daemon.wake_ups(|_| true), daemon.read_calls());
    std::thread::sleep(Duration::from_secs(COUNTED_S));
    let per_second = |before: f64, now: f64| (now - before) / COUNTED_S as f64;
    let cpu_percent = per_second(cpu_ns, daemon.cpu_ns(|_| true)) / 1e7;
    let counts = [
        ("wake-ups of all threads a second", per_second(wake_ups, daemon.wake_ups(|_| true)), MAX_WAKE_UPS),
        ("read calls a second", per_second(reads, daemon.read_calls()), MAX_READ_CALLS),
        ("bytes for each", bytes_per_span(spans), MAX_BYTES),
    ];
    drop(held);
    println!("{spans} idle open spans: {cpu_percent:.2} % of a CPU");
    for (name, count, most) in counts {
        let verdict = if count <= most { "ok" } else { "over" };
        println!("{name:<68} {count:>10.1}  ≤ {most:.0}  {verdict}");
    }
    counts.iter().any(|(_, count, most)| count > most)
}

/// The memory of an open span with 4 domains, in a daemon without a store, whose queue depends on the speed of the disk.
fn bytes_per_span(spans: usize) -> f64 {
    let daemon = MeasuredDaemon::start(4, false);
    let before = daemon.memory_bytes();
    let _held = daemon.open_many(spans);
    (daemon.memory_bytes() - before) / spans as f64
}

/// A daemon whose work is measured.
struct MeasuredDaemon(Daemon);

impl Deref for MeasuredDaemon {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl MeasuredDaemon {
    /// Starts a daemon on a machine of so many packages, without the surveys of their phases at the start.
    fn start(domains: usize, keeps: bool) -> Self {
        let domain = |number| {
            format!(
                "[[domain]]\nname = \"package-{number}\"\nkind = \"package\"\nprofile = [[1.0, 80]]\n\
                 quantum_uj = 61\nceiling_w = 400\n"
            )
        };
        let machine: String = (0..domains).map(domain).collect();
        Self(Daemon::start_detached(&machine, &format!("{MANY_SPANS}[ledger]\nkeep = {keeps}\n")))
    }

    /// CPU time so far of all threads but the samplers', whose work depends on time alone.
    fn work_ns(&self) -> f64 {
        self.cpu_ns(is_no_sampler)
    }

    fn cpu_ns(&self, wanted: fn(&str) -> bool) -> f64 {
        self.cpu_time(wanted).as_nanos() as f64
    }

    /// The smallest CPU time of an operation over the rounds; `run` returns the number of its operations.
    fn least_work_ns(&self, effort: &Effort, mut run: impl FnMut(usize) -> usize) -> f64 {
        // The first round is a warm-up.
        let rounds = (0..=effort.rounds).map(|round| {
            let before_ns = self.work_ns();
            let operations = run(round);
            (self.work_ns() - before_ns) / operations as f64
        });
        rounds.skip(1).fold(f64::INFINITY, f64::min)
    }

    /// The same for pairs of an opening and a close on one connection.
    fn pair_work_ns(&self, effort: &Effort) -> f64 {
        let mut stream = self.connect();
        self.least_work_ns(effort, |round| {
            for batch in 0..effort.batches {
                let pair = |at| {
                    let span = format!("{round}-{batch}-{at}");
                    [open(&span), close(&span)].concat()
                };
                let requests: Vec<u8> = (0..BATCH).flat_map(pair).collect();
                exchange(&mut stream, &requests, 2 * BATCH);
            }
            effort.batches * BATCH
        })
    }

    /// Opens spans that stay open until the stream is dropped.
    fn open_many(&self, count: usize) -> UnixStream {
        let mut stream = self.connect();
        for from in (0..count).step_by(BATCH) {
            let spans = from..count.min(from + BATCH);
            let requests: Vec<u8> = spans.clone().flat_map(|span| open(&format!("held-{span}"))).collect();
            exchange(&mut stream, &requests, spans.len());
        }
        stream
    }
}

/// The samplers' work depends on time alone.
fn is_no_sampler(thread: &str) -> bool {
    !thread.starts_with("sampler")
}

fn encode<P: wattspan_client::protocol::Method + serde::Serialize>(parameters: P) -> Vec<u8> {
    let mut out = Vec::new();
    Call::new(parameters).encode(&mut out);
    out
}

fn open(span: &str) -> Vec<u8> {
    encode(OpenSpan { span: Some(span.into()), ..OpenSpan::default() })
}

fn close(span: &str) -> Vec<u8> {
    encode(CloseSpan { span: span.into(), ..CloseSpan::default() })
}

/// Sends requests and waits for so many replies, none of which is an error.
fn exchange(stream: &mut UnixStream, requests: &[u8], replies: usize) {
    stream.write_all(requests).expect("a daemon that reads");
    let (mut buffer, mut received) = (vec![0; 1 << 16], 0);
    while received < replies {
        let length = stream.read(&mut buffer).expect("a daemon that answers");
        assert!(length > 0, "the daemon hung up");
        let is_refused = memchr::memmem::find(&buffer[..length], b"{\"error\"").is_some();
        assert!(!is_refused, "{}", String::from_utf8_lossy(&buffer[..length.min(400)]));
        received += memchr::memchr_iter(0, &buffer[..length]).count();
    }
}

fn pair_beside_open_spans(spans: usize, effort: &Effort) -> f64 {
    let daemon = MeasuredDaemon::start(4, true);
    let _held = daemon.open_many(spans);
    wait_for_the_journal(&daemon);
    daemon.pair_work_ns(effort)
}

fn idle_second(spans: usize, effort: &Effort) -> f64 {
    let daemon = MeasuredDaemon::start(4, true);
    let _held = daemon.open_many(spans);
    wait_for_the_journal(&daemon);
    let brief = Effort { rounds: effort.rounds.div_ceil(2), ..*effort };
    daemon.least_work_ns(&brief, |_| {
        std::thread::sleep(Duration::from_secs(1));
        1
    })
}

/// Each new span is written to the journal once, a second after it opened, in turns of 32 every 5 ms. Waits until these end.
fn wait_for_the_journal(daemon: &MeasuredDaemon) {
    std::thread::sleep(Duration::from_millis(1_500));
    let give_up = Instant::now() + Duration::from_secs(300);
    loop {
        let before = daemon.wake_ups(is_no_sampler);
        std::thread::sleep(Duration::from_secs(1));
        if daemon.wake_ups(is_no_sampler) - before <= MAX_WAKE_UPS {
            return;
        }
        assert!(Instant::now() < give_up, "the journal does not end");
    }
}

fn pair_over_domains(domains: usize, effort: &Effort) -> f64 {
    MeasuredDaemon::start(domains, true).pair_work_ns(effort)
}

fn pair_beside_clients(clients: usize, effort: &Effort) -> f64 {
    let daemon = MeasuredDaemon::start(4, true);
    let _clients: Vec<UnixStream> = (0..clients).map(|_| daemon.connect()).collect();
    daemon.pair_work_ns(effort)
}

fn pair_before_watchers(watchers: usize, effort: &Effort) -> f64 {
    let daemon = MeasuredDaemon::start(4, true);
    for _ in 0..watchers {
        let mut stream = daemon.connect();
        let mut request = Vec::new();
        Call::more(WatchSpans::default()).encode(&mut request);
        stream.write_all(&request).expect("a daemon that reads");
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    }
    daemon.pair_work_ns(effort)
}

fn search_of_accounts(accounts: usize, effort: &Effort) -> f64 {
    let daemon = MeasuredDaemon::start(1, true);
    let mut stream = daemon.connect();
    for from in (0..accounts).step_by(BATCH) {
        let spans = from..accounts.min(from + BATCH);
        let pair = |span| [open(&format!("s{span}")), close(&format!("s{span}"))].concat();
        let requests: Vec<u8> = spans.clone().flat_map(pair).collect();
        exchange(&mut stream, &requests, 2 * spans.len());
    }
    std::thread::sleep(Duration::from_millis(500));
    daemon.least_work_ns(effort, |round| {
        const SEARCHES: usize = 20;
        for search in 0..SEARCHES {
            let name = Some(format!("absent-{round}-{search}"));
            exchange(&mut stream, &encode(ListSpans { name, ..ListSpans::default() }), 1);
        }
        SEARCHES
    })
}
