//! The files in which results of the harness come.
//!
//! Owns the finding of them: Arrow (`data-*.arrow`, as the harness writes them), JSON lines, or one JSON array, in a directory
//! with `summary.json`, or a single file. A line that is no record is counted and passed over.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Record, Summary, Unusable, columnar};

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The records, in their order.
    pub records: Vec<Record>,
    /// Lines and rows that are no records.
    pub broken: usize,
    /// Nothing in it where there is no `summary.json`.
    pub summary: Summary,
}

/// The longest line that is read; what a model said fits.
const LINE_BYTES: u64 = 64 << 20;

/// Reads a directory or a file.
///
/// # Errors
/// There is no such thing, it holds no records, or its records are Arrow and this program was built without.
pub fn read(path: &Path) -> Result<Found, Unusable> {
    let mut found = Found::default();
    let files = if path.is_dir() { listed(path)? } else { vec![path.to_owned()] };
    let beside = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    if let Ok(text) = fs::read_to_string(beside.join("summary.json")) {
        found.summary = serde_json::from_str(&text)
            .map_err(|cause| Unusable::nonsense(beside.join("summary.json"), cause))?;
    }
    for file in &files {
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("arrow") => columnar::each_value(file, |value| found.take(value))?,
            Some("json") => array(file, &mut found)?,
            _ => lines(file, &mut found)?,
        }
    }
    if found.records.is_empty() {
        let reason = "holds no record of the harness: there should be data-*.arrow, *.jsonl or *.json files whose \
                      records have problem, answer, model_answers and model_metrics";
        return Err(Unusable::nonsense(path, reason));
    }
    Ok(found)
}

impl Found {
    fn take(&mut self, value: Value) {
        let is_record = value.get("model_metrics").is_some() || value.get("model_answers").is_some();
        match serde_json::from_value(value) {
            Ok(record) if is_record => self.records.push(record),
            _ => self.broken += 1,
        }
    }
}

/// The files of records in a directory, by name; Arrow alone where there is any, since the others are then copies.
fn listed(path: &Path) -> Result<Vec<PathBuf>, Unusable> {
    const ABOUT: [&str; 3] = ["summary.json", "dataset_info.json", "state.json"];
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(Unusable::at(path))? {
        let file = entry.map_err(Unusable::at(path))?.path();
        let named = |names: &[&str], of: Option<&std::ffi::OsStr>| {
            of.and_then(|of| of.to_str()).is_some_and(|of| names.contains(&of))
        };
        if named(&["arrow", "jsonl", "json"], file.extension()) && !named(&ABOUT, file.file_name()) {
            files.push(file);
        }
    }
    files.sort();
    let is_arrow = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "arrow");
    let is_data =
        |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("data-"));
    // Without Arrow the copies are what can be read; with nothing else, the refusal says what would mend it.
    let other = files.iter().any(|file| !is_arrow(file));
    if !columnar::BUILT_IN && other {
        files.retain(|file| !is_arrow(file));
    } else if files.iter().any(is_arrow) {
        files.retain(is_arrow);
        // Beside them lie caches of the library that wrote them.
        if files.iter().any(is_data) {
            files.retain(is_data);
        }
    }
    Ok(files)
}

fn lines(path: &Path, found: &mut Found) -> Result<(), Unusable> {
    let mut reader = BufReader::new(File::open(path).map_err(Unusable::at(path))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let got = std::io::Read::take(&mut reader, LINE_BYTES).read_until(b'\n', &mut line);
        if got.map_err(Unusable::at(path))? == 0 {
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(value) => found.take(value),
            Err(_) => found.broken += 1,
        }
    }
}

fn array(path: &Path, found: &mut Found) -> Result<(), Unusable> {
    let text = fs::read(path).map_err(Unusable::at(path))?;
    match serde_json::from_slice(&text) {
        Ok(Value::Array(all)) => all.into_iter().for_each(|value| found.take(value)),
        Ok(one) => found.take(one),
        // JSON lines under the other name are common.
        Err(_) => return lines(path, found),
    }
    Ok(())
}
