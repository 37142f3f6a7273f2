//! Results of the public harness: import as a run, and export of a run.
//!
//! Defines the harness's schema (HazyResearch/intelligence-per-watt at 11ba0dc, `execution/types.py`): a
//! `ProfilingRecord` per query, in a directory of Arrow files as Hugging Face's `Dataset.save_to_disk` writes it, with
//! `summary.json`, and with the columns that it added since (0431d11, 4facd51: judged answers, energies of CPU, neural
//! engine and SoC, phases). JSON and JSON lines with the same columns are read, too; Arrow and Parquet need the cargo feature
//! `parquet`. Invariant: a value that the harness did not know, or recorded as 0 for that reason, is absent after
//! import, and the findings list it.

pub mod accuracy;
#[cfg(feature = "parquet")]
pub mod columnar;
#[cfg(not(feature = "parquet"))]
#[path = "columnar_unsupported.rs"]
pub mod columnar;
pub mod energy_basis;
pub mod export;
pub mod findings;
pub mod flat_row;
pub mod import;
pub mod output;
pub mod provenance;
pub mod results_reader;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use wattspan_client::domain::Grade;

use super::answer_format::AnswerFormat;
use super::run_dir;

/// Results cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        cause: std::io::Error,
    },
    /// The content of a file is invalid.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong, and how to correct it.
        reason: String,
    },
    /// The build lacks the cargo feature `parquet`.
    #[error(
        "this wattspan was built without Arrow and Parquet: {0}; install it from a checkout with `cargo install --path crates/wattspan-cli`, or from a package, which have them"
    )]
    ParquetUnsupported(&'static str),
    /// An error of the run's own files.
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

/// One query of the harness. Unused columns are ignored.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProfilingRecord {
    /// The prompt.
    #[serde(default, alias = "prompt")]
    pub problem: Option<String>,
    /// The correct answer: text, or a number in older data sets.
    #[serde(default, alias = "expected_answer")]
    pub answer: Value,
    #[serde(default)]
    pub subject: Option<String>,
    /// JSON as text, or an object; our own exports store [`WattspanMetadata`] under "wattspan".
    #[serde(default)]
    pub dataset_metadata: Value,
    #[serde(default, deserialize_with = "or_default")]
    pub model_answers: BTreeMap<String, Option<String>>,
    #[serde(default, deserialize_with = "or_default")]
    pub model_metrics: BTreeMap<String, Option<ModelMetrics>>,
}

/// The metrics of a reply. Every value may be null; a null object equals an object of nulls.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelMetrics {
    /// Operation counts; always null in the harness.
    #[serde(deserialize_with = "or_default")]
    pub compute_metrics: ComputeMetrics,
    /// Energy, joules.
    #[serde(deserialize_with = "or_default")]
    pub energy_metrics: EnergyMetrics,
    #[serde(deserialize_with = "or_default")]
    pub latency_metrics: LatencyMetrics,
    /// Memory use, megabytes.
    #[serde(deserialize_with = "or_default")]
    pub memory_metrics: MemoryMetrics,
    /// Power, watts.
    #[serde(deserialize_with = "or_default")]
    pub power_metrics: PowerMetrics,
    /// Temperature, degrees Celsius.
    #[serde(deserialize_with = "or_default")]
    pub temperature_metrics: MetricStats,
    /// Token counts; 0 if the harness did not know them.
    #[serde(deserialize_with = "or_default")]
    pub token_metrics: TokenMetrics,
    pub gpu_info: Option<GpuInfo>,
    pub system_info: Option<SystemInfo>,
    /// False in all results of the harness's first version, which never scores; the judged score in later ones.
    pub lm_correctness: Option<bool>,
    /// The judged score; absent before the results were evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// Energies of the phases.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "PhaseMetrics::is_empty")]
    pub phase_metrics: PhaseMetrics,
    /// The reply, repeated.
    #[serde(deserialize_with = "or_default")]
    pub lm_response: String,
}

/// The evaluation of a reply by the harness's scorer or judge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluation {
    /// Whether the reply is correct; null if the evaluation failed.
    pub is_correct: Option<bool>,
}

/// Energies of a query's phases, joules.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct PhaseMetrics {
    pub prefill_energy_j: Option<f64>,
    pub decode_energy_j: Option<f64>,
}

impl PhaseMetrics {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Operation counts of a query.
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
    /// Energy of the accelerators. In the harness's first version the counter's last sample in the query minus that of
    /// the previous query, including the energy used in between; within the query's window in later ones.
    pub per_query_joules: Option<f64>,
    /// A repetition of `per_query_joules`.
    pub total_joules: Option<f64>,
    /// Energy of the processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_per_query_joules: Option<f64>,
    /// Energy of the neural engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ane_per_query_joules: Option<f64>,
    /// Energy of the whole chip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soc_per_query_joules: Option<f64>,
    /// "soc" where the harness's figures are over `soc_per_query_joules`; otherwise they are over `per_query_joules`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basis: Option<String>,
}

/// Times of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct LatencyMetrics {
    pub per_token_ms: Option<f64>,
    pub throughput_tokens_per_sec: Option<f64>,
    /// 0 if no token was received.
    pub time_to_first_token_seconds: Option<f64>,
    pub total_query_seconds: Option<f64>,
}

/// Memory use of a query.
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
    /// All processors together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<PowerComponentMetrics>,
    /// The whole chip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soc: Option<PowerComponentMetrics>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PowerComponentMetrics {
    /// Statistics over the samples within the query, limited to its last 30 s.
    #[serde(deserialize_with = "or_default")]
    pub per_query_watts: MetricStats,
    /// A repetition of `per_query_watts`.
    #[serde(deserialize_with = "or_default")]
    pub total_watts: MetricStats,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct MetricStats {
    pub avg: Option<f64>,
    pub max: Option<f64>,
    pub median: Option<f64>,
    pub min: Option<f64>,
}

/// Token counts of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the harness's and say it")]
pub struct TokenMetrics {
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub total: Option<u64>,
}

/// The accelerator, as the harness names it.
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

/// The machine, as the harness names it.
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

/// The content of `summary.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HarnessSummary {
    /// Name of the model.
    pub model: Option<String>,
    /// Identifier of the data set.
    pub dataset: Option<String>,
    /// Title of the data set.
    pub dataset_name: Option<String>,
    pub hardware_label: Option<String>,
    /// Time of writing, Unix seconds.
    pub generated_at: Option<f64>,
    pub total_queries: Option<u64>,
    pub system_info: Option<SystemInfo>,
    pub gpu_info: Option<GpuInfo>,
    pub output_dir: Option<String>,
    /// The length of the sample buffer; absent in results of versions that keep the last 30 s of a query alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telemetry_buffer_seconds: Option<f64>,
    /// Versions of the harness and its parts.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, Value>,
    /// The scope of the energies; an extension of our own exports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_scope: Option<String>,
}

/// Data without a column in the harness's schema, stored in the metadata of exports.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WattspanMetadata {
    /// Id of the question.
    pub id: String,
    /// Repeat of the question.
    pub repeat: u32,
    /// Answer format of the question.
    pub format: Option<AnswerFormat>,
    /// Why the query failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The score, possibly between 0 and 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Start, monotonic nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began_ns: Option<u64>,
    /// Grade of the energy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Guaranteed half-width of the energy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
    /// Idle part of the energy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_uj: Option<u64>,
    /// Window energy in the scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_uj: Option<u64>,
}

/// Deserializes null as the default value: Python and Arrow write null for missing objects and texts.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}
