//! Opening the sources, each on a thread of its own.
//!
//! Owns the threads and what has come of them. A driver's library may take seconds to load or hang, and a file may block
//! when it is opened or read first: none of that delays another source. A thread that is blocked cannot be ended; it keeps
//! the privilege that it was started with until it returns. Decides nothing about what was found.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::domain::EnergyReading;

use super::apple::{ioreport, smc};
use super::{Inventory, SourceSettings, amdgpu, battery, hwmon, intelgpu, msr, nvml, perf, powercap};

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
    /// Begins to open these sources.
    pub(super) fn spawn<'a>(
        sources: impl Iterator<Item = &'a str>,
        settings: &SourceSettings,
        clock: &Clock,
    ) -> Self {
        let (send, progress) = channel();
        let sources: Vec<String> = sources.map(str::to_owned).collect();
        for source in &sources {
            let (name, settings, clock, sender) =
                (source.clone(), settings.clone(), clock.clone(), send.clone());
            let thread = thread::Builder::new().name(format!("open-{name}"));
            if let Err(error) = thread.spawn(move || open(&name, &settings, &clock, &sender)) {
                let mut found = Inventory::default();
                found.add_absent(source, format!("the system gives no thread to open it: {error}"));
                let _ = send.send(OpenProgress { source: source.clone(), found, is_last: true });
            }
        }
        Self { names: sources, progress, started_at: Instant::now() }
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

/// Mechanisms that watch their counters themselves while they open.
pub(super) fn probes_itself(source: &str) -> bool {
    // The first because its calls may hang, the second because its counters are published seldom.
    source == nvml::NAME || source == ioreport::NAME
}

/// Opens one source and sends what comes of it. A receiver that is gone wants nothing more.
fn open(source: &str, settings: &SourceSettings, clock: &Clock, sender: &Sender<OpenProgress>) {
    let send = |found: Inventory, is_last: bool| {
        let _ = sender.send(OpenProgress { source: source.to_owned(), found, is_last });
    };
    let mut found = match source {
        nvml::NAME => {
            nvml::open_each(settings, clock, |found| send(found, false));
            Inventory::default()
        }
        ioreport::NAME => ioreport::open(settings, clock),
        perf::NAME => perf::open(settings, clock),
        powercap::NAME => powercap::open(settings, clock),
        smc::NAME => smc::open(settings, clock),
        msr::NAME => msr::open(settings, clock),
        amdgpu::NAME => amdgpu::open(settings, clock),
        intelgpu::NAME => intelgpu::open(settings, clock),
        hwmon::NAME => hwmon::open(settings, clock),
        battery::NAME => battery::open(settings, clock),
        _ => Inventory::default(),
    };
    if !probes_itself(source) {
        // A first read that blocks does so here.
        for opened in &mut found.opened {
            opened.source.read(&mut vec![EnergyReading::default(); opened.domains.len()]);
        }
    }
    send(found, true);
}
