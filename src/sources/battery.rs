//! What a battery delivers, while it does: a slow check on everything else.
//!
//! Owns the batteries under `class/power_supply` that feed the machine (not a mouse's). Firmware refreshes them every
//! 1 to 30 s, so this is compared in `wattspan doctor` with the sum of the others and never added to anything (see
//! `containment`). Never shows a battery that charges as one that delivers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, Grade};

use super::attribute::{Attribute, text_of};
use super::counter::plausible_ceiling_mw;
use super::gauge::{Condition, Gauge, Gauges};
use super::integral::ROUNDING_UJ;
use super::wattmeter::{Wattage, Wattmeter};
use super::{Inventory, Settings};

/// The mechanism's name.
pub const NAME: &str = "battery";

/// What a battery's `status` says while it feeds the machine (linux Documentation/ABI/testing/sysfs-class-power).
const DISCHARGING: &str = "Discharging";

/// The ACPI driver asks the firmware once a second at most and answers from memory in between, so this costs next to
/// nothing, and a span that ends does not wait for the firmware.
const MAX_RATE_HZ: f64 = 10.0;

/// Opens every battery that there is.
pub fn open(settings: &Settings, clock: &Clock) -> Inventory {
    let class = settings.sysfs_root.join("class/power_supply");
    let mut found = Inventory::default();
    let mut gauges = Vec::new();
    for folder in batteries(&class) {
        let id = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match gauge_in(&folder) {
            Ok(gauge) => gauges.push((domain_of(&format!("battery-{}", gauges.len()), &id), gauge)),
            Err(reason) => found.miss(NAME, format!("{id}: {reason}")),
        }
    }
    if gauges.is_empty() && found.absent.is_empty() {
        found.miss(NAME, format!("none in {}; a machine on the mains needs none", class.display()));
    }
    if !gauges.is_empty() {
        found.opened.push(Gauges::offered(NAME, gauges, MAX_RATE_HZ, clock));
    }
    found
}

/// The folders of the batteries that feed the machine, by name.
fn batteries(class: &Path) -> Vec<PathBuf> {
    let feeds = |folder: &PathBuf| {
        text_of(&folder.join("type")).as_deref() == Some("Battery")
            && text_of(&folder.join("scope")).as_deref() != Some("Device")
    };
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(feeds).collect();
    folders.sort();
    folders
}

fn gauge_in(folder: &Path) -> Result<Gauge, String> {
    let number = |name: &str| Attribute::open_number(folder.join(name)).ok();
    let wattage = match (number("power_now"), number("voltage_now"), number("current_now")) {
        (Some(power), _, _) => Wattage::Microwatts(power),
        (None, Some(volts), Some(amperes)) => Wattage::Product(volts, amperes, 1_000_000),
        _ => return Err("shows neither power_now nor voltage_now and current_now".into()),
    };
    let status = Attribute::open(folder.join("status"))
        .map_err(|error| format!("status: {error}; without it nobody knows whether it charges"))?;
    let meter = Wattmeter::momentary(wattage, plausible_ceiling_mw(DomainKind::Battery));
    let discharging = Condition { attribute: status, word: DISCHARGING, wanted: true };
    Ok(Gauge::power(meter).only_while(Some(discharging)))
}

fn domain_of(name: &str, id: &str) -> Domain {
    Domain {
        name: name.into(),
        kind: DomainKind::Battery,
        source: NAME.into(),
        device: Some(id.into()),
        parent: None,
        grade: Grade::Integrated,
        ceiling_mw: Some(plausible_ceiling_mw(DomainKind::Battery)),
        latency_ns: 0,
        quantum_uj: ROUNDING_UJ,
    }
}
