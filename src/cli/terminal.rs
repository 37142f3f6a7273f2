//! What an output stream can show: colours, and how wide a line may be.
//!
//! Owns the decision, taken once for each stream: colours only on a terminal, with NO_COLOR unset (or empty) and TERM
//! not "dumb"; a width from COLUMNS or the terminal itself, none when piped. Never writes, never reads keys.

use std::env;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use unicode_width::UnicodeWidthStr;

use crate::escape;

/// Width of a terminal that does not tell its own.
const USUAL_COLUMNS: usize = 80;

/// Narrower than this no table is any use; a terminal that claims less is not believed.
const LEAST_COLUMNS: usize = 20;

/// What a stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Whether to send colours.
    pub colour: bool,
    /// Columns in a line; `None`: no limit, nobody is looking.
    pub width: Option<usize>,
}

/// What a piece of text is, from which its colour follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// A heading.
    Head,
    /// The figure one came for.
    Figure,
    /// All is well.
    Good,
    /// Look here: estimated, stuck, unknown.
    Doubt,
    /// Said for completeness.
    Quiet,
}

impl Terminal {
    /// No colours, no limit: for files, pipes and tests.
    pub const PLAIN: Terminal = Terminal { colour: false, width: None };

    /// What `stream` can show.
    pub fn of(stream: &(impl AsFd + IsTerminal)) -> Self {
        let columns = env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        if !stream.is_terminal() {
            // COLUMNS is a wish that holds for pipes too; without it there is no limit.
            return Terminal { colour: false, width: columns.map(|wide: usize| wide.max(LEAST_COLUMNS)) };
        }
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|term| term == "dumb");
        let told = || rustix::termios::tcgetwinsize(stream).ok().map(|size| usize::from(size.ws_col));
        let width = columns.or_else(told).filter(|&wide| wide > 0).unwrap_or(USUAL_COLUMNS);
        Terminal { colour: !refused, width: Some(width.max(LEAST_COLUMNS)) }
    }

    /// `text` in the colour of `tone`, or as it is; its hidden characters are made visible.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let text = printable(text);
        if !self.colour || text.is_empty() {
            return text;
        }
        format!("{}{text}{RESET}", tone.code())
    }

    /// How long the colour code is with which `text` begins, if it is one of ours and this stream shows colours.
    pub fn colour_at(self, text: &str) -> Option<usize> {
        let codes = Tone::ALL.map(Tone::code).into_iter().chain([RESET]);
        codes.filter(|code| self.colour && text.starts_with(code)).map(str::len).next()
    }
}

/// Ends a colour.
const RESET: &str = "\x1b[0m";

impl Tone {
    const ALL: [Tone; 5] = [Tone::Head, Tone::Figure, Tone::Good, Tone::Doubt, Tone::Quiet];

    const fn code(self) -> &'static str {
        match self {
            Tone::Head => "\x1b[1m",
            Tone::Figure => "\x1b[1;36m",
            Tone::Good => "\x1b[32m",
            Tone::Doubt => "\x1b[33m",
            Tone::Quiet => "\x1b[2m",
        }
    }
}

/// `text`, its hidden characters made visible, broken at spaces into lines of at most `width` columns; one longer word
/// stands alone.
pub fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let text = printable(text);
    let Some(width) = width else { return vec![text] };
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| columns(line));
        if line > 0 && line + 1 + columns(word) > width {
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

/// Columns that `text` takes on a terminal: wide characters take two, colours of [`Terminal::paint`] none.
pub fn columns(text: &str) -> usize {
    let codes = Tone::ALL.map(Tone::code).into_iter().chain([RESET]);
    let colours: usize = codes.map(|code| text.matches(code).count() * code.width()).sum();
    text.width() - colours
}

/// `text` and the space that fills `width` columns after it.
pub fn padded(text: &str, width: usize) -> String {
    text.to_owned() + &" ".repeat(width.saturating_sub(columns(text)))
}

/// The space that fills `width` columns before `text`, and the text.
pub fn padded_before(text: &str, width: usize) -> String {
    " ".repeat(width.saturating_sub(columns(text))) + text
}

/// `text` on one line, with control and format characters made visible, so that a name from elsewhere can neither move
/// the cursor nor look like another one.
pub fn printable(text: &str) -> String {
    escape::visible(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_takes_no_columns() {
        let bright = Terminal { colour: true, width: None };
        let painted = bright.paint(Tone::Figure, "12 J");
        assert!(painted.starts_with('\x1b'));
        assert_eq!(columns(&painted), 4);
        assert_eq!(Terminal::PLAIN.paint(Tone::Figure, "12 J"), "12 J");
    }

    #[test]
    fn a_wide_character_takes_two_columns() {
        assert_eq!((columns("熱量"), columns("é"), columns("🔥 J")), (4, 1, 4));
        assert_eq!(padded("熱量", 6) + "|", "熱量  |");
        assert_eq!(padded_before("熱量", 6), "  熱量");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("one two three", Some(8)), ["one two", "three"]);
        assert_eq!(wrap("incomprehensibilities all", Some(8)), ["incomprehensibilities", "all"]);
        assert_eq!(wrap("one two three", None), ["one two three"]);
    }

    #[test]
    fn a_name_from_elsewhere_cannot_send_escape_sequences() {
        assert_eq!(printable("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
    }
}
