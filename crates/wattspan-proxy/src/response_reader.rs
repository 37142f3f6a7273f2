//! Reads model, tokens and content from a response while it is forwarded.
//!
//! Knows the dialects: OpenAI's chunks, usage and responses, Anthropic's messages, Ollama's lines, llama.cpp's
//! completions. A chunk that cannot be parsed is ignored. Token counts are those that the server states; chunks are
//! never counted as tokens. Invariant: the reader stores one line or one value at most, and of a line over 32 KiB its
//! structure and its short values.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use wattspan_http::lenient_json;
use wattspan_http::line_decoder::{DecodedLine, LineDecoder};
use wattspan_http::sse::{MAX_EVENT_BYTES, SseDecoder};
use wattspan_http::token_usage::{TokenUsage, is_done_marker, is_finish_reason, token_count};

use super::content_template::ContentTemplate;
use super::json_scanner::JsonScanner;

/// The reader for the format of one response.
#[derive(Debug)]
pub enum ResponseReader {
    /// Server-sent events.
    Sse(Box<SseDecoder>),
    /// A JSON object on each line.
    JsonLines(LineDecoder),
    Json(Box<JsonScanner>),
    /// The type is missing: server-sent events or JSON, by the first byte that is not blank.
    Unknown,
    /// A body that is not read: compressed, or in another format.
    Opaque {
        /// The body is streamed, so that each chunk counts as content.
        stream: bool,
    },
}

/// The keys of a response that is one JSON object.
const METADATA_KEYS: &[&str] =
    &["model", "usage", "prompt_eval_count", "eval_count", "tokens_evaluated", "tokens_predicted"];

impl ResponseReader {
    pub fn sse() -> Self {
        ResponseReader::Sse(Box::default())
    }

    pub fn json_lines() -> Self {
        ResponseReader::JsonLines(LineDecoder::shortening(MAX_EVENT_BYTES))
    }

    pub fn json() -> Self {
        ResponseReader::Json(Box::new(JsonScanner::new(METADATA_KEYS)))
    }

    /// Reads a chunk of the body and returns how many of its events or lines carried content.
    pub fn read_chunk(&mut self, chunk: &[u8], metadata: &mut ResponseMetadata) -> u64 {
        if let (ResponseReader::Unknown, Some(first)) = (&self, chunk.trim_ascii_start().first()) {
            *self = if matches!(first, b'{' | b'[') { Self::json() } else { Self::sse() };
        }
        let mut content = 0;
        let mut count = |info: ChunkInfo| content += u64::from(info.has_content);
        match self {
            ResponseReader::Sse(decoder) => decoder.feed(chunk, |event| match event.truncated {
                false => count(metadata.read_chunk(event.data)),
                true => count(ChunkInfo { has_content: true, is_last_usage: false }),
            }),
            ResponseReader::JsonLines(decoder) => decoder.feed(chunk, |line| match line {
                DecodedLine::Complete(line) => count(metadata.read_chunk(line)),
                DecodedLine::Truncated(_) => count(ChunkInfo { has_content: true, is_last_usage: false }),
            }),
            ResponseReader::Json(scanner) => scanner.feed(chunk),
            ResponseReader::Unknown => {}
            ResponseReader::Opaque { stream } => content = u64::from(*stream && !chunk.is_empty()),
        }
        content
    }

    /// Reads what is complete only at the end of the body.
    pub fn finish(&mut self, metadata: &mut ResponseMetadata) {
        match self {
            ResponseReader::Json(scanner) => {
                let text = |key| scanner.get(key).map(|found| found.text.as_slice());
                metadata.read_body(text("model"), text("usage"));
                metadata.read_token_counts(text("prompt_eval_count"), text("eval_count"));
                metadata.read_token_counts(text("tokens_evaluated"), text("tokens_predicted"));
            }
            ResponseReader::JsonLines(decoder) => {
                // The last line may lack its line break.
                if let Some(line) = decoder.finish() {
                    metadata.read_chunk(&line);
                }
            }
            // The last event may lack its blank line.
            ResponseReader::Sse(decoder) => decoder.finish(|event| _ = metadata.read_chunk(event.data)),
            ResponseReader::Unknown | ResponseReader::Opaque { .. } => {}
        }
    }
}

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
    /// The server marked the end of the response.
    pub done: bool,
    /// The response contains an error.
    pub error: bool,
    choices: ChoiceProgress,
    /// Of the last parsed chunk that had content and nothing that changes the metadata if it is repeated.
    template: Option<ContentTemplate>,
}

/// The choices of a response that have appeared and those that have finished, one bit each. Several choices are
/// interleaved in a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ChoiceProgress {
    seen: u128,
    finished: u128,
    /// A choice has an index beyond 127 or an invalid one.
    has_untracked: bool,
}

/// The content of one event or line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkInfo {
    pub has_content: bool,
    /// No later chunk states usage.
    pub is_last_usage: bool,
}

#[derive(Default, Deserialize)]
struct ResponseChunk<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Option<Vec<ChunkChoice<'a>>>,
    #[serde(borrow, rename = "type", default)]
    event_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(default)]
    done: Option<bool>,
    #[serde(default)]
    stop: Option<bool>,
    #[serde(borrow, default)]
    prompt_eval_count: Option<&'a RawValue>,
    #[serde(borrow, default)]
    eval_count: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tokens_evaluated: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tokens_predicted: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ChunkChoice<'a> {
    #[serde(borrow, default)]
    index: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    delta: Option<ChunkDelta<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct ChunkDelta<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    thinking: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partial_json: Option<&'a RawValue>,
}

/// An OpenAI response or an Anthropic message inside an event.
#[derive(Default, Deserialize)]
struct NestedResponse<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

impl ChoiceProgress {
    fn record(&mut self, choice: &ChunkChoice<'_>) {
        let index = choice.index.map_or(Some(0), |raw| raw.get().parse::<u32>().ok());
        match index.and_then(|index| 1_u128.checked_shl(index)) {
            Some(bit) => {
                self.seen |= bit;
                self.finished |= if is_finished(choice.finish_reason) { bit } else { 0 };
            }
            None => self.has_untracked = true,
        }
    }

    fn is_finished(self) -> bool {
        !self.has_untracked && self.seen == self.finished
    }
}

impl ResponseMetadata {
    /// Reads the data of one event, or one line of JSON.
    pub fn read_chunk(&mut self, data: &[u8]) -> ChunkInfo {
        if is_done_marker(data) {
            self.done = true;
            return ChunkInfo::default();
        }
        if self.template.as_ref().is_some_and(|template| template.matches(data)) {
            self.content_chunks += 1;
            return ChunkInfo { has_content: true, is_last_usage: false };
        }
        if let Ok(chunk) = serde_json::from_slice::<ResponseChunk<'_>>(data) {
            return self.read_parsed(&chunk, data);
        }
        // NaN, for example, is no JSON, but Python writes it.
        let Some(repaired) = lenient_json::repair(data) else { return ChunkInfo::default() };
        match serde_json::from_slice::<ResponseChunk<'_>>(&repaired) {
            Ok(chunk) => self.read_parsed(&chunk, &repaired),
            Err(_) => ChunkInfo::default(),
        }
    }

    fn read_parsed(&mut self, chunk: &ResponseChunk<'_>, data: &[u8]) -> ChunkInfo {
        self.template = chunk
            .repeatable_content()
            .and_then(|content| ContentTemplate::new(data, content))
            .or(self.template.take());
        let has_content = chunk.has_content();
        self.content_chunks += u64::from(has_content);
        self.error |= is_non_empty(chunk.error);
        self.set_model(chunk.model.as_deref());
        let usage = chunk.usage.and_then(|usage| TokenUsage::parse(usage.get()));
        self.set_usage(usage);
        for nested in [chunk.response, chunk.message].into_iter().flatten() {
            if let Ok(nested) = serde_json::from_str::<NestedResponse<'_>>(nested.get()) {
                self.set_model(nested.model.as_deref());
                self.set_usage(nested.usage.and_then(|usage| TokenUsage::parse(usage.get())));
            }
        }
        let count = |raw: Option<&RawValue>| raw.and_then(|raw| token_count(raw.get()));
        for (input, output) in
            [(chunk.prompt_eval_count, chunk.eval_count), (chunk.tokens_evaluated, chunk.tokens_predicted)]
        {
            self.set_usage(Some(TokenUsage { input: count(input), output: count(output), cached: None }));
        }
        self.done |= chunk.is_end();
        let finished = self.record_choices(chunk);
        ChunkInfo { has_content, is_last_usage: (usage.is_some() && finished) || chunk.done == Some(true) }
    }

    /// Records the choices of a chunk and returns whether no choice continues after it.
    fn record_choices(&mut self, chunk: &ResponseChunk<'_>) -> bool {
        match &chunk.choices {
            Some(choices) => {
                choices.iter().for_each(|choice| self.choices.record(choice));
                choices.is_empty() || self.choices.is_finished()
            }
            None => chunk.event_type.as_deref() == Some("message_delta"),
        }
    }

    /// Reads model and usage of a response that is one JSON object.
    pub fn read_body(&mut self, model: Option<&[u8]>, usage: Option<&[u8]>) {
        let model = model.and_then(|text| serde_json::from_slice::<String>(text).ok());
        self.set_model(model.as_deref());
        let usage = usage.and_then(|text| std::str::from_utf8(text).ok());
        self.set_usage(usage.and_then(TokenUsage::parse));
    }

    /// Reads the token counts of Ollama and llama.cpp in a response that is one JSON object.
    pub fn read_token_counts(&mut self, input: Option<&[u8]>, output: Option<&[u8]>) {
        let number = |text: &[u8]| token_count(std::str::from_utf8(text).ok()?);
        let (input, output) = (input.and_then(number), output.and_then(number));
        self.set_usage(Some(TokenUsage { input, output, cached: None }));
    }

    fn set_model(&mut self, model: Option<&str>) {
        if let Some(model) = model.filter(|model| !model.is_empty()) {
            self.model.get_or_insert_with(|| model.to_owned());
        }
    }

    /// A later usage replaces an earlier one, field by field.
    fn set_usage(&mut self, usage: Option<TokenUsage>) {
        let Some(usage) = usage else { return };
        self.input_tokens = usage.input.or(self.input_tokens);
        self.output_tokens = usage.output.or(self.output_tokens);
    }
}

impl ResponseChunk<'_> {
    fn has_content(&self) -> bool {
        if let Some(choices) = &self.choices {
            return choices.iter().any(|choice| {
                is_non_empty(choice.text) || choice.delta.as_ref().is_some_and(has_delta_content)
            });
        }
        let has_delta = |raw: &RawValue| {
            serde_json::from_str::<ChunkDelta<'_>>(raw.get()).is_ok_and(|delta| has_delta_content(&delta))
        };
        if let Some(event_type) = self.event_type.as_deref() {
            return (event_type.ends_with(".delta") && is_non_empty(self.delta))
                || (event_type == "content_block_delta" && self.delta.is_some_and(has_delta));
        }
        is_non_empty(self.content)
            || is_non_empty_string(self.response)
            || self.message.is_some_and(has_delta)
    }

    /// The content of the only choice, where a chunk that differs in it alone changes nothing but the number of chunks:
    /// it states no usage and ends nothing.
    fn repeatable_content(&self) -> Option<&RawValue> {
        let Some([choice]) = self.choices.as_deref() else { return None };
        let numbers = [self.prompt_eval_count, self.eval_count, self.tokens_evaluated, self.tokens_predicted];
        let states_usage = self.usage.is_some()
            || self.response.is_some()
            || self.message.is_some()
            || numbers.iter().any(Option::is_some);
        if states_usage || self.is_end() {
            return None;
        }
        let delta = choice.delta.as_ref();
        [choice.text, delta.and_then(|delta| delta.content), delta.and_then(|delta| delta.reasoning_content)]
            .into_iter()
            .flatten()
            .find(|content| is_non_empty_string(Some(content)))
    }

    /// Whether the server marks the end of the response.
    fn is_end(&self) -> bool {
        self.done == Some(true)
            || self.stop == Some(true)
            || matches!(self.event_type.as_deref(), Some("response.completed" | "message_stop"))
    }
}

fn has_delta_content(delta: &ChunkDelta<'_>) -> bool {
    let ChunkDelta { content, reasoning_content, reasoning, thinking, tool_calls, text, partial_json } =
        delta;
    [content, reasoning_content, reasoning, thinking, tool_calls, text, partial_json]
        .into_iter()
        .any(|f| is_non_empty(*f))
}

fn is_finished(reason: Option<&RawValue>) -> bool {
    reason.is_some_and(|raw| match serde_json::from_str::<Option<Cow<'_, str>>>(raw.get()) {
        Ok(reason) => reason.is_some_and(|reason| is_finish_reason(&reason)),
        // A reason of another type is one.
        Err(_) => is_non_empty(Some(raw)),
    })
}

/// Whether a value is present, not null and not empty.
fn is_non_empty(value: Option<&RawValue>) -> bool {
    value.is_some_and(|raw| !matches!(raw.get(), "null" | "\"\"" | "[]" | "{}"))
}

fn is_non_empty_string(value: Option<&RawValue>) -> bool {
    is_non_empty(value) && value.is_some_and(|raw| raw.get().starts_with('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_chunks(lines: &[&str]) -> (Vec<(bool, bool)>, ResponseMetadata) {
        let mut metadata = ResponseMetadata::default();
        let parts = lines.iter().map(|line| metadata.read_chunk(line.as_bytes()));
        (parts.map(|chunk| (chunk.has_content, chunk.is_last_usage)).collect(), metadata)
    }

    #[test]
    fn openai_chunks() {
        let (parts, metadata) = read_chunks(&[
            r#"{"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"model":"m","choices":[{"delta":{"content":"Wär"}}],"usage":null}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#,
            "[DONE]",
        ]);
        let content: Vec<bool> = parts.iter().map(|chunk| chunk.0).collect();
        assert_eq!(content, [false, true, true, false, false, false]);
        assert_eq!(parts.iter().position(|chunk| chunk.1), Some(4));
        assert_eq!(
            (metadata.input_tokens, metadata.output_tokens, metadata.content_chunks),
            (Some(3), Some(2), 2)
        );
        assert!(metadata.done && metadata.model.as_deref() == Some("m"));
    }

    /// The chunks of a stream, and what follows from each of them where no earlier one is remembered.
    fn assert_read_as_parsed(lines: &[Vec<u8>]) {
        let (mut metadata, mut parsed) = (ResponseMetadata::default(), ResponseMetadata::default());
        for line in lines {
            parsed.template = None;
            assert_eq!(metadata.read_chunk(line), parsed.read_chunk(line), "{}", line.escape_ascii());
            assert_eq!(
                ResponseMetadata { template: None, ..metadata.clone() },
                ResponseMetadata { template: None, ..parsed.clone() },
                "{}",
                line.escape_ascii()
            );
        }
    }

    #[test]
    fn a_chunk_that_repeats_an_earlier_one_means_what_the_parser_makes_of_it() {
        let chunk = br#"{"id":"c1","model":"m","choices":[{"index":0,"delta":{"content":"one"},"finish_reason":null}]}"#;
        let mut metadata = ResponseMetadata::default();
        metadata.read_chunk(chunk);
        assert!(metadata.template.as_ref().is_some_and(|template| template.matches(chunk)));
        // Every byte replaced by one that has a meaning in JSON, or none in UTF-8; every byte left out; every prefix.
        for at in 0..chunk.len() {
            for byte in *b"\"\\{}[]:,0n \n\x01\xc3\xff" {
                let mut changed = chunk.to_vec();
                changed[at] = byte;
                assert_read_as_parsed(&[chunk.to_vec(), changed, chunk.to_vec()]);
            }
            let without = [&chunk[..at], &chunk[at + 1..]].concat();
            assert_read_as_parsed(&[chunk.to_vec(), without, chunk[..at].to_vec(), chunk.to_vec()]);
        }
        let content = |text: &str| String::from_utf8_lossy(chunk).replace("one", text).into_bytes();
        let texts = [
            "",
            " ",
            "wär",
            "\\n",
            "\\",
            "\"",
            "a\",\"role\":\"b",
            "\u{7f}",
            "usage",
            "x\"},\"finish_reason\":\"stop",
        ];
        for text in texts {
            assert_read_as_parsed(&[chunk.to_vec(), content(text), chunk.to_vec(), content(text)]);
        }
    }

    #[test]
    fn a_repeated_chunk_never_restores_an_earlier_usage_or_choice() {
        let chunk = |usage: &str, index: u32, text: &str| {
            format!(r#"{{"choices":[{{"index":{index},"text":"{text}"}}]{usage}}}"#).into_bytes()
        };
        let usage = |tokens: u32| format!(r#","usage":{{"completion_tokens":{tokens}}}"#);
        let eval = |tokens: u32| format!(r#","eval_count":{tokens}"#);
        for first in [String::new(), usage(1), eval(1), r#","usage":null"#.into(), r#","done":true"#.into()] {
            let lines = [
                chunk(&first, 0, "a"),
                chunk(&first, 0, "b"),
                chunk(&usage(2), 1, "c"),
                chunk(&first, 0, "d"),
                chunk(&first, 0, "e"),
                chunk("", 2, "f"),
                chunk(&usage(3), 2, "g"),
            ];
            assert_read_as_parsed(&lines);
        }
    }

    #[test]
    fn usage_in_every_chunk_is_last_only_at_the_end() {
        let (parts, _) = read_chunks(&[
            r#"{"choices":[{"text":"a","finish_reason":null}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#,
            r#"{"choices":[{"text":"b","finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
        ]);
        assert_eq!(parts, [(true, false), (true, true)]);
    }

    #[test]
    fn usage_is_not_last_while_a_choice_is_unfinished() {
        let chunk = |choices: &str| format!(r#"{{"choices":[{choices}],"usage":{{"completion_tokens":2}}}}"#);
        let choice = |index: u32, reason: &str| {
            format!(r#"{{"index":{index},"delta":{{"content":"x"}},"finish_reason":{reason}}}"#)
        };
        let last = |chunks: &[String]| {
            let (parts, _) = read_chunks(&chunks.iter().map(String::as_str).collect::<Vec<_>>());
            parts.iter().position(|chunk| chunk.1)
        };
        let (first, second) = (|reason| chunk(&choice(0, reason)), |reason| chunk(&choice(1, reason)));
        let open = "null";
        assert_eq!(last(&[first(open), second(open), first("\"stop\""), second("\"length\"")]), Some(3));
        assert_eq!(last(&[first(open), second(open), first("\"stop\""), chunk("")]), Some(3));
        let both = [choice(0, "\"stop\""), choice(1, open)].join(",");
        assert_eq!(last(&[chunk(&both), second("\"stop\"")]), Some(1));
        // Beyond the tracked choices, only a chunk without choices is the last.
        let far = |reason| chunk(&choice(500, reason));
        assert_eq!(last(&[far(open), far("\"stop\""), chunk("")]), Some(2));
    }

    #[test]
    fn ollama_lines_and_llama_cpp_completions() {
        let (parts_of, metadata) = read_chunks(&[
            r#"{"model":"l","response":"Hi","done":false}"#,
            r#"{"model":"l","message":{"role":"assistant","content":"!"},"done":false}"#,
            r#"{"model":"l","response":"","done":true,"prompt_eval_count":5,"eval_count":7}"#,
        ]);
        assert_eq!(parts_of, [(true, false), (true, false), (false, true)]);
        assert_eq!((metadata.input_tokens, metadata.output_tokens), (Some(5), Some(7)));
        let (parts, metadata) = read_chunks(&[
            r#"{"content":"x","stop":false}"#,
            r#"{"content":"","stop":true,"tokens_predicted":4}"#,
        ]);
        assert_eq!((parts[0].0, parts[1].0, metadata.output_tokens), (true, false, Some(4)));
    }

    #[test]
    fn openai_responses_and_anthropic_messages() {
        let (parts, metadata) = read_chunks(&[
            r#"{"type":"response.created","response":{"model":"g","usage":null}}"#,
            r#"{"type":"response.output_text.delta","delta":"He"}"#,
            r#"{"type":"response.completed","response":{"model":"g","usage":{"input_tokens":1,"output_tokens":2}}}"#,
            r#"{"type":"message_start","message":{"model":"c","usage":{"input_tokens":9,"output_tokens":1}}}"#,
            r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"He"}}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":8}}"#,
        ]);
        assert_eq!(
            parts.iter().map(|chunk| chunk.0).collect::<Vec<_>>(),
            [false, true, false, false, true, false]
        );
        assert_eq!((metadata.input_tokens, metadata.output_tokens), (Some(9), Some(8)));
        assert!(parts[5].1 && !parts[2].1);
    }

    fn read_whole(mut reader: ResponseReader, text: &str, size: usize) -> ResponseMetadata {
        let mut metadata = ResponseMetadata::default();
        text.as_bytes().chunks(size).for_each(|chunk| _ = reader.read_chunk(chunk, &mut metadata));
        reader.finish(&mut metadata);
        ResponseMetadata { template: None, ..metadata }
    }

    #[test]
    fn messages_of_any_length_are_read() {
        let numbers = (0..6000).map(|number| (number + 10_000).to_string()).collect::<Vec<_>>().join(",");
        let ollama = format!(
            "{{\"model\":\"l\",\"response\":\"Hi\",\"done\":false}}\n\
             {{\"model\":\"l\",\"response\":\"\",\"done\":true,\"context\":[{numbers}],\
             \"prompt_eval_count\":5,\"eval_count\":7.0}}\n"
        );
        for length in [10_000, 40_000, 1_000_000] {
            let text = "w\u{e4}r \\\"q\\\" ".repeat(length / 10);
            let responses = format!(
                "event: response.output_text.delta\n\
                 data: {{\"type\":\"response.output_text.delta\",\"delta\":\"w\"}}\n\n\
                 event: response.completed\n\
                 data: {{\"type\":\"response.completed\",\"response\":{{\"instructions\":\"{text}\",\
                 \"model\":\"g\",\"output\":[{{\"content\":[{{\"text\":\"{text}\"}}]}}],\
                 \"usage\":{{\"input_tokens\":5,\"output_tokens\":7}}}}}}\n\n"
            );
            for size in [1000, 1 << 20] {
                let metadata = read_whole(ResponseReader::sse(), &responses, size);
                assert_eq!((metadata.input_tokens, metadata.output_tokens), (Some(5), Some(7)), "{length}");
                assert!(metadata.done && metadata.model.as_deref() == Some("g"));
            }
        }
        for size in [100, 1 << 20] {
            let metadata = read_whole(ResponseReader::json_lines(), &ollama, size);
            let tokens = (metadata.input_tokens, metadata.output_tokens);
            assert_eq!((tokens, metadata.done), ((Some(5), Some(7)), true));
        }
    }

    #[test]
    fn messages_are_read_as_servers_write_them() {
        let usage = r#"{"prompt_tokens":9.0,"completion_tokens":3,"input_tokens":0,"output_tokens":0}"#;
        let every_chunk = format!(",\"usage\":{usage},\"error\":\"\"");
        let chunk = |reason: &str| {
            let choice = format!(r#"{{"delta":{{"content":"x"}},"finish_reason":{reason}}}"#);
            format!(r#"{{"model":"m","choices":[{choice}]{every_chunk}}}"#)
        };
        for reason in ["\"\"", "\"null\"", "null"] {
            let lines = [chunk(reason), chunk(reason), chunk("\"stop\"")];
            let (parts, metadata) = read_chunks(&lines.each_ref().map(String::as_str));
            assert_eq!((metadata.input_tokens, metadata.output_tokens), (Some(9), Some(3)), "{reason}");
            assert_eq!(parts, [(true, false), (true, false), (true, true)], "{reason}");
            assert!(!metadata.error && metadata.content_chunks == 3);
        }
        let (parts, metadata) = read_chunks(&[
            r#"{"model":"m","choices":[{"delta":{"content":"\ud83d"},"logprobs":{"x":[{"logprob":NaN}]}}]}"#,
            r#"{"choices":[{"delta":{"content":[{"type":"text","text":"x"}]}}],"usage":7}"#,
            "[DONE] ",
        ]);
        assert_eq!(parts, [(true, false), (true, false), (false, false)]);
        assert!(metadata.done && metadata.model.as_deref() == Some("m"));
        let body = format!("{{\"model\":\"m\",\"usage\":{usage}}}");
        let event = format!("data: {{\"model\":\"m\",\"choices\":[],\"usage\":{usage}}}");
        for (reader, text) in [
            (ResponseReader::json(), &body),
            (ResponseReader::Unknown, &body),
            (ResponseReader::sse(), &event),
            (ResponseReader::Unknown, &format!("\n{event}\n\n")),
        ] {
            let metadata = read_whole(reader, text, 7);
            assert_eq!((metadata.input_tokens, metadata.output_tokens), (Some(9), Some(3)), "{text}");
        }
    }

    #[test]
    fn invalid_json_is_ignored() {
        let deep = "[".repeat(5000);
        let (parts, metadata) =
            read_chunks(&["", "{", "hello", "{\"usage\":7}", "{\"choices\":{}}", &deep, "\u{0}"]);
        assert!(parts.iter().all(|chunk| *chunk == (false, false)));
        assert_eq!(metadata, ResponseMetadata::default());
    }
}
