//! Answer formats, and the parts of scoring that questions and replies share: option letters and normalized words.
//!
//! Invariant: depends on no other file of this module.

use serde::{Deserialize, Serialize};

/// How an answer is compared with the correct one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerFormat {
    /// One of the lettered options.
    Letter,
    /// A number, compared by value.
    Numeric,
    /// A text, compared word by word.
    Exact,
    /// Another model decides whether it is correct.
    Judge,
}

/// Returns the letter of the last option, or `J` if the options are unknown (ten at most).
pub(super) fn last_option_letter(choices: &[String]) -> u8 {
    if choices.is_empty() { b'J' } else { b'A' + (choices.len() - 1).min(25) as u8 }
}

/// Parses an answer written as an option letter: "B", "(b)", "B.", or "B) London" if option B reads "London".
pub(super) fn parse_option_letter(answer: &str, choices: &[String]) -> Option<char> {
    let trimmed = answer.trim().trim_start_matches('(');
    let letter = trimmed.chars().next()?.to_ascii_uppercase();
    let option = (b'A'..=last_option_letter(choices)).position(|one| char::from(one) == letter)?;
    let rest = &trimmed[1..];
    let remainder = rest.trim_matches([')', '.', ':', ' ']);
    let is_option_text = rest.starts_with([')', '.', ':', ' '])
        && match choices.get(option) {
            Some(choice) => {
                !normalize_words(remainder).is_empty()
                    && normalize_words(remainder) == normalize_words(choice)
            }
            None => !rest.starts_with(' '),
        };
    (remainder.is_empty() || is_option_text).then_some(letter)
}

/// Returns the words of a text in lower case, without punctuation and articles.
pub(super) fn normalize_words(text: &str) -> String {
    let lower = text.to_lowercase();
    let all = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    all.filter(|word| !matches!(*word, "a" | "an" | "the")).collect::<Vec<_>>().join(" ")
}
