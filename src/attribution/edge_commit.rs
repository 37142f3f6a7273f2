//! Commits a complete group of edges to the spans' states in one domain.
//!
//! An edge's error depends on its whole group. The domain first passes the group and takes a snapshot at each instant;
//! the commit then updates each span state once. Invariant: edges are committed in order. An edge's error covers the
//! domain's accumulated error within its own group, so the error between two edges is counted from group to group.

use super::edge_queue::{Edge, EdgeKind};
use super::error_bounds::{EdgeGroup, scale_error, share_fraction, weighted_error};
use super::interpolator::EdgeSnapshot;
use super::span::{
    PhaseBoundary, SpanDomainHistory, SpanDomainState, SpanTable, accumulated_error_since,
    stored_accumulated_error,
};
use super::units::{UNBOUNDED_ERROR, WEIGHT_ONE};

/// The effect of a complete group on a span of some weight, in error units: its maximum error and its accumulated
/// error.
#[derive(Debug, Clone, Copy)]
struct GroupError {
    weight: u64,
    drift: u64,
    max_error: u64,
    accumulated: u64,
    /// The error from rounding 1/W down, error units.
    rounding: u64,
}

/// An edge's error and its upper limit, error units.
#[derive(Debug, Clone, Copy)]
struct EdgeError {
    error: u64,
    max_error: u64,
}

/// The commit of one complete group of one domain.
#[derive(Debug)]
pub(crate) struct EdgeCommit {
    domain: usize,
    /// The index of the group's first edge.
    first_edge: u64,
    gap: bool,
    idle_known: bool,
    has_history: bool,
    /// The source's own uncertainty of the step, error units.
    drift: u64,
    group: EdgeGroup,
    /// The domain's accumulated error before and after the group, in the format of span states.
    accumulated_before: u64,
    accumulated_after: u64,
    /// Cached for the last weight: nearly all spans have the same weight.
    group_error: GroupError,
}

/// The state of the domain that a commit needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommitContext {
    pub domain: usize,
    pub first_edge: u64,
    pub gap: bool,
    pub idle_known: bool,
    pub drift: u64,
    /// Whether the group contains phases or changes of weight.
    pub has_history: bool,
}

impl EdgeCommit {
    /// Adds the group's accumulated error to the domain's.
    pub(crate) fn new(context: CommitContext, group: EdgeGroup, accumulated_error: &mut u128) -> Self {
        let CommitContext { domain, first_edge, gap, idle_known, drift, has_history } = context;
        let accumulated_before = *accumulated_error;
        *accumulated_error = accumulated_before.saturating_add(group.accumulated_error(drift));
        let mut commit = Self {
            domain,
            first_edge,
            gap,
            idle_known,
            has_history,
            drift,
            group,
            accumulated_before: stored_accumulated_error(accumulated_before),
            accumulated_after: stored_accumulated_error(*accumulated_error),
            group_error: GroupError { weight: WEIGHT_ONE, drift, max_error: 0, accumulated: 0, rounding: 0 },
        };
        commit.group_error = commit.compute_group_error(WEIGHT_ONE, drift);
        commit
    }

    /// Updates the states of all edges' spans. The slots of spans that are now complete go to `settled_slots`.
    pub(crate) fn commit(
        &mut self,
        snapshots: &[EdgeSnapshot],
        edges: &[Edge],
        spans: &mut SpanTable,
        settled_slots: &mut Vec<u32>,
    ) {
        if self.has_history {
            self.prepare_histories(snapshots, edges, spans);
        }
        for snapshot in snapshots {
            for edge in snapshot.edges_of(self.first_edge, edges) {
                if (edge.scope >> self.domain) & 1 == 0 {
                    continue;
                }
                match edge.kind {
                    EdgeKind::Open => {
                        self.commit_open(edge, snapshot, spans.domain_state_mut(edge.slot, self.domain))
                    }
                    EdgeKind::Close if !edge.has_history => {
                        self.commit_close(edge, snapshot, spans.domain_state_mut(edge.slot, self.domain));
                    }
                    _ => self.commit_with_history(edge, snapshot, spans),
                }
                if edge.kind == EdgeKind::Close && spans.mark_passed(edge.slot, self.domain) {
                    settled_slots.push(edge.slot);
                }
            }
        }
    }

    #[inline]
    fn commit_open(&mut self, edge: &Edge, snapshot: &EdgeSnapshot, state: &mut SpanDomainState) {
        let fraction = if snapshot.is_total_weight {
            edge.share_fraction
        } else {
            share_fraction(edge.weight_after, snapshot.inverse_after)
        };
        let edge_error = self.edge_error(
            scale_error(snapshot.uncertainty, fraction),
            edge.weight_after,
            edge.weight_after,
            snapshot,
            snapshot.drift.1,
        );
        state.open(&snapshot.clock, edge.weight_after, self.idle_known);
        state.start_group(edge_error.error, self.accumulated_after);
    }

    #[inline]
    fn commit_close(&mut self, edge: &Edge, snapshot: &EdgeSnapshot, state: &mut SpanDomainState) {
        let fraction = if snapshot.is_total_weight {
            edge.share_fraction
        } else {
            share_fraction(edge.weight_before, snapshot.inverse_before)
        };
        let edge_error = self.edge_error(
            scale_error(snapshot.uncertainty, fraction),
            edge.weight_before,
            edge.weight_before,
            snapshot,
            snapshot.drift.0,
        );
        let error = self.error_until(edge, state, edge_error);
        state.close(&snapshot.clock, (0, 0), error);
    }

    /// An edge of a span with phases or changes of weight.
    #[cold]
    fn commit_with_history(&mut self, edge: &Edge, snapshot: &EdgeSnapshot, spans: &mut SpanTable) {
        let (state, history) = spans.state_and_history(edge.slot, self.domain);
        let edge_error = self.history_edge_error(edge, snapshot, history);
        let clock = &snapshot.clock;
        match edge.kind {
            EdgeKind::Phase => {
                let share = history.share + state.share(clock);
                if let Some(boundary) = history.phase_boundaries.get_mut(history.passed_boundaries) {
                    *boundary = PhaseBoundary {
                        share,
                        edge_error: edge_error.error,
                        accumulated_error: (self.accumulated_before, self.accumulated_after),
                    };
                }
                history.passed_boundaries += 1;
            }
            EdgeKind::Close => {
                let error = self.error_until(edge, state, edge_error).saturating_add(history.error);
                state.close(clock, (history.share, history.idle), error);
            }
            EdgeKind::Open | EdgeKind::Weight => {
                history.weight_changes += u64::from(edge.kind == EdgeKind::Weight);
                history.share += state.share(clock);
                history.idle += state.idle_share(clock).unwrap_or(0);
                if self.is_weight_edge_in_group(edge) {
                    state.edge_error = self.error_until(edge, state, edge_error);
                } else {
                    let inside = accumulated_error_since(
                        state.accumulated_error,
                        self.accumulated_before,
                        edge.weight_before,
                    );
                    history.error = history.error.saturating_add(state.edge_error).saturating_add(inside);
                    state.start_group(edge_error.error, self.accumulated_after);
                }
                state.change_weight(clock, edge.weight_after);
            }
        }
    }

    /// The error of an edge of a span with phases or changes of weight.
    fn history_edge_error(
        &mut self,
        edge: &Edge,
        snapshot: &EdgeSnapshot,
        history: &SpanDomainHistory,
    ) -> EdgeError {
        let EdgeSnapshot { inverse_before, inverse_after, uncertainty, .. } = *snapshot;
        // A weight may have changed at the same instant, so a phase boundary holds for the weights on both sides.
        let boundary_weight =
            history.phase_boundaries.get(history.passed_boundaries).map_or(0, |boundary| boundary.edge_error);
        let (old, new) = (
            share_fraction(edge.weight_before, inverse_before),
            share_fraction(edge.weight_after, inverse_after),
        );
        let (error, weight) = match edge.kind {
            EdgeKind::Phase => (
                scale_error(uncertainty, share_fraction(boundary_weight, inverse_before.max(inverse_after))),
                boundary_weight,
            ),
            EdgeKind::Close => (scale_error(uncertainty, old), edge.weight_before),
            EdgeKind::Open | EdgeKind::Weight => (
                scale_error(uncertainty, old).abs_diff(scale_error(uncertainty, new)) + 2,
                edge.weight_before.max(edge.weight_after),
            ),
        };
        let group_weight =
            if self.is_weight_edge_in_group(edge) { weight.max(history.max_weight) } else { weight };
        self.edge_error(error, weight, group_weight, snapshot, self.drift)
    }

    /// Records the group's effect on the span's weight first, because an edge's error covers the whole group.
    #[cold]
    fn prepare_histories(&self, snapshots: &[EdgeSnapshot], edges: &[Edge], spans: &mut SpanTable) {
        for edge in snapshots.iter().flat_map(|snapshot| snapshot.edges_of(self.first_edge, edges)) {
            if (edge.scope >> self.domain) & 1 == 0
                || !matches!(edge.kind, EdgeKind::Weight | EdgeKind::Phase)
            {
                continue;
            }
            let (_, history) = spans.state_and_history(edge.slot, self.domain);
            if edge.kind == EdgeKind::Weight {
                history.max_weight = history.max_weight.max(edge.weight_before).max(edge.weight_after);
            } else {
                history.phase_boundaries.push(PhaseBoundary {
                    edge_error: edge.weight_before.max(history.max_weight),
                    ..PhaseBoundary::default()
                });
            }
        }
    }

    /// The edge's error: its own `error` plus the effect of the group on a span of this weight. At most `drift` of it
    /// is the source's own uncertainty of the time on the span's side of the edge.
    #[inline]
    fn edge_error(
        &mut self,
        error: u64,
        weight: u64,
        group_weight: u64,
        snapshot: &EdgeSnapshot,
        drift: u64,
    ) -> EdgeError {
        if group_weight != self.group_error.weight || drift != self.group_error.drift {
            self.group_error = self.compute_group_error(group_weight, drift);
        }
        let rounding = snapshot.remainder_error
            + if weight == group_weight { self.group_error.rounding } else { rounding_error(weight) };
        let max_error = self.group_error.max_error + 2 * rounding;
        EdgeError { error: (error + self.group_error.accumulated + rounding).min(max_error), max_error }
    }

    #[cold]
    fn compute_group_error(&self, weight: u64, drift: u64) -> GroupError {
        let rounding = rounding_error(weight);
        if self.gap {
            return GroupError {
                weight,
                drift,
                max_error: UNBOUNDED_ERROR,
                accumulated: UNBOUNDED_ERROR,
                rounding,
            };
        }
        GroupError {
            weight,
            drift,
            max_error: self.group.max_error(weight, drift),
            accumulated: weighted_error(self.group.accumulated_error(drift), weight),
            rounding,
        }
    }

    /// Whether the span's latest weight edge (its opening or a change of weight) is in this group too.
    #[inline]
    fn is_weight_edge_in_group(&self, edge: &Edge) -> bool {
        edge.weight_edge >= self.first_edge
    }

    /// The error of a span's time since its last weight edge, this edge included.
    #[inline]
    fn error_until(&self, edge: &Edge, state: &SpanDomainState, edge_error: EdgeError) -> u64 {
        let error = if self.is_weight_edge_in_group(edge) {
            (state.edge_error + edge_error.error).min(edge_error.max_error)
        } else {
            state.edge_error
                + accumulated_error_since(
                    state.accumulated_error,
                    self.accumulated_before,
                    edge.weight_before,
                )
                + edge_error.error
        };
        error.min(UNBOUNDED_ERROR)
    }
}

/// The error of a share from rounding 1/W down, error units.
#[inline]
fn rounding_error(weight: u64) -> u64 {
    (weight >> 20) + 1
}
