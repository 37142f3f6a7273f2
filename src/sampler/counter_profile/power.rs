//! Two figures from the updates of a counter: its recent power, and its difference from the device's power sensor.
//!
//! Both use only instants of counter updates, so that they do not depend on the instants of reads. Both use constant
//! memory.

/// The minimum distance of two points in the window.
const MIN_SPACING_NS: u64 = 10_000_000;
/// The minimum length over which power is computed, if the points cover it.
const WINDOW_NS: u64 = 100_000_000;
/// Enough points for [`WINDOW_NS`], with some to spare.
const MAX_POINTS: usize = 16;

#[derive(Debug, Clone, Copy, Default)]
struct UpdatePoint {
    at_ns: u64,
    energy_uj: u64,
    /// The number of updates up to this one.
    updates: u64,
}

/// The recent updates of one counter. Power is the energy between two updates over the time between them, in whole
/// milliwatts.
#[derive(Debug, Clone, Default)]
pub(super) struct PowerWindow {
    points: [UpdatePoint; MAX_POINTS],
    /// The number of points ever added; the newest is at `(added - 1) % MAX_POINTS`.
    added: usize,
    latest: UpdatePoint,
}

impl PowerWindow {
    /// Records an update to `energy_uj` at about `at_ns`.
    pub(super) fn record_update(&mut self, at_ns: u64, energy_uj: u64) {
        self.latest = UpdatePoint { at_ns, energy_uj, updates: self.latest.updates + 1 };
        if self.newest().is_none_or(|newest| at_ns.saturating_sub(newest.at_ns) >= MIN_SPACING_NS) {
            self.points[self.added % MAX_POINTS] = self.latest;
            self.added += 1;
        }
    }

    /// Mean power up to `now_ns` over the last two updates or 100 ms, whichever is longer, in milliwatts. `None` while
    /// there are fewer than two updates.
    pub(super) fn power_mw(&self, now_ns: u64) -> Option<u64> {
        let start = self.start()?;
        let updating_ns = self.latest.at_ns - start.at_ns;
        let usual_ns = updating_ns / (self.latest.updates - start.updates);
        // Without an update the counter has used less than its next step: the power falls with time, it does not
        // freeze.
        let overdue = now_ns.saturating_sub(self.latest.at_ns) > 2 * usual_ns.max(MIN_SPACING_NS);
        let elapsed_ns = if overdue { now_ns - start.at_ns } else { updating_ns };
        let used_uj = u128::from(self.latest.energy_uj.saturating_sub(start.energy_uj));
        // 1 µJ/ns = 1 kW = 1,000,000 mW.
        u64::try_from(used_uj * 1_000_000 / u128::from(elapsed_ns.max(1))).ok()
    }

    fn newest(&self) -> Option<&UpdatePoint> {
        self.added.checked_sub(1).map(|last| &self.points[last % MAX_POINTS])
    }

    /// The start of the measurement: the newest point at least two updates and the window back, else the oldest point.
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

/// The minimum length: 50 updates of a counter with an interval of 100 ms, so that one update more or less is 2 %.
const MIN_RESIDUAL_WINDOW_NS: u64 = 5_000_000_000;
/// The maximum length; the window slides by half of it.
const RESIDUAL_WINDOW_NS: u64 = 60_000_000_000;

/// The values of the counter and of the integrated power at a counter update.
#[derive(Debug, Clone, Copy, Default)]
struct ResidualPoint {
    at_ns: u64,
    energy_uj: u64,
    shape_uj: u64,
}

/// The relative difference between a counter and the device's integrated power readings, over a sliding window.
///
/// Either may be wrong: some boards have a counter and a power sensor that differ by a quarter over one second and
/// agree over five. So nothing is reported below [`MIN_RESIDUAL_WINDOW_NS`], where the counter's own step would
/// appear as a difference. The figure does not judge which of them is right.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Residual {
    from: Option<ResidualPoint>,
    /// The start of the window after the next slide.
    middle: ResidualPoint,
    to: ResidualPoint,
}

impl Residual {
    /// Records an update to `energy_uj` at about `at_ns`, when the integrated power was `shape_uj`.
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

    /// Ends the window: values before and after this cannot be compared.
    pub(super) fn interrupt(&mut self) {
        self.from = None;
    }

    /// The counter's energy divided by the sensor's, minus 1; `None` if the window is too short or the sensor's
    /// energy is 0.
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

    /// Updates by `step_uj` each `step_ns`; returns the window and the instant of the last update.
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

    /// Updates each 100 ms: 100 W by the sensor, `counter_w` by the counter.
    fn watch(residual: &mut Residual, from_ms: u64, to_ms: u64, counter_w: u64) {
        for at_ms in (from_ms..=to_ms).step_by(100) {
            residual.record_update(at_ms * MS, at_ms * counter_w * 1_000, at_ms * 100 * 1_000 + 1);
        }
    }

    #[test]
    fn the_ratio_of_counter_to_sensor_is_measured() {
        let mut residual = Residual::default();
        watch(&mut residual, 0, 4_900, 74);
        assert_eq!(residual.ratio(), None, "the period is too short");
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
