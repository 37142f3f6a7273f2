//! A query as one row of a table without nesting, for notebooks and data bases.
//!
//! Owns the columns of `--jsonl` and `--parquet`: all of a row, its question and its text. Every column is there in every
//! row; what is not known is null, in JSON and in Parquet.

use serde::Serialize;

use super::super::question::Question;
use super::super::row::{QueryEnergy, QueryRow, ReplyText};
use super::super::run_dir::Manifest;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// Text.
    Text,
    /// A whole number.
    Count,
    /// A real number.
    Real,
    /// Yes or no.
    Flag,
}

/// One value.
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
        /// One query.
        #[derive(Debug, Clone, PartialEq, Default, Serialize)]
        pub struct FlatRow {
            $($(#[$doc])* pub $name: Option<$kind>,)*
        }

        /// The columns in their order.
        pub const COLUMNS: &[(&str, ColumnType)] = &[$((stringify!($name), ColumnType::$form),)*];

        impl FlatRow {
            /// The values in the columns' order.
            pub fn cells(&self) -> [FlatCell<'_>; COLUMNS.len()] {
                [$(flat!(@ $form self.$name),)*]
            }
        }
    };
    (@ Text $of:expr) => { FlatCell::Text($of.as_deref()) };
    (@ $form:ident $of:expr) => { FlatCell::$form($of) };
}

flat! {
    /// What the run is called.
    run: Text String,
    /// The model.
    model: Text String,
    /// The question's name.
    id: Text String,
    /// Which repetition.
    repeat: Count u64,
    /// What it is about.
    subject: Text String,
    /// What was asked.
    prompt: Text String,
    /// The right answer.
    expected_answer: Text String,
    /// What the model replied.
    reply: Text String,
    /// What it settled on.
    settled: Text String,
    /// Why there is no answer.
    error: Text String,
    /// How often it was tried in vain before.
    retries: Count u64,
    /// Right 1, wrong 0.
    score: Real f64,
    /// Monotonic.
    began_ns: Count u64,
    /// To the end of the answer.
    duration_ns: Count u64,
    /// To the first token.
    first_token_ns: Count u64,
    /// Between tokens, median.
    between_tokens_p50_ns: Count u64,
    /// Between tokens, 99th percentile.
    between_tokens_p99_ns: Count u64,
    /// Of the prompt.
    tokens_in: Count u64,
    /// Of those, cached.
    tokens_cached: Count u64,
    /// Of the answer.
    tokens_out: Count u64,
    /// Counted chunks.
    tokens_estimated: Flag bool,
    /// Why the answer ended.
    finish: Text String,
    /// Mean log-probability of its tokens.
    mean_logprob: Real f64,
    /// Its share of the counted domains.
    share_uj: Count u64,
    /// Guaranteed half-width.
    error_uj: Count u64,
    /// Of the share, what would have been used anyway.
    idle_uj: Count u64,
    /// What the counted domains used meanwhile.
    window_uj: Count u64,
    /// Until the first token.
    prefill_uj: Count u64,
    /// From the first token on.
    decode_uj: Count u64,
    /// How long the account lasted.
    span_ns: Count u64,
    /// Spans open at once, at most.
    at_once: Count u64,
    /// How far the energy can be trusted.
    grade: Text String,
    /// Whether the machine was replayed from a file.
    simulated: Flag bool,
}

impl FlatRow {
    /// A query with all that is known of it.
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
