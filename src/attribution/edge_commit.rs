//! Commits a complete group of edges to the spans' states in one domain.
//!
//! An edge's error depends on its whole group. The domain first passes the group and takes a snapshot at each instant;
//! the commit then updates each span state once. Invariant: edges are committed in order. An edge's error covers the
//! domain's accumulated error within its own group, so the error between two edges is counted from group to group.

use super::edge_queue::{Edge, EdgeKind};
use super::error_bounds::{EdgeGroup, scale_error, share_fraction, weighted_error};
use super::interpolator::EdgeSnapshot;
use super::span::{
    PhaseEnd, SpanDomainState, SpanTable, StepError, accumulated_error_since, stored_accumulated_error,
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
}

impl EdgeCommit {
    /// Adds the group's accumulated error to the domain's.
    pub(crate) fn new(context: CommitContext, group: EdgeGroup, accumulated_error: &mut u128) -> Self {
        let CommitContext { domain, first_edge, gap, idle_known, drift } = context;
        let accumulated_before = *accumulated_error;
        *accumulated_error = accumulated_before.saturating_add(group.accumulated_error(drift));
        let mut commit = Self {
            domain,
            first_edge,
            gap,
            idle_known,
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
            snapshot,
            snapshot.drift.0,
        );
        let error = self.error_until(edge, state, edge_error);
        state.close(&snapshot.clock, (0, 0), error);
    }

    /// An edge of a span with phases or changes of weight. The span and its current phase are two step functions.
    #[cold]
    fn commit_with_history(&mut self, edge: &Edge, snapshot: &EdgeSnapshot, spans: &mut SpanTable) {
        let (state, history) = spans.state_and_history(edge.slot, self.domain);
        let clock = &snapshot.clock;
        let mut span_error = history.span_error.unwrap_or_else(|| self.begun_step_error(edge, state));
        match edge.kind {
            EdgeKind::Phase => {
                let ended = history.phase_error.unwrap_or(span_error);
                let share = history.share + state.share(clock);
                let error = self.end_step_error(&ended, edge, snapshot);
                history.phase_ends.push(PhaseEnd { share, error });
                history.phase_error = Some(self.begin_step_error(edge, snapshot));
            }
            EdgeKind::Close => {
                let error = self.end_step_error(&span_error, edge, snapshot);
                state.close(clock, (history.share, history.idle), error);
                if let Some(ended) = &history.phase_error {
                    let error = self.end_step_error(ended, edge, snapshot);
                    history.phase_ends.push(PhaseEnd { share: state.g, error });
                }
            }
            EdgeKind::Open | EdgeKind::Weight => {
                history.weight_changes += u64::from(edge.kind == EdgeKind::Weight);
                history.share += state.share(clock);
                history.idle += state.idle_share(clock).unwrap_or(0);
                self.change_step_error(&mut span_error, edge, snapshot);
                if let Some(phase_error) = &mut history.phase_error {
                    self.change_step_error(phase_error, edge, snapshot);
                }
                state.change_weight(clock, edge.weight_after);
            }
        }
        history.span_error = Some(span_error);
    }

    /// The error so far of a span without phases and changes of weight.
    fn begun_step_error(&self, edge: &Edge, state: &SpanDomainState) -> StepError {
        let opened_in_group = self.is_weight_edge_in_group(edge);
        // At its maximum the error no longer shows the sum of its terms.
        let clipped = opened_in_group && state.edge_error >= self.group.max_error(0, edge.weight_before, 0);
        StepError {
            error: 0,
            edge_sum: if clipped { UNBOUNDED_ERROR } else { state.edge_error },
            edge_error: state.edge_error,
            accumulated_error: state.accumulated_error,
            min_weight: 0,
            max_weight: edge.weight_before,
            first_edge: if opened_in_group { self.first_edge } else { u64::MAX },
        }
    }

    /// Begins a step function at a phase boundary.
    fn begin_step_error(&self, edge: &Edge, snapshot: &EdgeSnapshot) -> StepError {
        let weight = edge.weight_after;
        let edge_sum = self.boundary_error(weight, snapshot) + self.run_error(weight, 0, snapshot.drift.1);
        StepError {
            error: 0,
            edge_sum,
            edge_error: edge_sum.min(self.max_error(0, weight, snapshot)),
            accumulated_error: self.accumulated_after,
            min_weight: 0,
            max_weight: weight,
            first_edge: self.first_edge,
        }
    }

    /// Adds a change of weight to a step function.
    fn change_step_error(&self, step: &mut StepError, edge: &Edge, snapshot: &EdgeSnapshot) {
        let EdgeSnapshot { inverse_before, inverse_after, uncertainty, .. } = *snapshot;
        let (before, after) = (edge.weight_before, edge.weight_after);
        let (old, new) = (share_fraction(before, inverse_before), share_fraction(after, inverse_after));
        let jump = scale_error(uncertainty, old).abs_diff(scale_error(uncertainty, new)) + 2;
        let rounding = snapshot.remainder_error + rounding_error(before.max(after));
        if step.first_edge == self.first_edge {
            // The run of the other spans' edges from here on has the new weight.
            let run = self.run_error(after, 0, self.drift);
            step.edge_sum = (step.edge_sum + jump + run + rounding).min(UNBOUNDED_ERROR);
            step.min_weight = step.min_weight.min(after);
            step.max_weight = step.max_weight.max(after);
        } else {
            step.error = step.error_before_group(self.accumulated_before, before);
            step.edge_sum = jump + self.run_error(before, after, self.drift) + rounding;
            (step.min_weight, step.max_weight) = (before.min(after), before.max(after));
            step.first_edge = self.first_edge;
        }
        step.edge_error = step.edge_sum.min(self.max_error(step.min_weight, step.max_weight, snapshot));
        step.accumulated_error = self.accumulated_after;
    }

    /// Ends a step function at a phase boundary or the closing. Returns its error.
    fn end_step_error(&self, step: &StepError, edge: &Edge, snapshot: &EdgeSnapshot) -> u64 {
        let weight = edge.weight_before;
        let jump = self.boundary_error(weight, snapshot);
        let (before, edge_sum, max_weight) = if step.first_edge == self.first_edge {
            (step.error, step.edge_sum + jump, step.max_weight)
        } else {
            let run = self.run_error(weight, 0, snapshot.drift.0);
            (step.error_before_group(self.accumulated_before, weight), jump + run, weight)
        };
        before.saturating_add(edge_sum.min(self.max_error(0, max_weight, snapshot))).min(UNBOUNDED_ERROR)
    }

    /// The error of the jump between a weight's share fraction and 0. Another span may have an edge at the same instant,
    /// so the larger fraction counts.
    fn boundary_error(&self, weight: u64, snapshot: &EdgeSnapshot) -> u64 {
        let inverse = snapshot.inverse_before.max(snapshot.inverse_after);
        scale_error(snapshot.uncertainty, share_fraction(weight, inverse))
            + snapshot.remainder_error
            + rounding_error(weight)
    }

    /// The error from the other spans' edges in this group: before a change of weight, and after it.
    fn run_error(&self, before: u64, after: u64, drift: u64) -> u64 {
        if self.gap { UNBOUNDED_ERROR } else { self.group.run_error(before, after, drift) }
    }

    /// The upper limit of the error within the group of a step function with weights in this range; 0 is closed.
    fn max_error(&self, min_weight: u64, max_weight: u64, snapshot: &EdgeSnapshot) -> u64 {
        if self.gap {
            return UNBOUNDED_ERROR;
        }
        let rounding = snapshot.remainder_error + rounding_error(max_weight);
        self.group.max_error(min_weight, max_weight, self.drift) + 2 * rounding
    }

    /// The edge's error: its own `error` plus the effect of the group on a span of this weight. At most `drift` of it
    /// is the source's own uncertainty of the time on the span's side of the edge.
    #[inline]
    fn edge_error(&mut self, error: u64, weight: u64, snapshot: &EdgeSnapshot, drift: u64) -> EdgeError {
        if weight != self.group_error.weight || drift != self.group_error.drift {
            self.group_error = self.compute_group_error(weight, drift);
        }
        let rounding = snapshot.remainder_error + self.group_error.rounding;
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
            max_error: self.group.max_error(0, weight, drift),
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
