//! The fuzz targets: one function for each parser of foreign bytes, with what must hold for every input.
//!
//! `fuzz_targets/` calls them with the inputs of libFuzzer, and `tests/fuzz_corpora.rs` with those of `corpus/`, as a part of
//! `cargo test`. An input that a function does not accept is no failure; a panic is. docs/fuzzing.md describes the use.

pub mod account_record;
pub mod answer_text;
pub mod apple_channels;
pub mod attribution_schedule;
pub mod bundle_text;
pub mod columnar_file;
pub mod configuration;
pub mod dbus_value;
pub mod evaluation_log;
pub mod event_stream;
pub mod export_state;
pub mod gpu_metrics;
pub mod harness_record;
pub mod http_head;
pub mod lenient_json;
pub mod printable_text;
pub mod question_file;
pub mod question_set;
pub mod request_body;
pub mod run_directory;
pub mod script_file;
pub mod server_reply;
pub mod store_block;
pub mod sysfs_text;
pub mod trace_file;
pub mod usage_insertion;
pub mod varlink_call;
pub mod varlink_reply;

use serde_json::Value;

/// A target: its name, which is that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("account_record", account_record::check),
    ("answer_text", answer_text::check),
    ("apple_channels", apple_channels::check),
    ("attribution_schedule", attribution_schedule::check),
    ("bundle_text", bundle_text::check),
    ("columnar_file", columnar_file::check),
    ("configuration", configuration::check),
    ("dbus_value", dbus_value::check),
    ("evaluation_log", evaluation_log::check),
    ("event_stream", event_stream::check),
    ("export_state", export_state::check),
    ("gpu_metrics", gpu_metrics::check),
    ("harness_record", harness_record::check),
    ("http_head", http_head::check),
    ("lenient_json", lenient_json::check),
    ("printable_text", printable_text::check),
    ("question_file", question_file::check),
    ("question_set", question_set::check),
    ("request_body", request_body::check),
    ("run_directory", run_directory::check),
    ("script_file", script_file::check),
    ("server_reply", server_reply::check),
    ("store_block", store_block::check),
    ("sysfs_text", sysfs_text::check),
    ("trace_file", trace_file::check),
    ("usage_insertion", usage_insertion::check),
    ("varlink_call", varlink_call::check),
    ("varlink_reply", varlink_reply::check),
];

/// Whether two JSON values are the same, but for the last digit of a number with a fraction: the parser does not always
/// return the number that was written.
fn is_same_json(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) if one != other => {
            let (Some(one), Some(other)) = (one.as_f64(), other.as_f64()) else { return false };
            (one - other).abs() <= one.abs() * 4.0 * f64::EPSILON
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same_json(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|((key, one), (other_key, other))| key == other_key && is_same_json(one, other))
        }
        (one, other) => one == other,
    }
}

/// The value as it is read after it was written as JSON; panics unless it is the same.
fn assert_json_round_trip<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) {
    let text = serde_json::to_string(value).expect("it can be written");
    let again: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let value_of = |value: &T| serde_json::to_value(value).expect("it can be written");
    assert!(is_same_json(&value_of(value), &value_of(&again)), "{text}");
}

/// Splits off the first byte; 0 if there is none.
fn first_byte(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest))
}

/// The text before the first line break, and the rest.
fn first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    end.map_or((bytes, &[]), |end| (&bytes[..end], &bytes[end + 1..]))
}

/// `body` in chunks of sizes that follow from `seed`; empty ones are among them.
fn in_chunks(body: &[u8], seed: u8) -> Vec<&[u8]> {
    let (mut rest, mut size, mut chunks) = (body, usize::from(seed), Vec::new());
    while !rest.is_empty() {
        size = (size * 5 + 3) % 31;
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

/// A directory that is deleted when it is dropped; in memory where the system has such a file system.
fn scratch_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory can be created")
}
