//! Cost of one attribution in process: open + close + settle of a span up to the `Account` that the service sends, by
//! number of open spans and of domains.
//!
//! Targets (2 cores, noisy: compare the ratio rows): with 10,000 spans open 60 ns without domains and 50 ns for each
//! domain; with 1,000,000 open at most 4 times that; with 16 domains at most 3 times the cost with 4.

use std::collections::BTreeMap;
use std::time::Instant;

#[path = "../tests/support/ground_truth.rs"]
mod ground_truth;

use ground_truth::{GroundTruth, TestRng, domain};
use wattspan::attribution::{
    AttributionSettings, Attributor, BasisUsageSample, CPU_TIME, NewSpan, SpanKey, Subject, SubjectUsage,
};
use wattspan::domain::{Domain, DomainKind};
use wattspan_client::account::Account;

const MS: u64 = 1_000_000;
/// Pairs between two samples of a 1 kHz sampler: 100,000 pairs per second.
const PAIRS_EACH_MS: usize = 100;

#[derive(Clone, Copy, PartialEq)]
enum SettleResult {
    Account,
    Shares,
}

struct AttributionBench {
    attributor: Attributor,
    truth: GroundTruth,
    domains: usize,
    keys: Vec<SpanKey>,
    settled: Vec<Account>,
    /// What is timed: up to the account, as in the service, or up to the shares alone.
    result: SettleResult,
    settled_count: usize,
    attributed_uj: u64,
    now_ns: u64,
    rng: TestRng,
    /// The spans' process; 0: none.
    subject: u32,
}

fn opening(at_ns: u64, subject: u32) -> NewSpan {
    NewSpan { subject, ..NewSpan::new(String::new(), at_ns) }
}

impl AttributionBench {
    fn new(open: usize, domains: usize, result: SettleResult, process: bool) -> Self {
        let list: Vec<Domain> = (0..domains)
            .map(|n| domain(&format!("d{n}"), DomainKind::Package, 61, Some(1_000_000)))
            .collect();
        let settings = AttributionSettings {
            max_open_spans: 2_000_000,
            max_pending_edges: 4_000_000,
            ..AttributionSettings::default()
        };
        let mut bench = AttributionBench {
            attributor: Attributor::new(list, settings),
            truth: GroundTruth::new(&[(1, 120_000)], MS, 0, 61),
            domains,
            keys: Vec::with_capacity(open),
            settled: Vec::new(),
            result,
            settled_count: 0,
            attributed_uj: 0,
            now_ns: 100 * MS,
            rng: TestRng(42),
            subject: 0,
        };
        if process {
            bench.subject = bench.attributor.add_subject(Subject::default());
        }
        bench.tick();
        for _ in 0..open {
            let at_ns = bench.now_ns;
            bench
                .keys
                .push(bench.attributor.open(at_ns, opening(at_ns, bench.subject)).expect("below the limit"));
        }
        for _ in 0..30 {
            bench.tick();
        }
        bench
    }

    /// One millisecond of readings and a settle.
    fn tick(&mut self) {
        self.now_ns += MS;
        let reading = self.truth.reading(self.now_ns);
        for index in 0..self.domains {
            self.attributor.add_reading(index, self.now_ns - 500, self.now_ns, &reading);
        }
        // As often as the daemon samples usage while spans close.
        if self.subject != 0 && self.now_ns.is_multiple_of(10 * MS) {
            let (at_ns, subject) = (self.now_ns, self.subject);
            let used = [SubjectUsage { subject, amount: Some(at_ns / 3), disjoint: true }];
            self.attributor.record_usage(&BasisUsageSample {
                at_ns,
                basis: CPU_TIME,
                total: Some(at_ns),
                subjects: &used,
            });
        }
        self.attributor.advance(self.now_ns);
        let (domains, attributed_uj, count) =
            (self.domains, &mut self.attributed_uj, &mut self.settled_count);
        if self.result == SettleResult::Account {
            self.attributor.drain_settled(|settled| self.settled.push(settled.account()));
            *count += self.settled.len();
            *attributed_uj += self.settled.drain(..).filter_map(|account| account.share_uj).sum::<u64>();
        } else {
            self.attributor.drain_settled(|settled| {
                *count += 1;
                *attributed_uj += (0..domains).filter_map(|domain| settled.share_uj(domain)).sum::<u64>();
            });
        }
    }

    /// Runs `ticks` milliseconds of opens and closes; returns nanoseconds per pair, including settling.
    fn run(&mut self, ticks: usize) -> f64 {
        let begun = Instant::now();
        for _ in 0..ticks {
            for pair in 0..PAIRS_EACH_MS {
                let at_ns = self.now_ns + (pair as u64) * (MS / PAIRS_EACH_MS as u64);
                let place = self.rng.next_u64() as usize % self.keys.len();
                let new = self.attributor.open(at_ns, opening(at_ns, self.subject)).expect("below the limit");
                let old = std::mem::replace(&mut self.keys[place], new);
                self.attributor.close(at_ns, old, at_ns, BTreeMap::new(), false).expect("it is open");
            }
            self.tick();
        }
        begun.elapsed().as_nanos() as f64 / (ticks * PAIRS_EACH_MS) as f64
    }
}

fn best(open: usize, domains: usize, result: SettleResult) -> f64 {
    best_of(AttributionBench::new(open, domains, result, false))
}

/// The best times without and with process shares, measured alternately.
fn with_process_share(result: SettleResult) -> (f64, f64) {
    let turns = (0..3)
        .map(|_| [false, true].map(|process| best_of(AttributionBench::new(10_000, 4, result, process))));
    turns.fold((f64::INFINITY, f64::INFINITY), |best, [plain, tracked]| {
        (best.0.min(plain), best.1.min(tracked))
    })
}

fn best_of(mut bench: AttributionBench) -> f64 {
    bench.run(200);
    let before = bench.settled_count;
    let best = (0..5).map(|_| bench.run(400)).fold(f64::INFINITY, f64::min);
    // A close waits for the horizon and for a counter update: at most 20 ms of closes are still pending.
    let settled = bench.settled_count - before;
    assert!(settled >= 5 * 380 * PAIRS_EACH_MS, "only {settled} spans settled");
    assert!(bench.domains == 0 || bench.attributed_uj > 0, "nothing was attributed");
    best
}

fn row(what: &str, target: f64, value: f64, unit: &str) {
    let word = if value <= target { "ok" } else { "over" };
    println!("{what:<58} target {target:>7.1} {unit:<2}  {value:>8.1} {unit:<2}  {word}");
}

/// `--short OPEN DOMAINS TICKS RUNS`: one bench, the best of RUNS runs of TICKS ticks of 100 pairs. For busy machines,
/// and for profilers that count instructions (the difference between two values of TICKS excludes the set-up).
/// `--shares` times up to the shares alone.
fn short(result: SettleResult, mut numbers: impl Iterator<Item = usize>) {
    let mut number = |otherwise| numbers.next().unwrap_or(otherwise);
    let mut bench = AttributionBench::new(number(10_000), number(4), result, false);
    let (ticks, runs) = (number(400), number(1));
    let best = (0..runs).map(|_| bench.run(ticks)).fold(f64::INFINITY, f64::min);
    println!("{best:.1} ns");
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let has = |option: &str| args.iter().any(|arg| arg == option);
    if has("--short") {
        let result = if has("--shares") { SettleResult::Shares } else { SettleResult::Account };
        return short(result, args.iter().filter_map(|arg| arg.parse().ok()));
    }
    use SettleResult::{Account, Shares};
    println!("one attribution: open + close + settle up to the account, best of 5 x 40,000 pairs");
    let (base, few) = (best(10_000, 0, Account), best(10_000, 4, Account));
    row("10,000 open, no domain", 60.0, base, "ns");
    row("10,000 open, each of 4 domains", 50.0, (few - base) / 4.0, "ns");
    row("10,000 open, 4 domains", 260.0, few, "ns");
    row("1,000,000 open, 4 domains, over 10,000", 4.0, best(1_000_000, 4, Account) / few, "x");
    row("10,000 open, 16 domains, over 4", 3.0, best(10_000, 16, Account) / few, "x");
    let (plain, tracked) = with_process_share(Account);
    row("a span with a process, over one without", 1.5, tracked / plain, "x");
    let (plain, tracked) = with_process_share(Shares);
    row("the same up to the shares alone", 1.05, tracked / plain, "x");
    println!(
        "for comparison, up to the shares alone: {:.1} ns without domain, {:.1} ns with 1, {:.1} ns with 4",
        best(10_000, 0, Shares),
        best(10_000, 1, Shares),
        best(10_000, 4, Shares)
    );
    println!("for comparison: {:.1} ns with 1 open and 4 domains", best(1, 4, Account));
}
