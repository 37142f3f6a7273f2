//! The weights that a span had over time, for its process share.
//!
//! Owns the intervals of constant weight, and the process shares into which final intervals are folded. Invariant: the
//! memory does not grow with the number of changes of weight.

/// A domain's `g` and a subject's `process_g` at an instant (`process_share.rs`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ProcessPoint {
    pub(crate) g: u128,
    pub(crate) process_g: u128,
    /// How many times `process_g` was rounded down since the previous row.
    pub(crate) roundings: u128,
}

/// A span's share of one domain up to an instant, and its subject's part of it, both times a common factor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessShare {
    /// The accumulators at that instant.
    pub(crate) point: ProcessPoint,
    pub(crate) numerator: u128,
    pub(crate) denominator: u128,
}

impl ProcessShare {
    /// Extends the share to `point`; the span's weight since the last point is `weight`.
    pub(crate) fn add(&mut self, weight: u64, point: ProcessPoint) {
        let last = self.point;
        let rise = point.process_g.saturating_sub(last.process_g).saturating_sub(last.roundings + 1);
        self.numerator += u128::from(weight) * rise.min(point.g.saturating_sub(last.g));
        self.denominator += u128::from(weight) * point.g.saturating_sub(last.g);
        self.point = point;
    }
}

/// A time with one weight, or with several weights that follow each other quickly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightInterval {
    pub until_ns: u64,
    length_ns: u64,
    /// The sum of weight × time.
    weight_ns: u128,
}

impl WeightInterval {
    fn add(&mut self, until_ns: u64, length_ns: u64, weight: u64) {
        self.until_ns = until_ns;
        self.length_ns += length_ns;
        self.weight_ns += u128::from(weight) * u128::from(length_ns);
    }

    fn mean_weight(&self) -> u64 {
        u64::try_from(self.weight_ns / u128::from(self.length_ns.max(1))).unwrap_or(u64::MAX)
    }
}

/// A span's weights up to the pre-pass; only a process share needs them. Intervals that no later reading changes are
/// folded into `folded`.
#[derive(Debug, Default)]
pub(crate) struct WeightHistory {
    pub intervals: Vec<WeightInterval>,
    /// By domain, the process share up to the first of the intervals; empty before the first fold.
    pub folded: Vec<Option<ProcessShare>>,
    pub since_ns: u64,
    weight: u64,
}

/// The time between two rows of a process share: a finer resolution has no effect.
const WEIGHT_INTERVAL_NS: u64 = 20_000_000;
/// The maximum number of intervals; beyond it the last one grows, and its weight is a mean.
pub(crate) const MAX_WEIGHT_INTERVALS: usize = 64;
/// The number of intervals from which they are folded.
pub(crate) const FOLD_THRESHOLD: usize = 16;

impl WeightHistory {
    /// Records the change at `at_ns` from `before`, valid since the opening or the last change, to `weight`.
    pub(crate) fn record_change(&mut self, opened_ns: u64, at_ns: u64, before: u64, weight: u64) {
        let since_ns = self.since_ns.max(opened_ns);
        let length_ns = at_ns.saturating_sub(since_ns);
        (self.since_ns, self.weight) = (at_ns, weight);
        if length_ns == 0 {
            return;
        }
        let full = self.intervals.len() >= MAX_WEIGHT_INTERVALS;
        match self
            .intervals
            .last_mut()
            .filter(|last| full || last.length_ns + length_ns <= WEIGHT_INTERVAL_NS)
        {
            Some(last) => last.add(at_ns, length_ns, before),
            None => {
                let mut interval = WeightInterval { until_ns: at_ns, length_ns: 0, weight_ns: 0 };
                interval.add(at_ns, length_ns, before);
                self.intervals.push(interval);
            }
        }
    }

    /// Each weight with the instant at which it ends; the last one ends at `end_ns`.
    pub(crate) fn weights(&self, end_ns: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let intervals = self.intervals.iter().map(|interval| (interval.mean_weight(), interval.until_ns));
        intervals.chain([(self.weight, end_ns)])
    }
}
