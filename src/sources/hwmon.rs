//! Boards' own sensors under `class/hwmon`: energy counters, power meters, volts times amperes.
//!
//! Owns which channels of which chip are taken and what they are called. Known boards (Grace, Jetson) and drivers have
//! their place in the tree of containment (`board`); a channel whose place nobody knows is shown and never counted, since it
//! may lie within another. Graphics cards' and batteries' chips belong to other mechanisms. Invariant: of one channel one
//! file is taken: its counter, else its average, else its momentary value.

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, Grade};

use super::attribute::Attribute;
use super::board::{self, Place, plain};
use super::counter::plausible_ceiling_mw;
use super::gauge::{Gauge, Gauges, awake, open_unless_asleep};
use super::hwmon_chip::{Chip, chips};
use super::integral::ROUNDING_UJ;
use super::wattmeter::{Wattage, Wattmeter};
use super::{Inventory, Settings, intelgpu, rapl};

/// The mechanism's name.
pub const NAME: &str = "hwmon";

/// Chips on slow buses answer in a millisecond or so and refresh at their own pace: faster gives nothing.
const MAX_RATE_HZ: f64 = 100.0;

/// The step of `amd_energy`, whose files are RAPL's registers: 2^-16 J, rounded up.
const AMD_ENERGY_UJ: u64 = 16;

/// For counters in registers, where a read is cheap.
const MAX_COUNTER_RATE_HZ: f64 = 1_000.0;

/// Opens every chip that shows energy or power, each as a source of its own, so that a slow one delays nobody.
pub fn open(settings: &Settings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let class = settings.sysfs_root.join("class/hwmon");
    let all = match chips(&settings.sysfs_root) {
        Ok(all) => all,
        Err(error) => {
            found.miss(NAME, format!("{}: {error}", class.display()));
            return found;
        }
    };
    let mut groups: Vec<(Vec<Rail>, f64)> = Vec::new();
    for (nth, chip) in all.iter().enumerate().filter(|(_, chip)| !belongs_elsewhere(chip, settings)) {
        let of_name = all[..nth].iter().filter(|other| other.name == chip.name).count();
        let rails = rails_of(chip, of_name, &mut found);
        match groups.last_mut() {
            // A machine has an ACPI meter for each rail; they are one mechanism of the firmware's, and one source here.
            Some((group, _)) if chip.name == POWER_METER && group.first().is_some_and(|r| r.acpi) => {
                group.extend(rails);
            }
            _ => groups.push((rails, rate_of(chip))),
        }
    }
    settle_names(&mut groups);
    for (rails, rate_hz) in groups.into_iter().filter(|(rails, _)| !rails.is_empty()) {
        let gauges = rails.into_iter().map(|rail| (rail.domain, rail.gauge)).collect();
        found.opened.push(Gauges::offered(NAME, gauges, rate_hz, clock));
    }
    if found.opened.is_empty() && found.absent.is_empty() {
        found.miss(
            NAME,
            format!(
                "no chip in {} shows the energy or power of a board; on Grace load the driver: sudo \
                                  modprobe acpi_power_meter",
                class.display()
            ),
        );
    }
    found
}

/// What `acpi_power_meter` calls its chips.
const POWER_METER: &str = "power_meter";

/// One channel that was taken.
struct Rail {
    domain: Domain,
    gauge: Gauge,
    /// The rails it may lie in, nearest first.
    within: Vec<String>,
    acpi: bool,
}

/// Chips that other mechanisms read: of graphics cards, and those that power supplies have beside `class/power_supply`.
fn belongs_elsewhere(chip: &Chip, settings: &Settings) -> bool {
    let supply = settings.sysfs_root.join("class/power_supply").join(&chip.name).exists()
        || chip.device().components().any(|part| part.as_os_str() == "power_supply");
    supply || chip.name == "amdgpu" || intelgpu::owns(chip)
}

/// How often a chip has something new, by what it says itself.
fn rate_of(chip: &Chip) -> f64 {
    if !chip.channels("energy", "input").is_empty() {
        return MAX_COUNTER_RATE_HZ;
    }
    match chip.number("update_interval") {
        Some(milliseconds @ 1..) => (1_000.0 / milliseconds as f64).clamp(1.0, MAX_RATE_HZ),
        _ => MAX_RATE_HZ,
    }
}

fn rails_of(chip: &Chip, nth: usize, found: &mut Inventory) -> Vec<Rail> {
    if chip.name.starts_with("ina3221") {
        return ina3221(chip, nth, found);
    }
    let mut rails = Vec::new();
    let counters = chip.channels("energy", "input");
    for &channel in &counters {
        let label = chip.text(&format!("energy{channel}_label"));
        if chip.name == "amd_energy" && label.as_deref().is_some_and(|label| label.starts_with("Ecore")) {
            continue;
        }
        let place = place_of(chip, label.as_deref(), nth, &format!("energy{channel}"));
        let gauge = open_file(chip, &format!("energy{channel}_input"))
            .map(|attribute| Gauge::energy(attribute, place.kind, None));
        take(&mut rails, found, chip, place, gauge, Grade::Measured);
    }
    let mut meters = chip.channels("power", "average");
    meters.extend(chip.channels("power", "input"));
    meters.sort_unstable();
    meters.dedup();
    for channel in meters.into_iter().filter(|channel| !counters.contains(channel)) {
        let label = chip
            .text(&format!("power{channel}_label"))
            .or_else(|| chip.text(&format!("power{channel}_oem_info")));
        let place = place_of(chip, label.as_deref(), nth, &format!("power{channel}"));
        let gauge = wattmeter(chip, channel, place.kind).map(Gauge::power);
        take(&mut rails, found, chip, place, gauge, Grade::Integrated);
    }
    rails
}

/// The meter of `powerN`. An average whose interval is told covers all the time, which no momentary value does.
fn wattmeter(chip: &Chip, channel: u32, kind: DomainKind) -> Result<Wattmeter, String> {
    let of = |file: &str| format!("power{channel}_{file}");
    let ceiling_mw = ceiling_mw(chip, channel, kind);
    let interval_ms = chip.number(&of("average_interval")).filter(|interval| *interval > 0);
    let average = chip.file(&of("average")).is_some();
    let momentary = chip.file(&of("input")).is_some();
    match interval_ms {
        Some(interval_ms) if average => {
            let wattage = Wattage::Microwatts(open_file(chip, &of("average"))?);
            let error_ppm = chip.text(&of("accuracy")).and_then(|text| error_ppm(&text)).unwrap_or(0);
            Ok(Wattmeter::trailing(wattage, ceiling_mw, interval_ms.saturating_mul(1_000_000), error_ppm))
        }
        _ => {
            let file = of(if momentary { "input" } else { "average" });
            Ok(Wattmeter::momentary(Wattage::Microwatts(open_file(chip, &file)?), ceiling_mw))
        }
    }
}

/// What an ACPI meter says of its accuracy, "99.5%", as what it may be off. One that says nothing sensible (some say 1 and
/// mean 1 %) is taken at its figures.
fn error_ppm(accuracy: &str) -> Option<u64> {
    let percent = accuracy.strip_suffix('%')?.parse::<f64>().ok()?;
    (50.0..=100.0).contains(&percent).then(|| ((100.0 - percent) * 10_000.0).ceil() as u64)
}

/// The most that a channel can draw: three times what the device is held to on average, since a limit on averages lets
/// short excursions through (PCI Express allows three times the sustained power for 100 µs); where no limit is told, what
/// no device of the kind draws.
fn ceiling_mw(chip: &Chip, channel: u32, kind: DomainKind) -> u64 {
    let limit =
        |file: &str| chip.number(&format!("power{channel}_{file}")).filter(|microwatts| *microwatts > 0);
    let most_uw = ["cap_max", "rated_max"].iter().find_map(|file| limit(file));
    let plausible_mw = plausible_ceiling_mw(kind);
    // A limit that is no limit (all bits set) is none.
    most_uw.map_or(plausible_mw, |most_uw| (most_uw / 1_000).saturating_mul(3)).min(plausible_mw)
}

/// Volts times amperes of channels 1 to 3, as far as they are wired. Channel 7, the sum of the shunts' voltages, is no
/// power, and neither is `curr4`, the sum of the currents (linux Documentation/hwmon/ina3221.rst).
fn ina3221(chip: &Chip, nth: usize, found: &mut Inventory) -> Vec<Rail> {
    let mut rails = Vec::new();
    for channel in 1..=3 {
        let off = chip.number(&format!("in{channel}_enable")) == Some(0);
        let label = chip.text(&format!("in{channel}_label"));
        let unwired = label.as_deref().is_some_and(|label| label.eq_ignore_ascii_case("nc"));
        if off || unwired || chip.file(&format!("curr{channel}_input")).is_none() {
            continue;
        }
        let place = label
            .as_deref()
            .and_then(board::jetson)
            .unwrap_or_else(|| unknown(chip, label.as_deref(), nth, &format!("channel{channel}")));
        let gauge = open_file(chip, &format!("in{channel}_input")).and_then(|volts| {
            let amperes = open_file(chip, &format!("curr{channel}_input"))?;
            let wattage = Wattage::Product(volts, amperes, 1);
            Ok(Gauge::power(Wattmeter::momentary(wattage, plausible_ceiling_mw(place.kind))))
        });
        take(&mut rails, found, chip, place, gauge, Grade::Integrated);
    }
    rails
}

fn place_of(chip: &Chip, label: Option<&str>, nth: usize, channel: &str) -> Place {
    let known = match (chip.name.as_str(), label) {
        (POWER_METER, Some(label)) => board::grace(label),
        ("amd_energy", Some(label)) => board::amd_energy(label),
        ("nouveau" | "radeon", _) => {
            let name = format!("{}-{nth}", chip.name);
            Some(Place { name, kind: DomainKind::Gpu, within: Vec::new() })
        }
        _ => None,
    };
    known.unwrap_or_else(|| unknown(chip, label, nth, channel))
}

/// A channel that nobody knows: named after its chip and its label.
fn unknown(chip: &Chip, label: Option<&str>, nth: usize, channel: &str) -> Place {
    let label = label.map(plain).filter(|label| !label.is_empty()).unwrap_or_else(|| channel.to_owned());
    Place { name: format!("{}-{nth}-{label}", plain(&chip.name)), kind: DomainKind::Rail, within: Vec::new() }
}

fn open_file(chip: &Chip, file: &str) -> Result<Attribute, String> {
    let path = chip.file(file).ok_or_else(|| format!("{}: no {file}", chip.name))?;
    open_unless_asleep(path.clone(), chip.device()).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => format!(
            "{}: for root alone; run the program as root, or with CAP_DAC_READ_SEARCH: sudo setcap \
             cap_dac_read_search=ep PROGRAM",
            path.display()
        ),
        _ => format!("{}: {error}", path.display()),
    })
}

fn take(
    rails: &mut Vec<Rail>,
    found: &mut Inventory,
    chip: &Chip,
    place: Place,
    gauge: Result<Gauge, String>,
    grade: Grade,
) {
    let gauge = match gauge {
        Ok(gauge) => gauge.only_while(awake(chip.device())),
        Err(reason) => return found.miss(NAME, reason),
    };
    let (latency_ns, quantum_uj) = match grade {
        Grade::Measured => counting(chip),
        _ => (gauge.latency_ns(), ROUNDING_UJ),
    };
    let domain = Domain {
        name: place.name,
        kind: place.kind,
        source: NAME.into(),
        device: chip.pci_address().or_else(|| {
            let device = chip.device().file_name()?;
            Some(device.to_string_lossy().into_owned())
        }),
        parent: None,
        grade,
        ceiling_mw: Some(plausible_ceiling_mw(place.kind)),
        latency_ns,
        quantum_uj,
    };
    rails.push(Rail { domain, gauge, within: place.within, acpi: chip.name == POWER_METER });
}

/// How late the counters of a chip show what was used, and in what steps. Of a chip that nobody knows it is taken to be no
/// better than what is known of other boards' counters: they are published each millisecond, in steps of 2^-14 J.
fn counting(chip: &Chip) -> (u64, u64) {
    match chip.name.as_str() {
        "amd_energy" => (rapl::LATENCY_NS, AMD_ENERGY_UJ),
        _ => (intelgpu::LATENCY_NS, intelgpu::QUANTUM_UJ),
    }
}

/// Gives every rail the nearest of those it may lie in that is there, and a name of its own.
fn settle_names(groups: &mut [(Vec<Rail>, f64)]) {
    let mut names: Vec<String> = Vec::new();
    for rail in groups.iter_mut().flat_map(|(rails, _)| rails) {
        let same = names.iter().filter(|name| **name == rail.domain.name).count();
        names.push(rail.domain.name.clone());
        if same > 0 {
            rail.domain.name = format!("{}-{}", rail.domain.name, same + 1);
        }
    }
    for rail in groups.iter_mut().flat_map(|(rails, _)| rails) {
        rail.domain.parent = rail.within.iter().find(|place| names.contains(place)).cloned();
    }
}
