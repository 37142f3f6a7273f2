//! Decodes lines from a byte stream that comes in chunks of any size.
//!
//! A line ends with LF or CRLF; chunks can end at any byte. A line over the limit is shortened, if the decoder is one for
//! JSON, or reported as [`DecodedLine::Truncated`], so that a sender cannot exhaust memory. A lone CR, a line end in the standard of
//! server-sent events, stays in its line: no inference server sends it.

use memchr::memchr;

use super::message_buffer::MessageBuffer;

/// One line, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedLine<'a> {
    /// The whole line; shortened JSON where it exceeds the limit and the decoder shortens.
    Complete(&'a [u8]),
    /// The beginning of a line over the limit.
    Truncated(&'a [u8]),
}

/// Decodes lines from a byte stream.
#[derive(Debug, Default)]
pub struct LineDecoder {
    partial: MessageBuffer,
}

impl LineDecoder {
    /// A decoder for lines of at most `max_bytes` bytes.
    pub fn new(max_bytes: usize) -> Self {
        LineDecoder { partial: MessageBuffer::new(max_bytes) }
    }

    /// A decoder for JSON, which shortens lines over `max_bytes` bytes.
    pub fn shortening(max_bytes: usize) -> Self {
        LineDecoder { partial: MessageBuffer::shortening(max_bytes) }
    }

    /// Calls `on_line` for every line that `chunk` completes. A line within one chunk is not copied.
    pub fn feed(&mut self, mut chunk: &[u8], mut on_line: impl FnMut(DecodedLine<'_>)) {
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, next) =
                (chunk.get(..end).unwrap_or_default(), chunk.get(end + 1..).unwrap_or_default());
            if self.is_at_line_start() && line.len() <= self.partial.max_bytes() {
                on_line(DecodedLine::Complete(trim_cr(line)));
            } else {
                self.partial.append(line);
                on_line(match self.partial.end() {
                    (line, true) => DecodedLine::Complete(trim_cr(line)),
                    (line, false) => DecodedLine::Truncated(trim_cr(line)),
                });
                self.partial.clear();
            }
            chunk = next;
        }
        if !chunk.is_empty() {
            self.partial.append(chunk);
        }
    }

    /// Whether the bytes so far end with a line end, or there were none.
    pub fn is_at_line_start(&self) -> bool {
        self.partial.is_empty()
    }

    /// The bytes after the last line end.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        let (line, is_complete) = self.partial.end();
        let line = (is_complete && !line.is_empty()).then(|| line.to_vec());
        self.partial.clear();
        line
    }
}

fn trim_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Decoded = (Vec<(bool, Vec<u8>)>, Option<Vec<u8>>);

    fn decode_in_chunks(text: &[u8], max_bytes: usize, chunk_len: impl Fn(usize) -> usize) -> Decoded {
        let (mut decoder, mut out, mut from) = (LineDecoder::new(max_bytes), Vec::new(), 0);
        while from < text.len() {
            let to = (from + chunk_len(from)).min(text.len());
            decoder.feed(&text[from..to], |line| match line {
                DecodedLine::Complete(line) => out.push((true, line.to_vec())),
                DecodedLine::Truncated(line) => out.push((false, line.to_vec())),
            });
            from = to;
        }
        (out, decoder.finish())
    }

    #[test]
    fn lines_do_not_depend_on_chunk_boundaries() {
        let text = "data: Wärme 熱🔥\r\n\r\n: note\ndata:x\r\r\n\nrest 熱".as_bytes();
        let whole = decode_in_chunks(text, 64, |_| text.len());
        assert_eq!(whole.0.len(), 5);
        assert_eq!(whole.0[0].1, "data: Wärme 熱🔥".as_bytes());
        assert_eq!(whole.0[3].1, b"data:x\r");
        assert_eq!(whole.1.as_deref(), Some("rest 熱".as_bytes()));
        for size in 1..text.len() {
            assert_eq!(decode_in_chunks(text, 64, |_| size), whole, "chunks of {size}");
        }
    }

    #[test]
    fn a_long_line_of_json_is_shortened() {
        let numbers = "1,".repeat(4000);
        let text =
            format!("{{\"context\":[{numbers}1],\"done\":true}}\r\n{{\"a\":1}}\n{{\"b\":\"{numbers}\"}}");
        let decode = |size: usize| {
            let (mut decoder, mut lines) = (LineDecoder::shortening(2048), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                decoder.feed(chunk, |line| match line {
                    DecodedLine::Complete(line) => lines.push(String::from_utf8(line.to_vec()).unwrap()),
                    DecodedLine::Truncated(_) => panic!("truncated"),
                });
            }
            (lines, decoder.finish().map(|line| String::from_utf8(line).unwrap()))
        };
        let (lines, last) = decode(text.len());
        assert!(lines[0].len() < 2048 && lines[0].starts_with("{\"context\":[1,1,"), "{lines:?}");
        assert!(lines[0].ends_with("1],\"done\":true}") && lines[1] == "{\"a\":1}", "{lines:?}");
        assert!(last.as_ref().is_some_and(|last| last.len() < 2048 && last.ends_with("\"}")), "{last:?}");
        for size in [1, 3, 500, 2048] {
            assert_eq!(decode(size), (lines.clone(), last.clone()), "chunks of {size}");
        }
    }

    #[test]
    fn a_long_line_is_truncated_and_the_next_is_complete() {
        for size in [1, 3, 100] {
            let (lines, partial) = decode_in_chunks(b"0123456789abcdef\nnext\n", 8, |_| size);
            assert_eq!(lines, [(false, b"01234567".to_vec()), (true, b"next".to_vec())], "chunks of {size}");
            assert_eq!(partial, None);
        }
        assert_eq!(decode_in_chunks(b"0123456789", 8, |_| 4).1, None);
    }
}
