//! Edges that lie ahead of now, by the millisecond that clocks of two CPUs may differ.

use std::collections::BTreeMap;

use super::*;

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
