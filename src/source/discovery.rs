//! Which mechanisms are there, and what of each is read.
//!
//! Owns the order: what is tried, what is watched under load, what is chosen, and whether an estimate is needed. What is
//! not there is said with its reason.

use crate::clock::Clock;

use super::settings::KNOWN;
use super::{
    Inventory, Opened, Settings, amdgpu, battery, choice, containment, estimate, hwmon, intelgpu, ioreport,
    liveness, msr, nvml, perf, powercap, replay, smc, topology,
};

/// Finds what there is. Takes at most some 40 ms of one CPU, all of them only where a counter does not move or two
/// counters are compared, and 20 ms of waiting where an AMD card has an accumulator. NVIDIA boards may need longer, and are
/// waited for.
///
/// With a replay there is nothing else. Otherwise every enabled mechanism is tried in its order; a domain that several
/// of them show is taken from the first in which it advances; the estimate is opened only where no counter of the
/// CPU's energy advances.
pub fn discover(settings: &Settings, clock: &Clock) -> Inventory {
    if let Some(path) = &settings.replay {
        return replay::open(path, clock);
    }
    let mut found = Inventory::default();
    let gpus = settings.enabled.iter().any(|name| name == nvml::NAME).then(|| nvml::search(settings, clock));
    for name in &settings.enabled {
        match name.as_str() {
            perf::NAME => found.append(perf::open(settings, clock)),
            powercap::NAME => found.append(powercap::open(settings, clock)),
            nvml::NAME | ioreport::NAME | estimate::NAME => {}
            smc::NAME => found.append(smc::open(settings, clock)),
            msr::NAME => found.append(msr::open(settings, clock)),
            amdgpu::NAME => found.append(amdgpu::open(settings, clock)),
            intelgpu::NAME => found.append(intelgpu::open(settings, clock)),
            hwmon::NAME => found.append(hwmon::open(settings, clock)),
            battery::NAME => found.append(battery::open(settings, clock)),
            _ => {
                let known = KNOWN.join(", ");
                found.miss(name, format!("no source of this name; there are {known}"));
            }
        }
    }
    let seen = liveness::watch(&mut found.opened, &topology::packages(&settings.sysfs_root));
    // Watched by their own threads already: a call into a GPU's driver may hang.
    if let Some(gpus) = gpus {
        found.append(gpus.finish());
    }
    // Its counters are published seldom, so it watches them itself, by their stamps.
    if settings.enabled.iter().any(|name| name == ioreport::NAME) {
        found.append(ioreport::open(settings, clock));
    }
    choice::keep_each_once(&mut found, seen);
    if settings.enabled.iter().any(|name| name == estimate::NAME) {
        match measured_cpu(&found.opened) {
            None => found.append(estimate::open(settings, clock)),
            Some(domain) => found.miss(estimate::NAME, format!("not needed: {domain} is a live counter")),
        }
    }
    found
}

/// The name of a domain whose counter shows the CPU's energy, if there is a live one.
fn measured_cpu(opened: &[Opened]) -> Option<&str> {
    opened
        .iter()
        .flat_map(|source| source.domains.iter().zip(&source.advanced))
        .find(|(domain, advanced)| **advanced && containment::covers_the_cpu(domain.kind))
        .map(|(domain, _)| domain.name.as_str())
}
