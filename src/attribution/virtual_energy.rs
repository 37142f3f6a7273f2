//! The splitting rule: energy per unit of weight, exact in integers.
//!
//! For one domain, `g` is the integral of dE/W over the time with open weight. A span of weight w gets
//! w·(g(close) − g(open)). The work per edge is constant for any number of open spans: this is the virtual time of
//! weighted fair queueing (H = ∫dt/W), with energy in place of time. Invariant, in integers:
//! `measured = attributed + unattributed + remainder`, where `attributed` is the sum of W·dg, `unattributed` the energy
//! while no weight was open, and `remainder < W` the remainder of the last division.
//!
//! Units: `units.rs`; `g` in energy units per unit of weight.

use super::edge_queue::EdgeInstant;

/// The virtual energy clock of one domain.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct VirtualEnergy {
    /// Energy per unit of weight.
    pub g: u128,
    /// The part of `g` that is idle.
    pub idle_g: u128,
    /// The whole energy, with or without open weight.
    pub measured: u128,
    /// The part of `measured` while weight was open.
    pub attributed: u128,
    /// The part of `measured` while no weight was open.
    pub unattributed: u128,
    /// The energy that is not divided yet; less than the open weight.
    pub remainder: u64,
    pub total_weight: TotalWeight,
}

/// W, the sum of the weights of the open spans, and its inverse.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct TotalWeight {
    pub units: u64,
    /// 2^63 / W, rounded down, for energy.
    divisor: u64,
    /// 1/W, for errors. Both inverses are 0 while no weight is open.
    pub inverse: f64,
}

impl TotalWeight {
    #[inline]
    pub(crate) fn new(units: u64) -> Self {
        Self {
            units,
            divisor: (1_u64 << 63).checked_div(units).unwrap_or(0),
            inverse: if units == 0 { 0.0 } else { 1.0 / units as i64 as f64 },
        }
    }

    /// The weight after an instant whose spans all use the domain. Nearly always, it is the weight of all spans, whose
    /// inverse is known.
    #[inline]
    pub(crate) fn changed(self, instant: &EdgeInstant) -> Self {
        self.changed_by(instant.weight_change, instant)
    }

    /// Like [`Self::changed`], by an instant's change of weight in this domain.
    #[inline]
    pub(crate) fn changed_by(self, weight_change: u64, instant: &EdgeInstant) -> Self {
        let units = self.units.wrapping_add(weight_change);
        if units == instant.total_weight.units { instant.total_weight } else { Self::new(units) }
    }

    /// `energy / W`, rounded down, for an energy below 2^63; it can be one or two too small.
    #[inline]
    pub(crate) fn quotient(self, energy: u64) -> u64 {
        ((u128::from(energy) * u128::from(self.divisor)) >> 63) as u64
    }
}

impl VirtualEnergy {
    /// Adds `energy` at constant weight; `idle` is its idle part.
    #[inline]
    pub(crate) fn add_energy(&mut self, energy: u128, idle: u128) {
        self.measured += energy;
        if self.total_weight.units == 0 {
            self.unattributed += energy;
            return;
        }
        if energy == 0 {
            // The remainder waits for further energy: a gap attributes nothing.
            return;
        }
        let dividend = energy + u128::from(self.remainder);
        let (quotient, remainder) = divide(dividend, self.total_weight);
        self.g += quotient;
        self.attributed += dividend - u128::from(remainder);
        self.remainder = remainder;
        if idle != 0 {
            self.idle_g += scale(idle.min(energy), self.total_weight);
        }
    }
}

/// The bits that a snapshot drops: it stores energy in 2^-8 µJ and the idle part in 2^-20 µJ.
pub(crate) const ENERGY_SHIFT: u32 = 24;
pub(crate) const IDLE_SHIFT: u32 = 12;

/// A snapshot of a domain's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClockSnapshot {
    /// Energy units per unit of weight.
    pub g: u128,
    /// The whole energy, 2^-8 µJ, wrapping.
    pub energy: u64,
    /// The idle part of `g`, 2^-20 µJ per unit of weight, wrapping.
    pub idle_g: u64,
    /// The time without readings.
    pub unknown_ns: u64,
}

impl ClockSnapshot {
    #[inline]
    pub(crate) fn of(clock: &VirtualEnergy, unknown_ns: u64) -> Self {
        Self {
            g: clock.g,
            energy: (clock.measured >> ENERGY_SHIFT) as u64,
            idle_g: (clock.idle_g >> IDLE_SHIFT) as u64,
            unknown_ns,
        }
    }

    /// The snapshot with `g` added, and new values of the energy and the idle part.
    #[inline]
    pub(crate) fn advanced_by(&self, measured: u128, g: u64, idle: u128) -> Self {
        Self {
            g: self.g + u128::from(g),
            energy: (measured >> ENERGY_SHIFT) as u64,
            idle_g: (idle >> IDLE_SHIFT) as u64,
            unknown_ns: self.unknown_ns,
        }
    }
}

/// The exact quotient and remainder of `dividend / weight`. Uses the inverse where the dividend fits a word, which is
/// nearly always.
#[inline]
fn divide(dividend: u128, weight: TotalWeight) -> (u128, u64) {
    if dividend >> 62 != 0 {
        let units = u128::from(weight.units);
        return (dividend / units, (dividend % units) as u64);
    }
    let (quotient, remainder) = divide_u64(dividend as u64, weight);
    (u128::from(quotient), remainder)
}

/// Like [`divide`], for a dividend below 2^62.
#[inline]
pub(crate) fn divide_u64(dividend: u64, weight: TotalWeight) -> (u64, u64) {
    let mut quotient = weight.quotient(dividend);
    let mut remainder = dividend - quotient * weight.units;
    // The inverse was rounded down, so the quotient may be one or two too small.
    while remainder >= weight.units {
        quotient += 1;
        remainder -= weight.units;
    }
    (quotient, remainder)
}

/// `energy × inverse / 2^63`, rounded down: energy per unit of weight without a division.
#[inline]
fn scale(energy: u128, weight: TotalWeight) -> u128 {
    if energy >> 63 == 0 {
        u128::from(weight.quotient(energy as u64))
    } else {
        (energy >> 32).saturating_mul(u128::from(weight.divisor)) >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::super::units::{ENERGY_FRACTION_BITS, WEIGHT_ONE};
    use super::*;

    fn assert_conserved(clock: &VirtualEnergy) {
        assert_eq!(clock.measured, clock.attributed + clock.unattributed + u128::from(clock.remainder));
    }

    #[test]
    fn energy_is_conserved_for_all_weights() {
        let mut clock = VirtualEnergy::default();
        let mut seed = 1_u64;
        for step in 0..20_000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let weight = if step % 7 == 0 { 0 } else { (seed >> 30) + 1 };
            clock.total_weight = TotalWeight::new(weight);
            clock.add_energy(u128::from(seed >> 20), 0);
            assert_conserved(&clock);
        }
        clock.total_weight = TotalWeight::new(3);
        clock.add_energy(u128::from(u64::MAX) * 1000 + 1, 5);
        assert_conserved(&clock);
    }

    #[test]
    fn division_by_the_inverse_is_exact() {
        let mut seed = 5_u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let weight = (seed >> (20 + seed % 40)).max(1);
            let dividend = u128::from(seed.rotate_left(23) >> (2 + seed % 50));
            let (quotient, remainder) = divide(dividend, TotalWeight::new(weight));
            assert_eq!(quotient, dividend / u128::from(weight));
            assert_eq!(u128::from(remainder), dividend % u128::from(weight));
        }
    }

    #[test]
    fn a_lone_span_gets_everything_but_less_than_a_millionth_of_a_microjoule() {
        let mut clock = VirtualEnergy::default();
        clock.total_weight = TotalWeight::new(WEIGHT_ONE);
        let begin = clock.g;
        for _ in 0..1000 {
            clock.add_energy(100_001 << ENERGY_FRACTION_BITS, 40_000 << ENERGY_FRACTION_BITS);
        }
        let share = (clock.g - begin) * u128::from(WEIGHT_ONE);
        assert_eq!((share + (1 << 20)) >> ENERGY_FRACTION_BITS, 100_001_000);
        let idle = (clock.idle_g * u128::from(WEIGHT_ONE)) >> ENERGY_FRACTION_BITS;
        assert!((39_999_999..=40_000_000).contains(&idle), "{idle}");
    }
}
