//! Reads the messages of a reply, in the dialects of inference servers.
//!
//! Knows OpenAI's chat completions, completions and responses with the additions of vLLM and others, Anthropic's
//! messages, Ollama's `generate` and `chat`, llama.cpp's `completion`, Text Generation Inference, and embeddings, each
//! streamed and whole. The dialect is recognized by each message. Token counts are those that the server states.
//! Invariant: a message means the same whether or not it is recognized by a template.

use std::borrow::Cow;

use serde_json::Value;

use super::super::lenient_json;
use super::choice_progress::ChoiceProgress;
use super::content_template::{ChunkContent, ContentTemplates};
use super::event::{ReplyEvent, StreamPosition};
use super::json_value::{JsonValue, Key, WantedMembers};
use super::token_usage::{TokenUsage, is_done_marker, is_finish_reason};

/// Receives the events of a message.
pub type EventSink<'s> = dyn FnMut(ReplyEvent<'_>) + 's;

/// Reads one message of a reply after the other.
#[derive(Debug, Default)]
pub struct MessageReader {
    wants_text: bool,
    /// The next message may be the whole reply.
    may_be_whole: bool,
    /// The only message so far is a whole reply.
    is_whole: bool,
    has_model: bool,
    is_ended: bool,
    choices: ChoiceProgress,
    templates: ContentTemplates,
}

/// The parts of answers in a message: how many, and the first.
struct Pieces<'m, 'a> {
    count: usize,
    first: Option<Piece<'m, 'a>>,
}

/// A part of an answer in a message.
struct Piece<'m, 'a> {
    choice: u32,
    value: &'m JsonValue<'a>,
    /// The part is text for the reader, rather than reasoning or a tool call.
    is_text: bool,
}

impl MessageReader {
    /// A reader of a stream; with `wants_text` it reports the text of answers.
    pub fn new(wants_text: bool) -> Self {
        MessageReader { wants_text, ..MessageReader::default() }
    }

    /// Accepts a first message as the whole reply, unless it says otherwise.
    pub fn expect_whole(&mut self) {
        self.may_be_whole = true;
    }

    /// Whether the server has marked the end, or every choice that appeared has finished.
    pub fn is_complete(&self) -> bool {
        self.is_ended || self.choices.is_finished()
    }

    /// Reads the data of one event, or one object of JSON.
    pub fn read(&mut self, event_type: &[u8], data: &[u8], on_event: &mut EventSink<'_>) -> StreamPosition {
        let is_error = event_type == b"error";
        if let Some(chunk) = self.templates.find(data, self.wants_text).filter(|_| !is_error) {
            // A template comes from an earlier message, so neither is the whole reply.
            self.is_whole = false;
            on_event(ReplyEvent::Content);
            if self.wants_text && chunk.is_text {
                on_event(ReplyEvent::Text { choice: chunk.choice, text: chunk.content });
            }
            return StreamPosition::Open;
        }
        if is_done_marker(data) {
            self.end(on_event);
            return StreamPosition::End;
        }
        if data.iter().all(u8::is_ascii_whitespace) {
            return StreamPosition::Other;
        }
        let wanted = WantedMembers { text: self.wants_text, model: !self.has_model };
        if let Ok(message) = JsonValue::parse(data, wanted) {
            return self.read_message(&message, data, is_error, on_event);
        }
        // NaN, for example, is no JSON, but Python writes it.
        let repaired = lenient_json::repair(data);
        match repaired.as_deref().map(|data| (JsonValue::parse(data, wanted), data)) {
            Some((Ok(message), data)) => return self.read_message(&message, data, is_error, on_event),
            _ if is_error => on_event(ReplyEvent::Error(&String::from_utf8_lossy(data))),
            _ => on_event(ReplyEvent::Malformed(data)),
        }
        StreamPosition::Other
    }

    /// Reads what follows the last end of a message: a message that lacks its end, or the beginning of one.
    pub fn read_rest(&mut self, event_type: &[u8], data: &[u8], on_event: &mut EventSink<'_>) {
        self.read(event_type, data, &mut |event| match event {
            ReplyEvent::Malformed(_) => on_event(ReplyEvent::Cut),
            event => on_event(event),
        });
    }

    /// Ends the reply.
    pub fn finish(&mut self, on_event: &mut EventSink<'_>) {
        if self.is_whole {
            self.end(on_event);
        }
    }

    fn end(&mut self, on_event: &mut EventSink<'_>) {
        if !std::mem::replace(&mut self.is_ended, true) {
            on_event(ReplyEvent::End);
        }
    }

    fn read_message(
        &mut self,
        message: &JsonValue<'_>,
        data: &[u8],
        is_error: bool,
        on_event: &mut EventSink<'_>,
    ) -> StreamPosition {
        self.is_whole = std::mem::take(&mut self.may_be_whole) && !is_part(message);
        let names = [message, message.get(Key::Response), message.get(Key::Message)];
        let name =
            names.iter().find_map(|place| place.get(Key::Model).text().filter(|name| !name.is_empty()));
        if let Some(name) = name.filter(|_| !self.has_model) {
            self.has_model = true;
            on_event(ReplyEvent::Model(name));
        }
        let usage = TokenUsage::of_message(message);
        if usage != TokenUsage::default() {
            on_event(ReplyEvent::Usage(usage));
        }
        let error = error_message(message, is_error, data);
        if let Some(error) = &error {
            on_event(ReplyEvent::Error(error));
        }
        let (pieces, has_logprobs) = self.read_content(message, on_event);
        let is_finish = self.read_finish(message, on_event);
        let position = self.position(message, pieces.count > 0 && !self.is_whole);
        let states_more = error.is_some()
            || has_logprobs
            || is_finish
            || usage != TokenUsage::default()
            || message.get(Key::Usage).is_object();
        // A chunk that differs from this one in its only part says nothing else either.
        if let (1, Some(piece)) = (pieces.count, &pieces.first)
            && let Some(content) = piece.value.string_content()
            && !states_more
            && position == StreamPosition::Open
        {
            let Piece { choice, is_text, .. } = *piece;
            self.templates.add(data, ChunkContent { choice, content, is_text });
        }
        position
    }

    /// Reads the parts of answers; returns them, and whether there are log-probabilities.
    fn read_content<'m, 'a>(
        &self,
        message: &'m JsonValue<'a>,
        on_event: &mut EventSink<'_>,
    ) -> (Pieces<'m, 'a>, bool) {
        let mut pieces = Pieces { count: 0, first: None };
        each_piece(message, self.is_whole, &mut |piece| {
            if pieces.count == 0 && !self.is_whole {
                on_event(ReplyEvent::Content);
            }
            if self.wants_text && piece.is_text {
                let choice = piece.choice;
                each_text(piece.value, &mut |text| on_event(ReplyEvent::Text { choice, text }));
            }
            pieces.count += 1;
            pieces.first.get_or_insert(piece);
        });
        let mut has_logprobs = false;
        if self.wants_text {
            each_logprob(message, &mut |logprob| {
                has_logprobs = true;
                on_event(ReplyEvent::Logprob(logprob));
            });
        }
        (pieces, has_logprobs)
    }

    /// Reads the reasons for which choices finished, and the end; returns whether there is one.
    fn read_finish(&mut self, message: &JsonValue<'_>, on_event: &mut EventSink<'_>) -> bool {
        let mut is_finish = false;
        for choice in message.get(Key::Choices).list() {
            let index = choice_index(choice);
            let reason = finish_reason(choice.get(Key::FinishReason));
            self.choices.record(index, reason.is_some());
            if let Some(reason) = reason {
                is_finish = true;
                on_event(ReplyEvent::Finish { choice: index.unwrap_or(u32::MAX), reason });
            }
        }
        let Some(Finish { choice, reason, is_end }) = Finish::of_message(message) else { return is_finish };
        if let Some(reason) = finish_reason(reason) {
            self.choices.record(Some(choice), true);
            on_event(ReplyEvent::Finish { choice, reason });
        }
        if is_end {
            self.end(on_event);
        }
        true
    }

    fn position(&self, message: &JsonValue<'_>, has_content: bool) -> StreamPosition {
        let choices = match message.get(Key::Choices) {
            JsonValue::List(choices) => Some(choices),
            _ => None,
        };
        let is_without_choices = match choices {
            Some(choices) => choices.is_empty(),
            None => message.get(Key::Type).text() == Some("message_delta"),
        };
        let (states_usage, is_finished) = (message.get(Key::Usage).is_object(), self.choices.is_finished());
        if message.get(Key::Done).bool() == Some(true) || (states_usage && is_without_choices) {
            StreamPosition::LastUsage
        } else if states_usage && choices.is_some() && is_finished {
            StreamPosition::UsageSoFar
        } else if has_content || (choices.is_some_and(|choices| !choices.is_empty()) && !is_finished) {
            StreamPosition::Open
        } else {
            StreamPosition::Other
        }
    }
}

#[cfg(test)]
impl MessageReader {
    pub fn forget_templates(&mut self) {
        self.templates = ContentTemplates::default();
    }

    pub fn is_template(&mut self, chunk: &[u8]) -> bool {
        self.templates.find(chunk, self.wants_text).is_some()
    }
}

/// The finish of a reply without choices.
struct Finish<'m, 'a> {
    choice: u32,
    /// The reason; empty where the server states none.
    reason: &'m JsonValue<'a>,
    is_end: bool,
}

impl<'m, 'a> Finish<'m, 'a> {
    fn of_message(message: &'m JsonValue<'a>) -> Option<Self> {
        let finish = |reason, is_end| Some(Finish { choice: 0, reason, is_end });
        match message.get(Key::Type).text() {
            Some("message_delta") => return finish(message.get(Key::Delta).get(Key::StopReason), false),
            Some("message_stop") => return finish(message.get(Key::StopReason), true),
            Some("message") => return finish(message.get(Key::StopReason), false),
            Some("response.completed" | "response.incomplete" | "response.failed" | "response.cancelled") => {
                return finish(response_reason(message.get(Key::Response)), true);
            }
            _ if message.get(Key::Object).text() == Some("response") => {
                return finish(response_reason(message), false);
            }
            _ => {}
        }
        if message.get(Key::Done).bool() == Some(true) {
            return finish(message.get(Key::DoneReason), true);
        }
        if message.get(Key::Stop).bool() == Some(true) {
            let choice = choice_index(message).unwrap_or(0);
            return Some(Finish { choice, reason: message.get(Key::StopType), is_end: true });
        }
        let reason = message.get(Key::Details).get(Key::FinishReason);
        if reason.is_empty() { None } else { finish(reason, true) }
    }
}

/// The reason for the end of one of OpenAI's responses: why it is incomplete, or its status.
fn response_reason<'m, 'a>(response: &'m JsonValue<'a>) -> &'m JsonValue<'a> {
    let reason = response.get(Key::IncompleteDetails).get(Key::Reason);
    if reason.is_empty() { response.get(Key::Status) } else { reason }
}

/// The text of a finish reason; `None` if it is no reason.
fn finish_reason<'m>(reason: &'m JsonValue<'_>) -> Option<&'m str> {
    match reason {
        JsonValue::Text(reason) => Some(reason.as_ref()).filter(|reason| is_finish_reason(reason)),
        JsonValue::Bool(false) => None,
        reason if reason.is_empty() => None,
        // A reason of another type is one.
        reason => Some(reason.get(Key::Type).text().unwrap_or("unknown")),
    }
}

/// The index of a choice, 0 where it has none; `None` if it is invalid.
fn choice_index(choice: &JsonValue<'_>) -> Option<u32> {
    match choice.get(Key::Index) {
        JsonValue::Null => Some(0),
        index => index.count()?.try_into().ok(),
    }
}

/// Whether a message says that it is a part of a stream.
fn is_part(message: &JsonValue<'_>) -> bool {
    let has_delta = |choice: &JsonValue<'_>| choice.get(Key::Delta).is_object();
    message.get(Key::Done).bool() == Some(false)
        || message.get(Key::Stop).bool() == Some(false)
        || message.get(Key::Choices).list().iter().any(has_delta)
}

/// The error that a message reports. Some servers name an error in every message, without any.
fn error_message<'a>(message: &'a JsonValue<'_>, is_error: bool, data: &'a [u8]) -> Option<Cow<'a, str>> {
    for place in [message, message.get(Key::Response)] {
        if let JsonValue::Raw(raw) = place.get(Key::Error)
            && let Some(error) = error_text(raw)
        {
            return Some(error.into());
        }
    }
    let is_named = |key| message.get(key).text() == Some("error");
    let text = message.get(Key::Message).text();
    (is_error || is_named(Key::Type) || is_named(Key::Object))
        .then(|| text.map_or_else(|| String::from_utf8_lossy(data), Cow::Borrowed))
}

/// The text of a value of `error`; `None` if it is empty.
fn error_text(raw: &str) -> Option<String> {
    let Ok(error) = lenient_json::parse(raw.as_bytes()) else { return Some(raw.to_owned()) };
    let is_none = match &error {
        Value::Null | Value::Bool(false) => true,
        Value::Number(code) => code.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    };
    let message = error.get("message").unwrap_or(&error);
    (!is_none).then(|| message.as_str().map_or_else(|| message.to_string(), str::to_owned))
}

/// Calls `on_piece` for each part of an answer in a message that is not empty.
fn each_piece<'m, 'a>(message: &'m JsonValue<'a>, is_whole: bool, on_piece: &mut dyn FnMut(Piece<'m, 'a>)) {
    let mut add = |choice, is_text, value: &'m JsonValue<'a>| {
        if !value.is_empty() {
            on_piece(Piece { choice, value, is_text });
        }
    };
    if let JsonValue::List(choices) = message.get(Key::Choices) {
        return choices.iter().for_each(|choice| add_choice(choice, &mut add));
    }
    if let Some(event_type) = message.get(Key::Type).text() {
        match event_type {
            "content_block_delta" => add_body(0, message.get(Key::Delta), &mut add),
            "message" => add(0, true, message.get(Key::Content)),
            "response.output_text.delta" | "response.refusal.delta" => add(0, true, message.get(Key::Delta)),
            event_type if event_type.ends_with(".delta") => add(0, false, message.get(Key::Delta)),
            _ => {}
        }
        return;
    }
    for output in message.get(Key::Output).list() {
        add(0, output.get(Key::Type).text() == Some("message"), output.get(Key::Content));
    }
    add(choice_index(message).unwrap_or(0), true, message.get(Key::Content));
    if message.get(Key::Response).text().is_some() {
        add(0, true, message.get(Key::Response));
    }
    add_body(0, message.get(Key::Message), &mut add);
    add(0, false, message.get(Key::Thinking));
    let token = message.get(Key::Token);
    add(0, token.get(Key::Special).bool() != Some(true), token.get(Key::Text));
    // In a stream it repeats the tokens.
    if is_whole {
        add(0, true, message.get(Key::GeneratedText));
    }
}

fn add_choice<'m, 'a>(choice: &'m JsonValue<'a>, add: &mut impl FnMut(u32, bool, &'m JsonValue<'a>)) {
    let index = choice_index(choice).unwrap_or(u32::MAX);
    let text = choice.get(Key::Text);
    if !text.is_empty() {
        return add(index, true, text);
    }
    // Of both, the message is the whole answer so far.
    let delta = choice.get(Key::Delta);
    add_body(index, if delta.is_object() { delta } else { choice.get(Key::Message) }, add);
}

/// Adds the parts of a message or a delta.
fn add_body<'m, 'a>(index: u32, body: &'m JsonValue<'a>, add: &mut impl FnMut(u32, bool, &'m JsonValue<'a>)) {
    if !body.is_object() {
        return;
    }
    for key in [Key::Content, Key::Text, Key::Refusal] {
        add(index, true, body.get(key));
    }
    for key in [
        Key::ReasoningContent,
        Key::Reasoning,
        Key::Thinking,
        Key::ToolCalls,
        Key::FunctionCall,
        Key::PartialJson,
        Key::Audio,
    ] {
        add(index, false, body.get(key));
    }
}

/// Calls `on_text` for a text, or for the texts of a list of parts.
fn each_text(value: &JsonValue<'_>, on_text: &mut dyn FnMut(&str)) {
    let parts = value.list().iter().filter_map(|part| part.text().or_else(|| part.get(Key::Text).text()));
    value.text().into_iter().chain(parts).filter(|text| !text.is_empty()).for_each(on_text);
}

fn each_logprob(message: &JsonValue<'_>, on_logprob: &mut dyn FnMut(f64)) {
    for choice in message.get(Key::Choices).list() {
        let logprobs = choice.get(Key::Logprobs);
        let chat = logprobs.get(Key::Content).list().iter().map(|token| token.get(Key::Logprob));
        let plain = logprobs.get(Key::TokenLogprobs).list().iter();
        chat.chain(plain).filter_map(JsonValue::number).for_each(&mut *on_logprob);
    }
    message.get(Key::Token).get(Key::Logprob).number().into_iter().for_each(on_logprob);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_message_that_matches_a_template_is_no_whole_reply() {
        const FIRST: &[u8] = br#"{"choices":[{"index":0,"message":{"content":"one"},"finish_reason":null}]}"#;
        const SECOND: &[u8] =
            br#"{"choices":[{"index":0,"message":{"content":"two"},"finish_reason":null}]}"#;
        for wants_text in [false, true] {
            let read = |messages: &[&[u8]], rest: &[u8]| {
                let (mut reader, mut ends) = (MessageReader::new(wants_text), 0);
                let mut count = |event: ReplyEvent<'_>| ends += usize::from(matches!(event, ReplyEvent::End));
                reader.expect_whole();
                for (index, message) in messages.iter().enumerate() {
                    assert_eq!(reader.is_template(message), index > 0, "the test covers the template");
                    reader.read(b"", message, &mut count);
                }
                reader.read_rest(b"", rest, &mut count);
                reader.finish(&mut count);
                (ends, reader.is_complete())
            };
            assert_eq!(read(&[FIRST], b""), (1, true));
            assert_eq!(read(&[FIRST, SECOND], b""), (0, false));
            assert_eq!(read(&[FIRST, SECOND], &SECOND[..20]), (0, false));
        }
    }
}
