//! The pre-pass over the edge queue: it visits each edge once, at the horizon, before any domain does.
//!
//! Owns the values that are the same for all domains: the peak concurrency and the weight of all spans. It writes its
//! results into the edges and their instants, so that no domain has to read a span. Invariant: an edge does not change
//! after its visit, and a domain passes no edge before its visit.

use super::edge_queue::{Edge, EdgeInstant, EdgeKind, EdgeQueue};
use super::span::{Span, SpanTable};
use super::virtual_energy::VirtualTime;

#[derive(Debug, Default)]
pub(crate) struct EdgePrePass {
    concurrency: PeakConcurrency,
    /// The index of the first edge that is not visited yet.
    pub next_edge: u64,
    /// The total weight of the open spans since the last instant.
    total_weight: u64,
    last_instant_ns: u64,
    /// Slots of spans whose weight history is to be folded.
    pub spans_to_fold: Vec<u32>,
}

impl EdgePrePass {
    /// Visits every edge before `horizon_ns`. The slots of closed spans without a domain go to `settled_slots`.
    pub(crate) fn advance(
        &mut self,
        horizon_ns: u64,
        queue: &mut EdgeQueue,
        spans: &mut SpanTable,
        settled_slots: &mut Vec<u32>,
    ) {
        let first_edge = self.next_edge;
        let EdgeQueue { edges, instants } = queue;
        let pending = edges.items_from_mut(first_edge).iter_mut();
        let mut pending = pending.take_while(|edge| edge.at_ns < horizon_ns).peekable();
        while let Some(at_ns) = pending.peek().map(|edge| edge.at_ns) {
            let virtual_time = VirtualTime::new(self.last_instant_ns, at_ns, self.total_weight);
            let mut instant = EdgeInstant::new(virtual_time, self.next_edge);
            let (mut opened, mut closed) = (0, 0);
            while let Some(edge) = pending.next_if(|edge| edge.at_ns == at_ns) {
                self.visit(edge, spans.span_mut(edge.slot));
                opened += u32::from(edge.kind == EdgeKind::Open);
                closed += u32::from(edge.kind == EdgeKind::Close);
                instant.add_edge(edge);
                self.next_edge += 1;
                if edge.kind == EdgeKind::Close && edge.scope == 0 {
                    settled_slots.push(edge.slot);
                }
            }
            self.concurrency.update(at_ns, opened, closed);
            self.total_weight = self.total_weight.wrapping_add(instant.weight_change);
            self.last_instant_ns = at_ns;
            instants.push(instant);
        }
        let passed = queue.edges.items(first_edge, self.next_edge).iter();
        passed.filter(|edge| edge.kind == EdgeKind::Close).for_each(|edge| spans.prefetch(edge.slot));
    }

    /// Frees memory that many spans used.
    pub(crate) fn shrink(&mut self) {
        self.concurrency.shrink();
        self.spans_to_fold.shrink_to(64);
    }

    /// Fills in the span's state before the edge.
    #[inline]
    fn visit(&mut self, edge: &mut Edge, span: &mut Span) {
        (edge.weight_before, edge.weight_edge, edge.has_history) =
            (span.pre_pass_weight, span.weight_edge, span.history.is_some());
        match edge.kind {
            EdgeKind::Open => span.weight_edge = self.next_edge,
            EdgeKind::Weight => {
                span.weight_edge = self.next_edge;
                if span.record_weight_change(edge.at_ns, edge.weight_after)
                    && self.spans_to_fold.last() != Some(&edge.slot)
                {
                    self.spans_to_fold.push(edge.slot);
                }
            }
            EdgeKind::Phase => edge.weight_after = span.pre_pass_weight,
            EdgeKind::Close => {
                span.peak_concurrency = self.concurrency.peak_since(span.opened_ns);
            }
        }
        span.pre_pass_weight = edge.weight_after;
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

    /// Frees memory that many peaks used.
    fn shrink(&mut self) {
        self.peaks.shrink_to(64);
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
