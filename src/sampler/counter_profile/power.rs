//! Power over the last counter updates.
//!
//! Owns a short window of instants at which the counter is known to have moved. Power is the energy between two of them
//! over the time between them, so it does not flicker with where the reads happen to lie. Whole milliwatts, constant
//! memory.

/// Points of the window lie at least this far apart ...
const MIN_SPACING_NS: u64 = 10_000_000;
/// ... and power is taken over at least this long, where the window has it.
const WINDOW_NS: u64 = 100_000_000;
/// Enough points for the window, and some more.
const MAX_POINTS: usize = 16;

/// A move of the counter.
#[derive(Debug, Clone, Copy, Default)]
struct UpdatePoint {
    at_ns: u64,
    energy_uj: u64,
    /// How many updates came before.
    updates: u64,
}

/// The recent moves of one counter.
#[derive(Debug, Clone, Default)]
pub(super) struct PowerWindow {
    points: [UpdatePoint; MAX_POINTS],
    /// How many points were ever added; the newest is at `(added - 1) % MAX_POINTS`.
    added: usize,
    latest: UpdatePoint,
}

impl PowerWindow {
    /// The counter moved to `energy_uj` at about `at_ns`.
    pub(super) fn record_update(&mut self, at_ns: u64, energy_uj: u64) {
        self.latest = UpdatePoint { at_ns, energy_uj, updates: self.latest.updates + 1 };
        if self.newest().is_none_or(|newest| at_ns.saturating_sub(newest.at_ns) >= MIN_SPACING_NS) {
            self.points[self.added % MAX_POINTS] = self.latest;
            self.added += 1;
        }
    }

    /// Mean power up to `now_ns` over the last two updates or 100 ms, whichever is longer, in milliwatts. `None` while
    /// no two moves are known.
    pub(super) fn power_mw(&self, now_ns: u64) -> Option<u64> {
        let start = self.start()?;
        let updating_ns = self.latest.at_ns - start.at_ns;
        let usual_ns = updating_ns / (self.latest.updates - start.updates);
        // A counter that is overdue has used less than its next step meanwhile: power falls, it does not freeze.
        let overdue = now_ns.saturating_sub(self.latest.at_ns) > 2 * usual_ns.max(MIN_SPACING_NS);
        let elapsed_ns = if overdue { now_ns - start.at_ns } else { updating_ns };
        let used_uj = u128::from(self.latest.energy_uj.saturating_sub(start.energy_uj));
        // 1 µJ/ns is 1 kW, which is a million milliwatts.
        u64::try_from(used_uj * 1_000_000 / u128::from(elapsed_ns.max(1))).ok()
    }

    fn newest(&self) -> Option<&UpdatePoint> {
        self.added.checked_sub(1).map(|last| &self.points[last % MAX_POINTS])
    }

    /// Where to measure from: the newest point two moves and the window back, else the oldest there is.
    fn start(&self) -> Option<&UpdatePoint> {
        let kept = self.added.min(MAX_POINTS);
        let mut newest_first = (1..=kept).map(|back| &self.points[(self.added - back) % MAX_POINTS]);
        let is_far_enough = |point: &&UpdatePoint| {
            self.latest.at_ns - point.at_ns >= WINDOW_NS && self.latest.updates - point.updates >= 2
        };
        let start = newest_first.clone().find(is_far_enough).or_else(|| newest_first.next_back())?;
        (start.updates < self.latest.updates).then_some(start)
    }
}

/// The shortest window: 50 steps of a counter that moves each 100 ms, so that a step more or less is 2 %.
const MIN_RESIDUAL_WINDOW_NS: u64 = 5_000_000_000;
/// The window slides in halves of this.
const RESIDUAL_WINDOW_NS: u64 = 60_000_000_000;

/// An instant at which the counter moved, and what both showed.
#[derive(Debug, Clone, Copy, Default)]
struct ResidualPoint {
    at_ns: u64,
    energy_uj: u64,
    shape_uj: u64,
}

/// The window over both.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Residual {
    from: Option<ResidualPoint>,
    /// Where the window will begin after the next slide.
    middle: ResidualPoint,
    to: ResidualPoint,
}

impl Residual {
    /// The counter moved to `energy_uj` at about `at_ns`, when the integrated power was `shape_uj`.
    pub(super) fn record_update(&mut self, at_ns: u64, energy_uj: u64, shape_uj: u64) {
        let point = ResidualPoint { at_ns, energy_uj, shape_uj };
        if self.from.is_none_or(|from| shape_uj < from.shape_uj) {
            (self.from, self.middle) = (Some(point), point);
        }
        if at_ns.saturating_sub(self.middle.at_ns) >= RESIDUAL_WINDOW_NS / 2 {
            (self.from, self.middle) = (Some(self.middle), point);
        }
        self.to = point;
    }

    /// Nothing may be concluded across what happened.
    pub(super) fn interrupt(&mut self) {
        self.from = None;
    }

    /// What the counter shows over what the sensor does, less 1; `None` where the window is too short or one of them
    /// showed nothing.
    pub(super) fn ratio(&self) -> Option<f64> {
        let from =
            self.from.filter(|from| self.to.at_ns.saturating_sub(from.at_ns) >= MIN_RESIDUAL_WINDOW_NS)?;
        let (energy_uj, shape_uj) = (self.to.energy_uj - from.energy_uj, self.to.shape_uj - from.shape_uj);
        (shape_uj > 0).then(|| energy_uj as f64 / shape_uj as f64 - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves each `step_ns` by `step_uj`; gives the window and the instant of the last move.
    fn steady(updates: u64, step_ns: u64, step_uj: u64) -> (PowerWindow, u64) {
        let mut window = PowerWindow::default();
        (0..updates).for_each(|step| window.record_update(step * step_ns, step * step_uj));
        (window, (updates - 1) * step_ns)
    }

    #[test]
    fn one_update_gives_no_power() {
        let (window, now_ns) = steady(1, 1_000_000, 50_000);
        assert_eq!(window.power_mw(now_ns), None);
        assert_eq!(PowerWindow::default().power_mw(5), None);
    }

    #[test]
    fn steady_steps_give_their_power_at_any_update_rate() {
        for (step_ns, step_uj) in [(1_000_000, 50_000), (100_000_000, 5_000_000), (1_000_000_000, 50_000_000)]
        {
            for updates in [2, 3, 500] {
                let (window, now_ns) = steady(updates, step_ns, step_uj);
                assert_eq!(window.power_mw(now_ns), Some(50_000), "{updates} moves each {step_ns}");
            }
        }
    }

    #[test]
    fn the_window_is_short_enough_to_follow_a_change() {
        let (mut window, now_ns) = steady(1_000, 1_000_000, 50_000);
        (1..=120)
            .for_each(|step| window.record_update(now_ns + step * 1_000_000, 999 * 50_000 + step * 200_000));
        assert_eq!(window.power_mw(now_ns + 120_000_000), Some(200_000));
    }

    #[test]
    fn power_falls_where_the_counter_stands_still() {
        let (window, now_ns) = steady(1_000, 1_000_000, 50_000);
        let after = |ns| window.power_mw(now_ns + ns).unwrap();
        assert_eq!(after(1_000_000), 50_000);
        assert!(after(100_000_000) < 30_000);
        assert!(after(10_000_000_000) < 1_000);
    }

    const MS: u64 = 1_000_000;

    /// 100 W by the sensor for so many counter steps of 100 ms, and `counter_w` by the counter.
    fn watch(residual: &mut Residual, from_ms: u64, to_ms: u64, counter_w: u64) {
        for at_ms in (from_ms..=to_ms).step_by(100) {
            residual.record_update(at_ms * MS, at_ms * counter_w * 1_000, at_ms * 100 * 1_000 + 1);
        }
    }

    #[test]
    fn the_ratio_of_counter_to_sensor_is_measured() {
        let mut residual = Residual::default();
        watch(&mut residual, 0, 4_900, 74);
        assert_eq!(residual.ratio(), None, "too short to tell");
        watch(&mut residual, 5_000, 20_000, 74);
        assert!((residual.ratio().unwrap() + 0.26).abs() < 1e-3);
    }

    #[test]
    fn the_window_slides() {
        let mut residual = Residual::default();
        watch(&mut residual, 0, 100_000, 50);
        let counted_uj = 100_000 * 50 * 1_000;
        for at_ms in (100_100..400_000).step_by(100) {
            let energy_uj = counted_uj + (at_ms - 100_000) * 100 * 1_000;
            residual.record_update(at_ms * MS, energy_uj, at_ms * 100 * 1_000 + 1);
        }
        assert!(residual.ratio().unwrap().abs() < 1e-3);
    }

    #[test]
    fn an_interruption_and_a_sensor_that_began_anew_begin_a_new_window() {
        let mut residual = Residual::default();
        watch(&mut residual, 0, 20_000, 74);
        residual.interrupt();
        assert_eq!(residual.ratio(), None);
        watch(&mut residual, 30_000, 40_000, 74);
        residual.record_update(40_100 * MS, 40_100 * 74_000, 5);
        assert_eq!(residual.ratio(), None);
    }

    #[test]
    fn a_sensor_that_shows_nothing_gives_no_ratio() {
        let mut residual = Residual::default();
        (0..100).for_each(|step| residual.record_update(step * 100 * MS, step, 7));
        assert_eq!(residual.ratio(), None);
    }
}
