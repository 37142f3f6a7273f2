//! Which mechanisms are there, and what of each is read.
//!
//! Owns the order: what is opened, what is watched under load, what is chosen, and whether an estimate is needed. What is
//! not there is said with its reason. No source delays another: one that takes too long is left to come later.

use std::time::{Duration, Instant};

use crate::clock::Clock;

use super::dedup::{domain_tree, preference};
use super::parallel_open::{probes_itself, spawn_all};
use super::source_settings::ALL_NAMES;
use super::{Inventory, OpenedSource, SourceSettings, estimate, probe, replay, topology};

/// How long sources may take where the caller waits for all of them. A driver that keeps nothing warm needs a second for
/// each board.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds what there is, as [`discover_within`] ten seconds.
pub fn discover(settings: &SourceSettings, clock: &Clock) -> Inventory {
    discover_within(settings, clock, OPEN_TIMEOUT)
}

/// Finds what there is. Waits at most `wait` for the sources to open; those that have not answered by then are in
/// [`Inventory::starting`]. Takes some 40 ms of one CPU besides, all of them only where a counter does not move or two
/// counters are compared.
///
/// With a replay there is nothing else. Otherwise every enabled mechanism is tried; a domain that several of them show is
/// taken from the first, in their order, in which it advances; the estimate is opened only where no counter of the CPU's
/// energy advances.
pub fn discover_within(settings: &SourceSettings, clock: &Clock, wait: Duration) -> Inventory {
    if let Some(path) = &settings.replay {
        return replay::open(path, clock);
    }
    let deadline = Instant::now() + wait;
    let is_opened = |name: &&str| *name != estimate::NAME && ALL_NAMES.contains(name);
    let mut starting =
        spawn_all(settings.enabled.iter().map(String::as_str).filter(is_opened), settings, clock);
    let mut parts: Vec<Inventory> = settings.enabled.iter().map(|name| absent_if_unknown(name)).collect();
    while let Some(progress) = starting.next_progress(Some(deadline)) {
        let index = settings.enabled.iter().position(|name| *name == progress.source);
        if let Some(part) = index.and_then(|index| parts.get_mut(index)) {
            part.append(progress.found);
        }
    }
    let (mut found, mut self_probed) = (Inventory::default(), Inventory::default());
    for (name, mut part) in settings.enabled.iter().zip(parts) {
        if probes_itself(name) {
            part.opened.sort_by_key(domain_name_order);
            part.absent.sort_by_key(|absent| reason_order(&absent.reason));
            self_probed.append(part);
        } else {
            found.append(part);
        }
    }
    let probe_result =
        probe::probe_domains(&mut found.opened, &topology::physical_packages(&settings.sysfs_root));
    found.append(self_probed);
    preference::keep_preferred(&mut found, probe_result);
    if settings.enabled.iter().any(|name| name == estimate::NAME) {
        match live_cpu_domain(&found.opened) {
            None => found.append(estimate::open(settings, clock)),
            Some(domain) => {
                found.add_absent(estimate::NAME, format!("not needed: {domain} is a live counter"))
            }
        }
    }
    found.starting = Some(starting).filter(|starting| !starting.names().is_empty());
    found
}

/// What is to be said of a mechanism before it is opened.
fn absent_if_unknown(name: &str) -> Inventory {
    let mut found = Inventory::default();
    if !ALL_NAMES.contains(&name) {
        let known = ALL_NAMES.join(", ");
        found.add_absent(name, format!("no source of this name; there are {known}"));
    }
    found
}

/// The order of a mechanism's parts, whichever answered first: "gpu-2" before "gpu-10".
fn domain_name_order(opened: &OpenedSource) -> (usize, String) {
    let name = opened.domains.first().map_or_else(String::new, |domain| domain.name.clone());
    (name.len(), name)
}

/// The same of reasons, which begin with the part's name and a colon.
fn reason_order(reason: &str) -> (usize, String) {
    let name = reason.split_once(':').map_or("", |(name, _)| name);
    (name.len(), name.to_owned())
}

/// The name of a domain whose counter shows the CPU's energy, if there is a live one.
fn live_cpu_domain(opened: &[OpenedSource]) -> Option<&str> {
    opened
        .iter()
        .flat_map(|source| source.domains.iter().zip(&source.advanced))
        .find(|(domain, advanced)| **advanced && domain_tree::covers_cpu(domain.kind))
        .map(|(domain, _)| domain.name.as_str())
}
