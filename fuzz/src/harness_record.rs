//! The records of the public harness, and their import as a run.

use wattspan_ipw::harness::{import, results_reader};
use wattspan_ipw::run_dir;

use super::{first_byte, question_file, scratch_dir};

/// The run of an import has readable questions and as many rows as its findings state.
pub fn check(bytes: &[u8]) {
    let (selector, content) = first_byte(bytes);
    let dir = scratch_dir();
    let name = if selector % 2 == 0 { "data.jsonl" } else { "data.json" };
    std::fs::write(dir.path().join(name), content).expect("the file can be written");
    if let Some(end) = content.iter().position(|byte| *byte == b'\n').filter(|_| selector & 4 != 0) {
        std::fs::write(dir.path().join("summary.json"), &content[..end]).expect("the file can be written");
    }
    let Ok(results) = results_reader::read_results(dir.path()) else { return };
    let records = results.records.len();
    let out = dir.path().join("run");
    let Ok(findings) = import::import(dir.path(), results, None, None, &out) else { return };
    assert!(findings.sentences().iter().all(|sentence| !sentence.is_empty()));
    let questions = run_dir::read_questions(&out).unwrap_or_else(|error| panic!("{error}"));
    question_file::check_questions(&questions);
    let mut rows = 0;
    run_dir::for_each_row(&out.join("rows.jsonl"), |_| rows += 1).expect("the rows can be read");
    assert!(rows <= records, "{rows} rows of {records} records");
}
