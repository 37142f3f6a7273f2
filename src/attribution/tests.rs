//! Edges that lie ahead of now, by the millisecond that clocks of two CPUs may differ.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::domain::{Grade, Kind};

const NOW_NS: u64 = 5_000_000_000;
const AHEAD_NS: u64 = NOW_NS + 900_000;

fn opened_ahead() -> (Ledger, SpanKey) {
    let mut ledger = Ledger::new(Vec::new(), Settings::default());
    let key = ledger.open(NOW_NS, Opening::plain("ahead", AHEAD_NS)).unwrap();
    (ledger, key)
}

#[test]
fn a_span_whose_client_goes_before_it_began_ends_where_it_begins() {
    let (mut ledger, key) = opened_ahead();
    assert_eq!(ledger.asked_ns(key), Some(AHEAD_NS));
    ledger.close(NOW_NS + 1, key, NOW_NS + 1, BTreeMap::new(), true).unwrap();
    assert_eq!((ledger.open_spans(), ledger.asked_ns(key)), (0, None));
    let account = ledger.account(NOW_NS + 1, key).unwrap();
    assert_eq!((account.opened_ns, account.closed_ns, account.moved_ns), (AHEAD_NS, Some(AHEAD_NS), 0));
}

#[test]
fn an_instant_before_the_opening_that_somebody_names_is_refused() {
    let (mut ledger, key) = opened_ahead();
    let refused = ledger.close(NOW_NS + 1, key, NOW_NS + 1, BTreeMap::new(), false).unwrap_err();
    assert_eq!(refused, Refused::InvalidTime { earliest_ns: AHEAD_NS, latest_ns: NOW_NS + 1 });
    assert_eq!(ledger.open_spans(), 1);
}

/// Feeds a counter that moves every millisecond, and settles, up to an instant.
fn pass_to(ledger: &mut Ledger, now_ns: &mut u64, end_ns: u64) -> Vec<(SpanKey, Account)> {
    let mut settled = Vec::new();
    while *now_ns < end_ns {
        *now_ns += 1_000_000;
        let reading = Reading { valid: true, energy_uj: *now_ns / 1000, ..Reading::default() };
        ledger.feed(0, *now_ns - 100, *now_ns, &reading);
        ledger.settle(*now_ns, &mut settled);
    }
    settled
}

fn one_domain() -> Ledger {
    let domain = Domain {
        name: "package-0".into(),
        kind: Kind::Package,
        source: "replay".into(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw: None,
        latency_ns: 0,
        quantum_uj: 1,
    };
    Ledger::new(vec![domain], Settings::default())
}

#[test]
fn only_changes_of_weight_that_wait_for_a_counter_count_towards_the_limit() {
    let (mut ledger, mut now_ns) = (one_domain(), NOW_NS);
    let subject = ledger.admit(Subject::default());
    let key = ledger.open(now_ns, Opening { subject, ..Opening::plain("s", now_ns) }).unwrap();
    let limit = ledger.settings.max_changes;
    // Far more than the limit, as the counter moves on.
    for turn in 0..3 * limit {
        ledger.set_weight(now_ns, key, (turn % 7) as f64 + 1.0, now_ns).unwrap();
        if turn % 10 == 0 {
            let end_ns = now_ns + 1_000_000;
            pass_to(&mut ledger, &mut now_ns, end_ns);
        }
    }
    let end_ns = now_ns + 50_000_000;
    pass_to(&mut ledger, &mut now_ns, end_ns);
    let pieces = |ledger: &Ledger| {
        let span = ledger.roster.find(key).unwrap();
        span.story.as_ref().unwrap().weights.pieces.len()
    };
    assert!(pieces(&ledger) <= span::MOST_PIECES, "{}", pieces(&ledger));
    // The counter stands still.
    for turn in 0..limit {
        ledger.set_weight(now_ns, key, (turn % 7) as f64 + 1.0, now_ns).unwrap();
    }
    let full = Refused::Full { quota: "unsettled weight changes of one span", limit: limit as usize };
    assert_eq!(ledger.set_weight(now_ns, key, 1.0, now_ns), Err(full));
    assert_eq!(ledger.account(now_ns, key).unwrap().weight, ((limit - 1) % 7) as f64 + 1.0);
    let other = ledger.open(now_ns, Opening::plain("other", now_ns)).unwrap();
    ledger.set_weight(now_ns, other, 2.0, now_ns).unwrap();
    ledger.close(now_ns, key, now_ns, BTreeMap::new(), false).unwrap();
}

#[test]
fn phases_and_weights_leave_room_for_openings() {
    let (mut ledger, now_ns) = (one_domain(), NOW_NS);
    ledger.settings.max_waiting = 100;
    let key = ledger.open(now_ns, Opening::plain("s", now_ns)).unwrap();
    let refused = (0..200).find_map(|_| ledger.set_weight(now_ns, key, 2.0, now_ns).err());
    assert_eq!(refused, Some(Refused::Full { quota: "waiting edges", limit: 50 }));
    for turn in 0..50 {
        ledger.open(now_ns, Opening::plain(turn.to_string(), now_ns)).unwrap();
    }
    let refused = ledger.open(now_ns, Opening::plain("more", now_ns)).unwrap_err();
    assert_eq!(refused, Refused::Full { quota: "waiting edges", limit: 100 });
}

#[test]
fn what_many_spans_took_is_given_back_and_no_key_is_used_again() {
    let (mut ledger, mut now_ns) = (one_domain(), NOW_NS);
    let open = |ledger: &mut Ledger, now_ns: u64| ledger.open(now_ns, Opening::plain("s", now_ns)).unwrap();
    let close = |ledger: &mut Ledger, now_ns: u64, key| {
        ledger.close(now_ns, key, now_ns, BTreeMap::new(), false).unwrap();
    };
    let keeps = open(&mut ledger, now_ns);
    let many: Vec<SpanKey> = (0..5000).map(|_| open(&mut ledger, now_ns)).collect();
    // One in the middle stays a while longer.
    for key in many.iter().filter(|key| **key != many[1000]) {
        close(&mut ledger, now_ns, *key);
    }
    // Edges wait: no slot that they name is given up.
    ledger.shrink();
    let mut end_ns = now_ns + 50_000_000;
    assert_eq!(pass_to(&mut ledger, &mut now_ns, end_ns).len(), 4999);
    ledger.shrink();
    assert_eq!(ledger.roster.slots(), 1002);
    close(&mut ledger, now_ns, many[1000]);
    end_ns += 50_000_000;
    assert_eq!(pass_to(&mut ledger, &mut now_ns, end_ns).len(), 1);
    ledger.shrink();
    assert_eq!(ledger.roster.slots(), 1);
    let again: Vec<SpanKey> = (0..5000).map(|_| open(&mut ledger, now_ns)).collect();
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (many.iter().collect(), again.iter().collect());
    assert!(old.is_disjoint(&new) && !new.contains(&keeps));
    assert!(many.iter().all(|key| ledger.account(now_ns, *key) == Err(Refused::NoSuchSpan)));
    for key in again.iter().chain([&keeps]) {
        close(&mut ledger, now_ns, *key);
    }
    end_ns += 50_000_000;
    assert_eq!(pass_to(&mut ledger, &mut now_ns, end_ns).len(), 5001);
}
