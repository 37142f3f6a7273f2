//! The update interval of a counter, estimated from the reads around its updates, and the running median it uses.
//!
//! A counter that changes between any two reads has an interval no longer than the reads' distance; this bound is not
//! reported as the interval. Only updates several reads apart are measurements. Both types use constant memory.

/// The minimum distance of two updates, in read gaps, for a measurement.
const MIN_READS_APART: u64 = 3;
/// The minimum number of measurements for a report.
const MIN_MEASUREMENTS: usize = 3;
/// After this many updates that contradict the measured interval, it is discarded.
const MAX_CONTRADICTIONS: u32 = 64;

/// Estimates the update interval of one counter.
#[derive(Debug, Clone, Default)]
pub(super) struct UpdateInterval {
    measured: RunningMedian,
    /// The last update: its instant, and the length of the read gap that contains it.
    last: Option<(u64, u64)>,
    /// Updates earlier than the measured interval allows, minus those that agree with it.
    too_early: u32,
    /// Consecutive updates far later than the measured interval.
    too_late: u32,
}

impl UpdateInterval {
    /// Records an update within a read gap of `gap_ns` whose middle is `at_ns`.
    pub(super) fn record_update(&mut self, at_ns: u64, gap_ns: u64) {
        let Some((last_ns, last_gap_ns)) = self.last.replace((at_ns, gap_ns)) else { return };
        let apart_ns = at_ns.saturating_sub(last_ns);
        let resolution_ns = MIN_READS_APART * gap_ns.max(last_gap_ns);
        match self.measured.median() {
            None if resolution_ns <= apart_ns => self.measured.push(apart_ns),
            None => {}
            Some(known_ns) if resolution_ns <= known_ns => self.record_measurement(apart_ns, resolution_ns),
            Some(known_ns) => self.check_contradiction(apart_ns, resolution_ns, known_ns),
        }
        if self.too_early.max(self.too_late) >= MAX_CONTRADICTIONS {
            *self = Self { last: self.last, ..Self::default() };
        }
    }

    /// Discards the last update, so that the next one is not measured from it.
    pub(super) fn interrupt(&mut self) {
        self.last = None;
    }

    /// The median of the recent measurements; `None` if there are too few or recent updates contradict them.
    pub(super) fn median_ns(&self) -> Option<u64> {
        let trusted = self.measured.len() >= MIN_MEASUREMENTS
            && MIN_READS_APART * u64::from(self.too_early) <= self.measured.len() as u64;
        self.measured.median().filter(|_| trusted)
    }

    /// The reads are close enough for the measured interval: records a measurement, or an update too early to be one.
    fn record_measurement(&mut self, apart_ns: u64, resolution_ns: u64) {
        self.too_late = 0;
        if resolution_ns <= apart_ns {
            self.measured.push(apart_ns);
            self.too_early = self.too_early.saturating_sub(1);
        } else {
            self.too_early += 1;
        }
    }

    /// The reads are too far apart to measure; only a contradiction can be detected. A measurement would be biased:
    /// it would include only the updates that happen to lie far apart.
    fn check_contradiction(&mut self, apart_ns: u64, resolution_ns: u64, known_ns: u64) {
        self.too_early += u32::from(apart_ns < known_ns / 4 * 3);
        let too_late = apart_ns >= resolution_ns && apart_ns / 4 >= known_ns;
        self.too_late = if too_late { self.too_late + 1 } else { 0 };
    }
}

/// The number of values in a [`RunningMedian`].
const MEDIAN_WINDOW: usize = 32;

/// The median of the last 32 values; it needs no allocation.
#[derive(Debug, Clone, Default)]
pub(super) struct RunningMedian {
    values: [u64; MEDIAN_WINDOW],
    /// At most [`MEDIAN_WINDOW`].
    len: usize,
    /// The index of the next value; less than [`MEDIAN_WINDOW`].
    next: usize,
    median: Option<u64>,
}

impl RunningMedian {
    /// Adds a value; a full window drops its oldest.
    pub(super) fn push(&mut self, value: u64) {
        self.values[self.next] = value;
        self.next = (self.next + 1) % MEDIAN_WINDOW;
        self.len = (self.len + 1).min(MEDIAN_WINDOW);
        let mut ordered = self.values;
        let (_, &mut median, _) = ordered[..self.len].select_nth_unstable(self.len / 2);
        self.median = Some(median);
    }

    /// The median (the upper of two middle values); `None` while there are no values.
    pub(super) fn median(&self) -> Option<u64> {
        self.median
    }

    /// The number of values in the window, at most [`MEDIAN_WINDOW`].
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads each `read_ns` a counter that is updated each `update_ns`, with a phase unrelated to the reads.
    fn read_for(
        interval: &mut UpdateInterval,
        from_ns: u64,
        reads: u64,
        read_ns: u64,
        update_ns: u64,
    ) -> u64 {
        let count = |at_ns: u64| (at_ns + 337) / update_ns;
        for read in 1..=reads {
            let at_ns = from_ns + read * read_ns;
            if count(at_ns) != count(at_ns - read_ns) {
                interval.record_update(at_ns - read_ns / 2, read_ns);
            }
        }
        from_ns + reads * read_ns
    }

    #[test]
    fn an_interval_is_measured_where_the_reads_are_closer_than_it() {
        for (read_ns, update_ns) in [(250_000, 1_000_000), (1_000_000, 20_000_000), (25_000_000, 100_300_000)]
        {
            let mut interval = UpdateInterval::default();
            read_for(&mut interval, 0, 1_000, read_ns, update_ns);
            let found_ns = interval.median_ns().unwrap();
            assert!(found_ns.abs_diff(update_ns) <= read_ns, "{found_ns} for {update_ns}");
        }
    }

    #[test]
    fn a_counter_that_moves_between_any_two_reads_has_no_known_interval() {
        for update_ns in [100_000, 500_000, 999_900, 1_000_000, 1_300_000, 1_900_000] {
            let mut interval = UpdateInterval::default();
            read_for(&mut interval, 0, 10_000, 1_000_000, update_ns);
            assert_eq!(interval.median_ns(), None, "updates each {update_ns}");
        }
    }

    #[test]
    fn a_measured_interval_survives_sparse_reads() {
        for coarse_ns in [1_000_000, 1_100_000, 20_000_000, 1_000_000_000] {
            let mut interval = UpdateInterval::default();
            let now_ns = read_for(&mut interval, 0, 1_200, 250_000, 1_000_000);
            read_for(&mut interval, now_ns, 10_000, coarse_ns, 1_000_000);
            assert!(interval.median_ns().unwrap().abs_diff(1_000_000) <= 250_000, "read each {coarse_ns}");
        }
    }

    #[test]
    fn an_interval_that_became_shorter_than_the_reads_is_discarded() {
        let mut interval = UpdateInterval::default();
        let now_ns = read_for(&mut interval, 0, 1_000, 1_000_000, 20_000_000);
        read_for(&mut interval, now_ns, 1_000, 1_000_000, 1_000_000);
        assert_eq!(interval.median_ns(), None);
    }

    #[test]
    fn an_interval_that_became_longer_is_measured_again() {
        let mut interval = UpdateInterval::default();
        let now_ns = read_for(&mut interval, 0, 1_200, 250_000, 1_000_000);
        read_for(&mut interval, now_ns, 20_000, 1_000_000, 100_000_000);
        assert!(interval.median_ns().unwrap().abs_diff(100_000_000) <= 1_000_000);
    }

    #[test]
    fn an_interruption_is_not_measured_as_an_interval() {
        let mut interval = UpdateInterval::default();
        for round in 0..10 {
            interval.record_update(round * 1_000_000_000, 10);
            interval.interrupt();
        }
        assert_eq!(interval.median_ns(), None);
    }

    fn median_of(values: impl IntoIterator<Item = u64>) -> RunningMedian {
        let mut window = RunningMedian::default();
        values.into_iter().for_each(|value| window.push(value));
        window
    }

    #[test]
    fn an_empty_window_has_no_median() {
        assert_eq!((median_of([]).median(), median_of([]).len()), (None, 0));
    }

    #[test]
    fn one_outlier_does_not_move_the_median() {
        assert_eq!(median_of([10, 11, 9, u64::MAX, 10]).median(), Some(10));
    }

    #[test]
    fn the_oldest_values_are_forgotten() {
        let window = median_of([1; 100].into_iter().chain([7; 17]));
        assert_eq!((window.median(), window.len()), (Some(7), 32));
    }
}
