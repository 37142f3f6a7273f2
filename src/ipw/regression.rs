//! Straight lines through clouds of queries: energy, latency and power against tokens.
//!
//! Owns ordinary least squares in one dimension. Sums are centred, so that large means cost no digits. Invariant: where
//! x or y does not vary there is no line or no R², rather than a perfect one.

use serde::{Deserialize, Serialize};

/// `y = intercept + slope × x`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinearFit {
    /// How many points.
    pub count: usize,
    /// Change of y for each x.
    pub slope: f64,
    /// y where x is 0.
    pub intercept: f64,
    /// The part of y's variance that the line explains; absent where y does not vary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r2: Option<f64>,
    /// The mean of y.
    pub mean_y: f64,
}

/// The least-squares line; `None` with fewer than two points, or where all have the same x.
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

/// The same against the logarithm of x; points whose x is not above 0 are left out.
pub fn fit_log_linear(points: impl Iterator<Item = (f64, f64)> + Clone) -> Option<LinearFit> {
    fit_linear(points.filter(|(x, _)| *x > 0.0).map(|(x, y)| (x.ln(), y)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
