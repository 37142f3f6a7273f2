//! The meter's guaranteed error, combined with the sampling interval of a figure.
//!
//! The meter's error is a bound and no distribution: it may be the same for every query, so it does not shrink with their
//! number. Invariant: a combined interval contains the sampling interval of every energy that the bound allows.

use super::bootstrap::ConfidenceInterval;

/// Widens the interval of a mean by a relative error of the mean; `None` if either is unknown. The error is taken as a
/// constant offset or as a constant factor, whichever is wider at each end.
pub fn widen_mean(
    mean: f64,
    interval: Option<ConfidenceInterval>,
    relative_error: Option<f64>,
) -> Option<ConfidenceInterval> {
    let (interval, relative_error) = (interval?, relative_error?.abs());
    let error = mean.abs() * relative_error;
    let ends = |end: f64, sign: f64| [end + sign * error, end + sign * end.abs() * relative_error];
    let low = ends(interval.low, -1.0).into_iter().fold(f64::INFINITY, f64::min);
    // An energy or a power is not negative; without idle power it may be.
    let low = if interval.low >= 0.0 { low.max(0.0) } else { low };
    let high = ends(interval.high, 1.0).into_iter().fold(f64::NEG_INFINITY, f64::max);
    Some(ConfidenceInterval { low, high })
}

/// Widens the interval of a ratio by the relative error of its denominator; `None` if either is unknown. If the denominator
/// may be zero, the interval has no upper bound.
pub fn widen_ratio(
    interval: Option<ConfidenceInterval>,
    relative_error: Option<f64>,
) -> Option<ConfidenceInterval> {
    let (interval, relative_error) = (interval?, relative_error?.abs());
    let high = if relative_error < 1.0 { interval.high / (1.0 - relative_error) } else { f64::INFINITY };
    Some(ConfidenceInterval { low: interval.low / (1.0 + relative_error), high })
}

/// Widens the interval of a difference of two means by the sum of their absolute errors.
pub fn widen_difference(
    interval: Option<ConfidenceInterval>,
    error: Option<f64>,
) -> Option<ConfidenceInterval> {
    let (interval, error) = (interval?, error?);
    Some(ConfidenceInterval { low: interval.low - error, high: interval.high + error })
}

/// Widens the interval of the ratio of two efficiencies by the relative errors of the two costs, the baseline's first.
pub fn widen_relative(
    interval: Option<ConfidenceInterval>,
    [baseline, other]: [Option<f64>; 2],
) -> Option<ConfidenceInterval> {
    let (interval, baseline, other) = (interval?, baseline?, other?);
    let high = if other < 1.0 { interval.high * (1.0 + baseline) / (1.0 - other) } else { f64::INFINITY };
    Some(ConfidenceInterval { low: interval.low * (1.0 - baseline).max(0.0) / (1.0 + other), high })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(low: f64, high: f64) -> Option<ConfidenceInterval> {
        Some(ConfidenceInterval { low, high })
    }

    #[test]
    fn a_mean_is_widened_by_the_wider_of_offset_and_factor() {
        // \u{b1} 10 % of 10: an offset of 1 below, and 10 % of 15 above.
        let both = widen_mean(10.0, interval(8.0, 15.0), Some(0.1)).unwrap();
        assert!((both.low - 7.0).abs() < 1e-12 && (both.high - 16.5).abs() < 1e-12, "{both:?}");
        assert_eq!(widen_mean(10.0, interval(1.0, 15.0), Some(0.5)).unwrap().low, 0.0);
        assert_eq!(widen_mean(10.0, interval(8.0, 15.0), Some(0.0)), interval(8.0, 15.0));
        assert_eq!(widen_mean(10.0, interval(8.0, 15.0), None), None);
        let negative = widen_mean(-1.0, interval(-2.0, 1.0), Some(0.5)).unwrap();
        assert_eq!((negative.low, negative.high), (-3.0, 1.5), "idle power excluded");
    }

    #[test]
    fn a_ratio_has_no_upper_bound_where_its_denominator_may_be_zero() {
        let both = widen_ratio(interval(2.0, 4.0), Some(0.5)).unwrap();
        assert!((both.low - 2.0 / 1.5).abs() < 1e-12 && (both.high - 8.0).abs() < 1e-12, "{both:?}");
        assert_eq!(widen_ratio(interval(2.0, 4.0), Some(1.0)), interval(1.0, f64::INFINITY));
        assert_eq!(widen_ratio(None, Some(0.1)), None);
    }
}
