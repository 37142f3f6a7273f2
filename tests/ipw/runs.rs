//! `wattspan ipw` from the command line, with a simulated machine, a faulty stub server, and a directory.

use crate::llm_stub;
use crate::programs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::llm_stub::LlmStub;
use serde_json::Value;
use wattspan_ipw::question;
use wattspan_ipw::question_sets::QuestionSet;

const MACHINE: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[1.0, 80]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "gpu-0"
kind = "gpu"
profile = [[0.5, 100], [0.5, 200]]
quantum_uj = 1000
ceiling_w = 600
"#;

/// As on many cloud machines: a platform counter that never moves, above a package whose counter does.
const STUCK: &str = r#"
[[domain]]
name = "psys"
kind = "psys"
profile = [[1.0, 300]]
stuck = true
[[domain]]
name = "package-0"
kind = "package"
parent = "psys"
profile = [[1.0, 80]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "dram-0"
kind = "dram"
parent = "psys"
profile = [[1.0, 20]]
quantum_uj = 61
ceiling_w = 100
stuck = true
"#;

/// A GPU that goes away some seconds after the start, when several of a run's queries have ended and several have not begun,
/// and a package that stays.
const DEPARTING: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[1.0, 80]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "gpu-0"
kind = "gpu"
profile = [[1.0, 200]]
quantum_uj = 1000
ceiling_w = 600
lost_at_s = 7.0
"#;

const HUNDRED_WATTS: &str = include_str!("../fixtures/hundred-watts.toml");

pub const LONG_HORIZON_ARGS: [&str; 4] = ["--replay", "machine.toml", "--config", "long_horizon.toml"];

pub struct IpwFixture {
    dir: tempfile::TempDir,
    llm: LlmStub,
}

impl IpwFixture {
    pub fn new() -> Self {
        Self::on(MACHINE)
    }

    fn on(machine: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("machine.toml"), machine).unwrap();
        // On a busy machine messages reach the service late; the test does not measure the load of the test machine.
        std::fs::write(dir.path().join("long_horizon.toml"), "horizon_ms = 1000\n").unwrap();
        Self { dir, llm: LlmStub::start() }
    }

    /// The report of a run in JSON, whatever the exit status.
    pub fn report(&self, run: &str, more: &[&str]) -> Value {
        let output = self.command("report").args([run, "--json"]).args(more).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", output_text(&output)))
    }

    /// Edits the manifest of a run.
    fn edit(&self, run: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path(run).join("run.json");
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        std::fs::write(path, manifest.to_string()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(programs::wattspan());
        command
            .args(["ipw", verb])
            .current_dir(self.dir.path())
            .env("COLUMNS", "200")
            .env_remove("OPENAI_API_KEY");
        command
    }

    /// Runs the first twelve questions on a model; returns the output and the rows.
    pub fn run(&self, model: &str, more: &[&str]) -> (Output, Vec<Value>) {
        let mut command = self.command("run");
        command.args(LONG_HORIZON_ARGS).args(["--url", &self.llm.url(), "--model", model, "-o", model]);
        for (flag, usual) in [("-n", "12"), ("--warm-up", "0")] {
            if !more.contains(&flag) {
                command.args([flag, usual]);
            }
        }
        command.args(more);
        (command.output().unwrap(), self.rows(model))
    }

    pub fn server_url(&self) -> String {
        self.llm.url()
    }

    /// Questions that the server received so far.
    pub fn requests(&self) -> usize {
        self.llm.requests()
    }

    pub fn rows(&self, run: &str) -> Vec<Value> {
        lines(&self.path(run).join("rows.jsonl"))
    }
}

/// Asserts the exit status that the rows imply. On a machine too busy to measure answers of 1 ms, no row has energy.
fn assert_ended(output: &Output, rows: &[Value]) {
    let measured = rows.iter().any(|row| row["energy"]["share_uj"].is_u64());
    assert_eq!(output.status.code(), Some(if measured { 0 } else { 3 }), "{}", output_text(output));
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_run_keeps_a_row_for_each_question_with_energy_tokens_and_score() {
    let fixture = IpwFixture::new();
    let (output, rows) = fixture.run("good-20", &["-c", "4", "--warm-up", "2"]);
    assert!(output.status.success(), "{}", output_text(&output));
    assert_eq!(rows.len(), 12);
    assert_eq!(fixture.llm.requests(), 14, "the warm-up's questions are other ones");
    for row in &rows {
        assert_eq!((&row["score"], &row["error"]), (&1.0.into(), &Value::Null), "{row}");
        assert_eq!((row["tokens_in"].as_u64(), row["tokens_cached"].as_u64()), (Some(12), Some(3)));
        let energy = &row["energy"];
        let number = |name: &str| energy[name].as_u64().unwrap();
        assert!(number("share_uj") > 0 && number("error_uj") > 0, "{row}");
        assert_eq!(number("prefill_uj") + number("decode_uj"), number("share_uj"), "{row}");
        assert_eq!(energy["grade"], "measured");
        assert_eq!(energy["domains"].as_array().unwrap().len(), 2);
    }
    let shown = output_text(&output);
    for part in [
        "100.0 % [71.80 .. 100.0]",
        "12 of 12 queries covered",
        "host (all counted domains)",
        "idle power included",
        "measured",
        "too few questions for these intervals",
    ] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
    let texts = lines(&fixture.path("good-20").join("texts.jsonl"));
    assert_eq!(texts.len(), 12);
    assert!(texts.iter().all(|text| text["reply"].as_str().unwrap().contains("Answer:")));
}

#[test]
fn whatever_a_server_does_a_failed_query_is_a_row_and_wrong_if_it_was_delivered() {
    let fixture = IpwFixture::new();
    for (model, reason, delivered) in [
        ("unknown", "HTTP 404", false),
        ("closed", "HTTP 401", false),
        ("flaky", "HTTP 503", false),
        ("toolong", "HTTP 400", true),
        ("empty", "nothing in it", true),
        ("stops", "without an end marker", true),
        ("breaks", "broke off", true),
        ("fails", "out of memory", true),
        ("hangsup", "the connection broke before the answer", true),
        ("hangs", "no answer within", true),
    ] {
        // The others answer at once, and on a busy machine as late as that may be.
        let timeout = if model == "hangs" { "3" } else { "120" };
        let (output, rows) = fixture.run(model, &["--retries", "0", "--timeout", timeout, "-c", "12"]);
        assert_eq!(output.status.code(), Some(1), "{model}: {}", output_text(&output));
        assert_eq!(rows.len(), 12, "{model}");
        for row in &rows {
            let error = row["error"].as_str().unwrap_or_else(|| panic!("{model}: {row}"));
            assert!(error.contains(reason), "{model}: {error}");
            assert_eq!(row["delivered"], delivered, "{model}: {row}");
            assert_eq!(row["score"], if delivered { 0.0.into() } else { Value::Null }, "{model}: {row}");
        }
        let meaning = match delivered {
            true => "12 queries failed after they were delivered: they are wrong, and their energy counts",
            false => "12 queries were never delivered: they are not asked, and in no figure",
        };
        assert!(output_text(&output).contains(meaning), "{model}: {}", output_text(&output));
        let all = &fixture.report(model, &[])["all"];
        let counted = if delivered { 12 } else { 0 };
        assert_eq!(
            (&all["asked"], &all["delivered"], &all["scored"]),
            (&12.into(), &counted.into(), &counted.into())
        );
    }
}

#[test]
fn transient_failures_are_retried_and_permanent_ones_are_not() {
    let fixture = IpwFixture::new();
    for model in ["flaky", "busy"] {
        let (output, rows) = fixture.run(model, &["-c", "12"]);
        assert_ended(&output, &rows);
        assert!(rows.iter().all(|row| row["retries"] == 1 && row["score"] == 1.0), "{rows:?}");
    }
    let (_, mut rows) = fixture.run("drops", &[]);
    // Rows are written as their accounts arrive, which may differ from the order of the questions.
    rows.sort_by_key(|row| row["began_ns"].as_u64());
    assert!(rows.iter().all(|row| row["score"] == 1.0), "{rows:?}");
    let dropped: Vec<_> = rows.iter().map(|row| row["retries"].as_u64()).collect();
    assert_eq!(dropped[..3], [None, Some(1), Some(1)], "a connection that was closed is replaced");
    // A model that refuses `max_tokens` is asked with `max_completion_tokens`, from the first refusal on.
    let before = fixture.llm.requests();
    let (_, rows) = fixture.run("newer", &[]);
    assert!(rows.len() == 12 && rows.iter().all(|row| row["score"] == 1.0), "{rows:?}");
    assert!(rows.iter().all(|row| row["retries"].is_null()), "{rows:?}");
    assert_eq!(fixture.llm.requests() - before, 12 + 1);
    let (_, rows) = fixture.run("newer-5", &["-c", "12"]);
    assert!(rows.len() == 12 && rows.iter().all(|row| row["score"] == 1.0), "{rows:?}");
    let before = fixture.llm.requests();
    let (_, rows) = fixture.run("unknown", &["-c", "12"]);
    assert_eq!(fixture.llm.requests() - before, 12);
    assert!(rows.len() == 12 && rows.iter().all(|row| row["retries"].is_null()), "{rows:?}");
}

#[test]
fn without_usage_tokens_are_counted_and_called_estimated_and_other_interfaces_are_spoken() {
    let fixture = IpwFixture::new();
    let (_, rows) = fixture.run("nousage", &["-c", "12"]);
    assert_eq!(rows.len(), 12);
    assert!(rows.iter().all(|row| row["tokens_estimated"] == true && row["tokens_out"].as_u64() > Some(1)));
    let whole = fixture.run("good", &["-c", "12", "--no-stream"]).1;
    assert_eq!(whole.len(), 12);
    assert!(whole.iter().all(|row| row["score"] == 1.0 && row["first_token_ns"].is_null()));
    let base = format!("http://{}", fixture.llm.address);
    let output = fixture
        .command("run")
        .args([
            "--replay",
            "machine.toml",
            "--url",
            &base,
            "--api",
            "ollama",
            "--model",
            "o",
            "-o",
            "o",
            "-n",
            "12",
            "-c",
            "12",
        ])
        .output()
        .unwrap();
    assert_ended(&output, &fixture.rows("o"));
    assert!(
        fixture.rows("o").iter().all(|row| row["score"] == 1.0 && row["tokens_in"] == 12),
        "{:?}",
        fixture.rows("o")
    );
}

#[test]
fn a_published_set_is_asked_with_its_options_and_its_settings_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ipw/question_sets/mmlu_pro.jsonl");
    let questions = QuestionSet::MmluPro.read(&set).unwrap();
    let llm = LlmStub::with_answers(questions.clone());
    let (url, set) = (llm.url(), set.display().to_string());
    let run = |extra: &str, out: &str| {
        let arguments =
            ["run", "--without-meter", "--url", &url, "--model", "fine", "-q", &set, "--as", "mmlu-pro"];
        let rest = ["--extra-body", extra, "--warm-up", "0", "-o", out];
        let output = run_without_daemon(dir.path(), &[&arguments[..], &rest].concat());
        (output.status.success(), output_text(&output))
    };
    let (ended, text) = run(r#"{"top_p":0.9}"#, "a");
    assert!(ended, "{text}");
    // The stub knows a prompt by its whole text, and answers it rightly.
    let rows = lines(&dir.path().join("a/rows.jsonl"));
    assert!(rows.len() == 2 && rows.iter().all(|row| row["score"] == 1.0), "{rows:?}");
    let manifest = |run: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.path().join(run).join("run.json")).unwrap()).unwrap()
    };
    let settings = manifest("a")["settings"].clone();
    assert_eq!(settings["question set"], "mmlu-pro");
    assert_eq!(settings["hash of the prompts"], question::prompt_hash(None, &questions));
    assert_eq!(settings["extra body"], r#"{"top_p":0.9}"#);
    let (ended, text) = run(r#"{"stream":true}"#, "b");
    assert!(!ended && text.contains("--no-stream"), "{text}");
    let (ended, text) = run(r#"{"top_p":0.5}"#, "c");
    assert!(ended, "{text}");
    let output = Command::new(programs::wattspan())
        .args(["ipw", "compare", "a", "c"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(
        !output.status.success() && output_text(&output).contains("extra body"),
        "{}",
        output_text(&output)
    );
}

#[test]
fn a_key_is_taken_from_the_environment_and_a_model_from_the_server() {
    let fixture = IpwFixture::new();
    let mut command = fixture.command("run");
    command.args([
        "--replay",
        "machine.toml",
        "--url",
        &fixture.llm.url(),
        "--model",
        "closed",
        "-o",
        "a",
        "-n",
        "2",
    ]);
    let output = command.args(["--key-from", "MY_KEY"]).env("MY_KEY", "sesame").output().unwrap();
    assert_ended(&output, &fixture.rows("a"));
    let mut command = fixture.command("run");
    let output = command
        .args(["--replay", "machine.toml", "--url", &fixture.llm.url(), "-o", "b", "-n", "2"])
        .output()
        .unwrap();
    assert!(output_text(&output).contains("querying good at"), "{}", output_text(&output));
    let gone = fixture
        .command("run")
        .args(["--replay", "machine.toml", "--url", "http://127.0.0.1:1/v1"])
        .output()
        .unwrap();
    assert!(
        !gone.status.success() && output_text(&gone).contains("is the server up?"),
        "{}",
        output_text(&gone)
    );
    for file in ["a/run.json", "a/rows.jsonl"] {
        assert!(
            !std::fs::read_to_string(fixture.path(file)).unwrap().contains("sesame"),
            "{file} holds the key"
        );
    }
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let fixture = IpwFixture::new();
    let mut command = fixture.command("run");
    command.args(LONG_HORIZON_ARGS).args([
        "--url",
        &fixture.llm.url(),
        "--model",
        "good-100",
        "-o",
        "r",
        "--warm-up",
        "0",
        "-c",
        "3",
    ]);
    let mut child =
        command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while fixture.rows_so_far("r") < 3 {
        assert!(std::time::Instant::now() < deadline, "no rows came");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let before = fixture.rows("r").len();
    assert!((3..50).contains(&before));
    let mut command = fixture.command("run");
    command.args(LONG_HORIZON_ARGS).args(["--resume", "r"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    let rows = fixture.rows("r");
    assert_eq!(rows.len(), 50, "no question twice");
    assert!(output_text(&output).contains("50 of 50 queries covered"));
    let taken = fixture.run("r", &[]).0;
    assert!(output_text(&taken).contains("holds a run already"), "{}", output_text(&taken));
}

impl IpwFixture {
    /// Complete lines so far, while the run writes.
    fn rows_so_far(&self, run: &str) -> usize {
        std::fs::read_to_string(self.path(run).join("rows.jsonl"))
            .map_or(0, |text| text.matches('\n').count())
    }
}

#[test]
fn reports_are_written_in_every_format() {
    let fixture = IpwFixture::new();
    fixture.run("good-4", &["-c", "4"]);
    let report = |more: &[&str]| {
        let output = fixture.command("report").arg("good-4").args(more).output().unwrap();
        assert!(output.status.success(), "{}", output_text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let json: Value =
        serde_json::from_str(&report(&["--json", "--price-per-kwh", "0.3", "--co2-per-kwh", "400"])).unwrap();
    assert_eq!((&json["all"]["covered"], &json["all"]["grade"]), (&12.into(), &"measured".into()));
    let per_joule = json["all"]["per_joule"]["value"].as_f64().unwrap();
    let energy = json["all"]["energy_j"]["value"].as_f64().unwrap();
    assert!((per_joule * energy - 1.0).abs() < 1e-9, "all were right");
    let scopes: Vec<_> =
        json["scopes"].as_array().unwrap().iter().map(|of| of["scope"].as_str().unwrap()).collect();
    assert!(scopes.contains(&"host") && scopes.contains(&"compute") && scopes.contains(&"accelerator"));
    let cost = json["sum"]["cost"].as_f64().unwrap() / json["sum"]["energy_j"].as_f64().unwrap() * 3.6e6;
    assert!((cost - 0.3).abs() < 1e-9);
    let csv = report(&["--csv", "-"]);
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert!(rows.len() > 2 && rows.iter().all(|row| row.len() == rows[0].len()), "{csv}");
    for (column, name) in [("ipw_per_w", "per_watt"), ("power_w", "power_w"), ("accuracy", "accuracy")] {
        let place = rows[0].iter().position(|head| *head == column).unwrap();
        // The JSON parser may be one unit in the last place off; both outputs have the same digits.
        let (shown, exact) = (rows[1][place].parse::<f64>().unwrap(), figure(&json, name));
        assert!(
            (shown - exact).abs() <= exact.abs() * f64::EPSILON,
            "{name}: {shown}, and not {exact}: {csv}"
        );
    }
    let scope = ["--scope", "accelerator", "--idle", "included"];
    report(&[&["--html", "page.html"][..], &scope].concat());
    let page = std::fs::read_to_string(fixture.path("page.html")).unwrap();
    let accelerator = fixture.report("good-4", &scope);
    for (tile, name) in [("intelligence per watt", "per_watt"), ("power of the machine", "power_w")] {
        let shown = page.split(&format!("<span>{tile}</span><b>")).nth(1).expect(tile);
        let shown: f64 = shown.split(['<', ' ']).next().unwrap().parse().expect(tile);
        // The page shows IPW in 1/kW where that is from 1 to 1000.
        let right = figure(&accelerator, name) * if name == "per_watt" { 1e3 } else { 1.0 };
        assert!((shown / right - 1.0).abs() < 1e-3, "{tile}: {shown}, and not {right}");
    }
    let basis = "<p>accelerator only, idle power included, energy measured, <strong>simulated</strong>; 12 of 12 queries";
    assert!(page.contains(basis), "{page}");
    // The manifest of a simulated run must not describe the real machine.
    let manifest: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture.path("good-4/run.json")).unwrap()).unwrap();
    let machine = manifest["machine"].as_str().unwrap();
    assert!(!machine.is_empty() && !page.contains(machine), "the page shows {machine}");
    let simulated = rows[0].iter().position(|head| *head == "simulated").unwrap();
    assert!(
        json["all"]["simulated"] == true && rows[1..].iter().all(|row| row[simulated] == "true"),
        "{csv}"
    );
    let subjects = accelerator["subjects"].as_array().unwrap().len();
    let dots = page.matches("<circle class=dot").count();
    assert_eq!(dots, 2 * subjects, "each subject is a row with its energy and its accuracy");
    let power = lines(&fixture.path("good-4").join("power.jsonl"));
    assert!(!power.is_empty());
    assert!(power.iter().all(|instant| instant["power_mw"].as_array().unwrap().len() == 2));
}

/// Every character that moves a cursor, ends a line, changes colors or reorders text.
fn hidden() -> impl Iterator<Item = char> {
    let codes = (1..0x20).chain(0x7f..0xa0).chain([0x200e, 0x200f, 0x61c]);
    codes.chain(0x202a..=0x202e).chain(0x2066..=0x2069).map(|code| char::from_u32(code).unwrap())
}

fn hostile(text: &mut Value) {
    if let Value::String(name) = text {
        name.push_str(&hidden().collect::<String>());
    }
}

#[test]
fn no_text_of_a_run_is_shown_with_a_hidden_character() {
    let fixture = IpwFixture::new();
    fixture.run("good-4", &["-c", "4"]);
    let (file, rows) = (fixture.path("good-4").join("run.json"), fixture.path("good-4").join("rows.jsonl"));
    let mut run: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    for field in ["label", "model", "server", "questions", "machine", "meter", "idle"] {
        hostile(&mut run[field]);
    }
    run["settings"].as_object_mut().unwrap().values_mut().for_each(hostile);
    run["domains"].as_array_mut().unwrap().iter_mut().for_each(|domain| hostile(&mut domain["name"]));
    std::fs::write(&file, run.to_string()).unwrap();
    let mut changed: Vec<Value> = lines(&rows);
    for row in &mut changed {
        hostile(&mut row["subject"]);
    }
    let failed = &mut changed[0];
    (failed["error"], failed["score"]) = ("refused".into(), Value::Null);
    hostile(&mut failed["error"]);
    let changed: Vec<String> = changed.iter().map(Value::to_string).collect();
    std::fs::write(&rows, changed.join("\n") + "\n").unwrap();
    fixture.run("good-12", &["-c", "12"]);
    for words in [
        &["report", "good-4"][..],
        &["report", "good-4", "--csv", "-"],
        &["report", "good-4", "--json"],
        &["report", "good-4", "--html", "-"],
        &["compare", "good-4", "good-12"],
        &["compare", "good-4", "good-12", "--anyway"],
    ] {
        let output = fixture.command(words[0]).args(&words[1..]).output().unwrap();
        let shown = output_text(&output);
        let found: Vec<char> = shown.chars().filter(|&c| c != '\n' && hidden().any(|it| it == c)).collect();
        assert!(found.is_empty(), "{words:?}: {found:?} in {shown:?}");
        assert!(shown.contains("u{202e}") || shown.contains("u202e"), "{words:?} lost the name: {shown}");
        // A line break in a name must not start a new line; on a page it is a space.
        let on_a_page = words.contains(&"--html");
        assert!(on_a_page || !shown.lines().any(|line| line.starts_with("\\u{b}")), "{words:?}: {shown}");
    }
}

#[test]
fn runs_are_compared_and_routed_where_they_were_asked_the_same() {
    let fixture = IpwFixture::new();
    fixture.run("good-4", &["-c", "12"]);
    fixture.run("good-12", &["-c", "12"]);
    fixture.run("good-8", &["-c", "12", "-n", "13"]);
    let verb = |verb: &str, words: &[&str]| fixture.command(verb).args(words).output().unwrap();
    let output = verb("compare", &["good-4", "good-12", "--json"]);
    assert!(output.status.success(), "{}", output_text(&output));
    let columns: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(columns[1]["paired"]["count"], 12);
    assert_eq!(columns[1]["paired"]["accuracy"]["value"], 0.0);
    let refused = verb("compare", &["good-4", "good-8"]);
    assert!(
        !refused.status.success() && output_text(&refused).contains("questions: good-4 has"),
        "{}",
        output_text(&refused)
    );
    assert!(verb("compare", &["good-4", "good-8", "--anyway"]).status.success());
    let output = verb(
        "route",
        &[
            "good-4",
            "--reference",
            "good-12",
            "--parameters",
            "good-4=1e9",
            "--parameters",
            "good-12=8e9",
            "--json",
        ],
    );
    assert!(output.status.success(), "{}", output_text(&output));
    let routing: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&routing["questions"], &routing["models"][0]["ties"]), (&12.into(), &12.into()));
    assert_eq!(routing["savings"][0]["compute"]["value"], 0.875);
    assert!((routing["savings"][1]["compute"]["value"].as_f64().unwrap() - 0.7).abs() < 1e-12);
    // Runs of the same label are identified by their directories, each of them.
    for run in ["good-4", "good-12"] {
        fixture.edit(run, |manifest| manifest["label"] = "same".into());
    }
    let labels = |words: &[&str], names: [&str; 2]| {
        let json: Value = serde_json::from_slice(&verb(words[0], &words[1..]).stdout).unwrap();
        names.map(|name| json.pointer(name).unwrap().as_str().unwrap().to_owned())
    };
    let compared = ["compare", "good-4", "good-12", "--json"];
    assert_eq!(labels(&compared, ["/0/label", "/1/label"]), ["good-4", "good-12"]);
    let routed = ["route", "good-4", "--reference", "good-12", "--json"];
    assert_eq!(labels(&routed, ["/models/0/label", "/reference"]), ["good-4", "good-12"]);
}

#[test]
fn routing_mixes_no_grades_by_default_and_names_its_basis() {
    let fixture = IpwFixture::new();
    fixture.run("good-4", &["-c", "12"]);
    fixture.run("good-12", &["-c", "12"]);
    let unmetered =
        ["ipw", "run", "--socket", "nowhere.sock", "--without-meter", "--url", &fixture.llm.url()];
    let output = Command::new(programs::wattspan())
        .args(unmetered)
        .args(["--model", "good", "--label", "cloud", "-o", "cloud", "-n", "12", "--warm-up", "0"])
        .current_dir(fixture.dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    let route = |words: &[&str]| {
        let output = fixture.command("route").arg("good-4").args(words).output().unwrap();
        (output.status.code(), output_text(&output))
    };
    let (status, printed) = route(&["--reference", "good-12"]);
    assert_eq!(status, Some(0), "{printed}");
    for part in [
        "host (all counted domains), idle power included, energy measured, simulated; 12 of 12 queries covered",
        "the meter guarantees the oracle's energy saving to",
        "95 % confidence interval over the choice of questions",
    ] {
        assert!(printed.contains(part), "{part} is not in:\n{printed}");
    }
    let (_, json) = route(&["--reference", "good-12", "--json"]);
    let routing: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&routing["scope"], &routing["idle"], &routing["grade"]),
        (&"host".into(), &"included".into(), &"measured".into())
    );
    assert_eq!(
        (&routing["asked"], &routing["queries"], &routing["assumed"]),
        (&12.into(), &12.into(), &0.into())
    );
    assert!(routing["savings"][0]["energy_error"].as_f64() > Some(0.0), "{json}");
    let (status, printed) = route(&["--reference", "cloud"]);
    assert!(
        status == Some(1) && printed.contains("grade of the energy: cloud has unknown, good-4 has"),
        "{printed}"
    );
    let (status, printed) = route(&["--reference", "cloud", "--reference-joules", "500"]);
    assert!(
        status == Some(0) && printed.contains("12 of them at an assumed energy of the reference"),
        "{printed}"
    );
    let manifest = fixture.path("good-12").join("run.json");
    let estimated = std::fs::read_to_string(&manifest).unwrap().replace("\"measured\"", "\"estimated\"");
    std::fs::write(&manifest, estimated).unwrap();
    for words in [&["--reference", "good-12"][..], &["--reference", "good-12", "--reference-joules", "500"]] {
        let (status, printed) = route(words);
        assert!(
            status == Some(1) && printed.contains("good-12 has estimated, good-4 has measured"),
            "{printed}"
        );
    }
    let (status, printed) = route(&["--reference", "good-12", "--anyway"]);
    assert!(status == Some(0) && printed.contains("good-12 has estimated, good-4 has measured"), "{printed}");
}

#[test]
fn a_judge_scores_unscored_answers_once_and_its_energy_is_separate() {
    let fixture = IpwFixture::new();
    let questions = "{\"id\":\"sky\",\"prompt\":\"What colour is the sky?\",\"answer\":\"The sky is blue\"}\n\
                     {\"id\":\"sum\",\"prompt\":\"2+2?\",\"answer\":\"4\"}\n";
    std::fs::write(fixture.path("q.jsonl"), questions).unwrap();
    let (output, rows) = fixture.run("good", &["-q", "q.jsonl"]);
    assert_ended(&output, &rows);
    // Rows are written as their accounts arrive, which may differ from the order of the questions.
    let score = |of: &str| &rows.iter().find(|row| row["id"] == of).unwrap()["score"];
    assert!(score("sky").is_null() && *score("sum") == 0.0, "{rows:?}");
    let judge = |more: &[&str]| {
        let mut command = fixture.command("score");
        command
            .arg("good")
            .args(LONG_HORIZON_ARGS)
            .args(["--url", &fixture.llm.url(), "--model", "judge"])
            .args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", output_text(&output));
        output_text(&output)
    };
    assert!(judge(&[]).contains("1 answers need a judge"));
    let printed = judge(&["--judge", "--no-stream"]);
    assert!(
        printed.contains("judged 1 answers, 1 of them now")
            && printed.contains("excluded from the run's figures"),
        "{printed}"
    );
    let rows = fixture.rows("good");
    let judged = rows.last().unwrap();
    assert_eq!(
        (&judged["id"], &judged["score"]),
        (&"sky".into(), &0.0.into()),
        "a judged row is written again"
    );
    let before = fixture.llm.requests();
    assert!(judge(&["--judge", "--no-stream"]).contains("0 of them now"));
    assert_eq!(fixture.llm.requests(), before, "the verdict was kept");
    assert!(lines(&fixture.path("good/verdicts.jsonl"))[0]["energy_uj"].as_u64() > Some(0));
}

#[test]
fn a_cut_off_answer_stays_wrong_when_it_is_scored_again() {
    let fixture = IpwFixture::new();
    let ruled = serde_json::to_string(&question::built_in()[0]).unwrap();
    let judged = r#"{"id":"sky","prompt":"What colour is the sky?","answer":"The sky is blue"}"#;
    std::fs::write(fixture.path("q.jsonl"), format!("{ruled}\n{judged}\n")).unwrap();
    let (output, mut rows) = fixture.run("good", &["-q", "q.jsonl"]);
    assert_ended(&output, &rows);
    let rows_path = fixture.path("good/rows.jsonl");
    // Both answers as if they had ended at the answer limit; the text of the first one is right.
    let mut store = |score: f64| {
        rows.iter_mut().for_each(|row| (row["finish"], row["score"]) = ("length".into(), score.into()));
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(&rows_path, lines).unwrap();
    };
    let rescore = |more: &[&str]| {
        let output = fixture.command("score").arg("good").args(more).output().unwrap();
        (output.status.code(), output_text(&output))
    };
    let url = fixture.llm.url();
    let judge = ["--judge", "--no-stream", "--url", &url, "--model", "judge", "--socket", "nowhere.sock"];
    let all_right = r#"sed -E 's/^.("id":"[^"]*").*/{\1,"score":1}/'"#;
    let before = fixture.llm.requests();
    for more in [&[][..], &judge, &["--with", all_right]] {
        store(0.0);
        let (status, printed) = rescore(more);
        assert!(status == Some(0) && printed.contains("0 scores changed"), "{more:?}: {printed}");
        assert!(!printed.contains("need a judge"), "{printed}");
        assert_eq!(fixture.rows("good").len(), 2, "{more:?}: {printed}");
        // An earlier version stored the score of the text.
        store(1.0);
        let (_, printed) = rescore(more);
        assert!(printed.contains("2 scores changed"), "{more:?}: {printed}");
        let rescored = &fixture.rows("good")[2..];
        assert!(rescored.len() == 2 && rescored.iter().all(|row| row["score"] == 0.0), "{rescored:?}");
    }
    assert_eq!(fixture.llm.requests(), before, "no judge is asked about an answer that is wrong");
}

/// Runs `wattspan ipw` where no daemon is.
fn run_without_daemon(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(programs::wattspan());
    command.args(["--socket", "/nonexistent/meter", "ipw"]).args(arguments).current_dir(dir);
    command.output().unwrap()
}

#[test]
fn a_command_scores_the_answers_and_what_it_gave_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let llm = LlmStub::start();
    let wattspan = |arguments: &[&str]| {
        let output = run_without_daemon(dir.path(), arguments);
        (output.status.success(), output_text(&output))
    };
    let url = llm.url();
    let run =
        ["run", "--without-meter", "--url", &url, "--model", "fine", "-n", "3", "--warm-up", "0", "-o", "a"];
    let (ended, text) = wattspan(&run);
    assert!(ended, "{text}");
    let scores = || {
        let mut scores = std::collections::BTreeMap::new();
        for row in lines(&dir.path().join("a/rows.jsonl")) {
            scores.insert(row["id"].as_str().unwrap().to_owned(), row["score"].as_f64());
        }
        scores.into_values().collect::<Vec<_>>()
    };
    assert_eq!(scores(), [Some(1.0); 3]);
    // Each line has a question's id first; the second is left as it is.
    let half = r#"sed -E 's/^.("id":"[^"]*-0([0-9])").*/\2 {\1,"score":0.5}/' | sed -E 's/^2 (.*)0.5/\1null/; s/^[0-9] //'"#;
    let (ended, text) = wattspan(&["score", "a", "--with", half]);
    assert!(
        ended && text.contains("2 of 3 answers scored, 1 left without a score; 2 scores changed"),
        "{text}"
    );
    assert_eq!(scores(), [Some(0.5), Some(1.0), Some(0.5)]);
    let dies =
        r#"read line; echo "$line" | sed -E 's/^.("id":"[^"]*").*/{\1,"score":0}/'; echo nonsense; exit 4"#;
    let (ended, text) = wattspan(&["score", "a", "--with", dies]);
    for part in
        ["ended with status 4", "2 answers got no reply", "line 2 of the scorer is no object", "1 of 3"]
    {
        assert!(!ended && text.contains(part), "{part}: {text}");
    }
    assert_eq!(scores(), [Some(0.0), Some(1.0), Some(0.5)]);
    let (ended, text) = wattspan(&["score", "a", "--with", "cat", "--judge"]);
    assert!(!ended && text.contains("cannot be used with"), "{text}");
}

#[test]
fn scores_of_a_command_are_replaced_only_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let llm = LlmStub::start();
    let wattspan = |arguments: &[&str]| {
        let output = run_without_daemon(dir.path(), arguments);
        (output.status.code(), output_text(&output))
    };
    let ruled = serde_json::to_string(&question::built_in()[0]).unwrap();
    let judged = r#"{"id":"sky","prompt":"What colour is the sky?","answer":"The sky is blue"}"#;
    std::fs::write(dir.path().join("q.jsonl"), format!("{ruled}\n{judged}\n")).unwrap();
    let url = llm.url();
    let mut run = vec!["run", "--without-meter", "--url", &url, "--model", "fine", "--warm-up", "0"];
    run.extend(["-q", "q.jsonl", "-o", "a"]);
    let (status, text) = wattspan(&run);
    assert_eq!(status, Some(0), "{text}");
    let rows = || lines(&dir.path().join("a/rows.jsonl"));
    let score = |of: &dyn Fn(&Value) -> bool| rows().iter().rfind(|row| of(row)).unwrap()["score"].as_f64();
    let scores = || [score(&|row| row["id"] != "sky"), score(&|row| row["id"] == "sky")];
    assert_eq!(scores(), [Some(1.0), None]);
    // The score is as before: that it is the command's is stored all the same.
    let all = |score: &str| format!(r#"sed -E 's/^.("id":"[^"]*").*/{{\1,"score":{score}}}/'"#);
    let (_, text) = wattspan(&["score", "a", "--with", &all("1")]);
    assert!(text.contains("2 of 2 answers scored, 0 left without a score; 1 scores changed"), "{text}");
    let (_, text) = wattspan(&["score", "a", "--with", &all("0.25")]);
    assert!(text.contains("2 scores changed"), "{text}");
    let before = (rows().len(), llm.requests());
    let judge = ["--judge", "--no-stream", "--url", &url, "--model", "judge"];
    for (more, replaced) in [(&[][..], 1), (&judge, 2)] {
        let (status, text) = wattspan(&[&["score", "a"], more].concat());
        let reason = format!("{replaced} answers have scores of the command \"sed");
        assert!(status == Some(1) && text.contains(&reason) && text.contains("--overwrite"), "{text}");
        assert_eq!((rows().len(), llm.requests()), before, "nothing was scored: {text}");
    }
    let (status, text) = wattspan(&["score", "a", "--overwrite"]);
    assert!(status == Some(0) && text.contains("1 scores changed"), "{text}");
    assert_eq!(scores(), [Some(1.0), Some(0.25)], "no rule scores the second answer");
    let (status, text) = wattspan(&["score", "a"]);
    assert!(status == Some(0) && text.contains("0 scores changed"), "{text}");
    let (status, text) = wattspan(&[&["score", "a", "--overwrite"], &judge[..]].concat());
    assert!(status == Some(0) && text.contains("1 scores changed"), "{text}");
    assert_eq!(scores(), [Some(1.0), Some(0.0)]);
    assert!(rows().last().unwrap()["scored_by"].is_null());
}

#[test]
fn a_truncated_or_unreachable_judge_gives_no_score_and_is_asked_again() {
    let fixture = IpwFixture::new();
    let questions =
        "{\"id\":\"sky\",\"prompt\":\"What colour is the sky?\",\"answer\":\"The sky is blue\"}\n";
    std::fs::write(fixture.path("q.jsonl"), questions).unwrap();
    let (output, rows) = fixture.run("good", &["-q", "q.jsonl"]);
    assert_ended(&output, &rows);
    let judge = |model: &str, url: &str, meter: &[&str]| {
        let mut command = fixture.command("score");
        command.args(["good", "--judge", "--no-stream", "--url", url, "--model", model]).args(meter);
        let output = command.output().unwrap();
        (output.status.code(), output_text(&output))
    };
    let (replay, none) = (["--replay", "machine.toml"], ["--socket", "nowhere.sock"]);
    let (status, printed) = judge("mumbles", &fixture.llm.url(), &replay);
    assert_eq!(status, Some(1), "{printed}");
    assert!(
        printed.contains("judged 0 answers") && printed.contains("1 verdicts could not be parsed"),
        "{printed}"
    );
    assert!(fixture.rows("good").iter().all(|row| row["score"].is_null()));
    let (status, printed) = judge("mumbles", &fixture.llm.url(), &none);
    assert_eq!(status, Some(0), "{printed}");
    assert!(
        printed.contains("judged 1 answers, 1 of them now") && printed.contains("its energy is unknown"),
        "{printed}"
    );
    assert_eq!(fixture.rows("good").last().unwrap()["score"], 0.0);
    let before = fixture.llm.requests();
    let (status, printed) = judge("mumbles", &fixture.llm.url(), &none);
    assert!(status == Some(0) && printed.contains("0 of them now"), "the last verdict counts: {printed}");
    assert_eq!(fixture.llm.requests(), before);
    let (status, printed) = judge("gone", "http://127.0.0.1:1/v1", &none);
    assert_eq!(status, Some(1), "{printed}");
    assert!(printed.contains("judged 0 answers") && printed.contains("1 requests failed"), "{printed}");
    assert!(!printed.contains("0 \u{b5}J"), "{printed}");
}

#[test]
fn without_a_meter_a_run_is_made_only_where_the_user_agrees() {
    let fixture = IpwFixture::new();
    let ask = |more: &[&str]| {
        let mut command = fixture.command("run");
        command.args([
            "--socket",
            "nowhere.sock",
            "--url",
            &fixture.llm.url(),
            "--model",
            "good",
            "-o",
            "u",
            "-n",
            "3",
        ]);
        command.args(more).output().unwrap()
    };
    let refused = ask(&[]);
    assert_eq!(refused.status.code(), Some(4), "{}", output_text(&refused));
    assert!(!fixture.path("u").exists());
    let output = ask(&["--without-meter"]);
    assert!(output.status.success(), "{}", output_text(&output));
    assert_eq!(fixture.rows("u").len(), 3);
    assert!(fixture.rows("u").iter().all(|row| row["energy"].is_null() && row["score"] == 1.0));
    assert!(output_text(&output).contains("0 of 3 queries covered"), "{}", output_text(&output));
}

#[test]
fn texts_of_servers_and_run_files_cannot_move_the_cursor() {
    let fixture = IpwFixture::new();
    let evil = fixture.llm.url().replace("/v1", "/evil/v1");
    for (run, count) in [("one", "1"), ("two", "2")] {
        let mut command = fixture.command("run");
        command.args(["--replay", "machine.toml", "--warm-up", "0", "--url", &evil, "-o", run, "-n", count]);
        let output = command.output().unwrap();
        assert_ended(&output, &fixture.rows(run));
        assert!(output_text(&output).contains("querying evil\\u{1b}[2J at"), "{}", output_text(&output));
        assert!(!output_text(&output).contains('\u{1b}'), "{:?}", output_text(&output));
        let manifest: Value =
            serde_json::from_slice(&std::fs::read(fixture.path(run).join("run.json")).unwrap()).unwrap();
        assert_eq!(manifest["model"], llm_stub::HOSTILE_MODEL_NAME, "what is kept is the server's own word");
    }
    // Runs with the same label, here the model, are named by their directories, so the second one gets another hostile label.
    let manifest = fixture.path("two").join("run.json");
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    changed["label"] = format!("{} 2", llm_stub::HOSTILE_MODEL_NAME).into();
    std::fs::write(&manifest, changed.to_string()).unwrap();
    for words in [
        &["compare", "one", "two"][..],
        &["compare", "one", "two", "--anyway"],
        &["route", "one", "--reference", "two"],
    ] {
        let output = fixture.command(words[0]).args(&words[1..]).output().unwrap();
        assert!(output_text(&output).contains("evil"), "{words:?}: {}", output_text(&output));
        assert!(!output_text(&output).contains('\u{1b}'), "{words:?}: {:?}", output_text(&output));
    }
}

#[test]
fn an_excessive_timeout_is_refused() {
    let fixture = IpwFixture::new();
    for seconds in ["0", "86401", "18446744073709551615"] {
        let (output, _) = fixture.run("good", &["--timeout", seconds]);
        assert_eq!(output.status.code(), Some(2), "{seconds}: {}", output_text(&output));
    }
    assert!(!fixture.path("good").exists());
}

#[test]
fn a_run_goes_on_with_the_retries_and_the_warm_up_of_its_beginning() {
    let fixture = IpwFixture::new();
    fixture.run("empty", &["-n", "2", "--retries", "0", "--warm-up", "1"]);
    assert_eq!(fixture.llm.requests(), 3);
    let again =
        fixture.command("run").args(["--replay", "machine.toml", "--resume", "empty"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", output_text(&again));
    assert_eq!(fixture.llm.requests(), 6, "{}", output_text(&again));
}

/// A figure that must exist, with an interval around it.
fn figure(report: &Value, name: &str) -> f64 {
    let number =
        |of: &Value| of.as_f64().filter(|it| it.is_finite()).unwrap_or_else(|| panic!("{name}: {report}"));
    let of = &report["all"][name];
    let (value, low, high) =
        (number(&of["value"]), number(&of["interval"]["low"]), number(&of["interval"]["high"]));
    assert!(low <= value && value <= high && value > 0.0, "{name}: {of}");
    value
}

#[test]
fn a_domain_that_never_lives_is_no_part_of_a_run() {
    let fixture = IpwFixture::on(STUCK);
    let (output, rows) = fixture.run("good-20", &[]);
    let printed = output_text(&output);
    assert!(output.status.success(), "{printed}");
    assert!(rows.iter().all(|row| row["energy"]["share_uj"].as_u64() > Some(0)), "{rows:?}");
    assert!(printed.contains("12 of 12 queries covered"), "{printed}");
    for (name, start) in [("IPW ", "  IPW "), ("psys", "wattspan: psys is not live")] {
        assert!(printed.lines().any(|line| line.starts_with(start)), "{name}: {printed}");
    }
    let report = fixture.report("good-20", &[]);
    assert_eq!((&report["all"]["covered"], &report["all"]["asked"]), (&12.into(), &12.into()));
    assert!((figure(&report, "power_w") - 80.0).abs() < 0.8, "{report}");
    assert!((figure(&report, "per_watt") * 80.0 - 1.0).abs() < 0.01, "{report}");
    let names: Vec<_> = report["run"]["domains"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["package-0"]);
    // The memory was never live either, so this scope is the package.
    assert!((figure(&fixture.report("good-20", &["--scope", "compute"]), "power_w") - 80.0).abs() < 0.8);
}

#[test]
fn a_run_whose_list_holds_a_stuck_domain_goes_on() {
    let fixture = IpwFixture::on(STUCK);
    fixture.run("good-20", &[]);
    let dead = |name: &str, kind: &str, parent: Option<&str>| {
        serde_json::json!({
            "name": name, "kind": kind, "source": "replay", "parent": parent, "counted": false, "grade": "measured",
        })
    };
    fixture.edit("good-20", |manifest| {
        manifest.as_object_mut().unwrap().remove("not_live");
        let domains = manifest["domains"].as_array_mut().unwrap();
        domains.insert(0, dead("psys", "psys", None));
        domains.push(dead("dram-0", "dram", Some("psys")));
    });
    // Earlier versions refused every row of such a run.
    let refused = |mut row: Value| {
        row.as_object_mut().unwrap().remove("energy");
        row["unmetered"] = "the meter lacks domains that it had when the run began".into();
        row["error"] = "asked again".into();
        row["delivered"] = false.into();
        row.to_string() + "\n"
    };
    let rows: String = fixture.rows("good-20").into_iter().map(refused).collect();
    std::fs::write(fixture.path("good-20").join("rows.jsonl"), rows).unwrap();
    let output =
        fixture.command("run").args(LONG_HORIZON_ARGS).args(["--resume", "good-20"]).output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(output_text(&output).contains("12 of 12 queries covered"), "{}", output_text(&output));
    let report = fixture.report("good-20", &[]);
    assert!((figure(&report, "per_watt") * 80.0 - 1.0).abs() < 0.01, "{report}");
}

#[test]
fn a_domain_that_stops_during_a_run_is_reported_once_and_makes_no_figure_smaller() {
    let fixture = IpwFixture::on(DEPARTING);
    let (output, rows) = fixture.run("good-700", &[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    let notices = |text: &str| text.matches("gpu-0").count();
    assert_eq!(notices(&errors), 1, "{}", output_text(&output));
    let lost = rows.iter().filter(|row| row["energy"]["share_uj"].is_null()).count();
    assert!((1..12).contains(&lost), "{rows:?}");
    let report = fixture.report("good-700", &[]);
    assert_eq!(report["all"]["covered"], 12 - lost);
    assert_eq!((&report["all"]["partial"], &report["all"]["per_watt"]), (&true.into(), &Value::Null));
    assert!((figure(&report, "power_w") - 280.0).abs() < 3.0, "a total without the card is none: {report}");
    assert_eq!(report["domain_gaps"]["gpu-0"], lost);
    let output = fixture.command("report").args(["good-700", "--html", "page.html"]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(notices(&printed), 1, "{printed}");
    let page = std::fs::read_to_string(fixture.path("page.html")).unwrap();
    let wanted = format!("gpu-0: no energy for {lost} of 12 queries");
    assert!(printed.contains(&wanted) && page.contains(&wanted), "{printed}");
}

#[test]
fn without_energy_the_reason_comes_first_and_the_status_shows_it() {
    let fixture = IpwFixture::new();
    fixture.run("good-4", &[]);
    let unmetered = |mut row: Value| {
        row.as_object_mut().unwrap().remove("energy");
        row["unmetered"] = "the account did not settle in time".into();
        row.to_string() + "\n"
    };
    let rows: String = fixture.rows("good-4").into_iter().map(unmetered).collect();
    std::fs::write(fixture.path("good-4").join("rows.jsonl"), rows).unwrap();
    let run = ["run", "--replay", "machine.toml", "--resume", "good-4"];
    let report = ["report", "good-4", "--html", "page.html"];
    for words in [&run[..], &report] {
        let output = fixture.command(words[0]).args(&words[1..]).output().unwrap();
        let printed = output_text(&output);
        assert_eq!(output.status.code(), Some(3), "{printed}");
        let first: Vec<&str> = printed.lines().filter(|line| !line.is_empty()).take(3).collect();
        assert!(
            first[1].contains("no energy was measured: 12 \u{d7} the account did not settle in time"),
            "{printed}"
        );
        assert!(first[2].contains("accuracy 100.0 % [71.80 .. 100.0] over 12 scored answers"), "{printed}");
        assert!(!printed.contains(" -0"), "{printed}");
    }
    let page = std::fs::read_to_string(fixture.path("page.html")).unwrap();
    let body = page.split_once("<h1>").unwrap().1;
    let reason =
        body.find("No energy was measured: 12 \u{d7} the account did not settle").expect("the reason");
    assert!(reason < body.find("class=\"tiles\"").unwrap(), "the reason comes before all figures");
    assert!(body.contains("<b>100.0 %</b><small>71.80 .. 100.0</small>"), "{body}");
    assert!(!body.contains(" -0") && !body.contains(">-0"), "{body}");
    let json = fixture.report("good-4", &[]);
    assert_eq!(json["sum"]["energy_j"].as_f64().map(f64::to_bits), Some(0), "{json}");
    assert!(json["no_energy"].as_str().is_some_and(|reason| reason.contains("settle in time")), "{json}");
}

#[test]
fn intelligence_per_watt_does_not_depend_on_how_many_queries_are_open() {
    let fixture = IpwFixture::on(HUNDRED_WATTS);
    for at_once in ["1", "4", "16"] {
        let words = ["-c", at_once, "-n", "32", "--label", at_once];
        let (output, _) = fixture.run("good-60", &words);
        assert!(output.status.success(), "{}", output_text(&output));
        let report = fixture.report("good-60", &[]);
        assert!((figure(&report, "per_watt") * 100.0 - 1.0).abs() < 0.01, "{at_once} at once: {report}");
        let power_w = figure(&report, "power_w");
        let error_w = report["all"]["power_error_w"].as_f64().unwrap();
        assert!((power_w - 100.0).abs() <= error_w && error_w > 0.0, "{at_once}: {power_w} \u{b1} {error_w}");
        let attributed_w = figure(&report, "attributed_power_w");
        assert_eq!(report["all"]["concurrency"].to_string(), at_once);
        let steady = &report["steady_state"];
        assert_eq!(steady.is_null(), at_once == "1", "{report}");
        if at_once == "4" {
            let of = |name: &str| steady["figures"][name]["value"].as_f64().unwrap();
            assert!((of("per_watt") * 100.0 - 1.0).abs() < 0.01, "{steady}");
            assert!(
                (1..=29).contains(&steady["figures"]["asked"].as_u64().unwrap()),
                "ramp and drain: {steady}"
            );
            assert!(of("energy_j") < figure(&report, "energy_j") * 1.5, "{report}");
        }
        match at_once {
            "1" => assert!((attributed_w - power_w).abs() < 1.0, "{attributed_w} of {power_w}"),
            _ => assert!(attributed_w < 0.7 * power_w, "{attributed_w} of {power_w}"),
        }
        std::fs::rename(fixture.path("good-60"), fixture.path(at_once)).unwrap();
    }
    // The figures of different concurrencies are compared only where the user says so.
    let refused = fixture.command("compare").args(["1", "4"]).output().unwrap();
    let message = output_text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("concurrency: 1 has one query at a time, 4 has 4 queries at once"), "{message}");
    let output = fixture.command("compare").args(["1", "4", "16", "--json", "--anyway"]).output().unwrap();
    let columns: Value = serde_json::from_slice(&output.stdout).unwrap();
    for column in &columns.as_array().unwrap()[1..] {
        let ratio = column["paired"]["per_watt_ratio"]["value"].as_f64().unwrap();
        assert!((ratio - 1.0).abs() < 0.01, "{column}");
    }
    let flat = fixture.command("export").args(["16", "--harness", "harness"]).output().unwrap();
    assert!(flat.status.success(), "{}", output_text(&flat));
    let exported = std::fs::read_to_string(fixture.path("harness/data.jsonl")).unwrap();
    let import = fixture.command("import").args(["harness", "-o", "again"]).output().unwrap();
    assert!(import.status.success(), "{}", output_text(&import));
    assert!((figure(&fixture.report("again", &[]), "power_w") - 100.0).abs() < 1.0, "{exported}");
}

/// The error of the energies of a run, and the energies, in joules.
fn energies_j(rows: &[Value]) -> Vec<(f64, f64)> {
    let joules =
        |row: &Value, name: &str| row["energy"][name].as_f64().unwrap_or_else(|| panic!("{row}")) / 1e6;
    rows.iter().map(|row| (joules(row, "share_uj"), joules(row, "error_uj"))).collect()
}

#[test]
fn a_server_that_drops_each_first_answer_pays_for_it() {
    // Each first answer breaks off after ten times the time of the second one, at a steady 100 W.
    let fixture = IpwFixture::on(HUNDRED_WATTS);
    let (output, rows) = fixture.run("breaksonce-20", &["--retries", "1"]);
    assert!(output.status.success(), "{}", output_text(&output));
    assert_eq!(fixture.llm.requests(), 24);
    assert!(rows.iter().all(|row| row["score"] == 1.0 && row["retries"] == 1), "{rows:?}");
    for (row, (share_j, error_j)) in rows.iter().zip(energies_j(&rows)) {
        let both_s = row["energy"]["span_ns"].as_f64().unwrap() / 1e9;
        // The first try takes at least 200 ms.
        assert!(both_s > 0.2 + row["duration_ns"].as_f64().unwrap() / 1e9 * 0.9, "{row}");
        assert!(
            (share_j - 100.0 * both_s).abs() <= error_j,
            "{share_j} \u{b1} {error_j} J in {both_s} s: {row}"
        );
    }
    let report = fixture.report("breaksonce-20", &[]);
    let all_tries_j: f64 = energies_j(&rows).iter().map(|(share_j, _)| share_j).sum();
    assert!((figure(&report, "per_joule") * all_tries_j / 12.0 - 1.0).abs() < 1e-9, "{report}");
    assert!(figure(&report, "per_joule") < 1.0 / 20.0, "a first try alone takes 20 J");
    assert!((figure(&report, "power_w") - 100.0).abs() < 1.0, "{report}");
}

#[test]
fn a_resumed_run_pays_for_the_tries_before() {
    let fixture = IpwFixture::on(HUNDRED_WATTS);
    let (output, rows) = fixture.run("breaksonce-20", &["--retries", "0"]);
    assert_eq!(output.status.code(), Some(1), "no question was answered: {}", output_text(&output));
    let report = fixture.report("breaksonce-20", &[]);
    assert_eq!((&report["all"]["covered"], &report["all"]["accuracy"]["value"]), (&12.into(), &0.0.into()));
    let before: std::collections::HashMap<String, f64> = rows
        .iter()
        .zip(energies_j(&rows))
        .map(|(row, (share_j, _))| (row["id"].to_string(), share_j))
        .collect();
    let resumed = fixture.command("run").args(LONG_HORIZON_ARGS).args(["--resume", "breaksonce-20"]).output();
    let resumed = resumed.unwrap();
    assert!(resumed.status.success(), "{}", output_text(&resumed));
    let rows = fixture.rows("breaksonce-20").split_off(12);
    for (row, (share_j, _)) in rows.iter().zip(energies_j(&rows)) {
        assert!(share_j > before[&row["id"].to_string()], "{row}");
        assert_eq!((&row["session"], &row["score"]), (&1.into(), &1.0.into()), "{row}");
    }
    let all_tries_j: f64 = energies_j(&rows).iter().map(|(share_j, _)| share_j).sum();
    let report = fixture.report("breaksonce-20", &[]);
    assert!((figure(&report, "per_joule") * all_tries_j / 12.0 - 1.0).abs() < 1e-9, "{report}");
}

#[test]
fn a_server_that_is_gone_is_not_asked_and_changes_no_query_that_was_delivered() {
    let fixture = IpwFixture::new();
    let (output, _) = fixture.run("breaks-20", &["--retries", "0", "-n", "6"]);
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    let gone = ["--url", "http://127.0.0.1:1/v1"];
    let resume = |run: &str| {
        let command = &mut fixture.command("run");
        command.args(LONG_HORIZON_ARGS).args(["--resume", run]).args(gone).output().unwrap()
    };
    assert_eq!(resume("breaks-20").status.code(), Some(1));
    let (before, after) = (fixture.rows("breaks-20"), fixture.rows("breaks-20").split_off(6));
    assert_eq!(after.len(), 6);
    for row in &after {
        assert!(row["error"].as_str().unwrap().starts_with("no connection: "), "{row}");
        assert_eq!(
            (&row["delivered"], &row["score"]),
            (&true.into(), &0.0.into()),
            "an earlier try was: {row}"
        );
        let same = before.iter().find(|it| it["id"] == row["id"]).unwrap();
        assert_eq!(row["energy"], same["energy"], "what was not delivered has no energy");
    }
    // The same of queries that were never delivered.
    let undelivered: Vec<String> = before[..6]
        .iter()
        .map(|row| {
            let mut row = row.clone();
            (row["delivered"], row["score"]) = (false.into(), Value::Null);
            row.to_string()
        })
        .collect();
    std::fs::write(fixture.path("breaks-20").join("rows.jsonl"), undelivered.join("\n")).unwrap();
    assert_eq!(resume("breaks-20").status.code(), Some(1));
    for row in fixture.rows("breaks-20").split_off(6) {
        assert_eq!((&row["delivered"], &row["score"]), (&false.into(), &Value::Null), "{row}");
    }
    let all = fixture.report("breaks-20", &[])["all"].take();
    assert_eq!((&all["asked"], &all["delivered"], &all["covered"]), (&6.into(), &0.into(), &0.into()));
}

#[test]
fn figures_over_too_few_queries_are_withheld_or_marked_everywhere() {
    let fixture = IpwFixture::new();
    for model in ["good-4", "good-8"] {
        fixture.run(model, &["-c", "4"]);
    }
    let mut rows = fixture.rows("good-4");
    (rows[0]["error"], rows[0]["delivered"]) = ("no connection: refused".into(), false.into());
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(fixture.path("good-4").join("rows.jsonl"), lines.join("\n")).unwrap();
    let shown = |words: &[&str]| {
        let output = fixture.command(words[0]).args(&words[1..]).output().unwrap();
        (output.status.code(), output_text(&output))
    };
    let withheld = "they would be over 11 of 12 queries, 91.6 %, less than the 95 %";
    let partial = "PARTIAL: IPW and IPJ are over 11 of 12 queries, 91.6 %";
    for (more, notice, other) in [(&[][..], withheld, "PARTIAL"), (&["--allow-partial"], partial, withheld)] {
        let with = |words: &[&'static str]| [words, more].concat();
        let (status, table) =
            shown(&with(&["report", "good-4", "--html", "page.html", "--csv", "figures.csv"]));
        let page = std::fs::read_to_string(fixture.path("page.html")).unwrap();
        assert_eq!(status, Some(0), "{table}");
        for text in [&table, &page] {
            assert!(text.contains(notice) && !text.contains(other), "{text}");
            assert!(text.contains("all (partial)"), "{text}");
        }
        let all = fixture.report("good-4", more)["all"].take();
        assert_eq!((&all["partial"], &all["coverage"]), (&true.into(), &(11.0 / 12.0).into()));
        assert_eq!(
            (all["per_watt"].is_null(), all["per_joule"].is_null()),
            (more.is_empty(), more.is_empty())
        );
        let csv = std::fs::read_to_string(fixture.path("figures.csv")).unwrap();
        let cells: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
        let cell = |name: &str| cells[1][cells[0].iter().position(|it| *it == name).unwrap()];
        assert_eq!((cell("partial"), cell("ipw_per_w").is_empty()), ("true", more.is_empty()), "{csv}");
        let (status, compared) = shown(&with(&["compare", "good-4", "good-8"]));
        // The first run may be on the frontier, which a star shows.
        let is_marked = |line: &str| line.starts_with("  good-4") && line.contains("(partial)");
        assert!(status == Some(0) && compared.lines().any(is_marked), "{compared}");
        assert!(compared.contains("good-8 (partial)"), "the pairs are partial too: {compared}");
        let (_, json) = shown(&with(&["compare", "good-4", "good-8", "--json"]));
        let paired = serde_json::from_str::<Value>(&json).unwrap()[1]["paired"].take();
        assert_eq!((&paired["partial"], paired["per_watt_ratio"].is_null()), (&true.into(), more.is_empty()));
        let (status, routed) = shown(&with(&["route", "good-4", "--reference", "good-8"]));
        match more.is_empty() {
            true => assert!(status == Some(1) && routed.contains("only 11 of 12 queries"), "{routed}"),
            false => assert!(status == Some(0) && routed.contains("PARTIAL: over 11 questions"), "{routed}"),
        }
    }
}

#[test]
fn figures_are_legible_and_their_uncertainties_are_apart_and_together() {
    let fixture = IpwFixture::on(HUNDRED_WATTS);
    let (output, _) = fixture.run("good-20", &[]);
    let table = output_text(&output);
    for part in [" 1/kW [", "IPW 1/kW", "AT ONCE", "UNCERTAINTY", "METER ERROR", "energy, J", "IPW, 1/kW"] {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
    let headline = table.split("\n  IPW ").nth(1).and_then(|rest| rest.split(' ').next());
    let per_kilowatt: f64 = headline.unwrap().parse().unwrap();
    assert!((per_kilowatt / 10.0 - 1.0).abs() < 0.01, "{table}");
    let efficiencies = || table.lines().filter(|line| line.trim_start().starts_with("IP"));
    assert!(efficiencies().count() > 4 && !efficiencies().any(|line| line.contains(" 0.")), "{table}");
    let page = fixture.command("report").args(["good-20", "--html", "-", "--csv", "f.csv"]).output().unwrap();
    let page = output_text(&page);
    for part in
        ["<th>IPW, 1&#x2f;kW", "accuracy &#x2f; power, 1&#x2f;kW", "<h2>Uncertainty</h2>", "<th>at once<th>"]
    {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    let all = fixture.report("good-20", &[])["all"].take();
    let number = |of: &Value| of.as_f64().unwrap_or_else(|| panic!("{all}"));
    for (name, error, combined) in [
        ("energy_j", "energy_error_j", "energy_combined_j"),
        ("power_w", "power_error_w", "power_combined_w"),
    ] {
        let (interval, error, both) = (&all[name]["interval"], number(&all[error]), &all[combined]);
        assert!(number(&both["low"]) <= number(&interval["low"]) - error * 0.999_999, "{all}");
        assert!(number(&both["high"]) >= number(&interval["high"]) + error * 0.999_999, "{all}");
    }
}
