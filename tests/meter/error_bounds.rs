//! The truth always lies within `error_uj`: random and on-off power, any sampling, single and concurrent spans,
//! changing weights. The truth is computed from the power profile, without any code of the attributor.

use std::collections::BTreeMap;

use crate::ground_truth::{GroundTruth, TestRng, WeightInterval, domain, true_shares_uj};
use proptest::prelude::*;
use wattspan::attribution::{AttributionSettings, Attributor, NewSpan, SpanKey};
use wattspan::domain::{DomainKind, EnergyReading, PowerLimit};
use wattspan_client::account::Account;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const CEILING_MW: u64 = 600_000;

fn bang_bang(rng: &mut TestRng) -> Vec<(u64, u64)> {
    (0..6000).map(|n| (rng.range(20 * US, 900 * US), if n % 2 == 0 { 0 } else { 600_000 })).collect()
}

fn wandering(rng: &mut TestRng) -> Vec<(u64, u64)> {
    (0..6000).map(|_| (rng.range(20 * US, 3 * MS), rng.range(2_000, 600_000))).collect()
}

/// PL4 and PL2 of a machine that keeps them.
const PEAK: PowerLimit = PowerLimit { limit_mw: CEILING_MW, window_ns: 0, origin: "PL4" };
const SHORT_TERM: PowerLimit = PowerLimit { limit_mw: 150_000, window_ns: 5 * MS, origin: "PL2" };

/// Full power in bursts, as long as the exponential mean over PL2's time constant stays below PL2; the mean of a constant
/// power is monotone, so that its ends suffice.
fn governed(rng: &mut TestRng) -> Vec<(u64, u64)> {
    let (mut mean_mw, mut steps) = (0.0, Vec::new());
    for _ in 0..6000 {
        let length_ns = rng.range(20 * US, 3 * MS);
        let weight = (-(length_ns as f64) / SHORT_TERM.window_ns as f64).exp();
        let after = |mw: u64| mean_mw * weight + mw as f64 * (1.0 - weight);
        let wanted_mw =
            [PEAK.limit_mw, rng.range(0, PEAK.limit_mw), SHORT_TERM.limit_mw][rng.range(0, 2) as usize];
        let mw = if after(wanted_mw) <= SHORT_TERM.limit_mw as f64 { wanted_mw } else { 0 };
        mean_mw = after(mw);
        steps.push((length_ns, mw));
    }
    steps
}

/// The weights of each span over time, and the machine.
struct SpanSchedule {
    truth: GroundTruth,
    /// The machine keeps PL2, and the attributor knows it.
    is_governed: bool,
    spans: Vec<Vec<WeightInterval>>,
    sample_ns: (u64, u64),
    ceiling: bool,
    interval_known: bool,
    /// A model instead of a counter: 300 W ± 300 W.
    modelled: bool,
    /// A power sensor in addition to the counter.
    sensor: PowerSensor,
}

/// The integrated power of a sensor.
#[derive(Clone, Copy)]
enum PowerSensor {
    None,
    /// The true energy.
    True,
    /// An arbitrary increasing value.
    Nonsense,
}

impl PowerSensor {
    fn shape_uj(self, truth: &GroundTruth, at_ns: u64, last_uj: u64, rng: &mut TestRng) -> u64 {
        match self {
            PowerSensor::None => 0,
            PowerSensor::True => u64::try_from(truth.energy_pj(at_ns) / 1_000_000).unwrap() + 1,
            PowerSensor::Nonsense => last_uj + 1 + [0, 7, 50_000_000, 1 << 40][rng.range(0, 3) as usize],
        }
    }
}

fn schedule(seed: u64) -> SpanSchedule {
    let mut rng = TestRng(seed | 1);
    let steps = if rng.range(0, 1) == 0 { bang_bang(&mut rng) } else { wandering(&mut rng) };
    let update_ns = [MS, 900 * US, 20 * MS, 100 * MS][rng.range(0, 3) as usize];
    let truth =
        GroundTruth::new(&steps, update_ns, rng.range(0, update_ns), [1, 61, 1000][rng.range(0, 2) as usize]);
    let crowd = [1, 2, 8, 64][rng.range(0, 3) as usize];
    let spans = (0..crowd)
        .map(|_| {
            let from = rng.range(150 * MS, 700 * MS);
            let mut held = Vec::new();
            let (mut at, turns) = (from, rng.range(0, 9).saturating_sub(6));
            for _ in 0..=turns {
                let to = at + rng.range(10 * US, 200 * MS);
                let weight = [1.0, 1.0, 0.0, 3.0, 0.25, 17.0][rng.range(0, 5) as usize];
                held.push(WeightInterval { from_ns: at, to_ns: to, weight });
                at = to;
            }
            held
        })
        .collect();
    let low = rng.range(100 * US, 2 * MS);
    let is_governed = rng.range(0, 3) == 0;
    let truth = if is_governed {
        GroundTruth::new(&governed(&mut rng), update_ns, truth.phase_ns, truth.quantum_uj)
    } else {
        truth
    };
    SpanSchedule {
        truth,
        is_governed,
        spans,
        sample_ns: (low, low + rng.range(0, 3 * MS)),
        ceiling: rng.range(0, 1) == 0,
        interval_known: rng.range(0, 1) == 0,
        modelled: rng.range(0, 4) == 0,
        sensor: [PowerSensor::None, PowerSensor::True, PowerSensor::Nonsense][rng.range(0, 2) as usize],
    }
}

/// Feeds the schedule to an attributor as a sampler and clients would, with each message at its edge.
fn run(schedule: &SpanSchedule, seed: u64) -> Vec<Account> {
    let mut rng = TestRng(seed.rotate_left(17) | 1);
    let ceiling = schedule.ceiling.then_some(CEILING_MW);
    let domain = domain("package-0", DomainKind::Package, schedule.truth.quantum_uj, ceiling);
    let mut attributor = Attributor::new(vec![domain], AttributionSettings::default());
    if schedule.is_governed {
        attributor.domains().set_power_limits(0, &[PEAK, SHORT_TERM]);
    }
    if schedule.interval_known {
        attributor.domains().set_update_interval(0, schedule.truth.update_ns);
    }
    let mut edges: Vec<(u64, usize, usize)> = Vec::new();
    for (span, held) in schedule.spans.iter().enumerate() {
        edges.extend(held.iter().enumerate().map(|(turn, held)| (held.from_ns, span, turn)));
        edges.push((held.last().unwrap().to_ns, span, held.len()));
    }
    edges.sort_unstable();
    let (mut keys, mut out, mut now, mut next) = (BTreeMap::<usize, SpanKey>::new(), Vec::new(), MS, 0);
    let mut shape_uj = 0;
    while now < 3_000 * MS && (out.len() < schedule.spans.len() || next < edges.len()) {
        now += rng.range(schedule.sample_ns.0, schedule.sample_ns.1);
        while let Some(&(at, span, turn)) = edges.get(next).filter(|edge| edge.0 <= now) {
            let held = &schedule.spans[span];
            if turn == 0 {
                let opening = NewSpan {
                    span_id: span.to_string(),
                    name: String::new(),
                    attributes: BTreeMap::new(),
                    weight: held[0].weight,
                    domains: None,
                    at_ns: at,
                    uid: 0,
                    opened_unix_ns: 0,
                    subject: 0,
                };
                keys.insert(span, attributor.open(at, opening).unwrap());
                attributor
                    .begin_phase(at, keys[&span], "first".into(), at + held[0].to_ns.abs_diff(at) / 3)
                    .unwrap();
            } else if let Some(held) = held.get(turn) {
                // Half of the changes of weight lie inside a phase.
                if turn % 2 == 1 {
                    attributor.begin_phase(at, keys[&span], format!("turn {turn}"), at).unwrap();
                }
                attributor.set_weight(at, keys[&span], held.weight, at).unwrap();
            } else {
                attributor.close(at, keys[&span], at, BTreeMap::new(), false).unwrap();
            }
            next += 1;
        }
        // The counter is read at some instant between the two clock reads.
        let window_ns = rng.range(1, 60 * US);
        let reading = if schedule.modelled {
            let energy_uj = now * 300 / 1_000;
            EnergyReading {
                valid: true,
                energy_uj,
                uncertainty_uj: energy_uj,
                stamp_ns: now,
                ..EnergyReading::default()
            }
        } else {
            schedule.truth.reading(now + rng.range(0, window_ns))
        };
        shape_uj = schedule.sensor.shape_uj(&schedule.truth, now, shape_uj, &mut rng);
        // A counter that is expensive to read is skipped in some of the sensor's reads.
        let valid = shape_uj == 0 || rng.range(0, 2) > 0;
        attributor.add_reading(0, now, now + window_ns, &EnergyReading { valid, shape_uj, ..reading });
        now += window_ns;
        attributor.settle(now, &mut out);
    }
    let mut accounts: Vec<Account> = out.into_iter().map(|(_, account)| account).collect();
    accounts.sort_by_key(|account| account.span.parse::<usize>().unwrap());
    accounts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160 * std::env::var("WATTSPAN_CASES").map_or(1, |n| n.parse().unwrap_or(1)), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_truth_lies_within_the_error(seed: u64) {
        let schedule = schedule(seed);
        let accounts = run(&schedule, seed);
        prop_assert_eq!(accounts.len(), schedule.spans.len());
        let truths = true_shares_uj(&schedule.truth, &schedule.spans);
        for (account, truth) in accounts.iter().zip(truths) {
            let share = account.share_uj.unwrap() as f64;
            let error = account.error_uj.unwrap() as f64;
            prop_assert!(
                (share - truth).abs() <= error,
                "span {}: share {share} truth {truth} error {error}", account.span
            );
        }
    }
}

/// The true share of each phase of an account, with the span cut at the phase boundaries.
fn true_phases_uj(schedule: &SpanSchedule, account: &Account, span: usize) -> Vec<f64> {
    account
        .phases
        .iter()
        .map(|phase| {
            let (from, to) = (phase.opened_ns, phase.closed_ns.unwrap());
            let mut spans = schedule.spans.clone();
            let clip = |held: &WeightInterval| WeightInterval {
                from_ns: held.from_ns.max(from),
                to_ns: held.to_ns.min(to),
                ..*held
            };
            let inside: Vec<WeightInterval> =
                spans[span].iter().map(clip).filter(|held| held.from_ns < held.to_ns).collect();
            let outside: Vec<WeightInterval> = spans[span]
                .iter()
                .flat_map(|held| {
                    let before = WeightInterval { to_ns: held.to_ns.min(from), ..*held };
                    let after = WeightInterval { from_ns: held.from_ns.max(to), ..*held };
                    [before, after]
                })
                .filter(|held| held.from_ns < held.to_ns)
                .collect();
            spans[span] = inside;
            spans.push(outside);
            true_shares_uj(&schedule.truth, &spans)[span]
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_truth_of_each_phase_lies_within_its_error(seed: u64) {
        let schedule = schedule(seed);
        let accounts = run(&schedule, seed);
        for (span, account) in accounts.iter().enumerate().take(8) {
            prop_assert!(account.phases.len() >= 2);
            for (phase, truth) in account.phases.iter().zip(true_phases_uj(&schedule, account, span)) {
                let share = phase.share_uj.unwrap() as f64;
                let error = phase.error_uj.unwrap() as f64;
                prop_assert!(
                    (share - truth).abs() <= error,
                    "span {span} {}: share {share} truth {truth} error {error}", phase.name
                );
            }
        }
    }
}

#[test]
fn the_error_is_no_larger_than_it_need_be() {
    // Constant 100 W, a counter that moves every 1 ms, read every 250 us: the energy of a lone span of 500 ms is known
    // to about one counter step at each end. A bound of the whole energy would hold too, but would be useless.
    let truth = GroundTruth::new(&[(1, 100_000)], MS, 0, 1);
    let spans = vec![vec![WeightInterval { from_ns: 200_300 * US, to_ns: 700_700 * US, weight: 1.0 }]];
    let schedule = SpanSchedule {
        is_governed: false,
        truth,
        spans,
        sample_ns: (250 * US, 250 * US),
        ceiling: false,
        interval_known: true,
        modelled: false,
        sensor: PowerSensor::None,
    };
    let account = run(&schedule, 5).remove(0);
    let (share, error) = (account.share_uj.unwrap(), account.error_uj.unwrap());
    assert!(error <= 2 * 150_000, "error {error} uJ is more than 1.5 steps of 100 mJ at each end");
    assert!(share.abs_diff(50_040_000) <= 30_000, "share {share}");
}

/// The accounts of spans on a counter that moves every 100 ms, where nearly all energy of a step is used right after its
/// begin. The counter shows it as spread evenly over the step.
fn with_a_burst_at_200_ms(spans: Vec<Vec<WeightInterval>>) -> (SpanSchedule, Vec<Account>) {
    let truth = GroundTruth::new(&[(200_050 * US, 10), (100 * US, 10_000_000), (1, 10)], 100 * MS, 0, 1);
    let schedule = SpanSchedule {
        is_governed: false,
        truth,
        spans,
        sample_ns: (MS, MS),
        ceiling: false,
        interval_known: true,
        modelled: false,
        sensor: PowerSensor::None,
    };
    let accounts = run(&schedule, 3);
    (schedule, accounts)
}

fn constant(from_us: u64, to_us: u64, weight: f64) -> WeightInterval {
    WeightInterval { from_ns: from_us * US, to_ns: to_us * US, weight }
}

#[test]
fn the_truth_lies_within_the_error_of_a_span_that_changes_its_weight_between_edges_of_others() {
    // The span's fraction rises from 1/3 to 1/2, by its own change of weight to 2/3, and to 1, all after the burst.
    let (schedule, accounts) = with_a_burst_at_200_ms(vec![
        vec![constant(150_000, 200_300, 1.0), constant(200_300, 450_000, 2.0)],
        vec![constant(150_000, 200_200, 1.0)],
        vec![constant(150_000, 200_400, 1.0)],
    ]);
    for (account, truth) in accounts.iter().zip(true_shares_uj(&schedule.truth, &schedule.spans)) {
        let (share, error) = (account.share_uj.unwrap() as f64, account.error_uj.unwrap() as f64);
        assert!(
            (share - truth).abs() <= error,
            "{}: share {share} truth {truth} error {error}",
            account.span
        );
    }
    // The bound is attained: nothing smaller than (1 - 1/3) of the burst's 1 J would hold.
    assert!(accounts[0].error_uj.unwrap() < 670_000, "{:?}", accounts[0].error_uj);
}

#[test]
fn the_truth_lies_within_the_error_of_a_phase_with_a_change_of_weight() {
    // The second phase has the change, at turn 2; the other span outweighs this one.
    let (schedule, accounts) = with_a_burst_at_200_ms(vec![
        vec![
            constant(150_000, 160_000, 1.0),
            constant(160_000, 200_300, 1.0),
            constant(200_300, 350_000, 2.0),
            constant(350_000, 450_000, 2.0),
        ],
        vec![constant(150_000, 450_000, 9.0)],
    ]);
    let mut errors = Vec::new();
    for (phase, truth) in accounts[0].phases.iter().zip(true_phases_uj(&schedule, &accounts[0], 0)) {
        let (share, error) = (phase.share_uj.unwrap() as f64, phase.error_uj.unwrap() as f64);
        assert!((share - truth).abs() <= error, "{}: share {share} truth {truth} error {error}", phase.name);
        errors.push(phase.error_uj.unwrap());
    }
    // Only the phase with the burst has a large error.
    assert_eq!(errors.iter().map(|error| *error > 1_000).collect::<Vec<_>>(), [false, false, true, false]);
}

#[test]
fn a_long_span_among_many_short_ones_has_a_correct_and_useful_error() {
    let truth = GroundTruth::new(&[(1, 100_000)], MS, 0, 1);
    let mut spans = vec![vec![WeightInterval { from_ns: 100 * MS, to_ns: 1_100 * MS, weight: 1.0 }]];
    for n in 0..400 {
        let from_ns = 110 * MS + n * 2_350 * US;
        spans.push(vec![WeightInterval { from_ns, to_ns: from_ns + 30 * MS, weight: 1.0 }]);
    }
    let schedule = SpanSchedule {
        is_governed: false,
        truth,
        spans,
        sample_ns: (500 * US, 500 * US),
        ceiling: false,
        interval_known: true,
        modelled: false,
        sensor: PowerSensor::None,
    };
    let accounts = run(&schedule, 11);
    let truths = true_shares_uj(&schedule.truth, &schedule.spans);
    let long = &accounts[0];
    let (share, error) = (long.share_uj.unwrap() as f64, long.error_uj.unwrap() as f64);
    assert!((share - truths[0]).abs() <= error);
    assert!(error < share * 0.25, "error {error} of share {share}");
}

#[test]
fn power_in_bursts_beside_the_edges_attains_the_bound_and_does_not_pass_it() {
    // Each 20 ms step of the counter holds one burst of 2 J. In the step where the span opens (at 5 % of it) the
    // burst comes just before; in the step where it closes (at 95 %) it comes just after: the worst case.
    let (step, burst) = (20 * MS, 10 * US);
    let early = [(burst, 200_000_000), (step - burst, 0)];
    let late = [(step - burst, 0), (burst, 200_000_000)];
    let mut steps = Vec::new();
    for n in 0..50 {
        steps.extend(if n < 20 { early } else { late });
    }
    steps.push((1, 0));
    let truth = GroundTruth::new(&steps, step, 0, 1);
    let spans =
        vec![vec![WeightInterval { from_ns: 10 * step + MS, to_ns: 30 * step + 19 * MS, weight: 1.0 }]];
    let schedule = SpanSchedule {
        is_governed: false,
        truth,
        spans,
        sample_ns: (20 * US, 20 * US),
        ceiling: false,
        interval_known: true,
        modelled: false,
        sensor: PowerSensor::None,
    };
    let account = run(&schedule, 3).remove(0);
    let off = (account.share_uj.unwrap() as f64 - true_shares_uj(&schedule.truth, &schedule.spans)[0]).abs();
    let error = account.error_uj.unwrap() as f64;
    assert!(off <= error, "off by {off}, error {error}");
    assert!(off >= 0.97 * error, "off by {off}, error {error}: the bound is looser than the worst case");
}

#[test]
fn a_models_uncertainty_of_the_idle_time_before_a_span_is_excluded() {
    // 300 W ± 300 W, read once per second until a span opens, which triggers a reading 50 us later.
    let mut attributor = Attributor::new(
        vec![domain("cpu", DomainKind::Cpu, 1, Some(CEILING_MW))],
        AttributionSettings::default(),
    );
    let mut out = Vec::new();
    let mut read = |attributor: &mut Attributor, at_ns: u64| {
        let energy_uj = at_ns * 300 / 1_000;
        let reading = EnergyReading {
            valid: true,
            energy_uj,
            uncertainty_uj: energy_uj,
            stamp_ns: at_ns,
            ..EnergyReading::default()
        };
        attributor.add_reading(0, at_ns, at_ns + US, &reading);
        attributor.settle(at_ns + 2 * US, &mut out);
    };
    for second in 1..=5 {
        read(&mut attributor, second * 1_000 * MS);
    }
    let opened_ns = 5_900 * MS;
    let opening = NewSpan::new("first", opened_ns);
    let key = attributor.open(opened_ns, opening).unwrap();
    read(&mut attributor, opened_ns + 50 * US);
    for tick in 1..=200 {
        if tick == 100 {
            attributor
                .close(opened_ns + 100 * MS, key, opened_ns + 100 * MS, BTreeMap::new(), false)
                .unwrap();
        }
        read(&mut attributor, opened_ns + 50 * US + tick * MS);
    }
    let account = &out[0].1;
    let (share, error) = (account.share_uj.unwrap(), account.error_uj.unwrap());
    assert!(share.abs_diff(30_000_000) < 100_000, "{share}");
    // 30 J for the span's own 100 ms, and a little for its edges; the uncertainty of the 0.9 s before it is 270 J.
    assert!((30_000_000 - 100_000..32_000_000).contains(&error), "{error}");
}

#[test]
fn the_first_reading_may_be_as_old_as_the_counters_step() {
    // 400 W, a counter that moves every 100 ms, first read half-way through a step: the value is 20 J below the truth.
    // A span that opens right after it must allow for that, with or without a ceiling.
    for ceiling_mw in [None, Some(CEILING_MW)] {
        let truth = GroundTruth::new(&[(1, 400_000)], 100 * MS, 0, 1);
        let mut attributor = Attributor::new(
            vec![domain("gpu-0", DomainKind::Gpu, 1, ceiling_mw)],
            AttributionSettings::default(),
        );
        // Closes at a counter update, so that this edge adds no uncertainty.
        let (opened_ns, closed_ns) = (50_950 * US, 200 * MS);
        let (mut out, mut key) = (Vec::new(), None);
        for tick in 0..400 {
            let at_ns = 50_900 * US + tick * MS;
            attributor.add_reading(0, at_ns - US, at_ns, &truth.reading(at_ns));
            if key.is_none() {
                let opening = NewSpan::new("early", opened_ns);
                key = Some(attributor.open(opened_ns, opening).unwrap());
            }
            if at_ns > closed_ns && attributor.open_span_count() == 1 {
                attributor.close(at_ns, key.unwrap(), closed_ns, BTreeMap::new(), false).unwrap();
            }
            attributor.settle(at_ns + US, &mut out);
        }
        let account: &Account = &out[0].1;
        let held = vec![WeightInterval { from_ns: opened_ns, to_ns: closed_ns, weight: 1.0 }];
        let off = (account.share_uj.unwrap() as f64 - true_shares_uj(&truth, &[held])[0]).abs();
        let error = account.error_uj.unwrap() as f64;
        assert!(off <= error, "ceiling {ceiling_mw:?}: off by {off}, error {error}");
    }
}

/// The edges beside which a machine uses 380 W for 0.5 ms.
#[derive(Clone, Copy)]
enum Bursts {
    BeforeClose,
    BeforeEdges,
    AfterEdges,
}

/// A span of 51 ms after a quiet second on a machine with 10 W at rest and such bursts, whose counter moves every 5 ms. Returns
/// the distance from the truth and the error.
fn span_with_bursts_at_its_edges(limits: &[PowerLimit], bursts: Bursts, phase_ns: u64) -> (f64, f64) {
    const BURST_NS: u64 = 500 * US;
    let (opened_ns, closed_ns) = (1_500 * MS, 1_550_800 * US);
    let first_ns = if matches!(bursts, Bursts::AfterEdges) { opened_ns } else { opened_ns - BURST_NS };
    let first_mw = if matches!(bursts, Bursts::BeforeClose) { 10_000 } else { 380_000 };
    let rest_ns = closed_ns - opened_ns - BURST_NS;
    let steps =
        [(first_ns, 10_000), (BURST_NS, first_mw), (rest_ns, 10_000), (BURST_NS, 380_000), (MS, 10_000)];
    let truth = GroundTruth::new(&steps, 5 * MS, phase_ns, 61);
    let described = domain("package-0", DomainKind::Package, 61, Some(2_000_000));
    let mut attributor = Attributor::new(vec![described], AttributionSettings::default());
    attributor.domains().set_power_limits(0, limits);
    // Once a second at rest, then at the message and each 0.2 ms.
    let reads = [500 * MS].into_iter().chain((0..400).map(|tick| opened_ns + 300 * US + tick * 200 * US));
    let (mut out, mut key) = (Vec::new(), None);
    for at_ns in reads {
        if at_ns > opened_ns && key.is_none() {
            key = Some(attributor.open(opened_ns, NewSpan::new("burst", opened_ns)).unwrap());
        }
        if at_ns > closed_ns && attributor.open_span_count() == 1 {
            attributor.close(at_ns, key.unwrap(), closed_ns, BTreeMap::new(), false).unwrap();
        }
        attributor.add_reading(0, at_ns, at_ns + 5 * US, &truth.reading(at_ns));
        attributor.settle(at_ns + 5 * US, &mut out);
    }
    let account: &Account = &out[0].1;
    let true_uj = (truth.energy_pj(closed_ns) - truth.energy_pj(opened_ns)) as f64 / 1e6;
    ((account.share_uj.unwrap() as f64 - true_uj).abs(), account.error_uj.unwrap() as f64)
}

#[test]
fn an_excess_over_pl2_at_an_edge_stays_within_the_bound_of_pl4() {
    let limit = |limit_mw, window_ns| PowerLimit { limit_mw, window_ns, origin: "test" };
    let machine = [limit(400_000, 0), limit(100_000, 10 * MS), limit(80_000, 28_000 * MS)];
    let (mut outside_with_pl2, mut errors) = (0, [0.0, 0.0]);
    for phase_ns in (0..5 * MS).step_by(50 * US as usize) {
        for bursts in [Bursts::BeforeClose, Bursts::BeforeEdges, Bursts::AfterEdges] {
            let (off, error) = span_with_bursts_at_its_edges(&machine, bursts, phase_ns);
            assert!(off <= error, "phase {phase_ns}: off by {off}, error {error}");
            errors[0] += error;
            errors[1] += span_with_bursts_at_its_edges(&[limit(2_000_000, 0)], bursts, phase_ns).1;
            let (off, error) = span_with_bursts_at_its_edges(&[limit(100_000, 0)], bursts, phase_ns);
            outside_with_pl2 += usize::from(off > error);
        }
    }
    assert!(outside_with_pl2 > 0, "the test is not sharp: PL2 as a limit of every instant holds too");
    assert!(errors[0] * 2.0 < errors[1], "the machine's limits make the bound no narrower: {errors:?}");
}
