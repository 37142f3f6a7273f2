//! The hash of a request's prompt: 64-bit FNV-1a over its texts, in hexadecimal.
//!
//! Covers the strings, numbers and literals under the top-level keys `messages` and `prompt`, in order and decoded, each
//! ended by 0xFF. So it depends on neither white space, escapes nor the names of keys, and a program that knows the
//! prompt computes it from other JSON text. It reads a body in chunks, and its memory is bounded.

use std::hash::Hasher;

use fnv::FnvHasher;

/// The attribute of an account that has the hash of its request's prompt.
pub const PROMPT_HASH_ATTRIBUTE: &str = "wattspan.prompt_hash";

/// The deepest nesting that is read; a deeper body has no hash.
const MAX_DEPTH: usize = 64;

/// The top-level keys that hold a prompt.
const PROMPT_KEYS: [&[u8]; 2] = [b"messages", b"prompt"];

/// The longest key that is compared.
const MAX_KEY_BYTES: usize = 16;

/// What the next string of an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    ObjectBeforeKey,
    ObjectBeforeValue,
}

/// Reads the JSON text of a request.
#[derive(Default)]
pub struct PromptHasher {
    containers: Vec<Container>,
    string: Option<StringReader>,
    /// In a number, `true`, `false` or `null` of the prompt.
    in_literal: bool,
    key: Vec<u8>,
    is_prompt: bool,
    has_prompt: bool,
    is_too_deep: bool,
    hasher: FnvHasher,
}

/// A string that is being read.
#[derive(Debug)]
struct StringReader {
    is_key: bool,
    escape: Escape,
    /// The first half of a surrogate pair.
    high_surrogate: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Escape {
    None,
    Backslash,
    /// The digits that were read, and their value.
    Unicode(u8, u32),
}

impl PromptHasher {
    /// Reads the next chunk.
    pub fn feed(&mut self, chunk: &[u8]) {
        if self.is_too_deep {
            return;
        }
        for byte in chunk {
            match &mut self.string {
                Some(_) => self.read_string_byte(*byte),
                None => self.read_byte(*byte),
            }
        }
    }

    /// The hash of the prompt that was read so far; `None` if there was none.
    pub fn finish(&self) -> Option<String> {
        (self.has_prompt && !self.is_too_deep).then(|| format!("{:016x}", self.hasher.finish()))
    }

    fn read_byte(&mut self, byte: u8) {
        if self.in_literal && matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n') {
            self.in_literal = false;
            self.hasher.write(&[0xFF]);
        }
        match byte {
            b'"' => {
                let is_key = self.containers.last() == Some(&Container::ObjectBeforeKey);
                if is_key && self.containers.len() == 1 {
                    self.key.clear();
                }
                self.string = Some(StringReader { is_key, escape: Escape::None, high_surrogate: None });
            }
            b'{' => self.open(Container::ObjectBeforeKey),
            b'[' => self.open(Container::Array),
            b'}' | b']' => {
                self.containers.pop();
            }
            b':' => {
                if let Some(last @ Container::ObjectBeforeKey) = self.containers.last_mut() {
                    *last = Container::ObjectBeforeValue;
                }
                if self.containers.len() == 1 {
                    self.is_prompt = PROMPT_KEYS.contains(&self.key.as_slice());
                    self.has_prompt |= self.is_prompt;
                }
            }
            b',' => {
                if let Some(last @ Container::ObjectBeforeValue) = self.containers.last_mut() {
                    *last = Container::ObjectBeforeKey;
                }
                self.is_prompt &= self.containers.len() > 1;
            }
            byte if !byte.is_ascii_whitespace() && self.is_prompt => {
                self.in_literal = true;
                self.hasher.write(&[byte]);
            }
            _ => {}
        }
    }

    fn open(&mut self, container: Container) {
        self.is_too_deep |= self.containers.len() >= MAX_DEPTH;
        if !self.is_too_deep {
            self.containers.push(container);
        }
    }

    fn read_string_byte(&mut self, byte: u8) {
        let Some(string) = &mut self.string else { return };
        let mut decoded = [0; 4];
        let text: &[u8] = match string.escape {
            Escape::None if byte == b'"' => return self.end_string(),
            Escape::None if byte == b'\\' => {
                string.escape = Escape::Backslash;
                return;
            }
            Escape::None => &[byte],
            Escape::Backslash if byte == b'u' => {
                string.escape = Escape::Unicode(0, 0);
                return;
            }
            Escape::Backslash => {
                string.escape = Escape::None;
                match byte {
                    b'n' => b"\n",
                    b't' => b"\t",
                    b'r' => b"\r",
                    b'b' => &[8],
                    b'f' => &[12],
                    _ => &[byte],
                }
            }
            Escape::Unicode(digits, value) => {
                let value = value << 4 | char::from(byte).to_digit(16).unwrap_or(0);
                if digits < 3 {
                    string.escape = Escape::Unicode(digits + 1, value);
                    return;
                }
                string.escape = Escape::None;
                match (string.high_surrogate.take(), value) {
                    (_, 0xD800..=0xDBFF) => {
                        string.high_surrogate = Some(value);
                        return;
                    }
                    (Some(high), 0xDC00..=0xDFFF) => {
                        let code = 0x1_0000 + ((high - 0xD800) << 10 | (value - 0xDC00));
                        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                    }
                    _ => char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER),
                }
                .encode_utf8(&mut decoded)
                .as_bytes()
            }
        };
        if string.is_key {
            if self.containers.len() == 1 && self.key.len() < MAX_KEY_BYTES {
                self.key.extend_from_slice(text);
            }
        } else if self.is_prompt {
            self.hasher.write(text);
        }
    }

    fn end_string(&mut self) {
        let is_key = self.string.take().is_some_and(|string| string.is_key);
        if self.is_prompt && !is_key {
            self.hasher.write(&[0xFF]);
        }
    }
}

/// The hash of the prompt in the whole JSON text of a request.
pub fn prompt_hash(request: &[u8]) -> Option<String> {
    let mut hasher = PromptHasher::default();
    hasher.feed(request);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn hash(text: &str) -> Option<String> {
        prompt_hash(text.as_bytes())
    }

    #[test]
    fn the_hash_is_that_of_the_texts() {
        let mut expected = FnvHasher::default();
        expected.write(b"user\xFFHi \xC3\xA4 \xF0\x9F\x98\x80 \"x\"\n\xFF");
        let expected = Some(format!("{:016x}", expected.finish()));
        let plain = r#"{"model":"m","messages":[{"role":"user","content":"Hi ä 😀 \"x\"\n"}],"stop":["a"]}"#;
        let escaped = r#"{ "messages" : [ { "role" : "user" , "content" : "\u0048i \u00e4 \ud83d\ude00 \u0022x\"\u000a" } ] , "seed":7}"#;
        assert_eq!(hash(plain), expected);
        assert_eq!(hash(escaped), expected);
    }

    #[test]
    fn only_the_prompt_counts() {
        let of = |text: &str| hash(text).unwrap();
        assert_eq!(of(r#"{"prompt":"a","max_tokens":5}"#), of(r#"{"temperature":0.5,"prompt": "a"}"#));
        assert_ne!(of(r#"{"prompt":"a"}"#), of(r#"{"prompt":"b"}"#));
        assert_ne!(of(r#"{"prompt":["a","b"]}"#), of(r#"{"prompt":["ab"]}"#));
        assert_ne!(of(r#"{"prompt":[1,23]}"#), of(r#"{"prompt":[12,3]}"#));
        assert_eq!(hash(r#"{"input":"a","x":{"prompt":"b"}}"#), None, "a nested key is no prompt");
        for text in ["", "null", "[1]", "\"prompt\"", "}}}]", "{\"a\":"] {
            assert_eq!(hash(text), None, "{text}");
        }
        let deep = format!("{{\"prompt\":{}", "[".repeat(100_000));
        assert_eq!(hash(&deep), None);
    }

    proptest! {
        #[test]
        fn chunks_and_serializers_do_not_change_it(text in any::<String>(), at in any::<prop::sample::Index>()) {
            let body = json!({"messages": [{"role": "user", "content": text}], "n": 1}).to_string();
            let ascii: String = body.chars().flat_map(|c| match c.is_ascii() {
                true => vec![c],
                false => {
                    let units = c.encode_utf16(&mut [0; 2]).to_vec();
                    units.iter().flat_map(|unit| format!("\\u{unit:04x}").chars().collect::<Vec<_>>()).collect()
                }
            }).collect();
            let cut = at.index(body.len());
            let mut hasher = PromptHasher::default();
            hasher.feed(&body.as_bytes()[..cut]);
            hasher.feed(&body.as_bytes()[cut..]);
            prop_assert_eq!(hasher.finish(), hash(&body));
            prop_assert_eq!(hash(&ascii), hash(&body));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = prompt_hash(&bytes);
        }
    }
}
