//! Writes to standard output and standard error.
//!
//! Invariant: no control or format character of a name, a model or a server reaches a terminal, except line breaks and the
//! colours of [`Terminal::paint`]. `tests/architecture.rs` checks that no other file of the command line writes there.

use std::io::{self, IsTerminal, Write, stderr, stdin, stdout};

use serde::Serialize;
use wattspan_system::escape;

use super::exit_status::CliError;
use super::terminal::{Terminal, printable};

/// Writes human-readable text to standard output.
pub fn print_text(text: &str) -> Result<(), CliError> {
    Ok(write_text(&mut stdout().lock(), text, Terminal::of(&stdout()))?)
}

/// Writes human-readable text to standard error.
pub fn eprint_text(text: &str) -> Result<(), CliError> {
    Ok(write_text(&mut stderr().lock(), text, Terminal::of(&stderr()))?)
}

/// Whether the user sees a question on standard error and can answer it.
pub fn can_ask() -> bool {
    stdin().is_terminal() && stderr().is_terminal()
}

/// Writes a value as one line of JSON to standard output.
pub fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    print_bytes(to_json_line(value)?.as_bytes())
}

/// Writes a value as indented JSON to standard output.
pub fn print_json_pretty(value: &impl Serialize) -> Result<(), CliError> {
    print_bytes((escape::printable_json(&serde_json::to_string_pretty(value)?) + "\n").as_bytes())
}

/// Serializes a value as one line of JSON, with control and format characters escaped: it may go to a terminal.
pub fn to_json_line(value: &impl Serialize) -> Result<String, CliError> {
    Ok(escape::printable_json(&serde_json::to_string(value)?) + "\n")
}

/// Writes bytes to standard output unescaped: completions, pages, CSV with escaped cells.
pub fn print_bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Writes a message to standard error. Continuation lines are indented, so that none looks like another message.
pub fn eprint_message(message: &str) {
    let lines: Vec<String> = message.lines().map(printable).collect();
    // A closed standard error cannot be reported anywhere.
    let _ = writeln!(stderr().lock(), "wattspan: {}", lines.join("\n  "));
}

/// Standard output for a full-screen view, whose text is printable already.
pub type TerminalWriter = io::Stdout;

/// See [`TerminalWriter`].
pub fn terminal_writer() -> TerminalWriter {
    stdout()
}

/// Writes human-readable text to a stream with the abilities of `terminal`.
pub fn write_text(out: &mut impl Write, text: &str, terminal: Terminal) -> io::Result<()> {
    out.write_all(escape_unstyled(text, terminal).as_bytes())?;
    out.flush()
}

fn escape_unstyled(text: &str, terminal: Terminal) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c| c != '\n' && escape::is_control_or_format(c)) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let length =
            terminal.colour_code_len(from).unwrap_or_else(|| from.chars().next().map_or(0, char::len_utf8));
        let (hidden, after) = from.split_at(length);
        if terminal.colour_code_len(from).is_some() {
            out.push_str(hidden)
        } else {
            out += &escape::printable(hidden)
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::TextStyle;

    #[test]
    fn only_line_breaks_and_known_colour_codes_reach_a_terminal() {
        let colour_terminal = Terminal { colour: true, width: None };
        let painted = colour_terminal.paint(TextStyle::Value, "1 J") + "\n";
        assert_eq!(escape_unstyled(&painted, colour_terminal), painted);
        assert_eq!(
            escape_unstyled("a\u{202e}b\x1b[2Jc\x1b]0;t\x07\r\n", colour_terminal),
            "a\\u{202e}b\\u{1b}[2Jc\\u{1b}]0;t\\u{7}\\r\n"
        );
        assert_eq!(escape_unstyled("\x1b[31mred", colour_terminal), "\\u{1b}[31mred");
        assert_eq!(escape_unstyled(&painted, Terminal::PLAIN), "\\u{1b}[1;36m1 J\\u{1b}[0m\n");
    }
}
