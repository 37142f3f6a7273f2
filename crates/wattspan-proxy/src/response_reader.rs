//! Reads model, tokens and content from a response while it is forwarded.
//!
//! Token counts are those that the server states; chunks are never counted as tokens. Invariant: what cannot be read is
//! ignored, because the receiver of the response reads it too.

use wattspan_http::reply::{ReplyEvent, ReplyReader};

/// The metadata that a response has stated so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseMetadata {
    /// The name of the model.
    pub model: Option<String>,
    /// Tokens of the prompt.
    pub input_tokens: Option<u64>,
    /// Tokens of the completion.
    pub output_tokens: Option<u64>,
    /// Events or lines that carried content.
    pub content_chunks: u64,
    /// Where the server reports an error, although the status is that of a success or says no more.
    pub error: Option<&'static str>,
}

impl ResponseMetadata {
    fn record(&mut self, event: &ReplyEvent<'_>, is_streamed: bool) {
        match *event {
            ReplyEvent::Model(name) => self.model = Some(name.to_owned()),
            ReplyEvent::Usage(usage) => {
                self.input_tokens = usage.input.or(self.input_tokens);
                self.output_tokens = usage.output.or(self.output_tokens);
            }
            ReplyEvent::Content => self.content_chunks += 1,
            ReplyEvent::Error(_) if is_streamed => self.error = Some("error in the stream"),
            ReplyEvent::Error(_) => self.error = Some("error in the reply"),
            _ => {}
        }
    }
}

/// The reader of one response, with what it has read.
#[derive(Debug)]
pub struct ResponseReader {
    /// `None` for a response that is compressed.
    reader: Option<ReplyReader>,
    /// The response is streamed, so that each chunk of a compressed one counts as content.
    is_streamed: bool,
    metadata: ResponseMetadata,
}

impl ResponseReader {
    pub fn new(reader: Option<ReplyReader>, is_streamed: bool) -> Self {
        ResponseReader { reader, is_streamed, metadata: ResponseMetadata::default() }
    }

    /// Reads a chunk of the body and returns how many of its events or lines carried content.
    pub fn read_chunk(&mut self, chunk: &[u8]) -> u64 {
        let Some(reader) = &mut self.reader else {
            return u64::from(self.is_streamed && !chunk.is_empty());
        };
        let before = self.metadata.content_chunks;
        let (metadata, is_streamed) = (&mut self.metadata, self.is_streamed);
        reader.feed(chunk, &mut |event| metadata.record(&event, is_streamed));
        metadata.content_chunks - before
    }

    /// Reads what is complete only at the end of the body.
    pub fn finish(&mut self) {
        if let Some(reader) = &mut self.reader {
            let (metadata, is_streamed) = (&mut self.metadata, self.is_streamed);
            reader.finish(&mut |event| metadata.record(&event, is_streamed));
        }
    }

    /// Whether the server has marked the end of the response, or all its choices have finished.
    pub fn is_complete(&self) -> bool {
        self.reader.as_ref().is_some_and(ReplyReader::is_complete)
    }

    pub fn metadata(&self) -> &ResponseMetadata {
        &self.metadata
    }

    /// Whether the response is JSON in one piece.
    pub fn is_json(&self) -> bool {
        self.reader.as_ref().is_some_and(ReplyReader::is_json)
    }

    /// Whether a comment could be added to the event stream here.
    pub fn is_between_events(&self) -> bool {
        self.reader.as_ref().is_some_and(ReplyReader::is_between_events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wattspan_http::reply::DeclaredFormat;

    fn read(declared: DeclaredFormat, text: &str, size: usize) -> (u64, ResponseMetadata, bool) {
        let reader = Some(ReplyReader::without_text(declared));
        let mut reader = ResponseReader::new(reader, declared.is_stream());
        let content = text.as_bytes().chunks(size).map(|chunk| reader.read_chunk(chunk)).sum();
        reader.finish();
        (content, reader.metadata().clone(), reader.is_complete())
    }

    #[test]
    fn a_stream_is_read_while_it_passes() {
        let text = "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"error\":\"\"}\n\n\
                    data: {\"model\":\"n\",\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}],\
                    \"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n\
                    data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\ndata: [DONE]";
        let expected = ResponseMetadata {
            model: Some("m".into()),
            input_tokens: Some(3),
            output_tokens: Some(2),
            content_chunks: 2,
            error: None,
        };
        for size in 1..=text.len() {
            for declared in [DeclaredFormat::Events, DeclaredFormat::Other] {
                assert_eq!(read(declared, text, size), (2, expected.clone(), true), "chunks of {size}");
            }
        }
        // All choices have finished, so that a client that leaves now has the whole answer.
        let finished = text.find("data: {\"choices\":[],").unwrap();
        assert!(read(DeclaredFormat::Events, &text[..finished], 9).2);
        assert!(!read(DeclaredFormat::Events, &text[..finished / 2], 9).2);
    }

    #[test]
    fn an_error_is_noted_and_a_whole_response_has_no_chunks() {
        let error = "{\"response\":\"a\",\"done\":false}\n{\"error\":\"out of memory\"}\n";
        let (content, metadata, is_complete) = read(DeclaredFormat::JsonLines, error, 7);
        assert_eq!((content, metadata.error, is_complete), (1, Some("error in the stream"), false));
        let (_, metadata, _) = read(DeclaredFormat::Other, r#"{"error":{"message":"too long"}}"#, 7);
        assert_eq!(metadata.error, Some("error in the reply"));
        let whole = r#"{"choices":[{"text":"a"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
        let (content, metadata, _) = read(DeclaredFormat::Other, whole, 7);
        assert_eq!((content, metadata.content_chunks, metadata.output_tokens), (0, 0, Some(2)));
    }

    #[test]
    fn chunks_of_a_compressed_stream_count_as_content() {
        for (is_streamed, expected) in [(true, [1, 0]), (false, [0, 0])] {
            let mut reader = ResponseReader::new(None, is_streamed);
            assert_eq!([reader.read_chunk(b"\x1f\x8b"), reader.read_chunk(b"")], expected);
            assert_eq!(reader.metadata(), &ResponseMetadata::default());
        }
    }
}
