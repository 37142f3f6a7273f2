//! Quantiles of Student's t distribution.
//!
//! Up to 200 degrees of freedom the distribution function is a finite sum (Abramowitz & Stegun, *Handbook of
//! Mathematical Functions*, 26.7.3 and 26.7.4), which is inverted by bisection. Above, the quantile is Fisher's and
//! Cornish's series (26.7.5), whose error is below 1e-11 there.

use std::f64::consts::{FRAC_PI_2, PI};

/// The degrees of freedom from which the series is used.
const SERIES_DEGREES: usize = 200;

/// The number of halvings of a quarter turn until the angle is exact to the last bit.
const BISECTIONS: usize = 60;

/// A two-sided probability with the normal quantile that encloses it.
#[derive(Debug, Clone, Copy)]
pub struct Level {
    /// The probability between the two quantiles.
    pub between: f64,
    /// The upper normal quantile.
    pub normal: f64,
}

/// Returns the upper quantile of Student's t with `degrees` of freedom, so that `level.between` lies between it and
/// its negative.
///
/// # Panics
/// There are no degrees of freedom.
pub fn student_quantile(level: Level, degrees: usize) -> f64 {
    assert!(degrees > 0, "Student's t needs a degree of freedom");
    if degrees >= SERIES_DEGREES {
        return series(level.normal, degrees as f64);
    }
    let (mut low, mut high) = (0.0, FRAC_PI_2);
    for _ in 0..BISECTIONS {
        let middle = f64::midpoint(low, high);
        if probability_within(middle, degrees) < level.between { low = middle } else { high = middle }
    }
    (degrees as f64).sqrt() * f64::midpoint(low, high).tan()
}

/// Returns the probability that |t| is below √degrees × tan(angle).
fn probability_within(angle: f64, degrees: usize) -> f64 {
    let (sine, cosine) = angle.sin_cos();
    // The sum is over the odd powers of the cosine for odd degrees and over the even ones for even degrees.
    let odd = degrees % 2 == 1;
    let (mut term, mut sum) = if odd { (cosine, 0.0) } else { (1.0, 0.0) };
    let mut power = usize::from(odd);
    while power + 2 <= degrees {
        sum += term;
        power += 2;
        term *= cosine * cosine * (power - 1) as f64 / power as f64;
    }
    if odd { (angle + sine * sum) * 2.0 / PI } else { sine * sum }
}

fn series(normal: f64, degrees: f64) -> f64 {
    let square = normal * normal;
    let polynomial = |coefficients: &[f64]| coefficients.iter().rev().fold(0.0, |sum, of| sum * square + of);
    let terms = [
        polynomial(&[1.0, 1.0]) / 4.0,
        polynomial(&[3.0, 16.0, 5.0]) / 96.0,
        polynomial(&[-15.0, 17.0, 19.0, 3.0]) / 384.0,
        polynomial(&[-945.0, -1920.0, 1482.0, 776.0, 79.0]) / 92_160.0,
    ];
    normal * terms.iter().rev().fold(0.0, |sum, term| (sum + term) / degrees) + normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_scipy() {
        let level = Level { between: 0.95, normal: 1.959_963_984_540_054 };
        for (degrees, expected) in SCIPY {
            let got = student_quantile(level, degrees);
            assert!((got / expected - 1.0).abs() < 1e-10, "{degrees}: {got}, and not {expected}");
        }
    }

    #[test]
    fn the_sum_and_the_series_agree_where_they_meet() {
        let level = Level { between: 0.96, normal: 2.053_748_910_631_822_5 };
        let (below, above) =
            (student_quantile(level, SERIES_DEGREES - 1), student_quantile(level, SERIES_DEGREES));
        assert!(below > above && below - above < 2e-4, "{below} {above}");
    }

    /// scipy.stats.t.ppf(0.975, degrees)
    const SCIPY: [(usize, f64); 13] = [
        (1, 12.706_204_736_174_694),
        (2, 4.302_652_729_749_462),
        (3, 3.182_446_305_283_707_8),
        (4, 2.776_445_105_197_793_4),
        (9, 2.262_157_162_798_205),
        (10, 2.228_138_851_986_274),
        (49, 2.009_575_237_129_239_2),
        (50, 2.008_559_112_100_761),
        (199, 1.971_956_544_251_753_3),
        (200, 1.971_896_223_633_908_8),
        (201, 1.971_836_506_779_859),
        (1_000, 1.962_339_080_826_408_3),
        (1_000_000, 1.959_966_356_814_107),
    ];
}
