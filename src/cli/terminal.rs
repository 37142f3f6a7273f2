//! What an output stream can show: colours, and how wide a line may be.
//!
//! Owns the decision, taken once for each stream: colours only on a terminal, with NO_COLOR unset (or empty) and TERM
//! not "dumb"; a width from COLUMNS or the terminal itself, none when piped. Never writes, never reads keys.

use std::env;
use std::io::IsTerminal;
use std::os::fd::AsFd;

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

    /// `text` in the colour of `tone`, or as it is.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Head => "1",
            Tone::Figure => "1;36",
            Tone::Good => "32",
            Tone::Doubt => "33",
            Tone::Quiet => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// `text` broken at spaces into lines of at most `width` columns; one longer word stands alone.
pub fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![text.to_owned()] };
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

/// Columns that `text` takes, escape sequences of [`Terminal::paint`] left out.
pub fn columns(text: &str) -> usize {
    let mut escape = false;
    text.chars()
        .filter(|&c| {
            let shown = !escape && c != '\x1b';
            escape = c == '\x1b' || (escape && c != 'm');
            shown
        })
        .count()
}

/// `text` on one line and without control characters, so that a span's name from elsewhere cannot move the cursor or
/// colour a screen.
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        c if c.is_whitespace() => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
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
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("one two three", Some(8)), ["one two", "three"]);
        assert_eq!(wrap("incomprehensibilities all", Some(8)), ["incomprehensibilities", "all"]);
        assert_eq!(wrap("one two three", None), ["one two three"]);
    }

    #[test]
    fn a_name_from_elsewhere_cannot_send_escape_sequences() {
        assert_eq!(printable("a\x1b[2J\nb"), "a\u{fffd}[2J b");
    }
}
