//! The attributor's settings, requests and errors.
//!
//! Owns no state. Times are nanoseconds of the monotonic clock.

use std::collections::BTreeMap;

/// Settings of the attributor.
#[derive(Debug, Clone)]
pub struct AttributionSettings {
    /// How late a message may come without changing any account: time before `now - horizon_ns` is settled.
    pub horizon_ns: u64,
    /// A domain whose counter has not moved for this long (or ten of its intervals) no longer delays accounts:
    /// the time counts as unknown.
    pub counter_timeout_ns: u64,
    /// Most spans open or unsettled at once, all users together.
    pub max_open_spans: usize,
    /// Most edges (openings, closings, phases, weights) that may wait for their counters.
    pub max_pending_edges: usize,
    /// Most changes of weight of one span that may wait for their counters.
    pub max_pending_weight_changes: u64,
    /// Configured idle power by domain name, milliwatts; the other domains learn theirs.
    pub idle_mw: BTreeMap<String, u64>,
}

impl Default for AttributionSettings {
    fn default() -> Self {
        Self {
            horizon_ns: 10_000_000,
            counter_timeout_ns: 2_000_000_000,
            max_open_spans: 131_072,
            max_pending_edges: 131_072,
            max_pending_weight_changes: 1024,
            idle_mw: BTreeMap::new(),
        }
    }
}

/// A span's key in the attributor: slot and generation, so that a key is never reused for another span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanKey(pub u64);

impl SpanKey {
    pub(crate) fn new(slot: u32, generation: u32) -> Self {
        SpanKey(u64::from(generation) << 32 | u64::from(slot))
    }

    pub(crate) fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A span to open.
#[derive(Debug, Clone)]
pub struct NewSpan {
    /// The span's id in the protocol.
    pub span_id: String,
    /// What the client calls it.
    pub name: String,
    /// What the client notes about it.
    pub attributes: BTreeMap<String, String>,
    /// Its part of shared energy; 0, or between 1/65536 and 1e6.
    pub weight: f64,
    /// Indices of the domains it uses; `None`: all that are live.
    pub domains: Option<Vec<usize>>,
    /// The opening that the client requested.
    pub at_ns: u64,
    /// The owner's user id.
    pub uid: u32,
    /// Wall time of the opening.
    pub opened_unix_ns: u64,
    /// The subject whose use of the domains is measured, as [`Attributor::add_subject`](super::Attributor::add_subject)
    /// numbered it; 0: none.
    pub subject: u32,
}

impl NewSpan {
    /// A span of weight 1 over all live domains, with nothing noted about it.
    pub fn new(span: impl Into<String>, at_ns: u64) -> Self {
        Self {
            span_id: span.into(),
            name: String::new(),
            attributes: BTreeMap::new(),
            weight: 1.0,
            domains: None,
            at_ns,
            uid: 0,
            opened_unix_ns: 0,
            subject: 0,
        }
    }
}

/// A subject whose use of the domains is sampled: a process with its descendants, or a control group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The process at the root.
    pub process: Option<u32>,
    /// The control group's path.
    pub cgroup: Option<String>,
    /// Why nothing is known of its use, where that is so.
    pub reason: Option<String>,
}

/// What one subject had used of a basis at the time of a sample, since any beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectUsage {
    /// The subject's number.
    pub subject: u32,
    /// How much, in the basis's unit; `None`: unknown.
    pub amount: Option<u64>,
    /// Whether it has nothing in common with the other subjects that say so too.
    pub disjoint: bool,
}

/// A sample of what was used of a basis so far.
#[derive(Debug, Clone, Copy)]
pub struct BasisUsageSample<'a> {
    /// When.
    pub at_ns: u64,
    /// Of what: [`CPU_TIME`](super::CPU_TIME), or what [`Attributor::set_basis`](super::Attributor::set_basis) named.
    pub basis: usize,
    /// By all, in the basis's unit; `None`: unknown.
    pub total: Option<u64>,
    /// By each subject; one that is left out used nothing since the previous sample.
    pub subjects: &'a [SubjectUsage],
}

/// Why the attributor rejected a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributionError {
    /// Neither open nor closing.
    #[error("no such span")]
    NoSuchSpan,
    /// It was closed before.
    #[error("the span is already closed")]
    AlreadyClosed,
    /// A time in the future, or a phase or closing before the span's opening.
    #[error("the time lies outside {earliest_ns}..={latest_ns} ns")]
    InvalidTime {
        /// The earliest that would have been taken.
        earliest_ns: u64,
        /// The latest.
        latest_ns: u64,
    },
    /// A value that means nothing.
    #[error("{field}: {reason}")]
    InvalidValue {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Too much of something at once.
    #[error("the limit of {limit} {quota} is reached")]
    LimitReached {
        /// What there is too much of.
        quota: &'static str,
        /// The limit.
        limit: usize,
    },
}
