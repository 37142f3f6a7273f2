//! The bytes of a message that has not arrived whole, in bounded memory.
//!
//! A message over the limit is shortened, if it is JSON whose long values need not be kept, or truncated. Invariant: the
//! content does not depend on chunk boundaries.

use super::json_shortener::JsonShortener;

/// Collects one message after the other.
#[derive(Debug, Default)]
pub struct MessageBuffer {
    bytes: Vec<u8>,
    max_bytes: usize,
    /// The message exceeds the limit; its rest is skipped.
    overflowed: bool,
    /// Messages over the limit are shortened.
    shortens: bool,
    /// The current message exceeds the limit, and is shortened as it arrives.
    shortener: Option<Box<JsonShortener>>,
}

impl MessageBuffer {
    /// A buffer for messages of at most `max_bytes` bytes; the rest of a longer one is left out.
    pub fn new(max_bytes: usize) -> Self {
        MessageBuffer { max_bytes, ..MessageBuffer::default() }
    }

    /// A buffer for JSON, which shortens messages over `max_bytes` bytes (see [`JsonShortener`]) and truncates those that
    /// are too long even then.
    pub fn shortening(max_bytes: usize) -> Self {
        MessageBuffer { max_bytes, shortens: true, ..MessageBuffer::default() }
    }

    /// The most bytes that a message keeps.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Whether nothing was appended since the last [`MessageBuffer::clear`].
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.overflowed && self.shortener.is_none()
    }

    /// Appends the next bytes of the message.
    pub fn append(&mut self, chunk: &[u8]) {
        if let Some(shortener) = &mut self.shortener {
            return shortener.feed(chunk);
        }
        if self.shortens && self.bytes.len() + chunk.len() > self.max_bytes {
            let mut shortener = Box::new(JsonShortener::new(self.max_bytes));
            shortener.feed(&self.bytes);
            shortener.feed(chunk);
            self.bytes = Vec::new();
            self.shortener = Some(shortener);
            return;
        }
        let remaining = self.max_bytes.saturating_sub(self.bytes.len());
        self.overflowed |= chunk.len() > remaining;
        self.bytes.extend_from_slice(chunk.get(..remaining.min(chunk.len())).unwrap_or_default());
    }

    /// Ends the message; returns its bytes and whether none of it was left out by truncation.
    pub fn end(&mut self) -> (&[u8], bool) {
        if let Some(shortener) = self.shortener.take() {
            let (text, is_complete) = shortener.finish();
            (self.bytes, self.overflowed) = (text, !is_complete);
        }
        (&self.bytes, !self.overflowed)
    }

    /// Removes the message, and releases the memory of a long one.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(1024);
        self.overflowed = false;
        self.shortener = None;
    }
}
