//! How a reply is read along: events, JSON lines, one JSON object, or not at all.
//!
//! Owns the reader of one reply. Changes nothing of what it reads, and keeps no more than one line or one value of it.

use super::reading::{Part, Said};
use super::scan::Scan;
use crate::http::line::{Line, Lines};
use crate::http::sse::{Events, MOST};

/// How a reply is read.
#[derive(Debug)]
pub enum Dialect {
    /// Server-sent events.
    Events(Box<Events>),
    /// A JSON object on each line.
    Lines(Lines),
    /// One JSON object.
    Whole(Box<Scan>),
    /// Encoded, or something else; the first byte stands for the first token where `stream`.
    Opaque {
        /// It is a stream all the same.
        stream: bool,
    },
}

/// The keys that a whole reply is searched for.
const KEYS: &[&str] =
    &["model", "usage", "prompt_eval_count", "eval_count", "tokens_evaluated", "tokens_predicted"];

impl Dialect {
    /// Of server-sent events.
    pub fn events() -> Self {
        Dialect::Events(Box::default())
    }

    /// Of JSON lines.
    pub fn lines() -> Self {
        Dialect::Lines(Lines::new(MOST))
    }

    /// Of one JSON object.
    pub fn whole() -> Self {
        Dialect::Whole(Box::new(Scan::new(KEYS)))
    }

    /// Reads a piece; how many of its parts carried content.
    pub fn read(&mut self, piece: &[u8], said: &mut Said) -> u64 {
        let mut content = 0;
        let mut count = |part: Part| content += u64::from(part.content);
        match self {
            Dialect::Events(events) => events.feed(piece, |event| match event.cut_off {
                false => count(said.part(event.data)),
                true => count(Part { content: true, last_usage: false }),
            }),
            Dialect::Lines(lines) => lines.feed(piece, |line| match line {
                Line::Whole(line) => count(said.part(line)),
                Line::Long(_) => count(Part { content: true, last_usage: false }),
            }),
            Dialect::Whole(scan) => scan.feed(piece),
            Dialect::Opaque { stream } => content = u64::from(*stream && !piece.is_empty()),
        }
        content
    }

    /// What is only known at the end.
    pub fn finish(&mut self, said: &mut Said) {
        match self {
            Dialect::Whole(scan) => {
                let text = |key| scan.get(key).map(|found| found.text.as_slice());
                said.whole(text("model"), text("usage"));
                said.counts(text("prompt_eval_count"), text("eval_count"));
                said.counts(text("tokens_evaluated"), text("tokens_predicted"));
            }
            Dialect::Lines(lines) => {
                // The last line of a stream may lack its end.
                if let Some(line) = lines.finish() {
                    said.part(&line);
                }
            }
            Dialect::Events(_) | Dialect::Opaque { .. } => {}
        }
    }

    /// Reads a piece of a reply that is not streamed.
    pub fn feed(&mut self, piece: &[u8]) {
        self.read(piece, &mut Said::default());
    }
}
