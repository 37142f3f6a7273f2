//! Conservation of energy: measured = attributed + unattributed, in integers, for every domain, under random schedules,
//! gaps, resets and cancelled spans. Also: accounts do not depend on the order of messages.

use std::collections::BTreeMap;

use crate::ground_truth::{GroundTruth, TestRng, domain};
use proptest::prelude::*;
use wattspan::attribution::{AttributionSettings, Attributor, NewSpan, SpanKey};
use wattspan::domain::{DomainKind, EnergyReading};
use wattspan_client::account::Account;

const MS: u64 = 1_000_000;

fn opening(name: &str, at_ns: u64, weight: f64, domains: Option<Vec<usize>>) -> NewSpan {
    NewSpan {
        span_id: name.into(),
        name: String::new(),
        attributes: BTreeMap::new(),
        weight,
        domains,
        at_ns,
        uid: 1000,
        opened_unix_ns: 0,
        subject: 0,
    }
}

fn random_truth(rng: &mut TestRng) -> GroundTruth {
    let steps: Vec<(u64, u64)> =
        (0..200).map(|_| (rng.range(MS / 10, 20 * MS), rng.range(1_000, 400_000))).collect();
    GroundTruth::new(&steps, rng.range(MS / 2, 20 * MS), rng.range(0, MS), rng.range(1, 100))
}

fn assert_balanced(attributor: &Attributor) {
    for balance in attributor.balance() {
        assert_eq!(
            balance.measured_uj,
            balance.attributed_uj + balance.unattributed_uj,
            "{} does not balance",
            balance.domain
        );
    }
}

/// Runs a random schedule of opens, closes, phases, weights and cancels on three domains with different intervals, with
/// failing readings and counter resets; the last domain may appear while spans are open. Returns every settled account.
fn run_random_schedule(seed: u64, faults: bool) -> (Attributor, Vec<Account>) {
    let mut rng = TestRng(seed | 1);
    let truths: Vec<GroundTruth> = (0..3).map(|_| random_truth(&mut rng)).collect();
    let mut domains = vec![
        domain("package-0", DomainKind::Package, truths[0].quantum_uj, None),
        domain("dram-0", DomainKind::Dram, truths[1].quantum_uj, Some(500_000)),
        domain("gpu-0", DomainKind::Gpu, truths[2].quantum_uj, None),
    ];
    let comes_at = rng.range(0, 1000) as u32;
    let late = if comes_at < 200 { None } else { domains.pop() };
    let mut attributor = Attributor::new(
        domains,
        AttributionSettings { counter_timeout_ns: 200 * MS, ..AttributionSettings::default() },
    );
    let mut late = late.map(|domain| (comes_at, domain));
    let (mut open, mut out, mut epochs) = (Vec::<SpanKey>::new(), Vec::new(), [0_u32; 3]);
    let mut now = MS;
    for turn in 0..1500_u32 {
        now += rng.range(MS / 10, 2 * MS);
        if let Some((_, domain)) = late.take_if(|(comes_at, _)| *comes_at == turn) {
            attributor.domains().add_domain(domain);
        }
        for (index, truth) in truths.iter().enumerate() {
            if faults && rng.range(0, 400) == 0 {
                epochs[index] += 1;
            }
            let valid = !faults || rng.range(0, 20) != 0;
            let reading = EnergyReading { valid, epoch: epochs[index], ..truth.reading(now) };
            attributor.add_reading(index, now - 3_000, now + 3_000, &reading);
        }
        apply_random_edge(&mut rng, &mut attributor, &mut open, turn, now);
        if rng.range(0, 3) == 0 {
            attributor.settle(now, &mut out);
            assert_balanced(&attributor);
        }
    }
    for key in open.drain(..) {
        attributor.close(now, key, now, BTreeMap::new(), false).unwrap();
    }
    for _ in 0..400 {
        now += MS;
        for (index, truth) in truths.iter().enumerate() {
            attributor.add_reading(
                index,
                now,
                now + 1,
                &EnergyReading { epoch: epochs[index], ..truth.reading(now) },
            );
        }
        attributor.settle(now, &mut out);
    }
    (attributor, out.into_iter().map(|(_, account)| account).collect())
}

/// Opens, closes, weighs, marks or cancels a random span at `now` or some milliseconds earlier.
fn apply_random_edge(
    rng: &mut TestRng,
    attributor: &mut Attributor,
    open: &mut Vec<SpanKey>,
    turn: u32,
    now: u64,
) {
    let back = rng.range(0, 9 * MS);
    let at = now.saturating_sub(back);
    match rng.range(0, 9) {
        0..=3 => {
            let weight = [0.0, 1.0, 1.0, 2.5, 1e6, 0.001][rng.range(0, 5) as usize];
            let scope = (rng.range(0, 4) == 0).then(|| vec![rng.range(0, 2) as usize]);
            open.push(attributor.open(now, opening(&format!("s{turn}"), at, weight, scope)).unwrap());
        }
        4..=6 if !open.is_empty() => {
            let key = open.swap_remove(rng.next_u64() as usize % open.len());
            if attributor.close(now, key, at, BTreeMap::new(), false).is_err() {
                attributor.close(now, key, now, BTreeMap::new(), false).unwrap();
            }
        }
        7 if !open.is_empty() => {
            let key = open[rng.next_u64() as usize % open.len()];
            attributor.set_weight(now, key, rng.range(1, 900) as f64 / 100.0, now).unwrap();
        }
        8 if !open.is_empty() => {
            let key = open[rng.next_u64() as usize % open.len()];
            attributor.begin_phase(now, key, format!("p{turn}"), now).unwrap();
        }
        9 if !open.is_empty() => {
            let key = open.swap_remove(rng.next_u64() as usize % open.len());
            attributor.cancel(now, key, now).unwrap();
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48 * std::env::var("WATTSPAN_CASES").map_or(1, |n| n.parse().unwrap_or(1)), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_joule_is_attributed_or_unattributed_and_none_twice(seed: u64, faults: bool) {
        let (attributor, accounts) = run_random_schedule(seed, faults);
        assert!(!attributor.is_busy(), "a span never settled");
        for (index, balance) in attributor.balance().into_iter().enumerate() {
            prop_assert_eq!(balance.measured_uj, balance.attributed_uj + balance.unattributed_uj);
            let attributed_uj: u64 = accounts
                .iter()
                .flat_map(|account| &account.domains)
                .filter(|share| share.domain == balance.domain)
                .map(|share| share.share_uj.unwrap_or(0))
                .sum();
            // Nothing is open, so the accounts hold all attributed energy. A span without any valid reading has no
            // share, and no energy is attributed to it.
            prop_assert_eq!(attributed_uj, balance.attributed_uj, "domain {}", index);
        }
    }

    #[test]
    fn phases_add_up_to_their_span(seed: u64) {
        let (_, accounts) = run_random_schedule(seed, false);
        let mut checked = 0;
        for account in accounts.iter().filter(|account| !account.phases.is_empty()) {
            let sum: Option<u64> = account.phases.iter().map(|phase| phase.share_uj).sum();
            prop_assert_eq!(sum, account.share_uj);
            let ends = account.phases.last().and_then(|phase| phase.closed_ns);
            prop_assert_eq!(ends, account.closed_ns);
            checked += 1;
        }
        prop_assert!(checked > 0);
    }
}

#[test]
fn a_counter_with_absurd_values_does_not_break_the_balance() {
    // It goes from 0 to its largest value again and again: 2^64 µJ each time.
    let mut attributor = Attributor::new(
        vec![domain("package-0", DomainKind::Package, 1, None)],
        AttributionSettings::default(),
    );
    let (mut out, mut keys) = (Vec::new(), Vec::new());
    for tick in 1..200_u64 {
        let now = tick * MS;
        let energy_uj = if tick % 2 == 0 { u64::MAX } else { 0 };
        let reading = EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
        attributor.add_reading(0, now - 1_000, now, &reading);
        if tick % 20 == 0 {
            // The smallest weight, alone: the largest energy per unit of weight.
            keys.push(attributor.open(now, opening("s", now, 1.0 / 65_536.0, None)).unwrap());
        }
        if tick % 20 == 10 {
            keys.drain(..).for_each(|key| attributor.close(now, key, now, BTreeMap::new(), false).unwrap());
        }
        attributor.settle(now, &mut out);
        assert_balanced(&attributor);
    }
    assert!(out.len() >= 8);
    let attributed_uj: u64 = out.iter().map(|(_, account)| account.domains[0].share_uj.unwrap_or(0)).sum();
    assert!(attributor.balance()[0].measured_uj >= 1 << 63 && attributed_uj <= 1 << 63);
}

/// The same edges, delivered in another order within the horizon, produce the same accounts.
#[test]
fn an_account_does_not_depend_on_the_order_of_messages() {
    let deliver = |shuffle: u64| -> Vec<Account> {
        let mut rng = TestRng(99);
        let truth = random_truth(&mut rng);
        let mut attributor = Attributor::new(
            vec![domain("package-0", DomainKind::Package, truth.quantum_uj, None)],
            AttributionSettings::default(),
        );
        let mut edges: Vec<(u64, usize, bool)> = Vec::new();
        for span in 0..300_usize {
            let from = rng.range(10 * MS, 800 * MS);
            edges.push((from, span, true));
            edges.push((from + rng.range(30 * MS, 100 * MS), span, false));
        }
        // Each message arrives up to 9 ms after its edge, with a new delay in each delivery.
        let mut late = TestRng(shuffle);
        let mut arrivals: Vec<(u64, u64, usize, bool)> =
            edges.iter().map(|&(at, span, open)| (at + late.range(0, 9 * MS), at, span, open)).collect();
        arrivals.sort_unstable();
        let (mut keys, mut out, mut next) = (BTreeMap::new(), Vec::new(), 0);
        for now in (MS..1_200 * MS).step_by(MS as usize) {
            attributor.add_reading(0, now - 1_000, now, &truth.reading(now));
            while let Some(&(arrived, at, span, open)) = arrivals.get(next).filter(|arrival| arrival.0 <= now)
            {
                if open {
                    let weight = 1.0 + span as f64 / 7.0;
                    let name = format!("{span:03}");
                    keys.insert(span, attributor.open(arrived, opening(&name, at, weight, None)).unwrap());
                } else {
                    attributor.close(arrived, keys[&span], at, BTreeMap::new(), false).unwrap();
                }
                next += 1;
            }
            attributor.settle(now, &mut out);
        }
        assert_eq!(out.len(), 300);
        let mut accounts: Vec<Account> = out.into_iter().map(|(_, account)| account).collect();
        accounts.sort_by(|a, b| a.span.cmp(&b.span));
        accounts
    };
    let first = deliver(1);
    for shuffle in 2..12 {
        assert_eq!(first, deliver(shuffle));
    }
    assert!(first.iter().any(|account| account.peak_concurrency > 3));
}

#[test]
fn an_edge_older_than_the_horizon_is_moved_and_reported() {
    let truth = GroundTruth::new(&[(1, 100_000)], MS, 0, 1);
    let mut attributor = Attributor::new(
        vec![domain("package-0", DomainKind::Package, 1, None)],
        AttributionSettings::default(),
    );
    let mut out = Vec::new();
    for now in (MS..=500 * MS).step_by(MS as usize) {
        attributor.add_reading(0, now - 100, now, &truth.reading(now));
        attributor.settle(now, &mut out);
    }
    let key = attributor.open(500 * MS, opening("late", 450 * MS, 1.0, None)).unwrap();
    attributor.close(520 * MS, key, 515 * MS, BTreeMap::new(), false).unwrap();
    for now in (501 * MS..=600 * MS).step_by(MS as usize) {
        attributor.add_reading(0, now - 100, now, &truth.reading(now));
        attributor.settle(now, &mut out);
    }
    let account = &out[0].1;
    assert_eq!(account.opened_ns, 490 * MS);
    assert_eq!(account.moved_ns, 40 * MS);
    let share = account.share_uj.unwrap();
    assert!(share.abs_diff(2_500_000) <= account.error_uj.unwrap(), "{share}");
}

#[test]
fn moved_ns_sums_all_edges_that_were_moved_to_the_horizon() {
    let truth = GroundTruth::new(&[(1, 100_000)], MS, 0, 1);
    let mut attributor = Attributor::new(
        vec![domain("package-0", DomainKind::Package, 1, None)],
        AttributionSettings::default(),
    );
    let mut out = Vec::new();
    let mut pass = |attributor: &mut Attributor, from: u64, to: u64| {
        for now in (from..=to).step_by(MS as usize) {
            attributor.add_reading(0, now - 100, now, &truth.reading(now));
            attributor.settle(now, &mut out);
        }
        std::mem::take(&mut out)
    };
    pass(&mut attributor, MS, 500 * MS);
    // The horizon is 10 ms: the opening moves by 40 ms, the weight by 55, the phase by 30, the close by 2.
    let key = attributor.open(500 * MS, opening("late", 450 * MS, 1.0, None)).unwrap();
    pass(&mut attributor, 501 * MS, 520 * MS);
    attributor.set_weight(520 * MS, key, 2.0, 455 * MS).unwrap();
    attributor.begin_phase(520 * MS, key, "decode".into(), 480 * MS).unwrap();
    assert_eq!(attributor.requested_ns(key), Some(450 * MS), "moves of other edges do not move the opening");
    assert_eq!(attributor.account(520 * MS, key).unwrap().moved_ns, (40 + 55 + 30) * MS);
    // In time: nothing is added.
    attributor.set_weight(520 * MS, key, 1.0, 515 * MS).unwrap();
    attributor.close(540 * MS, key, 528 * MS, BTreeMap::new(), false).unwrap();
    let settled = pass(&mut attributor, 521 * MS, 600 * MS);
    assert_eq!(settled[0].1.moved_ns, (40 + 55 + 30 + 2) * MS);
    assert_eq!(settled[0].1.phases.last().unwrap().opened_ns, 510 * MS);
    // An edge between the requested and the moved opening lies at the opening.
    let key = attributor.open(600 * MS, opening("again", 550 * MS, 1.0, None)).unwrap();
    attributor.set_weight(600 * MS, key, 2.0, 570 * MS).unwrap();
    assert_eq!(attributor.account(600 * MS, key).unwrap().moved_ns, (40 + 20) * MS);
}
