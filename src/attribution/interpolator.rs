//! Interpolates a domain's energy over time: straight lines between the counter's updates.
//!
//! Owns the known steps, the position in them, and the domain's virtual energy clock, which they drive. Invariant: the
//! energy at the end of a step is exactly the step's energy; the position never goes back; no energy flows in a gap,
//! and its time counts as unknown. [`FastPath`] passes many instants inside one step in machine words.

use std::collections::VecDeque;

use super::edge_queue::{Edge, EdgeInstant};
use super::error_bounds::bound_energy;
use super::units::{ENERGY_FRACTION_BITS, approximate_uj};
use super::virtual_energy::{ClockSnapshot, TotalWeight, VirtualEnergy, divide_u64};

/// One instant of a group of edges, as the domain passed it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EdgeSnapshot {
    pub at_ns: u64,
    /// The interpolated energy, in the unit of `bound_energy`.
    pub estimate: u64,
    pub clock: ClockSnapshot,
    /// 1/W before and after the instant.
    pub inverse_before: f64,
    pub inverse_after: f64,
    /// The largest difference between the true energy and the estimate, µJ.
    pub uncertainty: f64,
    /// The parts of the source's own uncertainty of the step that can lie before and after this instant, µJ.
    pub drift: (f64, f64),
    /// The remainder of the last division, µJ: energy used before this instant that goes to spans after it.
    pub remainder_error: f64,
    /// The indices of its edges: from `first_edge` up to `end_edge`.
    pub first_edge: u64,
    pub end_edge: u64,
}

impl EdgeSnapshot {
    /// The slice of the group's edges that belong to this instant.
    #[inline]
    pub(crate) fn edges_of<'a>(&self, first_edge: u64, edges: &'a [Edge]) -> &'a [Edge] {
        &edges[(self.first_edge - first_edge) as usize..(self.end_edge - first_edge) as usize]
    }
}

/// The interpolation between two counter updates.
#[derive(Debug, Clone, Copy, Default)]
struct InterpolationStep {
    from_ns: u64,
    to_ns: u64,
    /// Energy units: the whole step, and the part up to the position.
    energy: u128,
    energy_so_far: u128,
    /// Energy units per nanosecond.
    power: u64,
    gap: bool,
}

/// The interpolant of one domain's energy.
#[derive(Debug, Default)]
pub(crate) struct Interpolator {
    pub virtual_energy: VirtualEnergy,
    step: InterpolationStep,
    pending_steps: VecDeque<InterpolationStep>,
    position_ns: u64,
    unknown_ns: u64,
    idle_power: u64,
}

impl Interpolator {
    /// The position: everything before this instant is final.
    #[inline]
    pub(crate) fn position_ns(&self) -> u64 {
        self.position_ns
    }

    /// The clock at the position.
    #[inline]
    pub(crate) fn snapshot(&self) -> ClockSnapshot {
        ClockSnapshot::of(&self.virtual_energy, self.unknown_ns)
    }

    /// Sets the idle power for the time from the position on.
    pub(crate) fn set_idle_power(&mut self, power_mw: Option<u64>) {
        let power = power_mw.map_or(0, |mw| (u128::from(mw) << ENERGY_FRACTION_BITS) / 1_000_000);
        self.idle_power = u64::try_from(power).unwrap_or(u64::MAX);
    }

    /// Adds the next step: `energy` energy units between two instants, or a gap.
    pub(crate) fn add_step(&mut self, from_ns: u64, to_ns: u64, energy: u128, gap: bool) {
        let power = energy.checked_div(u128::from(to_ns.saturating_sub(from_ns)));
        let power = power.map_or(0, |power| u64::try_from(power).unwrap_or(0));
        self.pending_steps.push_back(InterpolationStep {
            from_ns,
            to_ns,
            energy,
            energy_so_far: 0,
            power,
            gap,
        });
    }

    /// Advances the position to `to_ns` along the steps.
    #[inline]
    pub(crate) fn advance(&mut self, to_ns: u64) {
        if to_ns >= self.step.to_ns {
            self.advance_across_steps(to_ns);
        } else if to_ns > self.position_ns {
            let energy_so_far = u128::from(self.step.power) * u128::from(to_ns - self.step.from_ns);
            self.add_energy_until(to_ns, energy_so_far);
        }
    }

    /// Like [`Self::advance`], where `to_ns` is not inside the current step.
    #[cold]
    fn advance_across_steps(&mut self, to_ns: u64) {
        while self.position_ns < to_ns {
            if to_ns < self.step.to_ns {
                return self.advance(to_ns);
            }
            // A step of zero length can still have energy.
            self.add_energy_until(self.step.to_ns.max(self.position_ns), self.step.energy);
            if self.position_ns < to_ns {
                let Some(step) = self.pending_steps.pop_front() else { return };
                self.step = step;
            }
        }
    }

    /// Advances to `to_ns`, where the step's energy is `energy_so_far` energy units.
    #[inline]
    fn add_energy_until(&mut self, to_ns: u64, energy_so_far: u128) {
        let elapsed_ns = to_ns - self.position_ns;
        if self.step.gap {
            self.unknown_ns += elapsed_ns;
        }
        let idle =
            if self.idle_power == 0 { 0 } else { u128::from(self.idle_power) * u128::from(elapsed_ns) };
        self.virtual_energy.add_energy(energy_so_far - self.step.energy_so_far, idle);
        self.step.energy_so_far = energy_so_far;
        self.position_ns = to_ns;
    }

    /// Passes the instants that lie inside this step and concern only spans that use this domain. Adds a snapshot for
    /// each, and returns their number.
    pub(crate) fn advance_over_edges(
        &mut self,
        domain: usize,
        instants: &[EdgeInstant],
        limit_ns: u64,
        snapshots: &mut Vec<EdgeSnapshot>,
    ) -> usize {
        let step = &self.step;
        if step.gap
            || step.energy >> 61 != 0
            || self.position_ns < step.from_ns
            || self.position_ns >= step.to_ns
        {
            return 0;
        }
        let (limit_ns, energy_so_far) = (limit_ns.min(step.to_ns), step.energy_so_far as u64);
        let (from_ns, position_ns, power, idle_power) =
            (step.from_ns, self.position_ns, step.power, self.idle_power);
        let segment = LineSegment { from_ns, position_ns, energy_so_far, power, idle_power };
        let mut fast_path = FastPath::begin(segment, &self.virtual_energy, self.unknown_ns);
        let count_before = snapshots.len();
        for instant in instants {
            if instant.at_ns >= limit_ns || (instant.all_scope >> domain) & 1 == 0 {
                break;
            }
            fast_path.advance(instant.at_ns);
            snapshots.push(fast_path.apply_edges(instant));
        }
        self.position_ns = fast_path.segment.position_ns;
        self.step.energy_so_far = u128::from(fast_path.segment.energy_so_far);
        fast_path.finish(&mut self.virtual_energy);
        snapshots.len() - count_before
    }
}

/// The straight line of one step, and the position on it.
#[derive(Debug, Clone, Copy)]
struct LineSegment {
    pub from_ns: u64,
    pub position_ns: u64,
    /// Energy units since `from_ns`, less than 2^61.
    pub energy_so_far: u64,
    /// Energy units per nanosecond, total and idle.
    pub power: u64,
    pub idle_power: u64,
}

/// The energy since the fast path began: energy units, and energy units per unit of weight (`g`, `idle_g`).
#[derive(Debug, Clone, Copy, Default)]
struct EnergyTotals {
    pub g: u64,
    pub idle_g: u64,
    pub attributed: u64,
    pub unattributed: u64,
}

/// The fast path along one line segment, in machine words. Invariant: the result is bit for bit that of
/// `VirtualEnergy::add_energy` and `set_total_weight` called instant by instant. A step too large for a word does not
/// start one.
#[derive(Debug)]
struct FastPath {
    pub segment: LineSegment,
    /// The clock's energy at the start of the line.
    base_energy: u128,
    start_snapshot: ClockSnapshot,
    start_idle_g: u128,
    totals: EnergyTotals,
    remainder: u64,
    total_weight: TotalWeight,
}

impl FastPath {
    #[inline]
    pub(crate) fn begin(segment: LineSegment, clock: &VirtualEnergy, unknown_ns: u64) -> Self {
        Self {
            segment,
            base_energy: clock.measured - u128::from(segment.energy_so_far),
            start_snapshot: ClockSnapshot::of(clock, unknown_ns),
            start_idle_g: clock.idle_g,
            totals: EnergyTotals::default(),
            remainder: clock.remainder,
            total_weight: clock.total_weight,
        }
    }

    /// Advances the position to `at_ns`.
    #[inline]
    pub(crate) fn advance(&mut self, at_ns: u64) {
        let segment = &mut self.segment;
        let energy_so_far = segment.power * (at_ns - segment.from_ns);
        let (energy, elapsed_ns) = (energy_so_far - segment.energy_so_far, at_ns - segment.position_ns);
        (segment.energy_so_far, segment.position_ns) = (energy_so_far, at_ns);
        if self.total_weight.units == 0 {
            self.totals.unattributed += energy;
        } else if energy != 0 {
            let dividend = energy + self.remainder;
            let (quotient, remainder) = divide_u64(dividend, self.total_weight);
            self.totals.g += quotient;
            self.totals.attributed += dividend - remainder;
            self.remainder = remainder;
            if segment.idle_power != 0 {
                let idle = segment.idle_power.saturating_mul(elapsed_ns).min(energy);
                self.totals.idle_g += self.total_weight.quotient(idle);
            }
        }
    }

    /// Applies the edges of an instant whose spans all use the domain.
    #[inline]
    pub(crate) fn apply_edges(&mut self, instant: &EdgeInstant) -> EdgeSnapshot {
        let weight = self.total_weight.changed(instant);
        let measured = self.base_energy + u128::from(self.segment.energy_so_far);
        let snapshot = EdgeSnapshot {
            at_ns: instant.at_ns,
            estimate: bound_energy(measured),
            clock: self.start_snapshot.advanced_by(
                measured,
                self.totals.g,
                self.start_idle_g + u128::from(self.totals.idle_g),
            ),
            inverse_before: self.total_weight.inverse,
            inverse_after: weight.inverse,
            uncertainty: 0.0,
            drift: (0.0, 0.0),
            remainder_error: approximate_uj(self.remainder),
            first_edge: instant.first_edge,
            end_edge: instant.end_edge,
        };
        self.total_weight = weight;
        snapshot
    }

    /// Adds the totals to the clock.
    #[inline]
    pub(crate) fn finish(self, clock: &mut VirtualEnergy) {
        clock.measured = self.base_energy + u128::from(self.segment.energy_so_far);
        clock.g += u128::from(self.totals.g);
        clock.idle_g += u128::from(self.totals.idle_g);
        clock.attributed += u128::from(self.totals.attributed);
        clock.unattributed += u128::from(self.totals.unattributed);
        clock.remainder = self.remainder;
        clock.total_weight = self.total_weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_path_agrees_with_single_steps() {
        let mut seed = 9_u64;
        let mut roll = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 20) % below
        };
        let (mut clock, mut reference) = (VirtualEnergy::default(), VirtualEnergy::default());
        for _ in 0..300 {
            let (power, idle_power, from_ns) = (roll(1 << 32), roll(2) * roll(1 << 32), roll(1 << 40));
            let mut position_ns = from_ns;
            let segment = LineSegment { from_ns, position_ns, energy_so_far: 0, power, idle_power };
            let mut fast_path = FastPath::begin(segment, &clock, 0);
            for _ in 0..roll(20) {
                let at_ns = position_ns + roll(2) * roll(1 << 20);
                let energy = u128::from(power) * u128::from(at_ns - position_ns);
                reference.add_energy(energy, u128::from(idle_power) * u128::from(at_ns - position_ns));
                fast_path.advance(at_ns);
                let weight = roll(3) * (roll(1 << 40) + 1);
                reference.total_weight = TotalWeight::new(weight);
                fast_path.total_weight = reference.total_weight;
                position_ns = at_ns;
            }
            fast_path.finish(&mut clock);
            assert_eq!(clock, reference);
        }
        assert!(clock.unattributed > 0 && clock.attributed > 0 && clock.idle_g > 0);
        assert_eq!(clock.measured, clock.attributed + clock.unattributed + u128::from(clock.remainder));
    }
}
