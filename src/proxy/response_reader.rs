//! How a reply is read along: events, JSON lines, one JSON object, or not at all.
//!
//! Owns the reader of one reply. Changes nothing of what it reads, and keeps no more than one line or one value of it.

use super::json_scanner::JsonScanner;
use super::response_metadata::{ChunkInfo, ResponseMetadata};
use crate::http::line_decoder::{DecodedLine, LineDecoder};
use crate::http::sse::{MAX_EVENT_BYTES, SseDecoder};

/// How a reply is read.
#[derive(Debug)]
pub enum ResponseReader {
    /// Server-sent events.
    Sse(Box<SseDecoder>),
    /// A JSON object on each line.
    JsonLines(LineDecoder),
    /// One JSON object.
    Json(Box<JsonScanner>),
    /// Encoded, or something else; the first byte counts as the first token where `stream`.
    Opaque {
        /// It is a stream all the same.
        stream: bool,
    },
}

/// The keys that a whole reply is searched for.
const METADATA_KEYS: &[&str] =
    &["model", "usage", "prompt_eval_count", "eval_count", "tokens_evaluated", "tokens_predicted"];

impl ResponseReader {
    /// Of server-sent events.
    pub fn sse() -> Self {
        ResponseReader::Sse(Box::default())
    }

    /// Of JSON lines.
    pub fn json_lines() -> Self {
        ResponseReader::JsonLines(LineDecoder::new(MAX_EVENT_BYTES))
    }

    /// Of one JSON object.
    pub fn json() -> Self {
        ResponseReader::Json(Box::new(JsonScanner::new(METADATA_KEYS)))
    }

    /// Reads a piece; how many of its parts carried content.
    pub fn read_chunk(&mut self, chunk: &[u8], metadata: &mut ResponseMetadata) -> u64 {
        let mut content = 0;
        let mut count = |info: ChunkInfo| content += u64::from(info.has_content);
        match self {
            ResponseReader::Sse(decoder) => decoder.feed(chunk, |event| match event.truncated {
                false => count(metadata.read_chunk(event.data)),
                true => count(ChunkInfo { has_content: true, is_last_usage: false }),
            }),
            ResponseReader::JsonLines(decoder) => decoder.feed(chunk, |line| match line {
                DecodedLine::Complete(line) => count(metadata.read_chunk(line)),
                DecodedLine::Truncated(_) => count(ChunkInfo { has_content: true, is_last_usage: false }),
            }),
            ResponseReader::Json(scanner) => scanner.feed(chunk),
            ResponseReader::Opaque { stream } => content = u64::from(*stream && !chunk.is_empty()),
        }
        content
    }

    /// What is only known at the end.
    pub fn finish(&mut self, metadata: &mut ResponseMetadata) {
        match self {
            ResponseReader::Json(scanner) => {
                let text = |key| scanner.get(key).map(|found| found.text.as_slice());
                metadata.read_body(text("model"), text("usage"));
                metadata.read_token_counts(text("prompt_eval_count"), text("eval_count"));
                metadata.read_token_counts(text("tokens_evaluated"), text("tokens_predicted"));
            }
            ResponseReader::JsonLines(decoder) => {
                // The last line of a stream may lack its end.
                if let Some(line) = decoder.finish() {
                    metadata.read_chunk(&line);
                }
            }
            ResponseReader::Sse(_) | ResponseReader::Opaque { .. } => {}
        }
    }

    /// Reads a piece of a reply that is not streamed.
    pub fn read_unstreamed_chunk(&mut self, chunk: &[u8]) {
        self.read_chunk(chunk, &mut ResponseMetadata::default());
    }
}
