//! Energy put into the last chunk that tells of usage.
//!
//! Owns the line that is held until the figures are there; only `--annotate usage` does this. Bytes are passed on line
//! by line here, and every byte that came is passed on, in order: what is put in is put in between.

use std::collections::VecDeque;

use bytes::Bytes;
use memchr::{memchr, memmem};

use super::json_scanner::JsonScanner;
use super::response_metadata::ResponseMetadata;

/// A longer line is passed on as it comes.
const MAX_LINE_BYTES: usize = 32 << 10;

/// A line that waits for its figures.
#[derive(Debug, PartialEq, Eq)]
pub struct HeldLine {
    line: Vec<u8>,
    point: InsertionPoint,
}

/// Where in a JSON object the energy goes, and what goes around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InsertionPoint {
    offset: usize,
    /// There is a `usage` object to put it into; else one is made.
    inside_usage: bool,
    /// Nothing follows in the object.
    is_object_empty: bool,
}

/// Looks for the line.
#[derive(Debug, Default)]
pub struct UsageInserter {
    line: Vec<u8>,
    /// The line is too long to be it.
    is_line_too_long: bool,
    is_done: bool,
    /// What the lines so far said: whether one is the last depends on those before it.
    metadata: ResponseMetadata,
}

impl InsertionPoint {
    /// Where in `json` the energy goes; `make`: also where no `usage` is there yet.
    pub fn find(json: &[u8], make: bool) -> Option<Self> {
        let mut scan = JsonScanner::new(&["usage"]);
        scan.feed(json);
        let (at, inside_usage) = match scan.get("usage") {
            Some(usage) if json.get(usage.offset) == Some(&b'{') => (usage.offset + 1, true),
            Some(_) => return None,
            None if make => (scan.object_start()?, false),
            None => return None,
        };
        let alone = json.get(at..)?.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
        Some(InsertionPoint { offset: at, inside_usage, is_object_empty: alone })
    }

    /// `text` with the energy in it.
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
    /// The line with the energy in it.
    pub fn insert(self, energy: &str) -> Bytes {
        self.point.insert(&self.line, energy).into()
    }
}

impl UsageInserter {
    /// Passes `piece` on into `out`, but for a line that is not whole yet; gives the line that is to be held. What came
    /// behind that is passed on by [`Insertion::flush`].
    pub fn feed(&mut self, piece: &[u8], out: &mut VecDeque<Bytes>) -> Option<HeldLine> {
        self.line.extend_from_slice(piece);
        let mut passed = 0;
        while let Some(length) = memchr(b'\n', self.line.get(passed..).unwrap_or_default()) {
            let line = self.line.get(passed..=passed + length).unwrap_or_default();
            let spot = if self.is_line_too_long || self.is_done {
                None
            } else {
                find_in_line(line, &mut self.metadata)
            };
            self.is_line_too_long = false;
            if let Some(spot) = spot {
                let line = line.to_vec();
                push_chunk(out, self.line.drain(..passed));
                self.line.drain(..line.len());
                self.is_done = true;
                return Some(HeldLine { line, point: spot });
            }
            passed += length + 1;
        }
        push_chunk(out, self.line.drain(..passed));
        if self.is_done || self.is_line_too_long || self.line.len() > MAX_LINE_BYTES {
            self.is_line_too_long = true;
            self.flush(out);
        }
        None
    }

    /// Passes on what is left.
    pub fn flush(&mut self, out: &mut VecDeque<Bytes>) {
        push_chunk(out, self.line.drain(..));
    }
}

fn push_chunk(out: &mut VecDeque<Bytes>, bytes: std::vec::Drain<'_, u8>) {
    if bytes.len() > 0 {
        out.push_back(bytes.collect::<Vec<u8>>().into());
    }
}

/// Where in a line of a stream the energy goes, if it is the last that tells of usage.
fn find_in_line(line: &[u8], said: &mut ResponseMetadata) -> Option<InsertionPoint> {
    let json = line.strip_prefix(b"data:").unwrap_or(line);
    let offset = line.len() - json.len();
    let json = json.trim_ascii_end();
    let tells = [&b"\"usage\""[..], b"\"done\"", b"\"choices\""];
    if tells.iter().all(|word| memmem::find(json, word).is_none()) {
        return None;
    }
    if !said.read_chunk(json.trim_ascii_start()).is_last_usage {
        return None;
    }
    InsertionPoint::find(json, true).map(|spot| InsertionPoint { offset: spot.offset + offset, ..spot })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert_in_chunks(text: &str, size: usize) -> String {
        let (mut insertion, mut out) = (UsageInserter::default(), VecDeque::new());
        for piece in text.as_bytes().chunks(size) {
            if let Some(held) = insertion.feed(piece, &mut out) {
                out.push_back(held.insert("{\"e\":1}"));
                insertion.flush(&mut out);
            }
        }
        insertion.flush(&mut out);
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
            assert_eq!(insert_in_chunks(openai, size), expected, "pieces of {size}");
            let expected =
                ollama.replace("{\"response\":\"\"", "{\"usage\":{\"energy\":{\"e\":1}},\"response\":\"\"");
            assert_eq!(insert_in_chunks(ollama, size), expected, "pieces of {size}");
            assert_eq!(insert_in_chunks(&other, size), other, "pieces of {size}");
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
            // Without usage it is a choice all the same.
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
            assert_eq!(insert_in_chunks(&text, size), expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_empty_object_gets_no_comma() {
        let spot = InsertionPoint::find(b" {\"a\":{},\"usage\":{ }}", false).unwrap();
        assert_eq!(spot.insert(b" {\"a\":{},\"usage\":{ }}", "1"), b" {\"a\":{},\"usage\":{\"energy\":1 }}");
        assert_eq!(InsertionPoint::find(b"{\"a\":1}", false), None);
        assert_eq!(InsertionPoint::find(b"{\"usage\":null}", true), None);
        assert_eq!(
            InsertionPoint::find(b"{}", true).unwrap().insert(b"{}", "1"),
            b"{\"usage\":{\"energy\":1}}"
        );
    }
}
