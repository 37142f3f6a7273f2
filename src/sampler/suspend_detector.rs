//! Detects suspends of the machine between two ticks.
//!
//! In suspend the monotonic clock stops while counters may reset, wrap or advance, so readings before and after it
//! cannot be compared: each suspend adds 1 to the epoch of all later readings. Nothing here allocates.

use crate::domain::EnergyReading;

/// An increase of the suspended time by more than this is a suspend; a smaller one is preemption between the clock reads.
const SUSPEND_THRESHOLD_NS: u64 = 1_000_000;

/// Counts suspends and adds the count to the epochs of readings.
#[derive(Default)]
pub(super) struct SuspendDetector {
    /// The largest suspended time observed; `None` before the first observation.
    asleep_ns: Option<u64>,
    suspends: u32,
}

impl SuspendDetector {
    /// Records the total suspended time since boot.
    pub(super) fn observe(&mut self, asleep_ns: u64) {
        let known_ns = self.asleep_ns.unwrap_or(asleep_ns);
        if asleep_ns > known_ns.saturating_add(SUSPEND_THRESHOLD_NS) {
            self.suspends = self.suspends.wrapping_add(1);
        }
        self.asleep_ns = Some(known_ns.max(asleep_ns));
    }

    /// Adds the number of suspends so far to the epoch of every reading.
    pub(super) fn adjust_epochs(&self, readings: &mut [EnergyReading]) {
        for reading in readings {
            reading.epoch = reading.epoch.wrapping_add(self.suspends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch_after(asleep_ns: &[u64]) -> u32 {
        let mut detector = SuspendDetector::default();
        asleep_ns.iter().for_each(|&ns| detector.observe(ns));
        let mut readings = [EnergyReading { epoch: 7, ..EnergyReading::default() }];
        detector.adjust_epochs(&mut readings);
        readings[0].epoch - 7
    }

    #[test]
    fn a_machine_that_stays_awake_keeps_the_sources_epochs() {
        assert_eq!(epoch_after(&[]), 0);
        assert_eq!(epoch_after(&[5_000_000_000, 5_000_000_100, 5_000_000_050]), 0);
    }

    #[test]
    fn each_suspend_begins_an_epoch() {
        assert_eq!(epoch_after(&[0, 2_000_000]), 1);
        assert_eq!(epoch_after(&[0, 2_000_000, 2_000_000, 9_000_000_000]), 2);
    }

    #[test]
    fn a_delayed_clock_read_is_no_suspend() {
        assert_eq!(epoch_after(&[9_000_000, 1_000_000, 9_000_000]), 0);
    }

    #[test]
    fn sleep_before_the_first_observation_is_no_suspend() {
        assert_eq!(epoch_after(&[3_600_000_000_000]), 0);
    }

    #[test]
    fn epochs_wrap_around_rather_than_overflow() {
        let mut detector = SuspendDetector::default();
        [0, 2_000_000].iter().for_each(|&ns| detector.observe(ns));
        let mut readings = [EnergyReading { epoch: u32::MAX, ..EnergyReading::default() }];
        detector.adjust_epochs(&mut readings);
        assert_eq!(readings[0].epoch, 0);
    }
}
