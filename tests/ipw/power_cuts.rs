//! A run's directory after a power cut at any operation on its disk: each finished query is there unchanged, or it is asked
//! again; what was synced is there.

use std::collections::HashMap;
use std::path::Path;

use wattspan_ipw::question::{self, Question};
use wattspan_ipw::row::{QueryRow, ReplyText};
use wattspan_ipw::run_dir::{
    FORMAT_VERSION, Manifest, RunDir, for_each_row, for_each_text, has_rows_without_text,
};

use crate::faulty_fs::FaultyDisk;
use crate::faulty_fs::power_cut::{cuts_and_seed, for_each_cut};
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
