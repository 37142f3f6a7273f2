//! Results of lm-evaluation-harness: `results_*.json` and `samples_TASK_*.jsonl` of `--output_path` and `--log_samples`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use wattspan_http::{lenient_json, prompt_hash::prompt_hash};

use super::evaluation::{EvaluatedSample, Evaluation, ReadEvaluationError};
use super::inspect_sample::{SUBJECT_KEYS, text_of};
use super::score_value::score_value;

/// The longest file of results.
const MAX_RESULTS_BYTES: u64 = 256 << 20;

/// The longest line of a file of samples.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// How long before and after the stated times of an evaluation its accounts may open.
const CLOCK_MARGIN_S: f64 = 2.0;

/// An evaluation, and when its requests were sent.
#[derive(Debug)]
pub struct LmEvalRun {
    pub evaluation: Evaluation,
    /// The wall time of its first and last instants.
    pub window_unix_ns: (u64, u64),
}

/// `results_*.json`; other fields are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Results {
    results: BTreeMap<String, BTreeMap<String, Value>>,
    configs: BTreeMap<String, Value>,
    config: Value,
    date: f64,
    lm_eval_version: Option<String>,
    model_name: Option<String>,
    total_evaluation_time_seconds: Value,
    #[serde(rename = "n-samples")]
    counts: BTreeMap<String, SampleCount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SampleCount {
    effective: Option<usize>,
}

/// A line of `samples_*.jsonl`. The scores are further fields, named by `metrics`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sample {
    doc_id: Value,
    doc: Value,
    target: Value,
    arguments: Value,
    resps: Value,
    filter: Option<String>,
    metrics: Vec<String>,
    #[serde(flatten)]
    scores: BTreeMap<String, Value>,
}

/// The score that counts: a metric, and the filter of the replies to which it is applied.
#[derive(Debug, Clone)]
struct ScoreName {
    metric: String,
    filter: String,
}

/// Reads the newest evaluation in a directory of results; `scorer` is METRIC or METRIC,FILTER, by default the first.
///
/// # Errors
/// The directory has no results with samples, or results of several models; a file is damaged.
pub fn read_lm_eval_results(path: &Path, scorer: Option<&str>) -> Result<LmEvalRun, ReadEvaluationError> {
    let (file, others) = newest_results(path)?;
    let length = fs::metadata(&file).map_err(ReadEvaluationError::io(&file))?.len();
    if length > MAX_RESULTS_BYTES {
        let reason = format!("is {length} bytes long, and {MAX_RESULTS_BYTES} are the most");
        return Err(ReadEvaluationError::invalid(&file, reason));
    }
    let text = fs::read(&file).map_err(ReadEvaluationError::io(&file))?;
    let results = lenient_json::parse(&text).and_then(Results::deserialize);
    let results = results.map_err(|cause| ReadEvaluationError::invalid(&file, cause))?;
    let tasks = sample_files(&file)?;
    let mut samples = Vec::new();
    let mut score_name = None;
    for (task, file) in &tasks {
        let before = samples.len();
        read_samples(file, scorer, &mut score_name, |sample| samples.push(sample))?;
        if tasks.len() > 1 {
            for sample in &mut samples[before..] {
                sample.id = format!("{task}/{}", sample.id);
                sample.subject = Some(task.clone());
            }
        }
    }
    let Some(score_name) = score_name else {
        return Err(ReadEvaluationError::invalid(&file, "its files of samples have no sample"));
    };
    let mut remarks = Vec::new();
    if others > 0 {
        remarks.push(format!("the newest of {} evaluations in the directory was read", others + 1));
    }
    let names: Vec<&str> = tasks.iter().map(|(task, _)| task.as_str()).collect();
    let evaluation = Evaluation { samples, remarks, ..results.evaluation(&names, &score_name) };
    Ok(LmEvalRun { evaluation, window_unix_ns: results.window_unix_ns() })
}

impl Results {
    fn evaluation(&self, tasks: &[&str], score_name: &ScoreName) -> Evaluation {
        let arguments = &self.config["model_args"];
        let generation = tasks.first().and_then(|task| Some(&self.configs.get(*task)?["generation_kwargs"]));
        let number =
            |key: &str| generation.and_then(|generation| generation.get(key)).and_then(Value::as_u64);
        let planned = tasks.iter().map(|task| self.counts.get(*task)?.effective).sum::<Option<usize>>();
        Evaluation {
            evaluator: "lm-evaluation-harness",
            version: self.lm_eval_version.clone().unwrap_or_else(|| "of unknown version".into()),
            task: tasks.join(", "),
            model: arguments["model"]
                .as_str()
                .map(str::to_owned)
                .or(self.model_name.clone())
                .unwrap_or_default(),
            server: text_of(&arguments["base_url"]),
            scorer: format!("{},{}", score_name.metric, score_name.filter),
            own_score: self.own_score(tasks, score_name),
            began_unix_ns: self.window_unix_ns().0,
            concurrency: arguments["num_concurrent"].as_u64().map(|count| count.max(1)).or(Some(1)),
            temperature: generation.map(|generation| generation["temperature"].as_f64().unwrap_or(0.0)),
            max_tokens: number("max_tokens").or_else(|| number("max_gen_toks")),
            planned,
            ..Evaluation::default()
        }
    }

    /// The mean of the tasks' scores, weighted by their samples.
    fn own_score(&self, tasks: &[&str], score_name: &ScoreName) -> Option<f64> {
        let key = format!("{},{}", score_name.metric, score_name.filter);
        let (mut sum, mut count) = (0.0, 0);
        for task in tasks {
            let samples = self.counts.get(*task)?.effective?;
            sum += self.results.get(*task)?.get(&key)?.as_f64()? * samples as f64;
            count += samples;
        }
        (count > 0).then(|| sum / count as f64)
    }

    fn window_unix_ns(&self) -> (u64, u64) {
        let seconds = match &self.total_evaluation_time_seconds {
            Value::String(text) => text.parse().unwrap_or(0.0),
            other => other.as_f64().unwrap_or(0.0),
        };
        // A conversion of a float saturates.
        let unix_ns = |at_s: f64| (at_s * 1e9) as u64;
        (unix_ns(self.date - CLOCK_MARGIN_S), unix_ns(self.date + seconds + CLOCK_MARGIN_S))
    }
}

/// Finds the newest `results_*.json` in a directory and its immediate subdirectories, which are named by the model; and
/// the number of older ones.
fn newest_results(path: &Path) -> Result<(PathBuf, usize), ReadEvaluationError> {
    if path.is_file() {
        return Ok((path.to_owned(), 0));
    }
    let mut found = list_results(path)?;
    for entry in fs::read_dir(path).map_err(ReadEvaluationError::io(path))? {
        let entry = entry.map_err(ReadEvaluationError::io(path))?.path();
        if entry.is_dir() {
            found.extend(list_results(&entry)?);
        }
    }
    found.sort_by(|one, other| one.file_name().cmp(&other.file_name()));
    let Some(newest) = found.last().cloned() else {
        let reason = "has no results_*.json of lm-evaluation-harness: give the directory of --output_path";
        return Err(ReadEvaluationError::invalid(path, reason));
    };
    let is_other = |file: &&PathBuf| file.parent() != newest.parent();
    if let Some(other) = found.iter().find(is_other) {
        let name = |file: &Path| file.parent().unwrap_or(file).display().to_string();
        let reason =
            format!("has results of several models: name one of {}, {} …", name(other), name(&newest));
        return Err(ReadEvaluationError::invalid(path, reason));
    }
    Ok((newest, found.len() - 1))
}

fn list_results(directory: &Path) -> Result<Vec<PathBuf>, ReadEvaluationError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(ReadEvaluationError::io(directory))? {
        let file = entry.map_err(ReadEvaluationError::io(directory))?.path();
        if date_of(&file, "results_", ".json").is_some() {
            found.push(file);
        }
    }
    Ok(found)
}

/// What stands between a prefix and a suffix of a file's name.
fn date_of<'a>(file: &'a Path, prefix: &str, suffix: &str) -> Option<&'a str> {
    file.file_name()?.to_str()?.strip_prefix(prefix)?.strip_suffix(suffix)
}

/// The files of samples of the same date, each with its task.
fn sample_files(results: &Path) -> Result<Vec<(String, PathBuf)>, ReadEvaluationError> {
    let directory = results.parent().unwrap_or(Path::new("."));
    let suffix = format!("_{}.jsonl", date_of(results, "results_", ".json").unwrap_or_default());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(ReadEvaluationError::io(directory))? {
        let file = entry.map_err(ReadEvaluationError::io(directory))?.path();
        if let Some(task) = date_of(&file, "samples_", &suffix) {
            found.push((task.to_owned(), file.clone()));
        }
    }
    if found.is_empty() {
        let reason = "has no samples_*.jsonl of the same date beside it: evaluate with --log_samples";
        return Err(ReadEvaluationError::invalid(results, reason));
    }
    found.sort();
    Ok(found)
}

/// Reads the samples of a task that have the chosen filter. The first sample decides about a score that is not named.
fn read_samples(
    file: &Path,
    scorer: Option<&str>,
    score_name: &mut Option<ScoreName>,
    mut push: impl FnMut(EvaluatedSample),
) -> Result<(), ReadEvaluationError> {
    let mut reader = BufReader::new(File::open(file).map_err(ReadEvaluationError::io(file))?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = Read::take(&mut reader, MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
        if read.map_err(ReadEvaluationError::io(file))? == 0 {
            break;
        }
        let invalid = |reason: String| ReadEvaluationError::invalid(file, format!("line {number}: {reason}"));
        if line.len() as u64 > MAX_LINE_BYTES {
            return Err(invalid(format!("is longer than {MAX_LINE_BYTES} bytes")));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let sample = lenient_json::parse(&line).and_then(Sample::deserialize);
        let sample = sample.map_err(|cause| invalid(cause.to_string()))?;
        let name = match score_name {
            Some(name) => name,
            None => score_name.insert(choose_score(&sample, scorer).map_err(invalid)?),
        };
        if sample.filter.as_deref().unwrap_or("none") == name.filter {
            push(sample.convert(name));
        }
    }
    Ok(())
}

fn choose_score(first: &Sample, scorer: Option<&str>) -> Result<ScoreName, String> {
    let filter = first.filter.clone().unwrap_or_else(|| "none".into());
    let Some(scorer) = scorer else {
        let metric = first.metrics.first().ok_or("names no metric")?;
        return Ok(ScoreName { metric: metric.clone(), filter });
    };
    let (metric, filter) = match scorer.split_once(',') {
        Some((metric, filter)) => (metric, filter.to_owned()),
        None => (scorer, filter),
    };
    if first.metrics.iter().any(|known| known == metric) {
        Ok(ScoreName { metric: metric.to_owned(), filter })
    } else {
        Err(format!("has no metric {metric}; there are: {}", first.metrics.join(", ")))
    }
}

impl Sample {
    fn convert(self, name: &ScoreName) -> EvaluatedSample {
        let requests: Vec<&Value> =
            self.arguments.as_object().into_iter().flat_map(|all| all.values()).collect();
        let request = requests.first().map(|request| request_of(&request["arg_0"])).unwrap_or_default();
        let subject = SUBJECT_KEYS.iter().find_map(|key| self.doc.get(*key)?.as_str().map(str::to_owned));
        let energy = match requests.len() {
            0 | 1 => "its account was not looked up".to_owned(),
            count => {
                format!(
                    "it is {count} requests (log-likelihoods), whose accounts their prompts do not distinguish"
                )
            }
        };
        let score = self
            .scores
            .get(&name.metric)
            .map_or_else(|| Err(format!("it has no {}", name.metric)), score_value);
        EvaluatedSample {
            id: match &self.doc_id {
                Value::String(id) => id.clone(),
                id => id.to_string(),
            },
            repeat: 0,
            subject,
            prompt: request.text,
            answer: text_of(&self.target),
            reply: self
                .resps
                .get(0)
                .map(|replies| text_of(replies.get(0).unwrap_or(&Value::Null)))
                .unwrap_or_default(),
            score,
            is_cut_off: false,
            began_ns: 0,
            duration_ns: 0,
            tokens_in: None,
            tokens_out: None,
            energy: Err(energy),
            prompt_hash: request.hash.filter(|_| requests.len() == 1),
        }
    }
}

/// What the model is asked, and the hash by which the account of the request is found.
#[derive(Debug, Default)]
struct RequestPrompt {
    text: String,
    hash: Option<String>,
}

/// Reads the first argument of a request: a text, or a list with one text that is the JSON of the messages.
fn request_of(argument: &Value) -> RequestPrompt {
    let chat = argument.as_array().and_then(|all| all.first()).and_then(Value::as_str);
    let messages: Option<Value> = chat.and_then(|chat| serde_json::from_str(chat).ok());
    if let (Some(chat), Some(messages)) = (chat, messages) {
        let hash = prompt_hash(format!("{{\"messages\":{chat}}}").as_bytes());
        return RequestPrompt { text: text_of(&messages), hash };
    }
    let text = text_of(argument);
    let hash = prompt_hash(serde_json::json!({ "prompt": text }).to_string().as_bytes());
    RequestPrompt { text, hash }
}

#[cfg(test)]
mod tests;
