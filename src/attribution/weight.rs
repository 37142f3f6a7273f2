//! A span's weight: from what a client says to whole units.
//!
//! Owns the range. Invariant: only ratios count, so a weight that the units cannot hold is refused with the way out,
//! never rounded to nothing.

use super::share::WEIGHT_ONE;
use super::terms::Refused;

/// The heaviest weight a span can have.
const HEAVIEST: f64 = 1e6;

/// A weight in units of 2^-16.
#[inline]
pub(super) fn units_of(weight: f64) -> Result<u64, Refused> {
    if weight == 1.0 { Ok(WEIGHT_ONE) } else { odd_units_of(weight) }
}

#[cold]
fn odd_units_of(weight: f64) -> Result<u64, Refused> {
    let refuse = |reason: &str| Err(Refused::InvalidValue { field: "weight", reason: reason.into() });
    if !weight.is_finite() || weight < 0.0 {
        return refuse("must be a number of at least 0; leave it out for 1");
    }
    if weight > HEAVIEST {
        return refuse("must be at most 1000000: scale all weights down together, only their ratios count");
    }
    let units = (weight * WEIGHT_ONE as f64).round() as u64;
    if units == 0 && weight > 0.0 {
        return refuse(
            "must be 0 or at least 1/65536: scale all weights up together, only their ratios count",
        );
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_mean_nothing_are_refused_with_the_way_out() {
        assert_eq!(units_of(1.0), Ok(WEIGHT_ONE));
        assert_eq!(units_of(0.0), Ok(0));
        assert_eq!(units_of(2.5), Ok(WEIGHT_ONE * 5 / 2));
        assert_eq!(units_of(1.0 / 65_536.0), Ok(1));
        for odd in [-1.0, f64::NAN, f64::INFINITY, 1e6 + 1.0, 1e-9] {
            assert!(matches!(units_of(odd), Err(Refused::InvalidValue { field: "weight", .. })), "{odd}");
        }
    }
}
