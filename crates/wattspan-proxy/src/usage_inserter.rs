//! Inserts the energy into the last chunk of a stream that states usage (`--annotate usage` only).
//!
//! The stream is forwarded line by line, and the line with the last usage is held until the account arrives. A line that is
//! the last only if no choice follows is a candidate until the next message shows it. Invariants: every byte that arrived
//! is forwarded in order, the energy is inserted between them, and no content is held.

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
    /// Bytes that are still to be forwarded: the candidate with the lines after it, and the current line.
    pending: Vec<u8>,
    /// The length and the position of the candidate, with which `pending` begins.
    candidate: Option<(usize, InsertionPoint)>,
    /// The beginning of the current line in `pending`.
    line_start: usize,
    /// The length of the beginning of `pending` in which the current line has no end.
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
        self.pending.extend_from_slice(chunk);
        while let Some(found) = memchr(b'\n', self.pending.get(self.searched..).unwrap_or_default()) {
            let length = self.searched + found + 1 - self.line_start;
            let is_searched = !self.is_done && !std::mem::take(&mut self.is_passing_through);
            if is_searched && self.read_line(length, out) {
                return self.hold_candidate();
            }
            self.line_start += length;
            self.searched = self.line_start;
        }
        if self.candidate.is_none() {
            self.forward(out);
        }
        self.searched = self.pending.len();
        if self.is_done || self.is_passing_through || self.pending.len() > MAX_LINE_BYTES {
            self.is_passing_through = self.line_start < self.pending.len();
            self.flush(out);
        }
        None
    }

    /// Reads the current line, of this length; returns whether the candidate has the last usage. A line that becomes the
    /// candidate is moved to the beginning.
    fn read_line(&mut self, length: usize, out: &mut VecDeque<Bytes>) -> bool {
        let line = self.pending.get(self.line_start..self.line_start + length).unwrap_or_default();
        let (position, point) = find_in_line(line, &mut self.messages);
        match (position, point) {
            (StreamPosition::End, _) => return self.candidate.is_some(),
            (StreamPosition::Other, _) => return false,
            (StreamPosition::LastUsage | StreamPosition::UsageSoFar, Some(point)) => {
                self.forward(out);
                self.candidate = Some((length, point));
            }
            _ => self.candidate = None,
        }
        position == StreamPosition::LastUsage && self.candidate.is_some()
    }

    fn hold_candidate(&mut self) -> Option<HeldLine> {
        let (length, point) = self.candidate.take()?;
        let rest = self.pending.split_off(length.min(self.pending.len()));
        let line = std::mem::replace(&mut self.pending, rest);
        (self.line_start, self.searched, self.is_done) = (0, 0, true);
        Some(HeldLine { line, point })
    }

    /// Moves the rest to `out` at the end of the stream. Returns the line to hold, if the end shows it.
    pub fn finish(&mut self, out: &mut VecDeque<Bytes>) -> Option<HeldLine> {
        // The last line may lack its line break.
        let length = self.pending.len() - self.line_start;
        if length > 0 && !self.is_done && !self.is_passing_through {
            self.read_line(length, out);
        }
        let held_line = self.hold_candidate();
        if held_line.is_none() {
            self.flush(out);
        }
        held_line
    }

    /// Moves the rest to `out`.
    pub fn flush(&mut self, out: &mut VecDeque<Bytes>) {
        (self.candidate, self.line_start, self.searched) = (None, 0, 0);
        push_chunk(out, self.pending.drain(..));
    }

    /// Moves the lines before the current one to `out`.
    fn forward(&mut self, out: &mut VecDeque<Bytes>) {
        push_chunk(out, self.pending.drain(..self.line_start));
        self.line_start = 0;
    }
}

fn push_chunk(out: &mut VecDeque<Bytes>, bytes: std::vec::Drain<'_, u8>) {
    if bytes.len() > 0 {
        out.push_back(bytes.collect::<Vec<u8>>().into());
    }
}

/// The place of a line in its stream, and where the energy is inserted if it states usage.
fn find_in_line(line: &[u8], messages: &mut MessageReader) -> (StreamPosition, Option<InsertionPoint>) {
    let json = line.strip_prefix(b"data:").unwrap_or(line);
    let offset = line.len() - json.len();
    let json = json.trim_ascii_end();
    let keywords = [&b"\"usage\""[..], b"\"done\"", b"\"choices\"", b"[DONE]"];
    if keywords.iter().all(|word| memmem::find(json, word).is_none()) {
        return (StreamPosition::Other, None);
    }
    let position = messages.read(b"", json.trim_ascii_start(), &mut |_| {});
    if !matches!(position, StreamPosition::LastUsage | StreamPosition::UsageSoFar) {
        return (position, None);
    }
    let point = InsertionPoint::find(json, true);
    (position, point.map(|point| InsertionPoint { offset: point.offset + offset, ..point }))
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
        if let Some(held_line) = inserter.finish(&mut out) {
            out.push_back(held_line.insert("{\"e\":1}"));
            inserter.flush(&mut out);
        }
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

    fn choice_chunk(index: u32, reason: &str, tokens: u32) -> String {
        format!(
            "data: {{\"choices\":[{{\"index\":{index},\"text\":\"x\",\"finish_reason\":{reason}}}],\
             \"usage\":{{\"completion_tokens\":{tokens}}}}}\n\n"
        )
    }

    #[test]
    fn of_choices_one_after_the_other_the_last_usage_has_the_energy() {
        let choices = [
            choice_chunk(0, "null", 1),
            choice_chunk(0, "\"stop\"", 2),
            ": ping\n\n".to_owned(),
            choice_chunk(1, "null", 3),
            choice_chunk(1, "\"stop\"", 4),
        ]
        .concat();
        let usage = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":5}}\n\n";
        for (end, last) in
            [("data: [DONE]\n\n", 4), ("", 4), (usage, 5), ("data: {\"choices\":[]}\n\n: bye", 4)]
        {
            let text = format!("{choices}{end}");
            let tokens = format!("\"completion_tokens\":{last}");
            let expected = text.replace(&tokens, &format!("\"energy\":{{\"e\":1}},{tokens}"));
            for size in [1, 50, 100_000] {
                assert_eq!(insert_in_chunks(&text, size), expected, "chunks of {size}");
            }
        }
    }

    #[test]
    fn no_content_is_held() {
        let (mut inserter, mut out) = (UsageInserter::default(), VecDeque::new());
        let mut feed = |text: &str| {
            let held_line = inserter.feed(text.as_bytes(), &mut out);
            (out.drain(..).flatten().count(), held_line.is_some())
        };
        let (open, finished) = (choice_chunk(0, "null", 1), choice_chunk(0, "\"stop\"", 2));
        assert_eq!(feed(&open), (open.len(), false));
        assert_eq!((feed(&finished), feed(": ping\n\n")), ((0, false), (0, false)));
        let held = finished.len() + ": ping\n\n".len();
        assert_eq!(feed(&choice_chunk(1, "null", 3)), (held + open.len(), false), "another choice follows");
        assert_eq!(feed("data: {\"choices\":[{\"index\":1,\"text\":\"y\"}]}\n\nda").0, 44);
        let last = choice_chunk(1, "\"stop\"", 4);
        assert_eq!(feed(&format!("ta: {}", &last["data: ".len()..])), (0, false));
        assert_eq!(feed("data: [DONE]\n\n"), (0, true));
    }

    #[test]
    fn a_candidate_over_the_limit_is_forwarded() {
        let comments = ": ping\n".repeat(MAX_LINE_BYTES / 7 + 2000);
        let text = format!("{}{comments}data: [DONE]\n\n", choice_chunk(0, "\"stop\"", 2));
        assert_eq!(insert_in_chunks(&text, 4096), text);
    }

    #[test]
    fn the_last_line_may_lack_its_line_break() {
        let text = "{\"response\":\"a\",\"done\":false}\n{\"response\":\"\",\"done\":true,\"eval_count\":3}";
        let expected =
            text.replace("{\"response\":\"\"", "{\"usage\":{\"energy\":{\"e\":1}},\"response\":\"\"");
        for size in [1, 7, 1000] {
            assert_eq!(insert_in_chunks(text, size), expected, "chunks of {size}");
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
