//! The common case of a domain's walk, in machine words: many instants inside one step of the counter.
//!
//! Owns what changes from instant to instant while energy flows along one straight line, counted from where the glide
//! began; the domain's clock takes it over when the glide ends. Invariant: to the last unit it does what
//! `ShareClock::flow` and `reweigh` would do instant by instant. What does not fit a word is not begun here.

use super::bound::place;
use super::mark::Stand;
use super::passage::{Moment, left_over};
use super::queue::Instant;
use super::share::{ShareClock, divide_word, inverse_of, scale_word};

/// The straight line, and where on it the domain is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    pub from_ns: u64,
    pub pos_ns: u64,
    /// Fine since `from_ns`, less than 2^61.
    pub flowed: u64,
    /// Fine per nanosecond; and what of it is idle.
    pub power: u64,
    pub idle_rate: u64,
}

/// What has flowed since the glide began: fine, and fine per unit of weight.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flowed {
    pub g: u64,
    pub idle: u64,
    pub attributed: u64,
    pub alone: u64,
}

/// A glide.
#[derive(Debug)]
pub(crate) struct Glide {
    pub line: Line,
    /// The clock's energy where the line begins.
    zero: u128,
    start: Stand,
    idle: u128,
    since: Flowed,
    carry: u64,
    weight: u64,
    inverse: u64,
}

impl Glide {
    #[inline]
    pub(crate) fn begin(line: Line, clock: &ShareClock, unknown_ns: u64) -> Self {
        Self {
            line,
            zero: clock.measured - u128::from(line.flowed),
            start: Stand::of(clock, unknown_ns),
            idle: clock.idle,
            since: Flowed::default(),
            carry: clock.carry,
            weight: clock.weight(),
            inverse: clock.inverse(),
        }
    }

    /// Lets energy flow up to `at_ns`.
    #[inline]
    pub(crate) fn advance(&mut self, at_ns: u64) {
        let line = &mut self.line;
        let flowed = line.power * (at_ns - line.from_ns);
        let (energy, past_ns) = (flowed - line.flowed, at_ns - line.pos_ns);
        (line.flowed, line.pos_ns) = (flowed, at_ns);
        if self.weight == 0 {
            self.since.alone += energy;
        } else if energy != 0 {
            let whole = energy + self.carry;
            let (rise, left) = divide_word(whole, self.weight, self.inverse);
            self.since.g += rise;
            self.since.attributed += whole - left;
            self.carry = left;
            if line.idle_rate != 0 {
                self.since.idle +=
                    scale_word(line.idle_rate.saturating_mul(past_ns).min(energy), self.inverse);
            }
        }
    }

    /// Applies the edges of an instant whose spans all use the domain.
    #[inline]
    pub(crate) fn turn(&mut self, instant: &Instant) -> Moment {
        let weight = self.weight.wrapping_add(instant.change);
        let whole = weight == instant.total;
        let behind = if whole { instant.inverse } else { inverse_of(weight) };
        let measured = self.zero + u128::from(self.line.flowed);
        let moment = Moment {
            at_ns: instant.at_ns,
            here: place(measured),
            stand: self.start.after(measured, self.since.g, self.idle + u128::from(self.since.idle)),
            before: self.inverse,
            behind,
            whole,
            doubt: 0,
            drift: (0, 0),
            left_over: left_over(self.carry),
            begin: instant.begin,
            end: instant.end,
        };
        (self.weight, self.inverse) = (weight, behind);
        moment
    }

    /// The clock takes over what has flowed.
    #[inline]
    pub(crate) fn end(self, clock: &mut ShareClock) {
        clock.measured = self.zero + u128::from(self.line.flowed);
        clock.g += u128::from(self.since.g);
        clock.idle += u128::from(self.since.idle);
        clock.attributed += u128::from(self.since.attributed);
        clock.alone += u128::from(self.since.alone);
        clock.carry = self.carry;
        clock.reweigh(self.weight, self.inverse);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glide_moves_the_clock_as_flows_one_by_one_do() {
        let mut seed = 9_u64;
        let mut roll = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 20) % below
        };
        let (mut clock, mut other) = (ShareClock::default(), ShareClock::default());
        for _ in 0..300 {
            let (power, idle_rate, from_ns) = (roll(1 << 32), roll(2) * roll(1 << 32), roll(1 << 40));
            let mut pos_ns = from_ns;
            let line = Line { from_ns, pos_ns, flowed: 0, power, idle_rate };
            let mut glide = Glide::begin(line, &clock, 0);
            for _ in 0..roll(20) {
                let at_ns = pos_ns + roll(2) * roll(1 << 20);
                let energy = u128::from(power) * u128::from(at_ns - pos_ns);
                other.flow(energy, u128::from(idle_rate) * u128::from(at_ns - pos_ns));
                glide.advance(at_ns);
                let weight = roll(3) * (roll(1 << 40) + 1);
                other.reweigh(weight, inverse_of(weight));
                (glide.weight, glide.inverse) = (weight, inverse_of(weight));
                pos_ns = at_ns;
            }
            glide.end(&mut clock);
            assert_eq!(clock, other);
        }
        assert!(clock.alone > 0 && clock.attributed > 0 && clock.idle > 0);
        assert_eq!(clock.measured, clock.attributed + clock.alone + u128::from(clock.carry));
    }
}
