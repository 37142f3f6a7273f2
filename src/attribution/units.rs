//! Units of energy, error and weight, and the conversions between them.
//!
//! Energy is an integer in *energy units* of 2^-64 µJ, a weight in 2^-16. An error is a double in µJ. Invariant: energy is
//! never a double, and an error rounds up. Only the ratios of weights count, so a weight that the unit cannot hold is
//! refused with a hint.

use super::request::AttributionError;

/// Energy units in a microjoule, as a power of two.
pub(crate) const ENERGY_FRACTION_BITS: u32 = 64;
/// The largest energy of a domain: twice of it fits a `u64` in µJ, and a `u128` in energy units. At 1 MW, it is used in 292,000
/// years, so that only a broken source reaches it; its energy counts no further.
pub(crate) const MAX_ENERGY_UJ: u64 = 1 << 63;
/// An error from which no guarantee is given, µJ: far above any energy of a step, far below the largest in an `i64`.
pub(crate) const UNBOUNDED_ERROR_UJ: f64 = (1_u64 << 46) as f64;
/// Weight units in a weight of 1.
pub(crate) const WEIGHT_ONE: u64 = 1 << 16;

/// An energy in whole microjoules, rounded down.
#[inline]
pub(crate) fn whole_uj(energy: u128) -> u64 {
    (energy >> ENERGY_FRACTION_BITS) as u64
}

/// An error in whole microjoules, rounded up; `None` where no guarantee can be given. An error is the result of far fewer
/// than a thousand operations on doubles, each with a relative rounding of 2^-53; the factor covers all of them.
pub(crate) fn guaranteed_uj(error_uj: f64) -> Option<u64> {
    let error_uj = error_uj * (1.0 + 1e-12);
    let whole_uj = error_uj as u64;
    // Not `f64::ceil`, which is a call of a function on processors without SSE 4.1.
    (error_uj < UNBOUNDED_ERROR_UJ).then(|| whole_uj + u64::from(error_uj > whole_uj as f64) + 1)
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
    fn a_guaranteed_error_rounds_up_and_an_unbounded_one_is_absent() {
        assert_eq!(guaranteed_uj(0.0), Some(1));
        assert_eq!(guaranteed_uj(9.5), Some(11));
        // 2^-53 of this error is below the spacing of doubles, but 10^-12 of it is not.
        assert_eq!(guaranteed_uj(1e13), Some(10_000_000_000_011));
        for unbounded in [UNBOUNDED_ERROR_UJ, f64::INFINITY, f64::NAN] {
            assert_eq!(guaranteed_uj(unbounded), None);
        }
    }

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
