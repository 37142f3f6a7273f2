//! The splitting rule: virtual time and virtual energy of one domain, in integers.
//!
//! The interpolant Ê is a sequence of straight lines, each of a power P. While W is constant, virtual time H grows by
//! ΔH = Δt / W and virtual energy G by ΔG = P · ΔH; a span of weight w gets w · (G(close) − G(open)). Domains with the same
//! open spans share ΔH, and the work per edge is constant for any number of open spans. Invariant: `measured =
//! attributed + unattributed`, where `attributed` is the sum of W · ΔG, and `unattributed` the energy while no weight was
//! open and the remainders of the divisions. No energy flows in a gap, and its time counts as unknown. Energy is an integer in
//! *energy units* of 2^-64 µJ, never a double; a weight is in units of 2^-16.

use std::collections::VecDeque;

/// Energy units in a microjoule, as a power of two.
pub(crate) const ENERGY_FRACTION_BITS: u32 = 64;
/// The largest energy of a domain: twice of it fits a `u64` in µJ, and a `u128` in energy units. At 1 MW, it is used in 292,000
/// years, so that only a broken source reaches it; its energy counts no further.
pub(crate) const MAX_ENERGY_UJ: u64 = 1 << 63;
/// Weight units in a weight of 1.
pub(crate) const WEIGHT_ONE: u64 = 1 << 16;

/// An energy in whole microjoules, rounded down.
#[inline]
pub(crate) fn whole_uj(energy: u128) -> u64 {
    (energy >> ENERGY_FRACTION_BITS) as u64
}

/// W, the sum of the weights of the open spans.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct TotalWeight {
    pub units: u64,
    /// 1/W, for errors; 0 while no weight is open.
    pub inverse: f64,
}

impl TotalWeight {
    /// The weight after a change, wrapping. Edges of one instant nearly always change it for all domains alike: `known` is
    /// then the result, without another division.
    #[inline]
    pub(crate) fn changed_by(self, change: u64, known: TotalWeight) -> Self {
        let units = self.units.wrapping_add(change);
        if units == known.units {
            return known;
        }
        Self { units, inverse: if units == 0 { 0.0 } else { 1.0 / units as i64 as f64 } }
    }
}

/// An interval of constant W, and ΔH in it, 2^-64 ns per unit of weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VirtualTime {
    pub from_ns: u64,
    pub to_ns: u64,
    pub total_weight: u64,
    pub rise: u128,
}

impl VirtualTime {
    #[inline]
    pub(crate) fn new(from_ns: u64, to_ns: u64, total_weight: u64) -> Self {
        // ΔH = Δt / W, rounded down; 0 while no weight is open.
        let elapsed = u128::from(to_ns.saturating_sub(from_ns)) << 64;
        let rise = elapsed.checked_div(u128::from(total_weight)).unwrap_or(0);
        Self { from_ns, to_ns, total_weight, rise }
    }
}

/// A straight line of Ê, from the end of the line before it.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    to_ns: u64,
    /// P, rounded down, 2^-64 µJ per nanosecond; and the energy that the rounding leaves at the end of the line.
    power: u128,
    remainder: u128,
    gap: bool,
}

/// The position of one domain on its lines, and its sums up to there. Energies are in 2^-64 µJ.
#[derive(Debug, Default)]
pub(crate) struct VirtualEnergy {
    /// G, the energy per unit of weight, and the part of it that is idle.
    pub g: u128,
    pub idle_g: u128,
    /// The whole energy Ê, and the parts of it that spans got and that they did not get.
    pub measured: u128,
    pub attributed: u128,
    pub unattributed: u128,
    pub total_weight: TotalWeight,
    /// Everything before this instant is final.
    pub position_ns: u64,
    /// The time in gaps.
    unknown_ns: u64,
    line: Line,
    pending_lines: VecDeque<Line>,
    /// 2^-64 µJ per nanosecond.
    idle_power: u128,
}

/// ΔG = P · ΔH, rounded down.
#[inline]
fn product(power: u128, virtual_time: u128) -> u128 {
    let split = |value: u128| (value >> 64, value & u128::from(u64::MAX));
    let ((power, power_low), (time, time_low)) = (split(power), split(virtual_time));
    ((power * time) << 64) + power * time_low + power_low * time + ((power_low * time_low) >> 64)
}

impl VirtualEnergy {
    /// Sets the idle power for the time from the position on.
    pub(crate) fn set_idle_power(&mut self, power_mw: Option<u64>) {
        self.idle_power = power_mw.map_or(0, |mw| (u128::from(mw) << ENERGY_FRACTION_BITS) / 1_000_000);
    }

    /// Adds a line to `to_ns` with this energy, or a gap.
    pub(crate) fn add_line(&mut self, from_ns: u64, to_ns: u64, energy: u128, gap: bool) {
        let length_ns = u128::from(to_ns.saturating_sub(from_ns));
        let power = energy.checked_div(length_ns).unwrap_or(0);
        let remainder = energy - power * length_ns;
        self.pending_lines.push_back(Line { to_ns, power, remainder, gap });
    }

    /// Advances the position to `to_ns` along the lines.
    pub(crate) fn advance(&mut self, to_ns: u64) {
        while self.position_ns < to_ns {
            if self.position_ns >= self.line.to_ns {
                let Some(line) = self.pending_lines.pop_front() else { return };
                self.line = line;
            } else {
                let until_ns = to_ns.min(self.line.to_ns);
                let time = VirtualTime::new(self.position_ns, until_ns, self.total_weight.units);
                self.advance_on_line(until_ns, time.rise);
            }
        }
    }

    /// Advances the position to the end of an interval, whose ΔH is that of this domain if W and the begin are the same.
    #[inline]
    pub(crate) fn advance_by(&mut self, time: &VirtualTime) {
        let shared = self.position_ns == time.from_ns && self.total_weight.units == time.total_weight;
        if shared && (self.position_ns..=self.line.to_ns).contains(&time.to_ns) {
            self.advance_on_line(time.to_ns, time.rise);
        } else {
            self.advance(time.to_ns);
        }
    }

    /// Advances the position to `to_ns`, which is not after the end of the line. ΔH is `virtual_time`.
    #[inline]
    fn advance_on_line(&mut self, to_ns: u64, virtual_time: u128) {
        let elapsed_ns = to_ns - self.position_ns;
        self.position_ns = to_ns;
        if self.line.gap {
            self.unknown_ns += elapsed_ns;
        }
        let energy = self.line.power * u128::from(elapsed_ns);
        let rise = product(self.line.power, virtual_time);
        // Not by subtraction from the shares, which would hide a wrong W: spans get w · `rise` each.
        let attributed = rise * u128::from(self.total_weight.units);
        self.g += rise;
        self.measured += energy;
        self.attributed += attributed;
        self.unattributed += energy - attributed;
        if self.idle_power != 0 {
            self.idle_g += product(self.idle_power.min(self.line.power), virtual_time);
        }
        if to_ns == self.line.to_ns {
            let remainder = std::mem::take(&mut self.line.remainder);
            self.measured += remainder;
            self.unattributed += remainder;
        }
    }

    /// `g` in 2^-32 µJ per unit of weight, for products with a time.
    pub(crate) fn coarse_g(&self) -> u128 {
        self.g >> 32
    }

    /// A snapshot at the position.
    #[inline]
    pub(crate) fn snapshot(&self) -> DomainClock {
        DomainClock {
            g: self.g,
            energy: (self.measured >> ENERGY_SHIFT) as u64,
            idle_g: (self.idle_g >> IDLE_SHIFT) as u64,
            covered_ns: self.position_ns.wrapping_sub(self.unknown_ns),
        }
    }
}

/// The bits that a snapshot drops: it stores energy in 2^-8 µJ and the idle part in 2^-20 µJ.
const ENERGY_SHIFT: u32 = ENERGY_FRACTION_BITS - 8;
const IDLE_SHIFT: u32 = ENERGY_FRACTION_BITS - 20;

/// A snapshot of a domain's sums. The energy of a span between two of them follows from their difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DomainClock {
    /// Energy per unit of weight, 2^-64 µJ.
    pub g: u128,
    /// The whole energy, 2^-8 µJ, wrapping.
    pub energy: u64,
    /// The idle part of `g`, 2^-20 µJ per unit of weight, wrapping.
    pub idle_g: u64,
    /// The time that readings cover, with an arbitrary origin, wrapping.
    pub covered_ns: u64,
}

impl DomainClock {
    /// The whole energy since an earlier snapshot, µJ.
    #[inline]
    pub(crate) fn energy_uj_since(&self, energy: u64) -> u64 {
        self.energy.wrapping_sub(energy) >> (ENERGY_FRACTION_BITS - ENERGY_SHIFT)
    }

    /// The idle part of the energy of a weight since an earlier snapshot, 2^-64 µJ.
    #[inline]
    pub(crate) fn idle_since(&self, idle_g: u64, weight: u64) -> u128 {
        (u128::from(weight) * u128::from(self.idle_g.wrapping_sub(idle_g))) << IDLE_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total_weight(units: u64) -> TotalWeight {
        TotalWeight::default().changed_by(units, TotalWeight::default())
    }

    fn next(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *seed
    }

    #[test]
    fn energy_is_conserved_for_all_weights_and_little_is_left_of_divisions() {
        let (mut clock, mut seed, mut from_ns, mut total) = (VirtualEnergy::default(), 1, 0, 0);
        let (mut unweighted, mut remainders) = (0, 0);
        for step in 0..20_000_u64 {
            let weight = if step % 7 == 0 { 0 } else { (next(&mut seed) >> (30 + step % 30)) + 1 };
            clock.total_weight = total_weight(weight);
            let energy = u128::from(next(&mut seed) >> 20) << (step % 3 * 16);
            let length_ns = 1 + (next(&mut seed) >> (32 + step % 28));
            clock.add_line(from_ns, from_ns + length_ns, energy, false);
            from_ns += length_ns;
            clock.advance(from_ns);
            total += energy;
            unweighted += if weight == 0 { energy } else { 0 };
            // One unit for each unit of weight, and 2^-64 ns of P for each.
            let power = energy / u128::from(length_ns);
            remainders += u128::from(length_ns) + u128::from(weight) * (1 + (power >> 64) + 1);
            assert_eq!(clock.measured, total);
            assert_eq!(clock.measured, clock.attributed + clock.unattributed);
        }
        assert!(clock.unattributed > unweighted && clock.unattributed - unweighted < remainders);
    }

    #[test]
    fn a_product_is_exact_but_for_its_last_digit() {
        let max = u128::from(u64::MAX);
        assert_eq!(product(7 << 64, 9), 63);
        assert_eq!(product(3, 1 << 63), 1);
        assert_eq!(product(max, max), max - 1);
        assert_eq!(product(5 << 64, 3 << 64), 15 << 64);
        assert_eq!(product(1 << 126, 1 << 64), 1 << 126);
    }

    #[test]
    fn a_lone_span_gets_everything_but_less_than_a_millionth_of_a_microjoule() {
        let mut clock = VirtualEnergy { total_weight: total_weight(WEIGHT_ONE), ..VirtualEnergy::default() };
        clock.set_idle_power(Some(40_000));
        for step in 0..1_000_u64 {
            // 100.001 W for 1 ms, and a position inside each line.
            clock.add_line(step * 1_000_000, (step + 1) * 1_000_000, 100_001 << ENERGY_FRACTION_BITS, false);
            clock.advance(step * 1_000_000 + 333_333);
        }
        clock.advance(1_000_000_000);
        let share = clock.g * u128::from(WEIGHT_ONE);
        assert_eq!((share + (1 << 44)) >> ENERGY_FRACTION_BITS, 100_001_000);
        let idle = (clock.idle_g * u128::from(WEIGHT_ONE)) >> ENERGY_FRACTION_BITS;
        assert!((39_999_999..=40_000_000).contains(&idle), "{idle}");
    }
}
