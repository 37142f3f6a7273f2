//! Builds a span's account from its state in each domain: the settled account, or the account so far.
//!
//! Invariant: a total is the sum over all counted domains, or absent; an unknown value never counts as 0.

use std::collections::BTreeMap;

use wattspan_client::account::{Account, Phase, Share, SpanState};

use super::domain_timeline::DomainTimeline;
use super::process_share::ProcessShares;
use super::request::SpanKey;
use super::span::{self, PhaseEnd, SlotState, Span, SpanDomainHistory, SpanDomainStage, SpanDomainState};
use super::units::{WEIGHT_ONE, guaranteed_uj, whole_uj};
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
        let used = domain < self.domain_states.len() && (self.span.scope >> domain) & 1 == 1;
        used.then(|| whole_uj(self.domain_states[domain].g))
    }

    /// Builds the account, with the span's own texts and attributes.
    pub fn account(self) -> Account {
        let mut account = settled_account(self.span, self.domain_states, self.timelines);
        account.span = std::mem::take(&mut self.span.id).into();
        account.name = std::mem::take(&mut self.span.name).into();
        span::move_attributes(&mut self.span.attributes, &mut account.attributes);
        self.process_shares.add_to_account(&mut account, self.span, self.key, self.timelines);
        account
    }
}

/// The account of a span that every domain has passed.
fn settled_account(span: &Span, states: &[SpanDomainState], timelines: &[DomainTimeline]) -> Account {
    let state = if span.abandoned { SpanState::Abandoned } else { SpanState::Settled };
    let shares = used_domains(span, states, timelines)
        .map(|(timeline, state)| settled_share(timeline, state))
        .collect();
    let mut account = assemble(span, state, shares, timelines);
    account.phases = settled_phases(span, states, timelines);
    account
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
    let histories =
        span.history.as_ref().map(|span_history| span_history.domains.as_slice()).unwrap_or_default();
    let no_history = SpanDomainHistory::default();
    let shares = used_domains(span, states, timelines)
        .map(|(timeline, state)| {
            let history = histories.get(timeline.index()).unwrap_or(&no_history);
            unsettled_share(timeline, state, history, span.opened_ns, end_ns)
        })
        .collect();
    Account {
        span: span.id.to_string(),
        name: span.name.to_string(),
        attributes: span.attributes.clone(),
        error_uj: None,
        phases: phase_times(span),
        ..assemble(span, state, shares, timelines)
    }
}

fn used_domains<'a>(
    span: &'a Span,
    states: &'a [SpanDomainState],
    timelines: &'a [DomainTimeline],
) -> impl Iterator<Item = (&'a DomainTimeline, &'a SpanDomainState)> {
    timelines.iter().zip(states).filter(|(timeline, _)| span.scope >> timeline.index() & 1 == 1)
}

fn settled_share(timeline: &DomainTimeline, state: &SpanDomainState) -> Share {
    let duration_known = state.unknown_ns == 0;
    let error = state.edge_error;
    Share {
        domain: timeline.domain.name.clone(),
        grade: timeline.domain.grade,
        window_uj: Some(state.energy),
        share_uj: Some(whole_uj(state.g)),
        idle_uj: state.idle_uj(),
        process_uj: None,
        error_uj: if duration_known { guaranteed_uj(error) } else { None },
        unknown_ns: state.unknown_ns,
    }
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
        domain: timeline.domain.name.clone(),
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
            let pending_ns = end_ns.saturating_sub(known_until_ns);
            let clock = timeline.virtual_energy.snapshot();
            let energy = history.share + state.share(&clock);
            share.window_uj = Some(state.window_uj(&clock).max(whole_uj(energy)));
            share.share_uj = Some(whole_uj(energy));
            share.idle_uj = state.idle_share(&clock).map(|idle| whole_uj(history.idle + idle));
            share.unknown_ns = pending_ns + clock.unknown_ns.saturating_sub(state.unknown_ns);
        }
        SpanDomainStage::Closed => return settled_share(timeline, state),
    }
    clear_unknown_figures(&mut share, length_ns);
    share
}

/// Makes the values absent, rather than 0, if no reading covers any part of the span.
fn clear_unknown_figures(share: &mut Share, length_ns: u64) {
    if length_ns > 0 && share.unknown_ns >= length_ns {
        (share.window_uj, share.share_uj, share.idle_uj, share.error_uj) = (None, None, None, None);
    }
}

/// An account without texts, attributes and phases.
fn assemble(span: &Span, state: SpanState, mut shares: Vec<Share>, timelines: &[DomainTimeline]) -> Account {
    let closed_ns = (span.slot_state != SlotState::Open).then_some(span.closed_ns);
    let length_ns = closed_ns.unwrap_or(0).saturating_sub(span.opened_ns);
    let final_state = matches!(state, SpanState::Settled | SpanState::Abandoned);
    if final_state {
        shares.iter_mut().for_each(|share| clear_unknown_figures(share, length_ns));
    }
    // The shares are those of the used domains, in their order.
    let used = timelines.iter().filter(|timeline| span.uses(timeline.index()));
    let mut totals = Totals::default();
    for (timeline, share) in used.zip(&shares) {
        if span.counted >> timeline.index() & 1 == 1 {
            totals.add(share);
        }
    }
    let complete = totals.grade.is_some() && !(final_state && totals.has_unknown_time);
    let sum = |total: Option<u64>| total.filter(|_| complete);
    let share_uj = sum(totals.share_uj);
    Account {
        span: String::new(),
        name: String::new(),
        attributes: BTreeMap::new(),
        state,
        uid: span.uid,
        opened_ns: span.opened_ns,
        closed_ns,
        moved_ns: span.total_moved_ns(),
        opened_unix_ns: span.opened_unix_ns,
        weight: span.weight as f64 / WEIGHT_ONE as f64,
        share_uj,
        window_uj: sum(totals.window_uj),
        idle_uj: sum(totals.idle_uj),
        error_uj: sum(totals.error_uj),
        process: None,
        cgroup: None,
        process_uj: None,
        process_reason: None,
        grade: totals.grade.or_else(|| worst_grade(&shares)),
        simulated: simulated(span, timelines),
        mean_power_mw: if final_state { mean_power_mw(share_uj, length_ns) } else { None },
        peak_concurrency: span.peak_concurrency.max(1),
        domains: shares,
        phases: Vec::new(),
        at_least: (span.undecided != 0).then_some(true),
        durable: None,
        number: None,
    }
}

/// The sums over the counted domains; a sum with an absent value is absent.
struct Totals {
    share_uj: Option<u64>,
    window_uj: Option<u64>,
    idle_uj: Option<u64>,
    error_uj: Option<u64>,
    has_unknown_time: bool,
    /// The worst grade; `None` without a counted domain.
    grade: Option<Grade>,
}

impl Default for Totals {
    fn default() -> Self {
        let zero = Some(0);
        Self {
            share_uj: zero,
            window_uj: zero,
            idle_uj: zero,
            error_uj: zero,
            has_unknown_time: false,
            grade: None,
        }
    }
}

impl Totals {
    fn add(&mut self, share: &Share) {
        let add = |sum: &mut Option<u64>, part: Option<u64>| *sum = sum.zip(part).map(|(sum, uj)| sum + uj);
        add(&mut self.share_uj, share.share_uj);
        add(&mut self.window_uj, share.window_uj);
        add(&mut self.idle_uj, share.idle_uj);
        add(&mut self.error_uj, share.error_uj);
        self.has_unknown_time |= share.unknown_ns > 0;
        self.grade = self.grade.max(Some(share.grade));
    }
}

/// `Some(true)` if one of the span's domains belongs to a replayed machine.
fn simulated(span: &Span, timelines: &[DomainTimeline]) -> Option<bool> {
    timelines
        .iter()
        .any(|timeline| span.uses(timeline.index()) && timeline.domain.is_simulated())
        .then_some(true)
}

fn worst_grade(shares: &[Share]) -> Option<Grade> {
    shares.iter().map(|share| share.grade).max()
}

fn mean_power_mw(share_uj: Option<u64>, length_ns: u64) -> Option<u64> {
    let mw = (u128::from(share_uj?) * 1_000_000).checked_div(u128::from(length_ns))?;
    u64::try_from(mw).ok()
}

/// The phases' names and times, without energy.
fn phase_times(span: &Span) -> Vec<Phase> {
    let Some(span_history) = span.history.as_ref().filter(|span_history| !span_history.phases.is_empty())
    else {
        return Vec::new();
    };
    let closed_ns = (span.slot_state == SlotState::Closing).then_some(span.closed_ns);
    let begun = span_history.phases.iter().filter(|(at_ns, _)| closed_ns.is_none_or(|end| *at_ns <= end));
    let mut phases: Vec<Phase> = Vec::with_capacity(span_history.phases.len() + 1);
    if span_history.phases.first().is_some_and(|(at_ns, _)| *at_ns > span.opened_ns) {
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
fn settled_phases(span: &Span, states: &[SpanDomainState], timelines: &[DomainTimeline]) -> Vec<Phase> {
    let mut phases = phase_times(span);
    let Some(span_history) = span.history.as_ref().filter(|_| !phases.is_empty()) else { return phases };
    let unnamed = usize::from(phases.first().is_some_and(|phase| phase.name.is_empty()));
    for (number, phase) in phases.iter_mut().enumerate() {
        let (mut share_uj, mut error_uj) = (Some(0_u64), Some(0_u64));
        let mut is_counted = false;
        for (timeline, state) in
            used_domains(span, states, timelines).filter(|(t, _)| span.counted >> t.index() & 1 == 1)
        {
            is_counted = true;
            let history = &span_history.domains[timeline.index()];
            // An unnamed phase from the opening to the first boundary has the first end. Where no boundary lies before
            // the closing, the only phase is the whole span.
            let ends = &history.phase_ends;
            let whole_span = PhaseEnd { share: state.g, error: state.edge_error };
            let end = ends.get(number + 1 - unnamed).copied().unwrap_or(whole_span);
            let begin = (number + 1).checked_sub(unnamed + 1).and_then(|begin| ends.get(begin));
            let begin_uj = begin.map_or(0, |begin| whole_uj(begin.share));
            let known = state.unknown_ns == 0;
            share_uj =
                share_uj.filter(|_| known).map(|sum| sum + whole_uj(end.share).saturating_sub(begin_uj));
            let error = guaranteed_uj(end.error).filter(|_| known);
            error_uj = error_uj.zip(error).map(|(sum, error)| sum + error);
        }
        phase.share_uj = share_uj.filter(|_| is_counted);
        phase.error_uj = error_uj.filter(|_| is_counted);
    }
    phases
}
