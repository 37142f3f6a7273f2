//! Board sensors under `class/hwmon`: energy counters, power meters, voltage times current.
//!
//! Owns the choice and the names of the channels. Labels of known boards (Grace, Jetson) and drivers give a rail its
//! position in the domain tree. An unknown rail (`DomainKind::Rail`) is shown and never counted: another rail may contain it.
//! Other mechanisms read the chips of GPUs and batteries. Invariant: one file is read for each channel: its counter, else
//! its average, else its instantaneous value.

pub use crate::sources::source_settings::HWMON as NAME;

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, Grade};

use super::counter::plausible_ceiling_mw;
use super::energy_integral::ROUNDING_UJ;
use super::hwmon_chip::{HwmonChip, list_chips};
use super::power_sensor::{PowerInput, PowerSensor};
use super::sensor_files::{SensorFile, SensorFileGroup, not_suspended, open_unless_suspended};
use super::sysfs_file::SysfsFile;
use super::{Inventory, SourceSettings, intelgpu, rapl};

/// Highest rate for sensors: chips on slow buses answer in about a millisecond and refresh at their own rate.
const MAX_RATE_HZ: f64 = 100.0;

/// The step of `amd_energy`, whose files are RAPL's registers: 2^-16 J, rounded up.
const AMD_ENERGY_QUANTUM_UJ: u64 = 16;

/// Highest rate for counters in registers, which are cheap to read.
const MAX_COUNTER_RATE_HZ: f64 = 1_000.0;

/// Opens each chip with energy or power as a separate source, so that a slow chip delays no other.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let class = settings.sysfs_root.join("class/hwmon");
    let all = match list_chips(&settings.sysfs_root) {
        Ok(all) => all,
        Err(error) => {
            found.add_absent(NAME, format!("{}: {error}", class.display()));
            return found;
        }
    };
    let mut groups = group_rails(&all, settings, &mut found);
    resolve_names_and_parents(&mut groups);
    for (rails, rate_hz) in groups.into_iter().filter(|(rails, _)| !rails.is_empty()) {
        let sensors = rails.into_iter().map(|rail| (rail.domain, rail.sensor)).collect();
        found.opened.push(SensorFileGroup::open_source(NAME, sensors, rate_hz, clock));
    }
    if found.opened.is_empty() && found.absent.is_empty() {
        found.add_absent(
            NAME,
            format!(
                "no chip in {} reports the energy or power of a board; on Grace load the driver: sudo modprobe \
                 acpi_power_meter",
                class.display()
            ),
        );
    }
    found
}

/// The rails of each source with its rate; records the channels that cannot be read.
fn group_rails(
    all: &[HwmonChip],
    settings: &SourceSettings,
    found: &mut Inventory,
) -> Vec<(Vec<HwmonRail>, f64)> {
    let mut groups: Vec<(Vec<HwmonRail>, f64)> = Vec::new();
    for (nth, chip) in all.iter().enumerate().filter(|(_, chip)| !is_read_elsewhere(chip, settings)) {
        let of_name = all[..nth].iter().filter(|other| other.name == chip.name).count();
        let rails = chip_rails(chip, of_name, found);
        match groups.last_mut() {
            // A machine has one ACPI meter for each rail; the firmware reads them all, so they are one source.
            Some((group, _))
                if chip.name == POWER_METER && group.first().is_some_and(|r| r.is_acpi_meter) =>
            {
                group.extend(rails);
            }
            _ => groups.push((rails, max_rate_hz(chip))),
        }
    }
    groups
}

/// The chip name of `acpi_power_meter`.
const POWER_METER: &str = "power_meter";

struct HwmonRail {
    domain: Domain,
    sensor: SensorFile,
    /// The candidate parents, nearest first.
    candidate_parents: Vec<String>,
    is_acpi_meter: bool,
}

/// Whether another mechanism reads the chip: GPUs, and power supplies, which are also in `class/power_supply`.
fn is_read_elsewhere(chip: &HwmonChip, settings: &SourceSettings) -> bool {
    let supply = settings.sysfs_root.join("class/power_supply").join(&chip.name).exists()
        || chip.device().components().any(|part| part.as_os_str() == "power_supply");
    supply || chip.name == "amdgpu" || intelgpu::is_intelgpu_chip(chip)
}

/// The update rate of a chip, from its own files.
fn max_rate_hz(chip: &HwmonChip) -> f64 {
    if !chip.channel_numbers("energy", "input").is_empty() {
        return MAX_COUNTER_RATE_HZ;
    }
    match chip.read_number("update_interval") {
        Some(milliseconds @ 1..) => (1_000.0 / milliseconds as f64).clamp(1.0, MAX_RATE_HZ),
        _ => MAX_RATE_HZ,
    }
}

fn chip_rails(chip: &HwmonChip, nth: usize, found: &mut Inventory) -> Vec<HwmonRail> {
    if chip.name.starts_with("ina3221") {
        return ina3221_rails(chip, nth, found);
    }
    let mut rails = Vec::new();
    let counters = chip.channel_numbers("energy", "input");
    for &channel in &counters {
        let label = chip.read_text(&format!("energy{channel}_label"));
        if chip.name == "amd_energy" && label.as_deref().is_some_and(|label| label.starts_with("Ecore")) {
            continue;
        }
        let position = rail_position(chip, label.as_deref(), nth, &format!("energy{channel}"));
        let sensor = open_file(chip, &format!("energy{channel}_input"))
            .map(|attribute| SensorFile::energy(attribute, position.kind, None));
        add_rail(&mut rails, found, chip, position, sensor, Grade::Measured);
    }
    let mut power_channels = chip.channel_numbers("power", "average");
    power_channels.extend(chip.channel_numbers("power", "input"));
    power_channels.sort_unstable();
    power_channels.dedup();
    for channel in power_channels.into_iter().filter(|channel| !counters.contains(channel)) {
        let label = chip
            .read_text(&format!("power{channel}_label"))
            .or_else(|| chip.read_text(&format!("power{channel}_oem_info")));
        let position = rail_position(chip, label.as_deref(), nth, &format!("power{channel}"));
        let sensor = open_power_sensor(chip, channel, position.kind).map(SensorFile::power);
        add_rail(&mut rails, found, chip, position, sensor, Grade::Integrated);
    }
    rails
}

/// The sensor of `powerN`. Prefers an average with a known interval: it covers all the time, an instantaneous value does not.
fn open_power_sensor(chip: &HwmonChip, channel: u32, kind: DomainKind) -> Result<PowerSensor, String> {
    let of = |file: &str| format!("power{channel}_{file}");
    let (ceiling_mw, plausible_mw) = (ceiling_mw(chip, channel, kind), plausible_ceiling_mw(kind));
    let interval_ms = chip.read_number(&of("average_interval")).filter(|interval| *interval > 0);
    let average = chip.find_file(&of("average")).is_some();
    let momentary = chip.find_file(&of("input")).is_some();
    match interval_ms {
        Some(interval_ms) if average => {
            let input = PowerInput::Microwatts(open_file(chip, &of("average"))?);
            let error_ppm =
                chip.read_text(&of("accuracy")).and_then(|text| parse_accuracy_ppm(&text)).unwrap_or(0);
            let trailing_ns = interval_ms.saturating_mul(1_000_000);
            Ok(PowerSensor::averaging(input, ceiling_mw, trailing_ns, error_ppm)
                .with_plausible_power(plausible_mw))
        }
        _ => {
            let file = of(if momentary { "input" } else { "average" });
            let input = PowerInput::Microwatts(open_file(chip, &file)?);
            Ok(PowerSensor::instantaneous(input, ceiling_mw).with_plausible_power(plausible_mw))
        }
    }
}

/// The error in ppm from an ACPI meter's accuracy such as "99.5%". An implausible accuracy (some meters have 1 for 1 %)
/// gives no error.
fn parse_accuracy_ppm(accuracy: &str) -> Option<u64> {
    let percent = accuracy.strip_suffix('%')?.parse::<f64>().ok()?;
    (50.0..=100.0).contains(&percent).then(|| ((100.0 - percent) * 10_000.0).ceil() as u64)
}

/// The highest power of a channel: three times the device's limit, because a limit on averages allows short excursions (PCI
/// Express allows three times the sustained power for 100 µs). Without a limit: the plausible ceiling of the kind.
fn ceiling_mw(chip: &HwmonChip, channel: u32, kind: DomainKind) -> u64 {
    let limit =
        |file: &str| chip.read_number(&format!("power{channel}_{file}")).filter(|microwatts| *microwatts > 0);
    let limit_uw = ["cap_max", "rated_max"].iter().find_map(|file| limit(file));
    let plausible_mw = plausible_ceiling_mw(kind);
    // A limit with all bits set means no limit.
    limit_uw.map_or(plausible_mw, |limit_uw| (limit_uw / 1_000).saturating_mul(3)).min(plausible_mw)
}

/// Voltage times current of the connected channels 1 to 3. Channel 7, the sum of the shunt voltages, is not a power, and
/// neither is `curr4`, the sum of the currents (linux Documentation/hwmon/ina3221.rst).
fn ina3221_rails(chip: &HwmonChip, nth: usize, found: &mut Inventory) -> Vec<HwmonRail> {
    let mut rails = Vec::new();
    for channel in 1..=3 {
        let off = chip.read_number(&format!("in{channel}_enable")) == Some(0);
        let label = chip.read_text(&format!("in{channel}_label"));
        let unwired = label.as_deref().is_some_and(|label| label.eq_ignore_ascii_case("nc"));
        if off || unwired || chip.find_file(&format!("curr{channel}_input")).is_none() {
            continue;
        }
        let position = label
            .as_deref()
            .and_then(parse_jetson_label)
            .unwrap_or_else(|| unknown_rail(chip, label.as_deref(), nth, &format!("channel{channel}")));
        let sensor = open_file(chip, &format!("in{channel}_input")).and_then(|volts| {
            let amperes = open_file(chip, &format!("curr{channel}_input"))?;
            let input = PowerInput::VoltageTimesCurrent(volts, amperes, 1);
            Ok(SensorFile::power(PowerSensor::instantaneous(input, plausible_ceiling_mw(position.kind))))
        });
        add_rail(&mut rails, found, chip, position, sensor, Grade::Integrated);
    }
    rails
}

fn rail_position(chip: &HwmonChip, label: Option<&str>, nth: usize, channel: &str) -> RailPosition {
    let known = match (chip.name.as_str(), label) {
        (POWER_METER, Some(label)) => parse_grace_label(label),
        ("amd_energy", Some(label)) => parse_amd_energy_label(label),
        ("nouveau" | "radeon", _) => {
            let name = format!("{}-{nth}", chip.name);
            Some(RailPosition { name, kind: DomainKind::Gpu, candidate_parents: Vec::new() })
        }
        _ => None,
    };
    known.unwrap_or_else(|| unknown_rail(chip, label, nth, channel))
}

/// An unknown channel, named after its chip and its label.
fn unknown_rail(chip: &HwmonChip, label: Option<&str>, nth: usize, channel: &str) -> RailPosition {
    let label = label.map(slugify).filter(|label| !label.is_empty()).unwrap_or_else(|| channel.to_owned());
    RailPosition {
        name: format!("{}-{nth}-{label}", slugify(&chip.name)),
        kind: DomainKind::Rail,
        candidate_parents: Vec::new(),
    }
}

fn open_file(chip: &HwmonChip, file: &str) -> Result<SysfsFile, String> {
    let path = chip.find_file(file).ok_or_else(|| format!("{}: no {file}", chip.name))?;
    open_unless_suspended(path.clone(), chip.device()).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => format!(
            "{}: only root can read it; run the program as root, or with CAP_DAC_READ_SEARCH: sudo setcap \
             cap_dac_read_search=ep PROGRAM",
            path.display()
        ),
        _ => format!("{}: {error}", path.display()),
    })
}

fn add_rail(
    rails: &mut Vec<HwmonRail>,
    found: &mut Inventory,
    chip: &HwmonChip,
    position: RailPosition,
    sensor: Result<SensorFile, String>,
    grade: Grade,
) {
    let sensor = match sensor {
        Ok(sensor) => sensor.with_condition(not_suspended(chip.device())),
        Err(reason) => return found.add_absent(NAME, reason),
    };
    let (latency_ns, quantum_uj) = match grade {
        Grade::Measured => counter_properties(chip),
        _ => (sensor.latency_ns(), ROUNDING_UJ),
    };
    let domain = Domain {
        name: position.name,
        kind: position.kind,
        source: NAME.into(),
        device: chip.pci_address().or_else(|| {
            let device = chip.device().file_name()?;
            Some(device.to_string_lossy().into_owned())
        }),
        parent: None,
        grade,
        ceiling_mw: Some(plausible_ceiling_mw(position.kind)),
        latency_ns,
        quantum_uj,
    };
    rails.push(HwmonRail {
        domain,
        sensor,
        candidate_parents: position.candidate_parents,
        is_acpi_meter: chip.name == POWER_METER,
    });
}

/// Latency and quantum of a chip's counters. An unknown chip gets the values of other boards' counters: updates each
/// millisecond, in steps of 2^-14 J.
fn counter_properties(chip: &HwmonChip) -> (u64, u64) {
    match chip.name.as_str() {
        "amd_energy" => (rapl::LATENCY_NS, AMD_ENERGY_QUANTUM_UJ),
        _ => (intelgpu::LATENCY_NS, intelgpu::QUANTUM_UJ),
    }
}

/// Gives every rail its nearest existing parent and a unique name.
fn resolve_names_and_parents(groups: &mut [(Vec<HwmonRail>, f64)]) {
    let mut names: Vec<String> = Vec::new();
    for rail in groups.iter_mut().flat_map(|(rails, _)| rails) {
        let same = names.iter().filter(|name| **name == rail.domain.name).count();
        names.push(rail.domain.name.clone());
        if same > 0 {
            rail.domain.name = format!("{}-{}", rail.domain.name, same + 1);
        }
    }
    for rail in groups.iter_mut().flat_map(|(rails, _)| rails) {
        rail.domain.parent = rail.candidate_parents.iter().find(|parent| names.contains(parent)).cloned();
    }
}

/// Position of a rail in the domain tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RailPosition {
    name: String,
    /// The kind of the powered part.
    kind: DomainKind,
    /// The candidate parents, nearest first. The first existing one is the parent.
    candidate_parents: Vec<String>,
}

impl RailPosition {
    fn new(name: String, kind: DomainKind, within: &[String]) -> Self {
        Self { name, kind, candidate_parents: within.to_vec() }
    }
}

/// The labels in `power1_oem_info` of an ACPI power meter on NVIDIA Grace: "Module Power Socket 0" (processor, memory, GPU
/// with its own memory, and the regulators' loss), "Grace Power Socket 0" (the processor's socket), "CPU Power Socket 0"
/// (its cores' rail), "SysIO Power Socket 0" (its fabric's). NVIDIA Grace performance tuning guide, power telemetry. Other
/// firmware has "Total Power in uW socket 0", "CPU Rail Input Power in uW socket 0", "SoC Rail Power in uW socket 0".
fn parse_grace_label(label: &str) -> Option<RailPosition> {
    let label = label.to_ascii_lowercase();
    let (what, socket) = label.split_once(" socket ")?;
    let socket = socket.trim().parse::<u32>().ok()?;
    let named = |stem: &str| format!("{stem}-{socket}");
    let (module, whole) = (named("module"), named("grace"));
    match what.trim() {
        "module power" => Some(RailPosition::new(module, DomainKind::Module, &[])),
        "grace power" | "total power in uw" | "total input power in uw" => {
            Some(RailPosition::new(whole, DomainKind::Soc, &[module]))
        }
        "cpu power" | "cpu rail power in uw" | "cpu rail input power in uw" => {
            Some(RailPosition::new(named("cpu"), DomainKind::Package, &[whole, module]))
        }
        "sysio power" | "soc rail power in uw" | "soc rail input power in uw" => {
            Some(RailPosition::new(named("sysio"), DomainKind::Uncore, &[whole, module]))
        }
        _ => None,
    }
}

/// The labels of the INA3221 channels on NVIDIA Jetson boards. `VDD_IN`, the module's input, feeds the rails of a Nano, NX
/// or TX2. An AGX has no such channel: its rails are independent, except the memory's, which the system's 5 V rail
/// feeds (Jetson Linux developer guide, power and performance, the tables of power rails).
fn parse_jetson_label(label: &str) -> Option<RailPosition> {
    let inputs = ["vdd-in", "vin", "pom-5v-in"].map(String::from);
    let upper = label.trim().to_ascii_uppercase();
    let name = slugify(&upper);
    let outermost = || Some(RailPosition::new(name.clone(), DomainKind::Module, &[]));
    let within = |kind| Some(RailPosition::new(name.clone(), kind, &inputs));
    match upper.as_str() {
        "VDD_IN" | "VIN" | "POM_5V_IN" => outermost(),
        "CPU" | "VDD_CPU" | "VDD_CPU_CV" | "VDD_SYS_CPU" | "POM_5V_CPU" => within(DomainKind::Package),
        "GPU" | "VDD_GPU" | "VDD_SYS_GPU" | "POM_5V_GPU" => within(DomainKind::Gpu),
        "SOC" | "VDD_SOC" | "VDD_SYS_SOC" | "VDD_CPU_GPU_CV" | "VDD_GPU_SOC" | "VDD_CPU_SOC_MSS" => {
            within(DomainKind::Soc)
        }
        "CV" => within(DomainKind::Npu),
        "VDDRQ" | "VDD_SYS_DDR" => within(DomainKind::Dram),
        "SYS5V" | "VIN_SYS_5V0" => within(DomainKind::Uncore),
        "VDDQ_VDD2_1V8AO" => {
            let nearest = std::iter::once("vin-sys-5v0".to_owned()).chain(inputs.clone());
            Some(RailPosition::new(name.clone(), DomainKind::Dram, &nearest.collect::<Vec<_>>()))
        }
        _ => None,
    }
}

/// The labels of the driver `amd_energy`. RAPL shows the package's counter too, so it gets RAPL's name and is read once.
/// The counters of the cores ("Ecore000") are part of it and are not read.
fn parse_amd_energy_label(label: &str) -> Option<RailPosition> {
    let socket = label.strip_prefix("Esocket")?.parse::<u32>().ok()?;
    Some(RailPosition::new(format!("package-{socket}"), DomainKind::Package, &[]))
}

/// Converts a label to a name of lower-case letters, digits and hyphens.
fn slugify(label: &str) -> String {
    let mut name = String::new();
    for letter in label.chars() {
        match letter.to_ascii_lowercase() {
            letter if letter.is_ascii_alphanumeric() => name.push(letter),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_is_a_module_around_a_socket_around_its_rails() {
        let place =
            |label| parse_grace_label(label).map(|place| (place.name, place.kind, place.candidate_parents));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(place("Module Power Socket 1"), Some(("module-1".into(), DomainKind::Module, vec![])));
        assert_eq!(
            place("Grace Power Socket 0"),
            Some(("grace-0".into(), DomainKind::Soc, names(&["module-0"])))
        );
        assert_eq!(
            place("CPU Power Socket 0"),
            Some(("cpu-0".into(), DomainKind::Package, names(&["grace-0", "module-0"])))
        );
        assert_eq!(
            place("SysIO Power Socket 3"),
            Some(("sysio-3".into(), DomainKind::Uncore, names(&["grace-3", "module-3"])))
        );
        assert_eq!(place("Total Input Power in uW socket 1"), place("Grace Power Socket 1"));
        assert_eq!(place("CPU Rail Power in uW socket 1"), place("CPU Power Socket 1"));
        assert_eq!(place("SOC Rail Input Power in uW socket 1"), place("SysIO Power Socket 1"));
        assert_eq!(place("Total Power"), None);
        assert_eq!(place("CPU Power Socket x"), None);
    }

    #[test]
    fn a_jetsons_rails_lie_in_its_input_and_the_memory_in_the_system_rail() {
        assert_eq!(parse_jetson_label("VDD_IN").unwrap().candidate_parents, Vec::<String>::new());
        assert_eq!(parse_jetson_label("VDD_CPU_GPU_CV").unwrap().candidate_parents[0], "vdd-in");
        assert_eq!(parse_jetson_label("VDDQ_VDD2_1V8AO").unwrap().candidate_parents[0], "vin-sys-5v0");
        assert_eq!(parse_jetson_label("sum of shunt voltages"), None);
        assert_eq!(parse_jetson_label("NC"), None);
    }

    #[test]
    fn a_core_of_amd_energy_is_no_domain_and_names_are_slugs() {
        assert_eq!(parse_amd_energy_label("Ecore012"), None);
        assert_eq!(parse_amd_energy_label("Esocket1").unwrap().name, "package-1");
        assert_eq!(slugify("Power +12V (total)"), "power-12v-total");
        assert_eq!(slugify("--"), "");
    }
}
