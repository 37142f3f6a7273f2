//! Extraction of the answer from a model's reply, and scoring by rule.
//!
//! There are three rules that need no judge. Each reads the text after the last marker ("Answer:", "\boxed{}", "####",
//! "the answer is"), or else the last match of the right kind. Invariant: the prompt is not read, so an echo of the
//! options is no answer. An unreadable answer is `None`, which scores as incorrect and is counted separately.

use super::answer_format::{AnswerFormat, last_option_letter, normalize_words, parse_option_letter};

/// Extracts the answer as text; `None` if the reply has none.
pub fn extract_answer(format: AnswerFormat, choices: &[String], reply: &str) -> Option<String> {
    let reply = strip_reasoning(reply);
    match format {
        AnswerFormat::Letter => extract_letter(reply, choices).map(String::from),
        AnswerFormat::Numeric => extract_number(reply).map(|value| value.to_string()),
        AnswerFormat::Exact => {
            final_answer(reply).map(|answer| normalize_words(answer.text)).filter(|words| !words.is_empty())
        }
        AnswerFormat::Judge => None,
    }
}

/// Returns whether a reply is correct; `None` if a judge has to decide.
pub fn score_reply(format: AnswerFormat, choices: &[String], expected: &str, reply: &str) -> Option<bool> {
    let expected = expected.trim();
    let reply = strip_reasoning(reply);
    match format {
        AnswerFormat::Letter => {
            let expected = parse_option_letter(expected, choices);
            Some(expected.is_some() && extract_letter(reply, choices) == expected)
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

/// Removes the reasoning of a reasoning model. Reasoning without an end was cut off by the token limit and leaves an
/// empty answer.
pub(super) fn strip_reasoning(reply: &str) -> &str {
    match reply.rsplit_once("</think>") {
        Some((_, rest)) => rest,
        None if reply.trim_start().starts_with("<think>") => "",
        None => reply,
    }
}

/// The part of a reply that states the answer.
#[derive(Clone, Copy)]
struct FinalAnswer<'a> {
    text: &'a str,
    /// Whether a marker precedes it; otherwise it is the last line.
    marked: bool,
}

/// Markers of an answer, in lower case.
const ANSWER_MARKERS: [&str; 5] = ["answer:", "answer is", "####", "answer**:", "answer:**"];

/// Returns the content of the last `\boxed{}`, or the rest of the line after the last marker. Without a marker it
/// returns the last line, since explanations come first.
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

/// Returns the offset and content of the last complete `\boxed{...}` with balanced braces.
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

/// Extracts the option letter of a reply. A letter counts only as a separate word; the article "A" and the pronoun "I"
/// at the start of a sentence do not count. Without a letter, the text of exactly one option counts.
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

/// Words that follow an answer letter but no article or pronoun: "Answer: A because ...".
const EXPLANATION_WORDS: [&str; 12] =
    ["because", "since", "as", "is", "and", "but", "for", "so", "that", "which", "due", "it"];

/// Finds a letter that is a separate word: the first of a marked answer, the last of an argument.
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

/// Extracts the number of a reply. After a marker it is the number after the last "=", else the last one before an
/// explanation. Without a marker it is the last number: "3 x 4 = 12" gives 12.
fn extract_number(reply: &str) -> Option<f64> {
    let after_equals = |text: &str| parse_numbers(text.rsplit_once('=')?.1).next();
    let in_answer = |answer: FinalAnswer| {
        let answer_text = if answer.marked { strip_explanation(answer.text) } else { answer.text };
        let result = if answer.marked { after_equals(answer_text) } else { None };
        result.or_else(|| parse_numbers(answer_text).last()).or_else(|| parse_numbers(answer.text).last())
    };
    final_answer(reply).and_then(in_answer).or_else(|| parse_numbers(reply).last())
}

/// Cuts an answer where its explanation begins: "12 (3 groups of 4)", "12 because ...". A bracket within an equation
/// is not an explanation.
fn strip_explanation(text: &str) -> &str {
    let lower = text.to_ascii_lowercase();
    let reason = [" because", " since"].iter().filter_map(|word| lower.find(word)).min();
    let text = &text[..reason.unwrap_or(text.len())];
    match text.find(" (") {
        Some(at) if !text[at..].split_once(')').is_some_and(|(_, after)| after.contains('=')) => &text[..at],
        _ => text,
    }
}

/// Returns all numbers in a text, in order.
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

/// Parses the number at the start of a text; returns its value and the rest. Commas may group thousands, and a
/// fraction of two integers gives its value. A full stop at the end of a sentence and a percent sign stay in the rest.
/// The value is finite.
pub fn parse_number(text: &str) -> Option<(f64, &str)> {
    let (value, rest) = parse_decimal(text)?;
    if let Some(divisor) = rest.strip_prefix('/')
        && divisor.starts_with(|first: char| first.is_ascii_digit())
        && let Some((divisor, rest)) = parse_decimal(divisor)
        && divisor != 0.0
    {
        return Some((value / divisor, rest));
    }
    Some((value, rest))
}

fn parse_decimal(text: &str) -> Option<(f64, &str)> {
    let mut digits = String::new();
    let mut rest = text;
    if let Some(after) = rest.strip_prefix('-').or_else(|| rest.strip_prefix('\u{2212}')) {
        digits.push('-');
        rest = after;
    }
    let sign = digits.len();
    let take_digits = |rest: &mut &str, digits: &mut String| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        digits.push_str(&rest[..end]);
        *rest = &rest[end..];
    };
    take_digits(&mut rest, &mut digits);
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
        take_digits(&mut rest, &mut digits);
    }
    if let Some(after) = rest.strip_prefix(['e', 'E']) {
        let unsigned = after.strip_prefix(['-', '+']).unwrap_or(after);
        if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
            digits.push('e');
            digits.push_str(&after[..after.len() - unsigned.len()]);
            rest = unsigned;
            take_digits(&mut rest, &mut digits);
        }
    }
    let value: f64 = digits.parse().ok()?;
    value.is_finite().then_some((value, rest))
}

/// Compares two numbers up to floating-point rounding.
pub fn approximately_equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Expected {
        format: AnswerFormat,
        answer: String,
        choices: Vec<String>,
    }

    impl Expected {
        fn new(format: AnswerFormat, answer: &str, choices: &[&str]) -> Self {
            let choices = choices.iter().map(|choice| (*choice).to_owned()).collect();
            Self { format, answer: answer.into(), choices }
        }

        fn score(&self, reply: &str) -> Option<bool> {
            score_reply(self.format, &self.choices, &self.answer, reply)
        }

        fn extract(&self, reply: &str) -> Option<String> {
            extract_answer(self.format, &self.choices, reply)
        }
    }

    #[test]
    fn extracts_the_final_letter() {
        let four = ["Paris", "London", "Berlin", "Madrid"];
        let case = Expected::new(AnswerFormat::Letter, "B", &four);
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
            assert_eq!(case.score(reply), Some(true), "{reply}");
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
            assert_eq!(case.score(reply), Some(right), "{reply}");
        }
        assert_eq!(case.extract("A nice day"), None);
    }

    #[test]
    fn a_marked_letter_may_be_followed_by_an_explanation() {
        let case = Expected::new(AnswerFormat::Letter, "A", &["Paris", "London", "Berlin", "Madrid"]);
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
            assert_eq!(case.extract(reply).as_deref(), expected, "{reply}");
        }
        let many = Expected::new(AnswerFormat::Letter, "I", &["x"; 9]);
        assert_eq!(many.extract("Answer: I because it fits").as_deref(), Some("I"));
        assert_eq!(many.extract("Answer: I think that it is B").as_deref(), Some("B"));
    }

    #[test]
    fn the_last_marker_wins() {
        let case = Expected::new(AnswerFormat::Letter, "B", &["Paris", "London", "Berlin", "Madrid"]);
        for reply in [
            "\\boxed{A}, but that was wrong.\nAnswer: B",
            "Answer: A? No.\n\\boxed{B}",
            "Answer: A\n#### B",
            "\\boxed{B} and no \\boxed{A",
            "Answer: \\boxed{B}, since A is in France",
        ] {
            assert_eq!(case.score(reply), Some(true), "{reply}");
        }
    }

    #[test]
    fn explanations_after_a_number_are_ignored() {
        let case = Expected::new(AnswerFormat::Numeric, "12", &[]);
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
            assert_eq!(case.score(reply), Some(true), "{reply}");
        }
    }

    #[test]
    fn numbers_are_compared_by_value() {
        let case = Expected::new(AnswerFormat::Numeric, "1200", &[]);
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
            assert_eq!(case.score(reply), Some(true), "{reply}");
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
            assert_eq!(case.score(reply), Some(false), "{reply}");
        }
        assert_eq!(
            Expected::new(AnswerFormat::Numeric, "-0.5", &[]).score("So it is \u{2212}1/2."),
            Some(true)
        );
        assert_eq!(Expected::new(AnswerFormat::Numeric, "3", &[]).score("1, 2, 3"), Some(true));
    }

    #[test]
    fn exact_answers_are_compared_word_by_word() {
        let case = Expected::new(AnswerFormat::Exact, "The Nile", &[]);
        for reply in
            ["Nile", "the nile.", "Answer: Nile", "It flows north.\nThe answer is the Nile.", "**Nile**"]
        {
            assert_eq!(case.score(reply), Some(true), "{reply}");
        }
        for reply in ["The Nile or the Amazon", "Amazon", "", "Nile\nAmazon"] {
            assert_eq!(case.score(reply), Some(false), "{reply}");
        }
    }

    #[test]
    fn judge_questions_have_no_score() {
        assert_eq!(Expected::new(AnswerFormat::Judge, "Because", &[]).score("Because"), None);
    }

    #[test]
    fn arbitrary_text_does_not_panic() {
        use proptest::prelude::*;
        proptest!(|(text in "\\PC{0,60}", head in "(Answer:|####|\\\\boxed\\{|-|,|\\.|<think>){0,4}", tail in "[0-9,./e\u{2212}-]{0,12}")| {
            let reply = format!("{head}{text}{tail}");
            for format in [AnswerFormat::Letter, AnswerFormat::Numeric, AnswerFormat::Exact] {
                let case = Expected::new(format, "B", &["yes", "no"]);
                prop_assert!(case.score(&reply).is_some());
                case.extract(&reply);
            }
        });
    }

    #[test]
    fn parses_the_leading_number_and_returns_the_rest() {
        for (text, value, rest) in [
            ("1,200.50 dollars", 1200.5, " dollars"),
            ("12.", 12.0, "."),
            ("1,20", 1.0, ",20"),
            ("\u{2212}1/2", -0.5, ""),
            ("3/0", 3.0, "/0"),
            ("1.2e3%", 1200.0, "%"),
            ("5em", 5.0, "em"),
        ] {
            assert_eq!(parse_number(text), Some((value, rest)), "{text}");
        }
        for none in ["", "-", "x1", "$5", "1e999"] {
            assert_eq!(parse_number(none), None, "{none}");
        }
        assert!(approximately_equal(0.1 + 0.2, 0.3) && !approximately_equal(1.0, 1.001));
    }
}
