//! The splitting rule: energy per unit of weight, exact in integers.
//!
//! Owns, for one domain, `g` = the integral of dE/W over the time in which weight was open. A span of weight w gets
//! w·(g(close) − g(open)); work per edge is constant however many spans are open (the virtual clock of fair queueing,
//! with energy in place of service). Invariant, in integers: `measured = attributed + alone + carry`, where
//! `attributed` is the sum over all pieces of W·dg, `alone` the energy while no weight was open, and `carry < W` the
//! remainder of the last division. Never rounds anything away.
//!
//! Units: energy in *fine* = 2^-32 µJ; weight in 2^-16; `g` in fine per unit of weight; `inverse` in 2^-63.

/// Fine units in a microjoule.
pub(crate) const FINE_BITS: u32 = 32;

/// Units of weight in a weight of 1.
pub(crate) const WEIGHT_ONE: u64 = 1 << 16;

/// The virtual energy clock of one domain.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShareClock {
    /// Energy per unit of weight so far.
    pub g: u128,
    /// Of it, what the domain would have used anyway.
    pub idle: u128,
    /// Energy so far, with or without weight.
    pub measured: u128,
    /// Of it, while weight was open.
    pub attributed: u128,
    /// Of it, while none was.
    pub alone: u128,
    /// Not yet divided.
    pub carry: u128,
    weight: u64,
    inverse: u64,
}

impl ShareClock {
    /// The open weight.
    #[inline]
    pub(crate) fn weight(&self) -> u64 {
        self.weight
    }

    /// 2^63 / W, or 0 while no weight is open.
    #[inline]
    pub(crate) fn inverse(&self) -> u64 {
        self.inverse
    }

    /// Weight comes and goes at this instant.
    #[inline]
    pub(crate) fn reweigh(&mut self, weight: u64) {
        self.weight = weight;
        self.inverse = (1_u64 << 63).checked_div(weight).unwrap_or(0);
    }

    /// `energy` fine flowed while the weight stood still, `idle` fine of it idle.
    #[inline]
    pub(crate) fn flow(&mut self, energy: u128, idle: u128) {
        self.measured += energy;
        if self.weight == 0 {
            self.alone += energy;
            return;
        }
        if energy == 0 {
            // The carry waits for energy to travel with: a gap gives nobody anything.
            return;
        }
        let whole = energy + self.carry;
        let rise = match (u64::try_from(whole), self.weight) {
            (Ok(small), weight) => u128::from(small / weight),
            (Err(_), weight) => whole / u128::from(weight),
        };
        let given = rise * u128::from(self.weight);
        self.g += rise;
        self.attributed += given;
        self.carry = whole - given;
        self.idle += scale(idle.min(energy), self.inverse);
    }
}

/// `energy × inverse / 2^63`, rounded down: energy per unit of weight without a division.
#[inline]
pub(crate) fn scale(energy: u128, inverse: u64) -> u128 {
    match u64::try_from(energy) {
        Ok(small) => (u128::from(small) * u128::from(inverse)) >> 63,
        Err(_) => (energy >> 32).saturating_mul(u128::from(inverse)) >> 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(clock: &ShareClock) {
        assert_eq!(clock.measured, clock.attributed + clock.alone + clock.carry);
    }

    #[test]
    fn nothing_is_rounded_away_over_awkward_weights() {
        let mut clock = ShareClock::default();
        let mut seed = 1_u64;
        for step in 0..20_000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            clock.reweigh(if step % 7 == 0 { 0 } else { (seed >> 30) + 1 });
            clock.flow(u128::from(seed >> 20), 0);
            exact(&clock);
        }
        clock.reweigh(3);
        clock.flow(u128::from(u64::MAX) * 1000 + 1, 5);
        exact(&clock);
    }

    #[test]
    fn a_lone_span_gets_everything_but_less_than_a_millionth_of_a_microjoule() {
        let mut clock = ShareClock::default();
        clock.reweigh(WEIGHT_ONE);
        let begin = clock.g;
        for _ in 0..1000 {
            clock.flow(100_001 << FINE_BITS, 40_000 << FINE_BITS);
        }
        let share = (clock.g - begin) * u128::from(WEIGHT_ONE);
        assert_eq!((share + (1 << 20)) >> FINE_BITS, 100_001_000);
        let idle = (clock.idle * u128::from(WEIGHT_ONE)) >> FINE_BITS;
        assert!((39_999_999..=40_000_000).contains(&idle), "{idle}");
    }
}
