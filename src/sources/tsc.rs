//! The time stamp counter as a hardware time stamp of a read.
//!
//! A read happened between the clock readings before and after it. Preemption makes that window wide; a `msr/tsc/` count of
//! the same group read, extrapolated from earlier reads, narrows it. Invariant: the returned window contains the read and
//! lies within the given one, for every rate at which the kernel may slew CLOCK_MONOTONIC (`MAX_SLEW_DIVISOR`).

/// The clock's rate relative to the counter is constant to one part in this number. The largest slew in use is
/// chrony's 1/12 (`maxslewrate`); the calibration itself is off by at most 1/64.
const MAX_SLEW_DIVISOR: u64 = 6;

/// The shortest calibration time; a calibration is renewed after [`RECALIBRATE_NS`].
const MIN_BASELINE_NS: u64 = 10_000_000;
const RECALIBRATE_NS: u64 = 1_000_000_000;

/// An instant on both timelines.
#[derive(Debug, Clone, Copy)]
struct TscRead {
    ticks: u64,
    before_ns: u64,
    after_ns: u64,
}

/// Extrapolates the newest read's window to the next read.
#[derive(Debug, Clone, Default)]
pub struct Tsc {
    last_read: Option<TscRead>,
    baseline: Option<TscRead>,
    /// Nanoseconds in a tick, times 2^32.
    tick_ns_q32: Option<u64>,
}

impl Tsc {
    /// A window within `before_ns..=after_ns` in which the read that gave `ticks` happened.
    pub fn narrow(&mut self, ticks: u64, before_ns: u64, after_ns: u64) -> (u64, u64) {
        let read = TscRead { ticks, before_ns, after_ns };
        let narrowed = match self.predict_window(ticks) {
            None => read,
            Some((earliest_ns, latest_ns)) => {
                TscRead { ticks, before_ns: before_ns.max(earliest_ns), after_ns: after_ns.min(latest_ns) }
            }
        };
        if narrowed.before_ns > narrowed.after_ns || self.last_read.is_some_and(|newest| newest.ticks > ticks)
        {
            // The two timelines no longer match (a guest migrated, the counter restarted): reset.
            *self = Self { last_read: Some(read), baseline: Some(read), tick_ns_q32: None };
            return (before_ns, after_ns);
        }
        self.last_read = Some(narrowed);
        self.calibrate(narrowed);
        (narrowed.before_ns, narrowed.after_ns)
    }

    /// The window of this read, from the newest read and the ticks since it.
    fn predict_window(&self, ticks: u64) -> Option<(u64, u64)> {
        let (newest, period) = (self.last_read?, self.tick_ns_q32?);
        let passed = (u128::from(ticks.checked_sub(newest.ticks)?) * u128::from(period)) >> 32;
        let passed_ns = u64::try_from(passed).ok()?;
        let slack_ns = passed_ns / MAX_SLEW_DIVISOR + 1;
        Some((
            (newest.before_ns + passed_ns).saturating_sub(slack_ns),
            newest.after_ns.checked_add(passed_ns + slack_ns)?,
        ))
    }

    /// Calibrates the period with two reads that are far apart compared with their windows.
    fn calibrate(&mut self, read: TscRead) {
        let Some(baseline) = self.baseline else {
            self.baseline = Some(read);
            return;
        };
        let ticks = read.ticks.saturating_sub(baseline.ticks);
        let shortest_ns = read.before_ns.saturating_sub(baseline.after_ns);
        let longest_ns = read.after_ns.saturating_sub(baseline.before_ns);
        let due = self.tick_ns_q32.is_none() || shortest_ns >= RECALIBRATE_NS;
        if ticks == 0 || shortest_ns < MIN_BASELINE_NS || !due {
            return;
        }
        if longest_ns - shortest_ns <= shortest_ns / 64 {
            let middle_ns = u128::from(shortest_ns.midpoint(longest_ns));
            self.tick_ns_q32 = u64::try_from((middle_ns << 32) / u128::from(ticks)).ok();
            self.baseline = Some(read);
        } else if self.tick_ns_q32.is_none() {
            // A baseline with a wide window stays inaccurate, so it is replaced.
            self.baseline = Some(read);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2.6 ticks a nanosecond, counted from an arbitrary start.
    fn ticks_at(at_ns: u64) -> u64 {
        at_ns * 26 / 10 + 12_345
    }

    fn warmed_up() -> Tsc {
        let mut tsc = Tsc::default();
        for read in 0..30_u64 {
            let at_ns = 1_000_000_000 + read * 1_000_000;
            assert_eq!(tsc.narrow(ticks_at(at_ns), at_ns - 1_000, at_ns + 1_000).0, at_ns - 1_000);
        }
        tsc
    }

    #[test]
    fn a_window_of_four_milliseconds_shrinks_to_a_fraction_of_one() {
        let mut tsc = warmed_up();
        let at_ns = 1_030_500_000;
        let (before_ns, after_ns) = tsc.narrow(ticks_at(at_ns), at_ns - 500_000, at_ns + 3_500_000);
        assert!((before_ns..=after_ns).contains(&at_ns));
        assert!(after_ns - before_ns < 600_000, "{}", after_ns - before_ns);
    }

    #[test]
    fn a_narrow_window_is_left_alone() {
        let mut tsc = warmed_up();
        let at_ns = 1_031_000_000;
        assert_eq!(tsc.narrow(ticks_at(at_ns), at_ns - 900, at_ns + 700), (at_ns - 900, at_ns + 700));
    }

    #[test]
    fn a_counter_that_jumps_is_not_believed_and_calibrated_anew() {
        let mut tsc = warmed_up();
        let wide = (1_031_000_000, 1_035_000_000);
        assert_eq!(tsc.narrow(ticks_at(9_000_000_000), wide.0, wide.1), wide);
        assert_eq!(tsc.narrow(5, 1_040_000_000, 1_044_000_000), (1_040_000_000, 1_044_000_000));
    }

    proptest! {
        #[test]
        fn the_read_is_always_inside_however_the_clock_is_slewed(
            reads in proptest::collection::vec((10_000_u64..3_000_000, 0_u64..2_000_000, 0_u64..2_000_000, 0_u64..12), 1..300),
            permille in 920_u64..=1_083,
        ) {
            // The clock runs off by up to 1/12, constant over the run; most reads are quick, some are interrupted.
            let mut tsc = Tsc::default();
            let mut true_ns = 5_000_000_000_u64;
            for (step_ns, early_ns, late_ns, dice) in reads {
                true_ns += step_ns;
                let clock_ns = true_ns * permille / 1_000;
                let (early_ns, late_ns) = if dice == 0 { (early_ns, late_ns) } else { (800, 700) };
                let (before_ns, after_ns) = tsc.narrow(ticks_at(true_ns), clock_ns - early_ns, clock_ns + late_ns);
                prop_assert!(before_ns <= clock_ns && clock_ns <= after_ns);
                prop_assert!(before_ns >= clock_ns - early_ns && after_ns <= clock_ns + late_ns);
            }
        }
    }
}
