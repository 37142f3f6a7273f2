//! Colour support and line width of an output stream.
//!
//! Colours are used only on a terminal, with NO_COLOR unset or empty and TERM not "dumb". The width comes from COLUMNS or
//! the terminal; a pipe has none.

use std::env;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use unicode_width::UnicodeWidthStr;

use wattspan_system::escape;

/// Width of a terminal that does not report one.
const DEFAULT_COLUMNS: usize = 80;

/// Minimum width; a smaller reported width is ignored.
const MIN_COLUMNS: usize = 20;

/// Colour support and width of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    pub colour: bool,
    /// Columns of a line; `None`: no limit.
    pub width: Option<usize>,
}

/// The role of a text, which determines its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextStyle {
    Heading,
    /// The main figure.
    Value,
    Success,
    /// Estimated, stuck or unknown.
    Warning,
    /// Secondary information.
    Dim,
}

impl Terminal {
    /// No colours and no width limit: for files, pipes and tests.
    pub const PLAIN: Terminal = Terminal { colour: false, width: None };

    pub fn of(stream: &(impl AsFd + IsTerminal)) -> Self {
        let columns = env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        if !stream.is_terminal() {
            // COLUMNS applies to pipes too; without it a pipe has no limit.
            return Terminal { colour: false, width: columns.map(|columns: usize| columns.max(MIN_COLUMNS)) };
        }
        let colour_disabled = is_dumb() || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let reported_columns =
            || rustix::termios::tcgetwinsize(stream).ok().map(|size| usize::from(size.ws_col));
        let width =
            columns.or_else(reported_columns).filter(|&columns| columns > 0).unwrap_or(DEFAULT_COLUMNS);
        Terminal { colour: !colour_disabled, width: Some(width.max(MIN_COLUMNS)) }
    }

    /// Escapes `text` and colours it by `style` if the stream supports colours.
    pub fn paint(self, style: TextStyle, text: &str) -> String {
        let text = printable(text);
        if !self.colour || text.is_empty() {
            return text;
        }
        format!("{}{text}{ANSI_RESET}", style.ansi_code())
    }

    /// Length of the colour code of [`Self::paint`] at the start of `text`, if this stream supports colours.
    pub fn colour_code_len(self, text: &str) -> Option<usize> {
        let codes = TextStyle::ALL.map(TextStyle::ansi_code).into_iter().chain([ANSI_RESET]);
        codes.filter(|code| self.colour && text.starts_with(code)).map(str::len).next()
    }
}

/// Whether the terminal understands no escape sequences.
pub fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

const ANSI_RESET: &str = "\x1b[0m";

impl TextStyle {
    const ALL: [TextStyle; 5] =
        [TextStyle::Heading, TextStyle::Value, TextStyle::Success, TextStyle::Warning, TextStyle::Dim];

    const fn ansi_code(self) -> &'static str {
        match self {
            TextStyle::Heading => "\x1b[1m",
            TextStyle::Value => "\x1b[1;36m",
            TextStyle::Success => "\x1b[32m",
            TextStyle::Warning => "\x1b[33m",
            TextStyle::Dim => "\x1b[2m",
        }
    }
}

/// Escapes `text` and wraps it at spaces into lines of at most `width` columns; a longer word gets its own line.
pub fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let text = printable(text);
    let Some(width) = width else { return vec![text] };
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| display_width(line));
        if line > 0 && line + 1 + display_width(word) > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Display width of `text` in columns: wide characters take two, colours of [`Terminal::paint`] none.
pub fn display_width(text: &str) -> usize {
    let codes = TextStyle::ALL.map(TextStyle::ansi_code).into_iter().chain([ANSI_RESET]);
    let colours: usize = codes.map(|code| text.matches(code).count() * code.width()).sum();
    text.width() - colours
}

/// Pads `text` with trailing spaces to `width` columns.
pub fn pad_right(text: &str, width: usize) -> String {
    text.to_owned() + &" ".repeat(width.saturating_sub(display_width(text)))
}

/// Pads `text` with leading spaces to `width` columns.
pub fn pad_left(text: &str, width: usize) -> String {
    " ".repeat(width.saturating_sub(display_width(text))) + text
}

/// Escapes control and format characters, so that an untrusted name can neither move the cursor nor imitate another name.
pub fn printable(text: &str) -> String {
    escape::printable(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_codes_have_no_width() {
        let colour_terminal = Terminal { colour: true, width: None };
        let painted = colour_terminal.paint(TextStyle::Value, "12 J");
        assert!(painted.starts_with('\x1b'));
        assert_eq!(display_width(&painted), 4);
        assert_eq!(Terminal::PLAIN.paint(TextStyle::Value, "12 J"), "12 J");
    }

    #[test]
    fn a_wide_character_takes_two_columns() {
        assert_eq!((display_width("熱量"), display_width("é"), display_width("🔥 J")), (4, 1, 4));
        assert_eq!(pad_right("熱量", 6) + "|", "熱量  |");
        assert_eq!(pad_left("熱量", 6), "  熱量");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("one two three", Some(8)), ["one two", "three"]);
        assert_eq!(wrap("incomprehensibilities all", Some(8)), ["incomprehensibilities", "all"]);
        assert_eq!(wrap("one two three", None), ["one two three"]);
    }

    #[test]
    fn escape_sequences_in_names_are_escaped() {
        assert_eq!(printable("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
    }
}
