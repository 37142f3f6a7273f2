//! Numbers as people and models write them.
//!
//! Owns the reading of one number at the head of a text, and when two are the same. Invariant: what is read is finite. Never
//! looks for a number further on: where in a text it stands is its caller's business.

/// The number a text begins with, and what follows it. Thousands may be grouped by commas; a fraction of two whole numbers
/// counts by its value; a full stop that ends a sentence is none of it; a percent sign is left to what follows.
pub fn parse_number(text: &str) -> Option<(f64, &str)> {
    let (value, rest) = parse_decimal(text)?;
    if let Some(divisor) = rest.strip_prefix('/')
        && divisor.starts_with(|first: char| first.is_ascii_digit())
        && let Some((divisor, rest)) = parse_decimal(divisor)
        && divisor != 0.0
    {
        return Some((value / divisor, rest));
    }
    Some((value, rest))
}

fn parse_decimal(text: &str) -> Option<(f64, &str)> {
    let mut digits = String::new();
    let mut rest = text;
    if let Some(after) = rest.strip_prefix('-').or_else(|| rest.strip_prefix('\u{2212}')) {
        digits.push('-');
        rest = after;
    }
    let sign = digits.len();
    let take_digits = |rest: &mut &str, digits: &mut String| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        digits.push_str(&rest[..end]);
        *rest = &rest[end..];
    };
    take_digits(&mut rest, &mut digits);
    while (sign + 1..=sign + 3).contains(&digits.len()) || digits.len() > sign + 3 {
        let group = rest.strip_prefix(',').and_then(|after| after.get(..3));
        let Some(group) = group.filter(|group| group.bytes().all(|byte| byte.is_ascii_digit())) else {
            break;
        };
        if rest[4..].starts_with(|next: char| next.is_ascii_digit()) {
            break;
        }
        digits.push_str(group);
        rest = &rest[4..];
    }
    if let Some(after) =
        rest.strip_prefix('.').filter(|after| after.starts_with(|c: char| c.is_ascii_digit()))
    {
        digits.push('.');
        rest = after;
        take_digits(&mut rest, &mut digits);
    }
    if let Some(after) = rest.strip_prefix(['e', 'E']) {
        let unsigned = after.strip_prefix(['-', '+']).unwrap_or(after);
        if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
            digits.push('e');
            digits.push_str(&after[..after.len() - unsigned.len()]);
            rest = unsigned;
            take_digits(&mut rest, &mut digits);
        }
    }
    let value: f64 = digits.parse().ok()?;
    value.is_finite().then_some((value, rest))
}

/// Equal but for the last digit that a float keeps.
pub fn approximately_equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_leading_number_and_returns_the_rest() {
        for (text, value, rest) in [
            ("1,200.50 dollars", 1200.5, " dollars"),
            ("12.", 12.0, "."),
            ("1,20", 1.0, ",20"),
            ("\u{2212}1/2", -0.5, ""),
            ("3/0", 3.0, "/0"),
            ("1.2e3%", 1200.0, "%"),
            ("5em", 5.0, "em"),
        ] {
            assert_eq!(parse_number(text), Some((value, rest)), "{text}");
        }
        for none in ["", "-", "x1", "$5", "1e999"] {
            assert_eq!(parse_number(none), None, "{none}");
        }
        assert!(approximately_equal(0.1 + 0.2, 0.3) && !approximately_equal(1.0, 1.001));
    }
}
