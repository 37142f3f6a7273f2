//! How a domain's energy flows through time: straight lines between the counter's knots.
//!
//! Owns the steps that are known, how far time has passed along them, and the domain's virtual energy clock, which they
//! drive. Invariant: what has flowed at the end of a step is exactly the step's energy; time never goes back; no energy
//! flows in a gap, whose time counts as unknown. Knows no span: weights come and go from outside.

use std::collections::VecDeque;

use super::glide::{Glide, Line};
use super::mark::Stand;
use super::passage::Moment;
use super::queue::Instant;
use super::share::{FINE_BITS, ShareClock};

/// The interpolation between two knots.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    from_ns: u64,
    to_ns: u64,
    /// Fine: all of it, and what has flowed so far.
    rise: u128,
    flowed: u128,
    /// Fine per nanosecond.
    power: u64,
    gap: bool,
}

/// The way of one domain's energy.
#[derive(Debug, Default)]
pub(crate) struct Course {
    pub clock: ShareClock,
    step: Step,
    ahead: VecDeque<Step>,
    pos_ns: u64,
    unknown_ns: u64,
    idle_rate: u64,
}

impl Course {
    /// Everything before this instant is final.
    #[inline]
    pub(crate) fn pos_ns(&self) -> u64 {
        self.pos_ns
    }

    /// Where the clock stands there.
    #[inline]
    pub(crate) fn stand(&self) -> Stand {
        Stand::of(&self.clock, self.unknown_ns)
    }

    /// From now on this much of what flows is idle.
    pub(crate) fn set_idle(&mut self, power_mw: Option<u64>) {
        let rate = power_mw.map_or(0, |mw| (u128::from(mw) << FINE_BITS) / 1_000_000);
        self.idle_rate = u64::try_from(rate).unwrap_or(u64::MAX);
    }

    /// The next step is known: `rise` fine between two instants, or a time for which nothing vouches.
    pub(crate) fn lay(&mut self, from_ns: u64, to_ns: u64, rise: u128, gap: bool) {
        let power = rise.checked_div(u128::from(to_ns.saturating_sub(from_ns)));
        let power = power.map_or(0, |power| u64::try_from(power).unwrap_or(0));
        self.ahead.push_back(Step { from_ns, to_ns, rise, flowed: 0, power, gap });
    }

    /// Lets energy flow up to `to_ns` along the steps.
    #[inline]
    pub(crate) fn advance(&mut self, to_ns: u64) {
        if to_ns >= self.step.to_ns {
            self.cross(to_ns);
        } else if to_ns > self.pos_ns {
            let flowed = u128::from(self.step.power) * u128::from(to_ns - self.step.from_ns);
            self.flow(to_ns, flowed);
        }
    }

    /// The same, to the end of a step at least.
    #[cold]
    fn cross(&mut self, to_ns: u64) {
        while self.pos_ns < to_ns {
            if to_ns < self.step.to_ns {
                return self.advance(to_ns);
            }
            // A step of no time can still hold energy.
            self.flow(self.step.to_ns.max(self.pos_ns), self.step.rise);
            if self.pos_ns < to_ns {
                let Some(step) = self.ahead.pop_front() else { return };
                self.step = step;
            }
        }
    }

    /// Lets what has not flowed yet of the step's first `flowed` fine flow up to `to_ns`.
    #[inline]
    fn flow(&mut self, to_ns: u64, flowed: u128) {
        let past_ns = to_ns - self.pos_ns;
        if self.step.gap {
            self.unknown_ns += past_ns;
        }
        let idle = if self.idle_rate == 0 { 0 } else { u128::from(self.idle_rate) * u128::from(past_ns) };
        self.clock.flow(flowed - self.step.flowed, idle);
        self.step.flowed = flowed;
        self.pos_ns = to_ns;
    }

    /// Passes as many instants as lie inside this step and concern only spans that use this domain; notes a moment for
    /// each and gives how many.
    pub(crate) fn glide(
        &mut self,
        domain: usize,
        instants: &[Instant],
        limit_ns: u64,
        moments: &mut Vec<Moment>,
    ) -> usize {
        let step = &self.step;
        if step.gap || step.rise >> 61 != 0 || self.pos_ns < step.from_ns || self.pos_ns >= step.to_ns {
            return 0;
        }
        let (limit_ns, flowed) = (limit_ns.min(step.to_ns), step.flowed as u64);
        let (from_ns, pos_ns, power, idle_rate) = (step.from_ns, self.pos_ns, step.power, self.idle_rate);
        let line = Line { from_ns, pos_ns, flowed, power, idle_rate };
        let mut glide = Glide::begin(line, &self.clock, self.unknown_ns);
        let before = moments.len();
        for instant in instants {
            if instant.at_ns >= limit_ns || (instant.all >> domain) & 1 == 0 {
                break;
            }
            glide.advance(instant.at_ns);
            moments.push(glide.turn(instant));
        }
        self.pos_ns = glide.line.pos_ns;
        self.step.flowed = u128::from(glide.line.flowed);
        glide.end(&mut self.clock);
        moments.len() - before
    }
}
