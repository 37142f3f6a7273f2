//! Commits a complete group of edges to the spans' states in one domain.
//!
//! An edge's error depends on its whole group. The domain first passes the group and takes a snapshot at each instant;
//! the commit then updates each span state once. Invariant: edges are committed in order. A group's error covers the
//! domain's accumulated error within that group, so the error between two edges is counted from group to group.

use super::edge_queue::{Edge, EdgeKind, IndexedQueue};
use super::error_bounds::{AccumulatedError, GroupError, difference, share_fraction, smaller};
use super::span::{PhaseEnd, SpanDomainState, SpanTable, StepError};
use super::virtual_energy::DomainClock;

/// One instant of a group of edges, as the domain passed it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EdgeSnapshot {
    pub clock: DomainClock,
    /// 1/W before and after the instant.
    pub inverse_before: f64,
    pub inverse_after: f64,
    /// The largest difference between the true energy and the estimate, µJ.
    pub uncertainty: f64,
    /// The parts of the source's own uncertainty of the step that can lie before and after this instant, µJ.
    pub drift: (f64, f64),
    /// The indices of its edges: from `first_edge` up to `end_edge`.
    pub first_edge: u64,
    pub end_edge: u64,
}

/// A step of a domain's counter. The edges that it lets pass are a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CounterStep {
    pub domain: usize,
    /// The time that is settled now. The edges in it are the group, and only they are not before `from_ns`.
    pub from_ns: u64,
    pub to_ns: u64,
    pub gap: bool,
    /// The source's own uncertainty of the step, µJ.
    pub drift: f64,
    pub idle_known: bool,
}

/// The commit of one complete group of one domain. Errors are in µJ.
#[derive(Debug)]
pub(crate) struct EdgeCommit<'a> {
    step: &'a CounterStep,
    group: GroupError,
    /// Added to the error of an edge: infinite in a gap, else 0.
    gap_error: f64,
    /// The domain's accumulated error before and after the group, in the format of span states.
    accumulated_before: u64,
    accumulated_after: u64,
}

impl<'a> EdgeCommit<'a> {
    /// Adds the group's accumulated error to the domain's.
    pub(crate) fn new(step: &'a CounterStep, group: GroupError, accumulated: &mut AccumulatedError) -> Self {
        let accumulated_before = accumulated.stored();
        accumulated.add(group.accumulated_error(step.drift));
        Self {
            step,
            group,
            gap_error: if step.gap { f64::INFINITY } else { 0.0 },
            accumulated_before,
            accumulated_after: accumulated.stored(),
        }
    }

    /// Updates the states of all edges' spans. The slots of spans that are now complete go to `settled_slots`.
    pub(crate) fn commit(
        &self,
        snapshots: &[EdgeSnapshot],
        edges: &IndexedQueue<Edge>,
        spans: &mut SpanTable,
        settled_slots: &mut Vec<u32>,
    ) {
        let domain = self.step.domain;
        for snapshot in snapshots {
            for edge in edges.items(snapshot.first_edge, snapshot.end_edge) {
                if (edge.scope >> domain) & 1 == 0 {
                    continue;
                }
                match edge.kind {
                    EdgeKind::Open => {
                        self.commit_open(edge, snapshot, spans.domain_state_mut(edge.slot, domain));
                    }
                    EdgeKind::Close if !edge.has_history => {
                        self.commit_close(edge, snapshot, spans.domain_state_mut(edge.slot, domain));
                    }
                    _ => self.commit_with_history(edge, snapshot, spans),
                }
                if edge.kind == EdgeKind::Close && spans.mark_passed(edge.slot, domain) {
                    settled_slots.push(edge.slot);
                }
            }
        }
    }

    #[inline]
    fn commit_open(&self, edge: &Edge, snapshot: &EdgeSnapshot, state: &mut SpanDomainState) {
        let step = self.begin_step(edge.weight_after, snapshot.inverse_after, snapshot);
        state.open(&snapshot.clock, edge.weight_after, self.step.idle_known);
        (state.edge_error, state.accumulated_error) = (step.edge_error, step.accumulated_error);
    }

    #[inline]
    fn commit_close(&self, edge: &Edge, snapshot: &EdgeSnapshot, state: &mut SpanDomainState) {
        let step = self.step_of(edge, state);
        let error = self.end_step(&step, edge.weight_before, snapshot.inverse_before, snapshot);
        state.close(&snapshot.clock, (0, 0), edge.at_ns - edge.opened_ns, error);
    }

    /// An edge of a span with phases or changes of weight. The span and its current phase are two step functions.
    #[cold]
    fn commit_with_history(&self, edge: &Edge, snapshot: &EdgeSnapshot, spans: &mut SpanTable) {
        let (state, history) = spans.state_and_history(edge.slot, self.step.domain);
        let clock = &snapshot.clock;
        // Other edges at the same instant, its own among them, can come before this one: the larger 1/W counts.
        let inverse = snapshot.inverse_before.max(snapshot.inverse_after);
        let mut span_error = history.span_error.unwrap_or_else(|| {
            let step = self.step_of(edge, state);
            // The state has the error that is limited for the weight so far. At the limit the sum is unknown.
            let limited = step.edge_sum >= self.group.max_error(0, step.max_weight, 0.0);
            StepError { edge_sum: if limited { f64::INFINITY } else { step.edge_sum }, ..step }
        });
        let end_step = |step: &StepError| self.end_step(step, edge.weight_before, inverse, snapshot);
        match edge.kind {
            EdgeKind::Phase => {
                let error = end_step(&history.phase_error.unwrap_or(span_error));
                history.phase_ends.push(PhaseEnd { share: history.share + state.share(clock), error });
                history.phase_error = Some(self.begin_step(edge.weight_after, inverse, snapshot));
            }
            EdgeKind::Close => {
                let before = (history.share, history.idle);
                state.close(clock, before, edge.at_ns - edge.opened_ns, end_step(&span_error));
                if let Some(phase_error) = &history.phase_error {
                    history.phase_ends.push(PhaseEnd { share: state.g, error: end_step(phase_error) });
                }
            }
            EdgeKind::Open | EdgeKind::Weight => {
                history.weight_changes += u64::from(edge.kind == EdgeKind::Weight);
                history.share += state.share(clock);
                history.idle += state.idle_share(clock).unwrap_or(0);
                self.change_step(&mut span_error, edge, snapshot);
                if let Some(phase_error) = &mut history.phase_error {
                    self.change_step(phase_error, edge, snapshot);
                }
                state.change_weight(clock, edge.weight_after);
            }
        }
        history.span_error = Some(span_error);
    }

    /// The error so far of a span without phases and changes of weight.
    #[inline]
    fn step_of(&self, edge: &Edge, state: &SpanDomainState) -> StepError {
        let opened_in_group = edge.opened_ns >= self.step.from_ns;
        StepError {
            error: 0.0,
            edge_sum: state.edge_error,
            edge_error: state.edge_error,
            accumulated_error: state.accumulated_error,
            min_weight: 0,
            max_weight: edge.weight_before,
            group_ns: if opened_in_group { self.step.from_ns } else { u64::MAX },
        }
    }

    /// Begins a step function, at an opening or a phase boundary where 1/W is `inverse`.
    #[inline]
    fn begin_step(&self, weight: u64, inverse: f64, snapshot: &EdgeSnapshot) -> StepError {
        let drift = snapshot.drift.1;
        let jump = snapshot.uncertainty * share_fraction(weight, inverse);
        let edge_sum = jump + self.group.run_error(weight, drift) + self.gap_error;
        StepError {
            error: 0.0,
            edge_sum,
            edge_error: smaller(edge_sum, self.max_error(0, weight, drift)),
            accumulated_error: self.accumulated_after,
            min_weight: 0,
            max_weight: weight,
            group_ns: self.step.from_ns,
        }
    }

    /// Adds a change of weight to a step function.
    fn change_step(&self, step: &mut StepError, edge: &Edge, snapshot: &EdgeSnapshot) {
        let CounterStep { from_ns, drift, .. } = *self.step;
        let (before, after) = (edge.weight_before, edge.weight_after);
        let (old, new) =
            (share_fraction(before, snapshot.inverse_before), share_fraction(after, snapshot.inverse_after));
        let jump = snapshot.uncertainty * difference(old, new) + self.gap_error;
        if step.group_ns == from_ns {
            // The run of the other spans' edges from here on has the new weight.
            step.edge_sum += jump + self.group.run_error(after, drift);
            step.min_weight = step.min_weight.min(after);
            step.max_weight = step.max_weight.max(after);
        } else {
            step.error = step.error_before_group(self.accumulated_before, before);
            step.edge_sum = jump + self.group.two_runs_error(before, after, drift);
            (step.min_weight, step.max_weight) = (before.min(after), before.max(after));
            step.group_ns = from_ns;
        }
        let max_error = self.max_error(step.min_weight, step.max_weight, drift);
        step.edge_error = step.edge_sum.min(max_error);
        step.accumulated_error = self.accumulated_after;
    }

    /// Ends a step function, at a phase boundary or the closing where 1/W is `inverse`. Returns its error.
    #[inline]
    fn end_step(&self, step: &StepError, weight: u64, inverse: f64, snapshot: &EdgeSnapshot) -> f64 {
        let drift = snapshot.drift.0;
        let jump = snapshot.uncertainty * share_fraction(weight, inverse);
        if step.group_ns == self.step.from_ns {
            let max_error = self.max_error(0, step.max_weight, drift);
            return step.error + smaller(step.edge_sum + jump, max_error);
        }
        let edge_sum = jump + self.group.run_error(weight, drift) + self.gap_error;
        let max_error = self.max_error(0, weight, drift);
        step.error_before_group(self.accumulated_before, weight) + smaller(edge_sum, max_error)
    }

    /// The upper limit of the error within the group of a step function with weights in this range; 0 is closed.
    #[inline]
    fn max_error(&self, min_weight: u64, max_weight: u64, drift: f64) -> f64 {
        self.group.max_error(min_weight, max_weight, drift) + self.gap_error
    }
}
