//! A run's directory after a power cut at any operation on its disk: each finished query is there unchanged, or it is asked
//! again; what was synced is there.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use wattspan_ipw::question::{self, Question};
use wattspan_ipw::row::{QueryRow, ReplyText};
use wattspan_ipw::run_dir::{
    FORMAT_VERSION, Manifest, RunDir, for_each_row, for_each_text, has_rows_without_text,
};

use crate::faulty_fs::power_cut::{cuts_and_seed, for_each_cut};
use crate::faulty_fs::{FaultyDisk, WriteBehavior};
use crate::programs;
use crate::runs::{IpwFixture, LONG_HORIZON_ARGS, output_text};
use crate::support::{sleep_ms, wait_until};

/// The row and the text of a query, which follow from its number.
fn result(question: &Question, number: usize) -> (QueryRow, ReplyText) {
    let id = question.id.clone();
    let row = QueryRow { id: id.clone(), score: Some(1.0), ..QueryRow::default() };
    let reply = format!("{number} ").repeat((number * 211) % 1500 + 1);
    let session = Some(row.session);
    (row, ReplyText { id, reply, session, ..ReplyText::default() })
}

/// The rows and texts of a run by question.
fn read(path: &Path) -> (HashMap<String, QueryRow>, HashMap<String, ReplyText>) {
    let (mut rows, mut texts) = (HashMap::new(), HashMap::new());
    for_each_row(&path.join("rows.jsonl"), |row| _ = rows.insert(row.id.clone(), row)).unwrap();
    for_each_text(path, |text| _ = texts.insert(text.id.clone(), text)).unwrap();
    (rows, texts)
}

/// Resumes what is left of a run and answers what it asks again; then every answer is there.
fn resume_and_complete(left: &Path, questions: &[Question], what: &str) -> usize {
    let (mut run, _, asked) = RunDir::resume(left).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(asked, questions, "{what}");
    let mut again = 0;
    for (number, question) in questions.iter().enumerate() {
        if !run.is_answered(&question.id, 0) {
            let (row, text) = result(question, number);
            run.append_row(&row, &text).unwrap();
            again += 1;
        }
    }
    run.finish().unwrap();
    let (rows, texts) = read(left);
    for (number, question) in questions.iter().enumerate() {
        let (row, text) = result(question, number);
        assert_eq!((rows.get(&row.id), texts.get(&row.id)), (Some(&row), Some(&text)), "{what}");
    }
    assert!(!has_rows_without_text(left).unwrap(), "{what}");
    again
}

#[test]
fn after_a_power_cut_a_run_has_each_synced_answer_and_asks_the_others_again() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let questions = question::built_in();
    let fingerprint = question::fingerprint(&questions);
    let manifest = Manifest { version: FORMAT_VERSION, fingerprint, ..Manifest::default() };
    let directory = disk.path().join("runs/first");
    let mut run = RunDir::create(&directory, &manifest, &questions).unwrap();
    let created = disk.operations();
    // The answers that are on disk, by the number of operations before that was known.
    let mut synced = vec![(created, 0)];
    for (number, question) in questions.iter().enumerate() {
        let (row, text) = result(question, number);
        run.append_row(&row, &text).unwrap();
        if number == 20 {
            wait_until("the rows are synced", || disk.is_synced("runs/first/rows.jsonl"));
            sleep_ms(10);
            synced.push((disk.operations(), number + 1));
        }
        if number == 35 {
            run.finish().unwrap();
            synced.push((disk.operations(), number + 1));
            run = RunDir::resume(&directory).unwrap().0;
        }
    }
    run.finish().unwrap();
    synced.push((disk.operations(), questions.len()));
    let (cuts, seed) = cuts_and_seed(150);
    let (mut missing, mut without_text) = (0, 0);
    let record = disk.take_record();
    for_each_cut(&record, 0, cuts, seed, |operations, left, what| {
        let left = left.join("runs/first");
        if operations < created && !left.join("run.json").exists() {
            // It was not said to be there, and can be created.
            RunDir::create(&left, &manifest, &questions).unwrap_or_else(|error| panic!("{what}: {error}"));
            return;
        }
        let on_disk =
            synced.iter().rev().find(|(from, _)| *from <= operations).map_or(0, |(_, count)| *count);
        if left.join("rows.jsonl").exists() && left.join("texts.jsonl").exists() {
            let (rows, texts) = read(&left);
            without_text += usize::from(has_rows_without_text(&left).unwrap());
            for (number, question) in questions.iter().enumerate() {
                let (row, text) = result(question, number);
                let (found, found_text) = (rows.get(&row.id), texts.get(&row.id));
                assert!(found.is_none_or(|found| *found == row), "{what}: {found:?}");
                assert!(found_text.is_none_or(|found| *found == text), "{what}: {found_text:?}");
                let is_there = found.is_some() && found_text.is_some();
                assert!(number >= on_disk || is_there, "{what}: answer {number} is lost");
            }
        }
        let again = resume_and_complete(&left, &questions, what);
        assert!(again <= questions.len() - on_disk, "{what}: {again} are asked again");
        missing += again;
    });
    eprintln!("{cuts} cuts: {missing} queries asked again, {without_text} cuts took a text of a row");
    assert!(missing > 0 && (without_text > 0 || cuts < 100), "the cuts tried nothing");
}

#[test]
fn scores_that_are_said_to_be_changed_survive_a_power_cut_and_a_failed_sync_is_an_error() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let questions = question::built_in();
    let fingerprint = question::fingerprint(&questions);
    let manifest = Manifest { version: FORMAT_VERSION, fingerprint, ..Manifest::default() };
    let directory = disk.path().join("run");
    let mut run = RunDir::create(&directory, &manifest, &questions).unwrap();
    for (number, question) in questions.iter().enumerate() {
        let (row, text) = result(question, number);
        run.append_row(&row, &text).unwrap();
    }
    run.finish().unwrap();
    let wrong = |path: &Path| read(path).0.values().filter(|row| row.score == Some(0.0)).count();
    assert_eq!(wrong(&directory), 0);
    let score =
        || Command::new(programs::wattspan()).args(["ipw", "score"]).arg(&directory).output().unwrap();
    disk.set(WriteBehavior::FailSync);
    let failed = score();
    let text = output_text(&failed);
    assert!(failed.status.code() == Some(1) && !text.contains("scores changed"), "{text}");
    assert!(text.contains("Input/output error"), "{text}");
    disk.set(WriteBehavior::Succeed);
    // The rows of the failed one are in the page cache; they are scores as those of a rule are.
    let mut run = RunDir::resume(&directory).unwrap().0;
    for (number, question) in questions.iter().enumerate() {
        run.rescore(&result(question, number).0).unwrap();
    }
    run.finish().unwrap();
    let succeeded = score();
    assert!(succeeded.status.success(), "{}", output_text(&succeeded));
    let changed = wrong(&directory);
    assert!(changed > 0 && output_text(&succeeded).contains(&format!("{changed} scores changed")));
    let record = disk.take_record();
    let (cuts, seed) = cuts_and_seed(10);
    for_each_cut(&record, record.len(), cuts, seed, |_, left, what| {
        assert_eq!(wrong(&left.join("run")), changed, "{what}");
    });
}

#[test]
fn after_a_power_cut_a_sweep_is_completed_by_the_same_command_and_asks_nothing_that_was_finished() {
    let Some(disk) = FaultyDisk::mount() else { return };
    let fixture = IpwFixture::new();
    let sweep = |out: &Path| {
        let mut command = fixture.command("sweep");
        command.args(LONG_HORIZON_ARGS).args(["--url", &fixture.server_url(), "--warm-up", "0", "--json"]);
        command
            .args(["--model", "good-4", "--model", "good-8", "-c", "1", "-n", "3", "-r", "1", "-o"])
            .arg(out);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", output_text(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let shown = sweep(&disk.path().join("sweep"));
    let (finished, record) = (disk.operations(), disk.take_record());
    let (cuts, seed) = cuts_and_seed(8);
    let mut asked_again = 0;
    let mut check = |operations: usize, left: &Path, what: &str| {
        let before = fixture.requests();
        let again = sweep(&left.join("sweep"));
        let asked = fixture.requests() - before;
        asked_again += asked;
        assert!(asked <= 6, "{what}: {asked} questions were asked");
        if operations == finished {
            let figures = |report: &serde_json::Value| -> Vec<serde_json::Value> {
                let points = report["points"].as_array().unwrap().iter();
                points.map(|point| point["figures"].clone()).collect()
            };
            assert_eq!((asked, figures(&again)), (0, figures(&shown)), "{what}");
        }
        let points = again["points"].as_array().unwrap();
        assert_eq!(points.len(), 2, "{what}: {again}");
        for point in points {
            // Each query counts once.
            let covered = &point["figures"]["covered"];
            assert_eq!(*covered, 3, "{what}: {point}");
        }
    };
    for_each_cut(&record, 0, cuts, seed, &mut check);
    for_each_cut(&record, finished, 2, seed, &mut check);
    assert!(asked_again > 0, "the cuts tried nothing");
}
