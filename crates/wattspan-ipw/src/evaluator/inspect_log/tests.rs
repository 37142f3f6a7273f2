//! Logs as inspect-ai writes them, with scores and figures that are missing, edited or no numbers.

use std::fs;

use serde_json::{Value, json};
use wattspan_client::domain::Grade;

use super::super::evaluation::EvaluatedSample;
use super::super::inspect_archive::tests::{raw_zip, zstd};
use super::*;

fn header() -> Value {
    json!({
        "version": 2, "status": "success",
        "eval": {
            "task": "capitals", "model": "openai-api/local/m", "model_base_url": "http://127.0.0.1:1/v1",
            "created": "2026-11-30T07:05:17+02:00", "packages": {"inspect_ai": "0.3.285"},
            "dataset": {"samples": 9, "sample_ids": ["france", 2, 3]},
            "config": {"epochs": 1, "max_samples": 5}, "model_generate_config": {"max_connections": 2, "max_tokens": 24},
        },
        "results": {"scores": [
            {"name": "includes", "scorer": "includes", "metrics": {"accuracy": {"value": 0.5}, "stderr": {"value": 0.1}}},
            {"name": "style", "scorer": "judge", "metrics": {"mean": {"value": 0.25}}},
        ]},
    })
}

fn figures() -> Value {
    let domain = |name: &str, kind: &str, share_uj: u64| {
        json!({"name": name, "kind": kind, "source": "replay", "counted": true, "grade": "measured", "share_uj": share_uj,
               "error_uj": 3, "window_uj": 2 * share_uj})
    };
    json!({
        "format": 1, "meter": "0.1.0", "span": "s", "energy_uj": 100, "error_uj": 7, "window_uj": 200, "duration_ns": 2000,
        "grade": "modelled", "simulated": true, "concurrency": 2, "at_once": 3, "tokens_in": 45, "tokens_out": 8,
        "domains": [domain("package-0", "package", 80), domain("dram-0", "dram", 20)],
        "calls": [
            {"span": "s-1", "opened_ns": 5000, "closed_ns": 6000, "share_uj": 60},
            {"span": "s-2", "opened_ns": 7000, "closed_ns": 8000, "share_uj": 40},
        ],
    })
}

fn sample(id: Value, score: Value, figures: Value) -> Value {
    json!({
        "id": id, "epoch": 1, "input": "What is the capital?", "target": ["Paris", "Lutetia"],
        "metadata": {"topic": "europe", "wattspan": figures},
        "output": {"choices": [{"message": {"content": [{"type": "text", "text": "Paris."}]}, "stop_reason": "stop"}]},
        "scores": {"includes": {"value": score, "answer": "Paris"}, "judge": {"value": {"style": 0.25, "length": 7}}},
        "events": [{"event": "model"}],
    })
}

fn read_json(log: &str, scorer: Option<&str>) -> Result<Evaluation, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.json");
    fs::write(&path, log).unwrap();
    read_inspect_log(&path, scorer).map_err(|error| error.to_string())
}

fn read_samples(samples: Value, scorer: Option<&str>) -> Vec<EvaluatedSample> {
    let mut log = header();
    log["samples"] = samples;
    read_json(&log.to_string(), scorer).unwrap().samples
}

#[test]
fn a_log_gives_the_evaluators_scores_and_the_meters_energies() {
    let mut log = header();
    log["samples"] =
        json!([sample(json!("france"), json!("C"), figures()), sample(json!(2), json!("I"), figures())]);
    let found = read_json(&log.to_string(), None).unwrap();
    assert_eq!((found.task.as_str(), found.model.as_str()), ("capitals", "openai-api/local/m"));
    assert_eq!(
        (found.version.as_str(), found.scorer.as_str(), found.own_score),
        ("0.3.285", "includes", Some(0.5))
    );
    assert_eq!((found.concurrency, found.max_tokens, found.planned), (Some(2), Some(24), Some(3)));
    assert_eq!(found.began_unix_ns, 1_796_015_117_000_000_000);
    assert_eq!(
        found.domains.iter().map(|domain| domain.name.as_str()).collect::<Vec<_>>(),
        ["package-0", "dram-0"]
    );
    let first = &found.samples[0];
    assert_eq!((first.id.as_str(), first.repeat, first.score.clone()), ("france", 0, Ok(1.0)));
    assert_eq!((first.answer.as_str(), first.reply.as_str()), ("Paris\nLutetia", "Paris."));
    assert_eq!((first.subject.as_deref(), first.began_ns, first.duration_ns), (Some("europe"), 5000, 3000));
    let energy = first.energy.clone().unwrap();
    assert_eq!((energy.share_uj, energy.error_uj, energy.window_uj), (Some(100), Some(7), Some(200)));
    assert_eq!((energy.span_ns, energy.at_once, energy.grade), (2000, 3, Some(Grade::Modelled)));
    assert_eq!((energy.span.as_str(), energy.domains[1].share_uj), ("s-2", Some(20)));
    assert_eq!((found.samples[1].id.as_str(), found.samples[1].score.clone()), ("2", Ok(0.0)));
}

#[test]
fn an_archive_is_read_as_its_json_log_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.eval");
    let start = json!({"version": 2, "eval": header()["eval"]}).to_string();
    // A killed evaluation: there is neither a header nor a sample.
    fs::write(&path, raw_zip("_journal/start.json", 93, &zstd(start.as_bytes()), start.as_bytes())).unwrap();
    let found = read_inspect_log(&path, None).unwrap();
    assert_eq!((found.task.as_str(), found.samples.len()), ("capitals", 0));
    assert_eq!(found.remarks, ["the evaluation is not complete (status \"started\")"]);
    let other = b"{}";
    fs::write(&path, raw_zip("other.json", 0, other, other)).unwrap();
    let error = read_inspect_log(&path, None).unwrap_err().to_string();
    assert!(error.contains("is no log of inspect-ai"), "{error}");
}

#[test]
fn a_scorer_is_chosen_by_name() {
    let samples = || json!([sample(json!(1), json!("C"), figures())]);
    assert_eq!(read_samples(samples(), Some("style"))[0].score, Ok(0.25));
    let mut log = header();
    log["samples"] = samples();
    let error = read_json(&log.to_string(), Some("match")).unwrap_err();
    assert!(error.contains("has no scorer match; there are: includes, style"), "{error}");
}

#[test]
fn a_sample_without_a_score_or_energy_says_why() {
    let mut failed = sample(json!(1), json!(null), json!({"format": 1, "reason": "no daemon at /x"}));
    failed["scores"] = json!(null);
    failed["error"] = json!({"message": "the sandbox\nis gone"});
    let mut edited = figures();
    edited["energy_uj"] = json!(50);
    let mut negative = figures();
    negative["energy_uj"] = json!(-5);
    let mut newer = figures();
    newer["format"] = json!(2);
    let mut unmeasured = sample(json!(5), json!(7), json!(null));
    unmeasured["metadata"] = json!({});
    let samples = json!([
        failed,
        sample(json!(2), json!("C"), edited),
        sample(json!(3), json!("C"), negative),
        sample(json!(4), json!("C"), newer),
        unmeasured,
    ]);
    let found = read_samples(samples, None);
    let score = found[0].score.clone().unwrap_err();
    assert_eq!(score, "the evaluator did not score it, since it failed: the sandbox");
    let reasons: Vec<String> = found.iter().map(|sample| sample.energy.clone().unwrap_err()).collect();
    assert_eq!(reasons[0], "no daemon at /x");
    assert!(reasons[1].contains("contradict each other"), "{}", reasons[1]);
    assert!(reasons[2].contains("not understood"), "{}", reasons[2]);
    assert!(reasons[3].contains("have format 2"), "{}", reasons[3]);
    assert!(reasons[4].contains("measure() was not called"), "{}", reasons[4]);
    assert!(found[4].score.clone().unwrap_err().contains("not between 0 and 1"));
}

#[test]
fn a_moved_edge_takes_the_guarantee() {
    let mut moved = figures();
    moved["moved_ns"] = json!(12);
    let found = read_samples(json!([sample(json!(1), json!("C"), moved)]), None);
    assert_eq!(found[0].energy.as_ref().unwrap().error_uj, None);
}

#[test]
fn scores_that_are_not_numbers_do_not_hide_the_others() {
    let mut log = header();
    log["samples"] =
        json!([sample(json!(1), json!("nan"), figures()), sample(json!(2), json!(0.5), figures())]);
    let text = log.to_string().replace("\"nan\"", "NaN");
    let found = read_json(&text, None).unwrap().samples;
    assert!(found[0].score.is_err());
    assert_eq!(found[1].score, Ok(0.5));
}

#[test]
fn other_files_are_errors() {
    for text in ["", "[]", "{}", "{\"eval\":{}}", "null", "{\"eval\":", "\u{0}"] {
        let error = read_json(text, None).unwrap_err();
        assert!(error.contains("log.json: "), "{error}");
    }
    let deep = "[".repeat(100_000);
    assert!(read_json(&format!("{{\"eval\":{{\"task\":\"a\"}},\"samples\":{deep}"), None).is_err());
    let dir = tempfile::tempdir().unwrap();
    assert!(read_inspect_log(dir.path(), None).unwrap_err().to_string().contains("is a directory"));
    assert!(read_inspect_log(&dir.path().join("none"), None).is_err());
}

#[test]
fn times_are_read_with_their_zone() {
    for (text, seconds) in [
        ("1970-01-01T00:00:00+00:00", Some(0)),
        ("2026-11-30T05:05:17.123456+00:00", Some(1_796_015_117)),
        ("2024-02-29T23:59:59Z", Some(1_709_251_199)),
        ("2026-11-30T00:05:17-05:00", Some(1_796_015_117)),
        ("yesterday", None),
        ("", None),
    ] {
        assert_eq!(unix_ns(text).map(|ns| ns / 1_000_000_000), seconds, "{text}");
    }
}
