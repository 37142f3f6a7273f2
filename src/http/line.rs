//! Lines out of bytes that come in any pieces.
//!
//! Owns the rest of a line whose end has not come. A line ends with LF or CRLF, wherever the pieces are cut: between CR
//! and LF, inside a character of several bytes, after every byte. A line longer than the limit is given without its
//! middle, as [`Line::Long`], so that a sender cannot fill the memory. Lone CRs, which the standard of server-sent
//! events also takes for ends, are sent by no inference server and stay inside their line.

use memchr::memchr;

/// One line, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// The line.
    Whole(&'a [u8]),
    /// A line over the limit: its beginning.
    Long(&'a [u8]),
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
    most: usize,
    /// The rest has been longer than the limit; what follows up to the end of the line is passed over.
    over: bool,
}

impl Lines {
    /// Lines of at most `most` bytes.
    pub fn new(most: usize) -> Self {
        Lines { rest: Vec::new(), most, over: false }
    }

    /// Gives every line that `piece` completes. Lines that lie within one piece are not copied.
    pub fn feed(&mut self, mut piece: &[u8], mut each: impl FnMut(Line<'_>)) {
        while let Some(end) = memchr(b'\n', piece) {
            let (line, next) =
                (piece.get(..end).unwrap_or_default(), piece.get(end + 1..).unwrap_or_default());
            if self.rest.is_empty() && !self.over && line.len() <= self.most {
                each(Line::Whole(trimmed(line)));
            } else {
                self.keep(line);
                let whole = trimmed(&self.rest);
                each(if self.over { Line::Long(whole) } else { Line::Whole(whole) });
                self.rest.clear();
                // One long line must not cost its memory for the rest of the stream.
                self.rest.shrink_to(1024);
                self.over = false;
            }
            piece = next;
        }
        self.keep(piece);
    }

    /// Whether the bytes so far end with a line's end, or there were none.
    pub fn at_start(&self) -> bool {
        self.rest.is_empty() && !self.over
    }

    /// What came after the last line's end.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty() && !std::mem::take(&mut self.over)).then_some(rest)
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = self.most.saturating_sub(self.rest.len());
        self.over |= piece.len() > room;
        self.rest.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
    }
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Cut = Vec<(bool, Vec<u8>)>;

    fn cut(text: &[u8], most: usize, at: impl Fn(usize) -> usize) -> (Cut, Option<Vec<u8>>) {
        let (mut lines, mut out, mut from) = (Lines::new(most), Vec::new(), 0);
        while from < text.len() {
            let to = (from + at(from)).min(text.len());
            lines.feed(&text[from..to], |line| match line {
                Line::Whole(line) => out.push((true, line.to_vec())),
                Line::Long(line) => out.push((false, line.to_vec())),
            });
            from = to;
        }
        (out, lines.finish())
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_are_cut() {
        let text = "data: Wärme 熱🔥\r\n\r\n: note\ndata:x\r\r\n\nrest 熱".as_bytes();
        let whole = cut(text, 64, |_| text.len());
        assert_eq!(whole.0.len(), 5);
        assert_eq!(whole.0[0].1, "data: Wärme 熱🔥".as_bytes());
        assert_eq!(whole.0[3].1, b"data:x\r");
        assert_eq!(whole.1.as_deref(), Some("rest 熱".as_bytes()));
        for size in 1..text.len() {
            assert_eq!(cut(text, 64, |_| size), whole, "pieces of {size}");
        }
    }

    #[test]
    fn a_line_over_the_limit_is_cut_off_and_the_next_is_not() {
        for size in [1, 3, 100] {
            let (lines, rest) = cut(b"0123456789abcdef\nnext\n", 8, |_| size);
            assert_eq!(lines, [(false, b"01234567".to_vec()), (true, b"next".to_vec())], "pieces of {size}");
            assert_eq!(rest, None);
        }
        assert_eq!(cut(b"0123456789", 8, |_| 4).1, None);
    }
}
