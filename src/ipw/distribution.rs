//! The distribution of a quantity over the queries: percentiles, and counts for a histogram.
//!
//! Owns the use of hdrhistogram, which keeps every value to three digits in a fixed memory however many there are. Values
//! are scaled to whole numbers at the edge (microjoules, nanoseconds, milliwatts, whole tokens).

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Percentiles of a quantity, in its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many queries it is known of.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The least.
    pub least: f64,
    /// 5 % are below.
    pub p5: f64,
    /// 25 % are below.
    pub p25: f64,
    /// Half are below.
    pub p50: f64,
    /// 75 % are below.
    pub p75: f64,
    /// 95 % are below.
    pub p95: f64,
    /// 99 % are below.
    pub p99: f64,
    /// The most.
    pub most: f64,
    /// For a histogram: the upper edge of each bin, and its count.
    pub bars: Vec<(f64, u64)>,
}

/// How many bins a histogram has.
const BIN_COUNT: usize = 40;

/// The distribution of known values; `scale` is how many whole steps one unit has. `None` where nothing is known.
pub fn distribution(values: impl Iterator<Item = f64>, scale: f64) -> Option<Distribution> {
    let mut histogram = Histogram::<u64>::new(3).expect("three digits are a valid precision");
    histogram.auto(true);
    let mut sum = 0.0;
    for value in values.filter(|value| value.is_finite() && *value >= 0.0) {
        // A value beyond the histogram's memory (2^64 steps) is no measurement.
        if histogram.record((value * scale).round() as u64).is_ok() {
            sum += value;
        }
    }
    let count = histogram.len();
    if count == 0 {
        return None;
    }
    let percentile = |percent| histogram.value_at_percentile(percent) as f64 / scale;
    Some(Distribution {
        count,
        mean: sum / count as f64,
        least: histogram.min() as f64 / scale,
        p5: percentile(5.0),
        p25: percentile(25.0),
        p50: percentile(50.0),
        p75: percentile(75.0),
        p95: percentile(95.0),
        p99: percentile(99.0),
        most: histogram.max() as f64 / scale,
        bars: histogram_bins(&histogram, scale),
    })
}

fn histogram_bins(histogram: &Histogram<u64>, scale: f64) -> Vec<(f64, u64)> {
    // Outliers are told by the percentiles; a picture that they squeeze tells nothing.
    let top = histogram.value_at_percentile(99.5).max(histogram.min() + 1);
    let step = ((top - histogram.min()) / BIN_COUNT as u64 + 1).max(1);
    let mut bins = vec![0; BIN_COUNT];
    for bin in histogram.iter_recorded() {
        let index = (bin.value_iterated_to().saturating_sub(histogram.min()) / step) as usize;
        bins[index.min(BIN_COUNT - 1)] += bin.count_since_last_iteration();
    }
    let edge = |index: usize| (histogram.min() + (index as u64 + 1) * step) as f64 / scale;
    bins.into_iter().enumerate().map(|(index, count)| (edge(index), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_accurate_to_three_digits_and_bins_hold_every_value() {
        let distribution = distribution((1..=1000).map(f64::from).chain([f64::NAN]), 1e6).unwrap();
        assert_eq!(distribution.count, 1000);
        assert!((distribution.mean - 500.5).abs() < 1e-9);
        for (got, expected) in [
            (distribution.p5, 50.0),
            (distribution.p50, 500.0),
            (distribution.p99, 990.0),
            (distribution.most, 1000.0),
        ] {
            assert!((got - expected).abs() <= expected * 2e-3, "{got}, and not {expected}");
        }
        assert_eq!(distribution.bars.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        assert_eq!(distribution.bars.len(), BIN_COUNT);
    }

    #[test]
    fn one_value_and_no_value() {
        let one = distribution([0.0].into_iter(), 1e9).unwrap();
        assert_eq!((one.count, one.p50, one.bars[0].1), (1, 0.0, 1));
        assert_eq!(distribution([f64::NAN].into_iter(), 1.0), None);
    }
}
