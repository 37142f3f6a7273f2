//! The splitting rule: energy per unit of weight, in integers.
//!
//! For one domain, `g` is the integral of dE/W over the time with open weight. A span of weight w gets
//! w·(g(close) − g(open)). The work per edge is constant for any number of open spans: this is the virtual time of
//! weighted fair queueing (H = ∫dt/W), with energy in place of time. Invariant, in integers:
//! `measured = attributed + unattributed`, where `attributed` is the sum of W·dg, and `unattributed` the energy while no
//! weight was open and the remainders of the divisions by W.
//!
//! Units: `units.rs`; `g` in 2^-64 µJ per unit of weight.

use super::units::{ENERGY_FRACTION_BITS, SHARE_FRACTION_BITS};

/// The virtual energy clock of one domain.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct VirtualEnergy {
    /// Energy per unit of weight, and the part of it that is idle.
    pub g: u128,
    pub idle_g: u128,
    /// The whole energy, with or without open weight, energy units.
    pub measured: u128,
    /// The parts of `measured` that spans got and that they did not get, 2^-64 µJ.
    pub attributed: u128,
    pub unattributed: u128,
    pub total_weight: TotalWeight,
}

/// From energy units to the unit of `g`.
const DIVIDEND_SHIFT: u32 = SHARE_FRACTION_BITS - ENERGY_FRACTION_BITS;

/// W, the sum of the weights of the open spans, and its inverse.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct TotalWeight {
    pub units: u64,
    /// 1/W, for errors; 0 while no weight is open.
    pub inverse: f64,
    /// 1/W, for energy, with 64 significant bits: (2^127 − 1) / (W · 2^k), rounded down, where k leading zeros of W make
    /// its highest bit one; 0 while no weight is open.
    reciprocal: u64,
    /// The shift that turns energy × `reciprocal` into energy / W in the unit of `g`.
    shift: u32,
}

impl TotalWeight {
    #[inline]
    pub(crate) fn new(units: u64) -> Self {
        if units == 0 {
            return Self::default();
        }
        let zeros = units.leading_zeros();
        Self {
            units,
            inverse: 1.0 / units as i64 as f64,
            reciprocal: (((1_u128 << 127) - 1) / u128::from(units << zeros)) as u64,
            shift: 127 - DIVIDEND_SHIFT - zeros,
        }
    }

    /// The weight changed by `weight_change`. Nearly always, it is then the weight `of_all` spans, whose inverse is
    /// known.
    #[inline]
    pub(crate) fn changed_by(self, weight_change: u64, of_all: Self) -> Self {
        let units = self.units.wrapping_add(weight_change);
        if units == of_all.units { of_all } else { Self::new(units) }
    }

    /// energy / W in the unit of `g`, without a division where the energy fits a word, which is nearly always. It is
    /// never too large, and too small by less than 2 and 2^-62 of it.
    #[inline]
    fn quotient(self, energy: u128) -> u128 {
        if energy >> 64 != 0 {
            return (energy << DIVIDEND_SHIFT).checked_div(u128::from(self.units)).unwrap_or(0);
        }
        (energy * u128::from(self.reciprocal)) >> self.shift
    }
}

impl VirtualEnergy {
    /// Adds `energy` at constant weight; `idle` is its idle part. Both are in energy units.
    #[inline]
    pub(crate) fn add_energy(&mut self, energy: u128, idle: u128) {
        let rise = self.total_weight.quotient(energy);
        // Not by subtraction from the shares, which would hide a wrong W: spans get w · `rise` each.
        let attributed = rise * u128::from(self.total_weight.units);
        self.measured += energy;
        self.g += rise;
        self.attributed += attributed;
        self.unattributed += (energy << DIVIDEND_SHIFT) - attributed;
        if idle != 0 {
            self.idle_g += self.total_weight.quotient(idle.min(energy));
        }
    }

    /// `g` in energy units per unit of weight, for products with a time.
    pub(crate) fn coarse_g(&self) -> u128 {
        self.g >> DIVIDEND_SHIFT
    }
}

/// The bits that a snapshot drops: it stores energy in 2^-8 µJ and the idle part in 2^-20 µJ.
pub(crate) const ENERGY_SHIFT: u32 = ENERGY_FRACTION_BITS - 8;
pub(crate) const IDLE_SHIFT: u32 = SHARE_FRACTION_BITS - 20;

/// A snapshot of a domain's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClockSnapshot {
    /// Energy per unit of weight, 2^-64 µJ.
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
}

#[cfg(test)]
mod tests {
    use super::super::units::WEIGHT_ONE;
    use super::*;

    fn next(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *seed
    }

    #[test]
    fn energy_is_conserved_for_all_weights() {
        let (mut clock, mut seed, mut unweighted) = (VirtualEnergy::default(), 1, 0);
        for step in 0..20_000_u64 {
            let weight = if step % 7 == 0 { 0 } else { (next(&mut seed) >> 30) + 1 };
            clock.total_weight = TotalWeight::new(weight);
            let energy = u128::from(next(&mut seed) >> 20) << (seed % 3 * 16);
            clock.add_energy(energy, 0);
            unweighted += if weight == 0 { energy << DIVIDEND_SHIFT } else { 0 };
            assert_eq!(clock.measured << DIVIDEND_SHIFT, clock.attributed + clock.unattributed);
        }
        // 20,000 remainders of less than two units of 2^-64 µJ for each unit of a weight below 2^34.
        let remainders = clock.unattributed - unweighted;
        assert!(remainders > 0 && remainders < 20_000 << 35, "{remainders}");
    }

    #[test]
    fn the_quotient_is_never_too_large_and_hardly_too_small() {
        let mut seed = 5;
        for _ in 0..100_000 {
            let weight = (next(&mut seed) >> (11 + seed % 50)).max(1);
            let energy = u128::from(next(&mut seed).rotate_left(23) >> (seed % 60)) << (seed % 5 * 7);
            let quotient = TotalWeight::new(weight).quotient(energy);
            let exact = (energy << DIVIDEND_SHIFT) / u128::from(weight);
            assert!(quotient <= exact && exact - quotient < 2 + (exact >> 62), "{energy} / {weight}");
        }
        assert_eq!(TotalWeight::new(0).quotient(u128::from(u64::MAX) << 20), 0);
    }

    #[test]
    fn a_lone_span_gets_everything_but_less_than_a_millionth_of_a_microjoule() {
        let mut clock =
            VirtualEnergy { total_weight: TotalWeight::new(WEIGHT_ONE), ..VirtualEnergy::default() };
        let begin = clock.g;
        for _ in 0..1000 {
            clock.add_energy(100_001 << ENERGY_FRACTION_BITS, 40_000 << ENERGY_FRACTION_BITS);
        }
        let share = (clock.g - begin) * u128::from(WEIGHT_ONE);
        assert_eq!((share + (1 << 44)) >> SHARE_FRACTION_BITS, 100_001_000);
        let idle = (clock.idle_g * u128::from(WEIGHT_ONE)) >> SHARE_FRACTION_BITS;
        assert!((39_999_999..=40_000_000).contains(&idle), "{idle}");
    }
}
