//! What a model answered, read out of what it wrote, and whether that is right.
//!
//! Owns the three rules that need no judge. Each looks for what the model *settled on*: what follows the last marker
//! ("Answer:", "\boxed{}", "####", "the answer is"; the one that stands last), else the last thing of the right kind.
//! Invariant: the prompt is never looked at, so that an echo of the options is not an answer; what cannot be read is `None`,
//! "no answer", which scores as wrong and is counted apart.

use super::number::{approximately_equal, parse_number};
use super::question::{AnswerFormat, Question, parse_option_letter};

/// What a model settled on, as text; `None`: nothing of the kind was found.
pub fn extract_answer(question: &Question, reply: &str) -> Option<String> {
    let reply = strip_reasoning(reply);
    match question.format {
        AnswerFormat::Letter => extract_letter(reply, &question.choices).map(String::from),
        AnswerFormat::Numeric => extract_number(reply).map(|value| value.to_string()),
        AnswerFormat::Exact => {
            final_answer(reply).map(|answer| normalize_words(answer.text)).filter(|words| !words.is_empty())
        }
        AnswerFormat::Judge => None,
    }
}

/// Whether a reply is right; `None` where only a judge can say.
pub fn score_reply(question: &Question, reply: &str) -> Option<bool> {
    let expected = question.answer.trim();
    let reply = strip_reasoning(reply);
    match question.format {
        AnswerFormat::Letter => {
            let expected = parse_option_letter(expected, &question.choices);
            Some(expected.is_some() && extract_letter(reply, &question.choices) == expected)
        }
        AnswerFormat::Numeric => {
            let expected = parse_number(expected).map(|(value, _)| value);
            Some(
                expected.is_some()
                    && extract_number(reply).is_some_and(|value| {
                        Some(true) == expected.map(|expected| approximately_equal(value, expected))
                    }),
            )
        }
        AnswerFormat::Exact => Some(
            final_answer(reply)
                .is_some_and(|answer| normalize_words(answer.text) == normalize_words(expected)),
        ),
        AnswerFormat::Judge => None,
    }
}

/// What comes after a reasoning model's thoughts; all of it where there are none. Thoughts that never ended were cut off by
/// the token limit: nothing was answered.
pub(super) fn strip_reasoning(reply: &str) -> &str {
    match reply.rsplit_once("</think>") {
        Some((_, rest)) => rest,
        None if reply.trim_start().starts_with("<think>") => "",
        None => reply,
    }
}

/// The part of a reply that says what the model settled on.
#[derive(Clone, Copy)]
struct FinalAnswer<'a> {
    text: &'a str,
    /// A marker says so; otherwise it is only the last line.
    marked: bool,
}

/// What marks an answer, in small letters.
const ANSWER_MARKERS: [&str; 5] = ["answer:", "answer is", "####", "answer**:", "answer:**"];

/// What the last marker points at: the inside of `\boxed{}`, or what follows up to the end of its line. Without a marker the
/// last line counts: a model that explains does so first.
fn final_answer(reply: &str) -> Option<FinalAnswer<'_>> {
    let lower = reply.to_ascii_lowercase();
    let after_marker =
        ANSWER_MARKERS.iter().filter_map(|marker| Some(lower.rfind(marker)? + marker.len())).max();
    if let Some((at, inside)) = last_boxed(reply)
        && after_marker.is_none_or(|after_marker| after_marker <= at)
    {
        return Some(FinalAnswer { text: inside, marked: true });
    }
    let is_filled = |line: &&str| line.chars().any(char::is_alphanumeric);
    let text = match after_marker {
        Some(at) => reply[at..].lines().find(is_filled),
        None => reply.lines().rfind(is_filled),
    };
    text.map(|text| FinalAnswer { text, marked: after_marker.is_some() })
}

/// Where the last whole `\boxed{...}` begins, and its inside, braces balanced.
fn last_boxed(reply: &str) -> Option<(usize, &str)> {
    const OPEN: &str = "\\boxed{";
    let inside = |from: usize| {
        let mut depth = 1;
        let end = reply[from..].bytes().position(|byte| {
            depth += match byte {
                b'{' => 1,
                b'}' => -1,
                _ => 0,
            };
            depth == 0
        })?;
        Some(&reply[from..from + end])
    };
    reply.rmatch_indices(OPEN).find_map(|(at, _)| Some((at, inside(at + OPEN.len())?)))
}

/// The option a reply settled on. A letter counts only where it stands alone; the article "A" and the pronoun "I" at the
/// head of a sentence do not. Where no letter is given, the words of exactly one option are taken for it.
fn extract_letter(reply: &str, choices: &[String]) -> Option<char> {
    let last = last_option_letter(choices);
    let answer = final_answer(reply)?;
    let is_whole_reply = reply.len() == answer.text.len();
    standalone_letter(answer, last, true)
        .or_else(|| option_by_text(answer.text, choices))
        .or_else(|| {
            let all = FinalAnswer { text: reply, marked: false };
            if is_whole_reply { None } else { standalone_letter(all, last, false) }
        })
        .or_else(|| option_by_text(reply, choices))
}

/// The letter of the last option; where the options are not known there are ten at most.
pub(super) fn last_option_letter(choices: &[String]) -> u8 {
    if choices.is_empty() { b'J' } else { b'A' + (choices.len() - 1).min(25) as u8 }
}

/// What may follow a letter that answers, and follows no article or pronoun: "Answer: A because ...".
const EXPLANATION_WORDS: [&str; 12] =
    ["because", "since", "as", "is", "and", "but", "for", "so", "that", "which", "due", "it"];

/// A letter that stands alone: the first of a text that answers, the last of one that argues.
fn standalone_letter(FinalAnswer { text, marked }: FinalAnswer, last: u8, first: bool) -> Option<char> {
    let bytes = text.as_bytes();
    let is_alone = |at: usize| {
        let before = at.checked_sub(1).map(|at| bytes[at]);
        let after = bytes.get(at + 1).copied();
        let is_word_byte = |byte: Option<u8>| {
            byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte >= 0x80 || byte == b'\'')
        };
        !is_word_byte(before) && !is_word_byte(after)
    };
    let is_explained = |at: usize, next: &str| {
        let word = next.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        marked && !text[..at].contains(char::is_alphanumeric) && EXPLANATION_WORDS.contains(&word)
    };
    let is_sentence_start = |at: usize| {
        let next = text[at + 1..].strip_prefix(' ').unwrap_or_default();
        matches!(bytes[at], b'A' | b'I')
            && next.starts_with(|next: char| next.is_ascii_lowercase())
            && !is_explained(at, next)
    };
    let is_option = |at: &usize| {
        let letter = bytes[*at];
        let bracketed = bytes.get(at + 1) == Some(&b')');
        let in_range = (b'A'..=last).contains(&letter)
            || (bracketed && (b'a'..=last.to_ascii_lowercase()).contains(&letter));
        in_range && is_alone(*at) && !is_sentence_start(*at)
    };
    let mut matching = (0..bytes.len()).filter(is_option);
    let at = if first { matching.next() } else { matching.next_back() };
    at.map(|at| char::from(bytes[at].to_ascii_uppercase()))
}

fn option_by_text(text: &str, choices: &[String]) -> Option<char> {
    let text = format!(" {} ", normalize_words(text));
    let mentions = |choice: &String| {
        let choice = normalize_words(choice);
        !choice.is_empty() && text.contains(&format!(" {choice} "))
    };
    let mut mentioned = choices.iter().enumerate().filter(|(_, choice)| mentions(choice));
    let (index, _) = mentioned.next()?;
    if mentioned.next().is_some() {
        return None;
    }
    u8::try_from(index).ok().map(|index| char::from(b'A' + index))
}

/// The number a reply settled on. Behind a marker: the one after the last "=", else the last before a remark; without one the
/// last of all. "3 x 4 = 12" says 12.
fn extract_number(reply: &str) -> Option<f64> {
    let after_equals = |text: &str| parse_numbers(text.rsplit_once('=')?.1).next();
    let in_answer = |answer: FinalAnswer| {
        let answer_text = if answer.marked { strip_explanation(answer.text) } else { answer.text };
        let result = if answer.marked { after_equals(answer_text) } else { None };
        result.or_else(|| parse_numbers(answer_text).last()).or_else(|| parse_numbers(answer.text).last())
    };
    final_answer(reply).and_then(in_answer).or_else(|| parse_numbers(reply).last())
}

/// An answer up to where it is explained: "12 (3 groups of 4)", "12 because ...". A bracket that is part of an equation is no
/// remark.
fn strip_explanation(text: &str) -> &str {
    let lower = text.to_ascii_lowercase();
    let reason = [" because", " since"].iter().filter_map(|word| lower.find(word)).min();
    let text = &text[..reason.unwrap_or(text.len())];
    match text.find(" (") {
        Some(at) if !text[at..].split_once(')').is_some_and(|(_, after)| after.contains('=')) => &text[..at],
        _ => text,
    }
}

/// Every number in a text, in order.
fn parse_numbers(text: &str) -> impl Iterator<Item = f64> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find(|c: char| c.is_ascii_digit() || c == '.' || c == '-' || c == '\u{2212}')?;
            match parse_number(&rest[at..]) {
                Some((value, after)) => {
                    rest = after;
                    return Some(value);
                }
                None => rest = rest[at..].char_indices().nth(1).map_or("", |(next, _)| &rest[at + next..]),
            }
        }
    })
}

/// A text's words in small letters, without punctuation and articles.
pub(super) fn normalize_words(text: &str) -> String {
    let lower = text.to_lowercase();
    let all = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    all.filter(|word| !matches!(*word, "a" | "an" | "the")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(format: AnswerFormat, answer: &str, choices: &[&str]) -> Question {
        let choices = choices.iter().map(|choice| (*choice).to_owned()).collect();
        Question {
            id: "q".into(),
            subject: "s".into(),
            format,
            prompt: "?".into(),
            answer: answer.into(),
            choices,
        }
    }

    #[test]
    fn extracts_the_final_letter() {
        let four = ["Paris", "London", "Berlin", "Madrid"];
        let asked = question(AnswerFormat::Letter, "B", &four);
        for reply in [
            "B",
            "(B)",
            "b)",
            "Answer: B",
            "**Answer:** B.",
            "The answer is (B) London.",
            "London",
            "A is wrong because it is in France. Answer: B",
            "I think A looks right at first.\n\nAnswer: B",
            "\\boxed{B}",
            "<think>A? C? no.</think>\nB",
            "The correct answer is: **B**",
            "Answer:\nB",
            "It must be London.",
            "A capital on the Thames: London",
        ] {
            assert_eq!(score_reply(&asked, reply), Some(true), "{reply}");
        }
        for reply in [
            "A",
            "Answer: C",
            "",
            "<think>B B B",
            "E",
            "A good question.",
            "London or Paris",
            "Both B",
            "Answer: (A) not B",
        ] {
            let right = reply == "Both B";
            assert_eq!(score_reply(&asked, reply), Some(right), "{reply}");
        }
        assert_eq!(extract_answer(&asked, "A nice day"), None);
    }

    #[test]
    fn a_marked_letter_may_be_followed_by_an_explanation() {
        let asked = question(AnswerFormat::Letter, "A", &["Paris", "London", "Berlin", "Madrid"]);
        for (reply, expected) in [
            ("The correct answer is A because it lies on the Seine.", Some("A")),
            ("Answer: A is correct", Some("A")),
            ("**Answer:** A since B and the rest are wrong.", Some("A")),
            ("The answer is (A) because B is in England.", Some("A")),
            ("Answer:\nA as the Seine is there", Some("A")),
            ("Answer: A capital on the Thames, so B", Some("B")),
            ("Answer: A nice day", None),
            ("A because I say so. Answer: C", Some("C")),
        ] {
            assert_eq!(extract_answer(&asked, reply).as_deref(), expected, "{reply}");
        }
        let many = question(AnswerFormat::Letter, "I", &["x"; 9]);
        assert_eq!(extract_answer(&many, "Answer: I because it fits").as_deref(), Some("I"));
        assert_eq!(extract_answer(&many, "Answer: I think that it is B").as_deref(), Some("B"));
    }

    #[test]
    fn the_last_marker_wins() {
        let asked = question(AnswerFormat::Letter, "B", &["Paris", "London", "Berlin", "Madrid"]);
        for reply in [
            "\\boxed{A}, but that was wrong.\nAnswer: B",
            "Answer: A? No.\n\\boxed{B}",
            "Answer: A\n#### B",
            "\\boxed{B} and no \\boxed{A",
            "Answer: \\boxed{B}, since A is in France",
        ] {
            assert_eq!(score_reply(&asked, reply), Some(true), "{reply}");
        }
    }

    #[test]
    fn explanations_after_a_number_are_ignored() {
        let asked = question(AnswerFormat::Numeric, "12", &[]);
        for reply in [
            "Answer: 12 (3 groups of 4)",
            "The answer is 12, because 3 x 4 is 12 and not 7.",
            "The answer is 12 since 13 is too many",
            "Answer: 3 x 4 = 12 apples for 5 children",
            "Answer: 2 (2 + 4) = 12",
            "Answer: (12)",
            "Answer: because 12",
            "\\boxed{x = 12}",
            "Answer: x = 12 (and y = 7)",
            "Answer: 12 =",
            "It is 12.\nAnswer:",
        ] {
            assert_eq!(score_reply(&asked, reply), Some(true), "{reply}");
        }
    }

    #[test]
    fn numbers_are_compared_by_value() {
        let asked = question(AnswerFormat::Numeric, "1200", &[]);
        for reply in [
            "1200",
            "1,200",
            "$1,200.00",
            "The answer is 1200.",
            "600 + 600 = 1200",
            "1.2e3",
            "#### 1200",
            "\\boxed{1,200}",
            "Answer: 1200 apples",
            "First 3, then 4.\nAnswer: 1200",
            "2400/2",
            "It costs \u{20ac}1200!",
        ] {
            assert_eq!(score_reply(&asked, reply), Some(true), "{reply}");
        }
        for reply in [
            "120",
            "-1200",
            "12000",
            "1,20",
            "",
            "twelve hundred",
            "1200, no: 1300",
            "Answer: 7\n(1200 was wrong)",
        ] {
            assert_eq!(score_reply(&asked, reply), Some(false), "{reply}");
        }
        assert_eq!(
            score_reply(&question(AnswerFormat::Numeric, "-0.5", &[]), "So it is \u{2212}1/2."),
            Some(true)
        );
        assert_eq!(score_reply(&question(AnswerFormat::Numeric, "3", &[]), "1, 2, 3"), Some(true));
    }

    #[test]
    fn exact_answers_are_compared_word_by_word() {
        let asked = question(AnswerFormat::Exact, "The Nile", &[]);
        for reply in
            ["Nile", "the nile.", "Answer: Nile", "It flows north.\nThe answer is the Nile.", "**Nile**"]
        {
            assert_eq!(score_reply(&asked, reply), Some(true), "{reply}");
        }
        for reply in ["The Nile or the Amazon", "Amazon", "", "Nile\nAmazon"] {
            assert_eq!(score_reply(&asked, reply), Some(false), "{reply}");
        }
    }

    #[test]
    fn judge_questions_have_no_score() {
        assert_eq!(score_reply(&question(AnswerFormat::Judge, "Because", &[]), "Because"), None);
    }

    #[test]
    fn arbitrary_text_does_not_panic() {
        use proptest::prelude::*;
        proptest!(|(text in "\\PC{0,60}", head in "(Answer:|####|\\\\boxed\\{|-|,|\\.|<think>){0,4}", tail in "[0-9,./e\u{2212}-]{0,12}")| {
            let reply = format!("{head}{text}{tail}");
            for format in [AnswerFormat::Letter, AnswerFormat::Numeric, AnswerFormat::Exact] {
                let asked = question(format, "B", &["yes", "no"]);
                prop_assert!(score_reply(&asked, &reply).is_some());
                extract_answer(&asked, &reply);
            }
        });
    }
}
