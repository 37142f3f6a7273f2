//! Scoring by rule, on answers that were labelled by hand.
//!
//! `tests/fixtures/ipw/labelled_answers.jsonl` has one reply a line, with what a careful reader says it states: `states`,
//! `null` for no single answer, and `right`. It was written without looking at the rules.

use std::collections::BTreeMap;

use serde::Deserialize;
use wattspan_ipw::answer_format::AnswerFormat;
use wattspan_ipw::extract::{extract_answer, score_reply};

#[derive(Deserialize)]
struct LabelledAnswer {
    id: String,
    format: AnswerFormat,
    #[serde(default)]
    choices: Vec<String>,
    expected: String,
    reply: String,
    states: Option<String>,
    right: bool,
}

/// The largest share of answers of a format that may be scored otherwise than a reader would.
const MAX_WRONG: [(&str, f64); 3] = [("letter", 0.03), ("numeric", 0.05), ("exact", 0.10)];

fn labelled_answers() -> Vec<LabelledAnswer> {
    let lines = include_str!("../fixtures/ipw/labelled_answers.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn labelled_answers_are_scored_as_a_reader_would() {
    let answers = labelled_answers();
    assert!(answers.len() >= 400, "only {} answers", answers.len());
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut wrongly_right = Vec::new();
    for answer in &answers {
        let scored = score_reply(answer.format, &answer.choices, &answer.expected, &answer.reply).unwrap();
        let name = serde_json::to_value(answer.format).unwrap().as_str().unwrap().to_owned();
        let count = counts.entry(name).or_default();
        count.0 += 1;
        if scored != answer.right {
            count.1 += 1;
            let extracted = extract_answer(answer.format, &answer.choices, &answer.reply);
            println!(
                "{}: states {:?}, extracted {extracted:?}, expected {:?}: {:?}",
                answer.id, answer.states, answer.expected, answer.reply
            );
            if scored {
                wrongly_right.push(answer.id.as_str());
            }
        }
    }
    println!("answers and wrong scores: {counts:?}");
    assert!(wrongly_right.is_empty(), "wrong answers scored as right: {wrongly_right:?}");
    for (format, most) in MAX_WRONG {
        let (all, wrong) = counts[format];
        assert!(
            all >= 60 && wrong as f64 <= most * all as f64,
            "{format}: {wrong} of {all} are scored wrongly"
        );
    }
}
