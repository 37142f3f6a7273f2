//! The members of a JSON message that the reader knows, borrowed from its text.
//!
//! Unknown members are skipped while they are parsed, and so are, where the text of the answer is not wanted, those that
//! only repeat it. Invariant: a value of an unexpected type makes nothing else of the message unread, and of two members
//! with one name the last counts.

use std::borrow::Cow;
use std::fmt::Formatter;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The names of the known members, at whatever place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Audio,
    CachedTokens,
    Choices,
    CompletionTokens,
    Content,
    Delta,
    Details,
    Done,
    DoneReason,
    Error,
    EvalCount,
    FinishReason,
    FunctionCall,
    GeneratedText,
    GeneratedTokens,
    IncompleteDetails,
    Index,
    InputLength,
    InputTokens,
    InputTokensDetails,
    Logprob,
    Logprobs,
    Message,
    Model,
    Object,
    Output,
    OutputTokens,
    PartialJson,
    PromptEvalCount,
    PromptTokens,
    PromptTokensDetails,
    Reason,
    Reasoning,
    ReasoningContent,
    Refusal,
    Response,
    Special,
    Status,
    Stop,
    StopReason,
    StopType,
    Text,
    Thinking,
    Token,
    TokenLogprobs,
    TokensEvaluated,
    TokensPredicted,
    ToolCalls,
    Type,
    Usage,
    Unknown,
}

impl Key {
    /// The key of a name. Names are compared with those of their length only, because there are many.
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn from_name(name: &str) -> Self {
        match name.len() {
            4 => match name {
                "done" => Key::Done,
                "stop" => Key::Stop,
                "text" => Key::Text,
                "type" => Key::Type,
                _ => Key::Unknown,
            },
            5 => match name {
                "audio" => Key::Audio,
                "delta" => Key::Delta,
                "error" => Key::Error,
                "index" => Key::Index,
                "model" => Key::Model,
                "token" => Key::Token,
                "usage" => Key::Usage,
                _ => Key::Unknown,
            },
            6 => match name {
                "object" => Key::Object,
                "output" => Key::Output,
                "reason" => Key::Reason,
                "status" => Key::Status,
                _ => Key::Unknown,
            },
            7 => match name {
                "choices" => Key::Choices,
                "content" => Key::Content,
                "details" => Key::Details,
                "logprob" => Key::Logprob,
                "message" => Key::Message,
                "refusal" => Key::Refusal,
                "special" => Key::Special,
                _ => Key::Unknown,
            },
            8 => match name {
                "logprobs" => Key::Logprobs,
                "response" => Key::Response,
                "thinking" => Key::Thinking,
                _ => Key::Unknown,
            },
            9 => match name {
                "reasoning" => Key::Reasoning,
                "stop_type" => Key::StopType,
                _ => Key::Unknown,
            },
            10 => match name {
                "eval_count" => Key::EvalCount,
                "tool_calls" => Key::ToolCalls,
                _ => Key::Unknown,
            },
            11 => match name {
                "done_reason" => Key::DoneReason,
                "stop_reason" => Key::StopReason,
                _ => Key::Unknown,
            },
            12 => match name {
                "input_length" => Key::InputLength,
                "input_tokens" => Key::InputTokens,
                "partial_json" => Key::PartialJson,
                _ => Key::Unknown,
            },
            13 => match name {
                "cached_tokens" => Key::CachedTokens,
                "finish_reason" => Key::FinishReason,
                "function_call" => Key::FunctionCall,
                "output_tokens" => Key::OutputTokens,
                "prompt_tokens" => Key::PromptTokens,
                _ => Key::Unknown,
            },
            14 => match name {
                "generated_text" => Key::GeneratedText,
                "token_logprobs" => Key::TokenLogprobs,
                _ => Key::Unknown,
            },
            16 => match name {
                "generated_tokens" => Key::GeneratedTokens,
                "tokens_evaluated" => Key::TokensEvaluated,
                "tokens_predicted" => Key::TokensPredicted,
                _ => Key::Unknown,
            },
            17 => match name {
                "completion_tokens" => Key::CompletionTokens,
                "prompt_eval_count" => Key::PromptEvalCount,
                "reasoning_content" => Key::ReasoningContent,
                _ => Key::Unknown,
            },
            18 => match name {
                "incomplete_details" => Key::IncompleteDetails,
                _ => Key::Unknown,
            },
            20 => match name {
                "input_tokens_details" => Key::InputTokensDetails,
                _ => Key::Unknown,
            },
            21 => match name {
                "prompt_tokens_details" => Key::PromptTokensDetails,
                _ => Key::Unknown,
            },
            _ => Key::Unknown,
        }
    }

    /// The bit of the key in [`JsonObject::present`].
    fn bit(self) -> u64 {
        1 << self as u64
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl Visitor<'_> for NameVisitor {
            type Value = Key;

            fn expecting(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("the name of a member")
            }

            fn visit_str<E>(self, name: &str) -> Result<Key, E> {
                Ok(Key::from_name(name))
            }
        }

        deserializer.deserialize_identifier(NameVisitor)
    }
}

/// A value in a message, of any type.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonValue<'a> {
    Null,
    Bool(bool),
    Count(u64),
    Number(f64),
    Text(Cow<'a, str>),
    List(Vec<JsonValue<'a>>),
    Object(JsonObject<'a>),
    /// The JSON text of an error, of which everything may be wanted, or of a part of an answer whose text is not.
    Raw(&'a str),
}

/// The known members of a JSON object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JsonObject<'a> {
    /// Those that are not null.
    members: Vec<(Key, JsonValue<'a>)>,
    /// The bits of all keys in the object: most look-ups find nothing.
    present: u64,
}

/// The room for members, which those of most objects fit.
const MEMBERS: usize = 6;

static NULL: JsonValue<'static> = JsonValue::Null;

impl<'a> JsonValue<'a> {
    /// Parses a JSON text.
    ///
    /// # Errors
    /// The text is no JSON.
    pub fn parse(data: &'a [u8], wanted: WantedMembers) -> serde_json::Result<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(data);
        let value = ValueSeed(wanted).deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(value)
    }

    /// The member of an object; null where there is none.
    pub fn get(&self, key: Key) -> &JsonValue<'a> {
        let JsonValue::Object(object) = self else { return &NULL };
        if object.present & key.bit() == 0 {
            return &NULL;
        }
        object.members.iter().rev().find(|(name, _)| *name == key).map_or(&NULL, |(_, value)| value)
    }

    /// Whether an object names one of these members.
    pub fn has_any(&self, keys: &[Key]) -> bool {
        let bits = keys.iter().fold(0, |bits, key| bits | key.bit());
        matches!(self, JsonValue::Object(object) if object.present & bits != 0)
    }

    pub fn is_object(&self) -> bool {
        matches!(self, JsonValue::Object(_))
    }

    pub fn text(&self) -> Option<&str> {
        if let JsonValue::Text(text) = self { Some(text) } else { None }
    }

    /// The inside of a string in the text that was parsed, where it is known.
    pub fn string_content(&self) -> Option<&'a str> {
        match self {
            JsonValue::Text(Cow::Borrowed(text)) => Some(text),
            JsonValue::Raw(text) => text.strip_prefix('"')?.strip_suffix('"'),
            _ => None,
        }
    }

    /// The elements; none of another value.
    pub fn list(&self) -> &[JsonValue<'a>] {
        if let JsonValue::List(elements) = self { elements } else { &[] }
    }

    pub fn bool(&self) -> Option<bool> {
        if let JsonValue::Bool(value) = self { Some(*value) } else { None }
    }

    /// A count, also as a float without a fraction: `9.0`.
    pub fn count(&self) -> Option<u64> {
        match *self {
            JsonValue::Count(count) => Some(count),
            JsonValue::Number(count) if count >= 0.0 && count.fract() == 0.0 && count < 1e15 => {
                Some(count as u64)
            }
            _ => None,
        }
    }

    /// A number that is finite; Python writes others too.
    pub fn number(&self) -> Option<f64> {
        match *self {
            JsonValue::Count(count) => Some(count as f64),
            JsonValue::Number(number) => Some(number),
            _ => None,
        }
    }

    /// Whether the value is absent, null or without content.
    pub fn is_empty(&self) -> bool {
        match self {
            JsonValue::Null => true,
            JsonValue::Text(text) => text.is_empty(),
            JsonValue::List(elements) => elements.is_empty(),
            JsonValue::Object(object) => object.present == 0,
            JsonValue::Bool(_) | JsonValue::Count(_) | JsonValue::Number(_) => false,
            JsonValue::Raw(text) => {
                let inside = |(open, close)| text.strip_prefix(open)?.strip_suffix(close);
                matches!(*text, "null" | "\"\"")
                    || [('[', ']'), ('{', '}')]
                        .into_iter()
                        .find_map(inside)
                        .is_some_and(|text| text.trim_ascii().is_empty())
            }
        }
    }
}

/// The members that are read besides those of any reader.
#[derive(Debug, Clone, Copy)]
pub struct WantedMembers {
    /// The text of answers and their log-probabilities.
    pub text: bool,
    /// The name of the model.
    pub model: bool,
}

#[derive(Clone, Copy)]
struct ValueSeed(WantedMembers);

impl ValueSeed {
    fn skips(self, key: Key) -> bool {
        match key {
            Key::Unknown => true,
            Key::Output | Key::Logprobs => !self.0.text,
            Key::Model => !self.0.model,
            _ => false,
        }
    }

    /// Whether only the JSON text of a value is kept.
    fn is_raw(self, key: Key) -> bool {
        match key {
            Key::Error => true,
            Key::Audio
            | Key::Content
            | Key::FunctionCall
            | Key::GeneratedText
            | Key::PartialJson
            | Key::Reasoning
            | Key::ReasoningContent
            | Key::Refusal
            | Key::Text
            | Key::Thinking
            | Key::ToolCalls => !self.0.text,
            _ => false,
        }
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = JsonValue<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<JsonValue<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = JsonValue<'de>;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Count(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Number(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<JsonValue<'de>, E> {
        Ok(JsonValue::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<JsonValue<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element_seed(self)? {
            list.push(element);
        }
        Ok(JsonValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonValue<'de>, A::Error> {
        let mut object = JsonObject::default();
        while let Some(key) = map.next_key::<Key>()? {
            let is_repeated = object.present & key.bit() != 0;
            object.present |= key.bit();
            if self.skips(key) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = match self.is_raw(key) {
                true => JsonValue::Raw(map.next_value::<&RawValue>()?.get()),
                false => map.next_value_seed(self)?,
            };
            // Of two members with one name the last counts, also if it is null.
            if is_repeated || !matches!(value, JsonValue::Null | JsonValue::Raw("null")) {
                if object.members.capacity() == 0 {
                    object.members.reserve_exact(MEMBERS);
                }
                object.members.push((key, value));
            }
        }
        Ok(JsonValue::Object(object))
    }
}
