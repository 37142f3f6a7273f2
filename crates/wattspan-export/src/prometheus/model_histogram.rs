//! A histogram of integers with 13 bounds, each about √10 times the one before: 1, 3, 10, 30 and so on.

use serde::{Deserialize, Serialize};

/// The bounds of a histogram; a further bucket has no bound.
const BOUNDS: usize = 13;

/// The unit and the lowest bound of a histogram.
#[derive(Debug, Clone, Copy)]
pub struct HistogramScale {
    /// The lowest bound, in the integers that are observed.
    first: u64,
    /// The number of these in one unit of the metric.
    per_unit: f64,
}

/// Energy in µJ: 0.01 J to 10 kJ.
pub const ENERGY_UJ: HistogramScale = HistogramScale { first: 10_000, per_unit: 1e6 };

/// Energy of a token in nJ: 0.001 J to 1 kJ.
pub const TOKEN_NJ: HistogramScale = HistogramScale { first: 1_000_000, per_unit: 1e9 };

/// Duration in µs: 0.001 s to 1000 s.
pub const DURATION_US: HistogramScale = HistogramScale { first: 1000, per_unit: 1e6 };

impl HistogramScale {
    fn bound(self, at: usize) -> u64 {
        let step = if at.is_multiple_of(2) { 1 } else { 3 };
        self.first * step * 10_u64.pow((at / 2) as u32)
    }
}

/// The counts of each bucket, and the sum of the values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelHistogram {
    counts: [u64; BOUNDS + 1],
    sum: u64,
}

impl ModelHistogram {
    pub fn observe(&mut self, scale: HistogramScale, value: u64) {
        let bucket = (0..BOUNDS).find(|at| value <= scale.bound(*at)).unwrap_or(BOUNDS);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
        self.sum = self.sum.saturating_add(value);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The sum in the unit of the metric.
    pub fn sum(&self, scale: HistogramScale) -> f64 {
        self.sum as f64 / scale.per_unit
    }

    /// Each bound in the unit of the metric, with the count between it and the one before.
    pub fn buckets(&self, scale: HistogramScale) -> Vec<(f64, u64)> {
        let bound = |at| if at < BOUNDS { scale.bound(at) as f64 / scale.per_unit } else { f64::INFINITY };
        self.counts.iter().enumerate().map(|(at, count)| (bound(at), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_bucket_of_the_next_bound() {
        let mut histogram = ModelHistogram::default();
        for uj in [0, 10_000, 10_001, 30_000, 1_000_000, 20_000_000_000] {
            histogram.observe(ENERGY_UJ, uj);
        }
        let buckets = histogram.buckets(ENERGY_UJ);
        let bounds: Vec<f64> = buckets.iter().map(|(bound, _)| *bound).collect();
        assert_eq!(bounds[..6], [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]);
        assert_eq!((buckets.len(), bounds[12], bounds[13]), (14, 10_000.0, f64::INFINITY));
        let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((histogram.count(), histogram.sum(ENERGY_UJ)), (6, 20_001.050_001));
    }
}
