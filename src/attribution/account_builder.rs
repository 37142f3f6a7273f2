//! Builds a span's account from its state in each domain: the settled account, or the account so far.
//!
//! Invariant: a total is the sum over all counted domains, or absent; an unknown value never counts as 0.

use std::collections::BTreeMap;
use std::mem::take;

use wattspan_client::account::{Account, Phase, Share, SpanState};

use super::domain_timeline::DomainTimeline;
use super::process_share::ProcessShares;
use super::request::SpanKey;
use super::span::{
    PhaseEnd, SlotState, Span, SpanDomainHistory, SpanDomainStage, SpanDomainState, domains_of,
};
use super::units::{WEIGHT_ONE, guaranteed_uj, whole_uj};

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
        let share = |domain: usize| settled_share(&timelines[domain], &domain_states[domain], length_ns);
        let shares = shares(span, share);
        let phases = settled_phases(span, domain_states);
        let attributes = take(&mut span.attributes).map_or_else(BTreeMap::new, |attributes| *attributes);
        let texts = (take(&mut span.id), take(&mut span.name), attributes);
        let mut account = build(span, texts, state, shares, phases, timelines);
        process_shares.add_to_account(&mut account, span, key, timelines);
        account
    }
}

/// The account so far: the energy up to the settled time, and the time after it as unknown.
pub(crate) fn unsettled_account(
    span: &Span,
    states: &[SpanDomainState],
    timelines: &[DomainTimeline],
    now_ns: u64,
) -> Account {
    let closing = span.slot_state == SlotState::Closing;
    let state = if closing { SpanState::Provisional } else { SpanState::Open };
    let end_ns = if closing { span.closed_ns } else { now_ns.max(span.opened_ns) };
    let histories = span.history.as_ref().map_or(&[][..], |history| &history.domains);
    let no_history = SpanDomainHistory::default();
    let share = |domain: usize| {
        let history = histories.get(domain).unwrap_or(&no_history);
        unsettled_share(&timelines[domain], &states[domain], history, span.opened_ns, end_ns)
    };
    let attributes = span.attributes.as_deref().cloned().unwrap_or_default();
    let texts = (span.id.clone(), span.name.clone(), attributes);
    build(span, texts, state, shares(span, share), phase_times(span), timelines)
}

/// The shares of the span's domains.
#[inline]
fn shares(span: &Span, share: impl Fn(usize) -> Share) -> Vec<Share> {
    let mut shares = Vec::with_capacity(span.scope.count_ones() as usize);
    shares.extend(domains_of(span.scope).map(share));
    shares
}

#[inline]
fn settled_share(timeline: &DomainTimeline, state: &SpanDomainState, length_ns: u64) -> Share {
    let share = Share {
        domain: timeline.name.clone(),
        grade: timeline.domain.grade,
        window_uj: Some(state.energy),
        share_uj: Some(whole_uj(state.g)),
        idle_uj: state.idle_uj(),
        process_uj: None,
        error_uj: guaranteed_uj(state.edge_error).filter(|_| state.unknown_ns == 0),
        unknown_ns: state.unknown_ns,
    };
    without_unknown_figures(share, length_ns)
}

fn unsettled_share(
    timeline: &DomainTimeline,
    state: &SpanDomainState,
    history: &SpanDomainHistory,
    opened_ns: u64,
    end_ns: u64,
) -> Share {
    let length_ns = end_ns.saturating_sub(opened_ns);
    let mut share = Share {
        domain: timeline.name.clone(),
        grade: timeline.domain.grade,
        window_uj: None,
        share_uj: None,
        idle_uj: None,
        process_uj: None,
        error_uj: None,
        unknown_ns: length_ns,
    };
    match state.stage() {
        SpanDomainStage::Pending => {}
        SpanDomainStage::Open => {
            let known_until_ns = timeline.virtual_energy.position_ns.max(opened_ns);
            let clock = timeline.virtual_energy.snapshot();
            let energy = history.share + state.share(&clock);
            let share_uj = whole_uj(energy);
            share.window_uj = Some(state.window_uj(&clock).max(share_uj));
            share.share_uj = Some(share_uj);
            // Snapshots are more precise in the share than in its idle part.
            share.idle_uj = state.idle_share(&clock).map(|idle| whole_uj(history.idle + idle).min(share_uj));
            share.unknown_ns =
                end_ns.saturating_sub(known_until_ns) + clock.unknown_ns.saturating_sub(state.unknown_ns);
        }
        SpanDomainStage::Closed => return settled_share(timeline, state, length_ns),
    }
    without_unknown_figures(share, length_ns)
}

/// Makes the values absent, rather than 0, if no reading covers any part of the span.
#[inline]
fn without_unknown_figures(mut share: Share, length_ns: u64) -> Share {
    if length_ns > 0 && share.unknown_ns >= length_ns {
        (share.window_uj, share.share_uj, share.idle_uj, share.error_uj) = (None, None, None, None);
    }
    share
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
    timelines: &[DomainTimeline],
) -> Account {
    let is_final = matches!(state, SpanState::Settled | SpanState::Abandoned);
    let closed_ns = (span.slot_state != SlotState::Open).then_some(span.closed_ns);
    let counted = || {
        let is_counted = |(_, domain): &(&Share, usize)| (span.counted >> domain) & 1 == 1;
        shares.iter().zip(domains_of(span.scope)).filter(is_counted).map(|(share, _)| share)
    };
    let worst_counted = counted().map(|share| share.grade).max();
    let has_totals = worst_counted.is_some() && !(is_final && counted().any(|share| share.unknown_ns > 0));
    let total = |sum: Option<u64>| sum.filter(|_| has_totals);
    let share_uj = total(counted().map(|share| share.share_uj).sum());
    let error_uj = total(counted().map(|share| share.error_uj).sum());
    let is_simulated = domains_of(span.scope).any(|domain| timelines[domain].domain.is_simulated());
    Account {
        span: id.into(),
        name: name.into(),
        attributes,
        state,
        uid: span.uid,
        opened_ns: span.opened_ns,
        closed_ns,
        moved_ns: span.total_moved_ns(),
        opened_unix_ns: span.opened_unix_ns,
        weight: span.weight as f64 / WEIGHT_ONE as f64,
        share_uj,
        window_uj: total(counted().map(|share| share.window_uj).sum()),
        idle_uj: total(counted().map(|share| share.idle_uj).sum()),
        error_uj: error_uj.filter(|_| is_final),
        process: None,
        cgroup: None,
        process_uj: None,
        process_reason: None,
        grade: worst_counted.or_else(|| shares.iter().map(|share| share.grade).max()),
        simulated: is_simulated.then_some(true),
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

/// The phases' names and times, without energy.
fn phase_times(span: &Span) -> Vec<Phase> {
    let Some(history) = span.history.as_ref().filter(|history| !history.phases.is_empty()) else {
        return Vec::new();
    };
    let closed_ns = (span.slot_state == SlotState::Closing).then_some(span.closed_ns);
    let begun = history.phases.iter().filter(|(at_ns, _)| closed_ns.is_none_or(|end| *at_ns <= end));
    let mut phases: Vec<Phase> = Vec::with_capacity(history.phases.len() + 1);
    if history.phases.first().is_some_and(|(at_ns, _)| *at_ns > span.opened_ns) {
        phases.push(new_phase("", span.opened_ns));
    }
    for (at_ns, name) in begun {
        if let Some(last) = phases.last_mut() {
            last.closed_ns = Some(*at_ns);
        }
        phases.push(new_phase(name, *at_ns));
    }
    if let Some(last) = phases.last_mut() {
        last.closed_ns = closed_ns;
    }
    phases
}

fn new_phase(name: &str, opened_ns: u64) -> Phase {
    Phase { name: name.into(), opened_ns, closed_ns: None, share_uj: None, error_uj: None }
}

/// The phases with their energy: each domain's cumulative share at the phase boundaries, in whole µJ, so that they add
/// up.
fn settled_phases(span: &Span, states: &[SpanDomainState]) -> Vec<Phase> {
    let mut phases = phase_times(span);
    let Some(history) = span.history.as_ref().filter(|_| !phases.is_empty() && span.counted != 0) else {
        return phases;
    };
    // An unnamed phase from the opening to the first boundary has the first end.
    let first_end = usize::from(!phases.first().is_some_and(|phase| phase.name.is_empty()));
    for (end_number, phase) in (first_end..).zip(&mut phases) {
        let is_known = |domain: usize| states[domain].unknown_ns == 0;
        let end = |domain: usize| {
            // Where no boundary lies before the closing, the only phase is the whole span.
            let whole_span = PhaseEnd { share: states[domain].g, error: states[domain].edge_error };
            history.domains[domain].phase_ends.get(end_number).copied().unwrap_or(whole_span)
        };
        let share_uj = |domain: usize| {
            let ends = &history.domains[domain].phase_ends;
            let begin = end_number.checked_sub(1).and_then(|number| ends.get(number));
            let begin_uj = begin.map_or(0, |begin| whole_uj(begin.share));
            is_known(domain).then(|| whole_uj(end(domain).share).saturating_sub(begin_uj))
        };
        let error_uj = |domain: usize| guaranteed_uj(end(domain).error).filter(|_| is_known(domain));
        phase.share_uj = domains_of(span.counted).map(share_uj).sum();
        phase.error_uj = domains_of(span.counted).map(error_uj).sum();
    }
    phases
}
