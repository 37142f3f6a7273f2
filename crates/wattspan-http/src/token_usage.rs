//! What a message of an inference server states: tokens, the reason for its end, an error.
//!
//! Servers write the same things in many forms: counts under the names of chat completions, of the Responses API or
//! under both with one as 0, counts as `9.0`, an empty or "null" reason in every chunk, an error that is empty.
//! Invariant: a value in an unknown form is absent and never makes the rest of the message unread.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Counts of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Tokens of the prompt.
    pub input: Option<u64>,
    /// Tokens of the completion.
    pub output: Option<u64>,
    /// Tokens of the prompt that the server had in its cache.
    pub cached: Option<u64>,
}

#[derive(Deserialize)]
struct RawUsage<'a> {
    #[serde(borrow, default)]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    output_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt_tokens_details: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input_tokens_details: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawDetails<'a> {
    #[serde(borrow, default)]
    cached_tokens: Option<&'a RawValue>,
}

impl TokenUsage {
    /// Parses a usage object; `None` for another value.
    pub fn parse(json: &str) -> Option<Self> {
        // serde reads a sequence as a structure, too.
        json.trim_start().starts_with('{').then_some(())?;
        let raw: RawUsage<'_> = serde_json::from_str(json).ok()?;
        // Of two spellings one may be 0.
        let count = |values: [Option<&RawValue>; 2]| {
            values.into_iter().flatten().filter_map(|value| token_count(value.get())).max()
        };
        let cached = |details: Option<&RawValue>| {
            let details: RawDetails<'_> = serde_json::from_str(details?.get()).ok()?;
            token_count(details.cached_tokens?.get())
        };
        Some(TokenUsage {
            input: count([raw.prompt_tokens, raw.input_tokens]),
            output: count([raw.completion_tokens, raw.output_tokens]),
            cached: cached(raw.prompt_tokens_details).max(cached(raw.input_tokens_details)),
        })
    }
}

/// Parses a count of tokens, also as a float without a fraction: `9.0`.
pub fn token_count(json: &str) -> Option<u64> {
    let whole = |count: f64| (count >= 0.0 && count.fract() == 0.0 && count < 1e15).then_some(count as u64);
    serde_json::from_str(json).ok().or_else(|| serde_json::from_str(json).ok().and_then(whole))
}

/// Whether the data of an event or a line is the end marker of OpenAI's streams.
pub fn is_done_marker(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}

/// Whether a finish reason ends a choice.
pub fn is_finish_reason(reason: &str) -> bool {
    !reason.is_empty() && reason != "null"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_in_every_form() {
        let parse =
            |json: &str| TokenUsage::parse(json).map(|usage| (usage.input, usage.output, usage.cached));
        for (json, expected) in [
            (r#"{"prompt_tokens":9,"completion_tokens":3}"#, (Some(9), Some(3), None)),
            (
                r#"{"prompt_tokens":9.0,"completion_tokens":3,"input_tokens":0,"output_tokens":0}"#,
                (Some(9), Some(3), None),
            ),
            (
                r#"{"input_tokens":9,"output_tokens":3e0,"input_tokens_details":{"cached_tokens":4}}"#,
                (Some(9), Some(3), Some(4)),
            ),
            (r#"{"prompt_tokens":"9","completion_tokens":-1,"output_tokens":1.5}"#, (None, None, None)),
            (r#"{"prompt_tokens":null,"prompt_tokens_details":null}"#, (None, None, None)),
        ] {
            assert_eq!(parse(json), Some(expected), "{json}");
        }
        assert_eq!((parse("null"), parse("7"), parse("[]")), (None, None, None));
    }
}
