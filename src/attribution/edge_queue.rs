//! The queue of edges, in the order of their times, and the pre-pass over it.
//!
//! Owns every edge that some domain has not passed yet. The pre-pass visits each edge once, at the horizon, before any
//! domain does. It computes what is the same for all domains: the peak concurrency, the weight of all spans and ΔH; and it
//! corrects the weights in the edges of spans that change theirs, so that no domain has to read a span. Invariants: the queue is
//! sorted by (time, kind), whatever the order of the messages; an edge is only inserted after the settled time, so never
//! before a domain's position; an edge does not change after its visit, and a domain passes no edge before its visit.

use super::request::SpanKey;
use super::span::{Span, SpanTable};
use super::virtual_energy::{TotalWeight, VirtualTime};

/// The kind of an edge. Edges of one instant apply in the order of the variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EdgeKind {
    Open,
    Weight,
    Phase,
    Close,
}

/// An edge of a span. The pre-pass corrects the weights of an edge of a span that has a history, whose edges may come in any
/// order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub at_ns: u64,
    /// The span's domains, one bit each; the other domains skip the edge.
    pub scope: u64,
    /// The span's weight before and after the edge, 2^-16; 0 before its opening and after its close.
    pub weight_before: u64,
    pub weight_after: u64,
    /// The span's opening.
    pub opened_ns: u64,
    pub slot: u32,
    pub kind: EdgeKind,
    /// Whether the span has phases or changes of weight.
    pub has_history: bool,
}

impl Edge {
    #[inline]
    pub(crate) fn new(at_ns: u64, key: SpanKey, span: &Span, kind: EdgeKind, weight_after: u64) -> Self {
        let (slot, has_history) = (key.slot(), span.history.is_some());
        let weight_before = if kind == EdgeKind::Open { 0 } else { span.weight };
        let Span { scope, opened_ns, .. } = *span;
        Self { at_ns, scope, weight_before, weight_after, opened_ns, slot, kind, has_history }
    }
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
    /// The total weight of all open spans after it.
    pub weight_after: TotalWeight,
}

impl EdgeInstant {
    #[inline]
    fn new(virtual_time: VirtualTime, first_edge: u64) -> Self {
        let (end_edge, all_scope, weight_after) = (first_edge, u64::MAX, TotalWeight::default());
        Self { virtual_time, first_edge, end_edge, any_scope: 0, all_scope, weight_change: 0, weight_after }
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

/// A change of weight of a span that has a subject, for its process share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightChange {
    pub key: SpanKey,
    pub opened_ns: u64,
    pub at_ns: u64,
    pub before: u64,
    pub after: u64,
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

    #[inline]
    pub(crate) fn first_index(&self) -> u64 {
        self.first_index
    }

    /// All items, in order.
    #[inline]
    pub(crate) fn all(&self) -> &[T] {
        &self.items[self.dropped..]
    }

    pub(crate) fn get(&self, index: u64) -> Option<&T> {
        self.all().get(usize::try_from(index.checked_sub(self.first_index)?).ok()?)
    }

    /// Gives the next item this index, if the queue is empty.
    pub(crate) fn begin_at(&mut self, index: u64) {
        if self.len() == 0 {
            self.first_index = index;
        }
    }

    /// Drops items from the front while there are more than `count`.
    pub(crate) fn keep_last(&mut self, count: usize) {
        self.drop_before(self.end_index().saturating_sub(count as u64));
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
    pre_pass: PrePass,
}

/// The state of the pre-pass after the edges that it has visited.
#[derive(Debug, Default)]
struct PrePass {
    /// The index of the first edge that is not visited yet.
    next_edge: u64,
    /// The total weight of the open spans since the last instant.
    total_weight: TotalWeight,
    last_instant_ns: u64,
    concurrency: PeakConcurrency,
    weight_changes: Vec<WeightChange>,
}

impl EdgeQueue {
    /// Inserts an edge. Messages are nearly always in order, so nearly always at the end.
    #[inline]
    pub(crate) fn insert(&mut self, edge: Edge) {
        let last = self.edges.all().last();
        let is_in_order = last.is_none_or(|last| (last.at_ns, last.kind) <= (edge.at_ns, edge.kind));
        self.edges.push(edge);
        if !is_in_order {
            self.move_last_into_order();
        }
    }

    #[cold]
    fn move_last_into_order(&mut self) {
        let IndexedQueue { items, dropped, .. } = &mut self.edges;
        let Some((last, before)) = items[*dropped..].split_last() else { return };
        let position = before.partition_point(|edge| (edge.at_ns, edge.kind) <= (last.at_ns, last.kind));
        items[*dropped + position..].rotate_right(1);
    }

    /// Removes the edges of a slot after an instant from which on no edge is passed.
    #[cold]
    pub(crate) fn remove_after(&mut self, slot: u32, at_ns: u64) {
        let IndexedQueue { items, dropped, .. } = &mut self.edges;
        let first = *dropped + items[*dropped..].partition_point(|edge| edge.at_ns <= at_ns);
        items.extract_if(first.., |edge| edge.slot == slot).for_each(drop);
    }

    /// Whether there are edges from this instant on, visited or not.
    pub(crate) fn has_edges_from(&self, instant: u64) -> bool {
        instant < self.instants.end_index() || self.pre_pass.next_edge < self.edges.end_index()
    }

    /// Takes the changes of weight of spans with a subject that the pre-pass has visited.
    pub(crate) fn take_weight_changes(&mut self) -> Vec<WeightChange> {
        std::mem::take(&mut self.pre_pass.weight_changes)
    }

    /// Visits every edge before `horizon_ns`. The slots of closed spans without a domain go to `settled_slots`.
    pub(crate) fn visit_until(
        &mut self,
        horizon_ns: u64,
        spans: &mut SpanTable,
        settled_slots: &mut Vec<u32>,
    ) {
        let Self { edges, instants, pre_pass } = self;
        let first_edge = pre_pass.next_edge;
        let pending = edges.items_from_mut(first_edge).iter_mut();
        let mut pending = pending.take_while(|edge| edge.at_ns < horizon_ns).peekable();
        while let Some(at_ns) = pending.peek().map(|edge| edge.at_ns) {
            let virtual_time = VirtualTime::new(pre_pass.last_instant_ns, at_ns, pre_pass.total_weight.units);
            let mut instant = EdgeInstant::new(virtual_time, pre_pass.next_edge);
            let (mut opened, mut closed) = (0, 0);
            while let Some(edge) = pending.next_if(|edge| edge.at_ns == at_ns) {
                pre_pass.visit(edge, spans);
                opened += u32::from(edge.kind == EdgeKind::Open);
                closed += u32::from(edge.kind == EdgeKind::Close);
                instant.add_edge(edge);
                if edge.kind == EdgeKind::Close && edge.scope == 0 {
                    settled_slots.push(edge.slot);
                }
            }
            pre_pass.concurrency.update(at_ns, opened, closed);
            let before = pre_pass.total_weight;
            instant.weight_after = before.changed_by(instant.weight_change, before);
            (pre_pass.total_weight, pre_pass.last_instant_ns) = (instant.weight_after, at_ns);
            instants.push(instant);
        }
        let passed = edges.items(first_edge, pre_pass.next_edge).iter();
        passed.filter(|edge| edge.kind == EdgeKind::Close).for_each(|edge| spans.prefetch(edge.slot));
    }

    /// Drops the instants before `index`, and their edges.
    pub(crate) fn drop_before(&mut self, index: u64) {
        let first_instant = self.instants.items_from(index).first();
        let first_edge = first_instant.map_or(self.pre_pass.next_edge, |instant| instant.first_edge);
        self.instants.drop_before(index);
        self.edges.drop_before(first_edge);
    }

    /// Frees memory that many edges and spans used.
    pub(crate) fn shrink(&mut self) {
        self.edges.shrink();
        self.instants.shrink();
        self.pre_pass.concurrency.peaks.shrink_to(64);
    }
}

impl PrePass {
    /// Records the peak concurrency at a close, and fills in an edge of a span with phases or changes of weight. Other spans
    /// are not read: one of many that are open is seldom in the cache.
    #[inline]
    fn visit(&mut self, edge: &mut Edge, spans: &mut SpanTable) {
        self.next_edge += 1;
        if edge.kind == EdgeKind::Open {
            return;
        }
        let span = spans.span_mut(edge.slot);
        if edge.has_history {
            self.visit_with_history(edge, span);
        }
        if edge.kind == EdgeKind::Close {
            span.peak_concurrency = self.concurrency.peak_since(edge.opened_ns);
        }
    }

    #[cold]
    fn visit_with_history(&mut self, edge: &mut Edge, span: &mut Span) {
        let Some(history) = &mut span.history else { return };
        let before = history.pre_pass_weight;
        edge.weight_before = before;
        if edge.kind == EdgeKind::Phase {
            edge.weight_after = before;
        }
        if edge.kind == EdgeKind::Weight {
            history.pre_pass_weight = edge.weight_after;
            if span.subject != 0 {
                self.weight_changes.push(WeightChange {
                    key: SpanKey::new(edge.slot, span.number),
                    opened_ns: edge.opened_ns,
                    at_ns: edge.at_ns,
                    before,
                    after: edge.weight_after,
                });
            }
        }
    }
}

/// The number of open spans, and its maximum since any past instant, as suffix maxima: a stack of (since, count) with
/// falling counts. Invariant: from `since` until the next entry's, the maximum up to now is `count`. An update is
/// amortized constant time, a query a binary search.
#[derive(Debug, Default)]
struct PeakConcurrency {
    open: u32,
    peaks: Vec<(u64, u32)>,
}

impl PeakConcurrency {
    /// Records that `opened` spans opened and `closed` spans closed at `at_ns`.
    fn update(&mut self, at_ns: u64, opened: u32, closed: u32) {
        self.open = (self.open + opened).saturating_sub(closed);
        let mut since = at_ns;
        while let Some(&(earlier, count)) = self.peaks.last() {
            if count > self.open {
                break;
            }
            since = earlier;
            self.peaks.pop();
        }
        if self.open > 0 {
            self.peaks.push((since, self.open));
        } else {
            self.peaks.clear();
        }
    }

    /// The maximum number of open spans between `since_ns` and now.
    fn peak_since(&self, since_ns: u64) -> u32 {
        let index = self.peaks.partition_point(|&(since, _)| since <= since_ns);
        self.peaks.get(index.saturating_sub(1)).map_or(0, |&(_, count)| count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_maximum_since_an_instant() {
        let mut concurrency = PeakConcurrency::default();
        concurrency.update(10, 1, 0);
        concurrency.update(20, 2, 0);
        concurrency.update(30, 0, 2);
        concurrency.update(40, 1, 0);
        assert_eq!(concurrency.peak_since(10), 3);
        assert_eq!(concurrency.peak_since(25), 3);
        assert_eq!(concurrency.peak_since(30), 2);
        assert_eq!(concurrency.peak_since(40), 2);
    }

    #[test]
    fn the_peak_agrees_with_the_maximum_of_the_whole_history() {
        let mut concurrency = PeakConcurrency::default();
        let mut history: Vec<(u64, u32)> = Vec::new();
        let (mut open, mut seed, mut empty) = (0_u32, 7_u64, 0);
        for at in (0..3000).step_by(3) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let up = (seed >> 33) % 2 == 0 || open == 0;
            concurrency.update(at, u32::from(up), u32::from(!up));
            open = if up { open + 1 } else { open - 1 };
            history.push((at, open));
            if open == 0 {
                // No open span needs the time before.
                empty = at + 1;
                continue;
            }
            let since = empty + (seed >> 40) % (at + 1 - empty);
            let begin = history.partition_point(|h| h.0 <= since).saturating_sub(1);
            let expected = history[begin..].iter().map(|h| h.1).max().unwrap();
            assert_eq!(concurrency.peak_since(since), expected, "since {since} at {at}");
        }
    }
}
