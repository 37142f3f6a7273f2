//! Decodes server-sent events (HTML standard, section 9.2.6).
//!
//! `data` lines of one event are joined by LF; comments and unknown fields are ignored; a field `error` is the data of an
//! event of this type. An event without data, or without a blank line at its end (unless [`SseDecoder::finish`] is
//! called), is discarded. An event over the limit is shortened or reported as truncated.

use super::line_decoder::{DecodedLine, LineDecoder};

/// The default limit of an event's data.
pub const MAX_EVENT_BYTES: usize = 32 << 10;

/// A server-sent event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The type; "message" where the stream names none.
    pub event_type: &'a [u8],
    /// The data; only the beginning where `truncated`.
    pub data: &'a [u8],
    /// The data exceeds the limit.
    pub truncated: bool,
}

/// Decodes server-sent events from a byte stream.
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
    /// The last line was empty, so that no event is incomplete.
    after_blank_line: bool,
}

impl Default for SseDecoder {
    fn default() -> Self {
        let line_decoder = LineDecoder::shortening(MAX_EVENT_BYTES);
        SseDecoder { line_decoder, ..Self::with_limit(MAX_EVENT_BYTES) }
    }
}

impl SseDecoder {
    /// A decoder for events of at most `max_bytes` bytes of data; a longer one is truncated.
    pub fn with_limit(max_bytes: usize) -> Self {
        SseDecoder {
            line_decoder: LineDecoder::new(max_bytes),
            pending: PendingEvent { max_bytes, after_blank_line: true, ..PendingEvent::default() },
        }
    }

    /// Calls `on_event` for every event that `chunk` completes.
    pub fn feed(&mut self, chunk: &[u8], mut on_event: impl FnMut(SseEvent<'_>)) {
        let rest = self.take_whole_events(chunk, &mut on_event);
        let SseDecoder { line_decoder, pending } = self;
        line_decoder.feed(rest, |line| pending.push_line(line, &mut on_event));
    }

    /// Takes the events of one data line and a blank line with which `chunk` begins, without a copy: most events of an
    /// inference server are such. Returns the rest.
    fn take_whole_events<'a>(
        &mut self,
        mut chunk: &'a [u8],
        on_event: &mut impl FnMut(SseEvent<'_>),
    ) -> &'a [u8] {
        while self.is_between_events()
            && let Some(line) = chunk.strip_prefix(b"data:")
            && let Some(end) = memchr::memchr(b'\n', line)
            && b"data:".len() + end <= self.pending.max_bytes
            && let Some((data, [b'\n', b'\n', rest @ ..])) = line.split_at_checked(end)
            && !data.ends_with(b"\r")
        {
            self.pending.first_line_seen = true;
            let data = data.strip_prefix(b" ").unwrap_or(data);
            on_event(SseEvent { event_type: b"message", data, truncated: false });
            chunk = rest;
        }
        chunk
    }

    /// Calls `on_event` for a last event that lacks its blank line; servers close streams without one.
    pub fn finish(&mut self, mut on_event: impl FnMut(SseEvent<'_>)) {
        let is_between_events = self.is_between_events();
        let SseDecoder { line_decoder, pending } = self;
        for _ in 0..2 {
            line_decoder.feed(b"\n", |line| pending.push_line(line, &mut on_event));
        }
        // What was received has not changed: nothing may be inserted after an incomplete event.
        pending.after_blank_line = is_between_events;
    }

    /// Whether the stream is between two events: another event or comment could be inserted here.
    pub fn is_between_events(&self) -> bool {
        self.pending.after_blank_line && self.line_decoder.is_at_line_start()
    }
}

impl PendingEvent {
    fn push_line(&mut self, line: DecodedLine<'_>, on_event: &mut impl FnMut(SseEvent<'_>)) {
        let (mut line, is_truncated) = match line {
            DecodedLine::Complete(line) => (line, false),
            DecodedLine::Truncated(line) => (line, true),
        };
        if !std::mem::replace(&mut self.first_line_seen, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        self.after_blank_line = line.is_empty();
        if line.is_empty() {
            return self.dispatch(on_event);
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => {
                let value = line.get(colon + 1..).unwrap_or_default();
                (line.get(..colon).unwrap_or_default(), value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &[][..]),
        };
        match field {
            b"data" => self.push_data(value, is_truncated),
            b"event" => value.clone_into(&mut self.event_type),
            // llama.cpp of 2025 and before: an error in the place of data.
            b"error" => {
                field.clone_into(&mut self.event_type);
                self.push_data(value, is_truncated);
            }
            _ => {}
        }
    }

    fn push_data(&mut self, value: &[u8], is_truncated: bool) {
        if std::mem::replace(&mut self.has_data, true) {
            // Lines without a value count too: any number of them may follow each other.
            if self.data.len() < self.max_bytes {
                self.data.push(b'\n');
            } else {
                self.truncated = true;
            }
        }
        let remaining = self.max_bytes.saturating_sub(self.data.len());
        self.truncated |= is_truncated || value.len() > remaining;
        self.data.extend_from_slice(value.get(..remaining.min(value.len())).unwrap_or_default());
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(SseEvent<'_>)) {
        if self.has_data {
            let event_type = if self.event_type.is_empty() { &b"message"[..] } else { &self.event_type };
            on_event(SseEvent { event_type, data: &self.data, truncated: self.truncated });
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
        let (mut decoder, mut out) = (SseDecoder::default(), Vec::new());
        for chunk in text.chunks(size) {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            decoder
                .feed(chunk, |event| out.push((text(event.event_type), text(event.data), event.truncated)));
        }
        (out, decoder.is_between_events())
    }

    #[test]
    fn events_do_not_depend_on_chunk_boundaries() {
        let text =
            "\u{feff}data: {\"a\":\"熱\"}\r\n\r\n: keep-alive\n\nevent: delta\ndata:one\ndata: two\n\n\
                    id: 7\n\nevent: lost\n\ndata\n\ndata: [DONE]\n\ndata: cut of"
                .as_bytes();
        let (whole, is_between) = decode(text, text.len());
        let decoded: Vec<_> =
            whole.iter().map(|(event_type, data, _)| (event_type.as_str(), data.as_str())).collect();
        let expected =
            [("message", "{\"a\":\"熱\"}"), ("delta", "one\ntwo"), ("message", ""), ("message", "[DONE]")];
        assert_eq!(decoded, expected);
        assert!(!is_between);
        for size in 1..text.len() {
            assert_eq!(decode(text, size), (whole.clone(), false), "chunks of {size}");
        }
    }

    #[test]
    fn is_between_events_only_after_a_blank_line() {
        for (text, is_between) in [
            ("", true),
            ("data: x\n\n", true),
            ("data: x\n", false),
            ("data: x\r\n\r\n", true),
            (": c", false),
        ] {
            assert_eq!(decode(text.as_bytes(), 1).1, is_between, "{text:?}");
        }
    }

    #[test]
    fn a_last_event_without_its_blank_line_is_read_at_the_end() {
        for (text, data, is_between) in [
            ("data: a\n\ndata: [DONE]\n", &["a", "[DONE]"][..], false),
            ("data: a\n\ndata: [DONE]", &["a", "[DONE]"], false),
            ("data: a\n\n", &["a"], true),
            ("", &[], true),
        ] {
            let (mut decoder, mut found) = (SseDecoder::default(), Vec::new());
            let mut push = |event: SseEvent<'_>| found.push(String::from_utf8(event.data.to_vec()).unwrap());
            decoder.feed(text.as_bytes(), &mut push);
            decoder.finish(&mut push);
            assert_eq!(
                (found.iter().map(String::as_str).collect::<Vec<_>>(), decoder.is_between_events()),
                (data.to_vec(), is_between)
            );
        }
    }

    #[test]
    fn a_long_event_is_shortened_where_the_limit_is_that_of_metadata() {
        let long = "x".repeat(1 << 20);
        let text =
            format!("event: response.completed\ndata: {{\"text\":\"{long}\",\"usage\":{{\"a\":1}}}}\n\n");
        for size in [1000, 100_000] {
            let (decoded, _) = decode(text.as_bytes(), size);
            let [(event_type, data, false)] = &decoded[..] else { panic!("{decoded:?}") };
            assert!(event_type == "response.completed" && data.len() < 1000, "{}", data.len());
            assert!(data.ends_with("x\",\"usage\":{\"a\":1}}"), "{data}");
        }
    }

    #[test]
    fn a_long_event_is_reported_as_truncated() {
        let text = format!("data: {}\n\ndata: next\n\n", "x".repeat(MAX_EVENT_BYTES + 10));
        let (decoded, _) = decode(text.as_bytes(), 1000);
        assert!(decoded[0].2 && decoded[0].1.len() <= MAX_EVENT_BYTES);
        assert_eq!(decoded[1], ("message".into(), "next".into(), false));
    }

    #[test]
    fn data_lines_without_a_value_do_not_exceed_the_limit() {
        let (mut decoder, mut found) = (SseDecoder::with_limit(64), Vec::new());
        let mut push = |event: SseEvent<'_>| found.push((event.data.to_vec(), event.truncated));
        decoder.feed(&b"data:\n".repeat(100_000), &mut push);
        assert_eq!(decoder.pending.data.len(), 64);
        decoder.feed(b"\ndata:\ndata:\n\n", &mut push);
        assert_eq!(found, [(vec![b'\n'; 64], true), (vec![b'\n'], false)]);
    }
}
