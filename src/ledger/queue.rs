//! Edges in the order of time, whatever the order in which their messages came.
//!
//! Owns every open, close, mark and weight that some domain has not passed yet. Invariant: sorted by (time, rank);
//! an edge is only ever inserted behind the settled time, so no domain's cursor is overtaken.

/// What happens to a span at an instant. The order is the order in which edges of one instant apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Edge {
    Open,
    Weight,
    Mark,
    Close,
}

/// An edge of a span. One cache line: every domain reads it, and what holds for all of them alike is told once, when the
/// queue's head passes: `before`, `total`, `inverse`, `turned`, `storied`, and a scope of nothing for an edge that says
/// nothing about its span.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub at_ns: u64,
    /// The domains of the span, so that the others pass without looking.
    pub scope: u64,
    /// What the span weighs before and behind the edge, 2^-16; nothing before its opening and behind its close.
    pub before: u64,
    pub weight: u64,
    /// The open weight of all spans behind this instant, and its inverse: right for every domain that all spans use.
    pub total: u64,
    pub inverse: u64,
    /// The index of the span's latest edge before this one at which its weight was set: opening or change.
    pub turned: u64,
    pub slot: u32,
    /// Of the slot's generation, the low half: a mark stamped behind its span's close may outlive the span.
    pub generation: u16,
    pub edge: Edge,
    /// Whether the span has phases or changes of weight.
    pub storied: bool,
}

/// The waiting edges, addressed by an index that grows for ever.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    events: Vec<Event>,
    /// How many at the front of `events` are forgotten already.
    passed: usize,
    first: u64,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.events.len() - self.passed
    }

    /// The index one behind the last event.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.len() as u64
    }

    /// Everything from `index` on, in order.
    #[inline]
    pub(crate) fn rest(&self, index: u64) -> &[Event] {
        self.events.get(self.place(index)..).unwrap_or_default()
    }

    /// The same, to note what is known once the head has passed.
    pub(crate) fn rest_mut(&mut self, index: u64) -> &mut [Event] {
        let place = self.place(index);
        self.events.get_mut(place..).unwrap_or_default()
    }

    /// Puts an event in its place: at the end where messages come in order, which is nearly always.
    pub(crate) fn insert(&mut self, event: Event) {
        let mut place = self.events.len();
        while let Some(before) = self.events[self.passed..place].last() {
            if (before.at_ns, before.edge) <= (event.at_ns, event.edge) {
                break;
            }
            place -= 1;
        }
        if place == self.events.len() {
            self.events.push(event);
        } else {
            self.events.insert(place, event);
        }
    }

    /// Forgets everything before `index`. Moves memory only when most of it is forgotten, so that an event is moved
    /// about once in its life.
    pub(crate) fn forget(&mut self, index: u64) {
        let passed = usize::try_from(index.saturating_sub(self.first)).unwrap_or(0).min(self.len());
        self.passed += passed;
        self.first += passed as u64;
        if self.passed * 2 >= self.events.len() {
            self.events.drain(..self.passed);
            self.passed = 0;
        }
    }

    fn place(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX).saturating_add(self.passed)
    }
}

/// How many events at the front of a list share its first instant, and when that is; `None` where it is not before
/// `limit_ns`.
#[inline]
pub(crate) fn first_instant(events: &[Event], limit_ns: u64) -> Option<(u64, usize)> {
    let at_ns = events.first()?.at_ns;
    if at_ns >= limit_ns {
        return None;
    }
    let mut length = 1;
    while events.get(length).is_some_and(|next| next.at_ns == at_ns) {
        length += 1;
    }
    Some((at_ns, length))
}
