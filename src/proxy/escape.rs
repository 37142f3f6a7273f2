//! Text from elsewhere (errors, the daemon's words) where the proxy itself writes it: headers, bodies, log lines.
//!
//! Owns the one form: printable ASCII, everything else as a visible escape. A control, bidi or format character could
//! otherwise end a line, move a cursor or reverse what a reader sees.

/// `text` with every character beyond printable ASCII written as in a Rust string: `\n`, `\u{202e}`.
pub fn escape_unprintable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            ' '..='~' => out.push(character),
            _ => out.extend(character.escape_default()),
        }
    }
    out
}

/// Where the proxy's lines go.
#[derive(Debug, Clone, Copy)]
pub struct LogSink(fn(&str));

impl LogSink {
    /// Lines go to `write`.
    pub fn new(write: fn(&str)) -> Self {
        LogSink(write)
    }

    /// Writes one line, whatever the text contains.
    pub fn write_line(self, text: &str) {
        (self.0)(&escape_unprintable(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bidi_and_format_characters_are_escaped() {
        assert_eq!(escape_unprintable("plain \"text\" \\ ~"), "plain \"text\" \\ ~");
        let ranges = [0..0x20, 0x7f..0xa0, 0x202a..0x202f, 0x2066..0x206a, 0x200b..0x2010, 0xfeff..0xff00];
        for character in ranges.into_iter().flatten().filter_map(char::from_u32) {
            let escaped = escape_unprintable(&format!("a{character}b"));
            assert!(
                escaped.len() > 3 && escaped.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                "{escaped}"
            );
        }
        assert_eq!(escape_unprintable("a\u{1b}[2J\n\u{202e}é"), r"a\u{1b}[2J\n\u{202e}\u{e9}");
    }
}
