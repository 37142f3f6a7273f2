//! The journal's record of the domains' clocks: when it is due, and which spans it does not extend.
//!
//! Owns the clocks of the last records, as far as spans need them. Invariant: a span whose weight has changed, or that has
//! been closed, since its row was written is held at the last record before that message, until its row is written again or
//! deleted. The settled time of a domain is before every message that is still to come, so that record precedes the change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::attribution::{DomainClock, SpanKey};
use crate::store::{ClockRecord, ClockTick};

/// The interval between two records, and so the age of the figures of open spans after a crash.
pub(super) const CLOCK_INTERVAL_NS: u64 = 1_000_000_000;

/// The clocks of the journal.
#[derive(Debug, Default)]
pub(super) struct JournalClock {
    due_ns: u64,
    last: Option<Arc<ClockTick>>,
    held: HashMap<SpanKey, Option<Arc<ClockTick>>>,
}

impl JournalClock {
    /// Holds a span, whose row the journal has, at the last record.
    pub(super) fn hold(&mut self, key: SpanKey) {
        self.held.entry(key).or_insert_with(|| self.last.clone());
    }

    /// Ends that: the row was written again, or deleted.
    pub(super) fn release(&mut self, key: SpanKey) {
        // Nearly always, nothing is held.
        if !self.held.is_empty() {
            self.held.remove(&key);
        }
    }

    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.due_ns
    }

    /// Makes these clocks the last record, and passes it to `write`, which returns whether it was taken. The cost does not
    /// depend on the number of open spans, but on that of held ones.
    pub(super) fn record(
        &mut self,
        now_ns: u64,
        clocks: Vec<DomainClock>,
        write: impl FnOnce(&ClockRecord<'_>) -> bool,
    ) {
        let tick = Arc::new(ClockTick { at_ns: now_ns, clocks });
        let mut record = ClockRecord { ticks: vec![&tick], held: Vec::with_capacity(self.held.len()) };
        let mut indices = BTreeMap::new();
        for (key, held_at) in &self.held {
            let index = held_at.as_ref().map(|held_at| {
                *indices.entry(held_at.at_ns).or_insert_with(|| {
                    record.ticks.push(held_at);
                    record.ticks.len() - 1
                })
            });
            record.held.push((key.0, index));
        }
        self.due_ns = now_ns + CLOCK_INTERVAL_NS;
        if write(&record) {
            self.last = Some(tick);
        }
    }

    /// Frees memory that many held spans used.
    pub(super) fn shrink(&mut self) {
        self.held.shrink_to(2 * self.held.len());
    }
}
