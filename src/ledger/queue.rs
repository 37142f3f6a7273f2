//! Edges in the order of time, whatever the order in which their messages came.
//!
//! Owns every open, close, mark and weight that some domain has not passed yet. Invariant: sorted by (time, rank);
//! an edge is only ever inserted behind the settled time, so no domain's cursor is overtaken.

use std::collections::VecDeque;

/// What happens to a span at an instant. The order is the order in which edges of one instant apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Edge {
    Open,
    Weight,
    Mark,
    Close,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub at_ns: u64,
    pub slot: u32,
    pub generation: u32,
    pub edge: Edge,
    /// The new weight in 2^-16, for `Open` and `Weight`.
    pub weight: u64,
}

/// The waiting edges, addressed by an index that grows for ever.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    events: VecDeque<Event>,
    first: u64,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// The index one behind the last event.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// The event at `index`, if it is there.
    #[inline]
    pub(crate) fn get(&self, index: u64) -> Option<&Event> {
        self.events.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// Puts an event in its place: at the end where messages come in order, which is nearly always.
    pub(crate) fn insert(&mut self, event: Event) {
        let mut place = self.events.len();
        while let Some(before) = place.checked_sub(1).and_then(|i| self.events.get(i)) {
            if (before.at_ns, before.edge) <= (event.at_ns, event.edge) {
                break;
            }
            place -= 1;
        }
        if place == self.events.len() {
            self.events.push_back(event);
        } else {
            self.events.insert(place, event);
        }
    }

    /// Forgets everything before `index`.
    pub(crate) fn forget(&mut self, index: u64) {
        let passed = usize::try_from(index.saturating_sub(self.first)).unwrap_or(0).min(self.events.len());
        self.events.drain(..passed);
        self.first += passed as u64;
    }

    /// The time of the earliest event from `index` on.
    pub(crate) fn time_at(&self, index: u64) -> Option<u64> {
        self.get(index).map(|event| event.at_ns)
    }
}
