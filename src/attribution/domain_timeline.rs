//! One domain's timeline: its counter's updates and its spans' edges, merged in the order of time.
//!
//! Owns the domain's settled time `position_ns`; everything before it is final. An edge is passed only after the
//! counter has moved after it, so that both bounds of the true energy are known. Each domain settles on its own: a GPU
//! that updates every 100 ms delays no other domain. Invariant: `position_ns` never goes back; each edge is passed
//! once.

use std::collections::VecDeque;

use wattspan_client::account::Balance;

use super::edge_commit::{CounterStep, EdgeCommit, EdgeSnapshot};
use super::edge_queue::{EdgeInstant, EdgeQueue};
use super::error_bounds::{AccumulatedError, Bound, BoundPoint, EdgeGroup, ErrorBounds, bound_energy};
use super::idle_power::IdlePower;
use super::power_shape::PowerShape;
use super::span::{Span, SpanTable};
use super::update_detector::{CounterUpdate, UpdateDetector};
use super::virtual_energy::{ENERGY_FRACTION_BITS, MAX_ENERGY_UJ, VirtualEnergy, whole_uj};
use crate::domain::{Domain, DomainName, EnergyReading};

#[derive(Debug)]
pub(crate) struct DomainTimeline {
    pub domain: Domain,
    /// The domain's name, as accounts share it.
    pub name: DomainName,
    pub virtual_energy: VirtualEnergy,
    pub settled_uj: u64,
    /// The part of `settled_uj` of abandoned spans.
    pub abandoned_uj: u64,
    pub rounding_remainder: u128,
    pub cancelled: u128,
    /// The index of the first instant that is not passed yet.
    pub next_instant: u64,
    /// Nothing is measured before this instant.
    pub measured_since_ns: u64,
    index: usize,
    pub update_detector: UpdateDetector,
    power_shape: PowerShape,
    pending_updates: VecDeque<CounterUpdate>,
    pub error_bounds: ErrorBounds,
    last_update: CounterUpdate,
    last_energy: u128,
    accumulated_error: AccumulatedError,
    /// The instants of the group that is being passed.
    snapshots: Vec<EdgeSnapshot>,
    pub idle_power: IdlePower,
}

impl DomainTimeline {
    pub(crate) fn new(index: usize, domain: Domain, counter_timeout_ns: u64, idle_mw: Option<u64>) -> Self {
        Self {
            virtual_energy: VirtualEnergy::default(),
            settled_uj: 0,
            abandoned_uj: 0,
            rounding_remainder: 0,
            cancelled: 0,
            next_instant: 0,
            measured_since_ns: 0,
            index,
            update_detector: UpdateDetector::new(&domain, counter_timeout_ns),
            power_shape: PowerShape::default(),
            pending_updates: VecDeque::new(),
            error_bounds: ErrorBounds::new(domain.quantum_uj, domain.ceiling_mw),
            last_update: CounterUpdate { gap: true, ..CounterUpdate::default() },
            last_energy: 0,
            accumulated_error: AccumulatedError::default(),
            snapshots: Vec::new(),
            idle_power: IdlePower::new(idle_mw),
            name: DomainName::permanent(&domain.name),
            domain,
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Frees memory that a group of many edges used.
    pub(crate) fn shrink(&mut self) {
        self.snapshots.shrink_to(64);
    }

    pub(crate) fn balance(&self) -> Balance {
        let mask = (1_u128 << ENERGY_FRACTION_BITS) - 1;
        let clock = &self.virtual_energy;
        let running = clock.attributed
            - (u128::from(self.settled_uj) << ENERGY_FRACTION_BITS)
            - self.rounding_remainder
            - self.cancelled;
        let rest = clock.unattributed + self.cancelled + self.rounding_remainder + (running & mask);
        Balance {
            domain: self.domain.name.clone(),
            measured_uj: whole_uj(clock.measured),
            attributed_uj: self.settled_uj + whole_uj(running),
            unattributed_uj: whole_uj(rest),
            settled_uj: Some(self.settled_uj - self.abandoned_uj),
            abandoned_uj: Some(self.abandoned_uj),
            open_uj: Some(whole_uj(running)),
            cancelled_uj: Some(whole_uj(self.cancelled)),
            not_kept_uj: None,
            rounding_uj: None,
        }
    }

    pub(crate) fn add_reading(&mut self, before_ns: u64, after_ns: u64, reading: &EnergyReading) {
        if reading.shape_uj != 0 {
            self.power_shape.add_point(before_ns, reading.shape_uj);
        }
        if let Some(update) = self.update_detector.add_reading(before_ns, after_ns, reading) {
            self.pending_updates.push_back(update);
        }
    }

    /// Records that no reading covers the time up to `at_ns`.
    pub(crate) fn time_out(&mut self, at_ns: u64) {
        if let Some(update) = self.update_detector.time_out(at_ns) {
            self.pending_updates.push_back(update);
        }
    }

    /// The next counter update that is not passed, with the instant from which the horizon lets it pass.
    fn next_update(&self) -> Option<(CounterUpdate, u64)> {
        let update = *self.pending_updates.front()?;
        Some((update, if update.gap { update.at_ns } else { update.early_ns }))
    }

    /// The instant that the horizon has to reach so that the edges before the next counter update pass; `None` if none waits,
    /// or no such update is known.
    pub(crate) fn next_horizon_ns(&self, queue: &EdgeQueue) -> Option<u64> {
        let (_, limit_ns) = self.next_update()?;
        queue.has_edges_from(self.next_instant).then_some(limit_ns)
    }

    /// Passes every counter update and edge before the horizon. The slots of spans that are now complete go to
    /// `settled_slots`.
    pub(crate) fn settle(
        &mut self,
        horizon_ns: u64,
        queue: &EdgeQueue,
        spans: &mut SpanTable,
        settled_slots: &mut Vec<u32>,
    ) {
        while let Some((update, limit_ns)) =
            self.next_update().filter(|(_, limit_ns)| *limit_ns <= horizon_ns)
        {
            self.pending_updates.pop_front();
            self.apply_update(update, limit_ns, queue, spans, settled_slots);
        }
    }

    fn apply_update(
        &mut self,
        update: CounterUpdate,
        limit_ns: u64,
        queue: &EdgeQueue,
        spans: &mut SpanTable,
        settled_slots: &mut Vec<u32>,
    ) {
        let duration_ns = update.at_ns.saturating_sub(self.last_update.at_ns);
        let rise_uj =
            if update.gap { 0 } else { update.energy_uj.saturating_sub(self.last_update.energy_uj) };
        let drift = self.add_step(update, rise_uj);
        let (was_idle, first_instant) = (self.virtual_energy.total_weight.units == 0, self.next_instant);
        let step = CounterStep {
            domain: self.index,
            from_ns: self.virtual_energy.position_ns,
            to_ns: limit_ns,
            gap: update.gap,
            drift,
            idle_known: self.idle_power.power_mw().is_some(),
        };
        let group = self.pass_edges(&step, queue);
        self.virtual_energy.advance(limit_ns);
        if !self.snapshots.is_empty() || drift != 0.0 {
            let commit = EdgeCommit::new(&step, group.error(), &mut self.accumulated_error);
            commit.commit(&self.snapshots, &queue.edges, spans, settled_slots);
            self.snapshots.clear();
        }
        if update.gap {
            // A baseline's value may be a whole counter step old, so it is no upper bound for any earlier instant.
            self.error_bounds.add_point(BoundPoint::new(u64::MAX, update.late_ns, self.last_energy), true);
        }
        if was_idle && first_instant == self.next_instant && !update.gap {
            self.idle_power.add_empty_interval(rise_uj, duration_ns);
        } else {
            self.idle_power.reset_interval();
        }
        self.error_bounds.drop_before(self.virtual_energy.position_ns);
        self.power_shape.drop_before(self.last_update.at_ns);
    }

    /// Adds the step up to the new counter update. Returns the source's own uncertainty of the step, µJ.
    fn add_step(&mut self, update: CounterUpdate, rise_uj: u64) -> f64 {
        let drift_uj = if update.gap {
            0
        } else {
            update.uncertainty_uj.saturating_sub(self.last_update.uncertainty_uj)
        };
        let left = (u128::from(MAX_ENERGY_UJ) << ENERGY_FRACTION_BITS) - self.last_energy;
        let rise = (u128::from(rise_uj) << ENERGY_FRACTION_BITS).min(left);
        self.last_energy += rise;
        let mut begin = (self.last_update.at_ns, 0);
        for point in self.power_shape.interpolation_points(self.last_update.at_ns, update.at_ns, rise >> 32) {
            let point = (point.0, point.1 << 32);
            self.virtual_energy.add_line(begin.0, point.0, point.1 - begin.1, update.gap);
            begin = point;
        }
        self.virtual_energy.add_line(begin.0, update.at_ns, rise - begin.1, update.gap);
        if !update.gap {
            self.error_bounds
                .add_point(BoundPoint::new(update.early_ns, update.late_ns, self.last_energy), false);
        }
        self.virtual_energy.set_idle_power(self.idle_power.power_mw());
        self.last_update = update;
        drift_uj as f64
    }

    /// Passes the edges of a step. Takes a snapshot at each instant with an edge in this domain.
    fn pass_edges(&mut self, step: &CounterStep, queue: &EdgeQueue) -> EdgeGroup {
        let mut group = EdgeGroup::begin(self.virtual_energy.total_weight.inverse);
        for instant in queue.instants.items_from(self.next_instant) {
            if instant.at_ns() >= step.to_ns {
                break;
            }
            self.virtual_energy.advance_by(&instant.virtual_time);
            if (instant.any_scope >> self.index) & 1 == 1 {
                self.pass_instant(step, &mut group, instant, queue);
            }
            self.next_instant += 1;
        }
        group
    }

    /// Applies all edges of one instant. No energy flows between them, so their order has no effect.
    #[inline]
    fn pass_instant(
        &mut self,
        step: &CounterStep,
        group: &mut EdgeGroup,
        instant: &EdgeInstant,
        queue: &EdgeQueue,
    ) {
        let weight_change = if (instant.all_scope >> self.index) & 1 == 1 {
            instant.weight_change
        } else {
            self.weight_change(instant, queue)
        };
        let (at_ns, clock) = (instant.at_ns(), &mut self.virtual_energy);
        let before = clock.total_weight;
        let after = before.changed_by(weight_change, instant.weight_after);
        clock.total_weight = after;
        let bound = if step.gap {
            Bound::default()
        } else {
            self.error_bounds.bound_at(at_ns, bound_energy(clock.measured))
        };
        group.add_edge(bound, before.inverse, after.inverse);
        self.snapshots.push(EdgeSnapshot {
            clock: clock.snapshot(),
            inverse_before: before.inverse,
            inverse_after: after.inverse,
            uncertainty: bound.uncertainty(),
            drift: if step.drift == 0.0 { (0.0, 0.0) } else { self.drift_around(at_ns, step) },
            first_edge: instant.first_edge,
            end_edge: instant.end_edge,
        });
    }

    /// How much of the source's uncertainty of the step can lie before and after an instant: at most the energy at maximum
    /// power in that time, so that a span does not carry the uncertainty of a quiet hour before it.
    #[cold]
    fn drift_around(&self, at_ns: u64, step: &CounterStep) -> (f64, f64) {
        let within = |duration_ns: u64| {
            let most = self.error_bounds.max_energy_in(duration_ns);
            most.map_or(step.drift, |energy| energy.min(step.drift))
        };
        (within(at_ns.saturating_sub(step.from_ns)), within(step.to_ns.saturating_sub(at_ns)))
    }

    /// An instant's change of this domain's total weight, where not all of its spans use this domain.
    #[cold]
    fn weight_change(&self, instant: &EdgeInstant, queue: &EdgeQueue) -> u64 {
        let edges = queue.edges.items(instant.first_edge, instant.end_edge).iter();
        let used = edges.filter(|edge| (edge.scope >> self.index) & 1 == 1);
        used.fold(0, |change: u64, edge| {
            change.wrapping_add(edge.weight_after).wrapping_sub(edge.weight_before)
        })
    }

    /// Moves a settled span's share from the running sum to the settled or the cancelled energy.
    pub(crate) fn record_settled_share(&mut self, share: u128, span: &Span) {
        if span.cancelled {
            self.cancelled += share;
        } else {
            self.settled_uj += whole_uj(share);
            self.abandoned_uj += if span.abandoned { whole_uj(share) } else { 0 };
            self.rounding_remainder += share & ((1 << ENERGY_FRACTION_BITS) - 1);
        }
    }
}
