//! Builds the reply to a query from the events of the shared reader, with times.
//!
//! Times are taken from the local clock when a chunk arrives; times reported by the server are ignored. Invariant: a
//! reply is complete only if the server signals its end. Error texts within a stream, empty answers and truncated
//! streams are errors.

use wattspan_http::reply::{AnswerText, DeclaredFormat, ReplyEvent, ReplyReader};

use super::reply::{ModelReply, ReplyError, one_line};

/// Builder of one reply.
#[derive(Debug)]
pub struct ReplyBuilder {
    reader: ReplyReader,
    partial: PartialReply,
}

#[derive(Debug, Default)]
struct PartialReply {
    reply: ModelReply,
    answer: AnswerText,
    /// The body ended inside a message.
    is_cut: bool,
    error: Option<ReplyError>,
    logprobs: (f64, u64),
}

impl ReplyBuilder {
    /// Creates a builder for a reply of this content type to a request sent at `began_ns`.
    pub fn new(content_type: &str, began_ns: u64) -> Self {
        let reader = ReplyReader::with_text(DeclaredFormat::from_content_type(content_type));
        let reply = ModelReply { began_ns, ..ModelReply::default() };
        Self { reader, partial: PartialReply { reply, ..PartialReply::default() } }
    }

    /// Reads the data received at `now_ns`; returns `true` if it has the first token.
    pub fn feed(&mut self, bytes: &[u8], now_ns: u64) -> bool {
        let before_first_token = self.partial.reply.first_token_ns.is_none();
        self.reader.feed(bytes, &mut |event| self.partial.record(&event, now_ns));
        before_first_token && self.partial.reply.first_token_ns.is_some()
    }

    /// Finishes the reply; the body ended at `now_ns`.
    ///
    /// # Errors
    /// The reply is incomplete or an error.
    pub fn finish(mut self, now_ns: u64) -> Result<ModelReply, ReplyError> {
        self.reader.finish(&mut |event| self.partial.record(&event, now_ns));
        let is_complete = self.reader.is_complete();
        let PartialReply { mut reply, answer, is_cut, error, logprobs } = self.partial;
        if let Some(error) = error {
            return Err(error);
        }
        reply.text = answer.text();
        let has_output =
            reply.tokens_out.is_some_and(|tokens| tokens > 0) || !reply.chunk_times_ns.is_empty();
        if !is_cut && !has_output && reply.text.is_empty() {
            return Err(ReplyError::Empty);
        }
        if !is_complete {
            return Err(ReplyError::IncompleteStream);
        }
        if let Some(error) = error_text(&reply.text) {
            return Err(ReplyError::ErrorInBody(error));
        }
        reply.finish = answer.into_finish();
        reply.ended_ns = now_ns;
        reply.mean_logprob = (logprobs.1 > 0).then(|| logprobs.0 / logprobs.1 as f64);
        Ok(reply)
    }
}

impl PartialReply {
    fn record(&mut self, event: &ReplyEvent<'_>, now_ns: u64) {
        self.answer.collect(event);
        match *event {
            ReplyEvent::Usage(usage) => {
                self.reply.tokens_in = usage.input.or(self.reply.tokens_in);
                self.reply.tokens_out = usage.output.or(self.reply.tokens_out);
                self.reply.tokens_cached = usage.cached.or(self.reply.tokens_cached);
            }
            ReplyEvent::Content => {
                self.reply.first_token_ns.get_or_insert(now_ns);
                self.reply.chunk_times_ns.push(now_ns);
            }
            ReplyEvent::Logprob(logprob) => {
                self.logprobs.0 += logprob;
                self.logprobs.1 += 1;
            }
            ReplyEvent::Error(error) => self.set_error(ReplyError::ErrorInBody(one_line(error))),
            ReplyEvent::Malformed(data) => {
                self.set_error(ReplyError::Malformed(one_line(&String::from_utf8_lossy(data))));
            }
            ReplyEvent::TooLong => self.set_error(ReplyError::Malformed("a message is too long".into())),
            ReplyEvent::Cut => self.is_cut = true,
            ReplyEvent::Model(_) | ReplyEvent::Text { .. } | ReplyEvent::Finish { .. } | ReplyEvent::End => {}
        }
    }

    fn set_error(&mut self, error: ReplyError) {
        self.error.get_or_insert(error);
    }
}

/// Detects servers that send an error as the answer: the whole text is "[Error: ...]".
fn error_text(text: &str) -> Option<String> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let error = inner.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("error:"));
    error.then(|| one_line(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, body: &[u8], size: usize) -> Result<ModelReply, ReplyError> {
        let mut parser = ReplyBuilder::new(kind, 100);
        let mut now_ns = 100;
        for piece in body.chunks(size) {
            now_ns += 10;
            parser.feed(piece, now_ns);
        }
        parser.finish(now_ns + 10)
    }

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"},\"finish_reason\":null}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"H\u{e9}\"},\"logprobs\":{\"content\":[{\"logprob\":-0.5}]}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"llo\"},\"logprobs\":{\"content\":[{\"logprob\":-1.5}]}}]}\n\n\
        data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n\
        data: [DONE]\n\n";

    #[test]
    fn parsing_does_not_depend_on_chunk_boundaries() {
        for size in [1, 2, 7, 64, 10_000] {
            let reply = parse("text/event-stream; charset=utf-8", STREAM.as_bytes(), size).unwrap();
            assert_eq!((reply.text.as_str(), reply.finish.as_deref()), ("H\u{e9}llo", Some("stop")));
            assert_eq!((reply.tokens_in, reply.tokens_out, reply.tokens_cached), (Some(9), Some(3), Some(4)));
            assert_eq!((reply.chunk_times_ns.len(), reply.mean_logprob), (2, Some(-1.0)));
            assert!(reply.first_token_ns.unwrap() > reply.began_ns);
        }
    }

    #[test]
    fn streams_of_real_servers_are_read() {
        let stream = "data: {\"error\":\"\",\"choices\":[{\"delta\":{\"content\":\"a \\ud83d\"},\"finish_reason\":\"\"}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"\\ude00\"},\"finish_reason\":\"null\",\"logprobs\":{\"content\":[{\"logprob\":NaN}]}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":[{\"type\":\"text\",\"text\":\" b\"}]},\"finish_reason\":\"stop\"}],\
            \"usage\":{\"prompt_tokens\":9.0,\"completion_tokens\":3.0,\"input_tokens\":0,\"output_tokens\":0}}\n\ndata: [DONE] ";
        for kind in ["TEXT/Event-Stream", "", "text/plain"] {
            for size in [1, 3, 10_000] {
                let reply = parse(kind, stream.as_bytes(), size).unwrap();
                assert_eq!(reply.text, "a \u{1f600} b", "{kind}");
                assert_eq!((reply.tokens_in, reply.tokens_out), (Some(9), Some(3)));
                assert_eq!((reply.finish.as_deref(), reply.mean_logprob), (Some("stop"), None));
            }
        }
    }

    #[test]
    fn a_stream_that_stops_is_incomplete_whatever_its_chunks_call_the_finish() {
        for reason in ["\"\"", "\"null\"", "null"] {
            let stream = format!(
                "data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}},\"finish_reason\":{reason}}}]}}\n\n"
            );
            let result = parse("text/event-stream", stream.as_bytes(), 9);
            assert_eq!(result, Err(ReplyError::IncompleteStream), "{reason}");
        }
        let cut = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"del";
        let result = parse("text/event-stream", cut.as_bytes(), 9);
        assert_eq!(result, Err(ReplyError::IncompleteStream));
    }

    #[test]
    fn a_long_event_is_parsed() {
        let word = "x".repeat(40_000);
        let stream = format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{word}\"}},\"finish_reason\":\"stop\"}}]}}\n\n"
        );
        let reply = parse("text/event-stream", stream.as_bytes(), 1500).unwrap();
        assert_eq!(reply.text, word);
    }

    #[test]
    fn unstreamed_replies_of_all_apis_are_parsed() {
        let chat = br#"{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let reply = parse("application/json", chat, 5).unwrap();
        assert_eq!((reply.text.as_str(), reply.tokens_out, reply.first_token_ns), ("Hi", Some(2), None));
        let plain = br#"{"choices":[{"text":"Hi","finish_reason":"length","logprobs":{"token_logprobs":[null,-2.0]}}]}"#;
        let reply = parse("application/json", plain, 5).unwrap();
        assert_eq!((reply.finish.as_deref(), reply.mean_logprob), (Some("length"), Some(-2.0)));
        let lines = b"{\"message\":{\"content\":\"H\"},\"done\":false}\n{\"message\":{\"content\":\"i\"},\"done\":true,\
            \"done_reason\":\"stop\",\"prompt_eval_count\":4,\"eval_count\":2}";
        let reply = parse("application/x-ndjson", lines, 3).unwrap();
        assert_eq!((reply.text.as_str(), reply.tokens_in, reply.tokens_out), ("Hi", Some(4), Some(2)));
    }

    #[test]
    fn tokens_are_estimated_from_chunks_without_usage() {
        let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        let reply = parse("text/event-stream", stream.as_bytes(), 50).unwrap();
        assert_eq!(reply.output_tokens(), (Some(2), true));
    }

    #[test]
    fn empty_truncated_and_error_replies_are_errors() {
        let stream = |text: &str| parse("text/event-stream", text.as_bytes(), 9).unwrap_err();
        assert_eq!(stream(""), ReplyError::Empty);
        assert_eq!(stream("data: [DONE]\n\n"), ReplyError::Empty);
        let unfinished = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
        assert_eq!(stream(unfinished), ReplyError::IncompleteStream);
        let inside =
            |error| matches!(error, ReplyError::ErrorInBody(message) if message.contains("out of memory"));
        assert!(inside(stream(&format!(
            "{unfinished}data: {{\"error\":{{\"message\":\"out of memory\"}}}}\n\n"
        ))));
        assert!(inside(stream("event: error\ndata: out of memory\n\n")));
        let error_reply = "data: {\"choices\":[{\"delta\":{\"content\":\"[Error: out of memory]\"},\"finish_reason\":\"stop\"}]}\n\n";
        assert!(inside(stream(error_reply)));
        assert!(matches!(stream("data: <html>\n\n"), ReplyError::Malformed(_)));
        let whole = |text: &str| parse("application/json", text.as_bytes(), 9).unwrap_err();
        assert_eq!(whole(" \n"), ReplyError::Empty);
        assert!(matches!(whole("oops"), ReplyError::Malformed(_)));
        assert_eq!(parse("", b"", 1), Err(ReplyError::Empty));
    }

    #[test]
    fn a_reply_that_ends_inside_a_message_broke_off() {
        for (kind, body) in [
            ("application/json", "{\"choices\":[{\"message\":{\"content\":\"Hi"),
            ("application/x-ndjson", "{\"response\":\"a\",\"done\":false}\n{\"resp"),
            ("text/event-stream", "data: {\"choices\":[{\"del"),
        ] {
            assert_eq!(parse(kind, body.as_bytes(), 9), Err(ReplyError::IncompleteStream), "{kind}");
        }
    }

    #[test]
    fn of_several_choices_the_first_is_the_answer() {
        let chunk = |index: u32, text: &str, reason: &str| {
            format!(
                "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"{text}\"}},\
                 \"finish_reason\":{reason}}}]}}\n\n"
            )
        };
        let (stop, length) = ("\"stop\"", "\"length\"");
        let interleaved =
            [chunk(0, "a", "null"), chunk(1, "A", "null"), chunk(0, "b", length), chunk(1, "B", stop)];
        let in_turn =
            [chunk(0, "a", "null"), chunk(0, "b", length), chunk(1, "A", "null"), chunk(1, "B", stop)];
        for chunks in [interleaved, in_turn] {
            let reply = parse("text/event-stream", chunks.concat().as_bytes(), 9).unwrap();
            assert_eq!((reply.text.as_str(), reply.finish.as_deref()), ("ab", Some("length")));
            let cut = chunks[..3].concat();
            let result = parse("text/event-stream", cut.as_bytes(), 9);
            assert_eq!(result, Err(ReplyError::IncompleteStream));
        }
    }

    #[test]
    fn a_whole_reply_has_no_first_token() {
        let ollama = br#"{"message":{"content":"Hi"},"done":true,"done_reason":"stop","eval_count":2}"#;
        let reply = parse("application/json", ollama, 5).unwrap();
        assert_eq!((reply.text.as_str(), reply.first_token_ns, reply.tokens_out), ("Hi", None, Some(2)));
    }
}
