//! The power of batteries while they discharge: a slow reference for the other sources.
//!
//! Reads the batteries under `class/power_supply` that power the machine (not those of peripherals). Firmware refreshes the
//! values every 1 to 30 s, so `wattspan doctor` compares them with the sum of the other domains and no total contains them
//! (see `domain_tree`). A charging battery gives invalid readings. The sign of power and current depends on the driver:
//! while the battery discharges, their magnitude counts. A battery that shows neither is metered by the fall of its gauge.

pub use crate::sources::source_settings::BATTERY as NAME;

use std::fs;
use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, Grade};

use super::counter::plausible_ceiling_mw;
use super::energy_integral::ROUNDING_UJ;
use super::power_sensor::{PowerInput, PowerSensor};
use super::sensor_files::{ChargeGauge, ReadCondition, SensorFile, SensorFileGroup};
use super::sysfs_file::{SysfsFile, read_trimmed};
use super::{Inventory, SourceSettings};

/// The `status` of a battery that powers the machine (linux Documentation/ABI/testing/sysfs-class-power).
const DISCHARGING: &str = "Discharging";

/// The ACPI driver queries the firmware at most once a second and caches the answer. Reads are cheap, and the end of a
/// span does not wait for the firmware.
const MAX_RATE_HZ: f64 = 10.0;

/// The step of a gauge: 10 mWh, as most firmware has.
const GAUGE_QUANTUM_UJ: u64 = 36_000_000;

/// Opens all batteries that power the machine.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let class = settings.sysfs_root.join("class/power_supply");
    let mut found = Inventory::default();
    let mut sensors = Vec::new();
    for folder in list_batteries(&class) {
        let id = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match open_sensor(&folder) {
            Ok((sensor, grade)) => {
                let name = format!("battery-{}", sensors.len());
                sensors.push((battery_domain(&name, &id, grade), sensor));
            }
            Err(reason) => found.add_absent(NAME, format!("{id}: {reason}")),
        }
    }
    if sensors.is_empty() && found.absent.is_empty() {
        found.add_absent(NAME, format!("no battery in {}", class.display()));
    }
    if !sensors.is_empty() {
        found.opened.push(SensorFileGroup::open_source(NAME, sensors, MAX_RATE_HZ, clock));
    }
    found
}

/// The directories of the batteries that power the machine, sorted by name.
fn list_batteries(class: &Path) -> Vec<PathBuf> {
    let feeds = |folder: &PathBuf| {
        read_trimmed(&folder.join("type")).as_deref() == Some("Battery")
            && read_trimmed(&folder.join("scope")).as_deref() != Some("Device")
    };
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(feeds).collect();
    folders.sort();
    folders
}

fn open_sensor(folder: &Path) -> Result<(SensorFile, Grade), String> {
    let number = |name: &str| SysfsFile::open_number(folder.join(name)).ok();
    let product = |amperes: &str| {
        Some(PowerInput::VoltageTimesCurrent(number("voltage_now")?, number(amperes)?, 1_000_000))
    };
    let power = |name: &str| number(name).map(PowerInput::MicrowattsOfEitherSign);
    let input = power("power_now")
        .or_else(|| product("current_now"))
        .or_else(|| power("power_avg"))
        .or_else(|| product("current_avg"));
    let gauge = || {
        let charge = |charge| Some(ChargeGauge::new(charge, Some(number("voltage_now")?)));
        number("energy_now")
            .map(|energy| ChargeGauge::new(energy, None))
            .or_else(|| charge(number("charge_now")?))
    };
    let status = SysfsFile::open(folder.join("status"))
        .map_err(|error| format!("status: {error}; without it the direction of the current is unknown"))?;
    let discharging = ReadCondition { file: status, word: DISCHARGING, must_equal: true };
    let (sensor, grade) = match input {
        Some(input) => {
            let sensor = PowerSensor::instantaneous(input, plausible_ceiling_mw(DomainKind::Battery));
            (SensorFile::power(sensor), Grade::Integrated)
        }
        None => {
            let gauge = gauge().ok_or("has no readable power, current, energy or charge")?;
            (SensorFile::charge(gauge), Grade::Modelled)
        }
    };
    Ok((sensor.with_condition(Some(discharging)), grade))
}

/// `grade`: integrated for a power, modelled for a gauge.
fn battery_domain(name: &str, id: &str, grade: Grade) -> Domain {
    Domain {
        name: name.into(),
        kind: DomainKind::Battery,
        source: NAME.into(),
        device: Some(id.into()),
        parent: None,
        grade,
        ceiling_mw: Some(plausible_ceiling_mw(DomainKind::Battery)),
        latency_ns: 0,
        quantum_uj: if grade == Grade::Integrated { ROUNDING_UJ } else { GAUGE_QUANTUM_UJ },
    }
}
