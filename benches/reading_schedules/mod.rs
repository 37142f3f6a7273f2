//! The error of accounts under two reading schedules, beside what the counter allows.
//!
//! A machine with known power has a counter that is updated in step with the sampler's grid, out of step, with jitter,
//! or with stalls. The same queries are measured at 1 kHz and by the schedule of edges, with the sampler's lateness, the
//! way of a message and the wake-up of a thread as they were measured. The physical limit of a span is the error bound of
//! a reader that knows the instant of each update (metrology 5.4, B1): no schedule can do better. The rest of a row is
//! the mean error, the mean bound, the mean bound divided by the mean limit, and the reads per second.

use std::collections::BTreeMap;

use wattspan::attribution::{AttributionSettings, Attributor, ExpectedUpdates, NewSpan, SpanKey};
use wattspan::domain::{DomainKind, EnergyReading};
use wattspan::ring::Sample;
use wattspan::sampler::counter_profile::CounterProfile;
use wattspan::sampler::read_schedule::{PAIR_INTERVAL_NS, ReadDemand, ReadSchedule};
use wattspan_client::account::Account;

use crate::ground_truth::{GroundTruth, TestRng, WeightInterval, domain, true_shares_uj};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

const QUANTUM_UJ: u64 = 61;
const IDLE_MW: u64 = 40_000;
const QUERY_MW: u64 = 120_000;
/// The highest power that the attributor may assume; the machine's own is 192 W.
const CEILING_MW: u64 = 250_000;

/// The time of one read, and the distance of two reads at the fixed rate.
const READ_NS: u64 = 8 * US;
const FIXED_PERIOD_NS: u64 = MS;

/// When a counter is updated.
#[derive(Clone, Copy)]
struct CounterKind {
    name: &'static str,
    interval_ns: u64,
    jitter_ns: u64,
    /// Each 500 ms the updates of this time do not come.
    stall_ns: u64,
}

const COUNTERS: [CounterKind; 5] = [
    CounterKind { name: "in step, 1 ms", interval_ns: MS, jitter_ns: 0, stall_ns: 0 },
    CounterKind { name: "976.6 us", interval_ns: 976_600, jitter_ns: 0, stall_ns: 0 },
    CounterKind { name: "1,003 us", interval_ns: 1_003_000, jitter_ns: 0, stall_ns: 0 },
    CounterKind { name: "1 ms +- 50 us", interval_ns: MS, jitter_ns: 100 * US, stall_ns: 0 },
    CounterKind { name: "stalls of 20 ms", interval_ns: 976_600, jitter_ns: 0, stall_ns: 20 * MS },
];

/// How the queries follow each other.
#[derive(Clone, Copy)]
struct Workload {
    name: &'static str,
    query_ns: u64,
    lanes: u64,
    rounds: u64,
    gap_ns: u64,
}

const WORKLOADS: [Workload; 5] = [
    Workload { name: "10 ms back to back", query_ns: 10 * MS, lanes: 1, rounds: 200, gap_ns: MS },
    Workload { name: "100 ms back to back", query_ns: 100 * MS, lanes: 1, rounds: 80, gap_ns: 5 * MS },
    Workload { name: "1 s back to back", query_ns: SECOND, lanes: 1, rounds: 12, gap_ns: 5 * MS },
    Workload { name: "8 x 100 ms", query_ns: 100 * MS, lanes: 8, rounds: 20, gap_ns: 30 * MS },
    Workload { name: "100 ms after quiet", query_ns: 100 * MS, lanes: 1, rounds: 30, gap_ns: 3 * SECOND },
];

/// A machine, its counter, and the instants of its updates.
struct Machine {
    truth: GroundTruth,
    updates: Vec<u64>,
}

impl Machine {
    fn new(kind: CounterKind, steps: &[(u64, u64)], end_ns: u64, rng: &mut TestRng) -> Self {
        let first_ns = rng.range(0, kind.interval_ns);
        let stalled = |at_ns: u64| at_ns % (500 * MS) >= 500 * MS - kind.stall_ns && kind.stall_ns > 0;
        let updates = (0..=end_ns / kind.interval_ns)
            .map(|number| first_ns + number * kind.interval_ns + rng.range(0, kind.jitter_ns))
            .filter(|&at_ns| !stalled(at_ns))
            .collect();
        Self { truth: GroundTruth::new(steps, kind.interval_ns, first_ns, QUANTUM_UJ), updates }
    }

    /// The instants of the updates before and after `at_ns`.
    fn updates_around(&self, at_ns: u64) -> (u64, u64) {
        let next = self.updates.partition_point(|&update_ns| update_ns <= at_ns);
        (self.updates[next.saturating_sub(1)], self.updates[next.min(self.updates.len() - 1)])
    }

    fn reading(&self, at_ns: u64) -> EnergyReading {
        let (shown_ns, _) = self.updates_around(at_ns);
        let energy_uj = (self.truth.energy_pj(shown_ns) / 1_000_000) as u64 / QUANTUM_UJ * QUANTUM_UJ;
        EnergyReading { valid: true, energy_uj, ..EnergyReading::default() }
    }

    /// How far the true energy at an instant can be above and below the line between the two updates around it, in
    /// microjoules, where the power is known to be at most the ceiling.
    fn limit_at_uj(&self, at_ns: u64) -> (f64, f64) {
        let (from_ns, to_ns) = self.updates_around(at_ns);
        let (length_ns, part_ns) = ((to_ns - from_ns) as f64, (at_ns - from_ns) as f64);
        let energy_uj = (self.truth.energy_pj(to_ns) - self.truth.energy_pj(from_ns)) as f64 / 1e6;
        let (x, mean_mw) = (part_ns / length_ns, energy_uj * 1e6 / length_ns);
        let headroom_mw = (CEILING_MW as f64 - mean_mw).max(0.0);
        let above = ((1.0 - x) * mean_mw).min(x * headroom_mw) * length_ns / 1e6;
        let below = (x * mean_mw).min((1.0 - x) * headroom_mw) * length_ns / 1e6;
        (above, below)
    }

    /// The smallest bound of the energy of a span that is alone, with the quantum of both ends.
    fn limit_uj(&self, from_ns: u64, to_ns: u64) -> f64 {
        let (open, close) = (self.limit_at_uj(from_ns), self.limit_at_uj(to_ns));
        (open.0 + close.1).max(open.1 + close.0) + QUANTUM_UJ as f64
    }
}

/// The spans of a workload, and the machine that runs them.
fn machine_and_spans(
    kind: CounterKind,
    workload: Workload,
    rng: &mut TestRng,
) -> (Machine, Vec<Vec<WeightInterval>>) {
    let mut spans = Vec::new();
    for _ in 0..workload.lanes {
        let mut at_ns = 2 * SECOND + rng.range(0, workload.query_ns);
        for _ in 0..workload.rounds {
            let length_ns = workload.query_ns * 9 / 10 + rng.range(0, workload.query_ns / 5);
            spans.push(vec![WeightInterval { from_ns: at_ns, to_ns: at_ns + length_ns, weight: 1.0 }]);
            at_ns += length_ns + workload.gap_ns + rng.range(0, workload.gap_ns / 2);
        }
    }
    let mut edges: Vec<(u64, i64)> =
        spans.iter().flat_map(|span| [(span[0].from_ns, 1), (span[0].to_ns, -1)]).collect();
    edges.sort_unstable();
    let (mut steps, mut now_ns, mut running) = (Vec::new(), 0, 0_i64);
    for (edge_ns, change) in edges {
        while now_ns < edge_ns {
            let length_ns = rng.range(200 * US, 7 * MS).min(edge_ns - now_ns);
            let load = (running as f64 / workload.lanes as f64).sqrt();
            let power_mw = IDLE_MW + (QUERY_MW as f64 * load) as u64;
            steps.push((length_ns, rng.range(power_mw * 8 / 10, power_mw * 12 / 10)));
            now_ns += length_ns;
        }
        running += change;
    }
    steps.push((1, IDLE_MW));
    (Machine::new(kind, &steps, now_ns + 3 * SECOND, rng), spans)
}

/// A meter in simulated time: sampler, collector and attributor of one counter.
struct Meter<'a> {
    machine: &'a Machine,
    by_edges: bool,
    attributor: Attributor,
    profile: CounterProfile,
    schedule: ReadSchedule,
    newest_edge_ns: u64,
    next_grid_ns: u64,
    next_survey_ns: u64,
    survey_until_ns: u64,
    last_busy_ns: u64,
    now_ns: u64,
    /// The reads while a span was open or had just closed, and the time of that.
    busy_reads: u64,
    busy_ns: u64,
    accounts: Vec<Account>,
}

impl<'a> Meter<'a> {
    fn new(machine: &'a Machine, by_edges: bool) -> Self {
        let described = domain("device", DomainKind::Package, QUANTUM_UJ, Some(CEILING_MW));
        Self {
            machine,
            by_edges,
            schedule: ReadSchedule::new(std::slice::from_ref(&described)),
            attributor: Attributor::new(vec![described], AttributionSettings::default()),
            profile: CounterProfile::new(true),
            newest_edge_ns: 0,
            next_grid_ns: 0,
            next_survey_ns: 0,
            survey_until_ns: 300 * MS,
            last_busy_ns: 0,
            now_ns: 0,
            busy_reads: 0,
            busy_ns: 0,
            accounts: Vec::new(),
        }
    }

    fn is_busy(&self) -> bool {
        self.attributor.is_busy() || self.now_ns < self.last_busy_ns + SECOND && self.last_busy_ns > 0
    }

    /// The next read: by the schedule where it is possible, else on the grid.
    fn next_read_ns(&mut self) -> u64 {
        let is_survey = self.now_ns < self.survey_until_ns;
        let rest_ns = if self.is_busy() { FIXED_PERIOD_NS } else { SECOND };
        if self.by_edges && !is_survey {
            let demand = ReadDemand {
                pair_interval_ns: rest_ns.max(PAIR_INTERVAL_NS),
                dense_interval_ns: FIXED_PERIOD_NS,
                edge_ns: self.newest_edge_ns,
            };
            if let Some(next_ns) = self.schedule.next_read_ns(self.now_ns, &demand) {
                self.next_grid_ns = self.now_ns + FIXED_PERIOD_NS;
                return next_ns;
            }
            if self.is_busy() && self.now_ns >= self.next_survey_ns && self.schedule.needs_survey(self.now_ns)
            {
                self.survey_until_ns = self.now_ns + 100 * MS;
                self.next_survey_ns = self.now_ns + SECOND;
            }
        }
        let period_ns = if is_survey { 250 * US } else { rest_ns };
        if self.next_grid_ns <= self.now_ns || self.next_grid_ns > self.now_ns + period_ns {
            self.next_grid_ns = (self.now_ns / period_ns + 1) * period_ns;
        }
        self.next_grid_ns
    }

    fn read(&mut self, at_ns: u64) {
        let reading = self.machine.reading(at_ns + READ_NS / 2);
        let (before_ns, after_ns) = (at_ns, at_ns + READ_NS);
        if self.is_busy() {
            self.busy_reads += 1;
            self.busy_ns += after_ns - self.now_ns.min(after_ns);
        }
        self.now_ns = after_ns;
        self.profile.observe(before_ns, after_ns, &reading);
        if self.by_edges {
            self.schedule.observe(&Sample { before_ns, after_ns, readings: vec![reading] });
            let phase = self.profile.update_phase();
            let expected =
                phase.map(|phase| ExpectedUpdates { at_ns: phase.at_ns, interval_ns: phase.interval_ns });
            self.attributor.set_expected_updates(0, expected);
        }
        if let Some(interval_ns) = self.profile.update_interval_ns() {
            self.attributor.set_update_interval(0, interval_ns);
        }
        self.attributor.add_reading(0, before_ns, after_ns, &reading);
        let mut settled = Vec::new();
        self.attributor.settle(after_ns, &mut settled);
        self.accounts.extend(settled.into_iter().map(|(_, account)| account));
    }

    /// Receives the message of an edge. A source that never blocks is read at once by the schedule of edges; at the fixed
    /// rate an opening after quiet wakes the thread.
    fn receive(&mut self, at_ns: u64, received_ns: u64, rng: &mut TestRng) {
        if self.is_busy() {
            self.busy_ns += received_ns.saturating_sub(self.now_ns);
        }
        let was_busy = self.is_busy();
        self.now_ns = self.now_ns.max(received_ns);
        self.last_busy_ns = self.now_ns;
        self.newest_edge_ns = self.newest_edge_ns.max(at_ns);
        if self.by_edges && self.schedule.is_edge_driven(self.now_ns) {
            if self.schedule.needs_edge_read(at_ns) {
                self.read(self.now_ns);
            }
        } else if !was_busy {
            let wake_ns = if self.by_edges { 0 } else { rng.range(200 * US, 500 * US) };
            self.read(self.now_ns + wake_ns);
        }
    }
}

/// Runs all spans through a meter; returns it with the accounts in the order of the spans.
fn run<'a>(
    machine: &'a Machine,
    spans: &[Vec<WeightInterval>],
    by_edges: bool,
    rng: &mut TestRng,
) -> Meter<'a> {
    let mut meter = Meter::new(machine, by_edges);
    let mut edges: Vec<(u64, bool, usize)> = spans
        .iter()
        .enumerate()
        .flat_map(|(index, span)| [(span[0].from_ns, false, index), (span[0].to_ns, true, index)])
        .collect();
    edges.sort_unstable();
    let (mut keys, mut next) = (BTreeMap::<usize, SpanKey>::new(), 0);
    while meter.accounts.len() < spans.len() {
        let read_ns = (meter.next_read_ns() + rng.range(5 * US, 35 * US)).max(meter.now_ns);
        let message_ns = edges.get(next).map(|edge| (edge.0 + rng.range(5 * US, 20 * US)).max(meter.now_ns));
        match message_ns.filter(|&message_ns| message_ns <= read_ns) {
            Some(message_ns) => {
                let (at_ns, close, index) = edges[next];
                next += 1;
                if close {
                    let closed =
                        meter.attributor.close(message_ns, keys[&index], at_ns, BTreeMap::new(), false);
                    closed.expect("open");
                } else {
                    let new_span = NewSpan::new(index.to_string(), at_ns);
                    keys.insert(index, meter.attributor.open(message_ns, new_span).expect("room"));
                }
                meter.receive(at_ns, message_ns, rng);
            }
            None => meter.read(read_ns),
        }
    }
    meter.accounts.sort_by_key(|account| account.span.parse::<usize>().expect("our own number"));
    meter
}

/// Prints a row; returns whether every truth was within its bound.
fn row(kind: CounterKind, workload: Workload, seed: u64) -> bool {
    let mut is_inside = true;
    let (machine, spans) = machine_and_spans(kind, workload, &mut TestRng(seed));
    let truths = true_shares_uj(&machine.truth, &spans);
    print!("{:<16} {:<20}", kind.name, workload.name);
    for by_edges in [false, true] {
        let meter = run(&machine, &spans, by_edges, &mut TestRng(seed + 1));
        let (mut error, mut bound, mut errors_uj, mut limits_uj, mut inside) = (0.0, 0.0, 0.0, 0.0, 0);
        for ((account, truth), span) in meter.accounts.iter().zip(&truths).zip(&spans) {
            let share_uj = account.share_uj.expect("a share") as f64;
            let error_uj = account.error_uj.expect("an error") as f64;
            inside += usize::from((share_uj - truth).abs() <= error_uj);
            error += (share_uj - truth).abs() / truth;
            bound += error_uj / truth;
            errors_uj += error_uj;
            limits_uj += machine.limit_uj(span[0].from_ns, span[0].to_ns);
        }
        let count = spans.len() as f64;
        let ratio = if workload.lanes == 1 { format!("{:.2}", errors_uj / limits_uj) } else { "-".into() };
        print!(
            "  {:>7.3} {:>7.2} {ratio:>7} {:>5.0} {:>4}/{:<4}",
            100.0 * error / count,
            100.0 * bound / count,
            meter.busy_reads as f64 * 1e9 / meter.busy_ns as f64,
            inside,
            spans.len()
        );
        is_inside &= inside == spans.len();
    }
    println!();
    is_inside
}

/// Prints the table; returns whether every truth was within its bound.
pub fn compare() -> bool {
    let columns =
        format!("{:>7} {:>7} {:>7} {:>5} {:>9}", "error %", "bound %", "/limit", "reads", "truth in");
    println!(
        "\nreading schedules: mean error and bound, mean bound / mean physical limit, reads a second while spans are open"
    );
    println!("{:<37}  {:<39}  by edges", "", "1,000 Hz");
    println!("{:<16} {:<20}  {columns}  {columns}", "counter", "queries");
    let mut always = true;
    for (nth, kind) in COUNTERS.into_iter().enumerate() {
        for (round, workload) in WORKLOADS.into_iter().enumerate() {
            always &= row(kind, workload, 20_261_129 + (nth * 16 + round) as u64);
        }
    }
    always
}
