//! What the service must know of each span, and its true shares, computed from the calls and the power alone.

use std::collections::BTreeSet;

use wattspan_client::account::{Account, Share, SpanState};
use wattspan_client::protocol::SpanSums;

use super::counter::{CEILING_MW, SharedCounter, lock};
use crate::service::caller::ConnectionId;
use crate::service::stored_stream::StoredStream;

/// The state of a span after the calls so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelState {
    Open,
    Closed,
    Cancelled,
    Abandoned,
    /// The daemon ended before its account was final.
    Lost,
}

/// A span that was opened.
#[derive(Debug, Clone)]
pub(super) struct SpanModel {
    pub(super) uid: u32,
    pub(super) name: String,
    pub(super) connection: u64,
    pub(super) is_coarse: bool,
    /// The instants that the calls named, and those at which they take effect.
    pub(super) requested_ns: u64,
    pub(super) opened_ns: u64,
    pub(super) opened_unix_ns: u64,
    pub(super) closed_ns: Option<u64>,
    /// Its weight from each instant on, in the order of time; the first is the opening.
    pub(super) weights: Vec<(u64, f64)>,
    pub(super) phases: Vec<(u64, String)>,
    /// One bit for each domain.
    pub(super) scope: u64,
    pub(super) state: ModelState,
    pub(super) is_final: bool,
}

impl SpanModel {
    /// Its weight in a domain just after an instant.
    fn weight(&self, domain: usize, at_ns: u64) -> f64 {
        let is_open = self.opened_ns <= at_ns && self.closed_ns.is_none_or(|closed_ns| at_ns < closed_ns);
        if !is_open || self.scope >> domain & 1 == 0 {
            return 0.0;
        }
        self.weights
            .iter()
            .take_while(|(from_ns, _)| *from_ns <= at_ns)
            .last()
            .map_or(0.0, |(_, weight)| *weight)
    }

    /// Adds a change of weight at an instant.
    pub(super) fn set_weight(&mut self, at_ns: u64, weight: f64) {
        let place = self.weights.partition_point(|(from_ns, _)| *from_ns <= at_ns);
        self.weights.insert(place, (at_ns, weight));
    }

    /// Adds a phase that begins at an instant.
    pub(super) fn begin_phase(&mut self, at_ns: u64, phase: String) {
        let place = self.phases.partition_point(|(from_ns, _)| *from_ns <= at_ns);
        self.phases.insert(place, (at_ns, phase));
    }

    fn overlaps(&self, from_ns: u64, to_ns: u64) -> bool {
        self.opened_ns < to_ns && self.closed_ns.is_none_or(|closed_ns| closed_ns > from_ns)
    }
}

/// The true energy of a span in a domain from one instant to another, µJ: at each instant the power is split by the weights.
pub(super) fn true_share_uj(
    spans: &[SpanModel],
    span: &SpanModel,
    (domain, counter): (usize, &SharedCounter),
    (from_ns, to_ns): (u64, u64),
) -> f64 {
    let others: Vec<&SpanModel> = spans
        .iter()
        .filter(|other| other.scope >> domain & 1 == 1 && other.overlaps(from_ns, to_ns))
        .collect();
    let mut edges = vec![from_ns, to_ns];
    for other in &others {
        edges.extend(other.closed_ns);
        edges.extend(other.weights.iter().map(|(at_ns, _)| *at_ns));
    }
    edges.retain(|at_ns| (from_ns..=to_ns).contains(at_ns));
    edges.sort_unstable();
    edges.dedup();
    let mut counter = lock(counter);
    let intervals = edges.windows(2).map(|ends| {
        let total: f64 = others.iter().map(|other| other.weight(domain, ends[0])).sum();
        let own = span.weight(domain, ends[0]);
        if own == 0.0 { 0.0 } else { counter.energy_uj(ends[0], ends[1]) * own / total }
    });
    intervals.sum()
}

/// The shares of the domains that count towards the total: all, without those that were not live when the span named them.
/// `None` if no set of shares adds up to it.
fn counted_shares(account: &Account) -> Option<Vec<&Share>> {
    let all: Vec<&Share> = account.domains.iter().filter(|share| share.share_uj.is_some()).collect();
    let sets = (1..1_u32 << all.len()).rev().map(|bits| {
        let is_in_set = |(at, _): &(usize, &&Share)| bits >> at & 1 == 1;
        all.iter().enumerate().filter(is_in_set).map(|(_, share)| *share).collect::<Vec<_>>()
    });
    sets.into_iter()
        .find(|set| set.iter().map(|share| share.share_uj).sum::<Option<u64>>() == account.share_uj)
}

/// Checks what holds for each account by itself.
pub(super) fn check_consistency(account: &Account, is_coarse: bool) {
    let describe = || format!("{account:?}");
    assert!(account.closed_ns.is_none_or(|closed_ns| closed_ns >= account.opened_ns), "{}", describe());
    for share in &account.domains {
        let (window, own) = (share.window_uj, share.share_uj);
        assert!(own.zip(window).is_none_or(|(own, window)| own <= window), "share > window: {}", describe());
        assert!(share.idle_uj.zip(own).is_none_or(|(idle, own)| idle <= own), "idle > share: {}", describe());
    }
    assert!(
        account.share_uj.zip(account.window_uj).is_none_or(|(own, window)| own <= window),
        "{}",
        describe()
    );
    assert!(account.idle_uj.zip(account.share_uj).is_none_or(|(idle, own)| idle <= own), "{}", describe());
    if let Some(share_uj) = account.share_uj {
        // With coarse access each figure is rounded on its own.
        assert!(
            is_coarse || counted_shares(account).is_some(),
            "{share_uj} is no sum of domains: {}",
            describe()
        );
        // Before the end a phase has no energy.
        if !account.phases.is_empty() && !matches!(account.state, SpanState::Open | SpanState::Provisional) {
            let phases: Option<u64> = account.phases.iter().map(|phase| phase.share_uj).sum();
            assert_eq!(phases, Some(share_uj), "the phases do not add up: {}", describe());
        }
    }
    for pair in account.phases.windows(2) {
        assert_eq!(pair[0].closed_ns, Some(pair[1].opened_ns), "the phases have gaps: {}", describe());
    }
}

/// Checks the times of a final account, which do not depend on energy.
pub(super) fn check_times(span: &SpanModel, account: &Account) {
    assert_eq!((account.uid, &account.span), (span.uid, &span.name));
    let state = match span.state {
        ModelState::Abandoned => SpanState::Abandoned,
        _ => SpanState::Settled,
    };
    assert_eq!(account.state, state, "{account:?}");
    if span.is_coarse {
        return;
    }
    assert_eq!(Some(account.opened_ns), Some(span.opened_ns), "{span:?} {account:?}");
    assert_eq!(account.closed_ns, span.closed_ns, "{span:?} {account:?}");
    assert_eq!(account.opened_unix_ns, span.opened_unix_ns, "{span:?} {account:?}");
    let begun: Vec<(u64, &str)> = span
        .phases
        .iter()
        .filter(|(at_ns, _)| span.closed_ns.is_none_or(|closed_ns| *at_ns <= closed_ns))
        .map(|(at_ns, name)| (*at_ns, name.as_str()))
        .collect();
    let named: Vec<(u64, &str)> = account
        .phases
        .iter()
        .filter(|phase| !phase.name.is_empty())
        .map(|phase| (phase.opened_ns, phase.name.as_str()))
        .collect();
    assert_eq!(named, begun, "{span:?} {account:?}");
}

/// What an account said of its energy, for the figures of a run.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct CheckedShares {
    /// Shares whose truth lay within a bound.
    pub(super) bounded: u64,
    /// Shares with unknown time or without a bound.
    pub(super) unbounded: u64,
}

/// Checks that the truth of a span lies within the bounds of its account, in each domain and each phase.
pub(super) fn check_truth(
    spans: &[SpanModel],
    span: &SpanModel,
    account: &Account,
    counters: &[SharedCounter],
    checked: &mut CheckedShares,
) {
    let Some(closed_ns) = account.closed_ns else { return };
    let whole = (account.opened_ns, closed_ns);
    let named = |name: &str| counters.iter().position(|counter| lock(counter).name == name);
    for share in &account.domains {
        let Some(domain) = named(&share.domain) else { panic!("{account:?}") };
        let (Some(share_uj), truth_uj) =
            (share.share_uj, true_share_uj(spans, span, (domain, &counters[domain]), whole))
        else {
            checked.unbounded += 1;
            continue;
        };
        let Some(error_uj) = share.error_uj else {
            checked.unbounded += 1;
            // At most the energy of the whole time, whatever is unknown.
            let most_uj = (CEILING_MW as f64) * (closed_ns - account.opened_ns) as f64 / 1e6;
            let step_uj = CEILING_MW as f64 * 1e3 * 3.0;
            assert!(share_uj as f64 <= most_uj + step_uj, "{share_uj} of {most_uj}: {account:?}");
            continue;
        };
        checked.bounded += 1;
        assert!(
            (share_uj as f64 - truth_uj).abs() <= error_uj as f64,
            "{}: {share_uj} ± {error_uj} µJ, but truly {truth_uj}: {span:?} {account:?}",
            share.domain
        );
    }
    for phase in &account.phases {
        let (Some(share_uj), Some(error_uj), Some(end_ns)) =
            (phase.share_uj, phase.error_uj, phase.closed_ns)
        else {
            continue;
        };
        let truth_uj: f64 = counted_shares(account)
            .into_iter()
            .flatten()
            .filter_map(|share| named(&share.domain))
            .map(|domain| true_share_uj(spans, span, (domain, &counters[domain]), (phase.opened_ns, end_ns)))
            .sum();
        checked.bounded += 1;
        assert!(
            (share_uj as f64 - truth_uj).abs() <= error_uj as f64,
            "phase {}: {share_uj} ± {error_uj} µJ, but truly {truth_uj}: {span:?} {account:?}",
            phase.name
        );
    }
}

/// What a user has read of the stored accounts.
#[derive(Debug, Default)]
pub(super) struct Follower {
    pub(super) after: u64,
    pub(super) database: Option<String>,
    pub(super) seen: BTreeSet<(u32, String)>,
    pub(super) without_energy: u64,
    pub(super) energy_uj: u64,
    /// The last page was the end of the list.
    pub(super) is_at_end: bool,
    /// The reply of the sums before.
    pub(super) last_sums: Option<SpanSums>,
}

/// A client that watches the stored accounts.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    pub(super) stream: Option<(ConnectionId, StoredStream)>,
    /// The position and the database in the last item.
    pub(super) after: u64,
    pub(super) database: Option<String>,
    pub(super) seen: BTreeSet<(u32, String)>,
    /// The client reads the last page until then.
    pub(super) reads_until_ns: u64,
}

impl Watcher {
    /// The connection ends. An item that was not read is sent again.
    pub(super) fn disconnect(&mut self) {
        self.stream = None;
    }
}
