//! The inputs of process shares over time: the use of a basis by subjects, and the weights of a span.
//!
//! Usage: owns the intervals between the samples of one basis, with the total use and each subject's use. Invariant: in each
//! interval the use of disjoint subjects is at most the interval's total, so that their parts never exceed the whole. Usage
//! counters have ticks (10 ms for the machine, nanoseconds for a process): where the machine's counter shows less than its
//! processes' counters, the processes' sum is the total.
//!
//! Weights: owns a span's intervals of constant weight, and the process shares into which final intervals are folded.
//! Invariant: the memory does not grow with the number of changes of weight.

use super::edge_queue::{IndexedQueue, WeightChange};

/// The maximum number of intervals; reached only if a domain's counter does not move for long.
const MAX_USAGE_INTERVALS: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct UsageInterval {
    from_ns: u64,
    to_ns: u64,
    /// The total use; 0 if it is unknown.
    total: u64,
}

/// The samples of one basis.
#[derive(Debug, Default)]
pub(crate) struct BasisUsageHistory {
    last_sample: Option<(u64, Option<u64>)>,
    intervals: IndexedQueue<UsageInterval>,
}

/// One subject's use of one basis.
#[derive(Debug, Default)]
pub(crate) struct SubjectUsageHistory {
    last_amount: Option<u64>,
    /// Its use, by the number of the basis's interval.
    intervals: IndexedQueue<u64>,
    known_since_ns: Option<u64>,
    /// From the begin of the first unknown time to the end of the last one.
    unknown_period: Option<(u64, u64)>,
    last_sample_ns: u64,
}

impl BasisUsageHistory {
    /// The number of the interval that the next sample ends.
    pub(crate) fn next_interval(&self) -> u64 {
        self.intervals.end_index()
    }

    /// The time of the last sample.
    pub(crate) fn last_sample_ns(&self) -> Option<u64> {
        Some(self.intervals.all().last()?.to_ns)
    }

    /// Twice the time between the last two samples.
    pub(crate) fn sampling_tolerance_ns(&self) -> u64 {
        self.intervals.all().last().map_or(0, |last| 2 * (last.to_ns - last.from_ns))
    }

    /// Adds a sample: the total use so far, and the subjects' use since the previous sample, `min_total`.
    pub(crate) fn add_sample(&mut self, at_ns: u64, total_so_far: Option<u64>, min_total: u64) {
        let (from_ns, previous) = self.last_sample.unwrap_or((at_ns, None));
        let increase = total_so_far.zip(previous).map_or(0, |(now, previous)| now.saturating_sub(previous));
        let total = if total_so_far.is_some() && previous.is_some() { increase.max(min_total) } else { 0 };
        self.last_sample = Some((at_ns.max(from_ns), total_so_far));
        self.intervals.push(UsageInterval { from_ns, to_ns: at_ns.max(from_ns), total });
        self.intervals.keep_last(MAX_USAGE_INTERVALS);
    }

    /// The subject's part, up to `to_ns`, of energy that flows evenly over `row`, and how many times it was rounded
    /// down.
    pub(crate) fn subject_energy_until(
        &self,
        usage: &SubjectUsageHistory,
        row: (u64, u64),
        to_ns: u64,
        energy: u128,
    ) -> (u128, u32) {
        let length_ns = row.1.saturating_sub(row.0);
        let intervals = self.intervals.all();
        let begin = intervals.partition_point(|interval| interval.to_ns <= row.0);
        let (mut sum, mut roundings) = (0, 0);
        for (number, interval) in (self.intervals.first_index()..).zip(intervals).skip(begin) {
            let (from_ns, end_ns) = (interval.from_ns.max(row.0), interval.to_ns.min(to_ns).min(row.1));
            if interval.from_ns >= to_ns {
                break;
            }
            let amount = usage.in_interval(number);
            if amount == 0 || interval.total == 0 || end_ns <= from_ns {
                continue;
            }
            let energy =
                mul_div(energy, end_ns - row.0, length_ns) - mul_div(energy, from_ns - row.0, length_ns);
            sum += energy.saturating_mul(u128::from(amount.min(interval.total))) / u128::from(interval.total);
            roundings += 1;
        }
        (sum, roundings)
    }

    /// The subject's part in the interval nearest to an instant, as a numerator and a denominator.
    pub(crate) fn nearest_fraction(&self, usage: &SubjectUsageHistory, at_ns: u64) -> Option<(u128, u128)> {
        let intervals = self.intervals.all();
        let index = intervals.partition_point(|interval| interval.to_ns <= at_ns);
        let index = index.min(intervals.len().checked_sub(1)?);
        let (interval, amount) =
            (intervals[index], usage.in_interval(self.intervals.first_index() + index as u64));
        Some((u128::from(amount.min(interval.total)), u128::from(interval.total.max(1))))
    }

    /// Drops the intervals that end before this instant. Returns the number of the first interval that is left.
    pub(crate) fn drop_before(&mut self, before_ns: u64) -> u64 {
        let intervals = self.intervals.all();
        let older = intervals.partition_point(|interval| interval.to_ns < before_ns);
        let dropped = older.min(intervals.len().saturating_sub(1));
        self.intervals.drop_before(self.intervals.first_index() + dropped as u64);
        self.intervals.first_index()
    }
}

impl SubjectUsageHistory {
    /// Adds a sample of the subject's use so far. Returns its use since the previous sample. `interval` is the number
    /// of the interval that this sample ends.
    pub(crate) fn add_sample(&mut self, interval: u64, at_ns: u64, amount: Option<u64>) -> u64 {
        let increase = match (self.last_amount, amount) {
            (Some(previous), Some(now)) => now.saturating_sub(previous),
            _ => 0,
        };
        if self.known_since_ns.is_none() {
            self.known_since_ns = amount.map(|_| at_ns);
        } else if amount.is_none() || self.last_amount.is_none() {
            // The use is unknown from the previous sample to this one.
            let from_ns = self.unknown_period.map_or(self.last_sample_ns, |(from_ns, _)| from_ns);
            self.unknown_period = Some((from_ns, at_ns));
        }
        self.last_amount = amount;
        self.last_sample_ns = at_ns;
        self.intervals.begin_at(interval);
        while self.intervals.end_index() < interval {
            self.intervals.push(0);
        }
        self.intervals.push(increase);
        self.intervals.keep_last(MAX_USAGE_INTERVALS);
        increase
    }

    /// The instant since which its use is known; `None` if it is unknown at some time between `from_ns` and `to_ns`.
    pub(crate) fn known_since_ns(&self, from_ns: u64, to_ns: u64) -> Option<u64> {
        let is_interrupted =
            self.unknown_period.is_some_and(|unknown| unknown.0 < to_ns && from_ns < unknown.1);
        self.known_since_ns.filter(|_| !is_interrupted && self.last_amount.is_some())
    }

    fn in_interval(&self, interval: u64) -> u64 {
        self.intervals.get(interval).copied().unwrap_or(0)
    }

    /// Drops the intervals before the one of this number.
    pub(crate) fn drop_before(&mut self, interval: u64) {
        self.intervals.drop_before(interval);
    }
}

/// `of × past / all`, rounded down; at most `of`.
pub(crate) fn mul_div(of: u128, past: u64, all: u64) -> u128 {
    if past >= all { of } else { of.saturating_mul(u128::from(past)) / u128::from(all) }
}

/// A domain's `g` and a subject's `process_g` at an instant (`process_share.rs`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(Rust, packed(8))]
pub(crate) struct ProcessPoint {
    pub(crate) g: u128,
    pub(crate) process_g: u128,
    /// How many times `process_g` was rounded down since the previous row.
    pub(crate) roundings: u32,
    /// The domain's index.
    pub(crate) domain: u32,
}

// A long span keeps a point for each domain.
const _: () = assert!(size_of::<ProcessPoint>() == 40);

/// A span's share of one domain up to an instant, and its subject's part of it, both times a common factor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessShare {
    /// The accumulators at that instant.
    pub(crate) point: ProcessPoint,
    pub(crate) numerator: u128,
    pub(crate) denominator: u128,
}

impl From<ProcessPoint> for ProcessShare {
    fn from(point: ProcessPoint) -> Self {
        Self { point, numerator: 0, denominator: 0 }
    }
}

impl ProcessShare {
    /// Extends the share to `point`; the span's weight since the last point is `weight`.
    pub(crate) fn add(&mut self, weight: u64, point: ProcessPoint) {
        let last = self.point;
        let rise =
            point.process_g.saturating_sub(last.process_g).saturating_sub(u128::from(last.roundings) + 1);
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
    /// The process share up to the first of the intervals in each split domain; empty before the first fold.
    pub folded: Vec<ProcessShare>,
    since_ns: u64,
    weight: u64,
}

/// The time between two rows of a process share: a finer resolution has no effect.
const WEIGHT_INTERVAL_NS: u64 = 20_000_000;
/// The maximum number of intervals; beyond it the last one grows, and its weight is a mean.
pub(crate) const MAX_WEIGHT_INTERVALS: usize = 64;
/// The number of intervals from which they are folded.
pub(crate) const FOLD_THRESHOLD: usize = 16;

impl WeightHistory {
    /// Records a change from a weight that was valid since the opening or the last change.
    pub(crate) fn record_change(&mut self, change: &WeightChange) {
        let WeightChange { opened_ns, at_ns, before, after, .. } = *change;
        let length_ns = at_ns.saturating_sub(self.since_ns.max(opened_ns));
        (self.since_ns, self.weight) = (at_ns, after);
        let full = self.intervals.len() >= MAX_WEIGHT_INTERVALS;
        let is_joined = |last: &WeightInterval| {
            full || last.length_ns + length_ns <= WEIGHT_INTERVAL_NS || length_ns == 0
        };
        if !self.intervals.last().is_some_and(is_joined) && length_ns > 0 {
            self.intervals.push(WeightInterval { until_ns: at_ns, length_ns: 0, weight_ns: 0 });
        }
        if let Some(last) = self.intervals.last_mut() {
            last.add(at_ns, length_ns, before);
        }
    }

    /// The folded process share of a domain.
    pub(crate) fn folded_share(&self, domain: usize) -> Option<ProcessShare> {
        self.folded.iter().find(|share| share.point.domain as usize == domain).copied()
    }

    /// Each weight with the instant at which it ends; the last one ends at `end_ns`.
    pub(crate) fn weights(&self, end_ns: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let intervals = self.intervals.iter().map(|interval| (interval.mean_weight(), interval.until_ns));
        intervals.chain([(self.weight, end_ns)])
    }
}
