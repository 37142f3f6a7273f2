//! The figures of a run's queries, stored by column.
//!
//! Converts a row's integer microjoules and nanoseconds to joules and seconds. Invariant: in a column `NaN` means
//! "unknown" and nothing else; other modules read values through [`known`].

use std::hash::Hasher;

use fnv::FnvHasher;
use wattspan_client::domain::Grade;

use super::row::QueryRow;
use super::scope::{IdlePolicy, Scope};

/// Marks an unknown value.
const UNKNOWN: f64 = f64::NAN;

/// Returns a column's value if it is known.
pub fn known(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The figures of all queries, one column each.
        #[derive(Debug, Default)]
        pub struct QueryColumns {
            /// Hash of question id and repeat.
            key: Vec<u64>,
            /// Hash of the question id.
            question: Vec<u64>,
            /// Whether any question was asked more than once.
            repeated: bool,
            /// Index of the subject in `RunTable::subjects`; while a chunk is read, index in the chunk's own list.
            pub subject: Vec<u32>,
            /// Whether the query was answered.
            pub answered: Vec<bool>,
            /// Whether the server received the question; a delivered one without an answer is wrong.
            pub delivered: Vec<bool>,
            /// The part of the run between two resumptions.
            pub session: Vec<u32>,
            /// The grade of its energy.
            pub grade: Vec<Option<Grade>>,
            $($(#[$doc])* pub $name: Vec<f64>,)*
        }

        impl QueryColumns {
            /// Reserves capacity, so that columns of millions of rows are not reallocated as they grow.
            pub(super) fn reserve(&mut self, more: usize) {
                self.key.reserve_exact(more);
                self.question.reserve_exact(more);
                self.subject.reserve_exact(more);
                self.answered.reserve_exact(more);
                self.delivered.reserve_exact(more);
                self.session.reserve_exact(more);
                self.grade.reserve_exact(more);
                $(self.$name.reserve_exact(more);)*
            }

            /// Appends the rows of another table.
            pub(super) fn append(&mut self, mut other: Self) {
                self.key.append(&mut other.key);
                self.question.append(&mut other.question);
                self.repeated |= other.repeated;
                self.subject.append(&mut other.subject);
                self.answered.append(&mut other.answered);
                self.delivered.append(&mut other.delivered);
                self.session.append(&mut other.session);
                self.grade.append(&mut other.grade);
                $(self.$name.append(&mut other.$name);)*
            }

            /// Removes the rows that are not marked.
            pub(super) fn retain_rows(&mut self, mask: &[bool]) {
                fn only<T>(column: &mut Vec<T>, mask: &[bool]) {
                    let mut at = 0..;
                    column.retain(|_| at.next().is_some_and(|at: usize| mask[at]));
                }
                only(&mut self.key, mask);
                only(&mut self.question, mask);
                only(&mut self.subject, mask);
                only(&mut self.answered, mask);
                only(&mut self.delivered, mask);
                only(&mut self.session, mask);
                only(&mut self.grade, mask);
                $(only(&mut self.$name, mask);)*
            }
        }
    };
}

columns! {
    /// Score: 1 correct, 0 incorrect.
    score,
    /// Start, monotonic seconds.
    began_s,
    /// Duration, seconds.
    duration_s,
    /// Time to first token (TTFT), seconds.
    first_token_s,
    /// Median inter-token latency, seconds.
    inter_token_s,
    tokens_in,
    /// Cached prompt tokens.
    tokens_cached,
    tokens_out,
    /// Mean log-probability of the output tokens.
    mean_logprob,
    /// Duration of the account, seconds.
    span_s,
    /// Peak number of concurrently open spans.
    peak_concurrency,
    /// Prefill energy, joules.
    prefill_j,
    /// Decode energy, joules.
    decode_j,
    /// Share in the host scope, joules.
    host_j,
    /// Guaranteed half-width of the host share.
    host_error_j,
    /// Idle part of the host share.
    host_idle_j,
    /// Window energy of the host, joules: all energy used while the span was open.
    host_window_j,
    /// Share in the compute scope (CPU, memory, accelerator), joules.
    compute_j,
    /// Guaranteed half-width of the compute share.
    compute_error_j,
    /// Idle part of the compute share.
    compute_idle_j,
    /// Window energy of the compute domains, joules.
    compute_window_j,
    /// Share in the accelerator scope, joules.
    accelerator_j,
    /// Guaranteed half-width of the accelerator share.
    accelerator_error_j,
    /// Idle part of the accelerator share.
    accelerator_idle_j,
    /// Window energy of the accelerator domains, joules.
    accelerator_window_j,
}

/// The energy columns of one scope, joules.
#[derive(Debug, Clone, Copy)]
pub struct ScopeColumns<'a> {
    pub share: &'a [f64],
    /// Guaranteed half-width of the share.
    pub error: &'a [f64],
    /// Idle part of the share.
    pub idle: &'a [f64],
    /// Window energy: all that the domains used while the span was open.
    pub window: &'a [f64],
}

impl QueryColumns {
    /// The number of queries.
    pub fn len(&self) -> usize {
        self.key.len()
    }

    /// Whether there are no queries.
    pub fn is_empty(&self) -> bool {
        self.key.is_empty()
    }

    /// Returns the energy columns of a scope.
    pub fn scope_columns(&self, scope: Scope) -> ScopeColumns<'_> {
        let [share, error, idle, window] = match scope {
            Scope::Host => [&self.host_j, &self.host_error_j, &self.host_idle_j, &self.host_window_j],
            Scope::Compute => {
                [&self.compute_j, &self.compute_error_j, &self.compute_idle_j, &self.compute_window_j]
            }
            Scope::Accelerator => [
                &self.accelerator_j,
                &self.accelerator_error_j,
                &self.accelerator_idle_j,
                &self.accelerator_window_j,
            ],
        };
        ScopeColumns { share, error, idle, window }
    }

    /// Returns the key of a query, unique within the run.
    pub fn query_hashes(&self) -> impl Iterator<Item = u64> {
        self.key.iter().copied()
    }

    /// Returns the key that pairs a query with the same query of other runs.
    pub fn query_hash(&self, at: usize) -> u64 {
        self.key[at]
    }

    /// Returns the question key of a query, equal in all runs and repeats.
    pub fn question_hash(&self, at: usize) -> u64 {
        self.question[at]
    }

    /// Returns the start and the end of a query, seconds.
    pub fn open_s(&self, at: usize) -> [f64; 2] {
        [self.began_s[at], self.began_s[at] + self.duration_s[at]]
    }

    /// Returns whether any question was asked more than once; otherwise each query is a question of its own.
    pub fn has_repeats(&self) -> bool {
        self.repeated
    }

    /// Returns a query's joules in a scope with or without idle power; `NaN` if unknown.
    pub fn energy_j(&self, scope: Scope, idle: IdlePolicy) -> impl Fn(usize) -> f64 + Copy {
        let columns = self.scope_columns(scope);
        move |at| match idle {
            IdlePolicy::Included => columns.share[at],
            IdlePolicy::Excluded => columns.share[at] - columns.idle[at],
        }
    }

    /// Returns the machine's power in a scope while a query was open, in watts; `NaN` if unknown. This is the
    /// denominator of IPW; it does not depend on the number of concurrent queries.
    ///
    /// The idle energy of the window is the idle part of the share, multiplied by window / share.
    pub fn power_w(&self, scope: Scope, idle: IdlePolicy) -> impl Fn(usize) -> f64 + Copy {
        let columns = self.scope_columns(scope);
        move |at| {
            let window_j = columns.window[at];
            let energy_j = match idle {
                IdlePolicy::Included => window_j,
                IdlePolicy::Excluded => window_j - columns.idle[at] * (window_j / columns.share[at]),
            };
            mean_power_w(energy_j, self.span_s[at])
        }
    }

    /// Returns the attributed power in watts: a query's share over the time that its span was open.
    pub fn attributed_power_w(&self, scope: Scope, idle: IdlePolicy) -> impl Fn(usize) -> f64 + Copy {
        let energy_j = self.energy_j(scope, idle);
        move |at| mean_power_w(energy_j(at), self.span_s[at])
    }

    /// Returns the guaranteed error of [`QueryColumns::power_w`] in watts; `NaN` if there is no guarantee.
    ///
    /// A share's error holds the errors of its two edges, each multiplied by the span's fraction of the total weight.
    /// Spans of a run have equal weights, so this fraction is at least 1 / `peak_concurrency`. If a share is smaller
    /// than window / `peak_concurrency`, a span of another client had a larger weight, and the window's error is
    /// unknown.
    pub fn power_error_w(&self, scope: Scope) -> impl Fn(usize) -> f64 + Copy {
        let columns = self.scope_columns(scope);
        move |at| {
            let (peak_concurrency, span_s) = (self.peak_concurrency[at], self.span_s[at]);
            if (columns.share[at] + columns.error[at]) * peak_concurrency < columns.window[at] {
                return UNKNOWN;
            }
            // If the daemon moved an edge, the account's duration differs from the query's.
            let query_s = if self.duration_s[at] > 0.0 { self.duration_s[at] } else { span_s };
            let moved_w =
                (mean_power_w(columns.window[at], query_s) - mean_power_w(columns.window[at], span_s)).abs();
            mean_power_w(columns.error[at] * peak_concurrency, query_s) + moved_w
        }
    }

    pub(super) fn push(&mut self, row: &QueryRow, subject: u32, scopes: &[(Scope, Vec<usize>); 3]) {
        let count = |of: Option<u64>| of.map_or(UNKNOWN, |count| count as f64);
        let seconds = |of: Option<u64>| count(of) / 1e9;
        let joules = |of: Option<u64>| count(of) / 1e6;
        let question = hash_query(&row.id, 0);
        self.key.push(if row.repeat == 0 { question } else { hash_query(&row.id, row.repeat) });
        self.question.push(question);
        self.repeated |= row.repeat > 0;
        self.subject.push(subject);
        self.answered.push(row.is_answered());
        self.delivered.push(row.is_delivered());
        self.session.push(row.session);
        self.score.push(row.counted_score().unwrap_or(UNKNOWN));
        self.began_s.push(row.began_ns as f64 / 1e9);
        self.duration_s.push(row.duration_ns as f64 / 1e9);
        self.first_token_s.push(seconds(row.first_token_ns));
        self.inter_token_s.push(seconds(row.between_tokens_ns.map(|(median, _)| median)));
        self.tokens_in.push(count(row.tokens_in));
        self.tokens_cached.push(count(row.tokens_cached));
        self.tokens_out.push(count(row.tokens_out));
        self.mean_logprob.push(row.mean_logprob.unwrap_or(UNKNOWN));
        let energy = row.energy.as_ref();
        self.grade.push(energy.and_then(|energy| energy.grade));
        self.span_s.push(seconds(energy.map(|energy| energy.span_ns)));
        let peak_concurrency = energy.map_or(0, |energy| energy.at_once);
        self.peak_concurrency.push(count(
            Some(peak_concurrency).filter(|peak_concurrency| *peak_concurrency > 0).map(u64::from),
        ));
        self.prefill_j.push(joules(energy.and_then(|energy| energy.prefill_uj)));
        self.decode_j.push(joules(energy.and_then(|energy| energy.decode_uj)));
        for (scope, domains) in scopes {
            let part = energy.map(|energy| scope.energy(energy, domains)).unwrap_or_default();
            let [share, error, idle, window] = match scope {
                Scope::Host => {
                    [&mut self.host_j, &mut self.host_error_j, &mut self.host_idle_j, &mut self.host_window_j]
                }
                Scope::Compute => [
                    &mut self.compute_j,
                    &mut self.compute_error_j,
                    &mut self.compute_idle_j,
                    &mut self.compute_window_j,
                ],
                Scope::Accelerator => [
                    &mut self.accelerator_j,
                    &mut self.accelerator_error_j,
                    &mut self.accelerator_idle_j,
                    &mut self.accelerator_window_j,
                ],
            };
            let remainder_pj =
                energy.filter(|_| *scope == Scope::Host).map_or(0, |energy| energy.remainder_pj);
            let remainder_j = f64::from(remainder_pj) / 1e12;
            share.push(joules(part.share_uj) + remainder_j);
            error.push(joules(part.error_uj));
            idle.push(joules(part.idle_uj));
            window.push(joules(part.window_uj) + remainder_j);
        }
    }
}

/// Returns power; `NaN` for a duration of zero.
fn mean_power_w(joules: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { joules / seconds } else { UNKNOWN }
}

/// Returns the key of a query, equal in all runs.
pub(super) fn hash_query(id: &str, repeat: u32) -> u64 {
    let seed = FnvHasher::default().finish() ^ u64::from(repeat).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut hasher = FnvHasher::with_key(seed);
    hasher.write(id.as_bytes());
    let hash = hasher.finish();
    // Spreads the bits: short ids differ in few bits, which causes collisions in hash tables.
    hash ^ (hash >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_hashes_are_stable() {
        assert_eq!(hash_query("q1", 0), 0x0d6a_b6be_2c72_4182);
        assert_eq!(hash_query("q1", 3), 0x09a3_e39c_f5a7_1202);
    }
}
