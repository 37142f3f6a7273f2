//! Server-sent events out of lines (HTML standard, 9.2.6).
//!
//! Owns the event that is being gathered: its type and its data, several `data` lines joined by LF. Comments and fields
//! that nobody defined are passed over. An event without data is none; one that the stream's end cuts off neither. An
//! event with a line over the limit is told as cut off, never as whole.

use super::line_decoder::{DecodedLine, LineDecoder};

/// The longest data that is gathered for an event unless another limit is set; more is cut off.
pub const MAX_EVENT_BYTES: usize = 32 << 10;

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// Its type; "message" where the stream names none.
    pub event_type: &'a [u8],
    /// Its data; only the beginning where `cut_off`.
    pub data: &'a [u8],
    /// The data was longer than the limit.
    pub truncated: bool,
}

/// Cuts a stream of events into events.
#[derive(Debug)]
pub struct SseDecoder {
    line_decoder: LineDecoder,
    pending: PendingEvent,
}

#[derive(Debug, Default)]
struct PendingEvent {
    max_bytes: usize,
    event_type: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    truncated: bool,
    first_line_seen: bool,
    /// The last line was empty: nothing is half told.
    after_blank_line: bool,
}

impl Default for SseDecoder {
    fn default() -> Self {
        Self::with_limit(MAX_EVENT_BYTES)
    }
}

impl SseDecoder {
    /// For events of at most `most` bytes of data; a longer one is cut off.
    pub fn with_limit(most: usize) -> Self {
        SseDecoder {
            line_decoder: LineDecoder::new(most),
            pending: PendingEvent { max_bytes: most, after_blank_line: true, ..PendingEvent::default() },
        }
    }

    /// Gives every event that `piece` completes.
    pub fn feed(&mut self, piece: &[u8], mut each: impl FnMut(SseEvent<'_>)) {
        let SseDecoder { line_decoder: lines, pending: gathered } = self;
        lines.feed(piece, |line| gathered.push_line(line, &mut each));
    }

    /// Whether nothing is half told: another event or comment could be put here.
    pub fn is_between_events(&self) -> bool {
        self.pending.after_blank_line && self.line_decoder.is_at_line_start()
    }
}

impl PendingEvent {
    fn push_line(&mut self, line: DecodedLine<'_>, each: &mut impl FnMut(SseEvent<'_>)) {
        let (mut line, long) = match line {
            DecodedLine::Complete(line) => (line, false),
            DecodedLine::Truncated(line) => (line, true),
        };
        if !std::mem::replace(&mut self.first_line_seen, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        self.after_blank_line = line.is_empty();
        if line.is_empty() {
            return self.dispatch(each);
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => {
                let value = line.get(colon + 1..).unwrap_or_default();
                (line.get(..colon).unwrap_or_default(), value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &[][..]),
        };
        match field {
            b"data" => self.push_data(value, long),
            b"event" => value.clone_into(&mut self.event_type),
            _ => {}
        }
    }

    fn push_data(&mut self, value: &[u8], long: bool) {
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        let room = self.max_bytes.saturating_sub(self.data.len());
        self.truncated |= long || value.len() > room;
        self.data.extend_from_slice(value.get(..room.min(value.len())).unwrap_or_default());
    }

    fn dispatch(&mut self, each: &mut impl FnMut(SseEvent<'_>)) {
        if self.has_data {
            let kind = if self.event_type.is_empty() { &b"message"[..] } else { &self.event_type };
            each(SseEvent { event_type: kind, data: &self.data, truncated: self.truncated });
        }
        self.event_type.clear();
        self.data.clear();
        self.data.shrink_to(4096);
        (self.has_data, self.truncated) = (false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &[u8], size: usize) -> (Vec<(String, String, bool)>, bool) {
        let (mut events, mut out) = (SseDecoder::default(), Vec::new());
        for piece in text.chunks(size) {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            events.feed(piece, |event| out.push((text(event.event_type), text(event.data), event.truncated)));
        }
        (out, events.is_between_events())
    }

    #[test]
    fn events_do_not_depend_on_chunk_boundaries() {
        let text =
            "\u{feff}data: {\"a\":\"熱\"}\r\n\r\n: keep-alive\n\nevent: delta\ndata:one\ndata: two\n\n\
                    id: 7\n\nevent: lost\n\ndata\n\ndata: [DONE]\n\ndata: cut of"
                .as_bytes();
        let (whole, between) = decode(text, text.len());
        let told: Vec<_> = whole.iter().map(|(kind, data, _)| (kind.as_str(), data.as_str())).collect();
        let expected =
            [("message", "{\"a\":\"熱\"}"), ("delta", "one\ntwo"), ("message", ""), ("message", "[DONE]")];
        assert_eq!(told, expected);
        assert!(!between);
        for size in 1..text.len() {
            assert_eq!(decode(text, size), (whole.clone(), false), "pieces of {size}");
        }
    }

    #[test]
    fn is_between_events_only_after_a_blank_line() {
        for (text, between) in [
            ("", true),
            ("data: x\n\n", true),
            ("data: x\n", false),
            ("data: x\r\n\r\n", true),
            (": c", false),
        ] {
            assert_eq!(decode(text.as_bytes(), 1).1, between, "{text:?}");
        }
    }

    #[test]
    fn a_long_event_is_reported_as_truncated() {
        let text = format!("data: {}\n\ndata: next\n\n", "x".repeat(MAX_EVENT_BYTES + 10));
        let (told, _) = decode(text.as_bytes(), 1000);
        assert!(told[0].2 && told[0].1.len() <= MAX_EVENT_BYTES);
        assert_eq!(told[1], ("message".into(), "next".into(), false));
    }
}
