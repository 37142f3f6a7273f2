//! Reader of the harness's result files.
//!
//! Reads Arrow (`data-*.arrow`, as the harness writes), Parquet with the same columns, JSON lines or a JSON array, from a directory with
//! `summary.json` or from a single file. Invalid lines are counted and skipped.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{HarnessError, HarnessSummary, ProfilingRecord, columnar};

/// The content of a results directory or file.
#[derive(Debug, Default)]
pub struct HarnessResults {
    /// The records, in order.
    pub records: Vec<ProfilingRecord>,
    /// Number of lines and rows that are not records.
    pub invalid_records: usize,
    /// The summary; empty without `summary.json`.
    pub summary: HarnessSummary,
}

/// The advice on Parquet, to which the harness's data set can be converted, in a build that does not read it.
const PARQUET_ADVICE: &str = "is Parquet, which this build does not read; write its records as JSON lines beside the summary.json \
                              (datasets.Dataset.from_parquet(FILE).to_json(\"data.jsonl\")), and give that file";

/// The longest accepted line; it has room for a long reply.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Reads a results directory or file.
///
/// # Errors
/// The path does not exist or has no records, or they are Arrow or Parquet and this build lacks the feature `parquet`.
pub fn read_results(path: &Path) -> Result<HarnessResults, HarnessError> {
    let mut results = HarnessResults::default();
    let files = if path.is_dir() { list_record_files(path)? } else { vec![path.to_owned()] };
    let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    if let Ok(text) = fs::read_to_string(dir.join("summary.json")) {
        results.summary = serde_json::from_str(&text)
            .map_err(|cause| HarnessError::invalid(dir.join("summary.json"), cause))?;
    }
    for file in &files {
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("arrow") => columnar::for_each_value(file, |value| results.push_value(value))?,
            Some("parquet") if columnar::IS_SUPPORTED => {
                columnar::for_each_value(file, |value| results.push_value(value))?;
            }
            Some("json") => read_json(file, &mut results)?,
            Some("parquet") => return Err(HarnessError::invalid(file, PARQUET_ADVICE)),
            _ => read_json_lines(file, &mut results)?,
        }
    }
    if results.records.is_empty() {
        let reason = "holds no record of the harness: there should be data-*.arrow, *.jsonl or *.json files whose \
                      records have problem, answer, model_answers and model_metrics";
        return Err(HarnessError::invalid(path, reason));
    }
    Ok(results)
}

impl HarnessResults {
    fn push_value(&mut self, value: Value) {
        let is_record = value.get("model_metrics").is_some() || value.get("model_answers").is_some();
        match serde_json::from_value(value) {
            Ok(record) if is_record => self.records.push(record),
            _ => self.invalid_records += 1,
        }
    }
}

/// Returns the record files of a directory, sorted by name; only Arrow files if there are any, since the others are
/// copies.
fn list_record_files(path: &Path) -> Result<Vec<PathBuf>, HarnessError> {
    const METADATA_FILES: [&str; 3] = ["summary.json", "dataset_info.json", "state.json"];
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(HarnessError::io(path))? {
        let file = entry.map_err(HarnessError::io(path))?.path();
        let has_name = |names: &[&str], of: Option<&std::ffi::OsStr>| {
            of.and_then(|of| of.to_str()).is_some_and(|of| names.contains(&of))
        };
        if has_name(&["arrow", "jsonl", "json", "parquet"], file.extension())
            && !has_name(&METADATA_FILES, file.file_name())
        {
            files.push(file);
        }
    }
    files.sort();
    let is_parquet = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "parquet");
    if !files.iter().all(is_parquet) {
        files.retain(|file| !is_parquet(file));
    }
    let is_arrow = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "arrow");
    let is_data =
        |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("data-"));
    // Without Arrow support the copies are read; if there are none, the error names an alternative.
    let has_other = files.iter().any(|file| !is_arrow(file));
    if !columnar::IS_SUPPORTED && has_other {
        files.retain(|file| !is_arrow(file));
    } else if files.iter().any(is_arrow) {
        files.retain(is_arrow);
        // The same directory has cache files of the Hugging Face library.
        if files.iter().any(is_data) {
            files.retain(is_data);
        }
    }
    Ok(files)
}

fn read_json_lines(path: &Path, results: &mut HarnessResults) -> Result<(), HarnessError> {
    let mut reader = BufReader::new(File::open(path).map_err(HarnessError::io(path))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = std::io::Read::take(&mut reader, MAX_LINE_BYTES).read_until(b'\n', &mut line);
        if read.map_err(HarnessError::io(path))? == 0 {
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(value) => results.push_value(value),
            Err(_) => results.invalid_records += 1,
        }
    }
}

fn read_json(path: &Path, results: &mut HarnessResults) -> Result<(), HarnessError> {
    let text = fs::read(path).map_err(HarnessError::io(path))?;
    match serde_json::from_slice(&text) {
        Ok(Value::Array(all)) => all.into_iter().for_each(|value| results.push_value(value)),
        Ok(one) => results.push_value(one),
        // Files with the extension `.json` often hold JSON lines.
        Err(_) => return read_json_lines(path, results),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_parquet_is_named_unless_there_are_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("train.parquet");
        fs::write(&file, b"PAR1\x15\x04PAR1").unwrap();
        fs::write(dir.path().join("summary.json"), "{}").unwrap();
        for path in [dir.path(), &file] {
            let refused = read_results(path).unwrap_err().to_string();
            let reason =
                if columnar::IS_SUPPORTED { "is no readable Parquet file" } else { "is Parquet, which this" };
            assert!(refused.contains(&format!("train.parquet: {reason}")), "{refused}");
        }
        let record = "{\"problem\":\"2+2?\",\"model_answers\":{\"m\":\"4\"}}\n";
        fs::write(dir.path().join("data.jsonl"), record).unwrap();
        assert_eq!(read_results(dir.path()).unwrap().records.len(), 1);
    }
}
