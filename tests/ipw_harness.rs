//! Results of the public harness: read as a run, and written from one.
//!
//! `tests/fixtures/ipw/harness` is made up, in the harness's schema; `harness.py` beside it wrote it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use wattspan::domain::{DomainKind, Grade};
use wattspan::ipw::harness::export::RunExport;
use wattspan::ipw::harness::findings::ImportFindings;
use wattspan::ipw::harness::flat_row::COLUMNS;
use wattspan::ipw::harness::output::write_json_lines;
use wattspan::ipw::harness::{import::import, results_reader};
use wattspan::ipw::metrics::{MetricOptions, compute_metrics};
use wattspan::ipw::question;
use wattspan::ipw::row::{DomainEnergy, QueryEnergy, QueryRow, ReplyText};
use wattspan::ipw::run_dir::{FORMAT_VERSION, Manifest, RunDir, for_each_row};
use wattspan::ipw::scope::{IdlePolicy, RunDomain, Scope};
use wattspan::ipw::table::RunTable;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ipw/harness")
}

fn imported(from: &Path, out: &Path) -> (ImportFindings, Vec<QueryRow>) {
    let findings = import(from, results_reader::read_results(from).unwrap(), None, None, out).unwrap();
    (findings, rows(out))
}

fn rows(run: &Path) -> Vec<QueryRow> {
    let mut rows = Vec::new();
    for_each_row(&run.join("rows.jsonl"), |row| rows.push(row)).unwrap();
    rows
}

fn wattspan(arguments: &[&str], at: &Path) -> Output {
    let program = env!("CARGO_BIN_EXE_wattspan");
    Command::new(program).arg("ipw").args(arguments).current_dir(at).env("COLUMNS", "200").output().unwrap()
}

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn is_what_the_fixture_holds(findings: &ImportFindings, rows: &[QueryRow]) {
    let counts = [
        ("records", findings.records, 9),
        ("broken", findings.broken, 0),
        ("scored", findings.scored, 7),
        ("right", findings.right, 6),
        ("for a judge", findings.for_judge, 1),
        ("unanswered", findings.unanswered, 1),
        ("energy absent", findings.energy_absent, 1),
        ("energy zero", findings.energy_zero, 1),
        ("energy absurd", findings.energy_absurd, 1),
        ("metered", findings.metered, 6),
        ("total copied", findings.total_copied, 8),
        ("power disagrees", findings.power_disagrees, 1),
        ("longer than the samples", findings.longer_than_samples, 1),
        ("first token at zero", findings.first_token_zero, 1),
        ("tokens zero", findings.tokens_zero, 2),
    ];
    for (what, found, right) in counts {
        assert_eq!(found, right, "{what}");
    }
    let share = |at: usize| rows[at].energy.as_ref().and_then(|energy| energy.share_uj);
    assert_eq!(share(0), Some(12_500_000));
    assert_eq!(
        [share(2), share(3), share(4)],
        [None; 3],
        "0 J, nothing, and a counter set back are no energies"
    );
    assert_eq!((rows[5].first_token_ns, rows[5].tokens_in, rows[5].tokens_out), (None, None, None));
    assert_eq!((rows[6].score, rows[6].error.as_deref()), (None, None));
    assert_eq!((rows[7].score, rows[7].error.as_deref()), (None, Some("the answer is empty")));
    assert_eq!((rows[0].score, rows[1].score, rows[8].score), (Some(1.0), Some(0.0), Some(1.0)));
    let energy = rows[0].energy.as_ref().unwrap();
    assert_eq!((energy.error_uj, energy.idle_uj, energy.grade), (None, None, Some(Grade::Measured)));
    assert_eq!(rows[1].began_ns, 2_000_000_000, "one after the other");
}

#[test]
fn harness_results_import_as_a_run_with_a_list_of_missing_data() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let (findings, rows) = imported(&fixture().join("data.jsonl"), &out);
    is_what_the_fixture_holds(&findings, &rows);
    let table = RunTable::read(&out).unwrap();
    assert_eq!((table.manifest.model.as_str(), table.manifest.count), ("tiny-1b", 9));
    assert_eq!(table.manifest.questions, "Nine made-up questions");
    let terms = MetricOptions { scope: Scope::Accelerator, idle: IdlePolicy::Included, seed: 0 };
    let all = compute_metrics(&table, None, &terms);
    // Right, wrong, right, right: 12.5, 7.5, 8 and 400 J.
    assert_eq!((all.asked, all.answered, all.scored, all.covered), (9, 8, 7, 4));
    assert!((all.accuracy.unwrap().value - 0.75).abs() < 1e-12);
    assert!((all.energy_j.unwrap().value - 107.0).abs() < 1e-9);
    assert_eq!((all.energy_error_j, all.grade), (None, Some(Grade::Measured)));
    let bare = compute_metrics(&table, None, &MetricOptions { idle: IdlePolicy::Excluded, ..terms });
    assert_eq!(bare.covered, 0, "the harness knows no idle power");
}

#[test]
fn import_says_what_was_wrong_and_its_run_can_be_reported_scored_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let from = fixture().join("data.jsonl");
    let output = wattspan(&["import", from.to_str().unwrap(), "-o", "old"], dir.path());
    let printed = output_text(&output);
    assert!(output.status.success(), "{printed}");
    for part in [
        "9 queries of tiny-1b",
        "6 right of 7",
        "1 answers need a judge",
        "1 absent, 1 at 0 J, 1 impossible",
        "no guaranteed error and no idle part",
        "NVML's energy counter",
        "repeats per_query_joules in 8 of 9",
        "1 of 9 stand at 0.0 s",
    ] {
        assert!(printed.contains(part), "{part} is not in:\n{printed}");
    }
    let output = wattspan(&["report", "old", "--html", "page.html"], dir.path());
    let printed = output_text(&output);
    assert!(output.status.success() && printed.contains("4 of 9 queries covered"), "{printed}");
    assert!(printed.contains("no guaranteed error"), "{printed}");
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains("missing or wrong") && page.contains("at 0 J"));
    assert!(output_text(&wattspan(&["score", "old"], dir.path())).contains("0 scores changed"));
    let again = wattspan(&["import", from.to_str().unwrap(), "-o", "old"], dir.path());
    assert!(
        !again.status.success() && output_text(&again).contains("holds a run already"),
        "{}",
        output_text(&again)
    );
}

#[test]
fn a_directory_of_other_files_or_of_several_models_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.jsonl"), "{\"a\": 1}\ngarbage\n").unwrap();
    let reason = results_reader::read_results(dir.path()).unwrap_err().to_string();
    assert!(reason.contains("holds no record"), "{reason}");
    assert!(results_reader::read_results(&dir.path().join("none")).is_err());
    let two = "{\"problem\":\"p\",\"answer\":\"A\",\"model_answers\":{\"a\":\"A\",\"b\":\"B\"},\"model_metrics\":null}\n";
    std::fs::write(dir.path().join("x.jsonl"), format!("{two}\u{0}\n[1]\n")).unwrap();
    let found = || results_reader::read_results(dir.path()).unwrap();
    assert_eq!(found().invalid_records, 2);
    let out = dir.path().join("run");
    let reason = import(dir.path(), found(), None, None, &out).unwrap_err().to_string();
    assert!(reason.contains("--model: a, b"), "{reason}");
    let reason = import(dir.path(), found(), Some("c"), None, &out).unwrap_err().to_string();
    assert!(reason.contains("no answers of c"), "{reason}");
    assert!(!out.exists());
    let findings = import(dir.path(), found(), Some("b"), None, &out).unwrap();
    assert_eq!((findings.records, findings.right, findings.energy_absent), (1, 0, 1));
}

#[test]
fn a_right_answer_that_no_rule_can_compare_is_left_to_a_judge_and_the_run_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let record = |answer: &str, format: &str| {
        format!(
            "{{\"problem\":\"p\",\"answer\":\"{answer}\",\"model_answers\":{{\"a\":\"Answer: 5\"}},\"model_metrics\":null,\
             \"dataset_metadata\":{{\"wattspan\":{{\"format\":\"{format}\"}}}}}}\n"
        )
    };
    let lines = record("about five", "numeric") + &record("$5", "numeric") + &record("Berlin", "letter");
    std::fs::write(dir.path().join("x.jsonl"), lines).unwrap();
    let out = dir.path().join("run");
    let (findings, rows) = imported(dir.path(), &out);
    assert_eq!((findings.for_judge, findings.scored, findings.right), (2, 1, 1));
    assert_eq!(rows[1].score, Some(1.0));
    let (_, manifest, questions) = RunDir::resume(&out).unwrap();
    assert_eq!(question::fingerprint(&questions), manifest.fingerprint);
}

/// A run of our own with everything that a row may have.
fn run_of_ours(at: &Path) -> Vec<QueryRow> {
    let questions = question::built_in();
    let domains = vec![RunDomain {
        name: "gpu-0".into(),
        kind: DomainKind::Gpu,
        source: "replay".into(),
        device: Some("Card".into()),
        parent: None,
        counted: true,
        grade: Grade::Measured,
        update_interval_ns: None,
    }];
    let manifest = Manifest {
        version: FORMAT_VERSION,
        label: "ours".into(),
        model: "model \u{e9}/1".into(),
        fingerprint: question::fingerprint(&questions),
        count: 50,
        repeats: 2,
        domains,
        ..Manifest::default()
    };
    let mut run = RunDir::create(at, &manifest, &questions).unwrap();
    let mut rows = Vec::new();
    for (at, question) in questions.iter().enumerate().flat_map(|it| [it, it]).take(40) {
        let number = rows.len() as u64;
        let part = DomainEnergy {
            share_uj: Some(2_000_001 + number * 7),
            error_uj: Some(1_000 + number),
            idle_uj: (!number.is_multiple_of(3)).then_some(500),
            window_uj: Some(4_000_003 + number * 7),
        };
        let energy = QueryEnergy {
            share_uj: part.share_uj,
            error_uj: part.error_uj,
            idle_uj: part.idle_uj,
            window_uj: part.window_uj,
            grade: Some(Grade::Measured),
            span_ns: 1_000_000_007 + number,
            domains: vec![part],
            ..QueryEnergy::default()
        };
        let failed = number % 10 == 9;
        let row = QueryRow {
            id: question.id.clone(),
            repeat: (number % 2) as u32,
            subject: question.subject.clone(),
            error: failed.then(|| "refused, \"twice\"\n".into()),
            score: (!failed).then_some((at % 2) as f64),
            began_ns: 5_000 + number,
            duration_ns: 1_000_000_007 + number,
            first_token_ns: (!number.is_multiple_of(4)).then_some(200_000_003),
            tokens_in: Some(12),
            tokens_out: (!number.is_multiple_of(5)).then_some(34),
            energy: (!number.is_multiple_of(7)).then_some(energy),
            ..QueryRow::default()
        };
        let reply = if failed { String::new() } else { format!("Answer: {number} \u{1f50b}") };
        run.append_row(&row, &ReplyText { id: row.id.clone(), repeat: row.repeat, reply, settled: None })
            .unwrap();
        rows.push(row);
    }
    rows
}

#[test]
fn a_run_comes_back_from_the_harnesss_schema_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, harness, back) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    let before = run_of_ours(&ours);
    let exported = RunExport::read(&ours).unwrap();
    exported.write_harness_dir(&harness, Scope::Host).unwrap();
    let (findings, after) = imported(&harness, &back);
    assert_eq!((findings.records, findings.broken, findings.with_beginning), (40, 0, 40));
    // The copy's vendor is not one of the harness's: the sum is known, and no domain of it.
    let strip = |row: &QueryRow| QueryRow {
        energy: row.energy.clone().map(|energy| QueryEnergy { domains: Vec::new(), ..energy }),
        ..row.clone()
    };
    assert_eq!(after, before.iter().map(strip).collect::<Vec<_>>());
    let refused = exported.write_harness_dir(&harness, Scope::Host).unwrap_err().to_string();
    assert!(refused.contains("is not empty"), "{refused}");
}

#[test]
fn a_flat_row_has_every_column_and_null_for_what_is_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let before = run_of_ours(&dir.path().join("run"));
    let file = dir.path().join("flat.jsonl");
    let count =
        write_json_lines(&file, RunExport::read(&dir.path().join("run")).unwrap().into_flat_rows()).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let flat: Vec<BTreeMap<String, Value>> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((count, flat.len()), (40, 40));
    for (row, flat) in before.iter().zip(&flat) {
        assert!(COLUMNS.iter().all(|(name, _)| flat.contains_key(*name)) && flat.len() == COLUMNS.len());
        let share = row.energy.as_ref().and_then(|energy| energy.share_uj);
        assert_eq!(flat["share_uj"].as_u64(), share);
        assert_eq!(flat["share_uj"].is_null(), share.is_none());
        assert_eq!(flat["error"].as_str(), row.error.as_deref());
        assert!(flat["prompt"].as_str().is_some_and(|prompt| !prompt.is_empty()));
    }
    assert!(!dir.path().join("flat.jsonl.part").exists());
}

#[test]
fn export_needs_a_form_and_says_where_parquet_is_to_be_had() {
    let dir = tempfile::tempdir().unwrap();
    run_of_ours(&dir.path().join("run"));
    let none = wattspan(&["export", "run"], dir.path());
    assert!(!none.status.success() && output_text(&none).contains("--harness"), "{}", output_text(&none));
    let both = wattspan(&["export", "run", "--jsonl", "-"], dir.path());
    assert_eq!(both.stdout.split(|byte| *byte == b'\n').count(), 41, "{}", output_text(&both));
    let parquet = wattspan(&["export", "run", "--parquet", "x.parquet"], dir.path());
    if cfg!(feature = "parquet") {
        assert!(parquet.status.success(), "{}", output_text(&parquet));
    } else {
        assert!(!parquet.status.success() && !dir.path().join("x.parquet").exists());
        assert!(output_text(&parquet).contains("--features parquet"), "{}", output_text(&parquet));
        std::fs::copy(fixture().join("data-00000-of-00001.arrow"), dir.path().join("data-x.arrow")).unwrap();
        let arrow = wattspan(&["import", "data-x.arrow", "-o", "old"], dir.path());
        assert!(output_text(&arrow).contains("load_from_disk"), "{}", output_text(&arrow));
    }
}

#[cfg(feature = "parquet")]
mod columnar {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use wattspan::ipw::harness::columnar::{for_each_value, write_parquet};

    use super::*;

    #[test]
    fn the_harnesss_own_arrow_files_read_as_their_json_does() {
        let dir = tempfile::tempdir().unwrap();
        let (findings, rows) = imported(&fixture(), &dir.path().join("arrow"));
        is_what_the_fixture_holds(&findings, &rows);
        let (_, from_json) = imported(&fixture().join("data.jsonl"), &dir.path().join("json"));
        assert_eq!(rows, from_json);
    }

    #[test]
    fn garbage_and_a_cut_file_are_errors_and_no_panics() {
        let dir = tempfile::tempdir().unwrap();
        let whole = std::fs::read(fixture().join("data-00000-of-00001.arrow")).unwrap();
        for (number, bytes) in
            [&b"garbage, and more of it"[..], &whole[..whole.len() / 2], b"", b"ARROW1\0\0abc"]
                .into_iter()
                .enumerate()
        {
            let path = dir.path().join(format!("{number}.arrow"));
            std::fs::write(&path, bytes).unwrap();
            assert!(for_each_value(&path, |_| ()).is_err(), "{number}");
        }
    }

    #[test]
    fn parquet_holds_what_the_rows_hold() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let before = run_of_ours(&run);
        let file = dir.path().join("run.parquet");
        assert_eq!(write_parquet(&file, RunExport::read(&run).unwrap().into_flat_rows()).unwrap(), 40);
        let opened = std::fs::File::open(&file).unwrap();
        let mut shares = Vec::new();
        for batch in ParquetRecordBatchReaderBuilder::try_new(opened).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            assert_eq!(batch.num_columns(), COLUMNS.len());
            let column = batch.column_by_name("share_uj").unwrap();
            let column = arrow_array::cast::AsArray::as_primitive::<arrow_array::types::UInt64Type>(column);
            shares.extend(column.iter());
        }
        let right: Vec<Option<u64>> =
            before.iter().map(|row| row.energy.as_ref().and_then(|energy| energy.share_uj)).collect();
        assert_eq!(shares, right);
    }
}
