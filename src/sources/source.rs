//! The trait of all sources, and what opening them gives.
//!
//! Owns the values that pass from a source through discovery to the caller, and the receiving side of sources that still
//! open. Imports no source.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::domain::{Absent, Domain, EnergyReading};

use super::dedup::duplicate_pair::DuplicatePair;

/// Index of a source among the opened ones, and of a domain among that source's.
pub(super) type DomainIndex = (usize, usize);

/// Gives every domain's cumulative energy now.
pub trait Source: Send {
    /// Fills one reading for each domain, in the order of [`OpenedSource::domains`]. A domain that cannot answer leaves
    /// `valid: false`. Allocates nothing once warm.
    ///
    /// Gives back a window of the source's clock in which the read took place, where the source knows a narrower one
    /// than the caller's two clock readings around the call; it lies within them.
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)>;
}

/// A source that is there, with what it offers.
pub struct OpenedSource {
    /// The mechanism: "perf", "powercap", ... One mechanism may open several (perf: one for each package).
    pub name: &'static str,
    /// The reader itself.
    pub source: Box<dyn Source>,
    /// What it meters, in the order of the readings.
    pub domains: Vec<Domain>,
    /// The CPU on which a read is cheapest, if it matters.
    pub cpu: Option<usize>,
    /// Reading faster than this gives nothing new.
    pub max_rate_hz: f64,
    /// For each domain whether it advanced while discovery watched it under load; one that did not is stuck.
    pub advanced: Vec<bool>,
}

/// Everything that discovery found.
#[derive(Default)]
pub struct Inventory {
    /// Sources that opened.
    pub opened: Vec<OpenedSource>,
    /// Sources that are not there, with the reason and the mend.
    pub absent: Vec<Absent>,
    /// Domains that may be two names of one counter.
    pub duplicates: Vec<DuplicatePair>,
    /// Sources that have not answered yet.
    pub starting: Option<StartingSources>,
}

impl Inventory {
    /// Notes that a mechanism, or a part of it, is not there.
    pub(super) fn add_absent(&mut self, source: &str, reason: String) {
        self.absent.push(Absent { source: source.into(), reason });
    }

    pub(super) fn append(&mut self, other: Inventory) {
        self.opened.extend(other.opened);
        self.absent.extend(other.absent);
        self.duplicates.extend(other.duplicates);
    }
}

/// Something that a source has found.
pub struct OpenProgress {
    /// The mechanism.
    pub source: String,
    /// What it found since it last said something.
    pub found: Inventory,
    /// Whether that is all.
    pub is_last: bool,
}

/// Sources that have not answered, or not for all their domains.
pub struct StartingSources {
    names: Vec<String>,
    progress: Receiver<OpenProgress>,
    started_at: Instant,
}

impl StartingSources {
    /// Sources whose threads send what they find to `progress`.
    pub(super) fn new(names: Vec<String>, progress: Receiver<OpenProgress>) -> Self {
        Self { names, progress, started_at: Instant::now() }
    }

    /// Those that have not answered.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// For how long.
    pub fn elapsed(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// What came next; waits for it until `deadline`, or not at all.
    pub fn next_progress(&mut self, deadline: Option<Instant>) -> Option<OpenProgress> {
        if self.names.is_empty() {
            return None;
        }
        let wait =
            deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
        let progress = match self.progress.recv_timeout(wait) {
            Ok(progress) => progress,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => {
                // Its thread panicked, which was reported where it happened.
                let source = self.names.first()?.clone();
                let mut found = Inventory::default();
                found.add_absent(&source, "opening it failed; see the log".into());
                OpenProgress { source, found, is_last: true }
            }
        };
        if progress.is_last {
            self.names.retain(|source| *source != progress.source);
        }
        Some(progress)
    }
}
