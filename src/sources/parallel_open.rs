//! Opens each source that has devices on its own thread.
//!
//! A driver library may hang or take seconds to load, and a file may block at its first open or read. Neither delays
//! another source. A blocked thread cannot be ended; it keeps its initial privileges until it returns.

use std::fs;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::clock::Clock;
use crate::domain::EnergyReading;

use super::apple::{ioreport, smc};
use super::source::{Inventory, OpenProgress, OpenedSource, StartingSources};
use super::{
    EnergyFilter, SourceSettings, amdgpu, battery, energy_filter, hwmon, intelgpu, msr, nvml, perf, powercap,
};

/// Starts one thread for each source that has devices.
pub(super) fn spawn_all<'a>(
    sources: impl Iterator<Item = &'a str>,
    settings: &SourceSettings,
    clock: &Clock,
) -> StartingSources {
    let (send, progress) = channel();
    let sources: Vec<String> = sources.map(str::to_owned).collect();
    for source in &sources {
        if has_no_devices(source, settings) {
            open(source, settings, clock, &send);
            continue;
        }
        let (name, settings, clock, sender) = (source.clone(), settings.clone(), clock.clone(), send.clone());
        let thread = thread::Builder::new().name(format!("open-{name}"));
        if let Err(error) = thread.spawn(move || open(&name, &settings, &clock, &sender)) {
            let mut found = Inventory::default();
            found.add_failed(source, &error, format!("cannot start a thread to open it: {error}"));
            let (source, outdated) = (source.clone(), Vec::new());
            let _ = send.send(OpenProgress { source, found, outdated, is_last: true });
        }
    }
    StartingSources::new(sources, progress)
}

/// Whether the kernel's list of the mechanism's devices is empty: then opening it reads names alone, and cannot block. The
/// devices of some mechanisms are in no such list.
fn has_no_devices(source: &str, settings: &SourceSettings) -> bool {
    let list = match source {
        perf::NAME => "bus/event_source/devices/power",
        powercap::NAME => "class/powercap",
        amdgpu::NAME => "class/drm",
        intelgpu::NAME | hwmon::NAME => "class/hwmon",
        battery::NAME => "class/power_supply",
        _ => return false,
    };
    match fs::read_dir(settings.sysfs_root.join(list)) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether a mechanism probes its own counters while it opens.
pub(super) fn probes_itself(source: &str) -> bool {
    // NVML calls may hang; IOReport publishes its counters rarely.
    source == nvml::NAME || source == ioreport::NAME
}

/// Opens one source and sends the results. Ignores a closed channel: the receiver needs no more results.
fn open(source: &str, settings: &SourceSettings, clock: &Clock, sender: &Sender<OpenProgress>) {
    let send = |found: Inventory, is_last: bool| {
        let (source, outdated) = (source.to_owned(), Vec::new());
        let _ = sender.send(OpenProgress { source, found, outdated, is_last });
    };
    if source == nvml::NAME {
        nvml::open_each(settings, nvml::KnownBoards::default(), clock, |found| send(found, false));
    }
    let mut found = open_files(source, settings, clock);
    found.opened.iter_mut().for_each(|opened| prepare(opened, settings));
    send(found, true);
}

/// Opens a source other than NVML. [`prepare`] follows, under the final names of the domains. May block.
pub(super) fn open_files(source: &str, settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = match source {
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
    if EnergyFilter::concerns(source) && !found.opened.is_empty() {
        let filter = EnergyFilter::detect(settings);
        found.opened =
            found.opened.into_iter().map(|opened| energy_filter::add_uncertainty(opened, filter)).collect();
    }
    found
}

/// Configures an open source, and makes the first read if it needs the probe. May block.
pub(super) fn prepare(opened: &mut OpenedSource, settings: &SourceSettings) {
    configure_averaging(opened, settings);
    if !probes_itself(opened.name) {
        // A first read may block, so it is made on this thread.
        opened.source.read(&mut vec![EnergyReading::default(); opened.domains.len()]);
    }
}

/// Sets the configured averaging times of power sensors.
fn configure_averaging(opened: &mut OpenedSource, settings: &SourceSettings) {
    for (index, domain) in opened.domains.iter_mut().enumerate() {
        if let Some(averaging_ns) = settings.averaging_ns.get(&domain.name)
            && let Some(latency_ns) = opened.source.set_averaging(index, *averaging_ns)
        {
            domain.latency_ns = latency_ns;
        }
    }
}
