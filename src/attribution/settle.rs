//! What time settles: every edge that the horizon has left behind, in all domains, and the spans this completes.
//!
//! Owns the order: first the queue's head tells the edges what holds for all domains, then each domain passes what its
//! counter vouches for, then what all have passed is forgotten. Invariant: a span is handed out once, after its last
//! domain.

use crate::attribution::account::Account;

use super::span::Span;
use super::{Ledger, Settled, SpanKey};

impl Ledger {
    /// Settles everything that readings and the horizon allow, and appends the settled accounts to `into`. A
    /// settled span leaves the ledger: its key is unknown from then on.
    pub fn settle(&mut self, now_ns: u64, into: &mut Vec<(SpanKey, Account)>) {
        self.advance(now_ns);
        self.hand_out(|settled| into.push((settled.key(), settled.account())));
    }

    /// Settles everything that readings and the horizon allow; the figures wait for [`Ledger::hand_out`].
    pub fn advance(&mut self, now_ns: u64) {
        let behind_ns = self.horizon_ns(now_ns);
        self.settled_ns = now_ns;
        self.head.advance(behind_ns, &mut self.queue, &mut self.roster, &mut self.done);
        let busy = self.busy();
        for track in &mut self.tracks {
            let unpassed = track.passed < self.queue.events.end();
            let waited_ns = now_ns.saturating_sub(track.fed_ns().max(self.busy_since_ns));
            if (unpassed && (self.live >> track.index()) & 1 == 0)
                || (busy && waited_ns > track.patience_ns())
            {
                track.give_up(behind_ns);
            }
            track.settle(behind_ns, &self.queue, &mut self.roster, &mut self.done);
        }
        if let Some((domain, before_ns)) = self.portions.follow(&self.tracks) {
            self.forget_rows(domain, before_ns);
        }
        while let Some(slot) = self.head.full.pop() {
            self.fold_weights(slot);
        }
        let heads = self.queue.instants.end();
        let passed = self.tracks.iter().map(|track| track.cursor).min().unwrap_or(heads);
        self.queue.forget(passed, self.head.passed);
    }

    /// Folds a span's old weights into one portion for each domain.
    #[cold]
    fn fold_weights(&mut self, slot: u32) {
        let key = self.roster.key(slot);
        self.portions.fold(self.roster.span_mut(slot), key, &self.tracks);
    }

    /// A domain's older rows make room; long spans that need them keep what they need.
    #[cold]
    fn forget_rows(&mut self, domain: usize, before_ns: u64) {
        for (key, span) in self.roster.live() {
            let uses = span.subject != 0 && (span.scope >> domain) & 1 == 1;
            if uses && span.opened_ns <= before_ns {
                self.portions.anchor(domain, key, span, &self.tracks);
            }
        }
        let changed = |(key, span): (SpanKey, &Span)| span.has_weight_pieces().then_some(super::slot(key));
        let changed: Vec<u32> = self.roster.live().filter_map(changed).collect();
        changed.into_iter().for_each(|slot| self.fold_weights(slot));
        self.portions.forget(domain);
    }

    /// Shows each freshly settled span's figures once, and forgets the span.
    pub fn hand_out(&mut self, show: impl FnMut(Settled<'_>)) {
        self.hand_out_some(usize::MAX, show);
    }

    /// The same for at most `most` spans; whether there are more.
    pub fn hand_out_some(&mut self, most: usize, mut show: impl FnMut(Settled<'_>)) -> bool {
        let mut done = std::mem::take(&mut self.done);
        for slot in done.drain(..done.len().min(most)) {
            let (span, marks) = self.roster.view(slot);
            for (track, mark) in self.tracks.iter_mut().zip(marks) {
                if (span.scope >> track.index()) & 1 == 1 {
                    track.hand_out(mark.g, span.cancelled);
                }
            }
            if !span.cancelled {
                let key = self.roster.key(slot);
                show(Settled { key, span, marks, tracks: &self.tracks, portions: &self.portions });
            }
            if span.subject != 0 {
                self.portions.release(span.subject, self.roster.key(slot));
            }
            self.roster.release(slot);
        }
        self.done = done;
        if self.roster.len() == self.open {
            self.oldest_close_ns = None;
        }
        !self.done.is_empty()
    }

    /// The earliest instant at which [`Ledger::settle`] may have something to give; `None` while nothing is closing.
    pub fn next_due_ns(&self) -> Option<u64> {
        let due_ns = self.oldest_close_ns? + self.settings.horizon_ns + 1;
        Some(if due_ns > self.settled_ns { due_ns } else { self.settled_ns + 1_000_000 })
    }
}
