//! Builds a span's account from its state in each domain: the settled account, or the account so far.
//!
//! Invariants: a total is the sum over all counted domains, or absent; an unknown value never counts as 0. Between two
//! snapshots of a domain's clock, a span of constant weight gets its weight times the rise of `g`, so an account so far can be
//! extended to later snapshots ([`extend_account`]): it then equals the account so far at that instant, but for one
//! microjoule in each figure of a domain.

use std::collections::BTreeMap;
use std::mem::take;

use wattspan_client::account::{Account, Phase, Share, SpanState};

use super::domain_timeline::DomainTimeline;
use super::error_bounds::guaranteed_uj;
use super::process_share::{ProcessShares, SubjectShare};
use super::request::SpanKey;
use super::span::{PhaseEnd, SlotState, Span, SpanDomainStage, SpanDomainState, SpanHistory, domains_of};
use super::virtual_energy::{DomainClock, WEIGHT_ONE, whole_uj};
use crate::domain::Grade;

/// A settled span, as [`Attributor::drain_settled`](super::Attributor::drain_settled) shows it: `account` builds the
/// whole account, `share_uj` alone is cheaper.
pub struct SettledSpan<'a> {
    pub(super) key: SpanKey,
    pub(super) span: &'a mut Span,
    pub(super) domain_states: &'a [SpanDomainState],
    pub(super) timelines: &'a [DomainTimeline],
    pub(super) process_shares: &'a ProcessShares,
}

impl SettledSpan<'_> {
    /// The span's key, which is invalid from now on.
    pub fn key(&self) -> SpanKey {
        self.key
    }

    /// The span's share of one domain, microjoules; `None` if it does not use the domain.
    pub fn share_uj(&self, domain: usize) -> Option<u64> {
        let used = domain < self.domain_states.len() && self.span.uses(domain);
        used.then(|| whole_uj(self.domain_states[domain].g))
    }

    /// Builds the account, with the span's own texts and attributes.
    #[inline]
    pub fn account(self) -> Account {
        let Self { key, span, domain_states, timelines, process_shares } = self;
        let state = if span.abandoned { SpanState::Abandoned } else { SpanState::Settled };
        let length_ns = span.closed_ns.saturating_sub(span.opened_ns);
        let mut shares = shares(span, |domain| share(&timelines[domain], &domain_states[domain], length_ns));
        let process = process_shares.split(&mut shares, span, key, timelines);
        let phases = phases(span, Some(domain_states));
        let attributes = take(&mut span.attributes).map_or_else(BTreeMap::new, |attributes| *attributes);
        let texts = (take(&mut span.id), take(&mut span.name), attributes);
        build(span, texts, state, shares, phases, process)
    }
}

/// The account so far: the energy up to the settled time, and the time after it as unknown. With the process share, if
/// `process_shares` are given.
pub(crate) fn unsettled_account(
    span: &Span,
    states: &[SpanDomainState],
    timelines: &[DomainTimeline],
    process_shares: Option<(&ProcessShares, SpanKey)>,
    now_ns: u64,
) -> Account {
    let closing = span.slot_state == SlotState::Closing;
    let state = if closing { SpanState::Provisional } else { SpanState::Open };
    let end_ns = if closing { span.closed_ns } else { now_ns.max(span.opened_ns) };
    let length_ns = end_ns.saturating_sub(span.opened_ns);
    let share_so_far = |domain: usize| {
        let mut state = states[domain];
        if state.is_at(SpanDomainStage::Open) {
            let history = span.history.as_ref().map(|history| &history.domains[domain]);
            let before = history.map_or((0, 0), |history| (history.share, history.idle));
            // As if it closed now, without a bound.
            let clock = timelines[domain].virtual_energy.snapshot();
            state.close(&clock, before, length_ns, f64::INFINITY);
        }
        share(&timelines[domain], &state, length_ns)
    };
    let attributes = span.attributes.as_deref().cloned().unwrap_or_default();
    let texts = (span.id.clone(), span.name.clone(), attributes);
    let mut shares = shares(span, share_so_far);
    let process = process_shares.map(|(process, key)| process.split(&mut shares, span, key, timelines));
    build(span, texts, state, shares, phases(span, None), process.unwrap_or_default())
}

/// The shares of the span's domains.
#[inline]
fn shares(span: &Span, share: impl Fn(usize) -> Share) -> Vec<Share> {
    let mut shares = Vec::with_capacity(span.scope.count_ones() as usize);
    shares.extend(domains_of(span.scope).map(share));
    shares
}

/// A share from a closed state. The figures are absent, rather than 0, if no reading covers any part of the span, or the
/// domain has not passed its opening.
#[inline]
fn share(timeline: &DomainTimeline, state: &SpanDomainState, length_ns: u64) -> Share {
    let is_passed = state.is_at(SpanDomainStage::Closed);
    let unknown_ns = if is_passed { state.uncovered_ns } else { length_ns };
    let mut share = Share {
        domain: timeline.name.clone(),
        grade: timeline.domain.grade,
        window_uj: Some(state.energy),
        share_uj: Some(whole_uj(state.g)),
        idle_uj: state.idle_uj(),
        process_uj: None,
        error_uj: if unknown_ns == 0 { guaranteed_uj(state.edge_error) } else { None },
        unknown_ns,
    };
    if !is_passed || unknown_ns >= length_ns && length_ns > 0 {
        (share.window_uj, share.share_uj, share.idle_uj, share.error_uj) = (None, None, None, None);
    }
    share
}

/// A sum that is absent where one of its terms is.
#[derive(Debug, Clone, Copy)]
struct Total {
    sum: u64,
    is_known: bool,
}

impl Total {
    /// Without a branch for each term.
    #[inline]
    fn add(&mut self, term: Option<u64>) {
        self.sum = self.sum.saturating_add(term.unwrap_or(0));
        self.is_known &= term.is_some();
    }

    #[inline]
    fn known(self) -> Option<u64> {
        self.is_known.then_some(self.sum)
    }
}

/// The sums over the counted shares; absent if there are none.
#[derive(Debug)]
struct Totals {
    share_uj: Total,
    window_uj: Total,
    idle_uj: Total,
    error_uj: Total,
    /// The worst grade.
    grade: Option<Grade>,
    /// Some time of a share is unknown.
    has_unknown_time: bool,
}

impl Totals {
    #[inline]
    fn of<'a>(counted: impl Iterator<Item = &'a Share>) -> Self {
        let none = Total { sum: 0, is_known: true };
        let (share_uj, window_uj, idle_uj, error_uj) = (none, none, none, none);
        let mut totals =
            Self { share_uj, window_uj, idle_uj, error_uj, grade: None, has_unknown_time: false };
        for share in counted {
            totals.share_uj.add(share.share_uj);
            totals.window_uj.add(share.window_uj);
            totals.idle_uj.add(share.idle_uj);
            totals.error_uj.add(share.error_uj);
            totals.grade = totals.grade.max(Some(share.grade));
            totals.has_unknown_time |= share.unknown_ns != 0;
        }
        totals
    }

    /// One of the sums.
    #[inline]
    fn total(&self, total: Total) -> Option<u64> {
        total.known().filter(|_| self.grade.is_some())
    }
}

/// The ID, the name and the attributes of a span.
type Texts = (Box<str>, Box<str>, BTreeMap<String, String>);

/// An account of these shares, which are those of the span's domains, in their order.
#[inline]
fn build(
    span: &Span,
    (id, name, attributes): Texts,
    state: SpanState,
    shares: Vec<Share>,
    phases: Vec<Phase>,
    process: SubjectShare,
) -> Account {
    let is_final = matches!(state, SpanState::Settled | SpanState::Abandoned);
    let is_counted = |(_, domain): &(&Share, usize)| (span.counted >> domain) & 1 == 1;
    let counted = shares.iter().zip(domains_of(span.scope)).filter(is_counted).map(|(share, _)| share);
    let totals = Totals::of(counted);
    // A final sum that lacks some time would look complete.
    let is_whole = !is_final || !totals.has_unknown_time;
    let total = |sum: Total| totals.total(sum).filter(|_| is_whole);
    let share_uj = total(totals.share_uj);
    Account {
        span: id.into(),
        name: name.into(),
        attributes,
        state,
        uid: span.uid,
        opened_ns: span.opened_ns,
        closed_ns: (span.slot_state != SlotState::Open).then_some(span.closed_ns),
        moved_ns: span.total_moved_ns(),
        opened_unix_ns: span.opened_unix_ns,
        weight: span.weight as f64 / WEIGHT_ONE as f64,
        share_uj,
        window_uj: total(totals.window_uj),
        idle_uj: total(totals.idle_uj),
        error_uj: total(totals.error_uj).filter(|_| is_final),
        process: process.process,
        cgroup: process.cgroup,
        process_uj: process.process_uj,
        process_reason: process.reason,
        grade: totals.grade.or_else(|| shares.iter().map(|share| share.grade).max()),
        simulated: span.is_simulated.then_some(true),
        mean_power_mw: mean_power_mw(share_uj.filter(|_| is_final), span),
        peak_concurrency: span.peak_concurrency.max(1),
        domains: shares,
        phases,
        at_least: span.has_undecided.then_some(true),
        durable: None,
        number: None,
    }
}

fn mean_power_mw(share_uj: Option<u64>, span: &Span) -> Option<u64> {
    let length_ns = span.closed_ns.saturating_sub(span.opened_ns);
    let mw = (u128::from(share_uj?) * 1_000_000).checked_div(u128::from(length_ns))?;
    u64::try_from(mw).ok()
}

/// The phases; with their energy, in whole µJ so that they add up, where the states are settled.
fn phases(span: &Span, settled: Option<&[SpanDomainState]>) -> Vec<Phase> {
    let Some(history) = span.history.as_ref().filter(|history| !history.phases.is_empty()) else {
        return Vec::new();
    };
    let closed_ns = (span.slot_state == SlotState::Closing).then_some(span.closed_ns);
    let begun = history.phases.iter().filter(|(at_ns, _)| closed_ns.is_none_or(|end_ns| *at_ns <= end_ns));
    // An unnamed phase lasts from the opening to the first boundary, and its end is the first one.
    let unnamed = (history.phases[0].0 > span.opened_ns).then_some((span.opened_ns, ""));
    let first_end = usize::from(unnamed.is_none());
    let begins: Vec<(u64, &str)> =
        unnamed.into_iter().chain(begun.map(|(at_ns, name)| (*at_ns, name.as_str()))).collect();
    let phase = |(number, &(opened_ns, name)): (usize, &(u64, &str))| {
        let next_ns = begins.get(number + 1).map(|(next_ns, _)| *next_ns);
        let energy = settled.and_then(|states| phase_energy(span, history, states, first_end + number));
        let (share_uj, error_uj) = energy.unwrap_or_default();
        Phase { name: name.into(), opened_ns, closed_ns: next_ns.or(closed_ns), share_uj, error_uj }
    };
    begins.iter().enumerate().map(phase).collect()
}

/// The share and the error of the phase that ends with a boundary: the sums over the counted domains of the rise of the
/// cumulative share. `None` if no domain is counted.
fn phase_energy(
    span: &Span,
    history: &SpanHistory,
    states: &[SpanDomainState],
    end_number: usize,
) -> Option<(Option<u64>, Option<u64>)> {
    let phase = |domain: usize| {
        let (state, ends) = (&states[domain], &history.domains[domain].phase_ends);
        // Where no boundary lies before the closing, the only phase is the whole span.
        let whole_span = PhaseEnd { share: state.g, error: state.edge_error };
        let end = ends.get(end_number).copied().unwrap_or(whole_span);
        let begin = end_number.checked_sub(1).and_then(|number| ends.get(number));
        let share_uj = whole_uj(end.share).saturating_sub(begin.map_or(0, |begin| whole_uj(begin.share)));
        (state.uncovered_ns == 0).then(|| (share_uj, guaranteed_uj(end.error)))
    };
    let share_uj = domains_of(span.counted).map(|domain| Some(phase(domain)?.0)).sum();
    let error_uj = domains_of(span.counted).map(|domain| phase(domain)?.1).sum();
    (span.counted != 0).then_some((share_uj, error_uj))
}

/// What an account so far needs to be extended in one domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareBasis {
    /// The domain's index in the attributor.
    pub domain: usize,
    /// Whether it is part of the totals.
    pub is_counted: bool,
    /// The domain's clock at the account, the weight from there on, and whether the idle part is known; `None` while the
    /// domain has not passed the span's opening.
    pub clock: Option<(DomainClock, u64, bool)>,
}

/// The bases of a span's account so far, in the order of its shares; `None` while a change of its weight is not settled.
pub(crate) fn share_bases(
    span: &Span,
    states: &[SpanDomainState],
    timelines: &[DomainTimeline],
) -> Option<Vec<ShareBasis>> {
    let basis = |domain: usize| {
        let (state, clock) = (&states[domain], timelines[domain].virtual_energy.snapshot());
        let is_open = state.is_at(SpanDomainStage::Open);
        ShareBasis {
            domain,
            is_counted: (span.counted >> domain) & 1 == 1,
            clock: is_open.then(|| (clock, state.weight(), state.idle_uj().is_some())),
        }
    };
    (!span.has_unsettled_weight_changes(1)).then(|| domains_of(span.scope).map(basis).collect())
}

/// Extends the account so far of an open span to `at_ns`, where the domains' clocks are `clocks`.
pub fn extend_account(account: &mut Account, bases: &[ShareBasis], at_ns: u64, clocks: &[DomainClock]) {
    let Some(added_ns) = account.closed_ns.and_then(|closed_ns| at_ns.checked_sub(closed_ns)) else { return };
    if bases.len() != account.domains.len() {
        return;
    }
    account.closed_ns = Some(at_ns);
    let length_ns = at_ns.saturating_sub(account.opened_ns);
    for (share, basis) in account.domains.iter_mut().zip(bases) {
        extend_share(share, basis, clocks.get(basis.domain), added_ns);
        if length_ns > 0 && share.unknown_ns >= length_ns {
            (share.window_uj, share.share_uj, share.idle_uj) = (None, None, None);
        }
    }
    let counted = account.domains.iter().zip(bases).filter(|(_, basis)| basis.is_counted);
    let totals = Totals::of(counted.map(|(share, _)| share));
    account.share_uj = totals.total(totals.share_uj);
    account.window_uj = totals.total(totals.window_uj);
    account.idle_uj = totals.total(totals.idle_uj);
}

/// A record that is damaged gives wrong figures, but no overflow.
fn extend_share(share: &mut Share, basis: &ShareBasis, clock: Option<&DomainClock>, added_ns: u64) {
    share.unknown_ns = share.unknown_ns.saturating_add(added_ns);
    let (Some((since, weight, is_idle_known)), Some(clock)) = (&basis.clock, clock) else { return };
    let energy = whole_uj(u128::from(*weight).saturating_mul(clock.g.saturating_sub(since.g)));
    let share_uj = share.share_uj.unwrap_or(0).saturating_add(energy);
    let window_uj = share.window_uj.unwrap_or(0).saturating_add(clock.energy_uj_since(since.energy));
    let idle_uj =
        share.idle_uj.unwrap_or(0).saturating_add(whole_uj(clock.idle_since(since.idle_g, *weight)));
    share.share_uj = Some(share_uj);
    share.window_uj = Some(window_uj.max(share_uj));
    // As in the account so far: the record is more precise in the share than in its idle part.
    share.idle_uj = is_idle_known.then_some(idle_uj.min(share_uj));
    share.unknown_ns = share.unknown_ns.saturating_sub(clock.covered_ns.wrapping_sub(since.covered_ns));
}

#[cfg(test)]
mod tests {
    use wattspan_client::account::SpanState;

    use super::*;

    #[test]
    fn a_sum_of_shares_stops_at_the_largest_number() {
        let share = |share_uj| {
            serde_json::json!({"domain": "d", "grade": "measured", "share_uj": share_uj, "window_uj": share_uj,
                "unknown_ns": 0})
        };
        let mut account: Account = serde_json::from_value(serde_json::json!({
            "number": 1, "span": "s", "name": "n", "uid": 0, "state": "open", "attributes": {}, "opened_ns": 0,
            "closed_ns": 5, "moved_ns": 0, "opened_unix_ns": 0, "weight": 1.0, "peak_concurrency": 1,
            "domains": [share(u64::MAX), share(7)], "phases": [],
        }))
        .unwrap();
        let bases = [0, 1].map(|domain| ShareBasis { domain, is_counted: true, clock: None });
        extend_account(&mut account, &bases, 9, &[]);
        assert_eq!((account.state, account.closed_ns), (SpanState::Open, Some(9)));
        assert_eq!(
            (account.share_uj, account.window_uj, account.idle_uj),
            (Some(u64::MAX), Some(u64::MAX), None)
        );
    }
}
