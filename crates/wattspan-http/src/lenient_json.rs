//! JSON as some servers write it: with `NaN`, and with a character cut in two over two messages.
//!
//! Python's `json` writes NaN and infinities as words, and servers that cut text by UTF-16 units write the halves of an
//! emoji as lone surrogates (`"\ud83d"`, then `"\ude00"`), which no string can contain. Invariant: only text that is not
//! valid JSON is changed, and the halves are joined again by [`join_halves`].

use serde_json::Value;

/// Surrogates are kept as characters of the private plane 16, which no model writes.
const FIRST_HALF: u32 = 0x10_f000;

/// Parses a JSON value.
///
/// # Errors
/// The text is no JSON, also with these forms accepted.
pub fn parse(data: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(data).or_else(|error| {
        let repaired = repair(data).ok_or(error)?;
        serde_json::from_slice(&repaired)
    })
}

/// The text with `null` for NaN and infinities, and a private character for each lone surrogate; `None` if it has none.
pub fn repair(data: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len());
    let (mut at, mut in_string, mut changed) = (0, false, false);
    while let Some(byte) = data.get(at) {
        let rest = &data[at..];
        let (taken, written): (usize, &[u8]) = match (in_string, byte) {
            (_, b'"') => {
                in_string = !in_string;
                (1, b"\"")
            }
            (true, b'\\') => match lone_surrogate(rest) {
                Some(half) => {
                    let mut buffer = [0; 4];
                    out.extend_from_slice(half.encode_utf8(&mut buffer).as_bytes());
                    changed = true;
                    (6, b"")
                }
                None if surrogate(rest).is_some() => (12, &rest[..12]),
                None => (2, &rest[..rest.len().min(2)]),
            },
            (false, b'N' | b'I' | b'-') => match number_word(rest) {
                Some(length) => {
                    changed = true;
                    (length, b"null")
                }
                None => (1, &rest[..1]),
            },
            _ => (1, &rest[..1]),
        };
        out.extend_from_slice(written);
        at += taken;
    }
    changed.then_some(out)
}

fn number_word(rest: &[u8]) -> Option<usize> {
    ["NaN", "-Infinity", "Infinity"]
        .iter()
        .find(|word| rest.starts_with(word.as_bytes()))
        .map(|word| word.len())
}

/// The surrogate of an escape `\ud83d` at the begin of the text.
fn surrogate(rest: &[u8]) -> Option<u32> {
    let digits = rest.strip_prefix(b"\\u")?.get(..4)?;
    let unit = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (0xd800..0xe000).contains(&unit).then_some(unit)
}

/// The private character for a surrogate at the begin of the text that is not followed or preceded by its other half.
fn lone_surrogate(rest: &[u8]) -> Option<char> {
    let unit = surrogate(rest)?;
    let is_pair = unit < 0xdc00 && rest.get(6..).and_then(surrogate).is_some_and(|next| next >= 0xdc00);
    if is_pair { None } else { char::from_u32(FIRST_HALF + (unit - 0xd800)) }
}

/// Joins the halves of characters that [`parse`] kept; a half alone becomes U+FFFD.
pub fn join_halves(text: &str) -> String {
    let half = |c: char| u32::from(c).checked_sub(FIRST_HALF).filter(|unit| *unit < 0x800);
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let Some(first) = half(character) else {
            out.push(character);
            continue;
        };
        let second =
            characters.peek().copied().and_then(half).filter(|second| first < 0x400 && *second >= 0x400);
        let joined = second.and_then(|second| char::from_u32(0x1_0000 + (first << 10) + (second - 0x400)));
        if joined.is_some() {
            characters.next();
        }
        out.push(joined.unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_character_are_joined_over_messages() {
        let texts = [r#"{"t":"a\ud83d"}"#, r#"{"t":"\ude00b"}"#, r#"{"t":"\ud83d\ude00 \ud83d."}"#];
        let text: String = texts
            .iter()
            .map(|text| parse(text.as_bytes()).unwrap()["t"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(join_halves(&text), "a\u{1f600}b\u{1f600} \u{fffd}.");
    }

    #[test]
    fn numbers_that_are_no_json_are_null_and_texts_stay() {
        let value = parse(br#"{"a":NaN,"b":[-Infinity,Infinity,-1],"c":"NaN \" -Infinity"}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": null, "b": [null, null, -1], "c": "NaN \" -Infinity"}));
        for text in ["{\"a\":Nan}", "{\"a\":\"\\ud8\"}", "<html>", "", "\"\\"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
