//! Inserts the energy into the last chunk of a stream that states usage (`--annotate usage` only).
//!
//! The stream is forwarded line by line, and the line with the last usage is held until the account arrives. Invariant:
//! every byte that arrived is forwarded in order; the energy is inserted between them.

use std::collections::VecDeque;

use bytes::Bytes;
use memchr::{memchr, memmem};

use wattspan_http::reply::{MessageReader, StreamPosition};

use super::json_scanner::JsonScanner;

/// A longer line is forwarded without a search. Ollama's last line has some 8 bytes for each token of its context.
const MAX_LINE_BYTES: usize = 1 << 20;

/// A line that is held until the energy is known.
#[derive(Debug, PartialEq, Eq)]
pub struct HeldLine {
    line: Vec<u8>,
    point: InsertionPoint,
}

/// The position in a JSON object where the energy is inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InsertionPoint {
    offset: usize,
    /// The position is inside a `usage` object; otherwise one is created.
    inside_usage: bool,
    /// No member follows in the object, so that no comma is needed.
    is_object_empty: bool,
}

/// Finds the line in a stream.
#[derive(Debug, Default)]
pub struct UsageInserter {
    line: Vec<u8>,
    /// The length of the beginning of `line` that has no line end.
    searched: usize,
    /// The current line is forwarded without a search: it is too long, or the energy was inserted already.
    is_passing_through: bool,
    is_done: bool,
    /// The last usage depends on the lines before it.
    messages: MessageReader,
}

impl InsertionPoint {
    /// Finds the position in `json`; with `create_usage` also in an object without `usage`.
    pub fn find(json: &[u8], create_usage: bool) -> Option<Self> {
        let mut scanner = JsonScanner::new(&["usage"]);
        scanner.feed(json);
        let (offset, inside_usage) = match scanner.get("usage") {
            Some(usage) if json.get(usage.offset) == Some(&b'{') => (usage.offset + 1, true),
            Some(_) => return None,
            None if create_usage => (scanner.object_start()?, false),
            None => return None,
        };
        let is_object_empty =
            json.get(offset..)?.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
        Some(InsertionPoint { offset, inside_usage, is_object_empty })
    }

    /// `text` with the energy inserted.
    pub fn insert(self, text: &[u8], energy: &str) -> Vec<u8> {
        let (before, after) = text.split_at(self.offset.min(text.len()));
        let energy = match self.inside_usage {
            true => format!("\"energy\":{energy}"),
            false => format!("\"usage\":{{\"energy\":{energy}}}"),
        };
        let comma = if self.is_object_empty { "" } else { "," };
        [before, energy.as_bytes(), comma.as_bytes(), after].concat()
    }
}

impl HeldLine {
    pub fn insert(self, energy: &str) -> Bytes {
        self.point.insert(&self.line, energy).into()
    }
}

impl UsageInserter {
    /// Moves the complete lines of `chunk` to `out`. Returns the line to hold, if it is among them; the lines after it
    /// stay until [`UsageInserter::flush`].
    pub fn feed(&mut self, chunk: &[u8], out: &mut VecDeque<Bytes>) -> Option<HeldLine> {
        self.line.extend_from_slice(chunk);
        let mut consumed = 0;
        let mut from = self.searched;
        while let Some(found) = memchr(b'\n', self.line.get(from..).unwrap_or_default()) {
            let end = from + found + 1;
            let line = self.line.get(consumed..end).unwrap_or_default();
            let point = if self.is_passing_through || self.is_done {
                None
            } else {
                find_in_line(line, &mut self.messages)
            };
            self.is_passing_through = false;
            if let Some(point) = point {
                push_chunk(out, self.line.drain(..consumed));
                let line = self.line.drain(..end - consumed).collect();
                (self.searched, self.is_done) = (0, true);
                return Some(HeldLine { line, point });
            }
            (consumed, from) = (end, end);
        }
        push_chunk(out, self.line.drain(..consumed));
        self.searched = self.line.len();
        if self.is_done || self.is_passing_through || self.line.len() > MAX_LINE_BYTES {
            self.is_passing_through = true;
            self.flush(out);
        }
        None
    }

    /// Moves the rest to `out`.
    pub fn flush(&mut self, out: &mut VecDeque<Bytes>) {
        self.searched = 0;
        push_chunk(out, self.line.drain(..));
    }
}

fn push_chunk(out: &mut VecDeque<Bytes>, bytes: std::vec::Drain<'_, u8>) {
    if bytes.len() > 0 {
        out.push_back(bytes.collect::<Vec<u8>>().into());
    }
}

/// The position in a line of a stream, if the line is the last that states usage.
fn find_in_line(line: &[u8], messages: &mut MessageReader) -> Option<InsertionPoint> {
    let json = line.strip_prefix(b"data:").unwrap_or(line);
    let offset = line.len() - json.len();
    let json = json.trim_ascii_end();
    let keywords = [&b"\"usage\""[..], b"\"done\"", b"\"choices\""];
    if keywords.iter().all(|word| memmem::find(json, word).is_none()) {
        return None;
    }
    let position = messages.read(b"", json.trim_ascii_start(), &mut |_| {});
    if !matches!(position, StreamPosition::LastUsage | StreamPosition::UsageSoFar) {
        return None;
    }
    InsertionPoint::find(json, true).map(|point| InsertionPoint { offset: point.offset + offset, ..point })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert_in_chunks(text: &str, size: usize) -> String {
        let (mut inserter, mut out) = (UsageInserter::default(), VecDeque::new());
        for chunk in text.as_bytes().chunks(size) {
            if let Some(held_line) = inserter.feed(chunk, &mut out) {
                out.push_back(held_line.insert("{\"e\":1}"));
                inserter.flush(&mut out);
            }
        }
        inserter.flush(&mut out);
        String::from_utf8(out.iter().flatten().copied().collect()).unwrap()
    }

    #[test]
    fn energy_is_inserted_into_the_last_usage_only() {
        let long = "x".repeat(MAX_LINE_BYTES + 5);
        let openai = "data: {\"choices\":[{\"delta\":{\"content\":\"usage\"}}],\"usage\":null}\r\n\r\n\
                      data: {\"choices\":[],\"usage\": {\"prompt_tokens\":1}}\r\n\r\ndata: [DONE]\r\n\r\n";
        let ollama =
            "{\"response\":\"a\",\"done\":false}\n{\"response\":\"\",\"done\":true,\"eval_count\":3}\n";
        let other = format!("data: {{\"usage\":5,\"{long}\":1}}\n\nno end \u{71b1}");
        for size in [1, 2, 7, 50, 100_000] {
            let expected = openai.replace("{\"prompt", "{\"energy\":{\"e\":1},\"prompt");
            assert_eq!(insert_in_chunks(openai, size), expected, "chunks of {size}");
            let expected =
                ollama.replace("{\"response\":\"\"", "{\"usage\":{\"energy\":{\"e\":1}},\"response\":\"\"");
            assert_eq!(insert_in_chunks(ollama, size), expected, "chunks of {size}");
            assert_eq!(insert_in_chunks(&other, size), other, "chunks of {size}");
        }
    }

    #[test]
    fn usage_before_the_last_choice_finishes_is_not_the_last() {
        let chunk = |index: u32, reason: &str, tokens: u32| {
            format!(
                "data: {{\"choices\":[{{\"index\":{index},\"text\":\"x\",\"finish_reason\":{reason}}}],\
                 \"usage\":{{\"completion_tokens\":{tokens}}}}}\n\n"
            )
        };
        let chunks = [
            chunk(0, "null", 1),
            // A chunk without usage has a choice that counts.
            "data: {\"choices\":[{\"index\":1,\"text\":\"x\"}]}\n\n".to_owned(),
            chunk(0, "\"stop\"", 3),
            chunk(1, "null", 4),
            chunk(1, "\"stop\"", 5),
            "data: [DONE]\n\n".to_owned(),
        ];
        let text = chunks.concat();
        let expected =
            text.replace("\"completion_tokens\":5", "\"energy\":{\"e\":1},\"completion_tokens\":5");
        for size in [1, 50, 100_000] {
            assert_eq!(insert_in_chunks(&text, size), expected, "chunks of {size}");
        }
    }

    #[test]
    fn an_empty_object_gets_no_comma() {
        let point = InsertionPoint::find(b" {\"a\":{},\"usage\":{ }}", false).unwrap();
        assert_eq!(point.insert(b" {\"a\":{},\"usage\":{ }}", "1"), b" {\"a\":{},\"usage\":{\"energy\":1 }}");
        assert_eq!(InsertionPoint::find(b"{\"a\":1}", false), None);
        assert_eq!(InsertionPoint::find(b"{\"usage\":null}", true), None);
        assert_eq!(
            InsertionPoint::find(b"{}", true).unwrap().insert(b"{}", "1"),
            b"{\"usage\":{\"energy\":1}}"
        );
    }
}
