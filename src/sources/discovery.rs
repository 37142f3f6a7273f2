//! Discovery of the available sources and the choice of the domains to read.
//!
//! Owns the order of the steps: open, probe under load, choose, and decide whether an estimate is needed. Each unavailable
//! source is listed with its reason. No source delays another: a slow one is added after discovery.

use std::time::{Duration, Instant};

use crate::clock::Clock;

use super::dedup::{domain_tree, preference};
use super::device_list::DeviceList;
use super::parallel_open::{probes_itself, spawn_all};
use super::source::StartingSources;
use super::source_settings::ALL_NAMES;
use super::{Inventory, OpenedSource, SourceSettings, amdgpu, estimate, probe, replay, topology};

/// Time limit of [`discover`]. An NVIDIA driver without persistence mode needs a second for each board.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds the available sources. Waits at most ten seconds; see [`discover_within`].
pub fn discover(settings: &SourceSettings, clock: &Clock) -> Inventory {
    discover_within(settings, clock, OPEN_TIMEOUT)
}

/// Finds the available sources. Waits at most `wait` for the sources to open; the others are in
/// [`Inventory::starting`]. The probe takes up to 40 ms more: of one CPU, or of sleep with
/// [`ProbeLoad::Background`](super::ProbeLoad::Background). It takes less if all counters advance and no two counters are
/// compared.
///
/// A replay is the only source if the settings name one. Otherwise discovery tries every enabled mechanism. A domain that
/// several mechanisms show is taken from the first one, in order of preference, in which it advances. The estimate is
/// opened only if no counter of the CPU's energy advances.
pub fn discover_within(settings: &SourceSettings, clock: &Clock, wait: Duration) -> Inventory {
    if let Some(path) = &settings.replay {
        return replay::open(path, clock);
    }
    let devices = settings.finds_new_devices.then(|| DeviceList::read(&settings.sysfs_root));
    let (mut found, self_probed, starting) = open_enabled(settings, clock, wait);
    let probe_result = probe::probe_domains(
        &mut found.opened,
        &topology::physical_packages(&settings.sysfs_root),
        settings.probe_load,
    );
    found.append(self_probed);
    preference::keep_preferred(&mut found, probe_result);
    if settings.enabled.iter().any(|name| name == estimate::NAME) {
        match live_cpu_domain(&found.opened) {
            None => found.append(estimate::open(settings, clock)),
            Some(domain) => {
                found.add_absent(estimate::NAME, format!("not needed: {domain} has a live counter"))
            }
        }
    }
    found.starting = Some(starting).filter(|starting| !starting.names().is_empty());
    found.devices = devices;
    found
}

/// Finds all domains of all enabled mechanisms but the estimate, for a comparison: none is dropped because another
/// mechanism shows it too, and none is probed. AMD cards have their power sensor beside their accumulator.
pub fn discover_all(settings: &SourceSettings, clock: &Clock) -> Inventory {
    if let Some(path) = &settings.replay {
        return replay::open(path, clock);
    }
    let (mut found, self_probed, _) = open_enabled(settings, clock, OPEN_TIMEOUT);
    found.append(self_probed);
    found.opened.extend(amdgpu::open_power_sensors(settings, clock, &found.opened));
    found
}

/// Opens the enabled mechanisms but the estimate. Returns what needs the probe, what probes itself, and what still opens.
fn open_enabled(
    settings: &SourceSettings,
    clock: &Clock,
    wait: Duration,
) -> (Inventory, Inventory, StartingSources) {
    let deadline = Instant::now() + wait;
    let is_opened = |name: &&str| *name != estimate::NAME && ALL_NAMES.contains(name);
    let mut starting =
        spawn_all(settings.enabled.iter().map(String::as_str).filter(is_opened), settings, clock);
    let parts = wait_for_sources(&mut starting, &settings.enabled, deadline);
    let (found, self_probed) = merge_parts(&settings.enabled, parts);
    (found, self_probed, starting)
}

/// What each enabled mechanism has found by the deadline, in the order of the names.
fn wait_for_sources(starting: &mut StartingSources, enabled: &[String], deadline: Instant) -> Vec<Inventory> {
    let mut parts: Vec<Inventory> = enabled.iter().map(|name| absent_if_unknown(name)).collect();
    while let Some(progress) = starting.next_progress(Some(deadline)) {
        let index = enabled.iter().position(|name| *name == progress.source);
        if let Some(part) = index.and_then(|index| parts.get_mut(index)) {
            part.append(progress.found);
        }
    }
    parts
}

/// The findings of the mechanisms that need the probe, and of those that probe themselves.
fn merge_parts(enabled: &[String], parts: Vec<Inventory>) -> (Inventory, Inventory) {
    let (mut found, mut self_probed) = (Inventory::default(), Inventory::default());
    for (name, mut part) in enabled.iter().zip(parts) {
        if probes_itself(name) {
            part.opened.sort_by_key(domain_name_order);
            part.absent.sort_by_key(|absent| reason_order(&absent.reason));
            self_probed.append(part);
        } else {
            found.append(part);
        }
    }
    (found, self_probed)
}

/// An empty inventory, or one with the reason if no mechanism has this name.
fn absent_if_unknown(name: &str) -> Inventory {
    let mut found = Inventory::default();
    if !ALL_NAMES.contains(&name) {
        let known = ALL_NAMES.join(", ");
        found.add_absent(name, format!("unknown source; the known ones are {known}"));
    }
    found
}

/// Sort key of a mechanism's sources, independent of the order in which they opened: "gpu-2" before "gpu-10".
fn domain_name_order(opened: &OpenedSource) -> (usize, String) {
    let name = opened.domains.first().map_or_else(String::new, |domain| domain.name.clone());
    (name.len(), name)
}

/// Sort key of reasons, which begin with the domain's name and a colon.
fn reason_order(reason: &str) -> (usize, String) {
    let name = reason.split_once(':').map_or("", |(name, _)| name);
    (name.len(), name.to_owned())
}

/// The name of an advancing domain that covers the CPU's energy.
fn live_cpu_domain(opened: &[OpenedSource]) -> Option<&str> {
    opened
        .iter()
        .flat_map(|source| source.domains.iter().zip(&source.advanced))
        .find(|(domain, advanced)| **advanced && domain_tree::covers_cpu(domain.kind))
        .map(|(domain, _)| domain.name.as_str())
}
