//! Statistics over the queries of a run: distributions (percentiles and histogram bins) and least-squares lines.
//!
//! hdrhistogram keeps values to three significant digits in fixed memory; values are scaled to whole numbers before they are
//! recorded (microjoules, nanoseconds, milliwatts, tokens). Regression sums are centred, so that large means cost no
//! precision. Invariant: where x does not vary there is no line, and where y does not vary there is no R².

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Percentiles of a quantity, in its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Number of known values.
    pub count: u64,
    pub mean: f64,
    /// Minimum.
    pub least: f64,
    pub p5: f64,
    pub p25: f64,
    pub p50: f64,
    pub p75: f64,
    pub p95: f64,
    pub p99: f64,
    /// Maximum.
    pub most: f64,
    /// Histogram: the upper edge and the count of each bin.
    pub bars: Vec<(f64, u64)>,
}

/// The number of histogram bins.
const BIN_COUNT: usize = 40;

/// Returns the distribution of the finite values; `scale` is the number of integer steps per unit. `None` without
/// values.
pub fn distribution(values: impl Iterator<Item = f64>, scale: f64) -> Option<Distribution> {
    let mut histogram = Histogram::<u64>::new(3).expect("three digits are a valid precision");
    histogram.auto(true);
    let mut sum = 0.0;
    for value in values.filter(|value| value.is_finite() && *value >= 0.0) {
        // A value beyond the histogram's range (2^64 steps) is not a measurement.
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
    // Outliers are visible in the percentiles; in the histogram they would squeeze the bins.
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

/// A fitted line: `y = intercept + slope × x`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinearFit {
    pub count: usize,
    /// Change of y per unit of x.
    pub slope: f64,
    /// y at x = 0.
    pub intercept: f64,
    /// The fraction of y's variance that the line explains (R²); absent if y does not vary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r2: Option<f64>,
    pub mean_y: f64,
}

/// Returns the least-squares line; `None` with fewer than two points or if all x are equal.
pub fn fit_linear(points: impl Iterator<Item = (f64, f64)> + Clone) -> Option<LinearFit> {
    let mut count = 0_usize;
    let (mut mean_x, mut mean_y) = (0.0, 0.0);
    let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in points {
        count += 1;
        let (dx, dy) = (x - mean_x, y - mean_y);
        mean_x += dx / count as f64;
        mean_y += dy / count as f64;
        xx += dx * (x - mean_x);
        xy += dx * (y - mean_y);
        yy += dy * (y - mean_y);
    }
    if count < 2 || xx <= 0.0 {
        return None;
    }
    let slope = xy / xx;
    let r2 = (yy > 0.0).then(|| (slope * xy / yy).min(1.0));
    Some(LinearFit { count, slope, intercept: mean_y - slope * mean_x, r2, mean_y })
}

/// Returns the least-squares line against ln(x); points with x ≤ 0 are skipped.
pub fn fit_log_linear(points: impl Iterator<Item = (f64, f64)> + Clone) -> Option<LinearFit> {
    fit_linear(points.filter(|(x, _)| *x > 0.0).map(|(x, y)| (x.ln(), y)))
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

    #[test]
    fn fits_collinear_points_exactly() {
        let points = [(1e9, 5.0), (1e9 + 1.0, 7.0), (1e9 + 2.0, 9.0)];
        let fit = fit_linear(points.into_iter()).unwrap();
        assert_eq!((fit.count, fit.slope, fit.r2, fit.mean_y), (3, 2.0, Some(1.0), 7.0));
    }

    #[test]
    fn constant_y_has_no_r2() {
        let flat = fit_linear([(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)].into_iter()).unwrap();
        assert_eq!((flat.slope, flat.r2), (0.0, None));
        assert_eq!(fit_linear([(1.0, 1.0), (1.0, 2.0)].into_iter()), None);
        assert_eq!(fit_linear([(1.0, 1.0)].into_iter()), None);
        assert_eq!(fit_log_linear([(0.0, 1.0), (1.0, 2.0)].into_iter()), None);
    }
}
