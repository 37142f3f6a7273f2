//! Whether time went on between two ticks.
//!
//! Owns the epochs that the machine's own sleep adds to those of a source: the monotonic clock stands still in suspend
//! while counters may reset, wrap or run on, so nothing may be concluded across it. Pure and allocation-free.

use crate::domain::EnergyReading;

/// A step of the time spent asleep larger than this is a suspend.
const SUSPEND_THRESHOLD_NS: u64 = 1_000_000;

/// Counts suspends and marks readings with them.
#[derive(Default)]
pub(super) struct SuspendDetector {
    /// The most that was ever seen; `None` before the first look.
    asleep_ns: Option<u64>,
    suspends: u32,
}

impl SuspendDetector {
    /// Learns how long the machine has slept since it booted.
    pub(super) fn observe(&mut self, asleep_ns: u64) {
        let known_ns = self.asleep_ns.unwrap_or(asleep_ns);
        if asleep_ns > known_ns.saturating_add(SUSPEND_THRESHOLD_NS) {
            self.suspends = self.suspends.wrapping_add(1);
        }
        self.asleep_ns = Some(known_ns.max(asleep_ns));
    }

    /// Moves every reading to the epoch it belongs to after all suspends so far.
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
