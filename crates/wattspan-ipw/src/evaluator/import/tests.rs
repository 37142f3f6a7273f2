//! The run that is written from samples with and without scores and energies.

use super::super::super::row::QueryEnergy;
use super::super::super::table::RunTable;
use super::*;

fn sample(id: &str, repeat: u32, score: Result<f64, String>, share_uj: Option<u64>) -> EvaluatedSample {
    let energy = |share_uj| QueryEnergy { share_uj: Some(share_uj), span_ns: 500, ..QueryEnergy::default() };
    EvaluatedSample {
        id: id.to_owned(),
        repeat,
        subject: None,
        prompt: format!("{id}?"),
        answer: String::new(),
        reply: "x".into(),
        score,
        is_cut_off: false,
        began_ns: 1000 * u64::from(repeat),
        duration_ns: 1500,
        tokens_in: None,
        tokens_out: Some(3),
        energy: share_uj.map(energy).ok_or_else(|| "no daemon".to_owned()),
        prompt_hash: None,
    }
}

fn import(samples: Vec<EvaluatedSample>) -> (tempfile::TempDir, Result<EvaluationFindings, RunDirError>) {
    let dir = tempfile::tempdir().unwrap();
    let evaluation = Evaluation {
        evaluator: "inspect-ai",
        version: "0.3.285".into(),
        task: "capitals".into(),
        model: "m".into(),
        scorer: "includes".into(),
        own_score: Some(0.75),
        samples,
        planned: Some(6),
        ..Evaluation::default()
    };
    let findings = import_evaluation(Path::new("log.eval"), evaluation, None, &dir.path().join("run"));
    (dir, findings)
}

#[test]
fn the_run_has_the_evaluators_scores_and_the_sums() {
    let (dir, findings) = import(vec![
        sample("a", 0, Ok(1.0), Some(7)),
        sample("a", 1, Ok(0.5), Some(8)),
        sample("b", 0, Err("failed".into()), None),
    ]);
    let findings = findings.unwrap();
    assert_eq!((findings.score, findings.energy_uj, findings.concurrency), (Some(0.75), 15, Some(3)));
    assert_eq!(
        (findings.without_score[0].id.as_str(), findings.without_energy[0].reason.as_str()),
        ("b", "no daemon")
    );
    let table = RunTable::read(&dir.path().join("run")).unwrap();
    assert_eq!((table.columns.len(), table.asked(), table.manifest.repeats), (3, 6, 2));
    assert_eq!(table.unmetered["no daemon"], 1);
    assert_eq!(table.manifest.settings["at once"], "3");
    assert_eq!(table.manifest.settings["the evaluator's own score"], "0.75");
    assert!(table.failures.is_empty(), "a sample that the evaluator did not score is no wrong answer");
}

#[test]
fn another_result_of_the_evaluator_is_reported() {
    let (_dir, findings) = import(vec![sample("a", 0, Ok(1.0), Some(7))]);
    let sentences = findings.unwrap().sentences();
    assert!(sentences[1].contains("its own result is 0.750000000"), "{sentences:?}");
}

#[test]
fn no_samples_and_the_same_one_twice_are_errors() {
    assert!(
        import(Vec::new()).1.unwrap_err().to_string().contains("log.eval: the evaluation has no samples")
    );
    let twice = vec![sample("a", 0, Ok(1.0), None), sample("a", 0, Ok(0.0), None)];
    assert!(import(twice).1.unwrap_err().to_string().contains("is there twice"));
}

#[test]
fn an_epoch_that_no_evaluation_has_is_an_error() {
    let of_epoch = |epoch: u32| import(vec![sample("a", epoch - 1, Ok(1.0), None)]);
    assert!(of_epoch(10_000).1.is_ok());
    for epoch in [10_001, u32::MAX] {
        let error = of_epoch(epoch).1.unwrap_err().to_string();
        assert!(error.contains(&format!("is of epoch {epoch}; 10000 are the most")), "{error}");
    }
}

#[test]
fn long_texts_are_cut_so_that_the_run_stays_readable() {
    let mut long = sample("a", 0, Ok(1.0), Some(1));
    long.prompt = "ä".repeat(3 << 20);
    let (dir, findings) = import(vec![long]);
    findings.unwrap();
    let questions = super::super::super::run_dir::read_questions(&dir.path().join("run")).unwrap();
    assert_eq!(questions[0].prompt.len(), MAX_TEXT_BYTES);
}
