//! Settling: passes every edge before the horizon in all domains, and returns the spans this completes.
//!
//! Owns the order: first the pre-pass fills in what holds for all domains, then each domain passes what its
//! counter covers, then what all have passed is dropped. Invariant: a span is returned once, after its last
//! domain.

use crate::attribution::account::Account;

use super::span::Span;
use super::{Attributor, SettledSpan, SpanKey};

impl Attributor {
    /// Settles everything that readings and the horizon allow, and appends the settled accounts to `into`. A
    /// settled span leaves the attributor: its key is unknown from then on.
    pub fn settle(&mut self, now_ns: u64, into: &mut Vec<(SpanKey, Account)>) {
        self.advance(now_ns);
        self.drain_settled(|settled| into.push((settled.key(), settled.account())));
    }

    /// Settles everything that readings and the horizon allow; the figures wait for [`Attributor::drain_settled`].
    pub fn advance(&mut self, now_ns: u64) {
        let horizon_ns = self.horizon_ns(now_ns);
        self.last_settle_ns = now_ns;
        self.pre_pass.advance(horizon_ns, &mut self.queue, &mut self.spans, &mut self.settled_slots);
        let busy = self.is_busy();
        for timeline in &mut self.timelines {
            let has_pending_edges = timeline.next_edge < self.queue.edges.end_index();
            let waited_ns = now_ns.saturating_sub(timeline.last_reading_ns().max(self.busy_since_ns));
            if (has_pending_edges && (self.live_domains >> timeline.index()) & 1 == 0)
                || (busy && waited_ns > timeline.counter_timeout_ns())
            {
                timeline.time_out(horizon_ns);
            }
            timeline.settle(horizon_ns, &self.queue, &mut self.spans, &mut self.settled_slots);
        }
        if let Some((domain, before_ns)) = self.process_shares.record_rows(&self.timelines) {
            self.drop_oldest_rows(domain, before_ns);
        }
        while let Some(slot) = self.pre_pass.spans_to_fold.pop() {
            self.fold_weights(slot);
        }
        let end = self.queue.instants.end_index();
        let next_instant = self.timelines.iter().map(|timeline| timeline.next_instant).min().unwrap_or(end);
        self.queue.drop_before(next_instant, self.pre_pass.next_edge);
    }

    /// Folds a span's old weights into one process share for each domain.
    #[cold]
    fn fold_weights(&mut self, slot: u32) {
        let key = self.spans.key_of(slot);
        self.process_shares.fold_weights(self.spans.span_mut(slot), key, &self.timelines);
    }

    /// Drops a domain's oldest rows; long spans keep what they need of them.
    #[cold]
    fn drop_oldest_rows(&mut self, domain: usize, before_ns: u64) {
        for (key, span) in self.spans.iter() {
            let is_split = span.subject != 0 && (span.scope >> domain) & 1 == 1;
            if is_split && span.opened_ns <= before_ns {
                self.process_shares.record_opening_point(domain, key, span, &self.timelines);
            }
        }
        let changed =
            |(key, span): (SpanKey, &Span)| span.has_weight_intervals().then_some(super::slot_of(key));
        let changed: Vec<u32> = self.spans.iter().filter_map(changed).collect();
        changed.into_iter().for_each(|slot| self.fold_weights(slot));
        self.process_shares.drop_oldest_rows(domain);
    }

    /// Shows each freshly settled span's figures once, and forgets the span.
    pub fn drain_settled(&mut self, show: impl FnMut(SettledSpan<'_>)) {
        self.drain_settled_up_to(usize::MAX, show);
    }

    /// The same for at most `limit` spans; whether there are more.
    pub fn drain_settled_up_to(&mut self, limit: usize, mut show: impl FnMut(SettledSpan<'_>)) -> bool {
        let mut settled_slots = std::mem::take(&mut self.settled_slots);
        for slot in settled_slots.drain(..settled_slots.len().min(limit)) {
            let (span, states) = self.spans.span_and_states(slot);
            for (timeline, state) in self.timelines.iter_mut().zip(states) {
                if (span.scope >> timeline.index()) & 1 == 1 {
                    timeline.record_settled_share(state.g, span.cancelled);
                }
            }
            if !span.cancelled {
                let key = self.spans.key_of(slot);
                show(SettledSpan {
                    key,
                    span,
                    domain_states: states,
                    timelines: &self.timelines,
                    process_shares: &self.process_shares,
                });
            }
            if span.subject != 0 {
                self.process_shares.remove_span(span.subject, self.spans.key_of(slot));
            }
            self.spans.release(slot);
        }
        self.settled_slots = settled_slots;
        if self.spans.len() == self.open_count {
            self.oldest_close_ns = None;
        }
        !self.settled_slots.is_empty()
    }

    /// The earliest instant at which [`Attributor::settle`] may have something to give; `None` while nothing is
    /// closing.
    pub fn next_settle_ns(&self) -> Option<u64> {
        let due_ns = self.oldest_close_ns? + self.settings.horizon_ns + 1;
        Some(if due_ns > self.last_settle_ns { due_ns } else { self.last_settle_ns + 1_000_000 })
    }
}
