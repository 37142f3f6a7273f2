//! Recognizes a chunk that differs from an earlier one in its content only.
//!
//! A server repeats everything but the content in each chunk of a stream: id, model, time. A chunk with the same bytes
//! before and after the content has the same fields, so that it need not be parsed as JSON. Invariant: a chunk that
//! matches is valid JSON with content that is not empty, and its other fields equal those of the parsed chunk.

/// The longest chunk that is stored. The chunks of most servers have 150 to 300 bytes.
const MAX_TEMPLATE_BYTES: usize = 4096;

/// The most templates of a stream: its choices that continue at the same time.
const MAX_TEMPLATES: usize = 4;

/// After so many templates that no chunk matched, the chunks of a stream differ in more than their content.
const MAX_UNUSED: usize = 16;

/// The templates of a stream.
#[derive(Debug, Default)]
pub struct ContentTemplates {
    templates: Vec<ContentTemplate>,
    /// Templates since the last match.
    unused: usize,
}

/// What a chunk states that matches a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkContent<'a> {
    pub choice: u32,
    /// The inside of a JSON string.
    pub content: &'a str,
    /// The content is text for the reader, rather than reasoning.
    pub is_text: bool,
}

impl ContentTemplates {
    /// Adds the template of `chunk`, whose content is a part of it, the inside of a string without escapes.
    pub fn add(&mut self, chunk: &[u8], content: ChunkContent<'_>) {
        if self.unused >= MAX_UNUSED {
            return;
        }
        if let Some(template) = ContentTemplate::new(chunk, content) {
            self.unused += 1;
            if self.templates.len() >= MAX_TEMPLATES {
                self.templates.remove(0);
            }
            self.templates.push(template);
        }
    }

    /// The content of `chunk`, if it matches a template; with `is_plain` only content without escapes.
    #[inline]
    pub fn find<'a>(&mut self, chunk: &'a [u8], is_plain: bool) -> Option<ChunkContent<'a>> {
        let content =
            self.templates.iter().rev().find_map(|template| template.content_of(chunk, is_plain))?;
        self.unused = 0;
        Some(content)
    }
}

/// The bytes of a chunk around its content.
#[derive(Debug)]
struct ContentTemplate {
    /// Up to the quotation mark before the content.
    head: Vec<u8>,
    /// From the quotation mark after the content.
    tail: Vec<u8>,
    choice: u32,
    is_text: bool,
}

impl ContentTemplate {
    fn new(chunk: &[u8], ChunkContent { choice, content, is_text }: ChunkContent<'_>) -> Option<Self> {
        let begin = (content.as_ptr() as usize).checked_sub(chunk.as_ptr() as usize)?;
        let end = begin.checked_add(content.len())?;
        let (head, tail) = (chunk.get(..begin)?, chunk.get(end..)?);
        let is_string = head.ends_with(b"\"") && tail.starts_with(b"\"");
        if !is_string || chunk.len() > MAX_TEMPLATE_BYTES || chunk.get(begin..end)? != content.as_bytes() {
            return None;
        }
        Some(ContentTemplate { head: head.to_vec(), tail: tail.to_vec(), choice, is_text })
    }

    /// The content of `chunk`, if it is the template with some content.
    fn content_of<'a>(&self, chunk: &'a [u8], is_plain: bool) -> Option<ChunkContent<'a>> {
        let content = chunk.strip_prefix(self.head.as_slice())?.strip_suffix(self.tail.as_slice())?;
        if content.is_empty() || !is_string_content(content, is_plain) {
            return None;
        }
        let content = std::str::from_utf8(content).ok()?;
        Some(ChunkContent { choice: self.choice, content, is_text: self.is_text })
    }
}

/// Whether bytes are the inside of a JSON string. Escapes of code points are left to the parser.
fn is_string_content(content: &[u8], is_plain: bool) -> bool {
    let mut bytes = content.iter();
    while let Some(byte) = bytes.next() {
        let is_valid = match byte {
            b'"' | 0..b' ' => false,
            b'\\' => {
                let escaped = bytes.next();
                !is_plain && matches!(escaped, Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't'))
            }
            _ => true,
        };
        if !is_valid {
            return false;
        }
    }
    true
}
