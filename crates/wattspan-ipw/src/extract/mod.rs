//! Extraction of the answer from a model's reply, and scoring by rule.
//!
//! There are three rules that need no judge. Each reads what the reply marks as its answer ("Answer:", "\boxed{}", "####",
//! "the answer is", in several languages), or else its first or last line. Invariant: the prompt is not read, so an echo of
//! the options is no answer. An unreadable answer is `None`, which scores as incorrect and is counted separately.

mod final_answer;
mod letter;
mod number;
mod reply_text;

use final_answer::{filled_lines, first_sentence, marked_answer};
use letter::extract_letter;
pub use number::parse_number;
use number::{emphasized, expected_number, extract_number};
use reply_text::plain_text;
pub(crate) use reply_text::strip_reasoning;

use super::answer_format::{AnswerFormat, normalize_words, parse_option_letter};

/// Extracts the answer as text; `None` if the reply has none.
pub fn extract_answer(format: AnswerFormat, choices: &[String], reply: &str) -> Option<String> {
    let reply = strip_reasoning(reply);
    let plain = plain_text(reply);
    match format {
        AnswerFormat::Letter => extract_letter(&plain, choices).map(String::from),
        AnswerFormat::Numeric => {
            extract_number(&plain, emphasized(reply)).map(|number| number.value.to_string())
        }
        AnswerFormat::Exact => {
            statements(&plain).last().map(|text| normalize_words(text)).filter(|words| !words.is_empty())
        }
        AnswerFormat::Judge => None,
    }
}

/// Returns whether a reply is correct; `None` if a judge has to decide.
pub fn score_reply(format: AnswerFormat, choices: &[String], expected: &str, reply: &str) -> Option<bool> {
    let expected = expected.trim();
    let reply = strip_reasoning(reply);
    let plain = plain_text(reply);
    match format {
        AnswerFormat::Letter => {
            let expected = parse_option_letter(expected, choices);
            Some(expected.is_some() && extract_letter(&plain, choices) == expected)
        }
        AnswerFormat::Numeric => {
            let stated = extract_number(&plain, emphasized(reply));
            Some(
                expected_number(expected)
                    .zip(stated)
                    .is_some_and(|(expected, stated)| stated.equals(&expected)),
            )
        }
        AnswerFormat::Exact => {
            let expected = normalize_words(&plain_text(expected));
            Some(statements(&plain).iter().any(|text| normalize_words(text) == expected))
        }
        AnswerFormat::Judge => None,
    }
}

/// The readings of a short answer, the longest first: the whole marked answer or line, and the same without its
/// explanation.
fn statements(reply: &str) -> Vec<&str> {
    let lines = filled_lines(reply);
    let is_explanation = |line: &str| line.split_whitespace().count() > 4;
    let whole = match marked_answer(reply, |text| !text.is_empty() && text.split_whitespace().count() < 4) {
        Some(answer) => answer,
        // A short first line before an explanation, or the last line.
        None => match lines.as_slice() {
            [] => return Vec::new(),
            [first, rest @ ..]
                if !rest.is_empty()
                    && !is_explanation(first)
                    && rest.iter().all(|line| is_explanation(line)) =>
            {
                first
            }
            [.., last] => last,
        },
    };
    let corrected = whole.strip_prefix("not ").and_then(|rest| Some(rest.split_once("but ")?.1));
    let whole = corrected.unwrap_or(whole);
    let sentence = first_sentence(whole);
    let explained = [" (", " because ", " since ", ", because ", ", since ", " — ", " – ", " - "];
    let end = explained.iter().filter_map(|begin| sentence.find(begin)).min();
    let short = sentence[..end.unwrap_or(sentence.len())].trim_end_matches(['.', '!', '。']);
    // A copula at the end, and the reason after yes or no.
    let copulas = ["です", "でした", "である", "입니다"];
    let bare = copulas.iter().find_map(|copula| short.strip_suffix(copula)).unwrap_or(short);
    let verdict = bare.split_once(", ").map(|(verdict, _)| verdict.trim());
    let verdict = verdict.filter(|verdict| {
        ["yes", "no", "true", "false"].iter().any(|word| verdict.eq_ignore_ascii_case(word))
    });
    // "The formula is: H2SO4", in the last sentence.
    let conclusion = whole.trim_end_matches(['.', '!', '。']).rsplit(". ").next().unwrap_or(whole);
    let named = [" is: ", " is ", " are ", " gives ", " called "];
    let name = named.iter().filter_map(|verb| Some(conclusion.rfind(verb)? + verb.len())).max();
    let name = name.map_or(bare, |at| &conclusion[at..]);
    vec![whole, sentence, short, name, verdict.unwrap_or(bare)]
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
        assert!(number::approximately_equal(0.1 + 0.2, 0.3) && !number::approximately_equal(1.0, 1.001));
    }
}
