//! The result of one query: the file format of a run.
//!
//! A row is one line of JSON with figures only; prompts and replies are in `texts.jsonl`, so that reports over
//! millions of rows do not read them. Energies are the daemon's integer microjoules. Invariant: an unknown value is
//! absent; the energy of a row is that of all tries of its query that reached the server.

use serde::{Deserialize, Serialize};

use wattspan_client::domain::Grade;

/// The row of one query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueryRow {
    /// The id of the question.
    pub id: String,
    /// The repeat of the question, from 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub repeat: u32,
    /// The subject of the question.
    pub subject: String,
    /// Why the query failed, on one line; absent if it was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the server received the request of a failed query. A delivered one is a wrong answer; one that was not
    /// delivered was not asked. Absent if the query was answered, and in rows of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<bool>,
    /// The part of the run: 0 until it is resumed for the first time, then one more with each resumption.
    #[serde(default, skip_serializing_if = "is_default")]
    pub session: u32,
    /// Number of failed attempts before this one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retries: u32,
    /// Score: 1 correct, 0 incorrect, or a judge's value in between; absent if not scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The command that gave the score; absent if a rule or a judge did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scored_by: Option<String>,
    /// Time of the request, monotonic nanoseconds.
    pub began_ns: u64,
    /// Time from the request to the end of the answer.
    pub duration_ns: u64,
    /// Time to first token (TTFT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ns: Option<u64>,
    /// Median and 99th percentile of the inter-token (or inter-chunk) latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between_tokens_ns: Option<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_in: Option<u64>,
    /// Prompt tokens that the server had in its cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_cached: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_out: Option<u64>,
    /// Whether `tokens_out` counts the chunks of the stream, because the server did not report tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tokens_estimated: bool,
    /// Finish reason: "stop", "length", ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// Mean log-probability of the output tokens, if the server reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_logprob: Option<f64>,
    /// The energy of all delivered tries of the query together; absent if one of them has no account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<QueryEnergy>,
    /// Why a metered query has no energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmetered: Option<String>,
}

/// The parts of a query's account that reports need.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueryEnergy {
    /// The id of the span of the last try.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub span: String,
    /// Share of the counted domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<u64>,
    /// Guaranteed half-width of `share_uj`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
    /// Idle part of `share_uj`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_uj: Option<u64>,
    /// Window energy of the counted domains: all that they used while the span was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_uj: Option<u64>,
    /// What imported figures have beyond whole microjoules, in picojoules, to be added to share and window: their
    /// energies are floating-point numbers. 0 where the daemon measured.
    #[serde(default, skip_serializing_if = "is_default")]
    pub remainder_pj: i32,
    /// The worst grade among the counted domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Whether the totals are lower bounds: a counted domain may be missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
    /// Duration of the account; the sum over all tries.
    pub span_ns: u64,
    /// Sum of the distances of its edges from the query's, because the daemon received them late. `error_uj` covers
    /// the energy in between.
    #[serde(default, skip_serializing_if = "is_default")]
    pub moved_ns: u64,
    /// Peak number of concurrently open spans.
    #[serde(default, skip_serializing_if = "is_default")]
    pub at_once: u32,
    /// Prefill energy of the last try: until the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_uj: Option<u64>,
    /// Decode energy of the last try: from the first token on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_uj: Option<u64>,
    /// The energy of each domain, in the order of the run's `domains`; without a share if the domain had no value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainEnergy>,
    /// Domains of the account that are not in the run, because they became live after it began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_domains: Vec<String>,
}

/// A query's energy in one domain.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DomainEnergy {
    /// Share of the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<u64>,
    /// Guaranteed half-width of the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
    /// Idle part of the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_uj: Option<u64>,
    /// Window energy of the domain; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_uj: Option<u64>,
}

/// The reply of a query, beside the row of the same `id` and `repeat`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReplyText {
    /// The id of the question.
    pub id: String,
    /// The repeat of the question.
    #[serde(default, skip_serializing_if = "is_default")]
    pub repeat: u32,
    /// The session of its row; absent in runs of earlier versions and in imported ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<u32>,
    /// The complete reply of the model.
    pub reply: String,
    /// The extracted answer, if a rule could read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<String>,
}

impl ReplyText {
    /// Whether this is the reply of the row, and not that of an earlier try of its query.
    pub fn is_of(&self, row: &QueryRow) -> bool {
        (self.id.as_str(), self.repeat) == (row.id.as_str(), row.repeat)
            && self.session.is_none_or(|session| session == row.session)
    }
}

/// The energy of a failed try, or why it is unknown.
pub type EarlierTry = Result<QueryEnergy, String>;

/// The finish reasons of an answer that is not complete.
const CUT_OFF: [&str; 9] = [
    "length",
    "max_tokens",
    "max_output_tokens",
    "model_length",
    "incomplete",
    "content_filter",
    "abort",
    "aborted",
    "cancelled",
];

/// Returns whether an HTTP status means that the server refused the request before it did any work on the question. Other
/// errors, such as 400 or 413 for a question that is too long, are answers to the question.
pub fn is_refused_before_work(status: u16) -> bool {
    matches!(status, 300..=399 | 401..=405 | 407 | 409 | 425 | 426 | 429 | 503)
}

impl QueryEnergy {
    /// Adds the energy of another try of the same query. Error bounds add; what is unknown for one is unknown for both.
    pub fn add(&mut self, other: &Self) {
        let sum = |one: Option<u64>, other: Option<u64>| Some(one?.saturating_add(other?));
        self.share_uj = sum(self.share_uj, other.share_uj);
        self.error_uj = sum(self.error_uj, other.error_uj);
        self.idle_uj = sum(self.idle_uj, other.idle_uj);
        // A span without concurrent spans has the whole window; earlier versions stored none for it.
        let window = |of: &Self, own: Option<u64>| own.or(of.share_uj.filter(|_| of.at_once == 1));
        let own_window = window(self, self.window_uj);
        self.window_uj = sum(own_window, window(other, other.window_uj));
        self.grade = self.grade.max(other.grade);
        self.at_least |= other.at_least;
        self.span_ns = self.span_ns.saturating_add(other.span_ns);
        self.moved_ns = self.moved_ns.saturating_add(other.moved_ns);
        self.at_once = self.at_once.max(other.at_once);
        if self.domains.len() != other.domains.len() {
            self.domains.clear();
        }
        for (part, more) in self.domains.iter_mut().zip(&other.domains) {
            *part = DomainEnergy {
                share_uj: sum(part.share_uj, more.share_uj),
                error_uj: sum(part.error_uj, more.error_uj),
                idle_uj: sum(part.idle_uj, more.idle_uj),
                window_uj: sum(part.window_uj, more.window_uj),
            };
        }
        for name in &other.other_domains {
            if !self.other_domains.contains(name) {
                self.other_domains.push(name.clone());
            }
        }
    }
}

impl QueryRow {
    /// Returns whether the model answered.
    pub fn is_answered(&self) -> bool {
        self.error.is_none()
    }

    /// Returns whether the server received the question. Rows of earlier versions are judged by their error text.
    pub fn is_delivered(&self) -> bool {
        let Some(error) = &self.error else { return true };
        self.delivered.unwrap_or_else(|| {
            let status = error.strip_prefix("HTTP ").and_then(|rest| rest.get(..3)?.parse().ok());
            !error.starts_with("no connection: ") && !status.is_some_and(is_refused_before_work)
        })
    }

    /// Returns the score that counts: a delivered query that failed or was cut off is wrong, whatever its text; one that
    /// was not delivered has no score.
    pub fn counted_score(&self) -> Option<f64> {
        match (self.is_answered(), self.is_cut_off()) {
            (true, false) => self.score,
            (true, true) => Some(0.0),
            (false, _) => self.is_delivered().then_some(0.0),
        }
    }

    /// Returns whether the server ended the answer before the model did: at the answer limit, or by an abort.
    pub fn is_cut_off(&self) -> bool {
        let reason = self.finish.as_deref().unwrap_or_default();
        CUT_OFF.iter().any(|cut_off| reason.eq_ignore_ascii_case(cut_off))
    }

    /// Adds the energy of earlier tries of the same query that reached the server. If that of one is unknown, that of all
    /// is. If the last try did not reach the server, the query is the earlier ones alone.
    pub fn add_tries(&mut self, mut earlier: &[EarlierTry]) {
        if let (false, [first, rest @ ..]) = (self.is_delivered(), earlier) {
            let is_metered = self.energy.is_some() || self.unmetered.is_some();
            (self.energy, self.unmetered) = match first {
                Ok(energy) => (Some(energy.clone()), None),
                Err(reason) => (None, Some(reason.clone()).filter(|_| is_metered)),
            };
            self.delivered = Some(true);
            self.score = self.counted_score();
            earlier = rest;
        }
        for it in earlier {
            let Some(energy) = &mut self.energy else { return };
            match it {
                Ok(more) => energy.add(more),
                Err(reason) => {
                    self.energy = None;
                    self.unmetered = Some(format!("an earlier try: {reason}"));
                }
            }
        }
    }

    /// Returns the row as an earlier try of a later row; `None` if it does not count towards it.
    pub fn as_earlier_try(&self) -> Option<EarlierTry> {
        if self.is_answered() || !self.is_delivered() {
            return None;
        }
        let no_reason = || "it has no energy".to_owned();
        Some(self.energy.clone().ok_or_else(|| self.unmetered.clone().unwrap_or_else(no_reason)))
    }

    /// Returns the key of the row, unique within its run apart from retries.
    pub fn key(&self) -> (String, u32) {
        (self.id.clone(), self.repeat)
    }
}

/// Whether a field is left out: serde then reads its default.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn energy(share_uj: u64, domains: &[Option<u64>]) -> QueryEnergy {
        let part = |share_uj: &Option<u64>| DomainEnergy { share_uj: *share_uj, ..DomainEnergy::default() };
        QueryEnergy {
            span: share_uj.to_string(),
            share_uj: Some(share_uj),
            error_uj: Some(10),
            window_uj: Some(2 * share_uj),
            grade: Some(Grade::Measured),
            span_ns: 1_000,
            at_once: 2,
            domains: domains.iter().map(part).collect(),
            ..QueryEnergy::default()
        }
    }

    fn failed(energy: Option<QueryEnergy>) -> QueryRow {
        QueryRow { error: Some("broke off".into()), delivered: Some(true), energy, ..QueryRow::default() }
    }

    #[test]
    fn the_energies_of_all_tries_add_and_so_do_their_errors() {
        let mut row =
            QueryRow { energy: Some(energy(5, &[Some(3), None])), score: Some(1.0), ..QueryRow::default() };
        let worse =
            QueryEnergy { grade: Some(Grade::Estimated), at_once: 3, ..energy(50, &[Some(30), Some(1)]) };
        let earlier = failed(Some(worse)).as_earlier_try().unwrap();
        row.add_tries(&[earlier.clone(), earlier]);
        assert_eq!((row.score, row.delivered), (Some(1.0), None));
        let sum = row.energy.unwrap();
        assert_eq!((sum.share_uj, sum.error_uj, sum.window_uj), (Some(105), Some(30), Some(210)));
        assert_eq!((sum.span_ns, sum.at_once, sum.grade), (3_000, 3, Some(Grade::Estimated)));
        assert_eq!((sum.domains[0].share_uj, sum.domains[1].share_uj), (Some(63), None));
        assert_eq!((sum.span.as_str(), sum.idle_uj), ("5", None), "the last try's span");
    }

    #[test]
    fn a_try_of_unknown_energy_makes_that_of_the_query_unknown() {
        let mut row = QueryRow { energy: Some(energy(5, &[])), ..QueryRow::default() };
        let unmetered = QueryRow { unmetered: Some("no account".into()), ..failed(None) };
        let earlier = [Ok(energy(1, &[])), unmetered.as_earlier_try().unwrap()];
        row.add_tries(&earlier);
        assert_eq!((row.energy, row.unmetered.as_deref()), (None, Some("an earlier try: no account")));
        // A run without a meter has no energy, and no reason for it.
        let mut without_meter = QueryRow::default();
        without_meter.add_tries(&[failed(None).as_earlier_try().unwrap()]);
        assert_eq!(without_meter, QueryRow::default());
    }

    #[test]
    fn a_last_try_that_did_not_arrive_leaves_the_earlier_ones() {
        let refused = |energy| QueryRow { delivered: Some(false), ..failed(energy) };
        assert_eq!(refused(Some(energy(5, &[]))).as_earlier_try(), None);
        let mut row = refused(Some(energy(5, &[])));
        row.add_tries(&[]);
        assert_eq!((row.counted_score(), row.delivered), (None, Some(false)));
        row.add_tries(&[Ok(energy(7, &[])), Ok(energy(8, &[]))]);
        assert_eq!((row.counted_score(), row.score, row.delivered), (Some(0.0), Some(0.0), Some(true)));
        assert_eq!(row.energy.unwrap().share_uj, Some(15));
    }
}
