//! Text from elsewhere (errors, the daemon's words) where the proxy itself writes it: headers, bodies, log lines.
//!
//! Owns the one form: printable ASCII, everything else as a visible escape. A control, bidi or format character could
//! otherwise end a line, move a cursor or reverse what a reader sees.

/// `text` with every character beyond printable ASCII written as in a Rust string: `\n`, `\u{202e}`.
pub fn visible(text: &str) -> String {
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
pub struct Log(fn(&str));

impl Log {
    /// Lines go to `write`.
    pub fn new(write: fn(&str)) -> Self {
        Log(write)
    }

    /// Writes one line, whatever the text contains.
    pub fn line(self, text: &str) {
        (self.0)(&visible(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bidi_and_format_characters_are_written_visibly() {
        assert_eq!(visible("plain \"text\" \\ ~"), "plain \"text\" \\ ~");
        let ranges = [0..0x20, 0x7f..0xa0, 0x202a..0x202f, 0x2066..0x206a, 0x200b..0x2010, 0xfeff..0xff00];
        for character in ranges.into_iter().flatten().filter_map(char::from_u32) {
            let shown = visible(&format!("a{character}b"));
            assert!(shown.len() > 3 && shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown}");
        }
        assert_eq!(visible("a\u{1b}[2J\n\u{202e}é"), r"a\u{1b}[2J\n\u{202e}\u{e9}");
    }
}
