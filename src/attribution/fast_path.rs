//! The interpolator's fast path, in machine words: many instants inside one step of the counter.
//!
//! Owns what changes from instant to instant while energy flows along one straight line, counted from where the fast
//! path began; the domain's clock takes it over when the fast path ends. Invariant: to the last unit it does what
//! `VirtualEnergy::add_energy` and `set_total_weight` would do instant by instant. What does not fit a word is not
//! begun here.

use super::edge_commit::{EdgeSnapshot, remainder_error};
use super::edge_queue::EdgeInstant;
use super::error_bounds::wrapping_error_units;
use super::span_domain_state::ClockSnapshot;
use super::virtual_energy::{VirtualEnergy, divide_u64, inverse_of, scale_u64};

/// The straight line, and where on it the domain is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineSegment {
    pub from_ns: u64,
    pub position_ns: u64,
    /// Energy units since `from_ns`, less than 2^61.
    pub energy_so_far: u64,
    /// Energy units per nanosecond; and what of it is idle.
    pub power: u64,
    pub idle_power: u64,
}

/// The energy since the fast path began: energy units, and energy units per unit of weight.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EnergyTotals {
    pub g: u64,
    pub idle_g: u64,
    pub attributed: u64,
    pub unattributed: u64,
}

/// The fast path along one line segment.
#[derive(Debug)]
pub(crate) struct FastPath {
    pub segment: LineSegment,
    /// The clock's energy where the line begins.
    base_energy: u128,
    start_snapshot: ClockSnapshot,
    start_idle_g: u128,
    totals: EnergyTotals,
    remainder: u64,
    total_weight: u64,
    inverse_weight: u64,
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
            total_weight: clock.total_weight(),
            inverse_weight: clock.inverse_weight(),
        }
    }

    /// Lets energy flow up to `at_ns`.
    #[inline]
    pub(crate) fn advance(&mut self, at_ns: u64) {
        let segment = &mut self.segment;
        let energy_so_far = segment.power * (at_ns - segment.from_ns);
        let (energy, elapsed_ns) = (energy_so_far - segment.energy_so_far, at_ns - segment.position_ns);
        (segment.energy_so_far, segment.position_ns) = (energy_so_far, at_ns);
        if self.total_weight == 0 {
            self.totals.unattributed += energy;
        } else if energy != 0 {
            let dividend = energy + self.remainder;
            let (quotient, remainder) = divide_u64(dividend, self.total_weight, self.inverse_weight);
            self.totals.g += quotient;
            self.totals.attributed += dividend - remainder;
            self.remainder = remainder;
            if segment.idle_power != 0 {
                self.totals.idle_g +=
                    scale_u64(segment.idle_power.saturating_mul(elapsed_ns).min(energy), self.inverse_weight);
            }
        }
    }

    /// Applies the edges of an instant whose spans all use the domain.
    #[inline]
    pub(crate) fn apply_edges(&mut self, instant: &EdgeInstant) -> EdgeSnapshot {
        let weight = self.total_weight.wrapping_add(instant.weight_change);
        let dividend = weight == instant.total_weight;
        let inverse_after = if dividend { instant.inverse_weight } else { inverse_of(weight) };
        let measured = self.base_energy + u128::from(self.segment.energy_so_far);
        let snapshot = EdgeSnapshot {
            at_ns: instant.at_ns,
            estimate: wrapping_error_units(measured),
            clock: self.start_snapshot.advanced_by(
                measured,
                self.totals.g,
                self.start_idle_g + u128::from(self.totals.idle_g),
            ),
            inverse_before: self.inverse_weight,
            inverse_after,
            is_total_weight: dividend,
            uncertainty: 0,
            drift: (0, 0),
            remainder_error: remainder_error(self.remainder),
            first_edge: instant.first_edge,
            end_edge: instant.end_edge,
        };
        (self.total_weight, self.inverse_weight) = (weight, inverse_after);
        snapshot
    }

    /// The clock takes over what has flowed.
    #[inline]
    pub(crate) fn finish(self, clock: &mut VirtualEnergy) {
        clock.measured = self.base_energy + u128::from(self.segment.energy_so_far);
        clock.g += u128::from(self.totals.g);
        clock.idle_g += u128::from(self.totals.idle_g);
        clock.attributed += u128::from(self.totals.attributed);
        clock.unattributed += u128::from(self.totals.unattributed);
        clock.remainder = self.remainder;
        clock.set_total_weight(self.total_weight, self.inverse_weight);
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
                reference.set_total_weight(weight, inverse_of(weight));
                (fast_path.total_weight, fast_path.inverse_weight) = (weight, inverse_of(weight));
                position_ns = at_ns;
            }
            fast_path.finish(&mut clock);
            assert_eq!(clock, reference);
        }
        assert!(clock.unattributed > 0 && clock.attributed > 0 && clock.idle_g > 0);
        assert_eq!(clock.measured, clock.attributed + clock.unattributed + u128::from(clock.remainder));
    }
}
