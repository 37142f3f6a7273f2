//! A query as one flat row, for notebooks and databases.
//!
//! The columns of `--jsonl` and `--parquet`: the row, its question and its texts. Invariant: every row has every
//! column; an unknown value is null, in JSON and in Parquet.

use serde::Serialize;

use super::super::question::Question;
use super::super::row::{QueryEnergy, QueryRow, ReplyText};
use super::super::run_dir::Manifest;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Text,
    /// An unsigned integer.
    Count,
    /// A floating-point number.
    Real,
    /// A Boolean.
    Flag,
}

/// The value of a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "as in ColumnType")]
pub enum FlatCell<'a> {
    Text(Option<&'a str>),
    Count(Option<u64>),
    Real(Option<f64>),
    Flag(Option<bool>),
}

macro_rules! flat {
    ($($(#[$doc:meta])* $name:ident: $form:ident $kind:ty,)*) => {
        /// The flat row of one query.
        #[derive(Debug, Clone, PartialEq, Default, Serialize)]
        pub struct FlatRow {
            $($(#[$doc])* pub $name: Option<$kind>,)*
        }

        /// Names and types of the columns, in order.
        pub const COLUMNS: &[(&str, ColumnType)] = &[$((stringify!($name), ColumnType::$form),)*];

        impl FlatRow {
            /// Returns the values in the order of the columns.
            pub fn cells(&self) -> [FlatCell<'_>; COLUMNS.len()] {
                [$(flat!(@ $form self.$name),)*]
            }
        }
    };
    (@ Text $of:expr) => { FlatCell::Text($of.as_deref()) };
    (@ $form:ident $of:expr) => { FlatCell::$form($of) };
}

flat! {
    /// Name of the run.
    run: Text String,
    /// Name of the model.
    model: Text String,
    /// Id of the question.
    id: Text String,
    /// Repeat of the question.
    repeat: Count u64,
    /// Subject of the question.
    subject: Text String,
    /// Prompt of the question.
    prompt: Text String,
    /// Correct answer.
    expected_answer: Text String,
    /// Reply of the model.
    reply: Text String,
    /// Answer extracted from the reply.
    settled: Text String,
    /// Why the query failed.
    error: Text String,
    /// Number of failed attempts before this one.
    retries: Count u64,
    /// Score: 1 correct, 0 incorrect.
    score: Real f64,
    /// Start, monotonic nanoseconds.
    began_ns: Count u64,
    /// Time to the end of the answer.
    duration_ns: Count u64,
    /// Time to first token (TTFT).
    first_token_ns: Count u64,
    /// Inter-token latency, median.
    between_tokens_p50_ns: Count u64,
    /// Inter-token latency, 99th percentile.
    between_tokens_p99_ns: Count u64,
    /// Prompt tokens.
    tokens_in: Count u64,
    /// Cached prompt tokens.
    tokens_cached: Count u64,
    /// Output tokens.
    tokens_out: Count u64,
    /// Whether the output tokens are counted chunks.
    tokens_estimated: Flag bool,
    /// Finish reason.
    finish: Text String,
    /// Mean log-probability of the output tokens.
    mean_logprob: Real f64,
    /// Share of the counted domains.
    share_uj: Count u64,
    /// Guaranteed half-width of the share.
    error_uj: Count u64,
    /// Idle part of the share.
    idle_uj: Count u64,
    /// Window energy of the counted domains.
    window_uj: Count u64,
    /// Prefill energy.
    prefill_uj: Count u64,
    /// Decode energy.
    decode_uj: Count u64,
    /// Duration of the account.
    span_ns: Count u64,
    /// Peak number of concurrently open spans.
    at_once: Count u64,
    /// Grade of the energy.
    grade: Text String,
    /// Whether the machine was simulated (replayed from a file).
    simulated: Flag bool,
}

impl FlatRow {
    /// Builds the flat row of a query.
    pub fn new(
        manifest: &Manifest,
        row: QueryRow,
        question: Option<&Question>,
        text: Option<&ReplyText>,
    ) -> Self {
        let metered = row.energy.is_some();
        let energy = row.energy.unwrap_or_default();
        let QueryEnergy { share_uj, error_uj, idle_uj, window_uj, prefill_uj, decode_uj, .. } = energy;
        Self {
            run: Some(manifest.label.clone()).filter(|label| !label.is_empty()),
            model: Some(manifest.model.clone()).filter(|model| !model.is_empty()),
            id: Some(row.id),
            repeat: Some(row.repeat.into()),
            subject: Some(row.subject),
            prompt: question.map(|question| question.prompt.clone()),
            expected_answer: question.map(|question| question.answer.clone()),
            reply: text.map(|text| text.reply.clone()),
            settled: text.and_then(|text| text.settled.clone()),
            error: row.error,
            retries: Some(row.retries.into()),
            score: row.score,
            began_ns: Some(row.began_ns),
            duration_ns: Some(row.duration_ns),
            first_token_ns: row.first_token_ns,
            between_tokens_p50_ns: row.between_tokens_ns.map(|(median, _)| median),
            between_tokens_p99_ns: row.between_tokens_ns.map(|(_, p99)| p99),
            tokens_in: row.tokens_in,
            tokens_cached: row.tokens_cached,
            tokens_out: row.tokens_out,
            tokens_estimated: Some(row.tokens_estimated),
            finish: row.finish,
            mean_logprob: row.mean_logprob,
            share_uj,
            error_uj,
            idle_uj,
            window_uj,
            prefill_uj,
            decode_uj,
            span_ns: metered.then_some(energy.span_ns),
            at_once: metered.then_some(energy.at_once.into()),
            grade: energy.grade.map(|grade| format!("{grade:?}").to_lowercase()),
            simulated: metered.then(|| manifest.is_simulated()),
        }
    }
}
