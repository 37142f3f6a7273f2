//! Recognizes a chunk that differs from an earlier one in its content only.
//!
//! A server repeats everything but the content in each chunk of a stream: id, model, time. A chunk with the same bytes
//! before and after the content has the same fields, so that it need not be parsed as JSON. Invariant: a chunk that
//! matches is valid JSON with content that is not empty, and its other fields equal those of the parsed chunk.

use serde_json::value::RawValue;

/// The longest chunk that is stored. The chunks of most servers have 150 to 300 bytes.
const MAX_TEMPLATE_BYTES: usize = 4096;

/// The bytes of a chunk around its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentTemplate {
    /// Up to the quotation mark before the content.
    head: Vec<u8>,
    /// From the quotation mark after the content.
    tail: Vec<u8>,
}

impl ContentTemplate {
    /// The template of `chunk`, where `content` is a part of it and a string.
    pub fn new(chunk: &[u8], content: &RawValue) -> Option<Self> {
        let content = content.get().as_bytes();
        let begin = (content.as_ptr() as usize).checked_sub(chunk.as_ptr() as usize)?;
        let end = begin.checked_add(content.len())?;
        let is_string = content.len() >= 2 && content.starts_with(b"\"");
        if !is_string || chunk.len() > MAX_TEMPLATE_BYTES || chunk.get(begin..end)? != content {
            return None;
        }
        Some(ContentTemplate { head: chunk.get(..=begin)?.to_vec(), tail: chunk.get(end - 1..)?.to_vec() })
    }

    /// Whether `chunk` is the template with some content. Content with an escape is left to the parser.
    pub fn matches(&self, chunk: &[u8]) -> bool {
        let content = chunk.strip_prefix(self.head.as_slice());
        let content = content.and_then(|rest| rest.strip_suffix(self.tail.as_slice()));
        let is_plain = |byte: &u8| *byte >= b' ' && !matches!(byte, b'"' | b'\\');
        content.is_some_and(|content| {
            !content.is_empty() && content.iter().all(is_plain) && std::str::from_utf8(content).is_ok()
        })
    }
}
