//! Reads a reply of any format: server-sent events, a JSON object on each line, or JSON in one piece.
//!
//! The format is that of the first bytes, because servers declare a wrong one or none. The declared format decides only
//! what these leave open. A message over the limit is shortened where the text of answers is not wanted.

use super::super::line_decoder::{DecodedLine, LineDecoder};
use super::super::message_buffer::MessageBuffer;
use super::super::object_decoder::{DecodedObject, ObjectDecoder};
use super::super::sse::{MAX_EVENT_BYTES, SseDecoder};
use super::event::ReplyEvent;
use super::message_reader::{EventSink, MessageReader};

/// The limit of a message whose text is wanted.
const MAX_TEXT_BYTES: usize = 32 << 20;

/// The bytes of a reply of unknown format that are kept, for an error message.
const MAX_UNKNOWN_BYTES: usize = 256;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The fields of server-sent events, of which one begins a stream.
const FIELDS: [&[u8]; 6] = [b"data:", b"event:", b"error:", b"id:", b"retry:", b":"];

/// The format that a reply's content type declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeclaredFormat {
    /// Server-sent events.
    Events,
    /// A JSON object on each line.
    JsonLines,
    Other,
}

impl DeclaredFormat {
    /// The format of a content type.
    pub fn from_content_type(content_type: &str) -> Self {
        const JSON_LINES: [&str; 4] =
            ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/stream+json"];
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        if media_type.eq_ignore_ascii_case("text/event-stream") {
            DeclaredFormat::Events
        } else if JSON_LINES.iter().any(|name| media_type.eq_ignore_ascii_case(name)) {
            DeclaredFormat::JsonLines
        } else {
            DeclaredFormat::Other
        }
    }

    /// Whether the reply arrives in parts.
    pub fn is_stream(self) -> bool {
        self != DeclaredFormat::Other
    }
}

/// Reads one reply.
#[derive(Debug)]
pub struct ReplyReader {
    declared: DeclaredFormat,
    wants_text: bool,
    decoder: Decoder,
    messages: MessageReader,
}

#[derive(Debug)]
enum Decoder {
    /// The bytes so far leave the format open.
    Undecided(Vec<u8>),
    Events(Box<SseDecoder>),
    JsonLines(Box<LineDecoder>),
    Objects(Box<ObjectDecoder>),
    /// A reply that no interface sends: its beginning.
    Unknown(Vec<u8>),
}

impl ReplyReader {
    /// A reader that reports everything but the text of answers, in bounded memory.
    pub fn without_text(declared: DeclaredFormat) -> Self {
        Self::new(declared, false)
    }

    /// A reader that reports the text of answers too. Its memory is that of the longest message.
    pub fn with_text(declared: DeclaredFormat) -> Self {
        Self::new(declared, true)
    }

    fn new(declared: DeclaredFormat, wants_text: bool) -> Self {
        let messages = MessageReader::new(wants_text);
        ReplyReader { declared, wants_text, decoder: Decoder::Undecided(Vec::new()), messages }
    }

    /// Reads the next bytes.
    pub fn feed(&mut self, chunk: &[u8], on_event: &mut EventSink<'_>) {
        let Decoder::Undecided(begin) = &mut self.decoder else { return self.decode(chunk, on_event) };
        let mut begin = std::mem::take(begin);
        begin.extend_from_slice(chunk);
        begin.drain(..begin.len() - trim_begin(&begin).len());
        match self.detect(&begin) {
            Some(decoder) => {
                self.decoder = decoder;
                self.decode(&begin, on_event);
            }
            None => self.decoder = Decoder::Undecided(begin),
        }
    }

    fn decode(&mut self, chunk: &[u8], on_event: &mut EventSink<'_>) {
        let messages = &mut self.messages;
        // Where texts are not wanted, a part of a stream that is too long counts as content.
        let long = if self.wants_text { ReplyEvent::TooLong } else { ReplyEvent::Content };
        match &mut self.decoder {
            Decoder::Undecided(_) => {}
            Decoder::Events(decoder) => decoder.feed(chunk, |event| match event.truncated {
                false => _ = messages.read(event.event_type, event.data, on_event),
                true => on_event(long),
            }),
            Decoder::JsonLines(decoder) => decoder.feed(chunk, |line| match line {
                DecodedLine::Complete(line) => _ = messages.read(b"", line, on_event),
                DecodedLine::Truncated(_) => on_event(long),
            }),
            Decoder::Objects(decoder) => decoder.feed(chunk, |object| match object {
                DecodedObject::Complete(object) => _ = messages.read(b"", object, on_event),
                DecodedObject::Truncated(_) => on_event(ReplyEvent::TooLong),
                DecodedObject::Other(text) => on_event(ReplyEvent::Malformed(text)),
            }),
            Decoder::Unknown(begin) => {
                let remaining = MAX_UNKNOWN_BYTES.saturating_sub(begin.len()).min(chunk.len());
                begin.extend_from_slice(chunk.get(..remaining).unwrap_or_default());
            }
        }
    }

    /// Reads what is complete only at the end of the body.
    pub fn finish(&mut self, on_event: &mut EventSink<'_>) {
        let messages = &mut self.messages;
        match &mut self.decoder {
            // The last event may lack its blank line, and the last line its line break.
            Decoder::Events(decoder) => {
                decoder.finish(|event| messages.read_rest(event.event_type, event.data, on_event));
            }
            Decoder::JsonLines(decoder) => {
                if let Some(line) = decoder.finish() {
                    messages.read_rest(b"", &line, on_event);
                }
            }
            Decoder::Objects(decoder) => {
                if decoder.finish(|object| {
                    if let DecodedObject::Other(text) = object {
                        on_event(ReplyEvent::Malformed(text));
                    }
                }) {
                    on_event(ReplyEvent::Cut);
                }
            }
            Decoder::Undecided(begin) | Decoder::Unknown(begin) => {
                if !begin.is_empty() {
                    on_event(ReplyEvent::Malformed(begin));
                }
            }
        }
        messages.finish(on_event);
    }

    /// Whether the server has marked the end, or every choice that appeared has finished.
    pub fn is_complete(&self) -> bool {
        self.messages.is_complete()
    }

    /// Whether a server-sent event or comment could be added here.
    pub fn is_between_events(&self) -> bool {
        match &self.decoder {
            Decoder::Events(decoder) => decoder.is_between_events(),
            Decoder::Undecided(begin) => self.declared == DeclaredFormat::Events && begin.is_empty(),
            _ => false,
        }
    }

    /// Whether the reply is JSON in one piece.
    pub fn is_json(&self) -> bool {
        matches!(self.decoder, Decoder::Objects(_))
    }

    /// The decoder of a reply that begins with these bytes; `None` if more are needed.
    fn detect(&mut self, begin: &[u8]) -> Option<Decoder> {
        let first = begin.first()?;
        let is_json = matches!(first, b'{' | b'[');
        let is_field = FIELDS.iter().any(|field| begin.starts_with(field));
        let is_event = self.declared == DeclaredFormat::Events && !BYTE_ORDER_MARK.starts_with(begin);
        if !is_json && (is_field || is_event) {
            return Some(Decoder::Events(Box::new(match self.wants_text {
                true => SseDecoder::with_limit(MAX_TEXT_BYTES),
                false => SseDecoder::default(),
            })));
        }
        if !is_json {
            let is_open = FIELDS.iter().chain([&BYTE_ORDER_MARK]).any(|field| field.starts_with(begin));
            return (!is_open).then(|| Decoder::Unknown(Vec::new()));
        }
        self.messages.expect_whole();
        Some(match (self.declared, self.wants_text) {
            (DeclaredFormat::JsonLines, true) => {
                Decoder::JsonLines(Box::new(LineDecoder::new(MAX_TEXT_BYTES)))
            }
            (DeclaredFormat::JsonLines, false) => {
                Decoder::JsonLines(Box::new(LineDecoder::shortening(MAX_EVENT_BYTES)))
            }
            (_, true) => Decoder::Objects(Box::new(ObjectDecoder::new(MessageBuffer::new(MAX_TEXT_BYTES)))),
            (_, false) => {
                Decoder::Objects(Box::new(ObjectDecoder::new(MessageBuffer::shortening(MAX_EVENT_BYTES))))
            }
        })
    }
}

/// The bytes without blank ones and byte order marks before them.
fn trim_begin(mut begin: &[u8]) -> &[u8] {
    loop {
        begin = begin.trim_ascii_start();
        match begin.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) => begin = rest,
            None => return begin,
        }
    }
}
