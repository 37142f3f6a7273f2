//! Edges in the order of time, whatever the order in which their messages came.
//!
//! Owns every opening, closing, phase and weight edge that some domain has not passed yet. Invariant: sorted by (time,
//! rank); an edge is only ever inserted after the settled time, so no domain's cursor is overtaken.

/// What happens to a span at an instant. The order is the order in which edges of one instant apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EdgeKind {
    Open,
    Weight,
    Phase,
    Close,
}

/// An edge of a span. What holds for all domains alike is filled in once, by the pre-pass: `weight_before`,
/// `share_fraction`, `weight_edge`, `has_history`, and an empty scope for an edge without effect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub at_ns: u64,
    /// The domains of the span, so that the others pass without looking.
    pub scope: u64,
    /// What the span weighs before and after the edge, 2^-16; nothing before its opening and after its close.
    pub weight_before: u64,
    pub weight_after: u64,
    /// The part of all open weight that comes or goes, 2^-63: of the weight after an opening, before a close.
    pub share_fraction: u64,
    /// The index of the span's latest edge before this one at which its weight was set: opening or change.
    pub weight_edge: u64,
    pub slot: u32,
    /// Of the slot's generation, the low half: an edge stamped after its span's close may outlive the span.
    pub generation: u16,
    pub kind: EdgeKind,
    /// Whether the span has phases or changes of weight.
    pub has_history: bool,
}

/// The edges of one instant, once the pre-pass has passed them: they apply together, and nearly always to all domains.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EdgeInstant {
    pub at_ns: u64,
    /// The indices of its edges: from `first_edge` up to `end_edge`.
    pub first_edge: u64,
    pub end_edge: u64,
    /// The domains of at least one of its spans, and those of all.
    pub any_scope: u64,
    pub all_scope: u64,
    /// What it adds to the open weight, wrapping.
    pub weight_change: u64,
    /// The open weight of all spans after it, and its inverse: right for every domain that all spans use.
    pub total_weight: u64,
    pub inverse_weight: u64,
}

impl EdgeInstant {
    /// One more of its edges.
    #[inline]
    pub(crate) fn add_edge(&mut self, edge: &Edge) {
        self.end_edge += 1;
        if edge.scope == 0 && edge.weight_after == edge.weight_before {
            return;
        }
        self.any_scope |= edge.scope;
        self.all_scope &= edge.scope;
        self.weight_change =
            self.weight_change.wrapping_add(edge.weight_after).wrapping_sub(edge.weight_before);
    }
}

/// A list addressed by an index that grows for ever, forgotten from the front.
#[derive(Debug)]
pub(crate) struct IndexedQueue<T> {
    items: Vec<T>,
    /// How many at the front of `items` are forgotten already.
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

    /// Everything from `index` on, in order.
    #[inline]
    pub(crate) fn items_from(&self, index: u64) -> &[T] {
        self.items.get(self.position(index)..).unwrap_or_default()
    }

    /// The same, to note what is known once the pre-pass has passed.
    #[inline]
    pub(crate) fn items_from_mut(&mut self, index: u64) -> &mut [T] {
        let position = self.position(index);
        self.items.get_mut(position..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        self.items.push(item);
    }

    /// Forgets everything before `index`. Moves memory only when most of it is forgotten, so that an item is moved
    /// about once in its life.
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

/// The waiting edges.
#[derive(Debug, Default)]
pub(crate) struct EdgeQueue {
    pub edges: IndexedQueue<Edge>,
    /// Of the edges that the pre-pass has passed.
    pub instants: IndexedQueue<EdgeInstant>,
    /// The index one after the last edge that changes a weight or begins a phase.
    pub history_end: u64,
}

impl EdgeQueue {
    /// Puts an edge in its place: at the end where messages come in order, which is nearly always.
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

    /// One more than the highest slot of a waiting edge.
    pub(crate) fn slot_limit(&self) -> usize {
        let pending = self.edges.items_from(self.edges.first_index).iter();
        pending.map(|edge| edge.slot as usize + 1).max().unwrap_or(0)
    }

    /// Gives memory back that many edges took.
    pub(crate) fn shrink(&mut self) {
        self.edges.shrink();
        self.instants.shrink();
    }

    /// Forgets the instants before `index`, and their edges.
    pub(crate) fn drop_before(&mut self, index: u64, pre_pass_edge: u64) {
        let first_edge =
            self.instants.items_from(index).first().map_or(pre_pass_edge, |instant| instant.first_edge);
        self.instants.drop_before(index);
        self.edges.drop_before(first_edge);
    }
}

/// How many edges at the front of a list share its first instant, and when that is; `None` where it is not before
/// `limit_ns`.
#[inline]
pub(crate) fn first_instant(edges: &[Edge], limit_ns: u64) -> Option<(u64, usize)> {
    let at_ns = edges.first()?.at_ns;
    if at_ns >= limit_ns {
        return None;
    }
    let mut length = 1;
    while edges.get(length).is_some_and(|next| next.at_ns == at_ns) {
        length += 1;
    }
    Some((at_ns, length))
}
