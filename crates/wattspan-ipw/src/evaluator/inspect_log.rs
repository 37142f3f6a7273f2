//! Logs of inspect-ai: `.eval` (a zip archive, one member for each sample) and `.json`.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use wattspan_http::lenient_json;

use super::evaluation::{Evaluation, ReadEvaluationError};
use super::inspect_archive::InspectArchive;
use super::inspect_sample::{InspectSample, SampleReader};
use super::inspect_spec::{InspectConfig, InspectHeader, InspectScorer};

/// The longest `.json` log, which is in memory as a whole: its text, and what is parsed, which takes a multiple of that (each
/// element 32 bytes or more). Larger ones can be converted (`inspect log convert --to eval`).
const MAX_JSON_BYTES: u64 = 64 << 20;

/// The samples of a `.json` log.
#[derive(Default, Deserialize)]
#[serde(default)]
struct InspectSamples {
    samples: Option<Vec<InspectSample>>,
}

/// Reads a log; `scorer` names the score, the first one by default.
///
/// # Errors
/// The file cannot be read, is no log of inspect-ai, or has no such scorer.
pub fn read_inspect_log(path: &Path, scorer: Option<&str>) -> Result<Evaluation, ReadEvaluationError> {
    if path.is_dir() {
        return Err(ReadEvaluationError::invalid(
            path,
            "is a directory: name one log (a .eval or .json file) in it",
        ));
    }
    let mut magic = Vec::new();
    let opened = File::open(path).map_err(ReadEvaluationError::io(path))?;
    opened.take(2).read_to_end(&mut magic).map_err(ReadEvaluationError::io(path))?;
    if magic == b"PK" { read_archive(path, scorer) } else { read_json_log(path, scorer) }
}

fn read_archive(path: &Path, scorer: Option<&str>) -> Result<Evaluation, ReadEvaluationError> {
    let mut archive = InspectArchive::open(path)?;
    // An evaluation that was killed has no header.
    let head = match archive.read("header.json")? {
        Some(head) => Some(("header.json", head)),
        None => archive.read("_journal/start.json")?.map(|head| ("_journal/start.json", head)),
    };
    let Some((name, head)) = head else {
        return Err(ReadEvaluationError::invalid(path, "is no log of inspect-ai: it has no header.json"));
    };
    let header: InspectHeader = parse(path, name, &head)?;
    let scorer = header.choose_scorer(scorer).map_err(|reason| ReadEvaluationError::invalid(path, reason))?;
    let mut reader = SampleReader::default();
    let mut samples = Vec::new();
    for name in archive.names()? {
        if name.starts_with("samples/") && name.ends_with(".json") {
            let text = archive.read(&name)?.unwrap_or_default();
            samples.push(reader.convert(parse(path, &name, &text)?, &scorer));
        }
    }
    Ok(Evaluation { samples, domains: reader.domains, ..evaluation(header, scorer, reader.meter) })
}

fn read_json_log(path: &Path, scorer: Option<&str>) -> Result<Evaluation, ReadEvaluationError> {
    let length = fs::metadata(path).map_err(ReadEvaluationError::io(path))?.len();
    if length > MAX_JSON_BYTES {
        let reason = format!(
            "is {length} bytes long, and {MAX_JSON_BYTES} are the most; convert it: inspect log convert --to eval"
        );
        return Err(ReadEvaluationError::invalid(path, reason));
    }
    let text = fs::read(path).map_err(ReadEvaluationError::io(path))?;
    let header: InspectHeader = parse(path, "the log", &text)?;
    if header.eval.task.is_none() {
        let reason =
            "is no log of inspect-ai: a .eval file, or JSON with \"eval\" and \"samples\", is expected";
        return Err(ReadEvaluationError::invalid(path, reason));
    }
    let scorer = header.choose_scorer(scorer).map_err(|reason| ReadEvaluationError::invalid(path, reason))?;
    let found: InspectSamples = parse(path, "the log", &text)?;
    let mut reader = SampleReader::default();
    let samples =
        found.samples.unwrap_or_default().into_iter().map(|sample| reader.convert(sample, &scorer)).collect();
    Ok(Evaluation { samples, domains: reader.domains, ..evaluation(header, scorer, reader.meter) })
}

/// Parses JSON as Python writes it, with `NaN` for scores that are none.
fn parse<T: DeserializeOwned>(path: &Path, name: &str, text: &[u8]) -> Result<T, ReadEvaluationError> {
    let parsed = serde_json::from_slice(text).or_else(|error| {
        let repaired = lenient_json::repair(text).ok_or(error)?;
        serde_json::from_slice(&repaired)
    });
    parsed.map_err(|cause| ReadEvaluationError::invalid(path, format!("{name}: {cause}")))
}

fn evaluation(header: InspectHeader, scorer: InspectScorer, meter: Option<String>) -> Evaluation {
    let planned = header.planned();
    let status = header.status.as_deref().unwrap_or("started");
    let mut remarks = Vec::new();
    if status != "success" {
        remarks.push(format!("the evaluation is not complete (status {status:?})"));
    }
    let spec = header.eval;
    let setting = |of: fn(&InspectConfig) -> Option<u64>| {
        [&spec.config, &spec.model_generate_config].into_iter().flatten().filter_map(of).min()
    };
    let generate = spec.model_generate_config.as_ref();
    let version = spec.packages.as_ref().and_then(|packages| packages.get("inspect_ai")?.as_str());
    Evaluation {
        evaluator: "inspect-ai",
        version: version.unwrap_or("of unknown version").to_owned(),
        task: spec.task.clone().unwrap_or_default(),
        model: spec.model.clone().unwrap_or_default(),
        server: spec.model_base_url.clone().unwrap_or_default(),
        own_score: scorer.own_score(),
        scorer: scorer.name,
        began_unix_ns: spec.created.as_deref().and_then(unix_ns).unwrap_or_default(),
        concurrency: setting(|config| match (config.max_connections, config.max_samples) {
            (Some(connections), Some(samples)) => Some(connections.min(samples)),
            (connections, samples) => connections.or(samples),
        }),
        temperature: generate.and_then(|config| config.temperature),
        max_tokens: generate.and_then(|config| config.max_tokens),
        planned,
        meter: meter.unwrap_or_default(),
        remarks,
        ..Evaluation::default()
    }
}

/// Converts a time such as `2026-11-30T05:09:36+00:00` to Unix nanoseconds, to the second.
fn unix_ns(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset_s = match zone.as_bytes().first() {
        Some(sign @ (b'+' | b'-')) => {
            let part = |from: usize, to: usize| zone.get(from..to)?.parse::<i64>().ok();
            let seconds = part(1, 3)? * 3600 + part(4, 6)? * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => 0,
    };
    // Days since 1970 of the proleptic Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era_days = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = era_days + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second - offset_s;
    u64::try_from(seconds).ok()?.checked_mul(1_000_000_000)
}

#[cfg(test)]
mod tests;
