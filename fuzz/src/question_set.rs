//! The files of published question sets.

use wattspan_ipw::question_sets::QuestionSet;

use super::{first_byte, question_file, scratch_dir};

const SETS: [QuestionSet; 5] =
    [QuestionSet::MmluPro, QuestionSet::Gpqa, QuestionSet::Gsm8k, QuestionSet::Math, QuestionSet::Arc];

/// Accepted questions can be asked in a run, and reading them again gives the same ones.
pub fn check(bytes: &[u8]) {
    let (selector, content) = first_byte(bytes);
    let dir = scratch_dir();
    let path = dir.path().join("set.json");
    std::fs::write(&path, content).expect("the file can be written");
    let set = SETS[usize::from(selector) % SETS.len()];
    let Ok(questions) = set.read(&path) else { return };
    question_file::check_questions(&questions);
    assert_eq!(set.read(&path).ok(), Some(questions));
}
