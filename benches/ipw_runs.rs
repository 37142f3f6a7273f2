//! Energies of `wattspan ipw` against the truth and against the public harness's rule; and the cost of the client.
//!
//! Real time and real sockets: a stub server, the runner, and a meter on a simulated machine with known truth, whose
//! counter moves every 1 ms. Two tables:
//!
//! - errors: each query's energy against its true share, for the runner's rows and for the harness's tail rule (counter
//!   samples every 50 ms; a query gets its last sample minus the last sample of the query that ended before);
//! - cost: 128 streams with 10,000 tokens per second in all, from a server in another process; CPU time of this
//!   process, which contains the runner, its metering thread, and the meter.

#[path = "../tests/support/in_process.rs"]
mod in_process;
#[path = "../tests/support/ipw_runs.rs"]
mod ipw_runs;
#[path = "../tests/support/llm_stub.rs"]
mod llm_stub;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use in_process::{InProcessService, WeightInterval};
use ipw_runs::{RunSpec, fetch_accounts, run_metered, weight_interval};
use llm_stub::LlmStub;
use rustix::time::{ClockId, clock_gettime};
use wattspan::clock::monotonic_ns;
use wattspan_ipw::row::QueryRow;
use wattspan_ipw::run::Workload;

const MS: u64 = 1_000_000;

/// A package whose power changes between counter updates, and also slowly.
const MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[0.0013, 20], [0.0021, 180], [0.0004, 5], [0.0100, 90], [0.0007, 240], [0.0810, 40], [0.1130, 150]]
quantum_uj = 61
ceiling_w = 250
jitter_ns = 50_000
"#;

/// Relative errors in percent: their mean and the worst.
struct Errors {
    mean: f64,
    worst: f64,
}

impl Errors {
    fn of(claims: impl Iterator<Item = (f64, f64)>) -> Self {
        let errors: Vec<f64> = claims.map(|(claim, truth)| (claim - truth).abs() / truth * 100.0).collect();
        let worst = errors.iter().copied().fold(0.0, f64::max);
        Self { mean: errors.iter().sum::<f64>() / errors.len() as f64, worst }
    }
}

/// The energies of these queries by the harness's rule.
fn last_sample_rule(machine: &InProcessService, rows: &[QueryRow]) -> Vec<f64> {
    let sample = |at_ns: u64| machine.counter_uj(0, at_ns / (50 * MS) * (50 * MS));
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&at| rows[at].began_ns + rows[at].duration_ns);
    let (mut claims, mut before) = (vec![0.0; rows.len()], None);
    for at in order {
        let first = sample(rows[at].began_ns + 50 * MS);
        let last = sample(rows[at].began_ns + rows[at].duration_ns);
        claims[at] = last - before.unwrap_or(first);
        before = Some(last);
    }
    claims
}

fn errors(at_once: usize, model: &'static str, questions: usize, repeats: u32) {
    let (machine, llm) = (InProcessService::start(MACHINE, 2), LlmStub::start());
    let dir = tempfile::tempdir().expect("a directory");
    let spec = RunSpec { model, pace: Workload::ClosedLoop(at_once), questions, repeats };
    let (rows, client) = run_metered(&machine, &llm, &["package-0"], &spec, dir.path());
    let accounts = fetch_accounts(&client, &rows);
    let all: Vec<WeightInterval> = accounts.iter().map(weight_interval).collect();
    // Each with the doubt that comes from the machine's start, between two looks at the clock.
    let (truths, doubts_uj): (Vec<f64>, Vec<f64>) =
        all.iter().map(|span| machine.share_uj(0, *span, &all)).unzip();
    let known = |at: &usize| rows[*at].energy.as_ref().is_some_and(|energy| energy.share_uj.is_some());
    let of = |at: usize| rows[at].energy.as_ref().expect("it is known");
    let mine: Vec<usize> = (0..rows.len()).filter(known).collect();
    let ours = Errors::of(mine.iter().map(|&at| (of(at).share_uj.unwrap_or(0) as f64, truths[at])));
    let bounds =
        Errors::of(mine.iter().map(|&at| (truths[at] + of(at).error_uj.unwrap_or(0) as f64, truths[at])));
    let tail = last_sample_rule(&machine, &rows);
    let tail = Errors::of(tail.into_iter().zip(truths.iter().copied()));
    let inside = |at: &&usize| {
        let (share_uj, error_uj) =
            (of(**at).share_uj.unwrap_or(0) as f64, of(**at).error_uj.unwrap_or(0) as f64);
        (share_uj - truths[**at]).abs() <= error_uj + doubts_uj[**at] + 1.0
    };
    let inside = mine.iter().filter(inside).count();
    let mean_ms = rows.iter().map(|row| row.duration_ns / MS).sum::<u64>() / rows.len() as u64;
    println!(
        "{at_once:>7} {mean_ms:>6} ms {:>5}/{:<5} {:>8.2} {:>8.2}  \u{b1}{:>6.1} {inside:>5}/{:<5} {:>8.1} {:>8.1}",
        mine.len(),
        rows.len(),
        ours.mean,
        ours.worst,
        bounds.mean,
        mine.len(),
        tail.mean,
        tail.worst
    );
    // Without any query the next check would pass. On a busy machine some edges come after the horizon.
    assert_eq!(rows.len(), questions * repeats as usize, "a query has no row");
    assert!(mine.len() * 2 > rows.len(), "{} of {} queries have an energy", mine.len(), rows.len());
    assert_eq!(inside, mine.len(), "an account's error did not hold the truth");
}

/// 32 questions, repeated 12 times, are three full waves of 128.
const QUESTIONS: usize = 32;

fn processor_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn cost(llm: &LlmStub, at_once: usize, model: &'static str, tokens_each: u64, repeats: u32, metering: bool) {
    let machine = InProcessService::start(MACHINE, 2);
    let dir = tempfile::tempdir().expect("a directory");
    let spec = RunSpec { model, pace: Workload::ClosedLoop(at_once), questions: QUESTIONS, repeats };
    let (began_ns, used_ns) = (monotonic_ns(), processor_ns());
    let rows = match metering {
        true => run_metered(&machine, llm, &["package-0"], &spec, dir.path()).0,
        false => ipw_runs::run_questions(llm, None, &[], &spec, dir.path()).1,
    };
    let (took_ns, used_ns) = (monotonic_ns() - began_ns, processor_ns() - used_ns);
    let tokens: u64 = rows.iter().filter_map(|row| row.tokens_out).sum();
    let failed = rows.iter().filter(|row| !row.is_answered()).count();
    println!(
        "{at_once:>7} {:>9} {:>6} {failed:>7} {:>9} {:>9.0} {:>9.2} {:>9.1}",
        if metering { "metered" } else { "unmetered" },
        rows.len(),
        tokens,
        tokens as f64 / (took_ns as f64 / 1e9),
        used_ns as f64 / took_ns as f64,
        used_ns as f64 / 1e3 / tokens as f64,
    );
    assert_eq!(tokens, tokens_each * rows.len() as u64, "tokens were lost");
    assert_eq!((rows.len(), failed), (QUESTIONS * repeats as usize, 0), "queries were lost");
}

/// Runs `work` with a server in another process, whose cost is thus not measured.
fn with_stub_process(work: impl FnOnce(&LlmStub)) {
    let itself = std::env::current_exe().expect("this program has a name");
    let server = Command::new(itself).arg(SERVE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut server = server.expect("this program starts");
    let mut address = String::new();
    BufReader::new(server.stdout.as_mut().expect("piped")).read_line(&mut address).expect("an address");
    work(&LlmStub::attach(address.trim().parse().expect("an address")));
    // The server exits at the end of its standard input.
    drop(server.stdin.take());
    server.wait().expect("it was started");
}

const SERVE: &str = "serve";

fn main() {
    if std::env::args().any(|word| word == SERVE) {
        println!("{}", LlmStub::start().address);
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        return;
    }
    println!("errors against the true share, per cent of it (target: ours 0.5 or less in the mean)");
    println!(
        "{:>7} {:>9} {:>11} {:>8} {:>8}  {:>7} {:>11} {:>8} {:>8}",
        "at once", "query", "metered", "ours", "worst", "bound", "truth in", "tail", "worst"
    );
    errors(1, "good-90", 40, 1);
    errors(8, "good-90", 50, 4);
    errors(1, "good-250", 24, 1);
    errors(8, "good-250", 48, 1);
    println!("\nthe client's cost where 10,000 tokens a second are poured (target: 1 core or less)");
    println!(
        "{:>7} {:>9} {:>6} {:>7} {:>9} {:>9} {:>9} {:>9}",
        "at once", "", "rows", "failed", "tokens", "tokens/s", "cores", "\u{b5}s/token"
    );
    with_stub_process(|llm| {
        cost(llm, 128, "pours-256-12800", 256, 12, true);
        cost(llm, 128, "pours-256-12800", 256, 12, false);
        cost(llm, 8, "pours-512-800", 512, 1, true);
    });
}
