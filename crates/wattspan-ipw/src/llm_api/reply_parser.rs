//! Parser of replies, streamed or complete, for three interfaces.
//!
//! Times are taken from the local clock when a chunk arrives; times reported by the server are ignored. Invariant: a
//! reply is complete only if the server signals its end. Error texts within a stream, empty answers and truncated
//! streams are errors.

use serde_json::Value;
use wattspan_http::lenient_json;
use wattspan_http::line_decoder::{DecodedLine, LineDecoder};
use wattspan_http::sse::SseDecoder;
use wattspan_http::token_usage::{self, TokenUsage, is_done_marker, is_finish_reason};

use super::Api;
use super::reply::{ModelReply, ReplyError, one_line};

/// The maximum size of an unstreamed reply, and of one event or line of a stream, in bytes.
const MAX_REPLY_BYTES: usize = 32 << 20;

/// Parser of one reply.
#[derive(Debug)]
pub struct ReplyParser {
    api: Api,
    format: BodyFormat,
    partial: PartialReply,
}

#[derive(Debug)]
enum BodyFormat {
    ServerSentEvents(Box<SseDecoder>),
    JsonLines(LineDecoder),
    Json(Vec<u8>),
    /// Not known before the first bytes: the type is missing or is not that of the body.
    Unknown(Vec<u8>),
}

impl BodyFormat {
    fn events() -> Self {
        BodyFormat::ServerSentEvents(Box::new(SseDecoder::with_limit(MAX_REPLY_BYTES)))
    }

    /// The format of a body that begins with these bytes; `None` if more are needed.
    fn detect(api: Api, begin: &[u8]) -> Option<Self> {
        const FIELDS: [&[u8]; 5] = [b"data:", b"event:", b"id:", b"retry:", b":"];
        let begin = begin.trim_ascii_start();
        let is_prefix = |field: &&[u8]| field.starts_with(begin) || begin.starts_with(field);
        if FIELDS.iter().any(|field| begin.starts_with(field)) {
            Some(Self::events())
        } else if FIELDS.iter().any(is_prefix) {
            None
        } else if api == Api::Ollama {
            // An unstreamed reply of Ollama is a single line.
            Some(BodyFormat::JsonLines(LineDecoder::new(MAX_REPLY_BYTES)))
        } else {
            Some(BodyFormat::Json(Vec::new()))
        }
    }
}

#[derive(Debug, Default)]
struct PartialReply {
    reply: ModelReply,
    /// Whether any data was received.
    received_data: bool,
    /// Whether the server signalled the end.
    done: bool,
    error: Option<ReplyError>,
    logprobs: (f64, u64),
}

impl ReplyParser {
    /// Creates a parser for a reply of this content type to a request sent at `began_ns`.
    pub fn new(api: Api, content_type: &str, began_ns: u64) -> Self {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let format = if media_type.eq_ignore_ascii_case("text/event-stream") {
            BodyFormat::events()
        } else {
            BodyFormat::Unknown(Vec::new())
        };
        let reply = ModelReply { began_ns, ..ModelReply::default() };
        Self { api, format, partial: PartialReply { reply, ..PartialReply::default() } }
    }

    /// Parses the data received at `now_ns`; returns `true` if it has the first token.
    pub fn feed(&mut self, bytes: &[u8], now_ns: u64) -> bool {
        let before_first_token = self.partial.reply.first_token_ns.is_none();
        if let BodyFormat::Unknown(begin) = &mut self.format {
            begin.extend_from_slice(bytes);
            let begin = std::mem::take(begin);
            match BodyFormat::detect(self.api, &begin) {
                Some(format) => {
                    self.format = format;
                    return self.feed(&begin, now_ns);
                }
                None => self.format = BodyFormat::Unknown(begin),
            }
            return false;
        }
        let (api, partial) = (self.api, &mut self.partial);
        match &mut self.format {
            BodyFormat::Unknown(_) => {}
            BodyFormat::ServerSentEvents(events) => events.feed(bytes, |event| {
                if event.truncated {
                    partial.set_error(ReplyError::Malformed("an event is too long".into()));
                } else {
                    partial.push_event(api, event.event_type, event.data, now_ns);
                }
            }),
            BodyFormat::JsonLines(lines) => lines.feed(bytes, |line| match line {
                DecodedLine::Complete(line) => partial.push_event(api, b"message", line, now_ns),
                DecodedLine::Truncated(_) => {
                    partial.set_error(ReplyError::Malformed("a line is too long".into()))
                }
            }),
            BodyFormat::Json(body) if body.len() + bytes.len() > MAX_REPLY_BYTES => {
                partial.set_error(ReplyError::Malformed("the body is too long".into()));
            }
            BodyFormat::Json(body) => body.extend_from_slice(bytes),
        }
        before_first_token && self.partial.reply.first_token_ns.is_some()
    }

    /// Finishes the reply; the body ended at `now_ns`.
    ///
    /// # Errors
    /// The reply is incomplete or an error.
    pub fn finish(mut self, now_ns: u64) -> Result<ModelReply, ReplyError> {
        match &mut self.format {
            BodyFormat::Json(body) | BodyFormat::Unknown(body) => {
                let body = std::mem::take(body);
                self.partial.push_body(self.api, &body);
            }
            BodyFormat::JsonLines(lines) => {
                if let Some(rest) = lines.finish() {
                    self.partial.push_event(self.api, b"message", &rest, now_ns);
                }
            }
            BodyFormat::ServerSentEvents(events) => {
                // A server may close the stream without the blank line after the last event.
                let (api, partial) = (self.api, &mut self.partial);
                events.finish(|event| {
                    // An event that was cut in the middle is not read: the stream is incomplete.
                    if is_done_marker(event.data) || lenient_json::parse(event.data).is_ok() {
                        partial.push_event(api, event.event_type, event.data, now_ns);
                    }
                });
            }
        }
        let PartialReply { mut reply, received_data, done, error, logprobs } = self.partial;
        if let Some(error) = error {
            return Err(error);
        }
        let has_output =
            reply.tokens_out.is_some_and(|tokens| tokens > 0) || !reply.chunk_times_ns.is_empty();
        if !received_data || (!has_output && reply.text.is_empty()) {
            return Err(ReplyError::Empty);
        }
        if !done {
            return Err(ReplyError::IncompleteStream);
        }
        if let Some(error) = error_text(&reply.text) {
            return Err(ReplyError::ErrorInBody(error));
        }
        reply.text = lenient_json::join_halves(&reply.text);
        reply.ended_ns = now_ns;
        reply.mean_logprob = (logprobs.1 > 0).then(|| logprobs.0 / logprobs.1 as f64);
        Ok(reply)
    }
}

fn token_count(value: &Value) -> Option<u64> {
    token_usage::token_count(&value.to_string())
}

/// Detects servers that send an error as the answer: the whole text is "[Error: ...]".
fn error_text(text: &str) -> Option<String> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let error = inner.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("error:"));
    error.then(|| one_line(inner))
}

impl PartialReply {
    fn set_error(&mut self, error: ReplyError) {
        self.error.get_or_insert(error);
    }

    fn push_event(&mut self, api: Api, event_type: &[u8], data: &[u8], now_ns: u64) {
        if data.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        self.received_data = true;
        if is_done_marker(data) {
            self.done = true;
            return;
        }
        let Ok(value) = lenient_json::parse(data) else {
            let text = one_line(&String::from_utf8_lossy(data));
            return self.set_error(if event_type == b"error" {
                ReplyError::ErrorInBody(text)
            } else {
                ReplyError::Malformed(text)
            });
        };
        if self.reports_error(&value) {
            return;
        }
        let has_text =
            if api == Api::Ollama { self.push_ollama(&value) } else { self.push_openai(&value, "delta") };
        if has_text {
            self.reply.first_token_ns.get_or_insert(now_ns);
            self.reply.chunk_times_ns.push(now_ns);
        }
    }

    fn push_body(&mut self, api: Api, body: &[u8]) {
        if body.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        self.received_data = true;
        let Ok(value) = lenient_json::parse(body) else {
            return self.set_error(ReplyError::Malformed(one_line(&String::from_utf8_lossy(body))));
        };
        if self.reports_error(&value) {
            return;
        }
        if api == Api::Ollama {
            self.push_ollama(&value)
        } else {
            self.push_openai(&value, "message")
        };
        // A complete body is a complete answer, with or without a finish reason.
        self.done = true;
    }

    fn reports_error(&mut self, value: &Value) -> bool {
        // Some servers name an error in every message, without any.
        let is_none = |error: &Value| match error {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        let Some(error) = value.get("error").filter(|error| !is_none(error)) else { return false };
        let message = error.get("message").unwrap_or(error);
        let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
        self.set_error(ReplyError::ErrorInBody(one_line(&message)));
        true
    }

    /// Parses an OpenAI chunk or complete response; `true` if it has text.
    fn push_openai(&mut self, value: &Value, part: &str) -> bool {
        if let Some(usage) = value.get("usage").filter(|usage| usage.is_object()) {
            let usage = TokenUsage::parse(&usage.to_string()).unwrap_or_default();
            self.reply.tokens_in = usage.input.or(self.reply.tokens_in);
            self.reply.tokens_out = usage.output.or(self.reply.tokens_out);
            self.reply.tokens_cached = usage.cached.or(self.reply.tokens_cached);
        }
        let Some(choice) = value.pointer("/choices/0") else { return false };
        // Some servers write an empty reason, or the word null, in every chunk.
        let finish = choice.get("finish_reason").and_then(Value::as_str);
        if let Some(finish) = finish.filter(|reason| is_finish_reason(reason)) {
            self.reply.finish = Some(finish.to_owned());
            self.done = true;
        }
        self.push_logprobs(choice);
        let message = choice.get(part);
        let text = |of: &str| {
            message.and_then(|message| message.get(of)).and_then(Value::as_str).unwrap_or_default()
        };
        let parts = message.and_then(|message| message.get("content")).and_then(Value::as_array);
        let part_texts = parts.into_iter().flatten().filter_map(|part| part.get("text")?.as_str());
        let parts: String = part_texts.collect();
        let content = choice.get("text").and_then(Value::as_str).unwrap_or_else(|| text("content"));
        let content = if parts.is_empty() { content } else { &parts };
        self.reply.text.push_str(content);
        !content.is_empty() || !text("reasoning_content").is_empty() || !text("reasoning").is_empty()
    }

    fn push_logprobs(&mut self, choice: &Value) {
        let Some(logprobs) = choice.get("logprobs") else { return };
        let chat = logprobs.get("content").and_then(Value::as_array).into_iter().flatten();
        let chat = chat.filter_map(|token| token.get("logprob")?.as_f64());
        let plain = logprobs.get("token_logprobs").and_then(Value::as_array).into_iter().flatten();
        for logprob in chat.chain(plain.filter_map(Value::as_f64)).filter(|logprob| logprob.is_finite()) {
            self.logprobs.0 += logprob;
            self.logprobs.1 += 1;
        }
    }

    /// Parses an Ollama line; `true` if it has text.
    fn push_ollama(&mut self, value: &Value) -> bool {
        let text = |of: &str| value.pointer(of).and_then(Value::as_str).unwrap_or_default();
        if value.get("done").and_then(Value::as_bool) == Some(true) {
            self.done = true;
            let count = |of: &str| value.get(of).and_then(token_count);
            self.reply.tokens_in = count("prompt_eval_count").or(self.reply.tokens_in);
            self.reply.tokens_out = count("eval_count").or(self.reply.tokens_out);
            let finish = text("/done_reason");
            if !finish.is_empty() {
                self.reply.finish = Some(finish.to_owned());
            }
        }
        // Some proxies with Ollama's interface put a chat's text in the field of `generate`.
        let content = [text("/message/content"), text("/response")].concat();
        self.reply.text.push_str(&content);
        !content.is_empty() || !text("/message/thinking").is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(api: Api, kind: &str, body: &[u8], size: usize) -> Result<ModelReply, ReplyError> {
        let mut parser = ReplyParser::new(api, kind, 100);
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
            let reply =
                parse(Api::Chat, "text/event-stream; charset=utf-8", STREAM.as_bytes(), size).unwrap();
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
                let reply = parse(Api::Chat, kind, stream.as_bytes(), size).unwrap();
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
            let result = parse(Api::Chat, "text/event-stream", stream.as_bytes(), 9);
            assert_eq!(result, Err(ReplyError::IncompleteStream), "{reason}");
        }
        let cut = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"del";
        let result = parse(Api::Chat, "text/event-stream", cut.as_bytes(), 9);
        assert_eq!(result, Err(ReplyError::IncompleteStream));
    }

    #[test]
    fn a_long_event_is_parsed() {
        let word = "x".repeat(40_000);
        let stream = format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{word}\"}},\"finish_reason\":\"stop\"}}]}}\n\n"
        );
        let reply = parse(Api::Chat, "text/event-stream", stream.as_bytes(), 1500).unwrap();
        assert_eq!(reply.text, word);
    }

    #[test]
    fn unstreamed_replies_of_all_apis_are_parsed() {
        let chat = br#"{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let reply = parse(Api::Chat, "application/json", chat, 5).unwrap();
        assert_eq!((reply.text.as_str(), reply.tokens_out, reply.first_token_ns), ("Hi", Some(2), None));
        let plain = br#"{"choices":[{"text":"Hi","finish_reason":"length","logprobs":{"token_logprobs":[null,-2.0]}}]}"#;
        let reply = parse(Api::Completions, "application/json", plain, 5).unwrap();
        assert_eq!((reply.finish.as_deref(), reply.mean_logprob), (Some("length"), Some(-2.0)));
        let lines = b"{\"message\":{\"content\":\"H\"},\"done\":false}\n{\"message\":{\"content\":\"i\"},\"done\":true,\
            \"done_reason\":\"stop\",\"prompt_eval_count\":4,\"eval_count\":2}";
        let reply = parse(Api::Ollama, "application/x-ndjson", lines, 3).unwrap();
        assert_eq!((reply.text.as_str(), reply.tokens_in, reply.tokens_out), ("Hi", Some(4), Some(2)));
    }

    #[test]
    fn tokens_are_estimated_from_chunks_without_usage() {
        let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        let reply = parse(Api::Chat, "text/event-stream", stream.as_bytes(), 50).unwrap();
        assert_eq!(reply.output_tokens(), (Some(2), true));
    }

    #[test]
    fn empty_truncated_and_error_replies_are_errors() {
        let stream = |text: &str| parse(Api::Chat, "text/event-stream", text.as_bytes(), 9).unwrap_err();
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
        let whole = |text: &str| parse(Api::Chat, "application/json", text.as_bytes(), 9).unwrap_err();
        assert_eq!(whole(" \n"), ReplyError::Empty);
        assert!(matches!(whole("oops"), ReplyError::Malformed(_)));
        assert_eq!(parse(Api::Chat, "", b"", 1), Err(ReplyError::Empty));
    }
}
