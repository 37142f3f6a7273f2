//! Usage samples of one basis: the total use and each subject's use between two samples.
//!
//! Owns the intervals between samples. Invariant: in each interval the use of disjoint subjects is at most the
//! interval's total, so that their parts never exceed the whole. Usage counters have ticks (10 ms for the machine,
//! nanoseconds for a process): where the machine's counter shows less than its processes' counters, the processes' sum
//! is the total.

use std::collections::VecDeque;

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
    first_interval: u64,
    intervals: VecDeque<UsageInterval>,
}

/// One subject's use of one basis.
#[derive(Debug, Default)]
pub(crate) struct SubjectUsageHistory {
    last_amount: Option<u64>,
    first_interval: u64,
    intervals: VecDeque<u64>,
    known_since_ns: Option<u64>,
    /// From the begin of the first unknown time to the end of the last one.
    unknown_period: Option<(u64, u64)>,
    last_sample_ns: u64,
}

impl BasisUsageHistory {
    /// The number of the interval that the next sample ends.
    pub(crate) fn next_interval(&self) -> u64 {
        self.first_interval + self.intervals.len() as u64
    }

    /// The time of the last sample.
    pub(crate) fn last_sample_ns(&self) -> Option<u64> {
        Some(self.intervals.back()?.to_ns)
    }

    /// Twice the time between the last two samples.
    pub(crate) fn sampling_tolerance_ns(&self) -> u64 {
        self.intervals.back().map_or(0, |last| 2 * (last.to_ns - last.from_ns))
    }

    /// Adds a sample: the total use so far, and the subjects' use since the previous sample, `min_total`.
    pub(crate) fn add_sample(&mut self, at_ns: u64, total_so_far: Option<u64>, min_total: u64) {
        let (from_ns, previous) = self.last_sample.unwrap_or((at_ns, None));
        let increase = total_so_far.zip(previous).map_or(0, |(now, previous)| now.saturating_sub(previous));
        let total = if total_so_far.is_some() && previous.is_some() { increase.max(min_total) } else { 0 };
        self.last_sample = Some((at_ns.max(from_ns), total_so_far));
        self.intervals.push_back(UsageInterval { from_ns, to_ns: at_ns.max(from_ns), total });
        if self.intervals.len() > MAX_USAGE_INTERVALS {
            self.intervals.pop_front();
            self.first_interval += 1;
        }
    }

    /// The subject's part, up to `to_ns`, of energy that flows evenly over `row`, and how many times it was rounded
    /// down.
    pub(crate) fn subject_energy_until(
        &self,
        usage: &SubjectUsageHistory,
        row: (u64, u64),
        to_ns: u64,
        energy: u128,
    ) -> (u128, u128) {
        let length_ns = row.1.saturating_sub(row.0);
        let begin = self.intervals.partition_point(|interval| interval.to_ns <= row.0);
        let (mut sum, mut roundings) = (0, 0);
        for (number, interval) in self.intervals.iter().enumerate().skip(begin) {
            let (from_ns, end_ns) = (interval.from_ns.max(row.0), interval.to_ns.min(to_ns).min(row.1));
            if interval.from_ns >= to_ns {
                break;
            }
            let amount = usage.in_interval(self.first_interval + number as u64);
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
        let index = self
            .intervals
            .partition_point(|interval| interval.to_ns <= at_ns)
            .min(self.intervals.len().checked_sub(1)?);
        let (interval, amount) =
            (self.intervals.get(index)?, usage.in_interval(self.first_interval + index as u64));
        Some((u128::from(amount.min(interval.total)), u128::from(interval.total.max(1))))
    }

    /// Drops the intervals that end before this instant. Returns the number of the first interval that is left.
    pub(crate) fn drop_before(&mut self, before_ns: u64) -> u64 {
        while self.intervals.len() > 1
            && self.intervals.front().is_some_and(|interval| interval.to_ns < before_ns)
        {
            self.intervals.pop_front();
            self.first_interval += 1;
        }
        self.first_interval
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
        if self.intervals.is_empty() {
            self.first_interval = interval;
        }
        while self.first_interval + (self.intervals.len() as u64) < interval {
            self.intervals.push_back(0);
        }
        self.intervals.push_back(increase);
        let surplus = self.intervals.len().saturating_sub(MAX_USAGE_INTERVALS);
        self.drop_before(self.first_interval + surplus as u64);
        increase
    }

    /// The instant since which its use is known; `None` if it is unknown at some time between `from_ns` and `to_ns`.
    pub(crate) fn known_since_ns(&self, from_ns: u64, to_ns: u64) -> Option<u64> {
        let is_interrupted =
            self.unknown_period.is_some_and(|unknown| unknown.0 < to_ns && from_ns < unknown.1);
        self.known_since_ns.filter(|_| !is_interrupted && self.last_amount.is_some())
    }

    fn in_interval(&self, interval: u64) -> u64 {
        interval
            .checked_sub(self.first_interval)
            .and_then(|index| self.intervals.get(index as usize))
            .copied()
            .unwrap_or(0)
    }

    /// Drops the intervals before the one of this number.
    pub(crate) fn drop_before(&mut self, interval: u64) {
        let dropped = interval.saturating_sub(self.first_interval).min(self.intervals.len() as u64);
        self.intervals.drain(..dropped as usize);
        self.first_interval += dropped;
    }
}

/// `of × past / all`, rounded down; at most `of`.
pub(crate) fn mul_div(of: u128, past: u64, all: u64) -> u128 {
    if past >= all { of } else { of.saturating_mul(u128::from(past)) / u128::from(all) }
}
