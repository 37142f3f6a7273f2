//! The public harness's results: reading them as a run, and writing a run as them.
//!
//! Owns the harness's schema (HazyResearch/intelligence-per-watt at 11ba0dc, `execution/types.py`: a `ProfilingRecord` for
//! each query; a directory of Arrow files as Hugging Face's `Dataset.save_to_disk` writes it, `summary.json` beside
//! them) and what its figures mean. JSON and JSON lines of the same columns are read too; Arrow and Parquet need the cargo feature `parquet`.
//! Invariant: what the harness did not know, or recorded as 0 because it did not know, is absent here, and what was
//! found missing or wrong is told.

#[cfg(feature = "parquet")]
pub mod columnar;
#[cfg(not(feature = "parquet"))]
#[path = "columnar_unsupported.rs"]
pub mod columnar;
pub mod export;
pub mod findings;
pub mod flat_row;
pub mod import;
pub mod provenance;
pub mod results_reader;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::question::AnswerFormat;
use super::run_dir;
use crate::domain::Grade;

/// Results that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file makes no sense.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong and what would mend it.
        reason: String,
    },
    /// This program was built without what it takes.
    #[error(
        "this wattspan was built without Arrow and Parquet: {0}; install it from a checkout with `cargo install --path . --features parquet`, or from a package, which has them"
    )]
    ParquetUnsupported(&'static str),
    /// The run's own files.
    #[error(transparent)]
    RunDir(#[from] run_dir::RunDirError),
}

impl HarnessError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { path, cause }
    }

    fn invalid(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Invalid { path: path.into(), reason: reason.to_string() }
    }
}

/// One query of the harness. Columns that nobody here needs are passed over.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProfilingRecord {
    /// What was asked.
    #[serde(default, alias = "prompt")]
    pub problem: Option<String>,
    /// The right answer: text, or a number in older data sets.
    #[serde(default, alias = "expected_answer")]
    pub answer: Value,
    /// What it is about.
    #[serde(default)]
    pub subject: Option<String>,
    /// Text (JSON inside) or an object; ours holds [`WattspanMetadata`] under "wattspan".
    #[serde(default)]
    pub dataset_metadata: Value,
    /// What each model replied.
    #[serde(default, deserialize_with = "or_default")]
    pub model_answers: BTreeMap<String, Option<String>>,
    /// What each model's reply took.
    #[serde(default, deserialize_with = "or_default")]
    pub model_metrics: BTreeMap<String, Option<ModelMetrics>>,
}

/// What a reply took. Every value may be null; an object that is null is one of nulls.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelMetrics {
    /// Always null in the harness.
    #[serde(deserialize_with = "or_default")]
    pub compute_metrics: ComputeMetrics,
    /// Joules.
    #[serde(deserialize_with = "or_default")]
    pub energy_metrics: EnergyMetrics,
    /// Seconds and rates.
    #[serde(deserialize_with = "or_default")]
    pub latency_metrics: LatencyMetrics,
    /// Megabytes.
    #[serde(deserialize_with = "or_default")]
    pub memory_metrics: MemoryMetrics,
    /// Watts.
    #[serde(deserialize_with = "or_default")]
    pub power_metrics: PowerMetrics,
    /// Degrees.
    #[serde(deserialize_with = "or_default")]
    pub temperature_metrics: MetricStats,
    /// Tokens; 0 where the harness did not know.
    #[serde(deserialize_with = "or_default")]
    pub token_metrics: TokenMetrics,
    /// The accelerator.
    pub gpu_info: Option<GpuInfo>,
    /// The machine.
    pub system_info: Option<SystemInfo>,
    /// False in everything that the harness wrote: it never scored.
    pub lm_correctness: Option<bool>,
    /// The reply again.
    #[serde(deserialize_with = "or_default")]
    pub lm_response: String,
}

/// Operations of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's")]
pub struct ComputeMetrics {
    pub flops_per_request: Option<f64>,
    pub macs_per_request: Option<f64>,
}

/// Energy of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EnergyMetrics {
    /// The counter's last sample in the query less the one of the query before it: whatever the machine used in between is in it.
    pub per_query_joules: Option<f64>,
    /// The same again.
    pub total_joules: Option<f64>,
}

/// Times of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct LatencyMetrics {
    pub per_token_ms: Option<f64>,
    pub throughput_tokens_per_sec: Option<f64>,
    /// 0 where no token came.
    pub time_to_first_token_seconds: Option<f64>,
    pub total_query_seconds: Option<f64>,
}

/// Memory of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct MemoryMetrics {
    #[serde(deserialize_with = "or_default")]
    pub cpu_mb: MetricStats,
    #[serde(deserialize_with = "or_default")]
    pub gpu_mb: MetricStats,
}

/// Power of a query, by component.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PowerMetrics {
    /// All accelerators together.
    #[serde(deserialize_with = "or_default")]
    pub gpu: PowerComponentMetrics,
}

/// Power of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PowerComponentMetrics {
    /// Over the samples within the query, of the last 30 s of it at most.
    #[serde(deserialize_with = "or_default")]
    pub per_query_watts: MetricStats,
    /// The same again.
    #[serde(deserialize_with = "or_default")]
    pub total_watts: MetricStats,
}

/// Samples in four numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct MetricStats {
    pub avg: Option<f64>,
    pub max: Option<f64>,
    pub median: Option<f64>,
    pub min: Option<f64>,
}

/// Tokens of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct TokenMetrics {
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub total: Option<u64>,
}

/// The accelerator, in the harness's words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct GpuInfo {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub vendor: String,
    #[serde(deserialize_with = "or_default")]
    pub device_id: i64,
    #[serde(deserialize_with = "or_default")]
    pub device_type: String,
    #[serde(deserialize_with = "or_default")]
    pub backend: String,
}

/// The machine, in the harness's words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct SystemInfo {
    #[serde(deserialize_with = "or_default")]
    pub os_name: String,
    #[serde(deserialize_with = "or_default")]
    pub os_version: String,
    #[serde(deserialize_with = "or_default")]
    pub kernel_version: String,
    #[serde(deserialize_with = "or_default")]
    pub host_name: String,
    #[serde(deserialize_with = "or_default")]
    pub cpu_count: i64,
    #[serde(deserialize_with = "or_default")]
    pub cpu_brand: String,
}

/// `summary.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HarnessSummary {
    /// The model.
    pub model: Option<String>,
    /// The data set's identifier.
    pub dataset: Option<String>,
    /// Its title.
    pub dataset_name: Option<String>,
    /// The machine in a word.
    pub hardware_label: Option<String>,
    /// Unix seconds.
    pub generated_at: Option<f64>,
    /// How many records.
    pub total_queries: Option<u64>,
    /// The machine.
    pub system_info: Option<SystemInfo>,
    /// The accelerator.
    pub gpu_info: Option<GpuInfo>,
    /// Where it was written.
    pub output_dir: Option<String>,
    /// What the energies count; the harness knows accelerators only and has no such word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_scope: Option<String>,
}

/// What the harness's schema has no place for, kept in the metadata of what we write.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WattspanMetadata {
    /// The question's name.
    pub id: String,
    /// Which repetition.
    pub repeat: u32,
    /// How it is scored.
    pub format: Option<AnswerFormat>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The score, which may lie between right and wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Monotonic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began_ns: Option<u64>,
    /// How far the energy can be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Guaranteed half-width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
    /// Of the energy, what would have been used anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_uj: Option<u64>,
    /// All that the machine used in the scope meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_uj: Option<u64>,
}

/// Python's and Arrow's nulls stand where an object or a text belongs.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}
