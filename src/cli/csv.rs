//! Cells of comma-separated values (RFC 4180).
//!
//! Owns the quoting. A cell holds no control or format character: such a file is looked at on terminals as well.

use super::terminal::printable;

/// A text as a cell; one that a spreadsheet would take for a formula is kept from it.
pub fn escape_cell(text: &str) -> String {
    let text = printable(text);
    let is_formula = text.starts_with(['=', '+', '-', '@']);
    let text = if is_formula { format!("'{text}") } else { text };
    if text.contains(['"', ',']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// A count of millionths as a number with six places.
pub fn format_millionths(count: u64) -> String {
    format!("{}.{:06}", count / 1_000_000, count % 1_000_000)
}

/// A count of thousandths as a number with three places.
pub fn format_thousandths(count: u64) -> String {
    format!("{}.{:03}", count / 1000, count % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_quoted_where_it_must_be() {
        assert_eq!(escape_cell("plain"), "plain");
        assert_eq!(escape_cell("a \"b\", c"), "\"a \"\"b\"\", c\"");
        assert_eq!(escape_cell("=1+1"), "'=1+1");
        assert_eq!(escape_cell("a\n\u{202e}b"), "a\\n\\u{202e}b");
    }

    #[test]
    fn a_number_keeps_its_places() {
        assert_eq!(
            (format_millionths(12_000_034), format_thousandths(5)),
            ("12.000034".into(), "0.005".into())
        );
    }
}
