//! Shortens JSON that is too long to keep, while it arrives, so that what is left is JSON that can be parsed.
//!
//! Long strings are cut, and the rest of long arrays and of long inner objects is left out; numbers, short values and the
//! structure stay. A message of a megabyte whose model, usage and end matter keeps these in a few kilobytes: the 6,000
//! numbers of Ollama's `context`, the text repeated in `response.completed`. Invariant: the result does not depend on
//! chunk boundaries, and what is not longer than the limits is unchanged.

use memchr::memchr2;

/// The bytes of a string that are kept.
const MAX_STRING_BYTES: usize = 512;

/// The kept bytes of an array, or of an object inside another value of an object, after which no further element is kept.
const MAX_CONTAINER_BYTES: usize = 1024;

/// Objects at this depth and above it keep all their members: the message, and a response inside it.
const WHOLE_DEPTH: usize = 2;

/// Deeper JSON is not shortened further, but cut.
const MAX_DEPTH: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Container {
    is_array: bool,
    /// The length of the output at its beginning.
    start: usize,
}

/// Shortens one JSON text, with any text before it.
#[derive(Debug, Default)]
pub struct JsonShortener {
    out: Vec<u8>,
    max_bytes: usize,
    containers: Vec<Container>,
    /// The number of containers at which elements are kept again; `None` while they are kept.
    skipping: Option<usize>,
    in_string: bool,
    /// The bytes kept of the current string.
    string_bytes: usize,
    string_is_cut: bool,
    /// The bytes of an escape sequence that are still to come.
    escape_bytes: u8,
    after_backslash: bool,
    is_cut: bool,
}

impl JsonShortener {
    /// A shortener whose output has at most `max_bytes` bytes.
    pub fn new(max_bytes: usize) -> Self {
        JsonShortener { max_bytes, ..JsonShortener::default() }
    }

    /// Adds the next bytes.
    pub fn feed(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        while let [byte, after @ ..] = rest {
            // Cut strings are skipped at memory speed.
            if self.in_string && self.is_quiet() && !self.is_in_escape() {
                let skipped = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                if skipped > 0 {
                    rest = rest.get(skipped..).unwrap_or_default();
                    continue;
                }
            }
            if self.in_string {
                self.push_string_byte(*byte);
            } else {
                self.push_structure(*byte);
            }
            rest = after;
        }
    }

    /// Returns the shortened text and whether it is complete; it is cut where even the rest was longer than the limit.
    pub fn finish(self) -> (Vec<u8>, bool) {
        (self.out, !self.is_cut)
    }

    /// Whether nothing of the current position is kept.
    fn is_quiet(&self) -> bool {
        self.string_is_cut || self.skipping.is_some()
    }

    fn is_in_escape(&self) -> bool {
        self.after_backslash || self.escape_bytes > 0
    }

    fn push_string_byte(&mut self, byte: u8) {
        if self.is_in_escape() {
            self.escape_bytes = match (self.after_backslash, byte) {
                (true, b'u') => 4,
                _ => self.escape_bytes.saturating_sub(1),
            };
            self.after_backslash = false;
            return self.keep_string_byte(byte);
        }
        if byte == b'"' {
            self.in_string = false;
            if self.skipping.is_none() {
                self.keep(byte);
            }
            return;
        }
        // Cut only between characters: not inside an escape or a sequence of UTF-8.
        self.string_is_cut |= self.string_bytes >= MAX_STRING_BYTES && byte & 0xC0 != 0x80;
        self.after_backslash = byte == b'\\';
        self.keep_string_byte(byte);
    }

    fn keep_string_byte(&mut self, byte: u8) {
        if !self.is_quiet() {
            self.string_bytes += 1;
            self.keep(byte);
        }
    }

    fn push_structure(&mut self, byte: u8) {
        match byte {
            b'"' => (self.in_string, self.string_bytes, self.string_is_cut) = (true, 0, false),
            b'{' | b'[' => {
                self.is_cut |= self.containers.len() >= MAX_DEPTH;
                if self.containers.len() < MAX_DEPTH {
                    self.containers.push(Container { is_array: byte == b'[', start: self.out.len() });
                }
            }
            b'}' | b']' => {
                self.containers.pop();
                if self.skipping.is_some_and(|depth| self.containers.len() < depth) {
                    self.skipping = None;
                }
            }
            b',' if self.skipping.is_none() && self.is_container_full() => {
                self.skipping = Some(self.containers.len());
            }
            _ => {}
        }
        if self.skipping.is_none() {
            self.keep(byte);
        }
    }

    fn is_container_full(&self) -> bool {
        let depth = self.containers.len();
        self.containers.last().is_some_and(|container| {
            (container.is_array || depth > WHOLE_DEPTH)
                && self.out.len().saturating_sub(container.start) > MAX_CONTAINER_BYTES
        })
    }

    fn keep(&mut self, byte: u8) {
        if self.out.len() < self.max_bytes {
            self.out.push(byte);
        } else {
            self.is_cut = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BYTES: usize = 32 << 10;

    fn shorten(text: &str, size: usize) -> (String, bool) {
        let mut shortener = JsonShortener::new(MAX_BYTES);
        text.as_bytes().chunks(size).for_each(|chunk| shortener.feed(chunk));
        let (out, is_complete) = shortener.finish();
        (String::from_utf8(out).unwrap(), is_complete)
    }

    #[test]
    fn short_values_are_unchanged() {
        let text = "data: {\"a\":\"\\\"}],\\\\\", \"b\" : [1, {\"c\":[]}, \"\u{71b1}\\ud83d\"], \"d\":-1.5e3,\"e\":null}";
        for size in 1..text.len() {
            assert_eq!(shorten(text, size), (text.to_owned(), true), "chunks of {size}");
        }
    }

    #[test]
    fn long_strings_arrays_and_inner_objects_are_cut_and_what_follows_is_kept() {
        let numbers = (0..6000).map(|number| format!("{number}")).collect::<Vec<_>>().join(",");
        let members =
            (0..3000).map(|number| format!("\"k{number}\":{{\"x\":[{number}]}}")).collect::<Vec<_>>();
        let long = "w\u{e4}r\\\"\\u71b1\\\\".repeat(40_000);
        let text = format!(
            "data: {{\"context\":[{numbers}],\"response\":{{\"output\":[{{\"content\":[{{\"text\":\"{long}\"}}],\
             \"more\":{{{}}}}}],\"text\":\"{long}\",\"usage\":{{\"output_tokens\":7}}}},\"done\":true}}",
            members.join(",")
        );
        assert!(text.len() > 1_000_000);
        let (whole, is_complete) = shorten(&text, text.len());
        assert!(is_complete && whole.len() < 8 << 10, "{}", whole.len());
        for size in [1, 2, 3, 7, 64, 4096] {
            assert_eq!(shorten(&text, size), (whole.clone(), true), "chunks of {size}");
        }
        for part in
            ["\"context\":[0,1,2,", "\"usage\":{\"output_tokens\":7}},\"done\":true}", "\"k1\":{\"x\":[1]}"]
        {
            assert!(whole.contains(part), "{part}: {whole}");
        }
        // Every quote outside an escape and every bracket has its counterpart.
        let mut depth = 0;
        let (mut in_string, mut escaped) = (false, false);
        for byte in whole.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth -= 1,
                _ => {}
            }
        }
        assert_eq!((depth, in_string), (0, false));
    }

    #[test]
    fn memory_is_bounded_whatever_arrives() {
        let keys = (0..100_000).map(|number| format!("\"k{number}\":1,")).collect::<String>();
        for (text, is_complete) in [
            (format!("{{{keys}\"done\":true}}"), false),
            ("[".repeat(1_000_000), false),
            ("}".repeat(1_000_000), false),
            ("x".repeat(1_000_000), false),
            (format!("{{\"a\":\"{}", "\\".repeat(1_000_001)), true),
        ] {
            let (out, complete) = shorten(&text, 4096);
            assert!(out.len() <= MAX_BYTES && complete == is_complete, "{}", &text[..20]);
        }
    }
}
