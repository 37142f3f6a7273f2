//! Cells of comma-separated values (RFC 4180).
//!
//! A cell contains no control or format character, since CSV is also viewed on terminals.

use super::terminal::printable;

/// Quotes text as a cell. Text that a spreadsheet would evaluate as a formula gets a leading apostrophe.
pub fn escape_cell(text: &str) -> String {
    let text = printable(text);
    let is_formula = text.starts_with(['=', '+', '-', '@']);
    let text = if is_formula { format!("'{text}") } else { text };
    if text.contains(['"', ',']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// Formats a count of millionths as a number with six decimal places.
pub fn format_millionths(count: u64) -> String {
    format!("{}.{:06}", count / 1_000_000, count % 1_000_000)
}

/// Formats a count of thousandths as a number with three decimal places.
pub fn format_thousandths(count: u64) -> String {
    format!("{}.{:03}", count / 1000, count % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_with_special_characters_are_quoted() {
        assert_eq!(escape_cell("plain"), "plain");
        assert_eq!(escape_cell("a \"b\", c"), "\"a \"\"b\"\", c\"");
        assert_eq!(escape_cell("=1+1"), "'=1+1");
        assert_eq!(escape_cell("a\n\u{202e}b"), "a\\n\\u{202e}b");
    }

    #[test]
    fn numbers_have_fixed_decimal_places() {
        assert_eq!(
            (format_millionths(12_000_034), format_thousandths(5)),
            ("12.000034".into(), "0.005".into())
        );
    }
}
