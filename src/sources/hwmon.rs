//! Board sensors under `class/hwmon`: energy counters, power meters, voltage times current.
//!
//! Owns the choice of the channels. What a chip shows gives a rail its position in the domain tree (`hwmon_label`), whatever
//! the driver's name: one register has several drivers. An unknown rail (`DomainKind::Rail`) is shown and never counted:
//! another rail may contain it. Other mechanisms read the chips of GPUs and batteries. Invariant: one file is read for each
//! rail: its counter, else its average, else its instantaneous value.

pub use crate::sources::source_settings::HWMON as NAME;

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, Grade};

use super::counter::plausible_ceiling_mw;
use super::cpu_info::CpuInfo;
use super::energy_integral::ROUNDING_UJ;
use super::energy_unit::EnergyUnit;
use super::hwmon_chip::{HwmonChip, list_chips};
use super::hwmon_label::{
    ChipRole, RailPosition, chip_role, core_counter, is_no_power, rail_position, slugify,
};
use super::power_sensor::{PowerInput, PowerSensor};
use super::sensor_files::{SensorFile, SensorFileGroup};
use super::sysfs_file::SysfsFile;
use super::{Inventory, SourceSettings, intelgpu, rapl};

/// Highest rate for sensors: chips on slow buses answer in about a millisecond and refresh at their own rate.
const MAX_RATE_HZ: f64 = 100.0;

/// The quantum of AMD's registers, which `amd_energy` and `zenergy` show in whole microjoules.
const AMD_ENERGY_QUANTUM_UJ: u64 = EnergyUnit::TWO_TO_THE_MINUS_16_JOULES.quantum_uj();

/// Highest rate for the counters of single cores: each read interrupts a core, and the socket's counter contains them. The
/// end of a span does not wait long for it.
const MAX_CORE_RATE_HZ: f64 = 10.0;

/// The most cores whose counters are read.
const MAX_CORE_RAILS: usize = 32;

/// Highest rate for counters in registers, which are cheap to read.
const MAX_COUNTER_RATE_HZ: f64 = 1_000.0;

/// Opens each chip with energy or power as a separate source, so that a slow chip delays no other.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let class = settings.sysfs_root.join("class/hwmon");
    let all = match list_chips(&settings.sysfs_root) {
        Ok(all) => all,
        Err(error) => {
            found.add_failed(NAME, &error, format!("{}: {error}", class.display()));
            return found;
        }
    };
    let mut groups = group_rails(&all, settings, &mut found);
    resolve_names_and_parents(&mut groups);
    for (rails, rate_hz) in groups {
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

/// The rails of each source, at least one, with its rate; records the channels that cannot be read.
fn group_rails(
    all: &[HwmonChip],
    settings: &SourceSettings,
    found: &mut Inventory,
) -> Vec<(Vec<HwmonRail>, f64)> {
    let mut groups: Vec<(Vec<HwmonRail>, f64)> = Vec::new();
    let read: Vec<HwmonChip> =
        all.iter().filter(|chip| !is_read_elsewhere(chip, settings)).cloned().collect();
    let package_grade = CpuInfo::read(&settings.proc_root).rapl_grade();
    for (nth, chip) in read.iter().enumerate() {
        let of_name = read[..nth].iter().filter(|other| other.name == chip.name).count();
        let context = ChipContext { chip, nth: of_name, role: chip_role(chip, &read), package_grade };
        let ChipRails { rails, cores } = chip_rails(&context, found);
        match groups.last_mut() {
            // A machine has one ACPI meter for each rail; the firmware reads them all, so they are one source.
            Some((group, _))
                if chip.name == POWER_METER && group.first().is_some_and(|r| r.is_acpi_meter) =>
            {
                group.extend(rails);
            }
            _ if !rails.is_empty() => groups.push((rails, max_rate_hz(chip))),
            _ => {}
        }
        if !cores.is_empty() {
            groups.push((cores, MAX_CORE_RATE_HZ));
        }
    }
    groups
}

/// A chip with what its channels' positions depend on.
struct ChipContext<'a> {
    chip: &'a HwmonChip,
    /// Its number among the chips of its name.
    nth: usize,
    role: ChipRole,
    /// The grade of a CPU package's counter on this processor.
    package_grade: Grade,
}

impl ChipContext<'_> {
    /// The position of a channel.
    fn position(&self, label: Option<&str>, channel: &str) -> RailPosition {
        rail_position(&self.role, label)
            .or_else(|| is_other_gpu(self.chip).then(|| gpu_position(self.chip, self.nth)))
            .unwrap_or_else(|| unknown_rail(self.chip, label, self.nth, channel))
    }
}

fn is_other_gpu(chip: &HwmonChip) -> bool {
    matches!(chip.name.as_str(), "nouveau" | "radeon")
}

fn gpu_position(chip: &HwmonChip, nth: usize) -> RailPosition {
    RailPosition::new(format!("{}-{nth}", chip.name), DomainKind::Gpu, &[])
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

/// The rails of one chip.
#[derive(Default)]
struct ChipRails {
    rails: Vec<HwmonRail>,
    /// The counters of single cores: a source of their own, so that they do not delay that of the socket.
    cores: Vec<HwmonRail>,
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

fn chip_rails(context: &ChipContext<'_>, found: &mut Inventory) -> ChipRails {
    let chip = context.chip;
    let (counters, powers) = (chip.channel_numbers("energy", "input"), power_channels(chip));
    if counters.is_empty() && powers.is_empty() {
        return ChipRails { rails: voltage_times_current_rails(context, found), cores: Vec::new() };
    }
    let label = |channel: u32| (channel, chip.read_text(&format!("energy{channel}_label")));
    let counters: Vec<_> = counters.into_iter().map(label).collect();
    let mut chip_rails = counter_rails(context, &counters, found);
    // A power with the label of a counter is the same rail; a chip without labels pairs its channels by number.
    let metered: Vec<String> =
        counters.into_iter().map(|(channel, label)| label.unwrap_or_else(|| channel.to_string())).collect();
    for channel in powers {
        let label = power_label(chip, channel);
        if metered.contains(&label.clone().unwrap_or_else(|| channel.to_string())) {
            continue;
        }
        if let Some(label) = label.as_deref().filter(|label| is_no_power(label)) {
            found.add_absent(NAME, format!("{}: {label:?} is no power", chip.name));
            continue;
        }
        let position = context.position(label.as_deref(), &format!("power{channel}"));
        let sensor = open_power_sensor(chip, channel, position.kind).map(SensorFile::power);
        add_rail(&mut chip_rails.rails, found, chip, position, sensor, Grade::Integrated);
    }
    chip_rails
}

/// The rails of a chip's energy counters, each with its channel and label.
fn counter_rails(
    context: &ChipContext<'_>,
    counters: &[(u32, Option<String>)],
    found: &mut Inventory,
) -> ChipRails {
    let chip = context.chip;
    let is_core = |label: &Option<String>| label.as_deref().is_some_and(core_counter);
    let core_count = counters.iter().filter(|(_, label)| is_core(label)).count();
    if core_count > MAX_CORE_RAILS {
        let reason = format!(
            "{}: the counters of its {core_count} cores are not read; that of their socket contains them",
            chip.name
        );
        found.add_absent(NAME, reason);
    }
    let mut chip_rails = ChipRails::default();
    for (channel, label) in counters {
        let rails = match is_core(label) {
            true if core_count > MAX_CORE_RAILS => continue,
            true => &mut chip_rails.cores,
            false => &mut chip_rails.rails,
        };
        let position = context.position(label.as_deref(), &format!("energy{channel}"));
        let sensor = open_file(chip, &format!("energy{channel}_input"))
            .map(|attribute| SensorFile::energy(attribute, position.kind, None));
        let grade = match position.kind {
            DomainKind::Package => context.package_grade,
            _ => Grade::Measured,
        };
        add_rail(rails, found, chip, position, sensor, grade);
    }
    chip_rails
}

/// The numbers of the channels with a power, ascending.
fn power_channels(chip: &HwmonChip) -> Vec<u32> {
    let mut channels = chip.channel_numbers("power", "average");
    channels.extend(chip.channel_numbers("power", "input"));
    channels.sort_unstable();
    channels.dedup();
    channels
}

fn power_label(chip: &HwmonChip, channel: u32) -> Option<String> {
    chip.read_text(&format!("power{channel}_label"))
        .or_else(|| chip.read_text(&format!("power{channel}_oem_info")))
        // The device tree's label of the whole chip (linux Documentation/ABI/testing/sysfs-class-hwmon).
        .or_else(|| chip.read_text("label"))
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
pub(super) fn parse_accuracy_ppm(accuracy: &str) -> Option<u64> {
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

/// Voltage times current of the connected channels of a chip that shows no power, as INA3221. Its channel 7, the sum of the
/// shunt voltages, is not a power, and neither is `curr4`, the sum of the currents (linux Documentation/hwmon/ina3221.rst).
fn voltage_times_current_rails(context: &ChipContext<'_>, found: &mut Inventory) -> Vec<HwmonRail> {
    let chip = context.chip;
    let mut rails = Vec::new();
    let is_ina3221 = chip.name.starts_with("ina3221");
    for channel in chip.channel_numbers("curr", "input") {
        let off = chip.read_number(&format!("in{channel}_enable")) == Some(0);
        let label = chip.read_text(&format!("in{channel}_label"));
        let unwired = label.as_deref().is_some_and(|label| label.eq_ignore_ascii_case("nc"));
        if off
            || unwired
            || (is_ina3221 && channel > 3)
            || chip.find_file(&format!("in{channel}_input")).is_none()
        {
            continue;
        }
        let known = rail_position(&context.role, label.as_deref());
        // Voltage and current of one number belong together on these chips only; elsewhere by a known label.
        if known.is_none() && !is_ina3221 {
            continue;
        }
        let position = known.unwrap_or_else(|| {
            unknown_rail(chip, label.as_deref(), context.nth, &format!("channel{channel}"))
        });
        let sensor = open_file(chip, &format!("in{channel}_input")).and_then(|volts| {
            let amperes = open_file(chip, &format!("curr{channel}_input"))?;
            let input = PowerInput::VoltageTimesCurrent(volts, amperes, 1);
            Ok(SensorFile::power(PowerSensor::instantaneous(input, plausible_ceiling_mw(position.kind))))
        });
        add_rail(&mut rails, found, chip, position, sensor, Grade::Integrated);
    }
    rails
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
    chip.open_file(file, chip.device()).map_err(|error| match error.kind() {
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
        Ok(sensor) => sensor.with_condition(chip.not_suspended()),
        Err(reason) => return found.add_absent(NAME, reason),
    };
    let (latency_ns, quantum_uj) = match grade {
        Grade::Measured | Grade::Modelled => counter_properties(position.kind),
        _ => (sensor.latency_ns(), ROUNDING_UJ),
    };
    let domain = Domain {
        name: position.name,
        kind: position.kind,
        source: NAME.into(),
        device: chip.pci_address().or_else(|| chip.device_name()),
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

/// Latency and quantum of a counter. A package's is RAPL's register; an unknown one gets the values of other boards'
/// counters: updates each millisecond, in steps of 2^-14 J.
fn counter_properties(kind: DomainKind) -> (u64, u64) {
    match kind {
        DomainKind::Package => (rapl::LATENCY_NS, AMD_ENERGY_QUANTUM_UJ),
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
