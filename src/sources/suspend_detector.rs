//! Detection of system suspend between two calls.
//!
//! CLOCK_BOOTTIME (on macOS CLOCK_MONOTONIC_RAW) advances during suspend, the meter's clock does not. Counters may restart
//! during suspend, so no energy is computed across one. Preemption between two clock reads is not taken for a suspend:
//! each comparison has a lower and an upper bound.

use crate::clock::{Clock, boottime_ns, monotonic_ns};

/// The shortest detected suspend; entering suspend alone takes longer.
const MIN_SUSPEND_NS: i128 = 1_000_000;

/// Compares the two clocks.
#[derive(Debug, Clone)]
pub struct SuspendDetector {
    /// `false` for a manual clock, which has no suspend.
    is_enabled: bool,
    /// Upper bound of BOOTTIME − MONOTONIC at the last call.
    max_offset_ns: i128,
    /// Lower bound of BOOTTIME − MONOTONIC at the last call.
    min_offset_ns: i128,
}

impl SuspendDetector {
    /// Creates a detector whose baseline is now.
    pub fn new(clock: &Clock) -> Self {
        let mut suspend = Self {
            is_enabled: matches!(clock, Clock::Machine),
            max_offset_ns: i128::MAX,
            min_offset_ns: i128::MIN,
        };
        suspend.has_suspended();
        suspend
    }

    /// Whether the machine was suspended since the last call.
    pub fn has_suspended(&mut self) -> bool {
        if !self.is_enabled {
            return false;
        }
        let (before_ns, boot_ns, after_ns) = (monotonic_ns(), boottime_ns(), monotonic_ns());
        self.compare(i128::from(before_ns), i128::from(boot_ns), i128::from(after_ns))
    }

    /// The latest possible monotonic time at boot time `boot_ns`, which is after the last suspend. `None` for a manual
    /// clock.
    pub fn latest_monotonic_ns(&self, boot_ns: u64) -> Option<u64> {
        let at_ns = self.is_enabled.then(|| i128::from(boot_ns).saturating_sub(self.min_offset_ns))?;
        u64::try_from(at_ns).ok()
    }

    /// Compares the clocks; the boot clock was read between the two monotonic instants.
    fn compare(&mut self, before_ns: i128, boot_ns: i128, after_ns: i128) -> bool {
        let (min_ns, max_ns) = (boot_ns - after_ns, boot_ns - before_ns);
        let slept = min_ns.saturating_sub(self.max_offset_ns) > MIN_SUSPEND_NS;
        self.min_offset_ns = if slept { min_ns } else { min_ns.max(self.min_offset_ns) };
        // Without a suspend the difference is constant, so the smallest upper bound holds.
        self.max_offset_ns = if slept { max_ns } else { max_ns.min(self.max_offset_ns) };
        slept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled_detector() -> SuspendDetector {
        SuspendDetector { is_enabled: true, max_offset_ns: i128::MAX, min_offset_ns: i128::MIN }
    }

    #[test]
    fn suspend_is_reported_once() {
        let mut suspend = enabled_detector();
        assert!(!suspend.compare(0, 50, 100));
        assert!(!suspend.compare(1_000, 1_050, 1_100));
        assert!(suspend.compare(2_000, 5_000_002_050, 2_100));
        assert!(!suspend.compare(3_000, 5_000_003_050, 3_100));
    }

    #[test]
    fn preemption_between_the_clock_reads_is_no_suspend() {
        let mut suspend = enabled_detector();
        suspend.compare(0, 50, 100);
        // Preempted for 8 ms before, then after the read of the boot clock.
        assert!(!suspend.compare(1_000_000, 9_000_000, 9_000_050));
        assert!(!suspend.compare(10_000_000, 10_000_050, 18_000_000));
    }

    #[test]
    fn boot_time_maps_to_the_latest_possible_monotonic_time() {
        let mut suspend = enabled_detector();
        suspend.compare(0, 500, 1_000);
        suspend.compare(2_000, 2_450, 2_500);
        // The difference is within −50..=450: the instant 3 000 was at 3 050 at the latest.
        assert_eq!(suspend.latest_monotonic_ns(3_000), Some(3_050));
        assert_eq!(SuspendDetector::new(&Clock::manual(7)).latest_monotonic_ns(3_000), None);
    }

    #[test]
    fn no_suspend_is_reported_during_the_test() {
        let (mut machine, mut manual) =
            (SuspendDetector::new(&Clock::Machine), SuspendDetector::new(&Clock::manual(7)));
        assert!((0..1_000).all(|_| !machine.has_suspended() && !manual.has_suspended()));
    }
}
