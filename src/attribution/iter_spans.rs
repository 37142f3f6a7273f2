//! Read access to the unsettled spans: one alone, or some at a time, for the journal of open spans.
//!
//! Owns no state and changes none. Invariant: an iteration that begins at slot 0 and goes on where each call ended sees
//! every span once that was unsettled all the while.

use super::account::Account;
use super::span::SlotState;
use super::{Attributor, SpanKey, account_builder};

impl Attributor {
    /// The opening that the client of an open span requested; it may lie slightly after now.
    pub fn requested_ns(&self, key: SpanKey) -> Option<u64> {
        self.spans.get(key).filter(|span| span.slot_state == SlotState::Open).map(|span| span.requested_ns())
    }

    /// Shows the account so far of each span in up to `slots` slots from `from` on that opened by `opened_by_ns`;
    /// cancelled ones are left out. Gives the slot to go on at, `None` after the last.
    pub fn iter_spans(
        &self,
        from: usize,
        slots: usize,
        now_ns: u64,
        opened_by_ns: u64,
        mut show: impl FnMut(SpanKey, Account),
    ) -> Option<usize> {
        let end = self.spans.slot_count().min(from.saturating_add(slots));
        for slot in from..end {
            let slot = u32::try_from(slot).ok()?;
            let (span, states) = self.spans.span_and_states(slot);
            if span.slot_state != SlotState::Free && !span.cancelled && span.opened_ns <= opened_by_ns {
                show(
                    self.spans.key_of(slot),
                    account_builder::unsettled_account(span, states, &self.timelines, now_ns),
                );
            }
        }
        (end < self.spans.slot_count()).then_some(end)
    }
}
