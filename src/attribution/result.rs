//! From marks to words: a span's account, settled or so far.
//!
//! Owns no state. Invariant: a total is the sum over the counted domains or absent; nothing unknown counts as 0.

use crate::domain::Grade;

use super::account::{Account, Phase, Share, State};
use super::bound::guaranteed_uj;
use super::mark::{Mark, Stage, shaken_since, whole_uj};
use super::share::WEIGHT_ONE;
use super::span::{Cut, Lane, Life, Span};
use super::track::Track;

/// The account of a span that every domain has passed.
pub(crate) fn settled(span: &Span, marks: &[Mark], tracks: &[Track]) -> Account {
    let state = if span.abandoned { State::Abandoned } else { State::Settled };
    let shares = scope(span, marks, tracks).map(|(track, mark)| final_share(track, mark)).collect();
    let mut account = frame(span, state, shares, tracks);
    account.phases = phases(span, marks, tracks);
    account
}

/// The account so far: what the counters have vouched for, and for how much time they have not yet.
pub(crate) fn so_far(span: &Span, marks: &[Mark], tracks: &[Track], now_ns: u64) -> Account {
    let closing = span.life == Life::Closing;
    let state = if closing { State::Provisional } else { State::Open };
    let end_ns = if closing { span.closed_ns } else { now_ns.max(span.opened_ns) };
    let lanes = span.story.as_ref().map(|story| story.lanes.as_slice()).unwrap_or_default();
    let none = Lane::default();
    let shares = scope(span, marks, tracks)
        .map(|(track, mark)| {
            let lane = lanes.get(track.index()).unwrap_or(&none);
            running_share(track, mark, lane, span.opened_ns, end_ns)
        })
        .collect();
    let mut account = frame(span, state, shares, tracks);
    account.error_uj = None;
    account.phases = named_phases(span);
    account
}

fn scope<'a>(
    span: &'a Span,
    marks: &'a [Mark],
    tracks: &'a [Track],
) -> impl Iterator<Item = (&'a Track, &'a Mark)> {
    tracks.iter().zip(marks).filter(|(track, _)| span.scope >> track.index() & 1 == 1)
}

/// The domains of a span's account, in its order.
pub(crate) fn scope_of<'a>(span: &'a Span, tracks: &'a [Track]) -> impl Iterator<Item = &'a Track> {
    tracks.iter().filter(|track| span.scope >> track.index() & 1 == 1)
}

fn final_share(track: &Track, mark: &Mark) -> Share {
    let duration_known = mark.unknown_ns == 0;
    let error = mark.wobble;
    Share {
        domain: track.domain.name.clone(),
        grade: track.domain.grade,
        window_uj: Some(mark.energy),
        share_uj: Some(whole_uj(mark.g)),
        idle_uj: mark.idle_uj(),
        process_uj: None,
        error_uj: if duration_known { guaranteed_uj(error) } else { None },
        unknown_ns: mark.unknown_ns,
    }
}

fn running_share(track: &Track, mark: &Mark, lane: &Lane, opened_ns: u64, end_ns: u64) -> Share {
    let length_ns = end_ns.saturating_sub(opened_ns);
    let mut share = Share {
        domain: track.domain.name.clone(),
        grade: track.domain.grade,
        window_uj: None,
        share_uj: None,
        idle_uj: None,
        process_uj: None,
        error_uj: None,
        unknown_ns: length_ns,
    };
    match mark.stage() {
        Stage::Waiting => {}
        Stage::Running => {
            let vouched_to_ns = track.course.pos_ns().max(opened_ns);
            let ahead_ns = end_ns.saturating_sub(vouched_to_ns);
            let stand = track.course.stand();
            let fine = lane.share + mark.share(&stand);
            share.window_uj = Some(mark.window_uj(&stand).max(whole_uj(fine)));
            share.share_uj = Some(whole_uj(fine));
            share.idle_uj = mark.idle_part(&stand).map(|idle| whole_uj(lane.idle + idle));
            share.unknown_ns = ahead_ns + stand.unknown_ns.saturating_sub(mark.unknown_ns);
        }
        Stage::Done => return final_share(track, mark),
    }
    unvouched(share, length_ns)
}

/// A domain that vouches for no moment of the span has no figure, rather than 0.
fn unvouched(mut share: Share, length_ns: u64) -> Share {
    if length_ns > 0 && share.unknown_ns >= length_ns {
        (share.window_uj, share.share_uj, share.idle_uj, share.error_uj) = (None, None, None, None);
    }
    share
}

fn frame(span: &Span, state: State, shares: Vec<Share>, tracks: &[Track]) -> Account {
    let closed_ns = (span.life != Life::Open).then_some(span.closed_ns);
    let length_ns = closed_ns.unwrap_or(0).saturating_sub(span.opened_ns);
    let final_state = matches!(state, State::Settled | State::Abandoned);
    let shares: Vec<Share> = if final_state {
        shares.into_iter().map(|share| unvouched(share, length_ns)).collect()
    } else {
        shares
    };
    let counted: Vec<&Share> = tracks
        .iter()
        .filter(|track| span.counted >> track.index() & 1 == 1)
        .filter_map(|track| shares.iter().find(|share| share.domain == track.domain.name))
        .collect();
    let complete = !counted.is_empty() && (!final_state || counted.iter().all(|share| share.unknown_ns == 0));
    let sum = |part: fn(&Share) -> Option<u64>| -> Option<u64> {
        if complete { counted.iter().map(|share| part(share)).sum() } else { None }
    };
    let share_uj = sum(|share| share.share_uj);
    Account {
        span: span.id.to_string(),
        name: span.name.to_string(),
        attributes: span.attributes.clone(),
        state,
        uid: span.uid,
        opened_ns: span.opened_ns,
        closed_ns,
        moved_ns: span.all_moved_ns(),
        opened_unix_ns: span.unix_ns,
        weight: span.weight as f64 / WEIGHT_ONE as f64,
        share_uj,
        window_uj: sum(|share| share.window_uj),
        idle_uj: sum(|share| share.idle_uj),
        error_uj: sum(|share| share.error_uj),
        process: None,
        cgroup: None,
        process_uj: None,
        process_reason: None,
        grade: counted.iter().map(|share| share.grade).max().or_else(|| worst(&shares)),
        simulated: simulated(span, tracks),
        mean_power_mw: if final_state { mean_power_mw(share_uj, length_ns) } else { None },
        peak_concurrency: span.peak.max(1),
        domains: shares,
        phases: Vec::new(),
        at_least: (span.in_doubt != 0).then_some(true),
        durable: None,
    }
}

/// `Some(true)` where one of the span's domains belongs to a replayed machine.
fn simulated(span: &Span, tracks: &[Track]) -> Option<bool> {
    scope_of(span, tracks).any(|track| track.domain.is_simulated()).then_some(true)
}

fn worst(shares: &[Share]) -> Option<Grade> {
    shares.iter().map(|share| share.grade).max()
}

fn mean_power_mw(share_uj: Option<u64>, length_ns: u64) -> Option<u64> {
    let mw = (u128::from(share_uj?) * 1_000_000).checked_div(u128::from(length_ns))?;
    u64::try_from(mw).ok()
}

/// The phases' names and times alone, while the energy is not settled.
fn named_phases(span: &Span) -> Vec<Phase> {
    let Some(story) = span.story.as_ref().filter(|story| !story.phases.is_empty()) else { return Vec::new() };
    let closed_ns = (span.life == Life::Closing).then_some(span.closed_ns);
    let begun = story.phases.iter().filter(|(at_ns, _)| closed_ns.is_none_or(|end| *at_ns <= end));
    let mut list: Vec<Phase> = Vec::with_capacity(story.phases.len() + 1);
    if story.phases.first().is_some_and(|(at_ns, _)| *at_ns > span.opened_ns) {
        list.push(begun_phase("", span.opened_ns));
    }
    for (at_ns, name) in begun {
        if let Some(last) = list.last_mut() {
            last.closed_ns = Some(*at_ns);
        }
        list.push(begun_phase(name, *at_ns));
    }
    if let Some(last) = list.last_mut() {
        last.closed_ns = closed_ns;
    }
    list
}

fn begun_phase(name: &str, opened_ns: u64) -> Phase {
    Phase { name: name.into(), opened_ns, closed_ns: None, share_uj: None, error_uj: None }
}

/// The phases with their energy: each domain's cumulative share at the cuts, in whole µJ, so that they add up.
fn phases(span: &Span, marks: &[Mark], tracks: &[Track]) -> Vec<Phase> {
    let mut list = named_phases(span);
    let Some(story) = span.story.as_ref().filter(|_| !list.is_empty()) else { return list };
    let unnamed = usize::from(list.first().is_some_and(|phase| phase.name.is_empty()));
    for (number, phase) in list.iter_mut().enumerate() {
        let (mut share_uj, mut error_uj) = (Some(0_u64), Some(0_u64));
        let mut any = false;
        for (track, mark) in scope(span, marks, tracks).filter(|(t, _)| span.counted >> t.index() & 1 == 1) {
            any = true;
            let lane = &story.lanes[track.index()];
            // Which cut the phase begins at; the span's own edges stand for the first and the last.
            let begin = (number + 1).checked_sub(unnamed + 1).and_then(|cut| lane.cuts.get(cut));
            let end = lane.cuts.get(number + 1 - unnamed);
            let known = mark.unknown_ns == 0;
            share_uj = share_uj.filter(|_| known).map(|sum| sum + between_uj(begin, end, mark));
            let error = guaranteed_uj(phase_error(begin, end, mark, lane)).filter(|_| known);
            error_uj = error_uj.zip(error).map(|(sum, error)| sum + error);
        }
        phase.share_uj = share_uj.filter(|_| any);
        phase.error_uj = error_uj.filter(|_| any);
    }
    list
}

fn between_uj(begin: Option<&Cut>, end: Option<&Cut>, mark: &Mark) -> u64 {
    let at = |cut: Option<&Cut>, otherwise| cut.map_or(otherwise, |cut| whole_uj(cut.share));
    at(end, whole_uj(mark.g)).saturating_sub(at(begin, 0))
}

/// A phase's error, grains: what its two edges and the other spans' edges between them can shift. Where the span's
/// own edges are the phase's, the span's error bounds it.
fn phase_error(begin: Option<&Cut>, end: Option<&Cut>, mark: &Mark, lane: &Lane) -> u64 {
    let whole = mark.wobble;
    let widest = lane.widest.max(mark.weight());
    let inside = match (begin, end) {
        (Some(begin), Some(end)) => shaken_since(begin.wobble.0, end.wobble.1, widest),
        _ => whole,
    };
    let edge = |cut: Option<&Cut>| cut.map_or(0, |cut| cut.edge);
    edge(begin).saturating_add(edge(end)).saturating_add(inside)
}
