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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// Not yet divided; less than the open weight.
    pub carry: u64,
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
    pub(crate) fn reweigh(&mut self, weight: u64, inverse: u64) {
        debug_assert_eq!(inverse, inverse_of(weight));
        self.weight = weight;
        self.inverse = inverse;
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
        let whole = energy + u128::from(self.carry);
        let (rise, left) = divide(whole, self.weight, self.inverse);
        self.g += rise;
        self.attributed += whole - u128::from(left);
        self.carry = left;
        if idle != 0 {
            self.idle += scale(idle.min(energy), self.inverse);
        }
    }
}

/// 2^63 / W, rounded down; 0 for no weight.
#[inline]
pub(crate) fn inverse_of(weight: u64) -> u64 {
    (1_u64 << 63).checked_div(weight).unwrap_or(0)
}

/// `whole / weight` and the remainder, exactly; by the inverse where that fits a word, which is nearly always.
#[inline]
fn divide(whole: u128, weight: u64, inverse: u64) -> (u128, u64) {
    if whole >> 62 != 0 {
        return (whole / u128::from(weight), (whole % u128::from(weight)) as u64);
    }
    let (rise, left) = divide_word(whole as u64, weight, inverse);
    (u128::from(rise), left)
}

/// The same for less than 2^62.
#[inline]
pub(crate) fn divide_word(whole: u64, weight: u64, inverse: u64) -> (u64, u64) {
    let mut rise = scale_word(whole, inverse);
    let mut left = whole - rise * weight;
    // The inverse was rounded down, so the quotient may be one or two short.
    while left >= weight {
        rise += 1;
        left -= weight;
    }
    (rise, left)
}

/// `energy × inverse / 2^63`, rounded down: energy per unit of weight without a division.
#[inline]
fn scale(energy: u128, inverse: u64) -> u128 {
    if energy >> 63 == 0 {
        u128::from(scale_word(energy as u64, inverse))
    } else {
        (energy >> 32).saturating_mul(u128::from(inverse)) >> 31
    }
}

/// The same for less than 2^63.
#[inline]
pub(crate) fn scale_word(energy: u64, inverse: u64) -> u64 {
    ((u128::from(energy) * u128::from(inverse)) >> 63) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(clock: &ShareClock) {
        assert_eq!(clock.measured, clock.attributed + clock.alone + u128::from(clock.carry));
    }

    #[test]
    fn nothing_is_rounded_away_over_awkward_weights() {
        let mut clock = ShareClock::default();
        let mut seed = 1_u64;
        for step in 0..20_000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let weight = if step % 7 == 0 { 0 } else { (seed >> 30) + 1 };
            clock.reweigh(weight, inverse_of(weight));
            clock.flow(u128::from(seed >> 20), 0);
            exact(&clock);
        }
        clock.reweigh(3, inverse_of(3));
        clock.flow(u128::from(u64::MAX) * 1000 + 1, 5);
        exact(&clock);
    }

    #[test]
    fn division_by_the_inverse_is_exact() {
        let mut seed = 5_u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let weight = (seed >> (20 + seed % 40)).max(1);
            let whole = u128::from(seed.rotate_left(23) >> (2 + seed % 50));
            let (rise, left) = divide(whole, weight, inverse_of(weight));
            assert_eq!(rise, whole / u128::from(weight));
            assert_eq!(u128::from(left), whole % u128::from(weight));
        }
    }

    #[test]
    fn a_lone_span_gets_everything_but_less_than_a_millionth_of_a_microjoule() {
        let mut clock = ShareClock::default();
        clock.reweigh(WEIGHT_ONE, inverse_of(WEIGHT_ONE));
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
