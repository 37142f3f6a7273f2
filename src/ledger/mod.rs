//! Who the joules belong to (skeleton; the signatures stand).
//!
//! Pure: knows no hardware, no clock, no IPC. Time comes in as arguments.

use std::collections::BTreeMap;

use crate::energy::{Domain, Reading};

pub mod account;

use account::{Account, Balance};

/// How the ledger is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How late a message may come without changing any account.
    pub horizon_ns: u64,
    /// A domain whose counter has not moved for this long (or ten of its intervals) no longer holds accounts up.
    pub patience_ns: u64,
    /// Most spans open at once, all users together.
    pub max_open: usize,
    /// Configured idle power by domain name; the others learn it.
    pub idle_mw: BTreeMap<String, u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            horizon_ns: 10_000_000,
            patience_ns: 2_000_000_000,
            max_open: 131_072,
            idle_mw: BTreeMap::new(),
        }
    }
}

/// A span's place in the ledger; never reused for another span (generation inside).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanKey(pub u64);

/// What is asked of a new span. `at_ns` already lies where the caller wants it; the ledger moves it to the horizon.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The span's name in the protocol.
    pub span: String,
    /// What the client calls it.
    pub name: String,
    /// What the client notes about it.
    pub attributes: BTreeMap<String, String>,
    /// Its part of shared energy; finite, at least 0, at most 1e6.
    pub weight: f64,
    /// Indices of the domains it uses; `None`: all.
    pub domains: Option<Vec<usize>>,
    /// When it began.
    pub at_ns: u64,
    /// Whose it is.
    pub uid: u32,
    /// Wall time of the opening.
    pub unix_ns: u64,
}

/// Why the ledger refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not open and not remembered.
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
    /// Weight negative, not a number, too large.
    #[error("{field}: {reason}")]
    InvalidValue {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many spans open or edges waiting.
    #[error("the limit of {limit} {quota} is reached")]
    Full {
        /// What there is too much of.
        quota: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// The ledger.
pub struct Ledger {}

#[allow(unused_variables, missing_docs)]
impl Ledger {
    /// A ledger over these domains, in this order for ever.
    pub fn new(domains: Vec<Domain>, settings: Settings) -> Self {
        todo!()
    }
    /// One reading of one domain, in the order of time; `before_ns..=after_ns` surrounds the read.
    pub fn feed(&mut self, domain: usize, before_ns: u64, after_ns: u64, reading: &Reading) {
        todo!()
    }
    /// How often the domain's counter moves (characterised), for better estimates inside a step.
    pub fn set_interval(&mut self, domain: usize, interval_ns: u64) {}
    /// The domain is (not) part of the host's total, for spans opened from now on.
    pub fn set_counted(&mut self, domain: usize, counted: bool) {}
    /// The domain takes part in accounts of spans opened from now on (a stuck one does not).
    pub fn set_live(&mut self, domain: usize, live: bool) {}
    /// Opens a span. `now_ns` is when the message came.
    pub fn open(&mut self, now_ns: u64, opening: Opening) -> Result<SpanKey, Refused> {
        todo!()
    }
    pub fn mark(&mut self, now_ns: u64, key: SpanKey, phase: String, at_ns: u64) -> Result<(), Refused> {
        todo!()
    }
    pub fn set_weight(&mut self, now_ns: u64, key: SpanKey, weight: f64, at_ns: u64) -> Result<(), Refused> {
        todo!()
    }
    /// Ends a span; `abandoned` where its client went away.
    pub fn close(
        &mut self,
        now_ns: u64,
        key: SpanKey,
        at_ns: u64,
        attributes: BTreeMap<String, String>,
        abandoned: bool,
    ) -> Result<(), Refused> {
        todo!()
    }
    pub fn cancel(&mut self, now_ns: u64, key: SpanKey) -> Result<(), Refused> {
        todo!()
    }
    /// Settles everything that readings and the horizon allow; moves freshly settled accounts to `into`. A settled
    /// span leaves the ledger: its key is unknown from then on.
    pub fn settle(&mut self, now_ns: u64, into: &mut Vec<(SpanKey, Account)>) {
        todo!()
    }
    /// The earliest instant at which `settle` may have something to give; `None` while nothing is closing.
    pub fn next_due_ns(&self) -> Option<u64> {
        todo!()
    }
    /// Whether readings are needed now: a span is open, or closed and not settled.
    pub fn busy(&self) -> bool {
        todo!()
    }
    /// The account so far of a span that is open or not yet settled.
    pub fn account(&self, now_ns: u64, key: SpanKey) -> Result<Account, Refused> {
        todo!()
    }
    pub fn open_spans(&self) -> usize {
        todo!()
    }
    /// measured = attributed + unattributed for every domain, exactly.
    pub fn balance(&self) -> Vec<Balance> {
        todo!()
    }
}
