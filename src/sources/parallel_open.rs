//! Opening the sources, each on a thread of its own.
//!
//! Owns the threads and what has come of them. A driver's library may take seconds to load or hang, and a file may block
//! when it is opened or read first: none of that delays another source. A thread that is blocked cannot be ended; it keeps
//! the privilege that it was started with until it returns. Decides nothing about what was found.

use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::clock::Clock;
use crate::domain::EnergyReading;

use super::apple::{ioreport, smc};
use super::source::{Inventory, OpenProgress, StartingSources};
use super::{SourceSettings, amdgpu, battery, hwmon, intelgpu, msr, nvml, perf, powercap};

/// Begins to open these sources.
pub(super) fn spawn_all<'a>(
    sources: impl Iterator<Item = &'a str>,
    settings: &SourceSettings,
    clock: &Clock,
) -> StartingSources {
    let (send, progress) = channel();
    let sources: Vec<String> = sources.map(str::to_owned).collect();
    for source in &sources {
        let (name, settings, clock, sender) = (source.clone(), settings.clone(), clock.clone(), send.clone());
        let thread = thread::Builder::new().name(format!("open-{name}"));
        if let Err(error) = thread.spawn(move || open(&name, &settings, &clock, &sender)) {
            let mut found = Inventory::default();
            found.add_absent(source, format!("the system gives no thread to open it: {error}"));
            let _ = send.send(OpenProgress { source: source.clone(), found, is_last: true });
        }
    }
    StartingSources::new(sources, progress)
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
