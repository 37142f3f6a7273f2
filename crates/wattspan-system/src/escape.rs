//! Escapes control and format characters of untrusted text.
//!
//! Such characters move the cursor, set colours, reorder a line (Unicode Bidirectional Algorithm, UAX 9) or are invisible,
//! so that one name can imitate another. All other characters are unchanged.

use std::fmt::Write;

/// Whether the character is a control or format character. The joiners U+200C and U+200D are excluded: Persian, Indic
/// scripts and emoji need them, and they reorder nothing.
pub fn is_control_or_format(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Escapes each control or format character as `\n`, `\r`, `\t` or `\u{202e}`; the result is one line.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c if is_control_or_format(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Like [`printable`], but keeps line breaks.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// `text` with every character beyond printable ASCII written as in a Rust string: `\n`, `\u{202e}`.
pub fn printable_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            ' '..='~' => out.push(character),
            _ => out.extend(character.escape_default()),
        }
    }
    out
}

/// Escapes each control or format character of a JSON document as `\u202e`, which keeps its meaning. Line breaks between
/// values stay; those in strings are already escaped.
pub fn printable_json(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        if c == '\n' || !is_control_or_format(c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_bidi_characters_are_escaped_and_other_scripts_are_not() {
        let control_codes = (0..0x20).chain(0x7f..0xa0).chain([0x200e, 0x200f]).chain(0x202a..=0x202e);
        for code in control_codes.chain(0x2066..=0x2069).chain([0x61c, 0xfeff, 0xe0041]) {
            let c = char::from_u32(code).unwrap();
            let escaped = printable(&format!("a{c}b"));
            assert!(escaped.starts_with("a\\") && escaped.ends_with('b'), "{escaped:?}");
            assert!(!escaped.chars().any(is_control_or_format), "{escaped:?}");
        }
        assert_eq!(printable("a\u{202e}b\nc\u{1b}[2J"), "a\\u{202e}b\\nc\\u{1b}[2J");
        for text in ["Wärme 熱 🔥", "می\u{200c}خواهم", "👩\u{200d}🔬", "שלום"] {
            assert_eq!(printable(text), text);
        }
    }

    #[test]
    fn an_escaped_json_document_parses_to_the_same_value() {
        let value = serde_json::json!({ "\u{202e}a": "\u{7f}\u{9b}\u{e0041}\n\u{1b}é" });
        let escaped = printable_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!escaped.chars().any(|c| c != '\n' && is_control_or_format(c)), "{escaped:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }

    #[test]
    fn printable_ascii_escapes_all_but_printable_ascii() {
        assert_eq!(printable_ascii("plain \"text\" \\ ~"), "plain \"text\" \\ ~");
        let ranges = [0..0x20, 0x7f..0xa0, 0x202a..0x202f, 0x2066..0x206a, 0x200b..0x2010, 0xfeff..0xff00];
        for character in ranges.into_iter().flatten().filter_map(char::from_u32) {
            let escaped = printable_ascii(&format!("a{character}b"));
            assert!(
                escaped.len() > 3 && escaped.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                "{escaped}"
            );
        }
        assert_eq!(printable_ascii("a\u{1b}[2J\n\u{202e}é"), r"a\u{1b}[2J\n\u{202e}\u{e9}");
    }
}
