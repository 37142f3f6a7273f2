//! Power over the last counter updates.
//!
//! Owns a short trail of instants at which the counter is known to have moved. Power is the energy between two of them
//! over the time between them, so it does not flicker with where the reads happen to lie. Whole milliwatts, constant
//! memory.

/// Points of the trail lie at least this far apart ...
const SPACING_NS: u64 = 10_000_000;
/// ... and power is taken over at least this long, where the trail has it.
const WINDOW_NS: u64 = 100_000_000;
/// Enough points for the window, and some more.
const POINTS: usize = 16;

/// A move of the counter.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    at_ns: u64,
    energy_uj: u64,
    /// How many moves came before.
    moves: u64,
}

/// The recent moves of one counter.
#[derive(Debug, Clone, Default)]
pub(super) struct Trail {
    points: [Point; POINTS],
    /// How many points were ever laid; the newest is at `(laid - 1) % POINTS`.
    laid: usize,
    latest: Point,
}

impl Trail {
    /// The counter moved to `energy_uj` at about `at_ns`.
    pub(super) fn moved(&mut self, at_ns: u64, energy_uj: u64) {
        self.latest = Point { at_ns, energy_uj, moves: self.latest.moves + 1 };
        if self.newest().is_none_or(|newest| at_ns.saturating_sub(newest.at_ns) >= SPACING_NS) {
            self.points[self.laid % POINTS] = self.latest;
            self.laid += 1;
        }
    }

    /// Mean power up to `now_ns` over the last two updates or 100 ms, whichever is longer, in milliwatts. `None` while
    /// no two moves are known.
    pub(super) fn power_mw(&self, now_ns: u64) -> Option<u64> {
        let from = self.from()?;
        let moving_ns = self.latest.at_ns - from.at_ns;
        let usual_ns = moving_ns / (self.latest.moves - from.moves);
        // A counter that is overdue has used less than its next step meanwhile: power falls, it does not freeze.
        let overdue = now_ns.saturating_sub(self.latest.at_ns) > 2 * usual_ns.max(SPACING_NS);
        let elapsed_ns = if overdue { now_ns - from.at_ns } else { moving_ns };
        let used_uj = u128::from(self.latest.energy_uj.saturating_sub(from.energy_uj));
        // 1 µJ/ns is 1 kW, which is a million milliwatts.
        u64::try_from(used_uj * 1_000_000 / u128::from(elapsed_ns.max(1))).ok()
    }

    fn newest(&self) -> Option<&Point> {
        self.laid.checked_sub(1).map(|last| &self.points[last % POINTS])
    }

    /// Where to measure from: the newest point two moves and the window back, else the oldest there is.
    fn from(&self) -> Option<&Point> {
        let kept = self.laid.min(POINTS);
        let mut newest_first = (1..=kept).map(|back| &self.points[(self.laid - back) % POINTS]);
        let far = |point: &&Point| {
            self.latest.at_ns - point.at_ns >= WINDOW_NS && self.latest.moves - point.moves >= 2
        };
        let from = newest_first.clone().find(far).or_else(|| newest_first.next_back())?;
        (from.moves < self.latest.moves).then_some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves each `step_ns` by `step_uj`; gives the trail and the instant of the last move.
    fn steady(moves: u64, step_ns: u64, step_uj: u64) -> (Trail, u64) {
        let mut trail = Trail::default();
        (0..moves).for_each(|step| trail.moved(step * step_ns, step * step_uj));
        (trail, (moves - 1) * step_ns)
    }

    #[test]
    fn one_move_is_no_power() {
        let (trail, now_ns) = steady(1, 1_000_000, 50_000);
        assert_eq!(trail.power_mw(now_ns), None);
        assert_eq!(Trail::default().power_mw(5), None);
    }

    #[test]
    fn steady_steps_give_their_power_at_any_update_rate() {
        for (step_ns, step_uj) in [(1_000_000, 50_000), (100_000_000, 5_000_000), (1_000_000_000, 50_000_000)]
        {
            for moves in [2, 3, 500] {
                let (trail, now_ns) = steady(moves, step_ns, step_uj);
                assert_eq!(trail.power_mw(now_ns), Some(50_000), "{moves} moves each {step_ns}");
            }
        }
    }

    #[test]
    fn the_window_is_short_enough_to_follow_a_change() {
        let (mut trail, now_ns) = steady(1_000, 1_000_000, 50_000);
        (1..=120).for_each(|step| trail.moved(now_ns + step * 1_000_000, 999 * 50_000 + step * 200_000));
        assert_eq!(trail.power_mw(now_ns + 120_000_000), Some(200_000));
    }

    #[test]
    fn power_falls_where_the_counter_stands_still() {
        let (trail, now_ns) = steady(1_000, 1_000_000, 50_000);
        let after = |ns| trail.power_mw(now_ns + ns).unwrap();
        assert_eq!(after(1_000_000), 50_000);
        assert!(after(100_000_000) < 30_000);
        assert!(after(10_000_000_000) < 1_000);
    }
}
