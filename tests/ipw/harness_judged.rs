//! Import of judged results in the harness's schema of November 2026: the run has the harness's own figures.
//!
//! `tests/fixtures/ipw/harness_judged` has ten records of each kind in that schema, and `expected.json` what the
//! harness's accuracy analysis computes from them: `judge` and `mcq` (NVIDIA), `failed` (two evaluations failed), `cpu`
//! (no accelerator), `apple` (basis soc).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wattspan_ipw::harness::findings::ImportFindings;
use wattspan_ipw::harness::{import::import, results_reader};
use wattspan_ipw::metrics::{EfficiencyMetrics, MetricOptions, compute_metrics};
use wattspan_ipw::scope::{IdlePolicy, Scope};
use wattspan_ipw::table::RunTable;

const KINDS: [&str; 5] = ["judge", "mcq", "failed", "cpu", "apple"];

fn fixture(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ipw/harness_judged").join(kind)
}

fn imported(from: &Path, out: &Path) -> ImportFindings {
    import(from, results_reader::read_results(from).unwrap(), None, None, out).unwrap()
}

fn metrics(run: &Path, scope: Scope) -> EfficiencyMetrics {
    let options = MetricOptions { scope, idle: IdlePolicy::Included };
    compute_metrics(&RunTable::read(run).unwrap(), None, &options)
}

fn is_close(found: Option<f64>, expected: Option<f64>, what: &str) {
    match (found, expected) {
        (Some(found), Some(expected)) => {
            assert!((found / expected - 1.0).abs() < 1e-9, "{what}: {found} instead of {expected}");
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}

#[test]
fn judged_results_have_the_harnesss_own_accuracy_energy_and_ipw() {
    let expected = std::fs::read_to_string(fixture("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let findings = imported(&fixture(kind), &dir.path().join("run"));
        let expected = |name: &str| expected[kind][name].as_f64();
        let figures = findings.harness.as_ref().unwrap();
        is_close(Some(figures.accuracy), expected("accuracy"), kind);
        assert_eq!(Some(figures.scored as f64), expected("scored"), "{kind}");
        let all = metrics(&dir.path().join("run"), Scope::Host);
        let value = |of: Option<wattspan_ipw::metrics::Estimate>| of.map(|of| of.value);
        is_close(value(all.accuracy), expected("accuracy"), kind);
        assert_eq!(all.scored as f64, expected("scored").unwrap(), "{kind}");
        let figures = [figures.energy_j, figures.power_w, figures.per_joule, figures.per_watt];
        let names = ["avg_energy_j", "avg_power_w", "IPJ", "IPW"];
        let ours = [all.energy_j, all.power_w, all.per_joule, all.per_watt].map(value);
        for ((name, figure), ours) in names.into_iter().zip(figures).zip(ours) {
            is_close(figure, expected(name), &format!("{kind} {name}"));
            if kind != "cpu" {
                is_close(ours, expected(name), &format!("{kind} {name} of the run"));
            }
        }
    }
}

#[test]
fn every_record_without_a_score_or_an_energy_has_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let findings = imported(&fixture("failed"), &dir.path().join("failed"));
    let ids: Vec<&str> = findings.without_score.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(ids, ["h000000", "h000005"]);
    assert!(findings.without_score.iter().all(|it| it.reason.contains("evaluation failed")));
    assert_eq!((findings.scores_kept, findings.scores_right, findings.scored), (8, 3, 0));
    let text = findings.sentences().join("\n");
    assert!(text.contains("3 of them right") && text.contains("2 of 10 have no score"), "{text}");
    // The processors' energy is known, although the harness has no figure of it.
    let findings = imported(&fixture("cpu"), &dir.path().join("cpu"));
    assert_eq!((findings.basis.as_str(), findings.metered), ("cpu", 10));
    assert!(findings.sentences().iter().any(|it| it.contains("the harness itself reports none")));
    assert!(metrics(&dir.path().join("cpu"), Scope::Host).energy_j.unwrap().value > 10.0);
    assert!(metrics(&dir.path().join("cpu"), Scope::Accelerator).energy_j.is_none());
}

#[test]
fn the_chips_energy_is_the_host_scope_and_its_rails_are_inside_it() {
    let dir = tempfile::tempdir().unwrap();
    imported(&fixture("apple"), &dir.path().join("apple"));
    imported(&fixture("judge"), &dir.path().join("judge"));
    let joules = |kind: &str, scope| metrics(&dir.path().join(kind), scope).energy_j.unwrap().value;
    // Graphics, processors and neural engine use 2, 18 and 9 W; graphics and neural engine are accelerators.
    assert!((joules("apple", Scope::Accelerator) / joules("apple", Scope::Host) - 11.0 / 29.0).abs() < 1e-6);
    assert!((joules("apple", Scope::Compute) / joules("apple", Scope::Host) - 1.0).abs() < 1e-8);
    // The harness counts the accelerators alone; the processors' energy is in the compute scope.
    assert!((joules("judge", Scope::Accelerator) / joules("judge", Scope::Host) - 1.0).abs() < 1e-8);
    assert!(joules("judge", Scope::Compute) > joules("judge", Scope::Host) * 1.1);
}

/// Writes the fixture `judge` with a change to its summary and to each record's metrics.
fn edited(at: &Path, summary: impl Fn(&mut Value), record: impl Fn(usize, &mut Value)) {
    let read = |name: &str| std::fs::read_to_string(fixture("judge").join(name)).unwrap();
    std::fs::create_dir_all(at).unwrap();
    let mut head: Value = serde_json::from_str(&read("summary.json")).unwrap();
    summary(&mut head);
    std::fs::write(at.join("summary.json"), head.to_string()).unwrap();
    let lines = read("data.jsonl");
    let lines = lines.lines().enumerate().map(|(index, line)| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        record(index, &mut value["model_metrics"]["qwen3:4b"]);
        format!("{value}\n")
    });
    std::fs::write(at.join("data.jsonl"), lines.collect::<String>()).unwrap();
}

fn set_energy(metrics: &mut Value, seconds: f64, watts: f64, joules: f64) {
    metrics["latency_metrics"]["total_query_seconds"] = json!(seconds);
    metrics["energy_metrics"]["per_query_joules"] = json!(joules);
    metrics["power_metrics"]["gpu"]["per_query_watts"]["avg"] = json!(watts);
}

#[test]
fn an_energy_cut_at_thirty_seconds_is_none_unless_the_summary_states_a_longer_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let records = |index: usize, metrics: &mut Value| match index {
        // 120 s at 100 W, of which the last 30 s were summed.
        0 => set_energy(metrics, 120.0, 100.0, 3_000.0),
        // The counter covers the whole query.
        1 => set_energy(metrics, 120.0, 100.0, 12_000.0),
        // Nothing shows that the energy is whole.
        2 => {
            set_energy(metrics, 31.0, 100.0, 3_000.0);
            metrics["power_metrics"]["gpu"]["per_query_watts"]["avg"] = Value::Null;
        }
        3 => set_energy(metrics, 29.0, 100.0, 2_500.0),
        _ => {}
    };
    edited(&old, |_| {}, records);
    edited(&new, |summary| summary["telemetry_buffer_seconds"] = json!(600.0), records);
    let findings = imported(&old, &dir.path().join("a"));
    assert_eq!((findings.energy_cut, findings.metered), (2, 8));
    let reasons: Vec<_> = findings.without_energy.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(reasons, ["h000000", "h000002"]);
    assert!(findings.without_energy[0].reason.contains("last 30 s of 120.0 s"), "{findings:?}");
    let run = RunTable::read(&dir.path().join("a")).unwrap();
    assert_eq!(run.columns.len(), 10);
    assert_eq!(imported(&new, &dir.path().join("b")).energy_cut, 0);
    let short = dir.path().join("short");
    edited(&short, |summary| summary["telemetry_buffer_seconds"] = json!(60.0), records);
    assert_eq!(imported(&short, &dir.path().join("c")).energy_cut, 2, "two of 120 s");
}

#[test]
fn scores_without_an_evaluation_count_both_ways_once_one_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let without = |right: fn(usize) -> bool| {
        move |index: usize, metrics: &mut Value| {
            metrics.as_object_mut().unwrap().remove("evaluation");
            metrics["lm_correctness"] = json!(right(index));
        }
    };
    edited(&dir.path().join("some"), |_| {}, without(|index| index < 3));
    let findings = imported(&dir.path().join("some"), &dir.path().join("a"));
    assert_eq!((findings.scores_kept, findings.scores_right), (10, 3));
    // The first version writes false throughout: never judged.
    edited(&dir.path().join("none"), |_| {}, without(|_| false));
    let findings = imported(&dir.path().join("none"), &dir.path().join("b"));
    assert_eq!((findings.scores_kept, findings.harness), (0, None));
    // An empty answer that was judged is wrong, and a phase's energy is kept.
    edited(
        &dir.path().join("empty"),
        |_| {},
        |index, metrics| {
            metrics["lm_response"] = json!("");
            metrics["evaluation"] = json!({ "is_correct": index == 0 });
            metrics["phase_metrics"]["prefill_energy_j"] = json!(1.25);
            metrics["phase_metrics"]["decode_energy_j"] = json!(3.5);
        },
    );
    let findings = imported(&dir.path().join("empty"), &dir.path().join("c"));
    assert_eq!((findings.scores_kept, findings.scores_right, findings.unanswered), (10, 1, 0));
    let run = RunTable::read(&dir.path().join("c")).unwrap();
    assert_eq!((run.columns.prefill_j[0], run.columns.decode_j[0]), (1.25, 3.5));
}

#[test]
fn scoring_by_rule_does_not_replace_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    imported(&fixture("mcq"), &dir.path().join("run"));
    let accuracy = || metrics(&dir.path().join("run"), Scope::Host).accuracy.unwrap().value;
    let before = accuracy();
    let output = std::process::Command::new(crate::programs::wattspan())
        .args(["ipw", "score", "run"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("0 scores changed"), "{output:?}");
    assert_eq!(accuracy().to_bits(), before.to_bits());
}
