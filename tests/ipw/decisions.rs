//! `wattspan ipw route --decisions`: decisions over runs of a stub server, with the router's energy from a daemon's spans.

use std::fmt::Write;

use serde_json::Value;

use crate::documented::DocumentedCommands;
use crate::llm_stub::{LlmStub, MAX_SIMPLE_PROMPT_BYTES};
use crate::runs::{IpwFixture, output_text};

/// Writes a decision for each question, made by `choose` from its number.
fn write_decisions(fixture: &IpwFixture, more: &str, choose: impl Fn(usize) -> &'static str) {
    let questions = std::fs::read_to_string(fixture.path("good-4").join("questions.jsonl")).unwrap();
    let mut lines = String::new();
    for (number, question) in questions.lines().enumerate() {
        let question: Value = serde_json::from_str(question).unwrap();
        writeln!(lines, r#"{{"id":{},"model":"{}"{more}}}"#, question["id"], choose(number)).unwrap();
    }
    std::fs::write(fixture.path("decisions.jsonl"), lines).unwrap();
}

#[test]
fn decisions_of_a_router_are_evaluated_and_their_errors_named() {
    let fixture = IpwFixture::new();
    fixture.run("good-4", &["-c", "12"]);
    fixture.run("good-12", &["-c", "12"]);
    let route = |more: &[&str]| {
        let words = ["good-4", "--reference", "good-12", "--decisions", "decisions.jsonl"];
        let output = fixture.command("route").args(words).args(more).output().unwrap();
        (output.status.code(), output_text(&output))
    };
    write_decisions(&fixture, r#","router_uj":1000,"router_error_uj":10"#, |number| {
        ["good-4", "good-12"][number % 2]
    });
    let (status, json) = route(&["--json"]);
    assert_eq!(status, Some(0), "{json}");
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&report["queries"], &report["sends"][0]["router"]), (&12.into(), &6.into()));
    assert_eq!(report["policies"][1]["quality_lost"]["value"], 0.0);
    // The figures from the rows.
    let energy_j = |run: &str| -> Vec<(String, f64)> {
        let of =
            |row: &Value| Some((row["id"].as_str()?.to_owned(), row["energy"]["share_uj"].as_f64()? / 1e6));
        fixture.rows(run).iter().map(|row| of(row).unwrap()).collect()
    };
    let (small, large) = (energy_j("good-4"), energy_j("good-12"));
    let questions = std::fs::read_to_string(fixture.path("good-4").join("questions.jsonl")).unwrap();
    let routed: f64 = questions
        .lines()
        .enumerate()
        .map(|(number, line)| {
            let question: Value = serde_json::from_str(line).unwrap();
            let run = if number % 2 == 0 { &small } else { &large };
            run.iter().find(|(id, _)| question["id"] == **id).unwrap().1 + 0.001
        })
        .sum();
    let best: f64 = [&small, &large]
        .map(|run| run.iter().map(|(_, joules)| joules).sum())
        .into_iter()
        .fold(f64::MAX, f64::min);
    let shown = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap();
    assert!((shown("/policies/0/energy_j/value") - routed / 12.0).abs() < 1e-9);
    assert!((shown("/policies/1/energy_saved/value") - (1.0 - routed / best)).abs() < 1e-9, "{json}");
    let (_, text) = route(&[]);
    for part in
        ["always best (", "the router itself uses 0.001000 J", "Decisions over 12 queries", "simulated"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    write_decisions(&fixture, "", |_| "good-12");
    let (_, text) = route(&[]);
    assert!(text.contains("state no energy of the router"), "{text}");
    // Without a daemon, the energy of a span is an error and not 0.
    write_decisions(&fixture, r#","router_span":"switch""#, |_| "good-12");
    let (status, text) = route(&["--socket", "nowhere.sock"]);
    assert_eq!(status, Some(4), "{text}");
    let (status, text) = route(&["--router-accounts", "decisions.jsonl"]);
    assert!(status == Some(1) && text.contains("line 1: is no account"), "{text}");
    write_decisions(&fixture, "", |_| "medium");
    let (status, text) = route(&[]);
    assert!(
        status == Some(1) && text.contains("decisions.jsonl: line 1: no run is named \"medium\""),
        "{text}"
    );
    std::fs::write(fixture.path("decisions.jsonl"), "\n").unwrap();
    let (status, text) = route(&[]);
    assert!(status == Some(1) && text.contains("12 of 12 queries have no decision"), "{text}");
    let (status, text) = route(&["--allow-partial"]);
    assert!(status == Some(1) && text.contains("no decided question"), "{text}");
}

#[test]
fn the_documented_commands_evaluate_a_router_that_switches_by_complexity() {
    let llm = LlmStub::start();
    let commands = DocumentedCommands::of("## A router's decisions");
    let url = llm.url();
    let servers = [("SMALL_URL", &*url), ("LARGE_URL", &url), ("SMALL", "simple-2"), ("LARGE", "good-8")];
    let (dir, shown) = commands.run(&servers);
    let lines = |file: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // The large model is right; the small one is not where the question is long. So the router loses what it sent there.
    let (questions, decisions) = (lines("runs/small/questions.jsonl"), lines("decisions.jsonl"));
    let is_lost = |(question, decision): &(&Value, &Value)| {
        assert_eq!(question["id"], decision["id"]);
        decision["model"] == "small" && question["prompt"].as_str().unwrap().len() >= MAX_SIMPLE_PROMPT_BYTES
    };
    let sent_to_small = decisions.iter().filter(|it| it["model"] == "small").count();
    let lost = questions.iter().zip(&decisions).filter(is_lost).count();
    assert!(questions.len() == 50 && (5..45).contains(&sent_to_small), "{decisions:?}");
    let cells: Vec<&str> = shown
        .lines()
        .find(|line| line.trim_start().starts_with("router "))
        .unwrap()
        .split_whitespace()
        .collect();
    let accuracy: f64 = cells[1].parse().unwrap();
    assert!((accuracy - (50 - lost) as f64 * 2.0).abs() < 1e-9, "{lost} of 50 lost:\n{shown}");
    for part in ["always best (large)", "the router itself uses ", "Decisions over 50 queries"] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
}
