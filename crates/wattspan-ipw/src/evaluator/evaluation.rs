//! What an evaluator did, independent of its file format.

use std::io;
use std::path::PathBuf;

use wattspan_client::protocol::DomainStatus;

use super::super::row::QueryEnergy;
use super::super::scope::RunDomain;

/// An evaluator's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadEvaluationError {
    /// A file cannot be read.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        cause: io::Error,
    },
    /// The content of a file is invalid.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
}

impl ReadEvaluationError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { path, cause }
    }

    pub(super) fn invalid(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Invalid { path: path.into(), reason: reason.to_string() }
    }
}

/// One evaluation of one model.
#[derive(Debug, Default)]
pub struct Evaluation {
    /// "inspect-ai" or "lm-evaluation-harness".
    pub evaluator: &'static str,
    /// As the package index has it, for example "0.3.285".
    pub version: String,
    /// The task, or the tasks.
    pub task: String,
    pub model: String,
    /// The base URL of the server, if the files name it.
    pub server: String,
    /// The name of the score.
    pub scorer: String,
    /// The evaluator's own mean of that score.
    pub own_score: Option<f64>,
    /// When it began.
    pub began_unix_ns: u64,
    /// The most requests that the evaluator was configured to have open at once.
    pub concurrency: Option<u64>,
    pub temperature: Option<f64>,
    /// Answer limit, tokens.
    pub max_tokens: Option<u64>,
    /// The number of samples that it was configured to evaluate, if the files state it.
    pub planned: Option<usize>,
    /// The version of the meter; empty without one.
    pub meter: String,
    /// The domains whose energies the samples have.
    pub domains: Vec<RunDomain>,
    /// What the meter's guarantee assumes of each domain, if it was asked.
    pub assumptions: Option<Vec<DomainStatus>>,
    pub samples: Vec<EvaluatedSample>,
    /// What a reader of the figures must know.
    pub remarks: Vec<String>,
}

/// One question, asked once.
#[derive(Debug)]
pub struct EvaluatedSample {
    /// The id of the question in the evaluator's data set.
    pub id: String,
    /// The repeat of the question, from 0.
    pub repeat: u32,
    /// The subject, if the data set has one.
    pub subject: Option<String>,
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    pub reply: String,
    /// The evaluator's score from 0 to 1, or why there is none.
    pub score: Result<f64, String>,
    /// Whether the answer ended at the answer limit.
    pub is_cut_off: bool,
    /// The beginning of the first model call, monotonic nanoseconds.
    pub began_ns: u64,
    /// From there to the end of the last model call.
    pub duration_ns: u64,
    pub tokens_in: Option<u64>,
    pub tokens_out: Option<u64>,
    /// The sum over its model calls, or why it is unknown.
    pub energy: Result<QueryEnergy, String>,
    /// The hash by which the accounts of its requests are found.
    pub prompt_hash: Option<String>,
}

/// Removes the error bounds where the daemon moved an edge: they are around the account's edges, not the request's.
pub(super) fn without_moved_bounds(mut energy: QueryEnergy) -> QueryEnergy {
    if energy.moved_ns > 0 {
        energy.error_uj = None;
        energy.domains.iter_mut().for_each(|domain| domain.error_uj = None);
    }
    energy
}
