//! A file of questions.

use std::collections::HashSet;

use wattspan_ipw::question::{self, Question};

/// Accepted questions read back from the file of a run, with unique IDs, and their prompts state their options.
pub fn check(bytes: &[u8]) {
    let Ok(mut questions) = question::parse("questions.jsonl", bytes) else { return };
    check_questions(&questions);
    for question in &questions {
        assert!(
            question.score_reply(&format!("Answer: {}", question.answer)).is_some()
                || question.extract_answer("x").is_none()
        );
        // What a run extracts from a reply is decided by the same rule as its score.
        let _ = question.extract_answer(&question.prompt);
    }
    question::complete_prompts(&mut questions);
    for question in questions.iter().filter(|question| !question.choices.is_empty()) {
        let is_stated = |choice: &String| question.prompt.contains(choice.trim());
        assert!(question.choices.iter().take(26).all(is_stated), "{question:?}");
    }
}

/// Panics unless the questions can be written to a run's file and read again.
pub fn check_questions(questions: &[Question]) {
    let mut ids = HashSet::new();
    assert!(questions.iter().all(|question| ids.insert(&question.id)), "an ID is used twice");
    let line = |question: &Question| serde_json::to_string(question).expect("plain data") + "\n";
    let written: String = questions.iter().map(line).collect();
    let again =
        question::parse("written", written.as_bytes()).unwrap_or_else(|error| panic!("{error}: {written}"));
    assert_eq!(again, questions);
    assert_eq!(question::fingerprint(&again), question::fingerprint(questions));
}
