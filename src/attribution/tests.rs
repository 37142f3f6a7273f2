//! Edges that lie ahead of now, by the millisecond that clocks of two CPUs may differ.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::domain::{DomainKind, Grade};

const NOW_NS: u64 = 5_000_000_000;
const AHEAD_NS: u64 = NOW_NS + 900_000;

fn opened_ahead() -> (Attributor, SpanKey) {
    let mut attributor = Attributor::new(Vec::new(), AttributionSettings::default());
    let key = attributor.open(NOW_NS, NewSpan::new("ahead", AHEAD_NS)).unwrap();
    (attributor, key)
}

#[test]
fn an_abandoned_span_that_opens_later_closes_at_its_opening() {
    let (mut attributor, key) = opened_ahead();
    assert_eq!(attributor.requested_ns(key), Some(AHEAD_NS));
    attributor.close(NOW_NS + 1, key, NOW_NS + 1, BTreeMap::new(), true).unwrap();
    assert_eq!((attributor.open_span_count(), attributor.requested_ns(key)), (0, None));
    let account = attributor.account(NOW_NS + 1, key).unwrap();
    assert_eq!((account.opened_ns, account.closed_ns, account.moved_ns), (AHEAD_NS, Some(AHEAD_NS), 0));
}

#[test]
fn closing_before_the_opening_is_refused() {
    let (mut attributor, key) = opened_ahead();
    let error = attributor.close(NOW_NS + 1, key, NOW_NS + 1, BTreeMap::new(), false).unwrap_err();
    assert_eq!(error, AttributionError::InvalidTime { earliest_ns: AHEAD_NS, latest_ns: NOW_NS + 1 });
    assert_eq!(attributor.open_span_count(), 1);
}

/// Feeds a counter that moves every millisecond, and settles, up to an instant.
fn settle_until(attributor: &mut Attributor, now_ns: &mut u64, end_ns: u64) -> Vec<(SpanKey, Account)> {
    let mut settled = Vec::new();
    while *now_ns < end_ns {
        *now_ns += 1_000_000;
        let reading = EnergyReading { valid: true, energy_uj: *now_ns / 1000, ..EnergyReading::default() };
        attributor.add_reading(0, *now_ns - 100, *now_ns, &reading);
        attributor.settle(*now_ns, &mut settled);
    }
    settled
}

fn one_domain() -> Attributor {
    let domain = Domain {
        name: "package-0".into(),
        kind: DomainKind::Package,
        source: "replay".into(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw: None,
        latency_ns: 0,
        quantum_uj: 1,
    };
    Attributor::new(vec![domain], AttributionSettings::default())
}

#[test]
fn only_unsettled_weight_changes_count_towards_the_limit() {
    let (mut attributor, mut now_ns) = (one_domain(), NOW_NS);
    let subject = attributor.add_subject(Subject::default());
    let key = attributor.open(now_ns, NewSpan { subject, ..NewSpan::new("s", now_ns) }).unwrap();
    let limit = attributor.settings.max_pending_weight_changes;
    // Far more than the limit, as the counter moves on.
    for step in 0..3 * limit {
        attributor.set_weight(now_ns, key, (step % 7) as f64 + 1.0, now_ns).unwrap();
        if step % 10 == 0 {
            let end_ns = now_ns + 1_000_000;
            settle_until(&mut attributor, &mut now_ns, end_ns);
        }
    }
    let end_ns = now_ns + 50_000_000;
    settle_until(&mut attributor, &mut now_ns, end_ns);
    let intervals = |attributor: &Attributor| {
        let span = attributor.spans.get(key).unwrap();
        span.history.as_ref().unwrap().weight_history.intervals.len()
    };
    assert!(intervals(&attributor) <= span::MAX_WEIGHT_INTERVALS, "{}", intervals(&attributor));
    // The counter stands still.
    for step in 0..limit {
        attributor.set_weight(now_ns, key, (step % 7) as f64 + 1.0, now_ns).unwrap();
    }
    let full = AttributionError::LimitReached {
        quota: "unsettled weight changes of one span",
        limit: limit as usize,
    };
    assert_eq!(attributor.set_weight(now_ns, key, 1.0, now_ns), Err(full));
    assert_eq!(attributor.account(now_ns, key).unwrap().weight, ((limit - 1) % 7) as f64 + 1.0);
    let other = attributor.open(now_ns, NewSpan::new("other", now_ns)).unwrap();
    attributor.set_weight(now_ns, other, 2.0, now_ns).unwrap();
    attributor.close(now_ns, key, now_ns, BTreeMap::new(), false).unwrap();
}

#[test]
fn phase_and_weight_edges_leave_room_for_new_spans() {
    let (mut attributor, now_ns) = (one_domain(), NOW_NS);
    attributor.settings.max_pending_edges = 100;
    let key = attributor.open(now_ns, NewSpan::new("s", now_ns)).unwrap();
    let error = (0..200).find_map(|_| attributor.set_weight(now_ns, key, 2.0, now_ns).err());
    assert_eq!(error, Some(AttributionError::LimitReached { quota: "waiting edges", limit: 50 }));
    for step in 0..50 {
        attributor.open(now_ns, NewSpan::new(step.to_string(), now_ns)).unwrap();
    }
    let error = attributor.open(now_ns, NewSpan::new("more", now_ns)).unwrap_err();
    assert_eq!(error, AttributionError::LimitReached { quota: "waiting edges", limit: 100 });
}

#[test]
fn shrink_frees_slots_and_never_reuses_keys() {
    let (mut attributor, mut now_ns) = (one_domain(), NOW_NS);
    let open = |attributor: &mut Attributor, now_ns: u64| {
        attributor.open(now_ns, NewSpan::new("s", now_ns)).unwrap()
    };
    let close = |attributor: &mut Attributor, now_ns: u64, key| {
        attributor.close(now_ns, key, now_ns, BTreeMap::new(), false).unwrap();
    };
    let keeps = open(&mut attributor, now_ns);
    let many: Vec<SpanKey> = (0..5000).map(|_| open(&mut attributor, now_ns)).collect();
    // One in the middle stays a while longer.
    for key in many.iter().filter(|key| **key != many[1000]) {
        close(&mut attributor, now_ns, *key);
    }
    // Edges wait: no slot that they name is given up.
    attributor.shrink();
    let mut end_ns = now_ns + 50_000_000;
    assert_eq!(settle_until(&mut attributor, &mut now_ns, end_ns).len(), 4999);
    attributor.shrink();
    assert_eq!(attributor.spans.slot_count(), 1002);
    close(&mut attributor, now_ns, many[1000]);
    end_ns += 50_000_000;
    assert_eq!(settle_until(&mut attributor, &mut now_ns, end_ns).len(), 1);
    attributor.shrink();
    assert_eq!(attributor.spans.slot_count(), 1);
    let again: Vec<SpanKey> = (0..5000).map(|_| open(&mut attributor, now_ns)).collect();
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (many.iter().collect(), again.iter().collect());
    assert!(old.is_disjoint(&new) && !new.contains(&keeps));
    assert!(many.iter().all(|key| attributor.account(now_ns, *key) == Err(AttributionError::NoSuchSpan)));
    for key in again.iter().chain([&keeps]) {
        close(&mut attributor, now_ns, *key);
    }
    end_ns += 50_000_000;
    assert_eq!(settle_until(&mut attributor, &mut now_ns, end_ns).len(), 5001);
}
