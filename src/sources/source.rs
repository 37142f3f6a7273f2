//! The trait of all sources, and what opening them gives.
//!
//! Owns the values that pass from a source through discovery to the caller, and the receiving side of sources that still
//! open. Imports no source.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::domain::{Absent, Domain, EnergyReading, PowerLimits};

use super::dedup::duplicate_pair::DuplicatePair;
use super::device_list::DeviceList;

/// Index of a source among the opened ones, and of a domain among that source's.
pub(super) type DomainIndex = (usize, usize);

/// Reads the cumulative energy of a group of domains.
pub trait Source: Send {
    /// Fills one reading for each domain, in the order of [`OpenedSource::domains`]. A domain that does not answer gets
    /// `valid: false`. Does not allocate after the first calls.
    ///
    /// Returns the clock window of the read if the source knows a narrower one than the caller's two clock readings
    /// around the call. The window lies within those readings.
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)>;

    /// Whether a read may wait for a device or a driver. A source that never blocks is also read on the thread that
    /// receives a message.
    fn can_block(&self) -> bool {
        true
    }

    /// Takes the value of the power sensor behind this domain as the mean of the last `averaging_ns`; 0: as instantaneous.
    /// Returns the domain's latency then; `None` if it has no power sensor to which this applies. Called before the first
    /// read.
    fn set_averaging(&mut self, _domain: usize, _averaging_ns: u64) -> Option<u64> {
        None
    }

    /// Reads the limits of each domain's power that apply now. Called every few seconds on the thread of the reads, since
    /// limits change at run time. Returns false if they cannot be read; `into` may be changed then.
    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        into.fill(PowerLimits::default());
        true
    }
}

/// An open source with its domains.
pub struct OpenedSource {
    /// The mechanism: "perf", "powercap", ... One mechanism may open several sources (perf: one for each package).
    pub name: &'static str,
    /// Reads all domains at once.
    pub source: Box<dyn Source>,
    /// The metered domains, in the order of the readings.
    pub domains: Vec<Domain>,
    /// The CPU on which a read is cheapest, if the CPU matters.
    pub cpu: Option<usize>,
    /// The highest useful read rate.
    pub max_rate_hz: f64,
    /// For each domain: whether its counter advanced under load during discovery. `false` means stuck.
    pub advanced: Vec<bool>,
}

/// The result of discovery, or of opening one source.
#[derive(Default)]
pub struct Inventory {
    /// Sources that are open.
    pub opened: Vec<OpenedSource>,
    /// Sources that are unavailable, with the reason and the remedy.
    pub absent: Vec<Absent>,
    /// Pairs of domains that may be two names of one counter.
    pub duplicates: Vec<DuplicatePair>,
    /// Sources that are not open yet.
    pub starting: Option<StartingSources>,
    /// The devices before the sources were opened; `None` if new ones are not looked for.
    pub devices: Option<DeviceList>,
    /// A source is unavailable because there was no memory, thread or descriptor for it: a later start may find it.
    pub is_short_of_resources: bool,
}

/// Whether an error of the system says nothing of what was requested: no memory, thread or descriptor was left.
pub fn is_resource_shortage(error: &io::Error) -> bool {
    // The standard library's own allocations fail without a number.
    error.kind() == io::ErrorKind::OutOfMemory
        || Errno::from_io_error(error)
            .is_some_and(|error| [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM].contains(&error))
}

impl Inventory {
    /// Records that a mechanism, or a part of it, is unavailable.
    pub(super) fn add_absent(&mut self, source: &str, reason: String) {
        self.absent.push(Absent { source: source.into(), reason });
    }

    /// The same after an error of the system, which the reason contains.
    pub(super) fn add_failed(&mut self, source: &str, error: &io::Error, reason: String) {
        self.is_short_of_resources |= is_resource_shortage(error);
        self.add_absent(source, reason);
    }

    pub(super) fn append(&mut self, other: Inventory) {
        self.is_short_of_resources |= other.is_short_of_resources;
        self.opened.extend(other.opened);
        self.absent.extend(other.absent);
        self.duplicates.extend(other.duplicates);
    }
}

/// One result of a source that opens.
pub struct OpenProgress {
    /// The name of the mechanism: "nvml".
    pub source: String,
    /// The domains and reasons since the previous result.
    pub found: Inventory,
    /// Earlier reasons that no longer hold.
    pub outdated: Vec<Absent>,
    /// Whether the source is complete.
    pub is_last: bool,
}

/// Sources that are not open, or not with all their domains.
pub struct StartingSources {
    names: Vec<String>,
    progress: Receiver<OpenProgress>,
    started_at: Instant,
}

impl StartingSources {
    /// No sources.
    pub fn none() -> Self {
        Self::new(Vec::new(), channel().1)
    }

    /// Sources whose threads send what they find to `progress`.
    pub(super) fn new(names: Vec<String>, progress: Receiver<OpenProgress>) -> Self {
        Self { names, progress, started_at: Instant::now() }
    }

    /// The names of the incomplete sources.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The time since the sources began to open.
    pub fn elapsed(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// Returns the next result. Waits until `deadline`; `None`: does not wait.
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
                // The thread panicked; the panic is in the log.
                let source = self.names.first()?.clone();
                let mut found = Inventory::default();
                found.add_absent(&source, "its thread failed while opening it; see the log".into());
                OpenProgress { source, found, outdated: Vec::new(), is_last: true }
            }
        };
        if progress.is_last {
            self.names.retain(|source| *source != progress.source);
        }
        Some(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_without_resources_marks_the_whole_inventory() {
        let mut found = Inventory::default();
        for error in [Errno::NOENT, Errno::ACCESS, Errno::IO] {
            found.add_failed("perf", &error.into(), "a reason".into());
        }
        found.add_absent("hwmon", "no chip (os error 24)".into());
        assert!(!found.is_short_of_resources);
        for error in [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM] {
            let (mut part, mut whole) = (Inventory::default(), Inventory::default());
            part.add_failed("perf", &error.into(), "a reason".into());
            whole.append(part);
            whole.append(Inventory::default());
            assert!(whole.is_short_of_resources, "{error}");
        }
        assert!(is_resource_shortage(&io::ErrorKind::OutOfMemory.into()));
    }
}
