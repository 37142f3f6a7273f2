//! The thread of one source: wait, read, write into the ring.
//!
//! Owns the source, the ring's writer and the loop. Its tick takes no lock, allocates nothing and waits for nobody; what
//! it tells others goes through atomics. Knows no span and interprets no reading.

use std::sync::Arc;

use crate::clock::{Clock, monotonic_ns};
use crate::domain::Reading;
use crate::ring::{Sample, Writer};
use crate::sources::Source;

use super::continuity::Continuity;
use super::grid::Grid;
use super::pace::{Pace, Speed};
use super::priority::claim;
use super::{Rates, Shared};

/// How often, in real time, a manual clock is looked at.
const MANUAL_LOOK_NS: u64 = 200_000;

pub(super) struct Ticker {
    pub(super) source: Box<dyn Source>,
    pub(super) cpu: Option<usize>,
    pub(super) clock: Clock,
    pub(super) writer: Writer,
    /// Reused for every read.
    pub(super) sample: Sample,
    pub(super) rates: Rates,
    /// How often they were set when that was last looked at.
    pub(super) rates_seen: u64,
    pub(super) pace: Pace,
    pub(super) continuity: Continuity,
    /// What the read before took.
    pub(super) cost_ns: u64,
    pub(super) shared: Arc<Shared>,
}

impl Ticker {
    /// Ticks until told to stop.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let granted = claim(self.cpu);
        shared.tally.granted(granted.realtime, granted.pinned);
        // The first look at the wishes finds the first survey, so the first read comes at once.
        let mut grid = Grid::from(self.clock.now_ns(), self.rates.period_ns(Speed::Slow));
        loop {
            // Before looking for a reason to go on, so that a ring from here on cuts the wait short.
            let rings = shared.alarm.rings();
            if shared.stopped() {
                return;
            }
            let now_ns = self.clock.now_ns();
            let mut turned = self.pace.turn(now_ns, &shared.wish);
            if let Some(rates) = shared.rates.news(&mut self.rates_seen) {
                self.rates = rates;
                turned = turned.or(self.pace.speed());
            }
            let lateness_ns = grid.lateness_ns(now_ns);
            if let Some(lateness_ns) = lateness_ns {
                shared.tally.began(lateness_ns, grid.tolerance_ns());
            }
            if let Some(speed) = turned {
                grid = Grid::from(now_ns, self.rates.period_ns(speed));
            }
            match (lateness_ns, turned) {
                (None, None) => {
                    let wake_ns = self.wake_ns(&grid);
                    shared.tally.asleep_until(wake_ns);
                    shared.alarm.wait_until(wake_ns, rings);
                }
                (Some(_), None) => shared.tally.missed(grid.done(self.tick())),
                // The new grid begins with this tick: its first deadline is still to come, or was missed by the read.
                (_, Some(_)) => shared.tally.missed(grid.overrun(self.tick())),
            }
        }
    }

    /// One read into the ring; gives the earliest instant for the next one. A source whose reads take long rests as long
    /// as they took: at a real-time priority it would leave its CPU to nobody. One slow read alone is a hiccup.
    fn tick(&mut self) -> u64 {
        self.continuity.learn(self.clock.asleep_ns());
        self.sample.readings.fill(Reading::default());
        let before_ns = self.clock.now_ns();
        self.shared.tally.reading(before_ns);
        let narrower = self.source.read(&mut self.sample.readings);
        let after_ns = self.clock.now_ns();
        self.shared.tally.read(before_ns, after_ns);
        self.continuity.mark(&mut self.sample.readings);
        (self.sample.before_ns, self.sample.after_ns) = window((before_ns, after_ns), narrower);
        self.writer.push(&self.sample);
        let cost_ns = after_ns.saturating_sub(before_ns);
        after_ns + std::mem::replace(&mut self.cost_ns, cost_ns).min(cost_ns)
    }

    /// When to look again at the latest, on the machine's clock.
    fn wake_ns(&self, grid: &Grid) -> u64 {
        match self.clock {
            Clock::Machine => grid.next_ns(),
            Clock::Manual(_) => monotonic_ns() + MANUAL_LOOK_NS,
        }
    }
}

/// The source's own window where it lies within the measured one; a source that is wrong about time is not believed.
fn window(measured: (u64, u64), narrower: Option<(u64, u64)>) -> (u64, u64) {
    match narrower {
        Some((from_ns, to_ns)) if measured.0 <= from_ns && from_ns <= to_ns && to_ns <= measured.1 => {
            (from_ns, to_ns)
        }
        _ => measured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrower_window_is_taken_only_where_it_lies_inside_the_measured_one() {
        assert_eq!(window((10, 20), None), (10, 20));
        assert_eq!(window((10, 20), Some((12, 18))), (12, 18));
        assert_eq!(window((10, 20), Some((10, 20))), (10, 20));
        for wrong in [(9, 18), (12, 21), (18, 12), (0, 0)] {
            assert_eq!(window((10, 20), Some(wrong)), (10, 20), "{wrong:?}");
        }
    }
}
