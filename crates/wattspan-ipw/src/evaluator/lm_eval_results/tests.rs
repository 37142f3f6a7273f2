//! Directories as lm-evaluation-harness writes them, whole and damaged.

use serde_json::json;

use super::*;

const DATE: &str = "2026-11-30T05-06-13.878978";

fn results(directory: &Path, date: &str) {
    let results = json!({
        "results": {"capitals": {"alias": "capitals", "exact_match,city": 0.5, "exact_match_stderr,city": "N/A"}},
        "configs": {"capitals": {"generation_kwargs": {"max_gen_toks": 24, "do_sample": false}}},
        "config": {"model": "local-chat-completions",
                   "model_args": {"model": "m", "base_url": "http://127.0.0.1:1/v1/chat/completions", "num_concurrent": 2}},
        "n-samples": {"capitals": {"original": 9, "effective": 2}},
        "date": 1_796_015_169.5, "total_evaluation_time_seconds": "12.25", "lm_eval_version": "0.4.13",
    });
    fs::write(directory.join(format!("results_{date}.json")), results.to_string()).unwrap();
}

fn line(id: usize, filter: &str, score: f64) -> String {
    // In the order of the harness, which serde_json would change.
    let messages = format!(r#"[{{"role": "user", "content": "Capital {id}? ä"}}]"#);
    json!({
        "doc_id": id, "doc": {"input": "x", "topic": "europe"}, "target": "Paris",
        "arguments": {"gen_args_0": {"arg_0": [messages], "arg_1": {"until": ["\n"]}}},
        "resps": [["It is Paris."]], "filtered_resps": ["Paris"], "filter": filter, "metrics": ["exact_match", "acc"],
        "exact_match": score, "acc": 1.0,
    })
    .to_string()
}

fn samples(directory: &Path, date: &str, lines: &[String]) {
    fs::write(directory.join(format!("samples_capitals_{date}.jsonl")), lines.join("\n") + "\n").unwrap();
}

fn read(path: &Path, scorer: Option<&str>) -> Result<LmEvalRun, String> {
    read_lm_eval_results(path, scorer).map_err(|error| error.to_string())
}

#[test]
fn results_give_the_scores_and_the_hashes_of_the_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m");
    fs::create_dir(&model).unwrap();
    results(&model, "2026-11-29T05-06-13.878978");
    results(&model, DATE);
    samples(&model, DATE, &[line(0, "city", 1.0), line(0, "strict", 0.0), line(1, "city", 0.0)]);
    let LmEvalRun { evaluation, window_unix_ns } = read(dir.path(), None).unwrap();
    assert_eq!((evaluation.model.as_str(), evaluation.scorer.as_str()), ("m", "exact_match,city"));
    assert_eq!(
        (evaluation.own_score, evaluation.planned, evaluation.concurrency),
        (Some(0.5), Some(2), Some(2))
    );
    assert_eq!((evaluation.max_tokens, evaluation.temperature), (Some(24), Some(0.0)));
    assert_eq!(evaluation.remarks, ["the newest of 2 evaluations in the directory was read"]);
    let (began_unix_ns, ended_unix_ns) = window_unix_ns;
    assert_eq!((began_unix_ns / 1000, ended_unix_ns / 1000), (1_796_015_167_500_000, 1_796_015_183_750_000));
    let scores: Vec<_> = evaluation.samples.iter().map(|sample| sample.score.clone()).collect();
    assert_eq!(scores, [Ok(1.0), Ok(0.0)], "only those of the filter");
    let sent =
        r#"{"messages": [{"role": "user", "content": "Capital 0? \u00e4"}], "model": "m", "stop": ["\n"]}"#;
    assert_eq!(evaluation.samples[0].prompt_hash, prompt_hash(sent.as_bytes()), "as Python sends it");
    assert_eq!(evaluation.samples[0].prompt, "Capital 0? ä");
    assert_eq!(evaluation.samples[0].reply, "It is Paris.");
    assert_eq!(evaluation.samples[0].subject.as_deref(), Some("europe"));
    let strict = read(dir.path(), Some("exact_match,strict")).unwrap().evaluation;
    assert_eq!((strict.samples.len(), strict.own_score), (1, None));
    assert_eq!(read(dir.path(), Some("acc")).unwrap().evaluation.samples[1].score, Ok(1.0));
    let error = read(dir.path(), Some("bleu")).unwrap_err();
    assert!(error.contains("has no metric bleu; there are: exact_match, acc"), "{error}");
}

#[test]
fn a_prompt_of_a_completion_is_hashed_too() {
    let text = request_of(&json!("Q: x\nA:"));
    assert_eq!(text.hash, prompt_hash(br#"{"model":"m","prompt":["Q: x\nA:"]}"#));
    assert_eq!(text.text, "Q: x\nA:");
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read(dir.path(), None).unwrap_err().contains("has no results_*.json"));
    results(dir.path(), DATE);
    assert!(read(dir.path(), None).unwrap_err().contains("evaluate with --log_samples"));
    samples(dir.path(), DATE, &[line(0, "city", 1.0), "{\"doc_id\": 1, \"doc".to_owned()]);
    assert!(read(dir.path(), None).unwrap_err().contains(".jsonl: line 2: "));
    samples(dir.path(), DATE, &[]);
    assert!(read(dir.path(), None).unwrap_err().contains("have no sample"));
    fs::write(dir.path().join(format!("results_{DATE}.json")), "[1, 2").unwrap();
    assert!(read(dir.path(), None).unwrap_err().contains("results_"));
    for name in ["a", "b"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        results(&dir.path().join(name), "2027-01-01T00-00-00.0");
    }
    assert!(read(dir.path(), None).unwrap_err().contains("results of several models"));
}
