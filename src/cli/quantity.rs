//! Joules, watts and seconds as a person reads them.
//!
//! Owns the rounding: a figure ends with the second digit of its error, as metrologists do, and an error is rounded up,
//! together with what rounding moved the value, so that the truth still lies inside what is printed. Works in integers
//! of the base unit. Never prints a missing value as 0: that is [`unknown`].

/// What the digits count: the base unit is a millionth (energy), a thousandth (power) or a billionth (time).
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Unit names with the number of decimal places between the base unit and this one, smallest first.
    steps: &'static [(&'static str, u32)],
}

const ENERGY: Scale = Scale { steps: &[("µJ", 0), ("mJ", 3), ("J", 6), ("kJ", 9), ("MJ", 12)] };
const POWER: Scale = Scale { steps: &[("mW", 0), ("W", 3), ("kW", 6)] };
const TIME: Scale = Scale { steps: &[("ns", 0), ("µs", 3), ("ms", 6), ("s", 9)] };

/// Digits of a figure whose error is not known.
const PLAIN_DIGITS: u32 = 4;

/// `12.34 J ± 0.05 J`; without an error four digits of the value.
pub fn energy(uj: u64, error_uj: Option<u64>) -> String {
    with_error(ENERGY, uj, error_uj)
}

/// `41.2 W ± 0.2 W`; without an error four digits of the value.
pub fn power(mw: u64, error_mw: Option<u64>) -> String {
    with_error(POWER, mw, error_mw)
}

/// `0.3012 s`, `61.04 µs`: four digits.
pub fn time(ns: u64) -> String {
    plain(TIME, ns)
}

/// The value alone, with the digits that `error_uj` leaves meaningful.
pub fn energy_alone(uj: u64, error_uj: Option<u64>) -> String {
    match error_uj {
        Some(error) => rounded(ENERGY, uj, error).0,
        None => plain(ENERGY, uj),
    }
}

/// The value alone, with the digits that `error_mw` leaves meaningful.
pub fn power_alone(mw: u64, error_mw: Option<u64>) -> String {
    match error_mw {
        Some(error) => rounded(POWER, mw, error).0,
        None => plain(POWER, mw),
    }
}

/// A total, which is a lower bound where a domain is perhaps missing from it.
pub fn lower_bound(at_least: Option<bool>, total: String) -> String {
    if at_least == Some(true) { format!("at least {total}") } else { total }
}

/// `12.34 J ± 0.05 J`, or `at most 9.6 J` where the error is as large as the figure.
pub fn energy_or_bound(uj: u64, error_uj: Option<u64>) -> String {
    match error_uj.filter(|&error_uj| is_lost_in(uj, error_uj)) {
        Some(error_uj) => at_most(ENERGY, uj.saturating_add(error_uj)),
        None => energy(uj, error_uj),
    }
}

/// The same of a power.
pub fn power_or_bound(mw: u64, error_mw: Option<u64>) -> String {
    match error_mw.filter(|&error_mw| is_lost_in(mw, error_mw)) {
        Some(error_mw) => at_most(POWER, mw.saturating_add(error_mw)),
        None => power(mw, error_mw),
    }
}

/// Whether a figure says nothing beside its error. A domain that used nothing says so.
pub fn is_lost_in(figure: u64, error: u64) -> bool {
    figure > 0 && error >= figure
}

/// An upper bound of two digits, rounded up.
fn at_most(scale: Scale, value: u64) -> String {
    let ulp = last_digit(value);
    let value = value.div_ceil(ulp).saturating_mul(ulp);
    let (name, places) = unit(scale, value);
    format!("at most {} {name}", digits(value, ulp, places))
}

/// A figure that is not there.
pub fn unknown(reason: &str) -> String {
    if reason.is_empty() { "unknown".into() } else { format!("unknown ({reason})") }
}

/// Mean power in milliwatts of `uj` over `ns`; `None` for no time at all.
pub fn mean_mw(uj: u64, ns: u64) -> Option<u64> {
    // 1 µJ/ns is 10^6 mW.
    (u128::from(uj) * 1_000_000 + u128::from(ns) / 2)
        .checked_div(u128::from(ns))
        .and_then(|mw| u64::try_from(mw).ok())
}

/// `44 %`, from a part and the whole; less than half a percent says so.
pub fn percent(part: u64, whole: u64) -> Option<String> {
    let thousandths = (u128::from(part) * 1000).checked_div(u128::from(whole))?;
    Some(match thousandths {
        0 if part > 0 => "<0.1 %".into(),
        0..=99 => format!("{}.{} %", thousandths / 10, thousandths % 10),
        _ => format!("{} %", (thousandths + 5) / 10),
    })
}

fn with_error(scale: Scale, value: u64, error: Option<u64>) -> String {
    match error {
        None => plain(scale, value),
        Some(error) => {
            let (value, error) = rounded(scale, value, error);
            format!("{value} ± {error}")
        }
    }
}

/// The unit in which `largest` has one to four digits before the point.
fn unit(scale: Scale, largest: u64) -> (&'static str, u32) {
    let fits = |&&(_, places): &&(&str, u32)| u128::from(largest) >= 10u128.pow(places);
    scale.steps.iter().rev().find(fits).or(scale.steps.first()).copied().unwrap_or(("", 0))
}

fn plain(scale: Scale, value: u64) -> String {
    let last = |value: u64| 10u64.pow(value.max(1).ilog10().saturating_sub(PLAIN_DIGITS - 1));
    let ulp = last(value);
    let value = value.saturating_add(ulp / 2) / ulp * ulp;
    let (name, places) = unit(scale, value);
    // Asked again, since 999.96 rounds to 1000.0, which has a digit too many.
    format!("{} {name}", digits(value, last(value), places))
}

/// The value and its error, both with their unit and the same number of places.
fn rounded(scale: Scale, value: u64, error: u64) -> (String, String) {
    let ulp = last_digit(error);
    let shown = (value.saturating_add(ulp / 2)) / ulp * ulp;
    let error = error.saturating_add(value.abs_diff(shown)).div_ceil(ulp).saturating_mul(ulp);
    let (name, places) = unit(scale, shown.max(error));
    (format!("{} {name}", digits(shown, ulp, places)), format!("{} {name}", digits(error, ulp, places)))
}

/// What the last shown digit counts: the second digit of the error. It depends on nothing else, so that figures with one
/// error have the same number of places.
fn last_digit(error: u64) -> u64 {
    10u64.pow(error.max(1).ilog10().saturating_sub(1))
}

/// `value` base units written in a unit `places` decimal places above, down to the digit of `ulp`.
fn digits(value: u64, ulp: u64, places: u32) -> String {
    let one = 10u64.pow(places);
    let (whole, fraction) = (value / one, value % one);
    let shown = places.saturating_sub(ulp.ilog10());
    if shown == 0 {
        return whole.to_string();
    }
    let fraction = fraction / 10u64.pow(places - shown);
    format!("{whole}.{fraction:0width$}", width = shown as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_shows_the_digits_its_error_leaves_and_no_more() {
        assert_eq!(energy(12_341_234, Some(43_000)), "12.341 J ± 0.044 J");
        assert_eq!(energy(12_341_234, Some(4_000_000)), "12.3 J ± 4.1 J");
        assert_eq!(energy(12_345_678_901, Some(20_000_000)), "12.346 kJ ± 0.021 kJ");
        assert_eq!(energy(950, Some(61)), "950 µJ ± 61 µJ");
        assert_eq!(power(41_234, Some(150)), "41.23 W ± 0.16 W");
    }

    #[test]
    fn the_printed_interval_contains_the_true_one() {
        for value in (0..2_000_000).step_by(7_919) {
            for error in [0, 1, 9, 10, 19, 20, 99, 101, 1_999, 54_321, 999_999] {
                let ulp = last_digit(error);
                let shown = (value + ulp / 2) / ulp * ulp;
                let printed = (error + value.abs_diff(shown)).div_ceil(ulp) * ulp;
                assert!(shown + printed >= value + error, "{value} {error}");
                assert!(shown.saturating_sub(printed) <= value.saturating_sub(error), "{value} {error}");
            }
        }
    }

    #[test]
    fn an_error_larger_than_the_value_chooses_the_unit() {
        assert_eq!(energy(3_000, Some(4_000_000)), "0.0 J ± 4.1 J");
    }

    #[test]
    fn time_has_four_digits_in_the_unit_that_fits() {
        assert_eq!(time(301_234_567), "301.2 ms");
        assert_eq!(time(1_000_000), "1.000 ms");
        assert_eq!(time(999_960_000), "1.000 s");
        assert_eq!(time(61), "61 ns");
        assert_eq!(time(0), "0 ns");
        assert_eq!(time(123_456_000_000_000), "123500 s");
    }

    #[test]
    fn a_figure_within_its_error_is_a_bound_that_holds_the_truth() {
        assert_eq!(energy_or_bound(900_000, Some(8_700_000)), "at most 9.6 J");
        assert_eq!(energy_or_bound(1_000_000, Some(1_000_001)), "at most 2.1 J");
        assert_eq!(energy_or_bound(12_341_234, Some(43_000)), "12.341 J ± 0.044 J");
        assert_eq!(energy_or_bound(0, Some(61)), "0 µJ ± 61 µJ");
        assert_eq!(energy_or_bound(61, None), "61 µJ");
        assert_eq!(power_or_bound(900_000, Some(8_700_000)), "at most 9.6 kW");
    }

    #[test]
    fn power_is_energy_over_time_and_no_time_gives_none() {
        assert_eq!(mean_mw(30_000_000, 300_000_000), Some(100_000));
        assert_eq!(mean_mw(30_000_000, 0), None);
    }

    #[test]
    fn a_share_of_nothing_has_no_percentage() {
        assert_eq!(percent(1, 0), None);
        assert_eq!(percent(1, 10_000).as_deref(), Some("<0.1 %"));
        assert_eq!(percent(1, 3).as_deref(), Some("33 %"));
        assert_eq!(percent(35, 1000).as_deref(), Some("3.5 %"));
    }
}
