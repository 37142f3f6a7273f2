//! A scanner for top-level values of a JSON object that arrives in chunks.
//!
//! It stores the position (depth, string, key) and the values of the requested keys with their offsets, each value up
//! to [`MAX_VALUE_BYTES`]. Invariant: memory is bounded, and invalid JSON is no error: it gives no value or a wrong
//! one, since the receiver of the text parses it.

use memchr::memchr2;

/// The longest value that is stored.
const MAX_VALUE_BYTES: usize = 4096;

/// The longest key that is compared.
const MAX_KEY_BYTES: usize = 32;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundValue {
    /// The JSON text of the value; empty where it exceeds [`MAX_VALUE_BYTES`].
    pub text: Vec<u8>,
    /// The offset of the value in the whole text, in bytes.
    pub offset: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScanState {
    /// Outside the object, or before a key.
    BeforeKey,
    /// In a top-level key.
    Key,
    /// Between a key and its colon.
    BeforeColon,
    /// In a top-level value.
    Value,
}

#[derive(Debug)]
pub struct JsonScanner {
    keys: &'static [&'static str],
    found: Vec<Option<FoundValue>>,
    state: ScanState,
    depth: u32,
    in_string: bool,
    escaped: bool,
    key: Vec<u8>,
    /// The index of the key whose value is being read; `None` for a key that was not requested.
    current_key: Option<usize>,
    value: Vec<u8>,
    value_start: Option<usize>,
    offset: usize,
    /// The offset of the first byte after the object's `{`.
    object_start: Option<usize>,
}

impl JsonScanner {
    pub fn new(keys: &'static [&'static str]) -> Self {
        JsonScanner {
            keys,
            found: vec![None; keys.len()],
            state: ScanState::BeforeKey,
            depth: 0,
            in_string: false,
            escaped: false,
            key: Vec::new(),
            current_key: None,
            value: Vec::new(),
            value_start: None,
            offset: 0,
            object_start: None,
        }
    }

    /// The value of `key` once it is complete; the last one of several.
    pub fn get(&self, key: &str) -> Option<&FoundValue> {
        let index = self.keys.iter().position(|known| *known == key)?;
        self.found.get(index)?.as_ref()
    }

    /// The offset of the first byte after the object's `{`.
    pub fn object_start(&self) -> Option<usize> {
        self.object_start
    }

    /// Scans the next chunk.
    pub fn feed(&mut self, chunk: &[u8]) {
        let mut from = 0;
        while let Some(&byte) = chunk.get(from) {
            let rest = chunk.get(from..).unwrap_or_default();
            // Prompts are long strings: memchr skips the inside of a string at memory speed.
            let skipped = match self.in_string && !self.escaped {
                true => memchr2(b'"', b'\\', rest).unwrap_or(rest.len()),
                false => 0,
            };
            if skipped > 0 {
                self.buffer(rest.get(..skipped).unwrap_or_default());
                self.offset += skipped;
                from += skipped;
                continue;
            }
            self.scan_byte(byte);
            self.offset += 1;
            from += 1;
        }
    }

    fn scan_byte(&mut self, byte: u8) {
        if self.in_string {
            return self.scan_string_byte(byte);
        }
        match byte {
            b'"' => self.open_string(),
            b'{' | b'[' => self.open_container(byte),
            b'}' | b']' => self.close_container(byte),
            b',' if self.depth == 1 => self.end_value(),
            b':' if self.depth == 1 && self.state == ScanState::BeforeColon => self.begin_value(),
            byte if byte.is_ascii_whitespace() && self.value_start.is_none() => {}
            byte => self.buffer(&[byte]),
        }
    }

    fn scan_string_byte(&mut self, byte: u8) {
        let is_end = byte == b'"' && !self.escaped;
        self.escaped = byte == b'\\' && !self.escaped;
        self.in_string = !is_end;
        if !(is_end && self.state == ScanState::Key) {
            self.buffer(&[byte]);
        } else {
            self.state = ScanState::BeforeColon;
        }
    }

    fn open_container(&mut self, byte: u8) {
        self.buffer(&[byte]);
        if self.depth == 0 && byte == b'{' && self.object_start.is_none() {
            self.object_start = Some(self.offset + 1);
        }
        self.depth = self.depth.saturating_add(1);
    }

    fn close_container(&mut self, byte: u8) {
        if self.depth == 1 {
            self.end_value();
        }
        self.depth = self.depth.saturating_sub(1);
        self.buffer(&[byte]);
    }

    fn begin_value(&mut self) {
        self.state = ScanState::Value;
        self.current_key = self.keys.iter().position(|key| key.as_bytes() == self.key);
        self.value.clear();
        self.value_start = None;
    }

    fn open_string(&mut self) {
        self.in_string = true;
        if self.depth == 1 && self.state == ScanState::BeforeKey {
            self.state = ScanState::Key;
            self.key.clear();
        } else {
            self.buffer(b"\"");
        }
    }

    fn end_value(&mut self) {
        if let (ScanState::Value, Some(current), Some(offset)) =
            (self.state, self.current_key, self.value_start)
            && let Some(found) = self.found.get_mut(current)
        {
            let fits = self.value.len() <= MAX_VALUE_BYTES;
            let text = self.value.trim_ascii_end().to_vec();
            *found = Some(FoundValue { text: if fits { text } else { Vec::new() }, offset });
        }
        self.state = ScanState::BeforeKey;
        self.current_key = None;
    }

    fn buffer(&mut self, bytes: &[u8]) {
        match self.state {
            ScanState::Key if self.key.len() <= MAX_KEY_BYTES => {
                let remaining = (MAX_KEY_BYTES + 1).saturating_sub(self.key.len()).min(bytes.len());
                self.key.extend_from_slice(bytes.get(..remaining).unwrap_or_default());
            }
            ScanState::Value if self.current_key.is_some() => {
                self.value_start.get_or_insert(self.offset);
                let remaining = (MAX_VALUE_BYTES + 1).saturating_sub(self.value.len()).min(bytes.len());
                self.value.extend_from_slice(bytes.get(..remaining).unwrap_or_default());
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
        let mut scanner = JsonScanner::new(KEYS);
        text.as_bytes().chunks(size).for_each(|chunk| scanner.feed(chunk));
        let text = |found: &FoundValue| (String::from_utf8(found.text.clone()).unwrap(), found.offset);
        KEYS.iter().map(|key| scanner.get(key).map(text)).collect()
    }

    #[test]
    fn top_level_values_do_not_depend_on_chunk_boundaries() {
        let text = r#" {"messages":[{"model":"no","content":"a \"model\": \\\" {[ 熱"}], "model" : "m\"1" ,"usage":
            {"prompt_tokens":3,"more":{"usage":1}},"stream":true}"#;
        let whole = scanned(text, text.len());
        let value = |index: usize| whole[index].as_ref().unwrap();
        assert_eq!(value(0).0, r#""m\"1""#);
        assert_eq!(value(1).0, r#"{"prompt_tokens":3,"more":{"usage":1}}"#);
        assert_eq!(value(2).0, "true");
        for (found, _) in [(value(0), 0), (value(1), 1)] {
            assert!(text[found.1..].starts_with(&found.0), "{found:?}");
        }
        for size in 1..text.len() {
            assert_eq!(scanned(text, size), whole, "chunks of {size}");
        }
    }

    #[test]
    fn invalid_and_oversized_input_is_bounded() {
        let oversized = format!(r#"{{"model":"{}","usage":1}}"#, "x".repeat(100_000));
        assert_eq!(scanned(&oversized, 1000)[0], Some((String::new(), 9)));
        assert_eq!(scanned(&oversized, 1000)[1], Some(("1".into(), oversized.len() - 2)));
        for text in ["", "null", "[1,2]", "\u{1f}\"\"\"\"\"", "}}}]]]", "{\"model\":", "{{{{", "data: hello"]
        {
            assert_eq!(scanned(text, 1)[0], None, "{text:?}");
        }
    }
}
