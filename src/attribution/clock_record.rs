//! The compact record of the domains' clocks, from which the accounts so far of all open spans follow.
//!
//! All spans share the clocks' values at an instant. A span's energy between two of them is its weight times the rise of
//! `g`, so that an account that was recorded once needs no new record while the span's weight stays the same. Invariant: an
//! extended account equals the account so far at that instant, but for one microjoule in each figure of a domain.

use wattspan_client::account::{Account, Share};

use super::domain_timeline::DomainTimeline;
use super::span::{Span, SpanDomainStage, SpanDomainState};
use super::units::{ENERGY_FRACTION_BITS, whole_uj};
use super::virtual_energy::{ENERGY_SHIFT, IDLE_SHIFT};

/// The clock of one domain at its settled time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DomainClock {
    /// Energy per unit of weight, 2^-64 µJ.
    pub g: u128,
    /// The whole energy, 2^-8 µJ, wrapping.
    pub energy: u64,
    /// The idle part of `g`, 2^-20 µJ per unit of weight, wrapping.
    pub idle_g: u64,
    /// The time that readings cover, with an arbitrary origin, wrapping.
    pub covered_ns: u64,
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

impl DomainClock {
    pub(crate) fn of(timeline: &DomainTimeline) -> Self {
        let clock = timeline.virtual_energy.snapshot();
        Self {
            g: clock.g,
            energy: clock.energy,
            idle_g: clock.idle_g,
            covered_ns: timeline.virtual_energy.position_ns.wrapping_sub(clock.unknown_ns),
        }
    }
}

/// The bases of a span's account so far, in the order of its shares; `None` while a change of its weight is not settled.
pub(crate) fn share_bases(
    span: &Span,
    states: &[SpanDomainState],
    timelines: &[DomainTimeline],
) -> Option<Vec<ShareBasis>> {
    if span.has_unsettled_weight_changes(1) {
        return None;
    }
    let used = timelines.iter().zip(states).filter(|(timeline, _)| span.uses(timeline.index()));
    let basis = |(timeline, state): (&DomainTimeline, &SpanDomainState)| ShareBasis {
        domain: timeline.index(),
        is_counted: span.counted >> timeline.index() & 1 == 1,
        clock: (state.stage() == SpanDomainStage::Open)
            .then(|| (DomainClock::of(timeline), state.weight(), state.is_idle_known())),
    };
    Some(used.map(basis).collect())
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
    let counted = || account.domains.iter().zip(bases).filter(|(_, basis)| basis.is_counted);
    let sum = |figure: fn(&Share) -> Option<u64>| {
        let has_counted = counted().next().is_some();
        let mut shares = counted();
        has_counted
            .then(|| shares.try_fold(0_u64, |sum, (share, _)| Some(sum.saturating_add(figure(share)?))))
            .flatten()
    };
    account.share_uj = sum(|share| share.share_uj);
    account.window_uj = sum(|share| share.window_uj);
    account.idle_uj = sum(|share| share.idle_uj);
}

fn extend_share(share: &mut Share, basis: &ShareBasis, clock: Option<&DomainClock>, added_ns: u64) {
    let (Some((since, weight, is_idle_known)), Some(clock)) = (&basis.clock, clock) else {
        share.unknown_ns = share.unknown_ns.saturating_add(added_ns);
        return;
    };
    let weight = u128::from(*weight);
    let energy = whole_uj(weight.saturating_mul(clock.g.saturating_sub(since.g)));
    let share_uj = share.share_uj.unwrap_or(0).saturating_add(energy);
    let window_uj = clock.energy.wrapping_sub(since.energy) >> (ENERGY_FRACTION_BITS - ENERGY_SHIFT);
    share.window_uj = Some(share.window_uj.unwrap_or(0).saturating_add(window_uj).max(share_uj));
    share.share_uj = Some(share_uj);
    let idle = (weight * u128::from(clock.idle_g.wrapping_sub(since.idle_g))) << IDLE_SHIFT;
    let idle_uj = share.idle_uj.unwrap_or(0).saturating_add(whole_uj(idle));
    // As in the account so far: the record is more precise in the share than in its idle part.
    share.idle_uj = is_idle_known.then(|| idle_uj.min(share.share_uj.unwrap_or(u64::MAX)));
    let covered_ns = clock.covered_ns.wrapping_sub(since.covered_ns);
    share.unknown_ns = share.unknown_ns.saturating_add(added_ns).saturating_sub(covered_ns);
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
