//! Arrow and Parquet files.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use serde_json::Value;
use wattspan_columnar::{Column, ColumnKind, for_each_value, fuzz_entry, write_arrow_stream};

use super::{is_same_json, scratch_dir};

thread_local! {
    static IS_DECODING: Cell<bool> = const { Cell::new(false) };
}

/// The result of a call of the crates that decode a file; `None` if they panic.
fn decoded<T>(call: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    // libFuzzer's hook ends the process before a panic is caught.
    HOOK.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_DECODING.get() {
                hook(panic);
            }
        }));
    });
    IS_DECODING.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    IS_DECODING.set(false);
    result.ok()
}

/// A file is read or refused; rows with a text and a number come back from a file that is written of them. The crates
/// `arrow-*` and `parquet` panic on some damaged files instead of refusing them, which only they can correct (docs/fuzzing.md).
/// What is done with their batches must not panic.
pub fn check(bytes: &[u8]) {
    let dir = scratch_dir();
    let path = dir.path().join("data.arrow");
    std::fs::write(&path, bytes).expect("the file can be written");
    let Some(Ok(mut batches)) = decoded(|| fuzz_entry::batches(&path)) else { return };
    let mut rows = Vec::new();
    while let Some(Some(Ok(batch))) = decoded(|| batches.next()) {
        rows.extend(fuzz_entry::rows(batch));
    }
    rows.truncate(64);
    let columns = [("problem", ColumnKind::Text), ("score", ColumnKind::Real)];
    let columns = columns.map(|(name, kind)| Column::new(name, kind));
    let kept = |row: &Value| {
        let text = row["problem"].as_str().map(str::to_owned);
        serde_json::json!({ "problem": text, "score": row["score"].as_f64() })
    };
    let mut written = Vec::new();
    write_arrow_stream(&mut written, &columns, rows.iter().map(kept)).expect("plain rows can be written");
    std::fs::write(&path, &written).expect("the file can be written");
    let mut again = Vec::new();
    for_each_value(&path, |row| again.push(row)).expect("what was written can be read");
    assert_eq!(again.len(), rows.len());
    assert!(rows.iter().zip(&again).all(|(row, again)| is_same_json(&kept(row), again)));
}
