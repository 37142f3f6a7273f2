//! Formats energy, power and time with units.
//!
//! A value is rounded to the second significant digit of its error. The error is rounded up and includes the rounding of
//! the value, so that the printed interval contains the true one. Uses integers of the base unit. A missing value is never
//! printed as 0: see [`format_unknown`].

/// Units of a quantity. The base units are µJ, mW and ns.
#[derive(Debug, Clone, Copy)]
struct UnitScale {
    /// Unit names with the number of decimal places between the base unit and this one, smallest first.
    units: &'static [(&'static str, u32)],
}

const ENERGY_UNITS: UnitScale =
    UnitScale { units: &[("µJ", 0), ("mJ", 3), ("J", 6), ("kJ", 9), ("MJ", 12)] };
const POWER_UNITS: UnitScale = UnitScale { units: &[("mW", 0), ("W", 3), ("kW", 6)] };
const TIME_UNITS: UnitScale = UnitScale { units: &[("ns", 0), ("µs", 3), ("ms", 6), ("s", 9)] };

/// Significant digits of a figure without an error.
const DEFAULT_DIGITS: u32 = 4;

/// `12.34 J ± 0.05 J`, or four significant digits without an error.
pub fn format_energy(uj: u64, error_uj: Option<u64>) -> String {
    format_with_error(ENERGY_UNITS, uj, error_uj)
}

/// `41.2 W ± 0.2 W`, or four significant digits without an error.
pub fn format_power(mw: u64, error_mw: Option<u64>) -> String {
    format_with_error(POWER_UNITS, mw, error_mw)
}

/// `0.3012 s`, `61.04 µs`: four significant digits.
pub fn format_duration(ns: u64) -> String {
    format_value(TIME_UNITS, ns)
}

/// The value alone, rounded to `error_uj`.
pub fn format_energy_value(uj: u64, error_uj: Option<u64>) -> String {
    match error_uj {
        Some(error) => round_to_error(ENERGY_UNITS, uj, error).0,
        None => format_value(ENERGY_UNITS, uj),
    }
}

/// The value alone, rounded to `error_mw`.
pub fn format_power_value(mw: u64, error_mw: Option<u64>) -> String {
    match error_mw {
        Some(error) => round_to_error(POWER_UNITS, mw, error).0,
        None => format_value(POWER_UNITS, mw),
    }
}

/// A total, marked as a lower bound if a domain may be missing from it.
pub fn format_lower_bound(at_least: Option<bool>, total: String) -> String {
    if at_least == Some(true) { format!("at least {total}") } else { total }
}

/// `12.34 J ± 0.05 J`, or `at most 9.6 J` if the error is as large as the value.
pub fn format_energy_or_bound(uj: u64, error_uj: Option<u64>) -> String {
    match error_uj.filter(|&error_uj| is_within_error(uj, error_uj)) {
        Some(error_uj) => format_upper_bound(ENERGY_UNITS, uj.saturating_add(error_uj)),
        None => format_energy(uj, error_uj),
    }
}

/// Like [`format_energy_or_bound`], for power.
pub fn format_power_or_bound(mw: u64, error_mw: Option<u64>) -> String {
    match error_mw.filter(|&error_mw| is_within_error(mw, error_mw)) {
        Some(error_mw) => format_upper_bound(POWER_UNITS, mw.saturating_add(error_mw)),
        None => format_power(mw, error_mw),
    }
}

/// Whether the error is as large as the figure. A figure of 0 is never within its error.
pub fn is_within_error(figure: u64, error: u64) -> bool {
    figure > 0 && error >= figure
}

/// An upper bound of two digits, rounded up.
fn format_upper_bound(scale: UnitScale, value: u64) -> String {
    let ulp = last_digit_value(value);
    let value = value.div_ceil(ulp).saturating_mul(ulp);
    let (name, places) = choose_unit(scale, value);
    format!("at most {} {name}", format_digits(value, ulp, places))
}

/// `unknown`, with the reason if there is one.
pub fn format_unknown(reason: &str) -> String {
    if reason.is_empty() { "unknown".into() } else { format!("unknown ({reason})") }
}

/// Mean power in milliwatts of `uj` over `ns`; `None` if `ns` is 0.
pub fn mean_mw(uj: u64, ns: u64) -> Option<u64> {
    // 1 µJ/ns is 10^6 mW.
    (u128::from(uj) * 1_000_000 + u128::from(ns) / 2)
        .checked_div(u128::from(ns))
        .and_then(|mw| u64::try_from(mw).ok())
}

/// `44 %`, from a part and the whole; `<0.1 %` for a small part.
pub fn format_percent(part: u64, whole: u64) -> Option<String> {
    let thousandths = (u128::from(part) * 1000).checked_div(u128::from(whole))?;
    Some(match thousandths {
        0 if part > 0 => "<0.1 %".into(),
        0..=99 => format!("{}.{} %", thousandths / 10, thousandths % 10),
        _ => format!("{} %", (thousandths + 5) / 10),
    })
}

fn format_with_error(scale: UnitScale, value: u64, error: Option<u64>) -> String {
    match error {
        None => format_value(scale, value),
        Some(error) => {
            let (value, error) = round_to_error(scale, value, error);
            format!("{value} ± {error}")
        }
    }
}

/// The unit in which `largest` has one to four digits before the point.
fn choose_unit(scale: UnitScale, largest: u64) -> (&'static str, u32) {
    let fits = |&&(_, places): &&(&str, u32)| u128::from(largest) >= 10u128.pow(places);
    scale.units.iter().rev().find(fits).or(scale.units.first()).copied().unwrap_or(("", 0))
}

fn format_value(scale: UnitScale, value: u64) -> String {
    let digit_value = |value: u64| 10u64.pow(value.max(1).ilog10().saturating_sub(DEFAULT_DIGITS - 1));
    let ulp = digit_value(value);
    let value = value.saturating_add(ulp / 2) / ulp * ulp;
    let (name, places) = choose_unit(scale, value);
    // Computed again, since 999.96 rounds to 1000.0, which has one digit too many.
    format!("{} {name}", format_digits(value, digit_value(value), places))
}

/// The value and its error, with the same unit and number of decimal places.
fn round_to_error(scale: UnitScale, value: u64, error: u64) -> (String, String) {
    let ulp = last_digit_value(error);
    let rounded = (value.saturating_add(ulp / 2)) / ulp * ulp;
    let error = error.saturating_add(value.abs_diff(rounded)).div_ceil(ulp).saturating_mul(ulp);
    let (name, places) = choose_unit(scale, rounded.max(error));
    (
        format!("{} {name}", format_digits(rounded, ulp, places)),
        format!("{} {name}", format_digits(error, ulp, places)),
    )
}

/// Weight of the last printed digit: the second significant digit of the error. It depends only on the error, so that
/// figures with the same error have the same number of decimal places.
fn last_digit_value(error: u64) -> u64 {
    10u64.pow(error.max(1).ilog10().saturating_sub(1))
}

/// `value` base units written in a unit `places` decimal places above, down to the digit of `ulp`.
fn format_digits(value: u64, ulp: u64, places: u32) -> String {
    let one = 10u64.pow(places);
    let (whole, fraction) = (value / one, value % one);
    let decimals = places.saturating_sub(ulp.ilog10());
    if decimals == 0 {
        return whole.to_string();
    }
    let fraction = fraction / 10u64.pow(places - decimals);
    format!("{whole}.{fraction:0width$}", width = decimals as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_shows_the_digits_its_error_leaves_and_no_more() {
        assert_eq!(format_energy(12_341_234, Some(43_000)), "12.341 J ± 0.044 J");
        assert_eq!(format_energy(12_341_234, Some(4_000_000)), "12.3 J ± 4.1 J");
        assert_eq!(format_energy(12_345_678_901, Some(20_000_000)), "12.346 kJ ± 0.021 kJ");
        assert_eq!(format_energy(950, Some(61)), "950 µJ ± 61 µJ");
        assert_eq!(format_power(41_234, Some(150)), "41.23 W ± 0.16 W");
    }

    #[test]
    fn the_printed_interval_contains_the_true_one() {
        for value in (0..2_000_000).step_by(7_919) {
            for error in [0, 1, 9, 10, 19, 20, 99, 101, 1_999, 54_321, 999_999] {
                let ulp = last_digit_value(error);
                let rounded = (value + ulp / 2) / ulp * ulp;
                let printed_error = (error + value.abs_diff(rounded)).div_ceil(ulp) * ulp;
                assert!(rounded + printed_error >= value + error, "{value} {error}");
                assert!(
                    rounded.saturating_sub(printed_error) <= value.saturating_sub(error),
                    "{value} {error}"
                );
            }
        }
    }

    #[test]
    fn an_error_larger_than_the_value_chooses_the_unit() {
        assert_eq!(format_energy(3_000, Some(4_000_000)), "0.0 J ± 4.1 J");
    }

    #[test]
    fn time_has_four_digits_in_the_unit_that_fits() {
        assert_eq!(format_duration(301_234_567), "301.2 ms");
        assert_eq!(format_duration(1_000_000), "1.000 ms");
        assert_eq!(format_duration(999_960_000), "1.000 s");
        assert_eq!(format_duration(61), "61 ns");
        assert_eq!(format_duration(0), "0 ns");
        assert_eq!(format_duration(123_456_000_000_000), "123500 s");
    }

    #[test]
    fn a_value_within_its_error_is_an_upper_bound() {
        assert_eq!(format_energy_or_bound(900_000, Some(8_700_000)), "at most 9.6 J");
        assert_eq!(format_energy_or_bound(1_000_000, Some(1_000_001)), "at most 2.1 J");
        assert_eq!(format_energy_or_bound(12_341_234, Some(43_000)), "12.341 J ± 0.044 J");
        assert_eq!(format_energy_or_bound(0, Some(61)), "0 µJ ± 61 µJ");
        assert_eq!(format_energy_or_bound(61, None), "61 µJ");
        assert_eq!(format_power_or_bound(900_000, Some(8_700_000)), "at most 9.6 kW");
    }

    #[test]
    fn power_is_energy_over_time_and_no_time_gives_none() {
        assert_eq!(mean_mw(30_000_000, 300_000_000), Some(100_000));
        assert_eq!(mean_mw(30_000_000, 0), None);
    }

    #[test]
    fn a_share_of_zero_has_no_percentage() {
        assert_eq!(format_percent(1, 0), None);
        assert_eq!(format_percent(1, 10_000).as_deref(), Some("<0.1 %"));
        assert_eq!(format_percent(1, 3).as_deref(), Some("33 %"));
        assert_eq!(format_percent(35, 1000).as_deref(), Some("3.5 %"));
    }
}
