//! Decodes lines from a byte stream that comes in chunks of any size.
//!
//! A line ends with LF or CRLF; chunks can end at any byte. A line over the limit is reported as
//! [`DecodedLine::Truncated`], so that a sender cannot exhaust memory. A lone CR, a line end in the standard of
//! server-sent events, stays in its line: no inference server sends it.

use memchr::memchr;

/// One line, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedLine<'a> {
    /// The whole line.
    Complete(&'a [u8]),
    /// The beginning of a line over the limit.
    Truncated(&'a [u8]),
}

/// Decodes lines from a byte stream.
#[derive(Debug, Default)]
pub struct LineDecoder {
    partial: Vec<u8>,
    max_bytes: usize,
    /// The line exceeds the limit; its rest is skipped.
    overflowed: bool,
}

impl LineDecoder {
    /// A decoder for lines of at most `max_bytes` bytes.
    pub fn new(max_bytes: usize) -> Self {
        LineDecoder { partial: Vec::new(), max_bytes, overflowed: false }
    }

    /// Calls `on_line` for every line that `chunk` completes. A line within one chunk is not copied.
    pub fn feed(&mut self, mut chunk: &[u8], mut on_line: impl FnMut(DecodedLine<'_>)) {
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, next) =
                (chunk.get(..end).unwrap_or_default(), chunk.get(end + 1..).unwrap_or_default());
            if self.partial.is_empty() && !self.overflowed && line.len() <= self.max_bytes {
                on_line(DecodedLine::Complete(trim_cr(line)));
            } else {
                self.append_partial(line);
                let whole = trim_cr(&self.partial);
                on_line(if self.overflowed {
                    DecodedLine::Truncated(whole)
                } else {
                    DecodedLine::Complete(whole)
                });
                self.partial.clear();
                // Release the memory of a long line.
                self.partial.shrink_to(1024);
                self.overflowed = false;
            }
            chunk = next;
        }
        self.append_partial(chunk);
    }

    /// Whether the bytes so far end with a line end, or there were none.
    pub fn is_at_line_start(&self) -> bool {
        self.partial.is_empty() && !self.overflowed
    }

    /// The bytes after the last line end.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        let partial = std::mem::take(&mut self.partial);
        (!partial.is_empty() && !std::mem::take(&mut self.overflowed)).then_some(partial)
    }

    fn append_partial(&mut self, chunk: &[u8]) {
        let remaining = self.max_bytes.saturating_sub(self.partial.len());
        self.overflowed |= chunk.len() > remaining;
        self.partial.extend_from_slice(chunk.get(..remaining.min(chunk.len())).unwrap_or_default());
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
    fn a_long_line_is_truncated_and_the_next_is_complete() {
        for size in [1, 3, 100] {
            let (lines, partial) = decode_in_chunks(b"0123456789abcdef\nnext\n", 8, |_| size);
            assert_eq!(lines, [(false, b"01234567".to_vec()), (true, b"next".to_vec())], "chunks of {size}");
            assert_eq!(partial, None);
        }
        assert_eq!(decode_in_chunks(b"0123456789", 8, |_| 4).1, None);
    }
}
