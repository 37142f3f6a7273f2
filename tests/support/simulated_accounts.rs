//! Random machines, spans and messages, whose accounts are compared with the truth.
//!
//! Owns the simulated hardware: true power under a ceiling, counters with update interval, jitter, quantum, lag, stalls
//! and wraps, models and stamped counters. The truth is computed from the power and the spans alone, without any code
//! of the attribution. Invariant: a machine depends on its seed only, so that a failing seed can be replayed.

#![allow(dead_code, reason = "each test and example uses its own part")]

use std::collections::BTreeMap;

use wattspan::attribution::{AttributionSettings, Attributor, ExpectedUpdates, NewSpan, SpanKey};
use wattspan::domain::{Domain, DomainKind, EnergyReading, PowerLimit};
use wattspan::sources::counter::{Counter, CounterSpec};
use wattspan::sources::energy_unit::EnergyUnit;
use wattspan_client::account::Account;

use crate::ground_truth::{GroundTruth, TestRng, domain};

/// What must hold for a guaranteed error to hold; the simulated machines keep all of it.
pub const ASSUMPTIONS: &[&str] = &[
    "the power of a domain never exceeds its ceiling, where one is set",
    "the exponential mean of the power over a limit's window never exceeds the limit, where one is set",
    "a counter shows the energy up to its last update, rounded down to its unit, and never falls but by a wrap",
    "an update is readable at most the domain's publishing lag after its instant",
    "the value of a reading is the one that is readable at some instant between the times before and after the read",
    "readings and edges have times of one clock that never goes back",
    "a counter is read at least four times for each wrap; a lost reading is reported as such",
    "a time stamp is the instant at which the stamped energy is exact",
    "the energy of a model between two readings deviates from the truth by at most its stated uncertainty",
    "no reading of a model shows more energy than the limits allow; the service raises a limit that one exceeds",
    "the truth is the power times weight / total weight, with edges where the account says they took effect",
];

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const CEILING_MW: u64 = 600_000;
const PEAK: PowerLimit = PowerLimit { limit_mw: CEILING_MW, window_ns: 0, origin: "PL4" };
const SHORT_TERM: PowerLimit = PowerLimit { limit_mw: 150_000, window_ns: 5 * MS, origin: "PL2" };
/// Nothing is opened before the counters have moved a few times.
const FIRST_EDGE_NS: u64 = 250 * MS;

/// The comparison of accounts with the truth.
#[derive(Debug, Default, Clone)]
pub struct Comparison {
    pub machines: u64,
    /// Accounts with a guaranteed total, and without one because a counter stopped for too long.
    pub accounts: u64,
    pub without_guarantee: u64,
    /// The compared values: shares of domains, totals, phases.
    pub values: u64,
    /// A description of each account with a value whose truth is outside its error.
    pub outside: Vec<String>,
    /// The largest |share − truth| / error, and the seed of its machine.
    pub worst_ratio: f64,
    pub worst_seed: u64,
    /// The accounts by the ratio of their total, in twentieths.
    pub ratios: [u64; 20],
}

impl Comparison {
    pub fn add(&mut self, other: Comparison) {
        self.machines += other.machines;
        self.accounts += other.accounts;
        self.without_guarantee += other.without_guarantee;
        self.values += other.values;
        self.outside.extend(other.outside);
        if other.worst_ratio > self.worst_ratio {
            (self.worst_ratio, self.worst_seed) = (other.worst_ratio, other.worst_seed);
        }
        self.ratios.iter_mut().zip(other.ratios).for_each(|(sum, count)| *sum += count);
    }
}

/// A change of a span's weight or phase, or its opening or closing.
#[derive(Debug, Clone)]
struct Edge {
    span: usize,
    /// When it happened, when its message comes, and when it takes effect.
    at_ns: u64,
    arrival_ns: u64,
    effect_ns: u64,
    kind: EdgeKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum EdgeKind {
    Open(f64),
    Weight(f64),
    Phase,
    Close,
}

/// The hardware of a domain.
#[derive(Debug)]
struct Machine {
    domain: Domain,
    power: GroundTruth,
    is_governed: bool,
    meter: Meter,
    /// The instants at which its counter moves and from which the new value is readable.
    updates: Vec<(u64, u64)>,
    /// The times before and after each read.
    reads: Vec<(u64, u64)>,
    update_interval_ns: Option<u64>,
    expected: Option<ExpectedUpdates>,
}

#[derive(Debug)]
enum Meter {
    /// A count of `counts_per_joule` that starts at `offset` and wraps.
    Counter { counter: Counter, counts_per_joule: u128, offset: u128, modulus: u128, stamped: bool },
    /// A model that deviates by a fraction of the energy, in 1/256, another one for each step.
    Model { deviation: u64, energy_pj: u128, uncertainty_uj: u64, last_ns: u64 },
}

fn pick<T: Copy>(rng: &mut TestRng, list: &[T]) -> T {
    list[rng.range(0, list.len() as u64 - 1) as usize]
}

fn chance(rng: &mut TestRng, one_in: u64) -> bool {
    rng.range(1, one_in) == 1
}

/// Random spans, each with its edges in order; `scale_ns` is the update interval of the slowest counter.
fn spans(rng: &mut TestRng, scale_ns: u64) -> Vec<Vec<Edge>> {
    let count = pick(rng, &[1, 2, 5, 16, 48]);
    let window_ns = 150 * MS + 2 * scale_ns;
    let longest_ns = pick(rng, &[MS, 20 * MS, 60 * MS + 3 * scale_ns]);
    let (late_ns, horizon_ns) = (pick(rng, &[20 * US, 20 * US, 9 * MS, 30 * MS]), 10 * MS);
    (0..count)
        .map(|span| {
            let mut at_ns = FIRST_EDGE_NS + rng.range(0, window_ns);
            let weight = |rng: &mut TestRng| pick(rng, &[1.0, 1.0, 1.0, 0.0, 3.0, 0.25, 17.0, 4096.0]);
            let mut kinds = vec![EdgeKind::Open(weight(rng))];
            for _ in 0..pick(rng, &[0, 0, 0, 1, 4]) {
                kinds.push(if chance(rng, 2) { EdgeKind::Phase } else { EdgeKind::Weight(weight(rng)) });
            }
            kinds.push(EdgeKind::Close);
            let (mut arrival_ns, mut opened_ns) = (0, 0);
            let pause_ns = longest_ns / (kinds.len() as u64 - 1);
            let edge = |kind| {
                arrival_ns = arrival_ns.max(at_ns + rng.range(0, late_ns));
                let effect_ns = at_ns.max(arrival_ns - horizon_ns).max(opened_ns);
                opened_ns = opened_ns.max(if opened_ns == 0 { effect_ns } else { 0 });
                let edge = Edge { span, at_ns, arrival_ns, effect_ns, kind };
                at_ns += rng.range(0, pause_ns);
                edge
            };
            kinds.into_iter().map(edge).collect()
        })
        .collect()
}

/// Power for the time up to `end_ns`, and whether it keeps [`SHORT_TERM`].
fn power(rng: &mut TestRng, end_ns: u64, edges_ns: &[u64]) -> (Vec<(u64, u64)>, bool) {
    let kind = rng.range(0, 5);
    let (mut at_ns, mut mean_mw, mut steps) = (0, 0.0, Vec::new());
    let bursts = rng.range(1, 3);
    let mut burst_edges: Vec<u64> = (0..bursts).map(|_| pick(rng, edges_ns)).collect();
    burst_edges.sort_unstable();
    let before = chance(rng, 2);
    while at_ns < end_ns {
        let turn = steps.len();
        let (length_ns, mw) = match kind {
            0 => (end_ns, rng.range(1_000, CEILING_MW)),
            1 => (rng.range(20 * US, 3 * MS), if turn % 2 == 0 { 0 } else { CEILING_MW }),
            2 => (rng.range(20 * US, 3 * MS), rng.range(2_000, CEILING_MW)),
            3 => {
                // The mean of a constant power is monotone, so that its ends suffice.
                let length_ns = rng.range(20 * US, 3 * MS);
                let weight = (-(length_ns as f64) / SHORT_TERM.window_ns as f64).exp();
                let after = |mw: u64| mean_mw * weight + mw as f64 * (1.0 - weight);
                let wanted_mw =
                    pick(rng, &[PEAK.limit_mw, rng.clone().range(0, PEAK.limit_mw), SHORT_TERM.limit_mw]);
                let mw = if after(wanted_mw) <= SHORT_TERM.limit_mw as f64 { wanted_mw } else { 0 };
                mean_mw = after(mw);
                (length_ns, mw)
            }
            // Nearly all energy lies beside a few edges, where the attribution knows the least about it.
            _ => {
                let length_ns = rng.range(50 * US, 400 * US);
                let begin = |edge_ns: &u64| if before { edge_ns.saturating_sub(length_ns) } else { *edge_ns };
                match burst_edges.first() {
                    Some(edge_ns) if begin(edge_ns) <= at_ns => {
                        burst_edges.remove(0);
                        (length_ns, CEILING_MW)
                    }
                    Some(edge_ns) => (begin(edge_ns) - at_ns, 10),
                    None => (end_ns, 10),
                }
            }
        };
        at_ns += length_ns;
        steps.push((length_ns, mw));
    }
    (steps, kind == 3)
}

/// The instants of a counter's updates and of their visibility.
fn updates(rng: &mut TestRng, update_ns: u64, lag_ns: u64, end_ns: u64) -> Vec<(u64, u64)> {
    let jitter_ns = pick(rng, &[0, 0, update_ns / 20, update_ns / 3]);
    let stalls = chance(rng, 5);
    let (phase_ns, mut shown_ns, mut stalled_until_ns) = (rng.range(0, update_ns), 0, 0);
    let mut list = Vec::new();
    for number in 1..end_ns / update_ns {
        let at_ns = phase_ns + number * update_ns - jitter_ns + rng.range(0, 2 * jitter_ns);
        if stalls && chance(rng, 60) {
            stalled_until_ns = at_ns + 20 * MS;
        }
        if at_ns >= stalled_until_ns {
            shown_ns = (at_ns + rng.range(0, lag_ns)).max(shown_ns);
            list.push((at_ns, shown_ns));
        }
    }
    list
}

/// The times of the reads: at a rate, seldom but at the edges' messages, or at random with interruptions.
fn reads(rng: &mut TestRng, arrivals_ns: &[u64], update_ns: u64, end_ns: u64) -> Vec<(u64, u64)> {
    let kind = rng.range(0, 2);
    let period_ns = pick(rng, &[update_ns / 3, update_ns, 2 * MS]).clamp(300 * US, 25 * MS);
    let (mut begins, mut at_ns) = (Vec::new(), rng.range(1, MS));
    while at_ns < end_ns {
        begins.push(at_ns);
        at_ns += match kind {
            0 => period_ns,
            1 => 20 * MS,
            _ if chance(rng, 50) => rng.range(30 * MS, 60 * MS),
            _ => rng.range(100 * US, 2 * period_ns),
        };
    }
    if kind == 1 {
        begins.extend(arrivals_ns.iter().map(|at_ns| at_ns + rng.range(0, 20 * US)));
        begins.sort_unstable();
    }
    let mut last_ns = 0;
    let read = |begin_ns: u64| {
        let before_ns = begin_ns.max(last_ns + 1);
        last_ns = before_ns + rng.range(1, 60 * US);
        (before_ns, last_ns)
    };
    begins.into_iter().map(read).collect()
}

fn meter(rng: &mut TestRng, update_ns: u64, lag_ns: u64) -> (Meter, u64) {
    if chance(rng, 8) {
        let deviation = rng.range(0, 64);
        return (Meter::Model { deviation, energy_pj: 0, uncertainty_uj: 0, last_ns: 0 }, 1);
    }
    let (unit, counts_per_joule) = match rng.range(0, 3) {
        0 => (Some(EnergyUnit::MILLIJOULE), 1_000),
        1 => (EnergyUnit::joules_over_power_of_two(14), 1 << 14),
        2 => (EnergyUnit::joules_over_power_of_two(16), 1 << 16),
        _ => (Some(EnergyUnit::MICROJOULE), 1_000_000),
    };
    let unit = unit.expect("a unit of at least 1 µJ");
    // The smallest one wraps after some 1.7 s at the ceiling.
    let modulus = pick(rng, &[1 << 32, 1_000 * counts_per_joule]);
    let range_uj = u64::try_from(unit.to_uj(modulus)).expect("2^32 mJ fit");
    let staleness_ns = 2 * update_ns + lag_ns + 21 * MS;
    let spec = CounterSpec { unit, modulus, ceiling_mw: CEILING_MW, staleness_ns, range_uj };
    let stamped = chance(rng, 6);
    let offset = pick(rng, &[0, modulus - counts_per_joule, modulus / 2]);
    (
        Meter::Counter { counter: Counter::new(spec), counts_per_joule, offset, modulus, stamped },
        unit.quantum_uj(),
    )
}

impl Machine {
    fn new(rng: &mut TestRng, number: usize, update_ns: u64, spans: &[Vec<Edge>], end_ns: u64) -> Self {
        let edges = |time: fn(&Edge) -> u64| spans.iter().flatten().map(time).collect::<Vec<u64>>();
        let (steps, is_governed) = power(rng, end_ns, &edges(|edge| edge.effect_ns));
        let latency_ns = pick(rng, &[0, 50 * US, update_ns / 2, update_ns]);
        let (meter, quantum_uj) = meter(rng, update_ns, latency_ns);
        let ceiling_mw = chance(rng, 2).then_some(CEILING_MW);
        let name = format!("domain-{number}");
        let expected = |rng: &mut TestRng| ExpectedUpdates {
            at_ns: rng.range(0, update_ns),
            interval_ns: update_ns as f64 * pick(rng, &[1.0, 1.0, 0.7]),
            uncertainty_ns: rng.range(0, update_ns / 4),
        };
        Self {
            domain: Domain { latency_ns, ..domain(&name, DomainKind::Package, quantum_uj, ceiling_mw) },
            power: GroundTruth::new(&steps, update_ns, 0, quantum_uj),
            is_governed,
            meter,
            updates: updates(rng, update_ns, latency_ns, end_ns),
            reads: reads(rng, &edges(|edge| edge.arrival_ns), update_ns, end_ns),
            update_interval_ns: pick(rng, &[None, Some(update_ns), Some(update_ns / 2)]),
            expected: chance(rng, 3).then(|| expected(rng)),
        }
    }

    /// The reading of a read between two instants.
    fn read(&mut self, rng: &mut TestRng, before_ns: u64, after_ns: u64) -> EnergyReading {
        let at_ns = rng.range(before_ns, after_ns);
        match &mut self.meter {
            Meter::Counter { counter, counts_per_joule, offset, modulus, stamped } => {
                let shown = self.updates.partition_point(|&(_, shown_ns)| shown_ns <= at_ns);
                let update_ns = shown.checked_sub(1).map_or(0, |last| self.updates[last].0);
                let counts = self.power.energy_pj(update_ns) * *counts_per_joule / 1_000_000_000_000;
                let raw = u64::try_from((*offset + counts) % *modulus).expect("at most 2^32");
                let reading = counter.advance(raw, before_ns, after_ns);
                EnergyReading { stamp_ns: if *stamped { update_ns } else { 0 }, ..reading }
            }
            Meter::Model { deviation, energy_pj, uncertainty_uj, last_ns } => {
                let rise_pj = self.power.energy_pj(after_ns) - self.power.energy_pj(*last_ns);
                let part_pj = rise_pj * u128::from(rng.range(0, *deviation)) / 256;
                let most_pj = u128::from(CEILING_MW) * u128::from(after_ns - *last_ns);
                let raised = !self.is_governed && chance(rng, 2) && rise_pj + part_pj <= most_pj;
                *energy_pj += if raised { rise_pj + part_pj } else { rise_pj - part_pj };
                *uncertainty_uj += u64::try_from(part_pj / 1_000_000).expect("a short time") + 1;
                *last_ns = after_ns;
                EnergyReading {
                    valid: true,
                    energy_uj: u64::try_from(*energy_pj / 1_000_000).expect("a short time"),
                    uncertainty_uj: *uncertainty_uj,
                    stamp_ns: after_ns,
                    ..EnergyReading::default()
                }
            }
        }
    }
}

/// The sensor beside a counter: none, one that shows the true energy, or one that shows nonsense.
#[derive(Debug, Clone, Copy)]
enum Sensor {
    None,
    True,
    Nonsense,
}

/// The machines of a simulation, and the spans on them.
struct Simulation {
    machines: Vec<Machine>,
    sensor: Sensor,
    spans: Vec<Vec<Edge>>,
    /// The domains of each span.
    scopes: Vec<Vec<usize>>,
    rng: TestRng,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        // A xorshift generator keeps small seeds small for some steps.
        let mut rng = TestRng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let _ = (0..8).fold(0, |_, _| rng.next_u64());
        let domains = rng.range(1, 3) as usize;
        let intervals: Vec<u64> = (0..domains)
            .map(|_| pick(&mut rng, &[MS, 976_600, 1_003_000, 5 * MS, 20 * MS, 100 * MS]))
            .collect();
        let spans = spans(&mut rng, *intervals.iter().max().expect("a domain"));
        let last_ns = spans.iter().flatten().map(|edge| edge.arrival_ns).max().expect("an edge");
        let machine = |(number, update_ns): (usize, &u64)| {
            Machine::new(&mut rng, number, *update_ns, &spans, last_ns + 6 * update_ns + 200 * MS)
        };
        let machines: Vec<Machine> = intervals.iter().enumerate().map(machine).collect();
        let all: Vec<usize> = (0..domains).collect();
        let scope = |_| if chance(&mut rng, 4) { vec![pick(&mut rng, &all)] } else { all.clone() };
        let scopes = spans.iter().map(scope).collect();
        let sensor = pick(&mut rng, &[Sensor::None, Sensor::None, Sensor::True, Sensor::Nonsense]);
        Self { machines, sensor, spans, scopes, rng }
    }

    fn attributor(&self) -> Attributor {
        let domains = self.machines.iter().map(|machine| machine.domain.clone()).collect();
        let mut attributor = Attributor::new(domains, AttributionSettings::default());
        for (number, machine) in self.machines.iter().enumerate() {
            if machine.is_governed {
                attributor.domains().set_power_limits(number, &[PEAK, SHORT_TERM]);
            }
            if let Some(interval_ns) = machine.update_interval_ns {
                attributor.domains().set_update_interval(number, interval_ns);
            }
            attributor.domains().set_expected_updates(number, machine.expected);
        }
        attributor
    }

    /// Delivers all readings and messages in the order of their times. Returns the accounts by span.
    fn run(&mut self) -> BTreeMap<usize, Account> {
        let mut attributor = self.attributor();
        let mut edges: Vec<Edge> = self.spans.iter().flatten().cloned().collect();
        edges.sort_by_key(|edge| (edge.arrival_ns, edge.span));
        let reads = self.machines.iter().enumerate().flat_map(|(number, machine)| {
            machine.reads.iter().map(move |&(before_ns, after_ns)| (after_ns, before_ns, number))
        });
        let mut reads: Vec<(u64, u64, usize)> = reads.collect();
        reads.sort_unstable();
        let (mut keys, mut next, mut settled) = (vec![SpanKey(0); self.spans.len()], 0, Vec::new());
        let mut shape_uj = vec![1_u64; self.machines.len()];
        for (after_ns, before_ns, number) in reads {
            while let Some(edge) = edges.get(next).filter(|edge| edge.arrival_ns <= after_ns) {
                self.deliver(&mut attributor, &mut keys, edge);
                next += 1;
            }
            let machine = &mut self.machines[number];
            let reading = machine.read(&mut self.rng, before_ns, after_ns);
            let shape_uj = &mut shape_uj[number];
            match self.sensor {
                Sensor::None => *shape_uj = 0,
                Sensor::True => *shape_uj = (machine.power.energy_pj(before_ns) / 1_000_000) as u64 + 1,
                Sensor::Nonsense => *shape_uj += pick(&mut self.rng, &[1, 7, 50_000_000, 1 << 40]),
            }
            let valid = reading.valid && (*shape_uj == 0 || !chance(&mut self.rng, 3));
            let reading = EnergyReading { valid, shape_uj: *shape_uj, ..reading };
            attributor.add_reading(number, before_ns, after_ns, &reading);
            attributor.settle(after_ns, &mut settled);
        }
        // Where a counter stands still, its time is unknown in the end.
        let end_ns = self.machines.iter().map(|machine| machine.reads[machine.reads.len() - 1].1).max();
        (1..=5).for_each(|turn| {
            attributor.settle(end_ns.expect("a domain") + turn * 1_000 * MS, &mut settled);
        });
        let number = |account: &Account| account.span.parse().expect("the number of a span");
        settled.into_iter().map(|(_, account)| (number(&account), account)).collect()
    }

    fn deliver(&self, attributor: &mut Attributor, keys: &mut [SpanKey], edge: &Edge) {
        let (now_ns, key) = (edge.arrival_ns, keys[edge.span]);
        let result = match edge.kind {
            EdgeKind::Open(weight) => {
                let domains = Some(self.scopes[edge.span].clone());
                let opening = NewSpan { weight, domains, ..NewSpan::new(edge.span.to_string(), edge.at_ns) };
                attributor.open(now_ns, opening).map(|key| keys[edge.span] = key)
            }
            EdgeKind::Weight(weight) => attributor.set_weight(now_ns, key, weight, edge.at_ns),
            EdgeKind::Phase => attributor.begin_phase(now_ns, key, "phase".into(), edge.at_ns),
            EdgeKind::Close => attributor.close(now_ns, key, edge.at_ns, BTreeMap::new(), false),
        };
        result.expect("the edges of a span are in order");
    }

    /// By span, the true energy of each of its domains at each of its edges, µJ, with the instant.
    fn truth(&self) -> Vec<Vec<(u64, Vec<f64>)>> {
        let mut edges: Vec<&Edge> = self.spans.iter().flatten().collect();
        edges.sort_by_key(|edge| edge.effect_ns);
        let mut weights = vec![0.0; self.spans.len()];
        let mut energy = vec![vec![0.0; self.machines.len()]; self.spans.len()];
        let mut at_edges = vec![Vec::new(); self.spans.len()];
        let mut last_ns = 0;
        for edge in edges {
            for (number, machine) in self.machines.iter().enumerate() {
                let rise_pj = machine.power.energy_pj(edge.effect_ns) - machine.power.energy_pj(last_ns);
                let uses = |span: usize| self.scopes[span].contains(&number);
                let open = |span: &usize| weights[*span] > 0.0 && uses(*span);
                let open: Vec<usize> = (0..weights.len()).filter(open).collect();
                let total: f64 = open.iter().map(|span| weights[*span]).sum();
                open.iter().for_each(|span| {
                    energy[*span][number] += rise_pj as f64 / 1e6 * weights[*span] / total;
                });
            }
            last_ns = edge.effect_ns;
            match edge.kind {
                EdgeKind::Open(weight) | EdgeKind::Weight(weight) => weights[edge.span] = weight,
                EdgeKind::Close => weights[edge.span] = 0.0,
                EdgeKind::Phase => {}
            }
            at_edges[edge.span].push((edge.effect_ns, energy[edge.span].clone()));
        }
        at_edges
    }
}

/// Simulates the machine of a seed, and compares its accounts with the truth.
pub fn simulate(seed: u64) -> Comparison {
    let mut simulation = Simulation::new(seed);
    let accounts = simulation.run();
    let truth = simulation.truth();
    let mut comparison = Comparison { machines: 1, worst_seed: seed, ..Comparison::default() };
    for (span, edges) in simulation.spans.iter().enumerate() {
        let Some(account) = accounts.get(&span) else {
            comparison.outside.push(format!("seed {seed}: span {span} did not settle"));
            continue;
        };
        let (opened, closed) = (edges[0].effect_ns, edges[edges.len() - 1].effect_ns);
        if (account.opened_ns, account.closed_ns) != (opened, Some(closed)) {
            comparison.outside.push(format!("seed {seed}: span {span} has its edges at other instants"));
        }
        compare(&mut comparison, &simulation, seed, account, &truth[span], &simulation.scopes[span]);
    }
    comparison
}

/// Compares each domain's share, the total, and each phase of an account.
fn compare(
    comparison: &mut Comparison,
    simulation: &Simulation,
    seed: u64,
    account: &Account,
    truth: &[(u64, Vec<f64>)],
    scope: &[usize],
) {
    let mut outside = false;
    let mut check = |what: &str, share: Option<u64>, error: Option<u64>, truth: f64| {
        let (share, error) = (share? as f64, error? as f64);
        let ratio = (share - truth).abs() / error;
        comparison.values += 1;
        if ratio > comparison.worst_ratio {
            comparison.worst_ratio = ratio;
        }
        if ratio > 1.0 && !outside {
            outside = true;
            let span = &account.span;
            comparison.outside.push(format!(
                "seed {seed}: span {span}, {what}: share {share} truth {truth:.3} error {error}"
            ));
        }
        Some(ratio)
    };
    let end = &truth[truth.len() - 1].1;
    for share in &account.domains {
        let domain = simulation.machines.iter().position(|machine| machine.domain.name == share.domain);
        let true_uj = end[domain.expect("a domain of the machine")];
        check(&share.domain, share.share_uj, share.error_uj, true_uj);
    }
    let at = |ns: u64| {
        let edge = truth.iter().find(|(at_ns, _)| *at_ns == ns).expect("an edge of the span");
        scope.iter().map(|domain| edge.1[*domain]).sum::<f64>()
    };
    for phase in &account.phases {
        let truth = at(phase.closed_ns.expect("it is closed")) - at(phase.opened_ns);
        check("phase", phase.share_uj, phase.error_uj, truth);
    }
    let total =
        check("total", account.share_uj, account.error_uj, scope.iter().map(|domain| end[*domain]).sum());
    match total {
        Some(ratio) => {
            comparison.accounts += 1;
            comparison.ratios[((ratio * 20.0) as usize).min(19)] += 1;
        }
        None => comparison.without_guarantee += 1,
    }
}
