//! Figures as text, for the terminal and the page.

use super::super::metrics::Estimate;
use super::units::InverseUnit;

/// Formats a number with at most four digits, without false precision.
pub fn format_significant(value: f64) -> String {
    // Rounded to four digits first, so that 99.999 has as many digits as 100.
    let size = format!("{:.3e}", value.abs()).parse().unwrap_or(value.abs());
    let decimals = match () {
        () if size.is_infinite() => return "\u{221e}".into(),
        // Avoids "-0" after rounding.
        () if size < 1e-12 => return "0".into(),
        () if size >= 1000.0 => 0,
        () if size >= 100.0 => 1,
        () if size >= 10.0 => 2,
        () if size >= 1.0 => 3,
        () => (3 - size.log10().floor() as i32).clamp(3, 12) as usize,
    };
    format!("{value:.decimals$}")
}

/// Formats a figure with its interval, or a dash.
pub fn format_estimate(estimate: Option<&Estimate>, scale: f64, unit: &str) -> String {
    let Some(estimate) = estimate else { return "\u{2013}".into() };
    let value = format_significant(estimate.value * scale);
    match estimate.interval {
        Some(it) => format!(
            "{value}{unit} [{} .. {}]",
            format_significant(it.low * scale),
            format_significant(it.high * scale)
        ),
        None => format!("{value}{unit}"),
    }
}

/// Formats a figure per watt or per joule in a legible unit of its own.
pub fn format_inverse(estimate: Option<&Estimate>, base: &str) -> String {
    let unit = InverseUnit::of(estimate.iter().map(|figure| figure.value));
    format_estimate(estimate, unit.factor, &format!(" {}", unit.name("1", base)))
}

/// Returns the display name of a quantity: "energy, J".
pub fn quantity_label(name: &str) -> String {
    let (words, unit) = match name.rsplit_once('_') {
        Some((words, "j")) => (words, ", J"),
        Some((words, "w")) => (words, ", W"),
        Some((words, "s")) => (words, ", s"),
        _ => (name, ""),
    };
    format!("{}{unit}", words.replace('_', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_significant_writes_four_digits() {
        let all = [
            (0.0, "0"),
            (0.001234, "0.001234"),
            (0.5, "0.5000"),
            (12.345, "12.35"),
            (123.45, "123.5"),
            (99.9999, "100.0"),
            (0.99999, "1.000"),
            (12345.6, "12346"),
            (-0.0, "0"),
            (-1e-13, "0"),
            (-0.5, "-0.5000"),
            (f64::INFINITY, "\u{221e}"),
        ];
        for (value, text) in all {
            assert_eq!(format_significant(value), text);
        }
        assert_eq!(format_estimate(None, 1.0, " J"), "\u{2013}");
        assert_eq!(
            (quantity_label("between_tokens_s"), quantity_label("tokens_out")),
            ("between tokens, s".into(), "tokens out".into())
        );
    }
}
