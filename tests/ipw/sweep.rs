//! `wattspan ipw sweep`: points against a stub server on a simulated machine, and a sweep that was killed.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::documented::DocumentedCommands;
use crate::llm_stub::LlmStub;
use crate::runs::{IpwFixture, LONG_HORIZON_ARGS, output_text};
use crate::support::wait_until;

/// A sweep of two models at one and two queries at a time.
fn command(fixture: &IpwFixture, more: &[&str]) -> Command {
    command_of(fixture, ["good-4", "good-8"], more)
}

fn command_of(fixture: &IpwFixture, models: [&str; 2], more: &[&str]) -> Command {
    let mut command = fixture.command("sweep");
    command
        .args(LONG_HORIZON_ARGS)
        .args(["--url", &fixture.server_url(), "--model", models[0], "--model", models[1]])
        .args(["-c", "2,1", "-o", "sweep", "--warm-up", "0"])
        .args(more);
    command
}

/// The directories of the points, by name.
fn points(fixture: &IpwFixture) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(fixture.path("sweep")) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn row_lines(fixture: &IpwFixture) -> Vec<usize> {
    let lines =
        |path: &PathBuf| std::fs::read_to_string(path.join("rows.jsonl")).unwrap_or_default().lines().count();
    points(fixture).iter().map(lines).collect()
}

#[test]
fn a_sweep_has_the_figures_of_its_runs_and_runs_no_finished_point_again() {
    let fixture = IpwFixture::new();
    let words = ["-n", "6", "--json", "--latency-bound", "1000", "--html", "sweep.html"];
    let output = command(&fixture, &words).output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shown: Vec<(&str, u64)> = report["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["model"].as_str().unwrap(), it["concurrency"].as_u64().unwrap()))
        .collect();
    assert_eq!(shown, [("good-4", 1), ("good-4", 2), ("good-8", 1), ("good-8", 2)]);
    // Eight queries for each concurrent one: every question is asked as often as that needs.
    assert_eq!(row_lines(&fixture).iter().sum::<usize>(), 2 * (12 + 18));
    for point in report["points"].as_array().unwrap() {
        let run = point["run"].as_str().unwrap();
        let of_run = fixture.report(run, &[]);
        let own = if point["concurrency"] == 1 { &of_run["all"] } else { &of_run["steady_state"]["figures"] };
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{point}"));
        let tokens_per_joule = number(&own["tokens_per_joule"]["value"]);
        assert!((number(&point["token_j"]["value"]) * tokens_per_joule - 1.0).abs() < 1e-9, "{point}");
        assert_eq!(point["figures"]["per_watt"]["value"], own["per_watt"]["value"]);
        if point["concurrency"] == 1 {
            let rows = fixture.rows(run);
            let sum = |name: &str| rows.iter().map(|row| row[name].as_f64().unwrap()).sum::<f64>();
            let throughput = sum("tokens_out") / sum("duration_ns") * 1e9;
            assert!((number(&point["tokens_per_second"]) / throughput - 1.0).abs() < 1e-9, "{point}");
        }
        let kinds: BTreeSet<&str> =
            point["limits"].as_array().unwrap().iter().map(|it| it["kind"].as_str().unwrap()).collect();
        assert!(kinds.contains("server") || kinds.contains("concurrency"), "{point}");
    }
    // All are within the bound, so the best points are those of the least energy of a token and of the highest IPW.
    for (name, figure, sign) in [("energy", "/token_j/value", 1.0), ("ipw", "/figures/per_watt/value", -1.0)]
    {
        let of = |at: usize| sign * report["points"][at].pointer(figure).unwrap().as_f64().unwrap();
        let best = report["best"][name].as_u64().unwrap() as usize;
        assert!((0..4).all(|at| of(best) <= of(at)), "{report}");
        let front = if name == "energy" { "on_energy_front" } else { "on_ipw_front" };
        assert!((0..4).any(|at| report["points"][at][front] == true));
    }
    let page = std::fs::read_to_string(fixture.path("sweep.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    for forbidden in ["<script", "src=", "@import", "url(", "{{", "{%"] {
        assert!(!page.contains(forbidden), "{forbidden} is in the page");
    }
    // A finished sweep asks nothing, and needs no server.
    let before = (fixture.requests(), row_lines(&fixture));
    let output = command(&fixture, &["-n", "6", "--latency", "p50"]).output().unwrap();
    let text = output_text(&output);
    assert!(output.status.success() && text.contains("point 4 of 4: good-8, 2 at once"), "{text}");
    for part in ["finished before", "LATENCY p50", "limited by", "tokens/s, and 2 give", "simulated"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert_eq!((fixture.requests(), row_lines(&fixture)), before);
    // Other settings would be another sweep.
    let output = command(&fixture, &["-n", "6", "--max-tokens", "9"]).output().unwrap();
    let text = output_text(&output);
    assert!(output.status.code() == Some(1) && text.contains("most tokens: 512, now 9"), "{text}");
    // What was measured with them is in no table and on no front.
    assert!(text.contains("no point") && !text.contains("tokens/s, and 2 give"), "{text}");
    assert_eq!((fixture.requests(), row_lines(&fixture)), before);
    // Another model is added to it.
    let output = command(&fixture, &["-n", "6", "--model", "good"]).output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    assert_eq!((fixture.requests(), points(&fixture).len()), (before.0 + 12 + 18, 6));
}

#[test]
fn a_sweep_that_was_killed_is_continued_by_the_same_command() {
    let fixture = IpwFixture::new();
    // The answers of the second point take seconds together, so that it is killed within it.
    let sweep = || command_of(&fixture, ["good-150", "good-8"], &["-n", "12", "--retries", "0"]);
    let mut killed = sweep().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a point is finished and another one has begun", || {
        let lines = row_lines(&fixture);
        lines.len() == 2 && lines.iter().all(|count| *count > 1) || killed.try_wait().unwrap().is_some()
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    let files = points(&fixture);
    let before: Vec<String> =
        files.iter().map(|path| std::fs::read_to_string(path.join("rows.jsonl")).unwrap()).collect();
    let output = sweep().output().unwrap();
    let text = output_text(&output);
    assert!(output.status.success(), "{text}");
    assert_eq!(
        (text.matches("finished before").count(), text.matches(": resumed").count()),
        (1, 1),
        "{text}"
    );
    for (path, before) in files.iter().zip(before) {
        let after = std::fs::read_to_string(path.join("rows.jsonl")).unwrap();
        // A line that the kill cut off is completed by a line end.
        assert!(after.starts_with(before.trim_end_matches(|c| c != '\n')), "{}", path.display());
    }
    // Each query has one row.
    for path in points(&fixture) {
        let text = std::fs::read_to_string(path.join("rows.jsonl")).unwrap();
        let rows: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let keys: BTreeSet<String> =
            rows.iter().map(|row| format!("{} {}", row["id"], row["repeat"])).collect();
        assert_eq!(keys.len(), rows.len(), "{}", path.display());
        assert!(rows.len() >= 12, "{}: {}", path.display(), rows.len());
    }
}

#[test]
fn a_server_that_is_down_leaves_the_points_of_the_others() {
    let fixture = IpwFixture::new();
    // A port of this address alone, so that no other test gets it while nothing listens there.
    let address = TcpListener::bind("127.0.0.77:0").unwrap().local_addr().unwrap();
    let down = format!("http://{address}/v1");
    let words = ["-n", "4", "-r", "1", "--retries", "0", "--url", &down];
    let output = command(&fixture, &words).output().unwrap();
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("good-8, 2 at once, {down}: every query failed")), "{text}");
    assert!(text.contains("too few queries (0 of 4 queries have an answer and an energy)"), "{text}");
    // The same command with the server up asks what was not delivered, and nothing else.
    let (server, before) = (LlmStub::start_at(address), fixture.requests());
    let output = command(&fixture, &words).output().unwrap();
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(
        (text.matches("finished before").count(), text.matches(": resumed").count()),
        (4, 4),
        "{text}"
    );
    assert_eq!((server.requests(), fixture.requests()), (4 * 4, before), "{text}");
    assert!(!text.contains("0 of 4 queries"), "{text}");
}

#[test]
fn the_documented_commands_sweep() {
    let llm = LlmStub::start();
    let commands = DocumentedCommands::of("## A sweep");
    let url = llm.url();
    let (dir, shown) = commands.run(&[("URL", &url), ("SMALL", "simple-2"), ("LARGE", "good-8")]);
    assert!(dir.path().join("sweep.html").is_file());
    assert_eq!(shown.matches("least energy of a token at a p95 of at most 2.000 s: ").count(), 1, "{shown}");
}
