//! The questions a model is asked.
//!
//! Owns the reading of question files: JSON lines with our own names or the public harness's (`problem` for `prompt`,
//! `expected_answer` for `answer`). Invariant: no two questions of a set have the same `id`, each has a prompt, and
//! each an answer that its format's rule can compare. Never asks anybody anything.

use std::collections::HashSet;
use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

use super::extract::{last_letter, words};
use super::fnv::{self, fnv1a};
use super::number::number;

/// How an answer is told right from wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One of the lettered options.
    Letter,
    /// A number, compared by value.
    Numeric,
    /// A text, compared word by word.
    Exact,
    /// Another model says whether it is right.
    Judge,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its name within the set.
    pub id: String,
    /// What it is about; figures are told by subject too.
    pub subject: String,
    /// How its answer is scored.
    pub format: Format,
    /// What the model is asked, whole.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// The options of a lettered question, if they are known apart from the prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
}

/// A question file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error("{file}: {cause}")]
    Unreadable {
        /// Which.
        file: String,
        /// Why.
        cause: io::Error,
    },
    /// A line is no question.
    #[error("{file}, line {line}: {reason}")]
    Line {
        /// Which file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what would mend it.
        reason: String,
    },
    /// There is nothing in it.
    #[error(
        "{file}: holds no question; each line is one JSON object with at least \"prompt\" and \"answer\""
    )]
    Empty {
        /// Which.
        file: String,
    },
}

/// A line as people write it. Fields of others are passed over.
#[derive(Deserialize)]
struct Line {
    id: Option<String>,
    #[serde(alias = "problem", alias = "question")]
    prompt: Option<String>,
    #[serde(alias = "expected_answer")]
    answer: Option<serde_json::Value>,
    subject: Option<String>,
    format: Option<Format>,
    #[serde(default)]
    choices: Vec<String>,
}

/// The longest line that is read; a question is not a book.
const LINE_BYTES: usize = 4 << 20;

/// The set that is built in, written for this project.
const STARTER: &str = include_str!("starter.jsonl");

/// The built-in set.
pub fn starter() -> Vec<Question> {
    parse("the built-in questions", STARTER.as_bytes()).expect("a test reads the built-in questions")
}

/// Reads a set of questions from JSON lines; `file` names it in messages.
///
/// # Errors
/// The first line that is no question, by number, and what it lacks.
pub fn parse(file: &str, mut text: impl BufRead) -> Result<Vec<Question>, Unusable> {
    let mut questions = Vec::new();
    let mut ids = HashSet::new();
    let mut bytes = Vec::new();
    let unreadable = |cause| Unusable::Unreadable { file: file.to_owned(), cause };
    for line in 1.. {
        bytes.clear();
        let got = io::Read::take(&mut text, LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes);
        if got.map_err(unreadable)? == 0 {
            break;
        }
        let wrong = |reason: String| Unusable::Line { file: file.to_owned(), line, reason };
        if bytes.len() > LINE_BYTES {
            return Err(wrong(format!("is longer than {LINE_BYTES} bytes")));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed: Line = serde_json::from_slice(&bytes).map_err(|cause| wrong(cause.to_string()))?;
        let question = question(parsed, questions.len()).map_err(wrong)?;
        if !ids.insert(question.id.clone()) {
            return Err(wrong(format!("the id {:?} was used before", question.id)));
        }
        questions.push(question);
    }
    if questions.is_empty() {
        return Err(Unusable::Empty { file: file.to_owned() });
    }
    Ok(questions)
}

fn question(line: Line, place: usize) -> Result<Question, String> {
    let prompt = line.prompt.filter(|prompt| !prompt.trim().is_empty());
    let prompt = prompt.ok_or("has no \"prompt\" (or \"problem\")")?;
    // A whole number may be the place of an option as well as one of the options' words.
    let may_be_index = |number: &serde_json::Number| {
        number.as_u64().is_some_and(|place| !line.choices.is_empty() && place <= line.choices.len() as u64)
    };
    let index = matches!(&line.answer, Some(serde_json::Value::Number(number)) if may_be_index(number));
    let answer = match line.answer {
        Some(serde_json::Value::String(text)) => text,
        Some(serde_json::Value::Number(number)) => number.to_string(),
        Some(_) => return Err("\"answer\" is neither text nor a number".into()),
        None => return Err("has no \"answer\" (or \"expected_answer\")".into()),
    };
    if answer.trim().is_empty() {
        return Err("\"answer\" is empty".into());
    }
    let format = line.format.unwrap_or_else(|| guess(&answer, &line.choices));
    if index && format == Format::Letter {
        return Err(NO_OPTION.into());
    }
    let answer = readable(format, answer, &line.choices)?;
    let id = line.id.unwrap_or_else(|| format!("q{place:05}"));
    let subject = line.subject.unwrap_or_else(|| "general".into());
    Ok(Question { id, subject, format, prompt, answer, choices: line.choices })
}

const NO_OPTION: &str = "\"answer\" is neither a letter nor one of \"choices\"; of an index it is not known whether it \
                         counts from 0";

/// An answer that the rule of its format can compare with a reply's, changed only where it could not be as it was written.
///
/// # Errors
/// No reply could ever be right.
pub(super) fn readable(format: Format, answer: String, choices: &[String]) -> Result<String, String> {
    match format {
        Format::Letter if lettered(&answer, choices).is_some() => Ok(answer),
        Format::Letter if choices.is_empty() => Err(format!(
            "\"answer\" is no letter from A to {}; give the options as \"choices\", or another \"format\"",
            char::from(last_letter(choices))
        )),
        Format::Letter => option(&answer, choices).map(String::from).ok_or_else(|| NO_OPTION.into()),
        Format::Numeric if number(answer.trim()).is_some() => Ok(answer),
        Format::Numeric => without_currency(&answer).ok_or_else(|| {
            "\"answer\" is no number: write it like 1200, 1,200.5, 3/4 or 1e6, or give another \"format\""
                .into()
        }),
        Format::Exact | Format::Judge => Ok(answer),
    }
}

/// The letter that an answer is written as: "B", "(b)", "B.", or "B) London" where that is what option B says.
pub(super) fn lettered(answer: &str, choices: &[String]) -> Option<char> {
    let bare = answer.trim().trim_start_matches('(');
    let letter = bare.chars().next()?.to_ascii_uppercase();
    let option = (b'A'..=last_letter(choices)).position(|one| char::from(one) == letter)?;
    let rest = &bare[1..];
    let said = rest.trim_matches([')', '.', ':', ' ']);
    let its_own = rest.starts_with([')', '.', ':', ' '])
        && match choices.get(option) {
            Some(choice) => !words(said).is_empty() && words(said) == words(choice),
            None => !rest.starts_with(' '),
        };
    (said.is_empty() || its_own).then_some(letter)
}

/// The letter of the one option that an answer's words are.
fn option(answer: &str, choices: &[String]) -> Option<char> {
    let only = |says: &dyn Fn(&String) -> bool| {
        let mut found = (b'A'..=b'Z').zip(choices).filter(|(_, choice)| says(choice));
        let (letter, _) = found.next()?;
        found.next().is_none().then_some(char::from(letter))
    };
    let said = words(answer);
    only(&|choice| choice.trim() == answer.trim())
        .or_else(|| only(&|choice| !said.is_empty() && words(choice) == said))
}

/// A sum of money as a number.
fn without_currency(answer: &str) -> Option<String> {
    const SIGNS: [char; 6] = ['$', '\u{20ac}', '\u{a3}', '\u{a5}', '\u{20b9}', ' '];
    let (minus, sum) = answer.trim().strip_prefix('-').map_or(("", answer.trim()), |sum| ("-", sum));
    let bare = format!("{minus}{}", sum.trim_start_matches(SIGNS));
    number(&bare).is_some().then_some(bare)
}

/// The format of a question whose writer did not say: what its answer looks like. A text is left to a judge, since a right
/// answer may be worded in many ways.
pub fn guess(answer: &str, choices: &[String]) -> Format {
    let answer = answer.trim();
    let last = last_letter(choices);
    let letter = answer.len() == 1 && answer.bytes().all(|byte| (b'A'..=last).contains(&byte));
    if letter || !choices.is_empty() {
        Format::Letter
    } else if number(answer).is_some_and(|(_, rest)| rest.is_empty()) {
        Format::Numeric
    } else {
        Format::Judge
    }
}

/// What tells one set of questions from another, whatever file they came from: a 64-bit FNV-1a over ids, prompts and
/// answers, in hexadecimal.
pub fn fingerprint(questions: &[Question]) -> String {
    let texts = questions.iter().flat_map(|one| [&one.id, &one.prompt, &one.answer]);
    let hash = texts.fold(fnv::BEGIN, |hash, text| fnv1a(hash, text.bytes().chain([0xFF])));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Result<Question, String> {
        parse("q.jsonl", line.as_bytes()).map(|mut all| all.remove(0)).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn the_built_in_set_has_fifty_questions_of_three_formats_and_several_subjects() {
        let questions = starter();
        assert_eq!(questions.len(), 50);
        let of = |format| questions.iter().filter(|question| question.format == format).count();
        assert!(of(Format::Letter) >= 15 && of(Format::Numeric) >= 15 && of(Format::Exact) >= 5);
        assert_eq!(of(Format::Judge), 0);
        let subjects: HashSet<_> = questions.iter().map(|question| &question.subject).collect();
        assert!(subjects.len() >= 4);
    }

    #[test]
    fn the_right_answer_to_a_built_in_question_scores_and_another_does_not() {
        for question in starter() {
            let right = format!("Answer: {}", question.answer);
            assert_eq!(super::super::extract::score(&question, &right), Some(true), "{}", question.id);
            let wrong = super::super::extract::score(&question, "Answer: nothing of the kind");
            assert_ne!(wrong, Some(true), "{}", question.id);
        }
    }

    #[test]
    fn the_letters_of_the_built_in_set_favour_no_place() {
        let mut count = std::collections::BTreeMap::new();
        for question in starter().iter().filter(|question| question.format == Format::Letter) {
            *count.entry(question.answer.clone()).or_insert(0) += 1;
            let place = usize::from(question.answer.as_bytes()[0] - b'A');
            assert!(place < question.choices.len());
            for (place, choice) in question.choices.iter().enumerate() {
                let option = format!("({}) {choice}", char::from(b'A' + u8::try_from(place).unwrap()));
                assert!(question.prompt.contains(&option), "{}: {option}", question.id);
            }
        }
        assert!(count.len() == 4 && count.values().all(|count| (4..=6).contains(count)), "{count:?}");
    }

    #[test]
    fn the_harnesss_names_are_understood_and_a_format_is_guessed() {
        let question =
            one(r#"{"problem":"2+2?","expected_answer":4,"subject":"sums","model_answers":{}}"#).unwrap();
        assert_eq!((question.id.as_str(), question.answer.as_str()), ("q00000", "4"));
        assert_eq!(question.format, Format::Numeric);
        assert_eq!(one(r#"{"prompt":"Which?","answer":"B"}"#).unwrap().format, Format::Letter);
        assert_eq!(one(r#"{"prompt":"Why?","answer":"Because of tides"}"#).unwrap().format, Format::Judge);
    }

    #[test]
    fn what_is_wrong_with_a_line_is_told_by_its_number() {
        assert_eq!(
            one("\n{\"answer\":\"4\"}").unwrap_err(),
            "q.jsonl, line 2: has no \"prompt\" (or \"problem\")"
        );
        assert!(one("{\"prompt\":\"x\"}").unwrap_err().contains("has no \"answer\""));
        assert!(one("{\"prompt\":").unwrap_err().starts_with("q.jsonl, line 1: "));
        let twice = "{\"id\":\"a\",\"prompt\":\"x\",\"answer\":\"1\"}\n".repeat(2);
        assert!(one(&twice).unwrap_err().contains("was used before"));
        assert!(one("  \n").unwrap_err().contains("holds no question"));
    }

    const CITIES: &str = r#""choices":["Paris","London","Berlin","New York"]"#;

    fn with_answer(answer: &str, more: &str) -> Result<Question, String> {
        one(&format!("{{\"prompt\":\"x\",\"answer\":{answer},{more}}}"))
    }

    #[test]
    fn the_right_option_is_its_letter_or_its_words() {
        for (answer, kept) in [
            ("\"Berlin\"", "C"),
            ("\"the new york\"", "D"),
            ("\"C\"", "C"),
            ("\"(C)\"", "(C)"),
            ("\"c.\"", "c."),
            ("\"(C) Berlin\"", "(C) Berlin"),
        ] {
            let question = with_answer(answer, CITIES).unwrap();
            assert_eq!((question.answer.as_str(), question.format), (kept, Format::Letter), "{answer}");
            let right = kept.to_uppercase().replace(['(', ')', '.'], "");
            let score = |reply: &str| super::super::extract::score(&question, reply);
            assert_eq!(score(&format!("Answer: {}", &right[..1])), Some(true), "{answer}");
            assert_eq!(score("Answer: B"), Some(false), "{answer}");
        }
        let numbers = r#""choices":["-5","5","C++","C"]"#;
        for (answer, kept) in [("\"-5\"", "A"), ("5", "B"), ("\"C++\"", "C"), ("\"C\"", "C")] {
            assert_eq!(with_answer(answer, numbers).unwrap().answer, kept, "{answer}");
        }
        assert_eq!(with_answer("\"B) London\"", "\"format\":\"letter\"").unwrap().answer, "B) London");
    }

    #[test]
    fn an_answer_that_no_reply_could_match_is_refused_with_its_line() {
        let index = "q.jsonl, line 1: \"answer\" is neither a letter nor one of \"choices\"; of an index it is not known \
                     whether it counts from 0";
        for answer in ["2", "\"2\"", "\"Rome\"", "\"E\"", "\"B) Paris\"", "\"Paris or London\""] {
            assert_eq!(with_answer(answer, CITIES).unwrap_err(), index, "{answer}");
        }
        let doubtful = r#""choices":["1","2","3"]"#;
        assert_eq!(with_answer("2", doubtful).unwrap_err(), index, "an index and a choice");
        assert_eq!(with_answer("\"2\"", doubtful).unwrap().answer, "B");
        let twice = with_answer("\"no\"", r#""choices":["No.","no!","yes"]"#);
        assert!(twice.unwrap_err().contains("neither a letter"));
        for wrong in ["\"Berlin\"", "\"K\""] {
            let alone = with_answer(wrong, "\"format\":\"letter\"").unwrap_err();
            assert!(alone.starts_with("q.jsonl, line 1: \"answer\" is no letter from A to J"), "{alone}");
        }
        let number = with_answer("\"about five\"", "\"format\":\"numeric\"").unwrap_err();
        assert!(number.starts_with("q.jsonl, line 1: \"answer\" is no number"), "{number}");
    }

    #[test]
    fn a_sum_of_money_is_a_number() {
        let asked = |answer: &str| with_answer(&format!("\"{answer}\""), "\"format\":\"numeric\"").unwrap();
        for (answer, kept, reply) in [
            ("$1,200", "1,200", "It costs $1,200."),
            ("-$5", "-5", "-5"),
            ("\u{20ac} 3.5", "3.5", "3.50 \u{20ac}"),
            ("1200 apples", "1200 apples", "1200"),
        ] {
            let question = asked(answer);
            assert_eq!(question.answer, kept);
            assert_eq!(super::super::extract::score(&question, reply), Some(true), "{answer}");
        }
    }

    #[test]
    fn what_is_kept_is_read_again_as_it_is() {
        for (answer, more) in [
            ("\"Berlin\"", CITIES),
            ("\"$1,200\"", "\"format\":\"numeric\""),
            ("\"potassium: K\"", "\"subject\":\"x\""),
            ("\"K\"", "\"subject\":\"x\""),
        ] {
            let question = with_answer(answer, more).unwrap();
            assert_eq!(one(&serde_json::to_string(&question).unwrap()).unwrap(), question);
        }
        assert_eq!(with_answer("\"K\"", "\"subject\":\"x\"").unwrap().format, Format::Judge);
    }

    #[test]
    fn fingerprints_of_sets_that_were_right_stay() {
        assert_eq!(fingerprint(&starter()), "001ae1ff701f094c");
        let lettered = with_answer("\"(B)\"", CITIES).unwrap();
        assert_eq!(fingerprint(&[lettered]), "ee2a4c272cf8cfd2");
    }

    #[test]
    fn two_sets_that_differ_in_a_word_have_different_fingerprints() {
        let mut questions = starter();
        let before = fingerprint(&questions);
        assert_eq!(before, fingerprint(&starter()));
        questions[7].prompt.push('!');
        assert_ne!(before, fingerprint(&questions));
    }
}
