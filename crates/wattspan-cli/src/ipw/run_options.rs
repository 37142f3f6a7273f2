//! Options of `wattspan ipw run`.

use std::path::PathBuf;

use wattspan_ipw::question_sets::QuestionSet;
use wattspan_ipw::run::MAX_QUERIES_PER_SECOND;

use super::options::{FigureOptions, parse_named_value};
use super::server_options::ServerOptions;

/// Arguments of `wattspan ipw run`.
#[derive(Debug, Clone, clap::Args)]
pub struct IpwRunArgs {
    #[command(flatten)]
    pub server: ServerOptions,
    /// Questions as JSON lines [default: 50 built-in questions]
    #[arg(long, short = 'q', value_name = "FILE")]
    pub questions: Option<PathBuf>,
    /// Read FILE as this published set, as it is distributed (JSON lines, JSON or CSV; a directory for MATH)
    #[arg(long = "as", value_name = "SET", requires = "questions", value_enum)]
    pub question_set: Option<QuestionSet>,
    /// Use only the first N questions
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Output directory of the run [default: runs/MODEL-TIME]
    #[arg(long, short = 'o', value_name = "DIRECTORY", conflicts_with = "resume")]
    pub out: Option<PathBuf>,
    /// Resume an interrupted run with its original settings; failed queries are repeated
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = FIXED_ON_RESUME)]
    pub resume: Option<PathBuf>,
    /// Command printed for resuming an interrupted run, for scripts that start this program
    #[arg(long, value_name = "COMMAND")]
    pub resume_command: Option<String>,
    /// Label of the run in reports [default: the model]
    #[arg(long, value_name = "NAME")]
    pub label: Option<String>,
    /// Number of concurrent queries (closed loop)
    #[arg(long, short = 'c', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub concurrency: u64,
    /// Open-loop request rate, in queries per second
    #[arg(long, value_name = "RATE", conflicts_with = "concurrency", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Ask each question N times
    #[arg(long, short = 'r', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Number of uncounted warm-up queries
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub warm_up: u32,
    /// Number of retries of a failed query
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub retries: u32,
    /// Run even if no meter is available; the rows then have no energy
    #[arg(long)]
    pub without_meter: bool,
    /// The model's file, whose name, size and SHA-256 are recorded
    #[arg(long, value_name = "FILE")]
    pub model_file: Option<PathBuf>,
    /// State a condition for the result card, e.g. engine_flags="-ngl 99"; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_named_value::<String>)]
    pub condition: Vec<(String, String)>,
    #[command(flatten)]
    pub figure_options: FigureOptions,
}

/// Options that a resumed run takes from its directory.
const FIXED_ON_RESUME: [&str; 21] = [
    "questions",
    "question_set",
    "limit",
    "label",
    "concurrency",
    "rate",
    "repeats",
    "warm_up",
    "retries",
    "timeout",
    "model",
    "api",
    "max_tokens",
    "temperature",
    "seed",
    "system",
    "no_stream",
    "logprobs",
    "extra_body",
    "model_file",
    "condition",
];

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if rate > 0.0 && rate <= MAX_QUERIES_PER_SECOND {
        Ok(rate)
    } else {
        Err("expected a rate above 0 and up to 100000".into())
    }
}
