//! Decodes JSON objects from a byte stream: one object, one after the other, or the elements of a list.
//!
//! Line breaks inside an object and between objects have no meaning, so that an indented reply is read as well as one
//! object a line. Invariant: memory is bounded; an object over the limit is shortened, or reported as truncated.

use memchr::memchr3;

use super::message_buffer::MessageBuffer;

/// The bytes of text outside objects that are kept, for an error message.
const MAX_OTHER_BYTES: usize = 256;

/// A part of a byte stream of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedObject<'a> {
    /// An object, which may be invalid JSON inside; shortened where it exceeds the limit and the decoder shortens.
    Complete(&'a [u8]),
    /// The beginning of an object over the limit.
    Truncated(&'a [u8]),
    /// Text that is no object, or an object with a line break in a string: the beginning of it.
    Other(&'a [u8]),
}

/// Decodes JSON objects from a byte stream.
#[derive(Debug)]
pub struct ObjectDecoder {
    object: MessageBuffer,
    /// Open brackets of the current object; 0 outside.
    depth: usize,
    in_string: bool,
    after_backslash: bool,
    other: Vec<u8>,
}

enum ObjectEnd {
    /// At this length, with the closing bracket.
    Closed(usize),
    /// At this length, with a line break in a string.
    Invalid(usize),
}

impl ObjectDecoder {
    /// A decoder that collects objects in this buffer.
    pub fn new(object: MessageBuffer) -> Self {
        ObjectDecoder { object, depth: 0, in_string: false, after_backslash: false, other: Vec::new() }
    }

    /// Calls `on_object` for every object that `chunk` completes. An object within one chunk is not copied.
    pub fn feed(&mut self, mut chunk: &[u8], mut on_object: impl FnMut(DecodedObject<'_>)) {
        while !chunk.is_empty() {
            if self.depth == 0 {
                chunk = self.skip_to_object(chunk, &mut on_object);
            }
            let Some(end) = self.find_end(chunk) else {
                return self.object.append(chunk);
            };
            let (ObjectEnd::Closed(length) | ObjectEnd::Invalid(length)) = end;
            let (object, rest) = chunk.split_at_checked(length).unwrap_or((chunk, &[]));
            self.end_object(object, matches!(end, ObjectEnd::Invalid(_)), &mut on_object);
            chunk = rest;
        }
    }

    /// Ends the stream; calls `on_object` for text after the last object. Returns whether an object is incomplete.
    pub fn finish(&mut self, mut on_object: impl FnMut(DecodedObject<'_>)) -> bool {
        self.end_other(&mut on_object);
        self.depth > 0
    }

    fn end_object(&mut self, object: &[u8], is_invalid: bool, on_object: &mut impl FnMut(DecodedObject<'_>)) {
        (self.depth, self.in_string) = (0, false);
        if !is_invalid && self.object.is_empty() && object.len() <= self.object.max_bytes() {
            return on_object(DecodedObject::Complete(object));
        }
        self.object.append(object);
        on_object(match self.object.end() {
            (text, _) if is_invalid => {
                DecodedObject::Other(text.get(..text.len().min(MAX_OTHER_BYTES)).unwrap_or_default())
            }
            (text, true) => DecodedObject::Complete(text),
            (text, false) => DecodedObject::Truncated(text),
        });
        self.object.clear();
    }

    /// Skips the text before an object; brackets and commas of a list around it have no meaning.
    fn skip_to_object<'a>(
        &mut self,
        chunk: &'a [u8],
        on_object: &mut impl FnMut(DecodedObject<'_>),
    ) -> &'a [u8] {
        for (at, &byte) in chunk.iter().enumerate() {
            match byte {
                b'{' => {
                    self.end_other(on_object);
                    return chunk.get(at..).unwrap_or_default();
                }
                b'\n' => self.end_other(on_object),
                b',' | b'[' | b']' => {}
                byte if byte.is_ascii_whitespace() && self.other.is_empty() => {}
                byte if self.other.len() < MAX_OTHER_BYTES => self.other.push(byte),
                _ => {}
            }
        }
        &[]
    }

    fn end_other(&mut self, on_object: &mut impl FnMut(DecodedObject<'_>)) {
        if !self.other.is_empty() {
            on_object(DecodedObject::Other(&self.other));
            self.other.clear();
        }
    }

    /// Finds the end of the object that `chunk` continues.
    fn find_end(&mut self, chunk: &[u8]) -> Option<ObjectEnd> {
        let mut at = 0;
        while let Some(&byte) = chunk.get(at) {
            at += 1;
            if std::mem::take(&mut self.after_backslash) {
                continue;
            }
            match byte {
                b'"' => self.in_string = !self.in_string,
                b'\\' => self.after_backslash = self.in_string,
                b'\n' if self.in_string => return Some(ObjectEnd::Invalid(at)),
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(ObjectEnd::Closed(at));
                    }
                }
                _ => {}
            }
            if self.in_string && !self.after_backslash {
                // The inside of strings is skipped at memory speed.
                let rest = chunk.get(at..).unwrap_or_default();
                at += memchr3(b'"', b'\\', b'\n', rest).unwrap_or(rest.len());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str, size: usize) -> (Vec<(char, String)>, bool) {
        let (mut decoder, mut out) = (ObjectDecoder::new(MessageBuffer::new(64)), Vec::new());
        let mut push = |part: DecodedObject<'_>| {
            let (kind, text) = match part {
                DecodedObject::Complete(text) => ('c', text),
                DecodedObject::Truncated(text) => ('t', text),
                DecodedObject::Other(text) => ('o', text),
            };
            out.push((kind, String::from_utf8_lossy(text).into_owned()));
        };
        text.as_bytes().chunks(size).for_each(|chunk| decoder.feed(chunk, &mut push));
        let is_incomplete = decoder.finish(&mut push);
        (out, is_incomplete)
    }

    #[test]
    fn objects_do_not_depend_on_chunk_boundaries() {
        let long = format!("{{\"c\":\"{}\"}}", "x".repeat(100));
        let indented = "{\n  \"a\": [1, {\"b\": \"}\\\"{\\\\\"}]\n}";
        for (text, expected, is_incomplete) in [
            ("", vec![], false),
            (&format!("{indented}\n"), vec![('c', indented)], false),
            (
                "{\"a\":1}\n{\"b\":2}\r\n\n{\"c\":3}",
                vec![('c', "{\"a\":1}"), ('c', "{\"b\":2}"), ('c', "{\"c\":3}")],
                false,
            ),
            ("{\"a\":1}{\"b\":2}{\"c", vec![('c', "{\"a\":1}"), ('c', "{\"b\":2}")], true),
            (" [{\"a\":1},\n {\"b\":2}]\n", vec![('c', "{\"a\":1}"), ('c', "{\"b\":2}")], false),
            (
                "{\"a\":1}\noops }\n{\"b\":2}",
                vec![('c', "{\"a\":1}"), ('o', "oops }"), ('c', "{\"b\":2}")],
                false,
            ),
            ("{\"a\":\"cut\n{\"b\":2}", vec![('o', "{\"a\":\"cut\n"), ('c', "{\"b\":2}")], false),
            ("[[1,2],[3]]", vec![('o', "123")], false),
            (&format!("{long}{{}}"), vec![('t', &long[..64]), ('c', "{}")], false),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(kind, text)| (kind, text.to_owned())).collect();
            for size in 1..=text.len().max(1) {
                let expected = (expected.clone(), is_incomplete);
                assert_eq!(decode(text, size), expected, "{text:?} in chunks of {size}");
            }
        }
    }
}
