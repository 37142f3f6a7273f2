//! Question sets.
//!
//! Reads question files: JSON lines with this project's field names or the public harness's (`problem` for `prompt`,
//! `expected_answer` for `answer`). Invariant: ids are unique within a set, each question has a prompt, and each
//! answer can be compared by the rule of its format.

use std::collections::HashSet;
use std::hash::Hasher;
use std::io::{self, BufRead};

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};

use super::answer_format::{AnswerFormat, last_option_letter, normalize_words, parse_option_letter};
use super::extract::{self, parse_number};

/// A question with its correct answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Id, unique within the set.
    pub id: String,
    /// Subject; figures are also reported by subject.
    pub subject: String,
    /// How the answer is scored.
    pub format: AnswerFormat,
    pub prompt: String,
    pub answer: String,
    /// The options of a multiple-choice question, if given apart from the prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
}

impl Question {
    /// Returns the answer that a reply gives, as text, or `None` if it gives none.
    pub fn extract_answer(&self, reply: &str) -> Option<String> {
        extract::extract_answer(self.format, &self.choices, reply)
    }

    /// Returns whether a reply is correct, or `None` if a judge has to decide.
    pub fn score_reply(&self, reply: &str) -> Option<bool> {
        extract::score_reply(self.format, &self.choices, &self.answer, reply)
    }
}

/// How the answer to a question with options is asked for.
pub const ASK_FOR_LETTER: &str = "End with one line: Answer: <letter of the right option>";

/// Appends options with their letters to a text.
pub fn render_options(text: &str, choices: &[String]) -> String {
    let mut prompt = format!("{}\n", text.trim_end());
    for (letter, choice) in ('A'..='Z').zip(choices) {
        prompt.push_str(&format!("\n({letter}) {choice}"));
    }
    prompt
}

/// Whether a prompt states every option with its letter: `(A) text`, `A. text` or `A: text`.
fn states_options(prompt: &str, choices: &[String]) -> bool {
    ('A'..='Z').zip(choices).all(|(letter, choice)| {
        prompt.match_indices(choice.trim()).any(|(at, _)| {
            let before = prompt[..at].trim_end();
            [')', '.', ':'].iter().any(|mark| before.ends_with(&format!("{letter}{mark}")))
        })
    })
}

/// Appends the options of questions whose prompts do not state them, so that the model sees what it chooses from.
pub fn complete_prompts(questions: &mut [Question]) {
    for question in questions.iter_mut().filter(|question| !question.choices.is_empty()) {
        let is_letter = question.format == AnswerFormat::Letter;
        if is_letter && !states_options(&question.prompt, &question.choices) {
            let prompt = render_options(&question.prompt, &question.choices);
            question.prompt = format!("{prompt}\n\n{ASK_FOR_LETTER}");
        } else if !is_letter && !question.choices.iter().all(|choice| question.prompt.contains(choice.trim()))
        {
            let options: Vec<String> = question.choices.iter().map(|choice| format!("- {choice}")).collect();
            question.prompt = format!("{}\n\nOptions:\n{}", question.prompt.trim_end(), options.join("\n"));
        }
    }
}

/// Returns the hash of the prompts as they are sent, in order: 64-bit FNV-1a, in hexadecimal.
pub fn prompt_hash(system_prompt: Option<&str>, questions: &[Question]) -> String {
    let prompts = questions.iter().map(|question| question.prompt.as_str());
    hash_texts(std::iter::once(system_prompt.unwrap_or_default()).chain(prompts))
}

/// Returns the 64-bit FNV-1a hash of texts that are each ended by 0xFF, in hexadecimal.
fn hash_texts<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut hasher = FnvHasher::default();
    for text in texts {
        hasher.write(text.as_bytes());
        hasher.write(&[0xFF]);
    }
    format!("{:016x}", hasher.finish())
}

/// A question file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QuestionsError {
    /// The file cannot be read.
    #[error("{file}: {cause}")]
    Read {
        /// The name of the file.
        file: String,
        cause: io::Error,
    },
    /// A line is not a question.
    #[error("{file}, line {line}: {reason}")]
    InvalidLine {
        /// The name of the file.
        file: String,
        /// The line number, from 1.
        line: usize,
        /// What is wrong, and how to correct it.
        reason: String,
    },
    /// A record of a published set is not a question.
    #[error("{file}, record {record}: {reason}")]
    InvalidRecord {
        /// The name of the file.
        file: String,
        /// The number of the record, from 1.
        record: usize,
        /// What is wrong, and how to correct it.
        reason: String,
    },
    /// The file has no questions.
    #[error(
        "{file}: holds no question; each line is one JSON object with at least \"prompt\" and \"answer\""
    )]
    Empty {
        /// The name of the file.
        file: String,
    },
}

/// A line of a question file. Unknown fields are ignored.
#[derive(Deserialize)]
struct QuestionLine {
    id: Option<String>,
    #[serde(alias = "problem", alias = "question")]
    prompt: Option<String>,
    #[serde(alias = "expected_answer")]
    answer: Option<serde_json::Value>,
    subject: Option<String>,
    format: Option<AnswerFormat>,
    #[serde(default)]
    choices: Option<Vec<String>>,
}

/// The longest accepted line.
const MAX_LINE_BYTES: usize = 4 << 20;

/// The built-in set, written for this project.
const BUILT_IN_JSON_LINES: &str = include_str!("built_in_questions.jsonl");

/// Returns the built-in set.
pub fn built_in() -> Vec<Question> {
    parse("the built-in questions", BUILT_IN_JSON_LINES.as_bytes())
        .expect("a test reads the built-in questions")
}

/// Parses a set of questions from JSON lines; `file` is the name for error messages.
///
/// # Errors
/// The first invalid line, with its number and the reason.
pub fn parse(file: &str, mut text: impl BufRead) -> Result<Vec<Question>, QuestionsError> {
    let mut questions = Vec::new();
    let mut ids = HashSet::new();
    let mut bytes = Vec::new();
    let read_error = |cause| QuestionsError::Read { file: file.to_owned(), cause };
    for line in 1.. {
        bytes.clear();
        let read = io::Read::take(&mut text, MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes);
        if read.map_err(read_error)? == 0 {
            break;
        }
        let invalid_line =
            |reason: String| QuestionsError::InvalidLine { file: file.to_owned(), line, reason };
        if bytes.len() > MAX_LINE_BYTES {
            return Err(invalid_line(format!("is longer than {MAX_LINE_BYTES} bytes")));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed: QuestionLine =
            serde_json::from_slice(&bytes).map_err(|cause| invalid_line(cause.to_string()))?;
        let question = question_from_line(parsed, questions.len()).map_err(invalid_line)?;
        if !ids.insert(question.id.clone()) {
            return Err(invalid_line(format!("the id {:?} was used before", question.id)));
        }
        questions.push(question);
    }
    if questions.is_empty() {
        return Err(QuestionsError::Empty { file: file.to_owned() });
    }
    Ok(questions)
}

fn question_from_line(line: QuestionLine, index: usize) -> Result<Question, String> {
    let prompt = line.prompt.filter(|prompt| !prompt.trim().is_empty());
    let prompt = prompt.ok_or("has no \"prompt\" (or \"problem\")")?;
    let choices = line.choices.unwrap_or_default();
    // An integer may be the index of an option or the text of one.
    let may_be_index = |number: &serde_json::Number| {
        number.as_u64().is_some_and(|index| !choices.is_empty() && index <= choices.len() as u64)
    };
    let is_index = matches!(&line.answer, Some(serde_json::Value::Number(number)) if may_be_index(number));
    let answer = match line.answer {
        Some(serde_json::Value::String(text)) => text,
        Some(serde_json::Value::Number(number)) => number.to_string(),
        Some(_) => return Err("\"answer\" is neither text nor a number".into()),
        None => return Err("has no \"answer\" (or \"expected_answer\")".into()),
    };
    if answer.trim().is_empty() {
        return Err("\"answer\" is empty".into());
    }
    let format = line.format.unwrap_or_else(|| infer_format(&answer, &choices));
    if is_index && format == AnswerFormat::Letter {
        return Err(NOT_AN_OPTION.into());
    }
    let answer = normalize_answer(format, answer, &choices)?;
    let id = line.id.unwrap_or_else(|| format!("q{index:05}"));
    let subject = line.subject.unwrap_or_else(|| "general".into());
    Ok(Question { id, subject, format, prompt, answer, choices })
}

const NOT_AN_OPTION: &str = "\"answer\" is neither a letter nor one of \"choices\"; of an index it is not known whether it \
                         counts from 0";

/// Normalizes a correct answer so that the rule of its format can compare it; a comparable answer is unchanged.
///
/// # Errors
/// No reply could match the answer.
pub(super) fn normalize_answer(
    format: AnswerFormat,
    answer: String,
    choices: &[String],
) -> Result<String, String> {
    match format {
        AnswerFormat::Letter if parse_option_letter(&answer, choices).is_some() => Ok(answer),
        AnswerFormat::Letter if choices.is_empty() => Err(format!(
            "\"answer\" is no letter from A to {}; give the options as \"choices\", or another \"format\"",
            char::from(last_option_letter(choices))
        )),
        AnswerFormat::Letter => {
            find_option_letter(&answer, choices).map(String::from).ok_or_else(|| NOT_AN_OPTION.into())
        }
        AnswerFormat::Numeric if parse_number(answer.trim()).is_some() => Ok(answer),
        AnswerFormat::Numeric => strip_currency(&answer).ok_or_else(|| {
            "\"answer\" is no number: write it like 1200, 1,200.5, 3/4 or 1e6, or give another \"format\""
                .into()
        }),
        AnswerFormat::Exact | AnswerFormat::Judge => Ok(answer),
    }
}

/// Returns the letter of the only option with the text of the answer.
fn find_option_letter(answer: &str, choices: &[String]) -> Option<char> {
    let unique = |matches: &dyn Fn(&String) -> bool| {
        let mut matching = (b'A'..=b'Z').zip(choices).filter(|(_, choice)| matches(choice));
        let (letter, _) = matching.next()?;
        matching.next().is_none().then_some(char::from(letter))
    };
    let answer_words = normalize_words(answer);
    unique(&|choice| choice.trim() == answer.trim())
        .or_else(|| unique(&|choice| !answer_words.is_empty() && normalize_words(choice) == answer_words))
}

/// Removes currency signs from an amount of money.
fn strip_currency(answer: &str) -> Option<String> {
    const CURRENCY_SIGNS: [char; 6] = ['$', '\u{20ac}', '\u{a3}', '\u{a5}', '\u{20b9}', ' '];
    let (minus, sum) = answer.trim().strip_prefix('-').map_or(("", answer.trim()), |sum| ("-", sum));
    let bare = format!("{minus}{}", sum.trim_start_matches(CURRENCY_SIGNS));
    parse_number(&bare).is_some().then_some(bare)
}

/// Infers the format of a question from its answer. Text is left to a judge, since a correct answer has many wordings.
pub fn infer_format(answer: &str, choices: &[String]) -> AnswerFormat {
    let answer = answer.trim();
    let last = last_option_letter(choices);
    let is_letter = answer.len() == 1 && answer.bytes().all(|byte| (b'A'..=last).contains(&byte));
    if is_letter || !choices.is_empty() {
        AnswerFormat::Letter
    } else if parse_number(answer).is_some_and(|(_, rest)| rest.is_empty()) {
        AnswerFormat::Numeric
    } else {
        AnswerFormat::Judge
    }
}

/// Returns the fingerprint of a set of questions, independent of the file: a 64-bit FNV-1a hash over ids, prompts and
/// answers, in hexadecimal. Collisions that an attacker constructs do not matter: both sets are the user's own.
pub fn fingerprint(questions: &[Question]) -> String {
    hash_texts(questions.iter().flat_map(|one| [one.id.as_str(), &one.prompt, &one.answer]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_one(line: &str) -> Result<Question, String> {
        parse("q.jsonl", line.as_bytes()).map(|mut all| all.remove(0)).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn the_built_in_set_has_fifty_questions_of_three_formats_and_several_subjects() {
        let questions = built_in();
        assert_eq!(questions.len(), 50);
        let of = |format| questions.iter().filter(|question| question.format == format).count();
        assert!(
            of(AnswerFormat::Letter) >= 15 && of(AnswerFormat::Numeric) >= 15 && of(AnswerFormat::Exact) >= 5
        );
        assert_eq!(of(AnswerFormat::Judge), 0);
        let subjects: HashSet<_> = questions.iter().map(|question| &question.subject).collect();
        assert!(subjects.len() >= 4);
    }

    #[test]
    fn built_in_answers_score_as_correct() {
        for question in built_in() {
            let right = format!("Answer: {}", question.answer);
            assert_eq!(question.score_reply(&right), Some(true), "{}", question.id);
            let wrong = question.score_reply("Answer: nothing of the kind");
            assert_ne!(wrong, Some(true), "{}", question.id);
        }
    }

    #[test]
    fn built_in_answers_are_spread_evenly_over_the_options() {
        let mut count = std::collections::BTreeMap::new();
        for question in built_in().iter().filter(|question| question.format == AnswerFormat::Letter) {
            *count.entry(question.answer.clone()).or_insert(0) += 1;
            let index = usize::from(question.answer.as_bytes()[0] - b'A');
            assert!(index < question.choices.len());
            for (index, choice) in question.choices.iter().enumerate() {
                let option = format!("({}) {choice}", char::from(b'A' + u8::try_from(index).unwrap()));
                assert!(question.prompt.contains(&option), "{}: {option}", question.id);
            }
        }
        assert!(count.len() == 4 && count.values().all(|count| (4..=6).contains(count)), "{count:?}");
    }

    #[test]
    fn harness_field_names_are_accepted_and_the_format_is_inferred() {
        let question =
            parse_one(r#"{"problem":"2+2?","expected_answer":4,"subject":"sums","model_answers":{}}"#)
                .unwrap();
        assert_eq!((question.id.as_str(), question.answer.as_str()), ("q00000", "4"));
        assert_eq!(question.format, AnswerFormat::Numeric);
        assert_eq!(parse_one(r#"{"prompt":"Which?","answer":"B"}"#).unwrap().format, AnswerFormat::Letter);
        assert_eq!(
            parse_one(r#"{"prompt":"Why?","answer":"Because of tides"}"#).unwrap().format,
            AnswerFormat::Judge
        );
    }

    #[test]
    fn errors_name_the_line_number() {
        assert_eq!(
            parse_one("\n{\"answer\":\"4\"}").unwrap_err(),
            "q.jsonl, line 2: has no \"prompt\" (or \"problem\")"
        );
        assert!(parse_one("{\"prompt\":\"x\"}").unwrap_err().contains("has no \"answer\""));
        assert!(parse_one("{\"prompt\":").unwrap_err().starts_with("q.jsonl, line 1: "));
        let twice = "{\"id\":\"a\",\"prompt\":\"x\",\"answer\":\"1\"}\n".repeat(2);
        assert!(parse_one(&twice).unwrap_err().contains("was used before"));
        assert!(parse_one("  \n").unwrap_err().contains("holds no question"));
    }

    const CITIES: &str = r#""choices":["Paris","London","Berlin","New York"]"#;

    fn with_answer(answer: &str, more: &str) -> Result<Question, String> {
        parse_one(&format!("{{\"prompt\":\"x\",\"answer\":{answer},{more}}}"))
    }

    #[test]
    fn a_choice_answer_is_a_letter_or_the_option_text() {
        for (answer, kept) in [
            ("\"Berlin\"", "C"),
            ("\"the new york\"", "D"),
            ("\"C\"", "C"),
            ("\"(C)\"", "(C)"),
            ("\"c.\"", "c."),
            ("\"(C) Berlin\"", "(C) Berlin"),
        ] {
            let question = with_answer(answer, CITIES).unwrap();
            assert_eq!((question.answer.as_str(), question.format), (kept, AnswerFormat::Letter), "{answer}");
            let right = kept.to_uppercase().replace(['(', ')', '.'], "");
            let score = |reply: &str| question.score_reply(reply);
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
    fn unmatchable_answers_are_rejected_with_the_line_number() {
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
    fn currency_amounts_are_numeric() {
        let asked = |answer: &str| with_answer(&format!("\"{answer}\""), "\"format\":\"numeric\"").unwrap();
        for (answer, kept, reply) in [
            ("$1,200", "1,200", "It costs $1,200."),
            ("-$5", "-5", "-5"),
            ("\u{20ac} 3.5", "3.5", "3.50 \u{20ac}"),
            ("1200 apples", "1200 apples", "1200"),
        ] {
            let question = asked(answer);
            assert_eq!(question.answer, kept);
            assert_eq!(question.score_reply(reply), Some(true), "{answer}");
        }
    }

    #[test]
    fn serialized_questions_parse_to_the_same_value() {
        for (answer, more) in [
            ("\"Berlin\"", CITIES),
            ("\"$1,200\"", "\"format\":\"numeric\""),
            ("\"potassium: K\"", "\"subject\":\"x\""),
            ("\"K\"", "\"subject\":\"x\""),
        ] {
            let question = with_answer(answer, more).unwrap();
            assert_eq!(parse_one(&serde_json::to_string(&question).unwrap()).unwrap(), question);
        }
        assert_eq!(with_answer("\"K\"", "\"subject\":\"x\"").unwrap().format, AnswerFormat::Judge);
    }

    #[test]
    fn a_prompt_that_lacks_its_options_gets_them() {
        let line = |prompt: &str, more: &str| {
            let mut questions = vec![parse_one(&format!("{{\"prompt\":{prompt:?},{more}}}")).unwrap()];
            complete_prompts(&mut questions);
            questions.remove(0).prompt
        };
        let letter = format!("\"answer\":\"C\",{CITIES}");
        let rendered = line("Which?", &letter);
        let expected = "Which?\n\n(A) Paris\n(B) London\n(C) Berlin\n(D) New York\n\n";
        assert_eq!(rendered, format!("{expected}{ASK_FOR_LETTER}"));
        assert_eq!(line(&rendered, &letter), rendered, "once");
        for stated in [
            "Which?\nA. Paris\nB. London\nC. Berlin\nD. New York",
            "Which? A) Paris B) London C) Berlin D) New York",
        ] {
            assert_eq!(line(stated, &letter), stated);
        }
        for unlettered in
            ["Paris, London, Berlin or New York?", "(A) Paris (B) London (D) Berlin (C) New York"]
        {
            assert!(line(unlettered, &letter).contains("(C) Berlin\n(D) New York"), "{unlettered}");
        }
        let text = format!("\"answer\":\"Berlin\",\"format\":\"exact\",{CITIES}");
        assert!(line("Which?", &text).ends_with("Options:\n- Paris\n- London\n- Berlin\n- New York"));
        assert_eq!(line("Why?", "\"answer\":\"4\",\"choices\":null"), "Why?", "null is no list");
        let built_in_prompts = built_in();
        let mut completed = built_in();
        complete_prompts(&mut completed);
        assert_eq!(completed, built_in_prompts);
    }

    #[test]
    fn fingerprints_are_stable() {
        // Test vectors of draft-eastlake-fnv, appendix C.
        for (text, hash) in
            [("", 0xcbf2_9ce4_8422_2325_u64), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            let mut hasher = FnvHasher::default();
            hasher.write(text.as_bytes());
            assert_eq!(hasher.finish(), hash, "{text}");
        }
        assert_eq!(fingerprint(&built_in()), "001ae1ff701f094c");
        let lettered = with_answer("\"(B)\"", CITIES).unwrap();
        assert_eq!(fingerprint(&[lettered]), "ee2a4c272cf8cfd2");
    }

    #[test]
    fn fingerprints_differ_when_a_prompt_differs() {
        let mut questions = built_in();
        let before = fingerprint(&questions);
        assert_eq!(before, fingerprint(&built_in()));
        questions[7].prompt.push('!');
        assert_ne!(before, fingerprint(&questions));
    }
}
