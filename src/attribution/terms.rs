//! What is asked of the ledger, how it is set up, and why it refuses.
//!
//! Owns no state. Times are nanoseconds of the monotonic clock.

use std::collections::BTreeMap;

/// How the ledger is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How late a message may come without changing any account: time behind `now - horizon_ns` is settled.
    pub horizon_ns: u64,
    /// A domain whose counter has not moved for this long (or ten of its intervals) no longer holds accounts up:
    /// the time counts as unknown.
    pub patience_ns: u64,
    /// Most spans open or unsettled at once, all users together.
    pub max_open: usize,
    /// Most edges (opens, closes, marks, weights) that may wait for their counters.
    pub max_waiting: usize,
    /// Most changes of weight of one span that may wait for their counters.
    pub max_changes: u64,
    /// Configured idle power by domain name, milliwatts; the other domains learn theirs.
    pub idle_mw: BTreeMap<String, u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            horizon_ns: 10_000_000,
            patience_ns: 2_000_000_000,
            max_open: 131_072,
            max_waiting: 131_072,
            max_changes: 1024,
            idle_mw: BTreeMap::new(),
        }
    }
}

/// A span's place in the ledger: slot and generation, so that a key is never reused for another span.
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

/// What is asked of a new span.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The span's name in the protocol.
    pub span: String,
    /// What the client calls it.
    pub name: String,
    /// What the client notes about it.
    pub attributes: BTreeMap<String, String>,
    /// Its part of shared energy; 0, or between 1/65536 and 1e6.
    pub weight: f64,
    /// Indices of the domains it uses; `None`: all that are live.
    pub domains: Option<Vec<usize>>,
    /// When it began, by the client's word.
    pub at_ns: u64,
    /// Whose it is.
    pub uid: u32,
    /// Wall time of the opening.
    pub unix_ns: u64,
    /// Whose use of the domains is asked for, as [`Ledger::admit`](super::Ledger::admit) numbered it; 0: nobody's.
    pub subject: u32,
}

impl Opening {
    /// A span of weight 1 over all live domains, with nothing noted about it.
    pub fn plain(span: impl Into<String>, at_ns: u64) -> Self {
        Self {
            span: span.into(),
            name: String::new(),
            attributes: BTreeMap::new(),
            weight: 1.0,
            domains: None,
            at_ns,
            uid: 0,
            unix_ns: 0,
            subject: 0,
        }
    }
}

/// Somebody whose use of the domains is told apart: a process with its descendants, or a control group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The process at the root.
    pub process: Option<u32>,
    /// The control group's path.
    pub cgroup: Option<String>,
    /// Why nothing is known of its use, where that is so.
    pub reason: Option<String>,
}

/// What one subject had used of a basis at the time of a look, since any beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The subject's number.
    pub subject: u32,
    /// How much, in the basis's unit; `None`: nobody knows.
    pub used: Option<u64>,
    /// Whether it has nothing in common with the other subjects that say so too.
    pub apart: bool,
}

/// A look at what was used of a basis so far.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// When.
    pub at_ns: u64,
    /// Of what: [`CPU_TIME`](super::CPU_TIME), or what [`Ledger::set_basis`](super::Ledger::set_basis) named.
    pub basis: usize,
    /// By everybody, in the basis's unit; `None`: nobody knows.
    pub busy: Option<u64>,
    /// By each subject; one that is left out used nothing since the look before.
    pub used: &'a [Used],
}

/// Why the ledger refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Neither open nor closing.
    #[error("no such span")]
    NoSuchSpan,
    /// It was closed before.
    #[error("the span is already closed")]
    AlreadyClosed,
    /// A time in the future, or a mark or close before the span's opening.
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
    Full {
        /// What there is too much of.
        quota: &'static str,
        /// The limit.
        limit: usize,
    },
}
