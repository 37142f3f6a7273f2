//! A span's weight: from the client's number to whole units.
//!
//! Owns the range. Invariant: only ratios count, so a weight that the units cannot hold is refused with a hint,
//! never rounded to nothing.

use super::request::AttributionError;
use super::virtual_energy::WEIGHT_ONE;

/// The heaviest weight a span can have.
const MAX_SPAN_WEIGHT: f64 = 1e6;

/// A weight in units of 2^-16.
#[inline]
pub(super) fn weight_units(weight: f64) -> Result<u64, AttributionError> {
    if weight == 1.0 { Ok(WEIGHT_ONE) } else { checked_weight_units(weight) }
}

#[cold]
fn checked_weight_units(weight: f64) -> Result<u64, AttributionError> {
    let refuse =
        |reason: &str| Err(AttributionError::InvalidValue { field: "weight", reason: reason.into() });
    if !weight.is_finite() || weight < 0.0 {
        return refuse("must be a number of at least 0; leave it out for 1");
    }
    if weight > MAX_SPAN_WEIGHT {
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
    fn invalid_weights_are_refused() {
        assert_eq!(weight_units(1.0), Ok(WEIGHT_ONE));
        assert_eq!(weight_units(0.0), Ok(0));
        assert_eq!(weight_units(2.5), Ok(WEIGHT_ONE * 5 / 2));
        assert_eq!(weight_units(1.0 / 65_536.0), Ok(1));
        for odd in [-1.0, f64::NAN, f64::INFINITY, 1e6 + 1.0, 1e-9] {
            assert!(
                matches!(weight_units(odd), Err(AttributionError::InvalidValue { field: "weight", .. })),
                "{odd}"
            );
        }
    }
}
