//! The error of accounts under two reading schedules, beside what the counter allows.
//!
//! A machine with known power has a counter that is updated in step with the sampler's grid, out of step, with jitter,
//! with stalls, or seldom and with a lag, in units of 15.3 µJ to 1 mJ. The same queries are measured at a fixed rate and
//! by the schedule of edges, with the sampler's lateness, the way of a message and the wake-up of a thread as they were
//! measured. The physical limit of a span is the error bound of a reader that knows the instant of each update
//! (metrology 5.4, B1): no schedule can do better. The rest of a row is the mean error, the mean bound, the mean bound
//! divided by the mean limit, the reads per second, and the mean errors of the two rules in use today.

use std::collections::BTreeMap;

use wattspan::attribution::{AttributionSettings, Attributor, ExpectedUpdates, NewSpan, SpanKey};
use wattspan::domain::{Domain, DomainKind, EnergyReading};
use wattspan::ring::Sample;
use wattspan::sampler::counter_profile::CounterProfile;
use wattspan::sampler::read_schedule::{ReadDemand, ReadSchedule, pair_interval_ns};
use wattspan_client::account::Account;

use crate::ground_truth::{GroundTruth, TestRng, WeightInterval, domain, true_shares_uj};
use crate::{end_samples_rule, error_statistics, last_sample_rule};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

const IDLE_MW: u64 = 40_000;
const QUERY_MW: u64 = 120_000;
/// The highest power that the attributor may assume; the machine's own is 192 W.
const CEILING_MW: u64 = 250_000;

/// The time of one read.
const READ_NS: u64 = 8 * US;

/// How a counter is updated.
#[derive(Clone, Copy)]
struct CounterKind {
    name: &'static str,
    kind: DomainKind,
    interval_ns: u64,
    jitter_ns: u64,
    /// Each 500 ms the updates of this time do not come.
    stall_ns: u64,
    /// An update appears in readings this much later: the shortest and the longest time.
    lag_ns: (u64, u64),
    /// The lag that the attributor assumes at most.
    assumed_lag_ns: u64,
    unit_pj: u64,
    /// The distance of two reads at the fixed rate.
    fixed_period_ns: u64,
}

const IN_STEP: CounterKind = CounterKind {
    name: "in step, 1 ms",
    kind: DomainKind::Package,
    interval_ns: MS,
    jitter_ns: 0,
    stall_ns: 0,
    lag_ns: (0, 0),
    assumed_lag_ns: 0,
    unit_pj: 61_035_156,
    fixed_period_ns: MS,
};

const OUT_OF_STEP: CounterKind = CounterKind { name: "976.6 us", interval_ns: 976_600, ..IN_STEP };

const NVML: CounterKind = CounterKind {
    name: "NVML, 100 ms",
    kind: DomainKind::Gpu,
    interval_ns: 100 * MS,
    unit_pj: 1_000_000_000,
    fixed_period_ns: 10 * MS,
    ..IN_STEP
};

const COUNTERS: [CounterKind; 7] = [
    IN_STEP,
    OUT_OF_STEP,
    CounterKind { name: "976.6 us, 15.3 uJ", unit_pj: 15_258_789, ..OUT_OF_STEP },
    CounterKind { name: "976.6 us, 1 mJ", unit_pj: 1_000_000_000, ..OUT_OF_STEP },
    CounterKind { name: "1,003 us", interval_ns: 1_003_000, ..IN_STEP },
    CounterKind { name: "1 ms +- 50 us", jitter_ns: 100 * US, ..IN_STEP },
    CounterKind { name: "stalls of 20 ms", stall_ns: 20 * MS, ..OUT_OF_STEP },
];

/// Counters of boards. The lag that is assumed is the default: one update interval.
const BOARD_COUNTERS: [CounterKind; 3] = [
    CounterKind { name: "NVML, no lag", assumed_lag_ns: 100 * MS, ..NVML },
    CounterKind { name: "NVML, 40 to 60 ms", lag_ns: (40 * MS, 60 * MS), assumed_lag_ns: 100 * MS, ..NVML },
    CounterKind { name: " measured: 60 ms", lag_ns: (40 * MS, 60 * MS), assumed_lag_ns: 60 * MS, ..NVML },
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

const WORKLOADS: [Workload; 7] = [
    Workload { name: "10 ms back to back", query_ns: 10 * MS, lanes: 1, rounds: 400, gap_ns: MS },
    Workload { name: "100 ms back to back", query_ns: 100 * MS, lanes: 1, rounds: 200, gap_ns: 5 * MS },
    Workload { name: "1 s back to back", query_ns: SECOND, lanes: 1, rounds: 60, gap_ns: 5 * MS },
    Workload { name: "100 ms, 0.1 ms apart", query_ns: 100 * MS, lanes: 1, rounds: 200, gap_ns: 100 * US },
    Workload { name: "8 x 100 ms", query_ns: 100 * MS, lanes: 8, rounds: 60, gap_ns: 30 * MS },
    Workload { name: "100 ms after 30 ms", query_ns: 100 * MS, lanes: 1, rounds: 200, gap_ns: 30 * MS },
    Workload { name: "100 ms after quiet", query_ns: 100 * MS, lanes: 1, rounds: 60, gap_ns: 3 * SECOND },
];

const BOARD_WORKLOADS: [Workload; 4] = [
    Workload { name: "500 ms back to back", query_ns: 500 * MS, lanes: 1, rounds: 80, gap_ns: 5 * MS },
    Workload { name: "2 s back to back", query_ns: 2 * SECOND, lanes: 1, rounds: 40, gap_ns: 5 * MS },
    Workload { name: "8 x 2 s", query_ns: 2 * SECOND, lanes: 8, rounds: 12, gap_ns: 300 * MS },
    Workload { name: "2 s after quiet", query_ns: 2 * SECOND, lanes: 1, rounds: 20, gap_ns: 3 * SECOND },
];

/// A machine, its counter, and the instants of its updates.
struct Machine {
    counter: CounterKind,
    truth: GroundTruth,
    /// Each update and the instant from which readings show it.
    updates: Vec<(u64, u64)>,
}

impl Machine {
    fn new(counter: CounterKind, steps: &[(u64, u64)], end_ns: u64, rng: &mut TestRng) -> Self {
        let first_ns = rng.range(0, counter.interval_ns);
        let stalled = |at_ns: u64| at_ns % (500 * MS) >= 500 * MS - counter.stall_ns && counter.stall_ns > 0;
        let mut updates: Vec<(u64, u64)> = Vec::new();
        for number in 0..=end_ns / counter.interval_ns {
            let at_ns = first_ns + number * counter.interval_ns + rng.range(0, counter.jitter_ns);
            let shown_ns = at_ns + rng.range(counter.lag_ns.0, counter.lag_ns.1);
            if !stalled(at_ns) {
                updates.push((at_ns, shown_ns));
            }
        }
        let quantum_uj = counter.unit_pj.div_ceil(1_000_000);
        Self { counter, truth: GroundTruth::new(steps, counter.interval_ns, first_ns, quantum_uj), updates }
    }

    /// The instants of the updates before and after `at_ns`.
    fn updates_around(&self, at_ns: u64) -> (u64, u64) {
        let next = self.updates.partition_point(|update| update.0 <= at_ns);
        (self.updates[next.saturating_sub(1)].0, self.updates[next.min(self.updates.len() - 1)].0)
    }

    /// The counter as a read at `at_ns` shows it.
    fn counter_uj(&self, at_ns: u64) -> u64 {
        let next = self.updates.partition_point(|update| update.1 <= at_ns);
        let energy_pj = self.truth.energy_pj(self.updates[next.saturating_sub(1)].0);
        let unit_pj = u128::from(self.counter.unit_pj);
        (energy_pj / unit_pj * unit_pj / 1_000_000) as u64
    }

    fn reading(&self, at_ns: u64) -> EnergyReading {
        EnergyReading { valid: true, energy_uj: self.counter_uj(at_ns), ..EnergyReading::default() }
    }

    /// The smallest bound of the energy of a span that is alone.
    fn limit_uj(&self, from_ns: u64, to_ns: u64) -> f64 {
        physical_limit_uj(&self.truth, |at_ns| self.updates_around(at_ns), CEILING_MW, (from_ns, to_ns))
    }
}

/// The smallest bound of the energy of a span that is alone, with the quantum of both ends, where the counter is updated
/// at known instants and the power is known to be at most the ceiling.
pub fn physical_limit_uj(
    truth: &GroundTruth,
    updates_around: impl Fn(u64) -> (u64, u64),
    ceiling_mw: u64,
    span: (u64, u64),
) -> f64 {
    // How far the true energy at an instant can be above and below the line between the two updates around it.
    let limit_at_uj = |at_ns: u64| {
        let (from_ns, to_ns) = updates_around(at_ns);
        let (length_ns, part_ns) = ((to_ns - from_ns) as f64, (at_ns - from_ns) as f64);
        let energy_uj = (truth.energy_pj(to_ns) - truth.energy_pj(from_ns)) as f64 / 1e6;
        let (x, mean_mw) = (part_ns / length_ns, energy_uj * 1e6 / length_ns);
        let headroom_mw = (ceiling_mw as f64 - mean_mw).max(0.0);
        let above = ((1.0 - x) * mean_mw).min(x * headroom_mw) * length_ns / 1e6;
        let below = (x * mean_mw).min((1.0 - x) * headroom_mw) * length_ns / 1e6;
        (above, below)
    };
    let (open, close) = (limit_at_uj(span.0), limit_at_uj(span.1));
    (open.0 + close.1).max(open.1 + close.0) + truth.quantum_uj as f64
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
        let counter = machine.counter;
        let described = Domain {
            source: "simulated".into(),
            latency_ns: counter.assumed_lag_ns,
            ..domain("device", counter.kind, machine.truth.quantum_uj, Some(CEILING_MW))
        };
        Self {
            machine,
            by_edges,
            schedule: ReadSchedule::new(std::slice::from_ref(&described)),
            attributor: Attributor::new(vec![described], AttributionSettings::default()),
            profile: CounterProfile::new(true).with_latency(counter.assumed_lag_ns),
            newest_edge_ns: 0,
            next_grid_ns: 0,
            next_survey_ns: 0,
            survey_until_ns: 300 * counter.fixed_period_ns,
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
        let fixed_period_ns = self.machine.counter.fixed_period_ns;
        let rest_ns = if self.is_busy() { fixed_period_ns } else { SECOND };
        if self.by_edges && !is_survey {
            let demand = ReadDemand {
                pair_interval_ns: rest_ns
                    .max(pair_interval_ns(self.now_ns.saturating_sub(self.newest_edge_ns))),
                dense_interval_ns: fixed_period_ns,
                edge_ns: self.newest_edge_ns,
            };
            if let Some(next_ns) = self.schedule.next_read_ns(self.now_ns, &demand) {
                self.next_grid_ns = self.now_ns + fixed_period_ns;
                return next_ns;
            }
            if self.is_busy() && self.now_ns >= self.next_survey_ns && self.schedule.needs_survey(self.now_ns)
            {
                self.survey_until_ns = self.now_ns + 100 * fixed_period_ns;
                self.next_survey_ns = self.now_ns + SECOND;
            }
        }
        let period_ns = if is_survey { fixed_period_ns / 4 } else { rest_ns };
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
            let expected = phase.map(|phase| ExpectedUpdates {
                at_ns: phase.at_ns,
                interval_ns: phase.interval_ns,
                uncertainty_ns: phase.uncertainty_ns,
            });
            self.attributor.domains().set_expected_updates(0, expected);
        }
        if let Some(interval_ns) = self.profile.update_interval_ns() {
            self.attributor.domains().set_update_interval(0, interval_ns);
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
    print!("{:<17} {:<20}", kind.name, workload.name);
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
            "  {:>7.3} {:>6.2} {ratio:>6} {:>5.0} {:>4}/{:<4}",
            100.0 * error / count,
            100.0 * bound / count,
            meter.busy_reads as f64 * 1e9 / meter.busy_ns as f64,
            inside,
            spans.len()
        );
        is_inside &= inside == spans.len();
    }
    let counter = |at_ns: u64| machine.counter_uj(at_ns);
    let (tail, ends) = (last_sample_rule(&spans, counter), end_samples_rule(&spans, counter));
    println!(
        "  {:>6.1} {:>6.1}",
        error_statistics(&tail, &truths).mean,
        error_statistics(&ends, &truths).mean
    );
    is_inside
}

/// Prints the table; returns whether every truth was within its bound.
pub fn compare() -> bool {
    let columns = format!("{:>7} {:>6} {:>6} {:>5} {:>9}", "error %", "bound", "/limit", "reads", "truth in");
    println!(
        "\nreading schedules: mean error and bound, %; mean bound / mean physical limit; reads a second while spans \
         are open; mean errors of the rules"
    );
    println!("{:<38}  {:<37}  by edges", "", "fixed rate: 1 kHz, NVML 100 Hz");
    println!("{:<17} {:<20}  {columns}  {columns}  {:>6} {:>6}", "counter", "queries", "tail", "ends");
    let mut always = true;
    let tables = [(&COUNTERS[..], &WORKLOADS[..]), (&BOARD_COUNTERS, &BOARD_WORKLOADS)];
    for (nth, (counter, workloads)) in tables
        .into_iter()
        .flat_map(|(counters, workloads)| counters.iter().map(move |counter| (counter, workloads)))
        .enumerate()
    {
        for (round, workload) in workloads.iter().enumerate() {
            always &= row(*counter, *workload, 20_261_129 + (nth * 16 + round) as u64);
        }
    }
    always
}
