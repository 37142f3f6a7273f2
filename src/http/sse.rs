//! Server-sent events out of lines (HTML standard, 9.2.6).
//!
//! Owns the event that is being gathered: its type and its data, several `data` lines joined by LF. Comments and fields
//! that nobody defined are passed over. An event without data is none; one that the stream's end cuts off neither. An
//! event with a line over the limit is told as cut off, never as whole.

use super::line::{Line, Lines};

/// The longest data that is gathered for an event unless another limit is set; more is cut off.
pub const MOST: usize = 32 << 10;

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its type; "message" where the stream names none.
    pub kind: &'a [u8],
    /// Its data; only the beginning where `cut_off`.
    pub data: &'a [u8],
    /// The data was longer than the limit.
    pub cut_off: bool,
}

/// Cuts a stream of events into events.
#[derive(Debug)]
pub struct Events {
    lines: Lines,
    gathered: Gathered,
}

#[derive(Debug, Default)]
struct Gathered {
    most: usize,
    kind: Vec<u8>,
    data: Vec<u8>,
    any: bool,
    cut_off: bool,
    first_line_seen: bool,
    /// The last line was empty: nothing is half told.
    between: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self::with_limit(MOST)
    }
}

impl Events {
    /// For events of at most `most` bytes of data; a longer one is cut off.
    pub fn with_limit(most: usize) -> Self {
        Events { lines: Lines::new(most), gathered: Gathered { most, between: true, ..Gathered::default() } }
    }

    /// Gives every event that `piece` completes.
    pub fn feed(&mut self, piece: &[u8], mut each: impl FnMut(Event<'_>)) {
        let Events { lines, gathered } = self;
        lines.feed(piece, |line| gathered.line(line, &mut each));
    }

    /// Whether nothing is half told: another event or comment could be put here.
    pub fn between_events(&self) -> bool {
        self.gathered.between && self.lines.at_start()
    }
}

impl Gathered {
    fn line(&mut self, line: Line<'_>, each: &mut impl FnMut(Event<'_>)) {
        let (mut line, long) = match line {
            Line::Whole(line) => (line, false),
            Line::Long(line) => (line, true),
        };
        if !std::mem::replace(&mut self.first_line_seen, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        self.between = line.is_empty();
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
            b"data" => self.data(value, long),
            b"event" => value.clone_into(&mut self.kind),
            _ => {}
        }
    }

    fn data(&mut self, value: &[u8], long: bool) {
        if std::mem::replace(&mut self.any, true) {
            self.data.push(b'\n');
        }
        let room = self.most.saturating_sub(self.data.len());
        self.cut_off |= long || value.len() > room;
        self.data.extend_from_slice(value.get(..room.min(value.len())).unwrap_or_default());
    }

    fn dispatch(&mut self, each: &mut impl FnMut(Event<'_>)) {
        if self.any {
            let kind = if self.kind.is_empty() { &b"message"[..] } else { &self.kind };
            each(Event { kind, data: &self.data, cut_off: self.cut_off });
        }
        self.kind.clear();
        self.data.clear();
        self.data.shrink_to(4096);
        (self.any, self.cut_off) = (false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &[u8], size: usize) -> (Vec<(String, String, bool)>, bool) {
        let (mut events, mut out) = (Events::default(), Vec::new());
        for piece in text.chunks(size) {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            events.feed(piece, |event| out.push((text(event.kind), text(event.data), event.cut_off)));
        }
        (out, events.between_events())
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let text =
            "\u{feff}data: {\"a\":\"熱\"}\r\n\r\n: keep-alive\n\nevent: delta\ndata:one\ndata: two\n\n\
                    id: 7\n\nevent: lost\n\ndata\n\ndata: [DONE]\n\ndata: cut of"
                .as_bytes();
        let (whole, between) = events(text, text.len());
        let told: Vec<_> = whole.iter().map(|(kind, data, _)| (kind.as_str(), data.as_str())).collect();
        let expected =
            [("message", "{\"a\":\"熱\"}"), ("delta", "one\ntwo"), ("message", ""), ("message", "[DONE]")];
        assert_eq!(told, expected);
        assert!(!between);
        for size in 1..text.len() {
            assert_eq!(events(text, size), (whole.clone(), false), "pieces of {size}");
        }
    }

    #[test]
    fn nothing_is_half_told_only_after_an_empty_line() {
        for (text, between) in [
            ("", true),
            ("data: x\n\n", true),
            ("data: x\n", false),
            ("data: x\r\n\r\n", true),
            (": c", false),
        ] {
            assert_eq!(events(text.as_bytes(), 1).1, between, "{text:?}");
        }
    }

    #[test]
    fn an_event_that_is_too_long_is_told_as_cut_off() {
        let text = format!("data: {}\n\ndata: next\n\n", "x".repeat(MOST + 10));
        let (told, _) = events(text.as_bytes(), 1000);
        assert!(told[0].2 && told[0].1.len() <= MOST);
        assert_eq!(told[1], ("message".into(), "next".into(), false));
    }
}
