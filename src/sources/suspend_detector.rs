//! Whether the machine slept since it was last asked.
//!
//! One of the machine's clocks goes on in suspend (CLOCK_BOOTTIME; on macOS CLOCK_MONOTONIC_RAW), the meter's own does not,
//! and nothing else sets them apart. Counters may restart
//! while the machine sleeps, so nothing is concluded across a sleep. Never mistakes being scheduled away between two
//! clock reads for a sleep: each comparison is bounded from both sides.

use crate::clock::{Clock, boottime_ns, monotonic_ns};

/// Sleeps shorter than this are none: suspending alone takes longer.
const MIN_SUSPEND_NS: i128 = 1_000_000;

/// Watches the distance between the two clocks.
#[derive(Debug, Clone)]
pub struct SuspendDetector {
    /// A clock turned by hand never sleeps.
    is_enabled: bool,
    /// BOOTTIME − MONOTONIC was no more than this when last asked.
    max_offset_ns: i128,
    /// And no less than this.
    min_offset_ns: i128,
}

impl SuspendDetector {
    /// Starts watching now.
    pub fn new(clock: &Clock) -> Self {
        let mut suspend = Self {
            is_enabled: matches!(clock, Clock::Machine),
            max_offset_ns: i128::MAX,
            min_offset_ns: i128::MIN,
        };
        suspend.has_suspended();
        suspend
    }

    /// Whether the machine slept since the last call.
    pub fn has_suspended(&mut self) -> bool {
        if !self.is_enabled {
            return false;
        }
        let (before_ns, boot_ns, after_ns) = (monotonic_ns(), boottime_ns(), monotonic_ns());
        self.compare(i128::from(before_ns), i128::from(boot_ns), i128::from(after_ns))
    }

    /// The latest that the monotonic clock can have shown when CLOCK_BOOTTIME showed `boot_ns`, since the last sleep;
    /// `None` where nobody watches.
    pub fn latest_monotonic_ns(&self, boot_ns: u64) -> Option<u64> {
        let at_ns = self.is_enabled.then(|| i128::from(boot_ns).saturating_sub(self.min_offset_ns))?;
        u64::try_from(at_ns).ok()
    }

    /// One comparison; the boot clock was read between the two monotonic instants.
    fn compare(&mut self, before_ns: i128, boot_ns: i128, after_ns: i128) -> bool {
        let (min_ns, max_ns) = (boot_ns - after_ns, boot_ns - before_ns);
        let slept = min_ns.saturating_sub(self.max_offset_ns) > MIN_SUSPEND_NS;
        self.min_offset_ns = if slept { min_ns } else { min_ns.max(self.min_offset_ns) };
        // Without a sleep the distance is one constant, so the smallest upper bound ever seen holds.
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
    fn a_sleep_is_seen_once() {
        let mut suspend = enabled_detector();
        assert!(!suspend.compare(0, 50, 100));
        assert!(!suspend.compare(1_000, 1_050, 1_100));
        assert!(suspend.compare(2_000, 5_000_002_050, 2_100));
        assert!(!suspend.compare(3_000, 5_000_003_050, 3_100));
    }

    #[test]
    fn being_scheduled_away_between_the_clock_reads_is_no_sleep() {
        let mut suspend = enabled_detector();
        suspend.compare(0, 50, 100);
        // Away for 8 ms before, then after the boot clock was read.
        assert!(!suspend.compare(1_000_000, 9_000_000, 9_000_050));
        assert!(!suspend.compare(10_000_000, 10_000_050, 18_000_000));
    }

    #[test]
    fn an_instant_of_the_boot_clock_is_no_earlier_on_the_other_than_it_can_have_been() {
        let mut suspend = enabled_detector();
        suspend.compare(0, 500, 1_000);
        suspend.compare(2_000, 2_450, 2_500);
        // The distance lies in −50..=450: the instant 3 000 was at 3 050 at the latest.
        assert_eq!(suspend.latest_monotonic_ns(3_000), Some(3_050));
        assert_eq!(SuspendDetector::new(&Clock::manual(7)).latest_monotonic_ns(3_000), None);
    }

    #[test]
    fn the_machine_and_a_manual_clock_do_not_sleep_while_the_test_runs() {
        let (mut machine, mut manual) =
            (SuspendDetector::new(&Clock::Machine), SuspendDetector::new(&Clock::manual(7)));
        assert!((0..1_000).all(|_| !machine.has_suspended() && !manual.has_suspended()));
    }
}
