//! Energy put into the last chunk that tells of usage.
//!
//! Owns the line that is held until the figures are there; only `--annotate usage` does this. Bytes are passed on line
//! by line here, and every byte that came is passed on, in order: what is put in is put in between.

use std::collections::VecDeque;

use bytes::Bytes;
use memchr::{memchr, memmem};

use super::reading::Said;
use super::scan::Scan;

/// A longer line is passed on as it comes.
const MOST: usize = 32 << 10;

/// A line that waits for its figures.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    line: Vec<u8>,
    spot: Spot,
}

/// Where in a JSON object the energy goes, and what goes around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    at: usize,
    /// There is a `usage` object to put it into; else one is made.
    inside_usage: bool,
    /// Nothing follows in the object.
    alone: bool,
}

/// Looks for the line.
#[derive(Debug, Default)]
pub struct Insertion {
    line: Vec<u8>,
    /// The line is too long to be it.
    passing: bool,
    done: bool,
    /// What the lines so far said: whether one is the last depends on those before it.
    said: Said,
}

impl Spot {
    /// Where in `json` the energy goes; `make`: also where no `usage` is there yet.
    pub fn of(json: &[u8], make: bool) -> Option<Self> {
        let mut scan = Scan::new(&["usage"]);
        scan.feed(json);
        let (at, inside_usage) = match scan.get("usage") {
            Some(usage) if json.get(usage.at) == Some(&b'{') => (usage.at + 1, true),
            Some(_) => return None,
            None if make => (scan.opened_at()?, false),
            None => return None,
        };
        let alone = json.get(at..)?.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
        Some(Spot { at, inside_usage, alone })
    }

    /// `text` with the energy in it.
    pub fn put(self, text: &[u8], energy: &str) -> Vec<u8> {
        let (before, after) = text.split_at(self.at.min(text.len()));
        let energy = match self.inside_usage {
            true => format!("\"energy\":{energy}"),
            false => format!("\"usage\":{{\"energy\":{energy}}}"),
        };
        let comma = if self.alone { "" } else { "," };
        [before, energy.as_bytes(), comma.as_bytes(), after].concat()
    }
}

impl Held {
    /// The line with the energy in it.
    pub fn with(self, energy: &str) -> Bytes {
        self.spot.put(&self.line, energy).into()
    }
}

impl Insertion {
    /// Passes `piece` on into `out`, but for a line that is not whole yet; gives the line that is to be held. What came
    /// behind that is passed on by [`Insertion::flush`].
    pub fn feed(&mut self, piece: &[u8], out: &mut VecDeque<Bytes>) -> Option<Held> {
        self.line.extend_from_slice(piece);
        let mut passed = 0;
        while let Some(length) = memchr(b'\n', self.line.get(passed..).unwrap_or_default()) {
            let line = self.line.get(passed..=passed + length).unwrap_or_default();
            let spot = if self.passing || self.done { None } else { spot(line, &mut self.said) };
            self.passing = false;
            if let Some(spot) = spot {
                let line = line.to_vec();
                push(out, self.line.drain(..passed));
                self.line.drain(..line.len());
                self.done = true;
                return Some(Held { line, spot });
            }
            passed += length + 1;
        }
        push(out, self.line.drain(..passed));
        if self.done || self.passing || self.line.len() > MOST {
            self.passing = true;
            self.flush(out);
        }
        None
    }

    /// Passes on what is left.
    pub fn flush(&mut self, out: &mut VecDeque<Bytes>) {
        push(out, self.line.drain(..));
    }
}

fn push(out: &mut VecDeque<Bytes>, bytes: std::vec::Drain<'_, u8>) {
    if bytes.len() > 0 {
        out.push_back(bytes.collect::<Vec<u8>>().into());
    }
}

/// Where in a line of a stream the energy goes, if it is the last that tells of usage.
fn spot(line: &[u8], said: &mut Said) -> Option<Spot> {
    let json = line.strip_prefix(b"data:").unwrap_or(line);
    let offset = line.len() - json.len();
    let json = json.trim_ascii_end();
    let tells = [&b"\"usage\""[..], b"\"done\"", b"\"choices\""];
    if tells.iter().all(|word| memmem::find(json, word).is_none()) {
        return None;
    }
    if !said.part(json.trim_ascii_start()).last_usage {
        return None;
    }
    Spot::of(json, true).map(|spot| Spot { at: spot.at + offset, ..spot })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(text: &str, size: usize) -> String {
        let (mut insertion, mut out) = (Insertion::default(), VecDeque::new());
        for piece in text.as_bytes().chunks(size) {
            if let Some(held) = insertion.feed(piece, &mut out) {
                out.push_back(held.with("{\"e\":1}"));
                insertion.flush(&mut out);
            }
        }
        insertion.flush(&mut out);
        String::from_utf8(out.iter().flatten().copied().collect()).unwrap()
    }

    #[test]
    fn the_energy_comes_into_the_last_usage_and_nothing_else_changes() {
        let long = "x".repeat(MOST + 5);
        let openai = "data: {\"choices\":[{\"delta\":{\"content\":\"usage\"}}],\"usage\":null}\r\n\r\n\
                      data: {\"choices\":[],\"usage\": {\"prompt_tokens\":1}}\r\n\r\ndata: [DONE]\r\n\r\n";
        let ollama =
            "{\"response\":\"a\",\"done\":false}\n{\"response\":\"\",\"done\":true,\"eval_count\":3}\n";
        let other = format!("data: {{\"usage\":5,\"{long}\":1}}\n\nno end \u{71b1}");
        for size in [1, 2, 7, 50, 100_000] {
            let expected = openai.replace("{\"prompt", "{\"energy\":{\"e\":1},\"prompt");
            assert_eq!(through(openai, size), expected, "pieces of {size}");
            let expected =
                ollama.replace("{\"response\":\"\"", "{\"usage\":{\"energy\":{\"e\":1}},\"response\":\"\"");
            assert_eq!(through(ollama, size), expected, "pieces of {size}");
            assert_eq!(through(&other, size), other, "pieces of {size}");
        }
    }

    #[test]
    fn of_two_choices_the_one_that_ends_first_is_not_the_end() {
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
            assert_eq!(through(&text, size), expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_empty_object_gets_no_comma() {
        let spot = Spot::of(b" {\"a\":{},\"usage\":{ }}", false).unwrap();
        assert_eq!(spot.put(b" {\"a\":{},\"usage\":{ }}", "1"), b" {\"a\":{},\"usage\":{\"energy\":1 }}");
        assert_eq!(Spot::of(b"{\"a\":1}", false), None);
        assert_eq!(Spot::of(b"{\"usage\":null}", true), None);
        assert_eq!(Spot::of(b"{}", true).unwrap().put(b"{}", "1"), b"{\"usage\":{\"energy\":1}}");
    }
}
