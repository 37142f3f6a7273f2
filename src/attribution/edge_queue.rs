//! The queue of edges, in the order of their times.
//!
//! Owns every edge that some domain has not passed yet. Invariant: the queue is sorted by (time, kind), whatever the
//! order of the messages. An edge is only inserted after the settled time, so never before a domain's position.

use super::virtual_energy::VirtualTime;

/// The kind of an edge. Edges of one instant apply in the order of the variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EdgeKind {
    Open,
    Weight,
    Phase,
    Close,
}

/// An edge of a span. The pre-pass fills in what is the same for all domains: `weight_before`, `weight_edge`,
/// `has_history`, and an empty scope for an edge without effect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub at_ns: u64,
    /// The span's domains, one bit each; the other domains skip the edge.
    pub scope: u64,
    /// The span's weight before and after the edge, 2^-16; 0 before its opening and after its close.
    pub weight_before: u64,
    pub weight_after: u64,
    /// The index of the span's latest opening or weight edge before this one.
    pub weight_edge: u64,
    pub slot: u32,
    pub kind: EdgeKind,
    /// Whether the span has phases or changes of weight.
    pub has_history: bool,
}

/// The edges of one instant, after their pre-pass. They apply together, and nearly always to all domains.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EdgeInstant {
    /// ΔH from the instant before it up to this one, for a domain that all open spans use.
    pub virtual_time: VirtualTime,
    /// The indices of its edges: from `first_edge` up to `end_edge`.
    pub first_edge: u64,
    pub end_edge: u64,
    /// The domains of at least one of its spans, and the domains of all of them.
    pub any_scope: u64,
    pub all_scope: u64,
    /// The change of the total weight, wrapping.
    pub weight_change: u64,
}

impl EdgeInstant {
    #[inline]
    pub(crate) fn new(virtual_time: VirtualTime, first_edge: u64) -> Self {
        let (end_edge, all_scope) = (first_edge, u64::MAX);
        Self { virtual_time, first_edge, end_edge, any_scope: 0, all_scope, weight_change: 0 }
    }

    #[inline]
    pub(crate) fn at_ns(&self) -> u64 {
        self.virtual_time.to_ns
    }

    #[inline]
    pub(crate) fn add_edge(&mut self, edge: &Edge) {
        self.end_edge += 1;
        self.any_scope |= edge.scope;
        self.all_scope &= edge.scope;
        self.weight_change =
            self.weight_change.wrapping_add(edge.weight_after).wrapping_sub(edge.weight_before);
    }
}

/// A queue whose items keep their index for ever, while items are dropped from the front.
#[derive(Debug)]
pub(crate) struct IndexedQueue<T> {
    items: Vec<T>,
    /// How many items at the front of `items` are dropped already.
    dropped: usize,
    first_index: u64,
}

impl<T> Default for IndexedQueue<T> {
    fn default() -> Self {
        Self { items: Vec::new(), dropped: 0, first_index: 0 }
    }
}

impl<T> IndexedQueue<T> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.items.len() - self.dropped
    }

    /// The index one after the last item.
    #[inline]
    pub(crate) fn end_index(&self) -> u64 {
        self.first_index + self.len() as u64
    }

    /// The items from `index` on, in order.
    #[inline]
    pub(crate) fn items_from(&self, index: u64) -> &[T] {
        self.items.get(self.position(index)..).unwrap_or_default()
    }

    /// The items from `index` up to `end`.
    #[inline]
    pub(crate) fn items(&self, index: u64, end: u64) -> &[T] {
        &self.items[self.position(index)..self.position(end)]
    }

    /// The items from `index` on, mutable for the pre-pass.
    #[inline]
    pub(crate) fn items_from_mut(&mut self, index: u64) -> &mut [T] {
        let position = self.position(index);
        self.items.get_mut(position..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        self.items.push(item);
    }

    /// Drops the items before `index`. Moves memory only when at least half of it is dropped, so an item is moved about
    /// once.
    pub(crate) fn drop_before(&mut self, index: u64) {
        let dropped = usize::try_from(index.saturating_sub(self.first_index)).unwrap_or(0).min(self.len());
        self.dropped += dropped;
        self.first_index += dropped as u64;
        if self.dropped * 2 >= self.items.len() {
            self.items.drain(..self.dropped);
            self.dropped = 0;
        }
    }

    fn shrink(&mut self) {
        self.items.drain(..std::mem::take(&mut self.dropped));
        self.items.shrink_to(64);
    }

    #[inline]
    fn position(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first_index))
            .unwrap_or(usize::MAX)
            .saturating_add(self.dropped)
    }
}

#[derive(Debug, Default)]
pub(crate) struct EdgeQueue {
    pub edges: IndexedQueue<Edge>,
    /// The instants of the edges that the pre-pass has visited.
    pub instants: IndexedQueue<EdgeInstant>,
}

impl EdgeQueue {
    /// Inserts an edge. Messages are nearly always in order, so nearly always at the end.
    #[inline]
    pub(crate) fn insert(&mut self, edge: Edge) {
        let rank = |edge: &Edge| (edge.at_ns, edge.kind);
        let pending = self.edges.items_from(self.edges.first_index);
        if pending.last().is_none_or(|last| rank(last) <= rank(&edge)) {
            self.edges.push(edge);
        } else {
            self.insert_out_of_order(edge);
        }
    }

    #[cold]
    fn insert_out_of_order(&mut self, edge: Edge) {
        let IndexedQueue { items, dropped, .. } = &mut self.edges;
        let position =
            items[*dropped..].partition_point(|other| (other.at_ns, other.kind) <= (edge.at_ns, edge.kind));
        items.insert(*dropped + position, edge);
    }

    /// Removes the edges of a slot after an instant from which on no edge is passed.
    #[cold]
    pub(crate) fn remove_after(&mut self, slot: u32, at_ns: u64) {
        let IndexedQueue { items, dropped, .. } = &mut self.edges;
        let first = *dropped + items[*dropped..].partition_point(|edge| edge.at_ns <= at_ns);
        items.extract_if(first.., |edge| edge.slot == slot).for_each(drop);
    }

    /// Frees memory that many edges used.
    pub(crate) fn shrink(&mut self) {
        self.edges.shrink();
        self.instants.shrink();
    }

    /// Drops the instants before `index`, and their edges.
    pub(crate) fn drop_before(&mut self, index: u64, pre_pass_edge: u64) {
        let first_edge =
            self.instants.items_from(index).first().map_or(pre_pass_edge, |instant| instant.first_edge);
        self.instants.drop_before(index);
        self.edges.drop_before(first_edge);
    }
}
