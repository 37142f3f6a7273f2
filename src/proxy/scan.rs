//! Values at the top level of a JSON object that comes in pieces and is never kept.
//!
//! Owns the place in the text: how deep, inside a string or not, which key. Keeps only the values of the keys it looks
//! for, each up to a limit, and where they began. Text that is no JSON gives nothing or nonsense of bounded size, never
//! a failure: what passes through is the receiver's business.

use memchr::memchr2;

/// Longest value that is kept, in bytes.
const MOST: usize = 4096;

/// Longest key that is compared.
const LONGEST_KEY: usize = 32;

/// A value that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its text, as it came; empty where it was longer than the limit.
    pub text: Vec<u8>,
    /// The byte of the whole text where it begins.
    pub at: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Outside the object, or before a key.
    Before,
    /// In a key of the top level.
    Key,
    /// Between a key and its colon.
    Colon,
    /// In a value of the top level.
    Value,
}

/// Looks for the values of some keys.
#[derive(Debug)]
pub struct Scan {
    keys: &'static [&'static str],
    found: Vec<Option<Found>>,
    place: Place,
    depth: u32,
    string: bool,
    escaped: bool,
    key: Vec<u8>,
    /// Which key's value is being read; `None` for one that nobody looks for.
    current: Option<usize>,
    value: Vec<u8>,
    value_at: Option<usize>,
    at: usize,
    /// Where the object's first byte after `{` lies.
    opened_at: Option<usize>,
}

impl Scan {
    /// Looks for these keys.
    pub fn new(keys: &'static [&'static str]) -> Self {
        Scan {
            keys,
            found: vec![None; keys.len()],
            place: Place::Before,
            depth: 0,
            string: false,
            escaped: false,
            key: Vec::new(),
            current: None,
            value: Vec::new(),
            value_at: None,
            at: 0,
            opened_at: None,
        }
    }

    /// The value of `key`, if it has come whole. Of several the last.
    pub fn get(&self, key: &str) -> Option<&Found> {
        let place = self.keys.iter().position(|known| *known == key)?;
        self.found.get(place)?.as_ref()
    }

    /// Where the first byte inside the object lies.
    pub fn opened_at(&self) -> Option<usize> {
        self.opened_at
    }

    /// Reads on.
    pub fn feed(&mut self, piece: &[u8]) {
        let mut from = 0;
        while let Some(&byte) = piece.get(from) {
            let rest = piece.get(from..).unwrap_or_default();
            // Prompts are long strings: what is inside one is skipped at the speed of memory.
            let skipped = match self.string && !self.escaped {
                true => memchr2(b'"', b'\\', rest).unwrap_or(rest.len()),
                false => 0,
            };
            if skipped > 0 {
                self.keep(rest.get(..skipped).unwrap_or_default());
                self.at += skipped;
                from += skipped;
                continue;
            }
            self.byte(byte);
            self.at += 1;
            from += 1;
        }
    }

    fn byte(&mut self, byte: u8) {
        if self.string {
            let ends = byte == b'"' && !self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            self.string = !ends;
            if !(ends && self.place == Place::Key) {
                self.keep(&[byte]);
            } else {
                self.place = Place::Colon;
            }
            return;
        }
        match byte {
            b'"' => self.open_string(),
            b'{' | b'[' => {
                self.keep(&[byte]);
                if self.depth == 0 && byte == b'{' && self.opened_at.is_none() {
                    self.opened_at = Some(self.at + 1);
                }
                self.depth = self.depth.saturating_add(1);
            }
            b'}' | b']' => {
                if self.depth == 1 {
                    self.value_ends();
                }
                self.depth = self.depth.saturating_sub(1);
                self.keep(&[byte]);
            }
            b',' if self.depth == 1 => self.value_ends(),
            b':' if self.depth == 1 && self.place == Place::Colon => {
                self.place = Place::Value;
                self.current = self.keys.iter().position(|key| key.as_bytes() == self.key);
                self.value.clear();
                self.value_at = None;
            }
            byte if byte.is_ascii_whitespace() && self.value_at.is_none() => {}
            byte => self.keep(&[byte]),
        }
    }

    fn open_string(&mut self) {
        self.string = true;
        if self.depth == 1 && self.place == Place::Before {
            self.place = Place::Key;
            self.key.clear();
        } else {
            self.keep(b"\"");
        }
    }

    fn value_ends(&mut self) {
        if let (Place::Value, Some(current), Some(at)) = (self.place, self.current, self.value_at)
            && let Some(found) = self.found.get_mut(current)
        {
            let fits = self.value.len() <= MOST;
            let text = self.value.trim_ascii_end().to_vec();
            *found = Some(Found { text: if fits { text } else { Vec::new() }, at });
        }
        self.place = Place::Before;
        self.current = None;
    }

    fn keep(&mut self, bytes: &[u8]) {
        match self.place {
            Place::Key if self.key.len() <= LONGEST_KEY => {
                let room = (LONGEST_KEY + 1).saturating_sub(self.key.len()).min(bytes.len());
                self.key.extend_from_slice(bytes.get(..room).unwrap_or_default());
            }
            Place::Value if self.current.is_some() => {
                self.value_at.get_or_insert(self.at);
                let room = (MOST + 1).saturating_sub(self.value.len()).min(bytes.len());
                self.value.extend_from_slice(bytes.get(..room).unwrap_or_default());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &["model", "usage", "stream"];

    fn scanned(text: &str, size: usize) -> Vec<Option<(String, usize)>> {
        let mut scan = Scan::new(KEYS);
        text.as_bytes().chunks(size).for_each(|piece| scan.feed(piece));
        let text = |found: &Found| (String::from_utf8(found.text.clone()).unwrap(), found.at);
        KEYS.iter().map(|key| scan.get(key).map(text)).collect()
    }

    #[test]
    fn values_of_the_top_level_are_found_however_the_text_is_cut() {
        let text = r#" {"messages":[{"model":"no","content":"a \"model\": \\\" {[ 熱"}], "model" : "m\"1" ,"usage":
            {"prompt_tokens":3,"more":{"usage":1}},"stream":true}"#;
        let whole = scanned(text, text.len());
        let value = |place: usize| whole[place].as_ref().unwrap();
        assert_eq!(value(0).0, r#""m\"1""#);
        assert_eq!(value(1).0, r#"{"prompt_tokens":3,"more":{"usage":1}}"#);
        assert_eq!(value(2).0, "true");
        for (found, _) in [(value(0), 0), (value(1), 1)] {
            assert!(text[found.1..].starts_with(&found.0), "{found:?}");
        }
        for size in 1..text.len() {
            assert_eq!(scanned(text, size), whole, "pieces of {size}");
        }
    }

    #[test]
    fn nonsense_and_giants_give_nothing_and_take_no_memory() {
        let giant = format!(r#"{{"model":"{}","usage":1}}"#, "x".repeat(100_000));
        assert_eq!(scanned(&giant, 1000)[0], Some((String::new(), 9)));
        assert_eq!(scanned(&giant, 1000)[1], Some(("1".into(), giant.len() - 2)));
        for text in ["", "null", "[1,2]", "\u{1f}\"\"\"\"\"", "}}}]]]", "{\"model\":", "{{{{", "data: hello"]
        {
            assert_eq!(scanned(text, 1)[0], None, "{text:?}");
        }
    }
}
