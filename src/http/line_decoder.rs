//! Decodes lines from a byte stream that comes in chunks of any size.
//!
//! Owns the rest of a line whose end has not come. A line ends with LF or CRLF, wherever the chunks are cut: between
//! CR and LF, inside a character of several bytes, after every byte. A line longer than the limit is given
//! without its rest, as [`DecodedLine::Truncated`], so that a sender cannot fill the memory. Lone CRs, which the standard
//! of server-sent events also takes for ends, are sent by no inference server and stay inside their line.

use memchr::memchr;

/// One line, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedLine<'a> {
    /// The line.
    Complete(&'a [u8]),
    /// A line over the limit: its beginning.
    Truncated(&'a [u8]),
}

/// Decodes lines from a byte stream.
#[derive(Debug, Default)]
pub struct LineDecoder {
    partial: Vec<u8>,
    max_bytes: usize,
    /// The rest has been longer than the limit; what follows up to the end of the line is passed over.
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
                // One long line must not cost its memory for the rest of the stream.
                self.partial.shrink_to(1024);
                self.overflowed = false;
            }
            chunk = next;
        }
        self.append_partial(chunk);
    }

    /// Whether the bytes so far end with a line's end, or there were none.
    pub fn is_at_line_start(&self) -> bool {
        self.partial.is_empty() && !self.overflowed
    }

    /// What came after the last line's end.
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
