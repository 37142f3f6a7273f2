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

/// An edge of a span. What holds for all domains alike is told once, when the queue's head passes: `before`, `part`,
/// `turned`, `storied`, and a scope of nothing for an edge that says nothing about its span.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub at_ns: u64,
    /// The domains of the span, so that the others pass without looking.
    pub scope: u64,
    /// What the span weighs before and behind the edge, 2^-16; nothing before its opening and behind its close.
    pub before: u64,
    pub weight: u64,
    /// The part of all open weight that comes or goes, 2^-63: of the weight behind an opening, before a close.
    pub part: u64,
    /// The index of the span's latest edge before this one at which its weight was set: opening or change.
    pub turned: u64,
    pub slot: u32,
    /// Of the slot's generation, the low half: a mark stamped behind its span's close may outlive the span.
    pub generation: u16,
    pub edge: Edge,
    /// Whether the span has phases or changes of weight.
    pub storied: bool,
}

/// The events of one instant, once the head has passed them: they apply together, and nearly always to all domains.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instant {
    pub at_ns: u64,
    /// The indices of its events: from `begin` up to `end`.
    pub begin: u64,
    pub end: u64,
    /// The domains of at least one of its spans, and those of all.
    pub any: u64,
    pub all: u64,
    /// What it adds to the open weight, wrapping.
    pub change: u64,
    /// The open weight of all spans behind it, and its inverse: right for every domain that all spans use.
    pub total: u64,
    pub inverse: u64,
}

impl Instant {
    /// One more of its events.
    #[inline]
    pub(crate) fn add(&mut self, event: &Event) {
        self.end += 1;
        if event.scope == 0 && event.weight == event.before {
            return;
        }
        self.any |= event.scope;
        self.all &= event.scope;
        self.change = self.change.wrapping_add(event.weight).wrapping_sub(event.before);
    }
}

/// A list addressed by an index that grows for ever, forgotten from the front.
#[derive(Debug)]
pub(crate) struct Belt<T> {
    items: Vec<T>,
    /// How many at the front of `items` are forgotten already.
    passed: usize,
    first: u64,
}

impl<T> Default for Belt<T> {
    fn default() -> Self {
        Self { items: Vec::new(), passed: 0, first: 0 }
    }
}

impl<T> Belt<T> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.items.len() - self.passed
    }

    /// The index one behind the last item.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        self.first + self.len() as u64
    }

    /// Everything from `index` on, in order.
    #[inline]
    pub(crate) fn rest(&self, index: u64) -> &[T] {
        self.items.get(self.place(index)..).unwrap_or_default()
    }

    /// The same, to note what is known once the head has passed.
    #[inline]
    pub(crate) fn rest_mut(&mut self, index: u64) -> &mut [T] {
        let place = self.place(index);
        self.items.get_mut(place..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        self.items.push(item);
    }

    /// Forgets everything before `index`. Moves memory only when most of it is forgotten, so that an item is moved
    /// about once in its life.
    pub(crate) fn forget(&mut self, index: u64) {
        let passed = usize::try_from(index.saturating_sub(self.first)).unwrap_or(0).min(self.len());
        self.passed += passed;
        self.first += passed as u64;
        if self.passed * 2 >= self.items.len() {
            self.items.drain(..self.passed);
            self.passed = 0;
        }
    }

    fn shrink(&mut self) {
        self.items.drain(..std::mem::take(&mut self.passed));
        self.items.shrink_to(64);
    }

    #[inline]
    fn place(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX).saturating_add(self.passed)
    }
}

/// The waiting edges.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub events: Belt<Event>,
    /// Of the events that the head has passed.
    pub instants: Belt<Instant>,
    /// The index one behind the last event that changes a weight or begins a phase.
    pub storied: u64,
}

impl Queue {
    /// Puts an event in its place: at the end where messages come in order, which is nearly always.
    #[inline]
    pub(crate) fn insert(&mut self, event: Event) {
        let rank = |event: &Event| (event.at_ns, event.edge);
        let waiting = self.events.rest(self.events.first);
        if waiting.last().is_none_or(|last| rank(last) <= rank(&event)) {
            self.events.push(event);
        } else {
            self.squeeze_in(event);
        }
    }

    #[cold]
    fn squeeze_in(&mut self, event: Event) {
        let Belt { items, passed, .. } = &mut self.events;
        let place =
            items[*passed..].partition_point(|other| (other.at_ns, other.edge) <= (event.at_ns, event.edge));
        items.insert(*passed + place, event);
    }

    /// One more than the highest slot of a waiting edge.
    pub(crate) fn slots(&self) -> usize {
        let waiting = self.events.rest(self.events.first).iter();
        waiting.map(|event| event.slot as usize + 1).max().unwrap_or(0)
    }

    /// Gives memory back that many edges took.
    pub(crate) fn shrink(&mut self) {
        self.events.shrink();
        self.instants.shrink();
    }

    /// Forgets the instants before `index`, and their events.
    pub(crate) fn forget(&mut self, index: u64, head: u64) {
        let begin = self.instants.rest(index).first().map_or(head, |instant| instant.begin);
        self.instants.forget(index);
        self.events.forget(begin);
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
