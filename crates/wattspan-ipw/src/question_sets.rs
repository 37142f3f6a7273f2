//! Published question sets, read from their files as they are.
//!
//! Reads MMLU-Pro, GPQA, GSM8K, MATH and ARC with the columns of their data set cards, as JSON lines, JSON or CSV,
//! and writes the prompt that is sent: the question, its options with letters, and how to state the answer. Invariant:
//! the same file gives the same questions, ids and prompts, whatever the order of its fields.

use std::collections::HashSet;
use std::hash::Hasher;
use std::path::{Path, PathBuf};

use fnv::FnvHasher;
use serde_json::{Map, Value};

use super::answer_format::AnswerFormat;
use super::extract::parse_number;
use super::question::{ASK_FOR_LETTER, Question, QuestionsError, render_options};

/// A published question set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum QuestionSet {
    /// MMLU-Pro (`TIGER-Lab/MMLU-Pro`): `question`, `options`, `answer`, `category`, `question_id`.
    MmluPro,
    /// GPQA (`Idavidrein/gpqa`): `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`, `Record ID`.
    Gpqa,
    /// GSM8K (`openai/gsm8k`): `question`, and `answer` that ends with `#### NUMBER`.
    Gsm8k,
    /// MATH (`hendrycks/competition_math`, MATH-500): `problem`, `solution` with `\boxed{…}`, or `answer`.
    Math,
    /// ARC (`allenai/ai2_arc`): `question` with `stem` and `choices`, or `question` and `choices`; `answerKey`.
    Arc,
}

/// How a numeric answer is asked for.
const ASK_FOR_NUMBER: &str = "End with one line: Answer: <number>";

/// How an answer of MATH is asked for.
const ASK_FOR_BOX: &str = "Put the final answer in \\boxed{}.";

/// The advice in the error about a record that is not of the set.
const SET_ADVICE: &str = "check that the file is of the set that --as names";

impl QuestionSet {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::MmluPro => "mmlu-pro",
            Self::Gpqa => "gpqa",
            Self::Gsm8k => "gsm8k",
            Self::Math => "math",
            Self::Arc => "arc",
        }
    }

    /// Reads the questions of a file, or of all files of a directory (MATH is published as one file for each problem).
    ///
    /// # Errors
    /// A file cannot be read, or the first record that is not of the set.
    pub fn read(self, path: &Path) -> Result<Vec<Question>, QuestionsError> {
        let mut files = Vec::new();
        list_files(path, &mut files)?;
        files.sort();
        let (mut questions, mut ids) = (Vec::new(), HashSet::new());
        for file in &files {
            let name = file.display().to_string();
            let bytes = std::fs::read(file).map_err(read_error(file))?;
            let stem = file.strip_prefix(path).ok().filter(|rest| !rest.as_os_str().is_empty());
            for (index, record) in records(&name, &bytes)?.into_iter().enumerate() {
                let invalid = |reason: String| QuestionsError::InvalidRecord {
                    file: name.clone(),
                    record: index + 1,
                    reason: format!("{reason}; {SET_ADVICE}"),
                };
                let mut question = self.question(&Record(record)).map_err(invalid)?;
                if question.id.is_empty() {
                    let stem = stem.map(|rest| format!("{}-", rest.with_extension("").display()));
                    question.id = format!("{}-{}{index:05}", self.name(), stem.unwrap_or_default());
                }
                if !ids.insert(question.id.clone()) {
                    return Err(invalid(format!("the id {:?} was used before", question.id)));
                }
                questions.push(question);
            }
        }
        if questions.is_empty() {
            return Err(QuestionsError::Empty { file: path.display().to_string() });
        }
        Ok(questions)
    }

    /// Converts a record; the id is empty if the record has none.
    fn question(self, record: &Record) -> Result<Question, String> {
        let question = match self {
            Self::MmluPro => mmlu_pro(record),
            Self::Gpqa => gpqa(record),
            Self::Gsm8k => gsm8k(record),
            Self::Math => math(record),
            Self::Arc => arc(record),
        }?;
        let id =
            if question.id.is_empty() { String::new() } else { format!("{}-{}", self.name(), question.id) };
        Ok(Question { id, ..question })
    }
}

fn list_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), QuestionsError> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(read_error(path))? {
        let entry = entry.map_err(read_error(path))?.path();
        let ending = entry.extension().and_then(|ending| ending.to_str());
        if entry.is_dir() || matches!(ending, Some("json" | "jsonl" | "csv")) {
            list_files(&entry, files)?;
        }
    }
    Ok(())
}

fn read_error(path: &Path) -> impl Fn(std::io::Error) -> QuestionsError {
    move |cause| QuestionsError::Read { file: path.display().to_string(), cause }
}

/// Splits a file into records: JSON values one after the other, one array of them, or CSV with a header.
fn records(file: &str, bytes: &[u8]) -> Result<Vec<Map<String, Value>>, QuestionsError> {
    let invalid = |record: usize, reason: String| {
        Err(QuestionsError::InvalidRecord { file: file.to_owned(), record: record + 1, reason })
    };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"PAR1") {
        return invalid(0, "this is Parquet; save the set as JSON lines (Dataset.to_json)".into());
    }
    let mut records = Vec::new();
    if !matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) {
        let mut reader = csv::Reader::from_reader(bytes);
        let names = match reader.headers() {
            Ok(names) => names.clone(),
            Err(cause) => return invalid(0, cause.to_string()),
        };
        for (index, row) in reader.records().enumerate() {
            match row {
                // Every value stays text: 0.50 is not 0.5 where it is an option.
                Ok(row) => records.push(
                    names.iter().zip(&row).map(|(name, value)| (name.to_owned(), value.into())).collect(),
                ),
                Err(cause) => return invalid(index, cause.to_string()),
            }
        }
        return Ok(records);
    }
    for value in serde_json::Deserializer::from_slice(bytes).into_iter::<Value>() {
        let values = match value {
            Ok(Value::Array(values)) => values,
            Ok(value) => vec![value],
            Err(cause) => return invalid(records.len(), cause.to_string()),
        };
        for value in values {
            match value {
                Value::Object(record) => records.push(record),
                _ => return invalid(records.len(), "is no JSON object".into()),
            }
        }
    }
    Ok(records)
}

/// A record of a file.
struct Record(Map<String, Value>);

impl Record {
    /// Returns a text or number, trimmed; `None` if it is missing or empty.
    fn optional(&self, name: &str) -> Option<String> {
        let text = match self.0.get(name)? {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        (!text.is_empty()).then_some(text)
    }

    fn text(&self, name: &str) -> Result<String, String> {
        self.optional(name).ok_or_else(|| format!("has no {name:?}"))
    }

    fn question(&self, id: &str, subject: &[&str]) -> Question {
        let subject = subject.iter().find_map(|name| self.optional(name)).unwrap_or_else(|| "general".into());
        Question {
            id: self.optional(id).unwrap_or_default(),
            subject,
            format: AnswerFormat::Letter,
            prompt: String::new(),
            answer: String::new(),
            choices: Vec::new(),
        }
    }
}

/// Completes a question with options; `right` is the index of the right one.
fn with_options(
    mut question: Question,
    text: &str,
    choices: Vec<String>,
    right: usize,
) -> Result<Question, String> {
    if !(2..=26).contains(&choices.len()) {
        return Err(format!("has {} options", choices.len()));
    }
    if right >= choices.len() {
        return Err(format!("its right answer is option {} of {}", right + 1, choices.len()));
    }
    question.answer = char::from(b'A' + right as u8).to_string();
    question.prompt = format!("{}\n\n{ASK_FOR_LETTER}", render_options(text, &choices));
    question.choices = choices;
    Ok(question)
}

fn texts(value: Option<&Value>) -> Option<Vec<String>> {
    let of = |value: &Value| match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    value?.as_array()?.iter().map(of).collect()
}

fn letter_index(letter: &str) -> Option<usize> {
    match letter.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => Some(usize::from(letter.to_ascii_uppercase() - b'A')),
        _ => None,
    }
}

fn mmlu_pro(record: &Record) -> Result<Question, String> {
    let choices = texts(record.0.get("options")).ok_or("has no list \"options\"")?;
    let letter = record.text("answer")?;
    let right = letter_index(&letter).ok_or_else(|| format!("its \"answer\" {letter:?} is no letter"))?;
    let stated = record.0.get("answer_index").and_then(Value::as_u64);
    if stated.is_some_and(|index| index != right as u64) {
        return Err("its \"answer\" and \"answer_index\" differ".into());
    }
    with_options(record.question("question_id", &["category"]), &record.text("question")?, choices, right)
}

/// The options of GPQA are published with the right one first. Here they are in the order of the FNV-1a hash over the
/// record's id, 0xFF and the option's text, so that each question has one order, whatever file it is in.
fn gpqa(record: &Record) -> Result<Question, String> {
    let text = record.text("Question")?;
    let right = record.text("Correct Answer")?;
    let wrong = (1..=3).map(|number| record.text(&format!("Incorrect Answer {number}")));
    let mut choices = wrong.collect::<Result<Vec<_>, _>>()?;
    choices.push(right.clone());
    let question = record.question("Record ID", &["Subdomain", "High-level domain"]);
    let key = if question.id.is_empty() { text.clone() } else { question.id.clone() };
    choices.sort_by_cached_key(|choice| {
        let mut hasher = FnvHasher::default();
        hasher.write(key.as_bytes());
        hasher.write(&[0xFF]);
        hasher.write(choice.as_bytes());
        (hasher.finish(), choice.clone())
    });
    let at = choices.iter().position(|choice| *choice == right).unwrap_or_default();
    with_options(question, &text, choices, at)
}

fn gsm8k(record: &Record) -> Result<Question, String> {
    let answer = record.text("answer")?;
    let (_, number) = answer.rsplit_once("####").ok_or("its \"answer\" has no \"####\"")?;
    let number = number.trim().replace(',', "");
    parse_number(&number)
        .filter(|(_, rest)| rest.is_empty())
        .ok_or_else(|| format!("its \"answer\" ends with {number:?}, which is no number"))?;
    let question = record.question("id", &[]);
    let prompt = format!("{}\n\n{ASK_FOR_NUMBER}", record.text("question")?);
    Ok(Question {
        format: AnswerFormat::Numeric,
        prompt,
        answer: number,
        subject: "mathematics".into(),
        ..question
    })
}

/// An answer that is a number is compared as one; a formula is left to a scorer (`wattspan ipw score --with`).
fn math(record: &Record) -> Result<Question, String> {
    let answer = match record.optional("answer") {
        Some(answer) => answer,
        None => last_box(&record.text("solution")?).ok_or("its \"solution\" has no \\boxed{…}")?.to_owned(),
    };
    let answer = plain_fraction(&answer).unwrap_or(answer);
    let is_number = parse_number(&answer).is_some_and(|(_, rest)| rest.is_empty());
    let format = if is_number { AnswerFormat::Numeric } else { AnswerFormat::Judge };
    let question = record.question("unique_id", &["subject", "type"]);
    let prompt = format!("{}\n\n{ASK_FOR_BOX}", record.text("problem")?);
    Ok(Question { format, prompt, answer, ..question })
}

/// Writes a fraction of two whole numbers, `-\frac{3}{4}`, as `-3/4`.
fn plain_fraction(answer: &str) -> Option<String> {
    let (sign, rest) = answer.strip_prefix('-').map_or(("", answer), |rest| ("-", rest));
    let rest = ["\\frac{", "\\dfrac{", "\\tfrac{"].iter().find_map(|command| rest.strip_prefix(command))?;
    let (numerator, denominator) = rest.strip_suffix('}')?.split_once("}{")?;
    let is_whole = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_whole(numerator) && is_whole(denominator)).then(|| format!("{sign}{numerator}/{denominator}"))
}

/// The content of the last `\boxed{…}` or `\fbox{…}`, or the word after `\boxed `.
fn last_box(solution: &str) -> Option<&str> {
    let (at, length) = ["\\boxed", "\\fbox"]
        .into_iter()
        .filter_map(|command| Some((solution.rfind(command)?, command.len())))
        .max()?;
    let rest = &solution[at + length..];
    let Some(inner) = rest.trim_start().strip_prefix('{') else {
        return rest.trim_start().split(['$', ' ', '\n']).next().filter(|word| !word.is_empty());
    };
    let mut depth = 1;
    let mut escaped = false;
    for (index, character) in inner.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(inner[..index].trim());
        }
    }
    None
}

fn arc(record: &Record) -> Result<Question, String> {
    let nested = record.0.get("question").and_then(Value::as_object);
    let text = match nested {
        Some(question) => question.get("stem").and_then(Value::as_str).map(str::to_owned),
        None => record.optional("question"),
    };
    let text = text.ok_or("has no \"question\"")?;
    let choices = nested.map_or(record.0.get("choices"), |question| question.get("choices"));
    let pairs: Option<Vec<(String, String)>> = match choices {
        Some(Value::Array(choices)) => {
            let of = |choice: &Value, name: &str| Some(choice.get(name)?.as_str()?.trim().to_owned());
            choices.iter().map(|choice| Some((of(choice, "label")?, of(choice, "text")?))).collect()
        }
        Some(Value::Object(columns)) => texts(columns.get("label"))
            .zip(texts(columns.get("text")))
            .filter(|(labels, texts)| labels.len() == texts.len())
            .map(|(labels, texts)| labels.into_iter().zip(texts).collect()),
        _ => None,
    };
    let (labels, choices): (Vec<_>, Vec<_>) =
        pairs.ok_or("has no \"choices\" with labels")?.into_iter().unzip();
    // Labels are letters or, in some exams, the numbers from 1; they are sent as letters.
    let key = record.text("answerKey")?;
    let right = labels.iter().position(|label| *label == key);
    let right = right.ok_or_else(|| format!("its \"answerKey\" {key:?} is no label of its options"))?;
    with_options(record.question("id", &[]), &text, choices, right)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made-up questions with the columns that the data set cards name (huggingface.co: TIGER-Lab/MMLU-Pro,
    /// Idavidrein/gpqa, openai/gsm8k, HuggingFaceH4/MATH-500, allenai/ai2_arc; github.com/hendrycks/math).
    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/ipw/question_sets").join(name)
    }

    fn read(set: QuestionSet, name: &str) -> Vec<Question> {
        set.read(&fixture(name)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn write(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn the_options_of_every_set_are_in_the_prompt_and_the_right_one_is_the_answer() {
        for (set, file, right) in [
            (QuestionSet::MmluPro, "mmlu_pro.jsonl", ["A heat pump", "The seventh, counted from zero"]),
            (QuestionSet::Gpqa, "gpqa.csv", ["0.50 eV", "It stays, \"as it was\"\nbefore"]),
            (QuestionSet::Arc, "arc.jsonl", ["a magnet", "ice"]),
            (QuestionSet::Arc, "arc_columns.jsonl", ["a magnet", "ice"]),
        ] {
            let questions = read(set, file);
            assert_eq!(questions.len(), 2, "{file}");
            for (question, right) in questions.iter().zip(right) {
                let index = letter_index(&question.answer).unwrap();
                assert_eq!(question.choices[index], right, "{file}");
                for (index, choice) in question.choices.iter().enumerate() {
                    let option = format!("\n({}) {choice}", char::from(b'A' + index as u8));
                    assert!(question.prompt.contains(&option), "{file}: {option}");
                }
                assert!(question.prompt.ends_with(ASK_FOR_LETTER));
                assert_eq!(question.score_reply(&format!("Answer: {}", question.answer)), Some(true));
            }
        }
        let [first, _] = &read(QuestionSet::MmluPro, "mmlu_pro.jsonl")[..] else { panic!() };
        assert_eq!((first.id.as_str(), first.subject.as_str()), ("mmlu-pro-70", "engineering"));
        assert_eq!(read(QuestionSet::MmluPro, "mmlu_pro.jsonl")[1].answer, "H");
        assert_eq!(read(QuestionSet::Arc, "arc.jsonl"), read(QuestionSet::Arc, "arc_columns.jsonl"));
    }

    #[test]
    fn the_order_of_options_depends_on_the_question_alone() {
        let questions = read(QuestionSet::Gpqa, "gpqa.csv");
        let text = std::fs::read_to_string(fixture("gpqa.csv")).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let names = reader.headers().unwrap().clone();
        let mut rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        rows.reverse();
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&names).unwrap();
        rows.iter().for_each(|row| writer.write_record(row).unwrap());
        let reversed = write(&String::from_utf8(writer.into_inner().unwrap()).unwrap());
        let mut reversed = QuestionSet::Gpqa.read(reversed.path()).unwrap();
        reversed.reverse();
        assert_eq!(reversed, questions);
        let order: Vec<_> = questions.iter().map(|question| question.answer.as_str()).collect();
        assert_eq!(order, ["A", "C"], "the order is stable: runs of other days compare");
    }

    #[test]
    fn numbers_and_formulas_are_taken_from_solutions() {
        let questions = read(QuestionSet::Gsm8k, "gsm8k.jsonl");
        let answers: Vec<_> = questions.iter().map(|question| question.answer.as_str()).collect();
        assert_eq!((answers, questions[0].id.as_str()), (vec!["72", "1200"], "gsm8k-00000"));
        assert_eq!(questions[1].score_reply("Answer: $1,200"), Some(true));
        for questions in [read(QuestionSet::Math, "math500.jsonl"), read(QuestionSet::Math, "math")] {
            let found: Vec<_> = questions.iter().map(|it| (it.answer.as_str(), it.format)).collect();
            let expected = [
                ("3/4", AnswerFormat::Numeric),
                ("\\left( 3, \\frac{\\pi}{2} \\right)", AnswerFormat::Judge),
            ];
            assert_eq!(found, expected);
            assert!(questions.iter().all(|it| it.prompt.ends_with(ASK_FOR_BOX)));
            assert_eq!(questions[0].score_reply("So \\boxed{\\frac{3}{4}}."), Some(true));
        }
        let ids: Vec<_> = read(QuestionSet::Math, "math").into_iter().map(|it| it.id).collect();
        assert_eq!(ids, ["math-algebra/1-00000", "math-precalculus/2-00000"]);
        for (solution, answer) in [
            ("is $\\boxed{x^{2}+\\{1\\}}$", Some("x^{2}+\\{1\\}")),
            ("\\boxed{1} or \\fbox{2}", Some("2")),
            ("$\\boxed 5$.", Some("5")),
            ("\\boxed{cut", None),
            ("none", None),
        ] {
            assert_eq!(last_box(solution), answer, "{solution}");
        }
    }

    #[test]
    fn a_file_of_another_form_is_refused_with_its_record() {
        for (set, text, part) in [
            (
                QuestionSet::Gsm8k,
                r#"{"question":"x","answer":"72"}"#,
                "record 1: its \"answer\" has no \"####\"",
            ),
            (QuestionSet::Arc, r#"[{"question":"x"}]"#, "record 1: has no \"choices\""),
            (QuestionSet::MmluPro, r#"{"question":"x","options":["a"],"answer":"A"}"#, "has 1 options"),
            (
                QuestionSet::MmluPro,
                r#"{"question":"x","options":["a","b"],"answer":"A","answer_index":1}"#,
                "\"answer_index\" differ",
            ),
            (QuestionSet::MmluPro, r#"{"question":"x","options":["a","b"],"answer":"C"}"#, "option 3 of 2"),
            (QuestionSet::Gpqa, "Question,Answer\nx,y\n", "record 1: has no \"Correct Answer\""),
            (QuestionSet::Math, "{\"problem\":\"x\",\"solution\":\"5\"}", "has no \\boxed"),
            (QuestionSet::Math, "PAR1\u{0}", "this is Parquet"),
            (QuestionSet::Math, "{\"problem\":", "record 1: EOF"),
            (QuestionSet::Math, "", "holds no question"),
        ] {
            let file = write(text);
            let reason = set.read(file.path()).unwrap_err().to_string();
            assert!(reason.contains(part), "{reason}");
        }
        assert!(QuestionSet::Arc.read(Path::new("/nonexistent")).is_err());
    }
}
