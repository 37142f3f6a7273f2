//! What a message of an inference server states: tokens, the reason for its end, an error.
//!
//! Servers write the same things in many forms: counts under the names of chat completions, of the Responses API or
//! under both with one as 0, counts as `9.0`, an empty or "null" reason in every chunk, an error that is empty.
//! Invariant: a value in an unknown form is absent and never makes the rest of the message unread.

use super::json_value::{JsonValue, Key};

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

/// The members of a message in which counts can be.
const PLACES: [Key; 8] = [
    Key::Usage,
    Key::Response,
    Key::Message,
    Key::PromptEvalCount,
    Key::EvalCount,
    Key::TokensEvaluated,
    Key::TokensPredicted,
    Key::Details,
];

impl TokenUsage {
    /// The counts of a message, of a response inside it and of a message inside it, under any of their names.
    pub fn of_message(message: &JsonValue<'_>) -> Self {
        let mut usage = TokenUsage::default();
        if !message.has_any(&PLACES) {
            return usage;
        }
        for place in [message, message.get(Key::Response), message.get(Key::Message)] {
            usage.update(Self::of_usage(place.get(Key::Usage)));
        }
        // Ollama, llama.cpp and Text Generation Inference state them beside the answer.
        let details = message.get(Key::Details);
        for (input, output) in [
            (message.get(Key::PromptEvalCount), message.get(Key::EvalCount)),
            (message.get(Key::TokensEvaluated), message.get(Key::TokensPredicted)),
            (details.get(Key::InputLength), details.get(Key::GeneratedTokens)),
        ] {
            usage.update(TokenUsage { input: input.count(), output: output.count(), cached: None });
        }
        usage
    }

    /// The counts of a `usage` object; none of another value.
    fn of_usage(usage: &JsonValue<'_>) -> Self {
        if !usage.is_object() {
            return TokenUsage::default();
        }
        // Of two spellings one may be 0.
        let count = |keys: [Key; 2]| keys.into_iter().filter_map(|key| usage.get(key).count()).max();
        let details = [Key::PromptTokensDetails, Key::InputTokensDetails];
        TokenUsage {
            input: count([Key::PromptTokens, Key::InputTokens]),
            output: count([Key::CompletionTokens, Key::OutputTokens]),
            cached: details
                .into_iter()
                .filter_map(|details| usage.get(details).get(Key::CachedTokens).count())
                .max(),
        }
    }

    /// Replaces the counts that `later` states.
    pub fn update(&mut self, later: TokenUsage) {
        self.input = later.input.or(self.input);
        self.output = later.output.or(self.output);
        self.cached = later.cached.or(self.cached);
    }
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
    use super::super::json_value::WantedMembers;
    use super::*;

    #[test]
    fn counts_are_read_in_every_form() {
        let wanted = WantedMembers { text: false, model: false };
        let parse = |json: &str| {
            let message = format!("{{\"usage\":{json}}}");
            let usage = TokenUsage::of_message(&JsonValue::parse(message.as_bytes(), wanted).unwrap());
            (usage.input, usage.output, usage.cached)
        };
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
            assert_eq!(parse(json), expected, "{json}");
        }
        for json in ["null", "7", "[]"] {
            assert_eq!(parse(json), (None, None, None), "{json}");
        }
    }
}
