//! Intel GPUs: the energy counters of the kernel drivers xe and i915.
//!
//! Reads `energy1_input` (the card) and `energy2_input` (its package) of each card's chip under `class/hwmon` (linux
//! Documentation/ABI/testing/sysfs-driver-intel-xe-hwmon), and i915's chip for each tile. The card contains its
//! package and tiles. The drivers accumulate a 32-bit register of 2^-14 J *only on reads* (xe_hwmon.c). At 1 kW it
//! wraps in 4.4 minutes, so it must be read at least once a minute. The sampler reads once a second while idle; the
//! energy of a longer gap counts as unknown. A card without a counter is estimated from its power limit and the idle time
//! of its engines. Needs no vendor library and no privilege.

pub use crate::sources::source_settings::INTELGPU as NAME;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, Grade};

use super::counter::plausible_ceiling_mw;
use super::energy_integral::ROUNDING_UJ;
use super::energy_unit::EnergyUnit;
use super::gpu_power_model::{GpuLoad, idle_time_files};
use super::hwmon_chip::{HwmonChip, list_chips};
use super::power_sensor::{PowerInput, PowerSensor};
use super::sensor_files::{SensorFile, SensorFileGroup, not_suspended, open_unless_suspended};
use super::{Inventory, SourceSettings};

/// 2^32 counts of 2^-14 J: the energy after which the hardware register may have wrapped unnoticed.
const REGISTER_RANGE_UJ: u64 = 262_144_000_000;

/// Latency from hardware to register: the firmware updates about every millisecond, as for the CPU's counters.
pub(super) const LATENCY_NS: u64 = 1_000_000;

/// The quantum of the register, which the driver shows in whole microjoules.
pub(super) const QUANTUM_UJ: u64 = EnergyUnit::TWO_TO_THE_MINUS_14_JOULES.quantum_uj();

/// Reads use the card's mailbox or registers; faster reads than its update rate give no new values.
const MAX_RATE_HZ: f64 = 1_000.0;

/// Whether a chip belongs to an Intel GPU. Other mechanisms skip such chips.
pub fn is_intelgpu_chip(chip: &HwmonChip) -> bool {
    chip.name == "xe" || chip.name == "i915" || tile_number(&chip.name).is_some()
}

/// Prefix of i915's chip name for a tile, such as `i915_gt0`.
fn tile_number(name: &str) -> Option<&str> {
    name.strip_prefix("i915_gt")
}

/// Opens each card as a separate source.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let mut cards = BTreeMap::<String, Vec<HwmonChip>>::new();
    for chip in list_chips(&settings.sysfs_root).unwrap_or_default().into_iter().filter(is_intelgpu_chip) {
        let device = chip.pci_address().unwrap_or_else(|| chip.device().display().to_string());
        cards.entry(device).or_default().push(chip);
    }
    if cards.is_empty() {
        found.add_absent(
            NAME,
            "no card of the drivers xe or i915 reports its energy in class/hwmon; an integrated GPU is part of its \
             package, and a card needs Linux 6.5 (xe) or 6.2 (i915)"
                .into(),
        );
    }
    let mut named = 0;
    for (device, chips) in cards {
        let card = format!("intelgpu-{named}");
        let mut sensors = open_card_sensors(&card, &device, &chips, &mut found);
        let missing = format!("{device}: the driver {} reports no energy of this card", chips[0].name);
        if sensors.is_empty() {
            match chips.iter().find_map(open_estimate) {
                None => found.add_absent(NAME, missing),
                Some(sensor) => {
                    let note = format!(
                        "{missing}; it is estimated from its power limit and the idle time of its engines"
                    );
                    found.add_absent(NAME, note);
                    sensors.push((estimated_domain(&card, &device), sensor));
                }
            }
        }
        if !sensors.is_empty() {
            let max_rate_hz =
                if sensors[0].0.grade == Grade::Estimated { MAX_ESTIMATE_RATE_HZ } else { MAX_RATE_HZ };
            named += 1;
            found.opened.push(SensorFileGroup::open_source(NAME, sensors, max_rate_hz, clock));
        }
    }
    found
}

/// Rate of an estimate, whose engines count whole milliseconds.
const MAX_ESTIMATE_RATE_HZ: f64 = 20.0;

/// The estimate of a card without a counter, from the limit of its mean power (`power1_max`), else its rated power (linux
/// Documentation/ABI/testing/sysfs-driver-intel-xe-hwmon). Its interval is from 0 to the limit.
fn open_estimate(chip: &HwmonChip) -> Option<SensorFile> {
    let limit_mw =
        |file: &str| chip.read_number(file).map(|microwatts| microwatts / 1_000).filter(|mw| *mw > 0);
    let limits = ["power1_max", "power1_rated_max"];
    let name = limits.into_iter().find(|file| limit_mw(file).is_some())?;
    let plausible_mw = plausible_ceiling_mw(DomainKind::Gpu);
    let highest_mw = limits.iter().filter_map(|file| limit_mw(file)).max()?.min(plausible_mw);
    let open = |path: PathBuf| open_unless_suspended(path, chip.device()).ok();
    let idle_times = idle_time_files(chip.device()).into_iter().filter_map(open).collect();
    let load = GpuLoad::by_idle_times(chip.open_file(name, chip.device()).ok()?, idle_times)?;
    let sensor =
        PowerSensor::instantaneous(PowerInput::Estimate(load), highest_mw).with_plausible_power(plausible_mw);
    Some(SensorFile::power(sensor).with_condition(not_suspended(chip.device())))
}

fn estimated_domain(card: &str, device: &str) -> Domain {
    Domain {
        grade: Grade::Estimated,
        latency_ns: 0,
        quantum_uj: ROUNDING_UJ,
        ..card_domain(card, None, device)
    }
}

fn open_card_sensors(
    card: &str,
    device: &str,
    chips: &[HwmonChip],
    found: &mut Inventory,
) -> Vec<(Domain, SensorFile)> {
    let mut sensors: Vec<(Domain, SensorFile)> = Vec::new();
    for chip in chips {
        for (file, part) in [("energy1_input", None), ("energy2_input", Some("package"))] {
            let Some(path) = chip.find_file(file) else { continue };
            let part = match tile_number(&chip.name) {
                Some(tile) => Some(format!("gt{tile}")),
                None => part.map(String::from),
            };
            match chip.open_file(file, chip.device()) {
                Ok(file) => {
                    let sensor = SensorFile::energy(file, DomainKind::Gpu, Some(REGISTER_RANGE_UJ));
                    sensors.push((
                        card_domain(card, part, device),
                        sensor.with_condition(not_suspended(chip.device())),
                    ));
                }
                Err(error) => found.add_failed(NAME, &error, format!("{}: {error}", path.display())),
            }
        }
    }
    // If the driver shows no counter of the card, its parts have no parent, and discovery drops the parent.
    sensors
}

fn card_domain(card: &str, part: Option<String>, device: &str) -> Domain {
    Domain {
        name: part.as_ref().map_or_else(|| card.to_owned(), |part| format!("{card}-{part}")),
        kind: DomainKind::Gpu,
        source: NAME.into(),
        device: Some(device.into()),
        parent: part.map(|_| card.to_owned()),
        grade: Grade::Measured,
        ceiling_mw: Some(plausible_ceiling_mw(DomainKind::Gpu)),
        latency_ns: LATENCY_NS,
        quantum_uj: QUANTUM_UJ,
    }
}
