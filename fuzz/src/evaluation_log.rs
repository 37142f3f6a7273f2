//! The logs of inspect-ai and the results of lm-evaluation-harness, and their import as a run.

use wattspan_ipw::evaluator::import::import_evaluation;
use wattspan_ipw::evaluator::inspect_log::read_inspect_log;
use wattspan_ipw::evaluator::lm_eval_results::read_lm_eval_results;
use wattspan_ipw::run_dir;

use super::{first_byte, first_line, question_file, scratch_dir};

/// The run of an import has readable questions and a row for each sample.
pub fn check(bytes: &[u8]) {
    let (selector, content) = first_byte(bytes);
    let dir = scratch_dir();
    let write = |name: &str, content: &[u8]| {
        std::fs::write(dir.path().join(name), content).expect("it can be written")
    };
    let evaluation = match selector % 3 {
        0 => {
            let (results, samples) = first_line(content);
            write("results_2026-11-30T08-00-00.000000.json", results);
            write("samples_task_2026-11-30T08-00-00.000000.jsonl", samples);
            read_lm_eval_results(dir.path(), None).map(|run| run.evaluation)
        }
        kind => {
            let name = if kind == 1 { "log.json" } else { "log.eval" };
            write(name, content);
            read_inspect_log(&dir.path().join(name), None)
        }
    };
    let Ok(evaluation) = evaluation else { return };
    let samples = evaluation.samples.len();
    let out = dir.path().join("run");
    if import_evaluation(dir.path(), evaluation, None, &out).is_err() {
        return;
    }
    let questions = run_dir::read_questions(&out).unwrap_or_else(|error| panic!("{error}"));
    question_file::check_questions(&questions);
    let mut rows = 0;
    run_dir::for_each_row(&out.join("rows.jsonl"), |row| {
        rows += 1;
        assert!(row.score.is_none_or(|score| score.is_finite()), "{row:?}");
    })
    .expect("the rows can be read");
    assert_eq!(rows, samples);
}
