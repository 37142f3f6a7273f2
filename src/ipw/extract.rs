//! What a model answered, read out of what it wrote, and whether that is right.
//!
//! Owns the three rules that need no judge. Each looks for what the model *settled on*: what follows the last marker
//! ("Answer:", "\boxed{}", "####", "the answer is"), else the last thing of the right kind. Invariant: the prompt is never
//! looked at, so that an echo of the options is not an answer; what cannot be read is `None`, "no answer", which scores as
//! wrong and is counted apart.

use super::question::{Format, Question};

/// What a model settled on, as text; `None`: nothing of the kind was found.
pub fn answer(question: &Question, reply: &str) -> Option<String> {
    let reply = after_thinking(reply);
    match question.format {
        Format::Letter => letter(reply, &question.choices).map(String::from),
        Format::Numeric => last_number(reply).map(|value| value.to_string()),
        Format::Exact => settled(reply).map(words).filter(|words| !words.is_empty()),
        Format::Judge => None,
    }
}

/// Whether a reply is right; `None` where only a judge can say.
pub fn score(question: &Question, reply: &str) -> Option<bool> {
    let right = question.answer.trim();
    let reply = after_thinking(reply);
    match question.format {
        Format::Letter => {
            let right = right.trim_matches(['(', ')', '.']).chars().next();
            Some(
                right.is_some()
                    && letter(reply, &question.choices) == right.map(|right| right.to_ascii_uppercase()),
            )
        }
        Format::Numeric => {
            let right = number(right).map(|(value, _)| value);
            Some(
                right.is_some()
                    && last_number(reply)
                        .is_some_and(|value| Some(true) == right.map(|right| same(value, right))),
            )
        }
        Format::Exact => Some(settled(reply).is_some_and(|text| words(text) == words(right))),
        Format::Judge => None,
    }
}

/// What comes after a reasoning model's thoughts; all of it where there are none. Thoughts that never ended were cut off by
/// the token limit: nothing was answered.
fn after_thinking(reply: &str) -> &str {
    match reply.rsplit_once("</think>") {
        Some((_, rest)) => rest,
        None if reply.trim_start().starts_with("<think>") => "",
        None => reply,
    }
}

/// Where a marker says that the answer follows: the text behind the last one, up to the end of its line.
fn settled(reply: &str) -> Option<&str> {
    if let Some(boxed) = boxed(reply) {
        return Some(boxed);
    }
    let lower = reply.to_ascii_lowercase();
    let mut best: Option<usize> = None;
    for marker in ["answer:", "answer is", "####", "answer**:", "answer:**"] {
        if let Some(at) = lower.rfind(marker) {
            best = best.max(Some(at + marker.len()));
        }
    }
    let rest = best.map_or(reply, |at| &reply[at..]);
    let filled = |line: &&str| line.chars().any(char::is_alphanumeric);
    // Without a marker the last line counts: a model that explains does so first.
    if best.is_some() { rest.lines().find(filled) } else { rest.lines().rfind(filled) }
}

/// The inside of the last `\boxed{...}`, braces balanced.
fn boxed(reply: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    let begin = reply.rfind(OPEN)? + OPEN.len();
    let mut depth = 1;
    for (at, byte) in reply[begin..].bytes().enumerate() {
        depth += match byte {
            b'{' => 1,
            b'}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some(&reply[begin..begin + at]);
        }
    }
    None
}

/// The option a reply settled on. A letter counts only where it stands alone; the article "A" and the pronoun "I" at the
/// head of a sentence do not. Where no letter is given, the words of exactly one option are taken for it.
fn letter(reply: &str, choices: &[String]) -> Option<char> {
    let last = if choices.is_empty() { b'J' } else { b'A' + (choices.len() - 1).min(25) as u8 };
    let marked = settled(reply)?;
    let whole = reply.len() == marked.len();
    lone_letter(marked, last, true)
        .or_else(|| by_words(marked, choices))
        .or_else(|| if whole { None } else { lone_letter(reply, last, false) })
        .or_else(|| by_words(reply, choices))
}

/// A letter that stands alone: the first of a text that answers, the last of one that argues.
fn lone_letter(text: &str, last: u8, first: bool) -> Option<char> {
    let bytes = text.as_bytes();
    let alone = |at: usize| {
        let before = at.checked_sub(1).map(|at| bytes[at]);
        let after = bytes.get(at + 1).copied();
        let wordy = |byte: Option<u8>| {
            byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte >= 0x80 || byte == b'\'')
        };
        !wordy(before) && !wordy(after)
    };
    let option = |at: &usize| {
        let letter = bytes[*at];
        let bracketed = bytes.get(at + 1) == Some(&b')');
        let in_range = (b'A'..=last).contains(&letter)
            || (bracketed && (b'a'..=last.to_ascii_lowercase()).contains(&letter));
        let sentence = matches!(letter, b'A' | b'I')
            && text[at + 1..].starts_with(' ')
            && text[at + 2..].starts_with(|next: char| next.is_ascii_lowercase());
        in_range && alone(*at) && !sentence
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

/// The number a reply settled on: the last one behind a marker's line, else the last of all. "3 x 4 = 12" says 12.
fn last_number(reply: &str) -> Option<f64> {
    let in_text = |text: &str| {
        let mut rest = text;
        let mut last = None;
        while let Some(at) =
            rest.find(|c: char| c.is_ascii_digit() || c == '.' || c == '-' || c == '\u{2212}')
        {
            match number(&rest[at..]) {
                Some((value, after)) => {
                    last = Some(value);
                    rest = after;
                }
                None => rest = rest[at..].char_indices().nth(1).map_or("", |(next, _)| &rest[at + next..]),
            }
        }
        last
    };
    settled(reply).and_then(in_text).or_else(|| in_text(reply))
}

/// The number a text begins with, and what follows it. Thousands may be grouped by commas; a fraction of two whole numbers
/// counts by its value; a full stop that ends a sentence is none of it; a percent sign is left to what follows.
pub fn number(text: &str) -> Option<(f64, &str)> {
    let (value, rest) = plain_number(text)?;
    if let Some(divisor) = rest.strip_prefix('/')
        && divisor.starts_with(|first: char| first.is_ascii_digit())
        && let Some((divisor, rest)) = plain_number(divisor)
        && divisor != 0.0
    {
        return Some((value / divisor, rest));
    }
    Some((value, rest))
}

fn plain_number(text: &str) -> Option<(f64, &str)> {
    let mut digits = String::new();
    let mut rest = text;
    if let Some(after) = rest.strip_prefix('-').or_else(|| rest.strip_prefix('\u{2212}')) {
        digits.push('-');
        rest = after;
    }
    let sign = digits.len();
    let take = |rest: &mut &str, digits: &mut String| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        digits.push_str(&rest[..end]);
        *rest = &rest[end..];
    };
    take(&mut rest, &mut digits);
    while (sign + 1..=sign + 3).contains(&digits.len()) || digits.len() > sign + 3 {
        let group = rest.strip_prefix(',').and_then(|after| after.get(..3));
        let Some(group) = group.filter(|group| group.bytes().all(|byte| byte.is_ascii_digit())) else {
            break;
        };
        if rest[4..].starts_with(|next: char| next.is_ascii_digit()) {
            break;
        }
        digits.push_str(group);
        rest = &rest[4..];
    }
    if let Some(after) =
        rest.strip_prefix('.').filter(|after| after.starts_with(|c: char| c.is_ascii_digit()))
    {
        digits.push('.');
        rest = after;
        take(&mut rest, &mut digits);
    }
    if let Some(after) = rest.strip_prefix(['e', 'E']) {
        let unsigned = after.strip_prefix(['-', '+']).unwrap_or(after);
        if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
            digits.push('e');
            digits.push_str(&after[..after.len() - unsigned.len()]);
            rest = unsigned;
            take(&mut rest, &mut digits);
        }
    }
    let value: f64 = digits.parse().ok()?;
    value.is_finite().then_some((value, rest))
}

/// Equal but for the last digit that a float keeps.
fn same(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-9 * one.abs().max(other.abs()).max(1.0)
}

/// A text's words in small letters, without punctuation and articles.
fn words(text: &str) -> String {
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
