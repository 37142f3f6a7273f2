//! What a model answered, read out of what it wrote, and whether that is right.
//!
//! Owns the three rules that need no judge. Each looks for what the model *settled on*: what follows the last marker
//! ("Answer:", "\boxed{}", "####", "the answer is"; the one that stands last), else the last thing of the right kind.
//! Invariant: the prompt is never looked at, so that an echo of the options is not an answer; what cannot be read is `None`,
//! "no answer", which scores as wrong and is counted apart.

use super::number::{number, same};
use super::question::{Format, Question, lettered};

/// What a model settled on, as text; `None`: nothing of the kind was found.
pub fn answer(question: &Question, reply: &str) -> Option<String> {
    let reply = after_thinking(reply);
    match question.format {
        Format::Letter => letter(reply, &question.choices).map(String::from),
        Format::Numeric => last_number(reply).map(|value| value.to_string()),
        Format::Exact => settled(reply).map(|settled| words(settled.text)).filter(|words| !words.is_empty()),
        Format::Judge => None,
    }
}

/// Whether a reply is right; `None` where only a judge can say.
pub fn score(question: &Question, reply: &str) -> Option<bool> {
    let right = question.answer.trim();
    let reply = after_thinking(reply);
    match question.format {
        Format::Letter => {
            let right = lettered(right, &question.choices);
            Some(right.is_some() && letter(reply, &question.choices) == right)
        }
        Format::Numeric => {
            let right = number(right).map(|(value, _)| value);
            Some(
                right.is_some()
                    && last_number(reply)
                        .is_some_and(|value| Some(true) == right.map(|right| same(value, right))),
            )
        }
        Format::Exact => Some(settled(reply).is_some_and(|settled| words(settled.text) == words(right))),
        Format::Judge => None,
    }
}

/// What comes after a reasoning model's thoughts; all of it where there are none. Thoughts that never ended were cut off by
/// the token limit: nothing was answered.
pub(super) fn after_thinking(reply: &str) -> &str {
    match reply.rsplit_once("</think>") {
        Some((_, rest)) => rest,
        None if reply.trim_start().starts_with("<think>") => "",
        None => reply,
    }
}

/// The part of a reply that says what the model settled on.
#[derive(Clone, Copy)]
struct Settled<'a> {
    text: &'a str,
    /// A marker says so; otherwise it is only the last line.
    marked: bool,
}

/// What marks an answer, in small letters.
const MARKERS: [&str; 5] = ["answer:", "answer is", "####", "answer**:", "answer:**"];

/// What the last marker points at: the inside of `\boxed{}`, or what follows up to the end of its line. Without a marker the
/// last line counts: a model that explains does so first.
fn settled(reply: &str) -> Option<Settled<'_>> {
    let lower = reply.to_ascii_lowercase();
    let behind = MARKERS.iter().filter_map(|marker| Some(lower.rfind(marker)? + marker.len())).max();
    if let Some((at, inside)) = boxed(reply)
        && behind.is_none_or(|behind| behind <= at)
    {
        return Some(Settled { text: inside, marked: true });
    }
    let filled = |line: &&str| line.chars().any(char::is_alphanumeric);
    let text = match behind {
        Some(at) => reply[at..].lines().find(filled),
        None => reply.lines().rfind(filled),
    };
    text.map(|text| Settled { text, marked: behind.is_some() })
}

/// Where the last whole `\boxed{...}` begins, and its inside, braces balanced.
fn boxed(reply: &str) -> Option<(usize, &str)> {
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
fn letter(reply: &str, choices: &[String]) -> Option<char> {
    let last = last_letter(choices);
    let settled = settled(reply)?;
    let whole = reply.len() == settled.text.len();
    lone_letter(settled, last, true)
        .or_else(|| by_words(settled.text, choices))
        .or_else(|| {
            let all = Settled { text: reply, marked: false };
            if whole { None } else { lone_letter(all, last, false) }
        })
        .or_else(|| by_words(reply, choices))
}

/// The letter of the last option; where the options are not known there are ten at most.
pub(super) fn last_letter(choices: &[String]) -> u8 {
    if choices.is_empty() { b'J' } else { b'A' + (choices.len() - 1).min(25) as u8 }
}

/// What may follow a letter that answers, and follows no article or pronoun: "Answer: A because ...".
const REASONS: [&str; 12] =
    ["because", "since", "as", "is", "and", "but", "for", "so", "that", "which", "due", "it"];

/// A letter that stands alone: the first of a text that answers, the last of one that argues.
fn lone_letter(Settled { text, marked }: Settled, last: u8, first: bool) -> Option<char> {
    let bytes = text.as_bytes();
    let alone = |at: usize| {
        let before = at.checked_sub(1).map(|at| bytes[at]);
        let after = bytes.get(at + 1).copied();
        let wordy = |byte: Option<u8>| {
            byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte >= 0x80 || byte == b'\'')
        };
        !wordy(before) && !wordy(after)
    };
    let answers = |at: usize, next: &str| {
        let word = next.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        marked && !text[..at].contains(char::is_alphanumeric) && REASONS.contains(&word)
    };
    let sentence = |at: usize| {
        let next = text[at + 1..].strip_prefix(' ').unwrap_or_default();
        matches!(bytes[at], b'A' | b'I')
            && next.starts_with(|next: char| next.is_ascii_lowercase())
            && !answers(at, next)
    };
    let option = |at: &usize| {
        let letter = bytes[*at];
        let bracketed = bytes.get(at + 1) == Some(&b')');
        let in_range = (b'A'..=last).contains(&letter)
            || (bracketed && (b'a'..=last.to_ascii_lowercase()).contains(&letter));
        in_range && alone(*at) && !sentence(*at)
    };
    let mut found = (0..bytes.len()).filter(option);
    let at = if first { found.next() } else { found.next_back() };
    at.map(|at| char::from(bytes[at].to_ascii_uppercase()))
}

fn by_words(text: &str, choices: &[String]) -> Option<char> {
    let text = format!(" {} ", words(text));
    let says = |choice: &String| {
        let choice = words(choice);
        !choice.is_empty() && text.contains(&format!(" {choice} "))
    };
    let mut said = choices.iter().enumerate().filter(|(_, choice)| says(choice));
    let (place, _) = said.next()?;
    if said.next().is_some() {
        return None;
    }
    u8::try_from(place).ok().map(|place| char::from(b'A' + place))
}

/// The number a reply settled on. Behind a marker: the one after the last "=", else the last before a remark; without one the
/// last of all. "3 x 4 = 12" says 12.
fn last_number(reply: &str) -> Option<f64> {
    let behind_equals = |text: &str| numbers(text.rsplit_once('=')?.1).next();
    let in_settled = |settled: Settled| {
        let said = if settled.marked { without_remark(settled.text) } else { settled.text };
        let equal = if settled.marked { behind_equals(said) } else { None };
        equal.or_else(|| numbers(said).last()).or_else(|| numbers(settled.text).last())
    };
    settled(reply).and_then(in_settled).or_else(|| numbers(reply).last())
}

/// An answer up to where it is explained: "12 (3 groups of 4)", "12 because ...". A bracket that is part of an equation is no
/// remark.
fn without_remark(text: &str) -> &str {
    let lower = text.to_ascii_lowercase();
    let reason = [" because", " since"].iter().filter_map(|word| lower.find(word)).min();
    let text = &text[..reason.unwrap_or(text.len())];
    match text.find(" (") {
        Some(at) if !text[at..].split_once(')').is_some_and(|(_, after)| after.contains('=')) => &text[..at],
        _ => text,
    }
}

/// Every number in a text, in order.
fn numbers(text: &str) -> impl Iterator<Item = f64> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find(|c: char| c.is_ascii_digit() || c == '.' || c == '-' || c == '\u{2212}')?;
            match number(&rest[at..]) {
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
pub(super) fn words(text: &str) -> String {
    let lower = text.to_lowercase();
    let all = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    all.filter(|word| !matches!(*word, "a" | "an" | "the")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(format: Format, answer: &str, choices: &[&str]) -> Question {
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
    fn a_letter_is_the_one_that_the_model_settled_on() {
        let four = ["Paris", "London", "Berlin", "Madrid"];
        let asked = question(Format::Letter, "B", &four);
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
            assert_eq!(score(&asked, reply), Some(true), "{reply}");
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
            assert_eq!(score(&asked, reply), Some(right), "{reply}");
        }
        assert_eq!(answer(&asked, "A nice day"), None);
    }

    #[test]
    fn a_letter_behind_a_marker_may_be_followed_by_its_reason() {
        let asked = question(Format::Letter, "A", &["Paris", "London", "Berlin", "Madrid"]);
        for (reply, settled) in [
            ("The correct answer is A because it lies on the Seine.", Some("A")),
            ("Answer: A is correct", Some("A")),
            ("**Answer:** A since B and the rest are wrong.", Some("A")),
            ("The answer is (A) because B is in England.", Some("A")),
            ("Answer:\nA as the Seine is there", Some("A")),
            ("Answer: A capital on the Thames, so B", Some("B")),
            ("Answer: A nice day", None),
            ("A because I say so. Answer: C", Some("C")),
        ] {
            assert_eq!(answer(&asked, reply).as_deref(), settled, "{reply}");
        }
        let many = question(Format::Letter, "I", &["x"; 9]);
        assert_eq!(answer(&many, "Answer: I because it fits").as_deref(), Some("I"));
        assert_eq!(answer(&many, "Answer: I think that it is B").as_deref(), Some("B"));
    }

    #[test]
    fn the_last_marker_wins_whatever_it_is() {
        let asked = question(Format::Letter, "B", &["Paris", "London", "Berlin", "Madrid"]);
        for reply in [
            "\\boxed{A}, but that was wrong.\nAnswer: B",
            "Answer: A? No.\n\\boxed{B}",
            "Answer: A\n#### B",
            "\\boxed{B} and no \\boxed{A",
            "Answer: \\boxed{B}, since A is in France",
        ] {
            assert_eq!(score(&asked, reply), Some(true), "{reply}");
        }
    }

    #[test]
    fn remarks_behind_a_number_are_none_of_it() {
        let asked = question(Format::Numeric, "12", &[]);
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
            assert_eq!(score(&asked, reply), Some(true), "{reply}");
        }
    }

    #[test]
    fn a_number_is_compared_by_value_however_it_is_written() {
        let asked = question(Format::Numeric, "1200", &[]);
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
            assert_eq!(score(&asked, reply), Some(true), "{reply}");
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
            assert_eq!(score(&asked, reply), Some(false), "{reply}");
        }
        assert_eq!(score(&question(Format::Numeric, "-0.5", &[]), "So it is \u{2212}1/2."), Some(true));
        assert_eq!(score(&question(Format::Numeric, "3", &[]), "1, 2, 3"), Some(true));
    }

    #[test]
    fn a_text_is_compared_word_by_word() {
        let asked = question(Format::Exact, "The Nile", &[]);
        for reply in
            ["Nile", "the nile.", "Answer: Nile", "It flows north.\nThe answer is the Nile.", "**Nile**"]
        {
            assert_eq!(score(&asked, reply), Some(true), "{reply}");
        }
        for reply in ["The Nile or the Amazon", "Amazon", "", "Nile\nAmazon"] {
            assert_eq!(score(&asked, reply), Some(false), "{reply}");
        }
    }

    #[test]
    fn what_only_a_judge_can_tell_has_no_score() {
        assert_eq!(score(&question(Format::Judge, "Because", &[]), "Because"), None);
    }

    #[test]
    fn any_text_at_all_is_read_without_harm() {
        use proptest::prelude::*;
        proptest!(|(text in "\\PC{0,60}", head in "(Answer:|####|\\\\boxed\\{|-|,|\\.|<think>){0,4}", tail in "[0-9,./e\u{2212}-]{0,12}")| {
            let reply = format!("{head}{text}{tail}");
            for format in [Format::Letter, Format::Numeric, Format::Exact] {
                let asked = question(format, "B", &["yes", "no"]);
                prop_assert!(score(&asked, &reply).is_some());
                answer(&asked, &reply);
            }
        });
    }
}
