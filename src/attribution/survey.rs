//! A look at the spans that are held: one alone, or some at a time for whoever notes how far each has come.
//!
//! Owns no state and changes none. Invariant: a round that begins at slot 0 and goes on where each look ended sees every
//! span once that was held all the while.

use super::account::Account;
use super::span::Life;
use super::{Ledger, SpanKey, result};

impl Ledger {
    /// When a span began that is open, by its client's word; that may lie a moment ahead of now.
    pub fn asked_ns(&self, key: SpanKey) -> Option<u64> {
        self.roster.find(key).filter(|span| span.life == Life::Open).map(|span| span.asked_ns())
    }

    /// Shows the account so far of each span in up to `slots` slots from `from` on that opened by `opened_by_ns`;
    /// cancelled ones are left out. Gives the slot to go on at, `None` after the last.
    pub fn survey(
        &self,
        from: usize,
        slots: usize,
        now_ns: u64,
        opened_by_ns: u64,
        mut show: impl FnMut(SpanKey, Account),
    ) -> Option<usize> {
        let end = self.roster.slots().min(from.saturating_add(slots));
        for slot in from..end {
            let slot = u32::try_from(slot).ok()?;
            let (span, marks) = self.roster.view(slot);
            if span.life != Life::Free && !span.cancelled && span.opened_ns <= opened_by_ns {
                show(self.roster.key(slot), result::so_far(span, marks, &self.tracks, now_ns));
            }
        }
        (end < self.roster.slots()).then_some(end)
    }
}
