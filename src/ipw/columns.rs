//! The figures of queries, a column each.
//!
//! Owns the conversion from a row's whole microjoules and nanoseconds to joules and seconds. Invariant: in a column `NaN` is
//! "not known" and nothing else; other modules see it through [`known`].

use super::fnv::{self, fnv1a};
use super::row::QueryRow;
use super::scope::{IdlePolicy, Scope};
use crate::domain::Grade;

/// Not known.
const UNKNOWN: f64 = f64::NAN;

/// A column's value, if it is known.
pub fn known(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The figures of every query, one column each.
        #[derive(Debug, Default)]
        pub struct QueryColumns {
            /// The query, as a hash of its name and repetition.
            key: Vec<u64>,
            /// Its question, as a hash of the name alone.
            question: Vec<u64>,
            /// Whether some question was asked more than once.
            repeated: bool,
            /// Index of the subject in `RunTable::subjects`; while a chunk is read, in the chunk's own list.
            pub subject: Vec<u32>,
            /// Whether it was answered.
            pub answered: Vec<bool>,
            /// The grade of its energy.
            pub grade: Vec<Option<Grade>>,
            $($(#[$doc])* pub $name: Vec<f64>,)*
        }

        impl QueryColumns {
            /// Room for so many more, so that columns of millions are not moved as they grow.
            pub(super) fn reserve(&mut self, more: usize) {
                self.key.reserve_exact(more);
                self.question.reserve_exact(more);
                self.subject.reserve_exact(more);
                self.answered.reserve_exact(more);
                self.grade.reserve_exact(more);
                $(self.$name.reserve_exact(more);)*
            }

            /// Adds the rows of another.
            pub(super) fn append(&mut self, mut other: Self) {
                self.key.append(&mut other.key);
                self.question.append(&mut other.question);
                self.repeated |= other.repeated;
                self.subject.append(&mut other.subject);
                self.answered.append(&mut other.answered);
                self.grade.append(&mut other.grade);
                $(self.$name.append(&mut other.$name);)*
            }

            /// Drops the rows that are not marked.
            pub(super) fn retain_rows(&mut self, mask: &[bool]) {
                fn only<T>(column: &mut Vec<T>, mask: &[bool]) {
                    let mut at = 0..;
                    column.retain(|_| at.next().is_some_and(|at: usize| mask[at]));
                }
                only(&mut self.key, mask);
                only(&mut self.question, mask);
                only(&mut self.subject, mask);
                only(&mut self.answered, mask);
                only(&mut self.grade, mask);
                $(only(&mut self.$name, mask);)*
            }
        }
    };
}

columns! {
    /// Right 1, wrong 0.
    score,
    /// Monotonic seconds at which it began.
    began_s,
    /// Seconds from request to end.
    duration_s,
    /// Seconds from request to first token.
    first_token_s,
    /// Median seconds between tokens.
    inter_token_s,
    /// Tokens of the prompt.
    tokens_in,
    /// Tokens of the prompt that were cached.
    tokens_cached,
    /// Tokens of the answer.
    tokens_out,
    /// Mean log-probability of the answer's tokens.
    mean_logprob,
    /// Seconds the account lasted.
    span_s,
    /// Most spans that were open at once meanwhile.
    peak_concurrency,
    /// Joules until the first token.
    prefill_j,
    /// Joules from the first token on.
    decode_j,
    /// Joules of its share, host.
    host_j,
    /// Guaranteed half-width, host.
    host_error_j,
    /// Idle part, host.
    host_idle_j,
    /// Joules of the host while it was open, whoever caused them.
    host_window_j,
    /// Joules of its share, CPU + memory + accelerator.
    compute_j,
    /// Guaranteed half-width.
    compute_error_j,
    /// Idle part.
    compute_idle_j,
    /// Joules of the domains while it was open.
    compute_window_j,
    /// Joules of its share, accelerator only.
    accelerator_j,
    /// Guaranteed half-width.
    accelerator_error_j,
    /// Idle part.
    accelerator_idle_j,
    /// Joules of the domains while it was open.
    accelerator_window_j,
}

/// The energies of every query in one scope, joules.
#[derive(Debug, Clone, Copy)]
pub struct ScopeColumns<'a> {
    /// Its share.
    pub share: &'a [f64],
    /// Guaranteed half-width of the share.
    pub error: &'a [f64],
    /// Of the share, what would have been used anyway.
    pub idle: &'a [f64],
    /// All that the domains used while it was open.
    pub window: &'a [f64],
}

impl QueryColumns {
    /// How many queries.
    pub fn len(&self) -> usize {
        self.key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.key.is_empty()
    }

    /// The energies in a scope.
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

    /// What tells each query from the others.
    pub fn query_hashes(&self) -> impl Iterator<Item = u64> {
        self.key.iter().copied()
    }

    /// What tells the query from others of its questions, the same in every run.
    pub fn query_hash(&self, at: usize) -> u64 {
        self.key[at]
    }

    /// The query's question, the same in every run and for every repetition.
    pub fn question_hash(&self, at: usize) -> u64 {
        self.question[at]
    }

    /// Whether questions were asked more than once; otherwise every query is a question of its own.
    pub fn has_repeats(&self) -> bool {
        self.repeated
    }

    /// A query's joules in a scope, with idle power or without it; `NaN` where that is not known.
    pub fn energy_j(&self, scope: Scope, idle: IdlePolicy) -> impl Fn(usize) -> f64 + Copy {
        let columns = self.scope_columns(scope);
        move |at| match idle {
            IdlePolicy::Included => columns.share[at],
            IdlePolicy::Excluded => columns.share[at] - columns.idle[at],
        }
    }

    /// The machine's power in the scope while a query was open, in watts: the denominator of IPW, which does not depend on how
    /// many queries are open at once. `NaN` where it is not known.
    ///
    /// The idle energy of the window is the idle part of the share, scaled as the window is to the share.
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

    /// A query's share over the time it was open, in watts: the power that is attributed to it.
    pub fn attributed_power_w(&self, scope: Scope, idle: IdlePolicy) -> impl Fn(usize) -> f64 + Copy {
        let energy_j = self.energy_j(scope, idle);
        move |at| mean_power_w(energy_j(at), self.span_s[at])
    }

    /// How far the meter's guarantee lets [`QueryColumns::watts`] be off, in watts; `NaN` where nothing is guaranteed.
    ///
    /// A share's error holds the errors of its two edges, each times the span's part of all weight there. A run's spans weigh the
    /// same, so that this part is no smaller than 1 / `peak_concurrency`. Where a share is smaller than that of its window, another
    /// client's span weighed more, and nothing is known of the window's error.
    pub fn power_error_w(&self, scope: Scope) -> impl Fn(usize) -> f64 + Copy {
        let columns = self.scope_columns(scope);
        move |at| {
            let (peak_concurrency, span_s) = (self.peak_concurrency[at], self.span_s[at]);
            if (columns.share[at] + columns.error[at]) * peak_concurrency < columns.window[at] {
                return UNKNOWN;
            }
            // Where the meter moved an edge, the account's time is not the query's.
            let query_s = if self.duration_s[at] > 0.0 { self.duration_s[at] } else { span_s };
            let moved_w =
                (mean_power_w(columns.window[at], query_s) - mean_power_w(columns.window[at], span_s)).abs();
            mean_power_w(columns.error[at] * peak_concurrency, query_s) + moved_w
        }
    }

    /// Adds a row.
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
        self.score.push(row.score.filter(|_| row.is_answered()).unwrap_or(UNKNOWN));
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
            share.push(joules(part.share_uj));
            error.push(joules(part.error_uj));
            idle.push(joules(part.idle_uj));
            window.push(joules(part.window_uj));
        }
    }
}

/// Power; not known over no time.
fn mean_power_w(joules: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { joules / seconds } else { UNKNOWN }
}

fn hash_query(id: &str, repeat: u32) -> u64 {
    let begin = fnv::OFFSET_BASIS ^ u64::from(repeat).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let hash = fnv1a(begin, id.bytes());
    // Short names differ in few bits, which a table of hashes would feel.
    hash ^ (hash >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}
