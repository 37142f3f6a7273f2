//! Fixed-point units of energy, error and weight, and the conversions between them.
//!
//! Energy is in *energy units* of 2^-32 µJ, an error in *error units* of 2^-12 µJ, a weight in 2^-16. Invariant: an
//! error rounds up. Only the ratios of weights count, so a weight that the unit cannot hold is refused with a hint.

use super::request::AttributionError;

/// Energy units in a microjoule, as a power of two.
pub(crate) const ENERGY_FRACTION_BITS: u32 = 32;
/// Error units in a microjoule, as a power of two.
pub(crate) const ERROR_FRACTION_BITS: u32 = 12;
/// The error, in error units, where no guarantee can be given. The sum of a few of them does not overflow.
pub(crate) const UNBOUNDED_ERROR: u64 = 1 << 60;
/// Weight units in a weight of 1.
pub(crate) const WEIGHT_ONE: u64 = 1 << 16;

/// Energy units as whole microjoules.
#[inline]
pub(crate) fn whole_uj(energy: u128) -> u64 {
    u64::try_from(energy >> ENERGY_FRACTION_BITS).unwrap_or(u64::MAX)
}

/// Energy units as error units, rounded up.
#[inline]
pub(crate) fn error_units(energy: u128) -> u64 {
    let shift = ENERGY_FRACTION_BITS - ERROR_FRACTION_BITS;
    ((energy + ((1 << shift) - 1)) >> shift).min(u128::from(UNBOUNDED_ERROR - 1)) as u64
}

/// Energy units as error units, wrapping, rounded down.
#[inline]
pub(crate) fn wrapping_error_units(energy: u128) -> u64 {
    (energy >> (ENERGY_FRACTION_BITS - ERROR_FRACTION_BITS)) as u64
}

/// Error units as whole microjoules, rounded up; `None` where no guarantee can be given.
pub(crate) fn guaranteed_uj(error: u64) -> Option<u64> {
    (error < UNBOUNDED_ERROR >> 2).then(|| error.div_ceil(1 << ERROR_FRACTION_BITS) + 1)
}

/// The maximum weight of a span.
const MAX_SPAN_WEIGHT: f64 = 1e6;

/// A client's weight in units of 2^-16.
#[inline]
pub(super) fn weight_units(weight: f64) -> Result<u64, AttributionError> {
    if weight == 1.0 { Ok(WEIGHT_ONE) } else { checked_weight_units(weight) }
}

#[cold]
fn checked_weight_units(weight: f64) -> Result<u64, AttributionError> {
    let refuse =
        |reason: &str| Err(AttributionError::InvalidValue { field: "weight", reason: reason.into() });
    if !weight.is_finite() || weight < 0.0 {
        return refuse("must be a finite number of at least 0; omit it for a weight of 1");
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
