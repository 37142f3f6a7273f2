//! How far a counter and the power sensor beside it disagree.
//!
//! A counter is not right for being one: boards are known whose counter and whose power, integrated, differ by a quarter for
//! a second and agree over five. Owns a sliding window over both. Reports nothing from less than [`MIN_WINDOW_NS`], within
//! which the counter's own step would show as a disagreement. Judges neither.

/// The shortest window: 50 steps of a counter that moves each 100 ms, so that a step more or less is 2 %.
const MIN_WINDOW_NS: u64 = 5_000_000_000;
/// The window slides in halves of this.
const WINDOW_NS: u64 = 60_000_000_000;

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
        if at_ns.saturating_sub(self.middle.at_ns) >= WINDOW_NS / 2 {
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
        let from = self.from.filter(|from| self.to.at_ns.saturating_sub(from.at_ns) >= MIN_WINDOW_NS)?;
        let (energy_uj, shape_uj) = (self.to.energy_uj - from.energy_uj, self.to.shape_uj - from.shape_uj);
        (shape_uj > 0).then(|| energy_uj as f64 / shape_uj as f64 - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
