//! AMD GPUs through the kernel: the energy accumulator in `gpu_metrics`, else integrated power.
//!
//! A card that shows neither is estimated from its power limit and its utilization.
//!
//! Owns the choice for each card under `class/drm`. The accumulator is used only if it advances and agrees, within a factor,
//! with the power in the same table: on some boards it is stuck until the next boot, on some it has another unit. The
//! second die of a two-die board shows 0 for both values; the first die counts both, so the second is no domain. Never wakes
//! a suspended card: that would change the measured power. Needs no vendor library and no privilege.
//!
//! `gpu_metrics` is a binary table in many versions (linux drivers/gpu/drm/amd/include/kgd_pp_interface.h; little-endian,
//! naturally aligned). Versions 2 and 3 are of processors with graphics and have no accumulator. In versions 1.1 to 1.3 the
//! field has 64 bits, but most firmware fills it from a counter of 32 (`accumulator_width`). The driver stamps each table
//! with CLOCK_BOOTTIME and returns the same table for a millisecond. A stamp within the read narrows the time window of the
//! read. It is not the exact instant of the energy, so `stamp_ns` stays 0 and the domain's latency covers the difference.

pub use crate::sources::source_settings::AMDGPU as NAME;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::clock::{Clock, monotonic_ns};
use crate::domain::{Domain, DomainKind, EnergyReading, Grade, PowerLimit, PowerLimits};

use super::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use super::energy_integral::ROUNDING_UJ;
use super::energy_unit::EnergyUnit;
use super::gpu_power_model::GpuLoad;
use super::hwmon_chip::{HwmonChip, pci_address};
use super::power_sensor::{PowerInput, PowerSensor};
use super::sensor_files::{
    ReadCondition, SensorFile, SensorFileGroup, is_suspended, not_suspended, open_unless_suspended,
};
use super::suspend_detector::SuspendDetector;
use super::sysfs_file::{SysfsFile, read_trimmed};
use super::{Inventory, OpenedSource, Source, SourceSettings};

/// AMD's PCI vendor ID.
const AMD_VENDOR_ID: &str = "0x1002";

/// Duration of the probe of all accumulators: at 5 W a live one advances by 6,500 counts.
const PROBE_TIME: Duration = Duration::from_millis(20);

/// Largest accepted ratio of the accumulator's power and the table's: the latter is filtered, and the load may have changed.
/// Another unit differs by a factor of 15 or more.
const MAX_POWER_RATIO: u64 = 4;

/// How far a card exceeds the limit on its mean power: PCI Express allows three times for 100 µs.
const TRANSIENT_FACTOR: u64 = 3;

/// Smallest power for the comparison; the table has whole watts only.
const MIN_COMPARED_W: u64 = 5;

/// The driver queries the firmware at most once a millisecond, and the firmware's values are a millisecond old.
const LATENCY_NS: u64 = 2_000_000;

/// Highest read rate: each table costs the firmware 0.1 to 1 ms.
const MAX_RATE_HZ: f64 = 250.0;

/// Opens each card as a separate source.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let cards = list_cards(&settings.sysfs_root.join("class/drm"));
    if cards.is_empty() {
        found.add_absent(
            NAME,
            "no AMD card in class/drm; if the machine has one, load its driver: sudo modprobe amdgpu".into(),
        );
        return found;
    }
    let started_ns = monotonic_ns();
    let before: Vec<_> = cards.iter().map(AmdCard::read_metrics).collect();
    if before.iter().flatten().any(|metrics| metrics.energy_count.is_some()) {
        thread::sleep(PROBE_TIME);
    }
    let mut named = 0;
    for (card, before) in cards.iter().zip(before) {
        let after = card.read_metrics();
        let name = format!("amdgpu-{named}");
        let method = match is_suspended(&card.device_dir) {
            true => EnergyMethod::Power(
                "the card is suspended, so its energy accumulator could not be tested".into(),
            ),
            false => {
                let elapsed_ns = monotonic_ns().saturating_sub(started_ns);
                choose_method(before, after, elapsed_ns, card.smu_version())
            }
        };
        if let Some(opened) = open_card(card, &name, method, clock, &mut found) {
            named += 1;
            found.opened.push(opened);
        }
    }
    found
}

/// The power sensors of the cards whose accumulator is one of `opened`, under the same names, for a comparison.
pub fn open_power_sensors(
    settings: &SourceSettings,
    clock: &Clock,
    opened: &[OpenedSource],
) -> Vec<OpenedSource> {
    let measured = || opened.iter().flat_map(|source| &source.domains).filter(|d| d.grade == Grade::Measured);
    let open_sensor = |card: &AmdCard| {
        let device_id = card.device_id();
        let is_it = |domain: &&Domain| domain.source == NAME && domain.device.as_ref() == Some(&device_id);
        let name = &measured().find(is_it)?.name;
        let (sensor, file) = card.open_power_sensor(false)?;
        let domain = card.power_domain(name, false, &sensor);
        let domain = Domain { source: format!("{NAME} {file}"), ..domain };
        Some(SensorFileGroup::open_source(NAME, vec![(domain, sensor)], MAX_RATE_HZ, clock))
    };
    list_cards(&settings.sysfs_root.join("class/drm")).iter().filter_map(open_sensor).collect()
}

/// The method to measure a card's energy.
#[derive(Debug, PartialEq, Eq)]
enum EnergyMethod {
    /// The accumulator, with its width.
    Accumulator(AccumulatorWidth),
    /// Integrated power, with the reason (empty: not reported).
    Power(String),
    /// Integrated power of the processor that contains the GPU.
    ApuPower,
    /// None, with the reason.
    Unavailable(String),
}

/// `smu`: the version of the card's System Management Unit, if it is known.
fn choose_method(
    before: Option<GpuMetrics>,
    after: Option<GpuMetrics>,
    elapsed_ns: u64,
    smu: Option<SmuVersion>,
) -> EnergyMethod {
    let (Some(before), Some(after)) = (before, after) else {
        return EnergyMethod::Power("gpu_metrics is missing or has an unknown version".into());
    };
    if after.is_apu {
        return EnergyMethod::ApuPower;
    }
    let (Some(first), Some(last)) = (before.energy_count, after.energy_count) else {
        return EnergyMethod::Power("gpu_metrics has no energy accumulator".into());
    };
    if before.is_secondary_die() && after.is_secondary_die() {
        return EnergyMethod::Unavailable(
            "reports neither energy nor power: it is the second die of a board whose first die counts both"
                .into(),
        );
    }
    let width = accumulator_width(after.version, smu);
    let Some(counts) = width.delta(first, last).filter(|counts| *counts > 0) else {
        return EnergyMethod::Power(format!("the energy accumulator does not advance; it reads {last}"));
    };
    let elapsed_ns = match (before.boot_ns, after.boot_ns) {
        (Some(from), Some(to)) if to > from => to - from,
        _ => elapsed_ns,
    };
    // Counts of 2^-16 J per nanosecond, converted to milliwatts.
    let counted_mw = u128::from(counts) * 1_000_000_000_000 / 65_536 / u128::from(elapsed_ns.max(1));
    let shown_w = u64::from(after.power_w.unwrap_or(0));
    let shown_mw = u128::from(shown_w * 1_000);
    let factor = u128::from(MAX_POWER_RATIO);
    if shown_w >= MIN_COMPARED_W && (counted_mw > shown_mw * factor || counted_mw * factor < shown_mw) {
        return EnergyMethod::Power(format!(
            "the energy accumulator gives {} W and the card's power reading {shown_w} W, so its unit is not 2^-16 J",
            counted_mw / 1_000
        ));
    }
    EnergyMethod::Accumulator(width)
}

/// The version of the System Management Unit: major, minor, revision of the block MP1.
type SmuVersion = (u8, u8, u8);

/// The width of the counter that the firmware shows in `energy_accumulator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AccumulatorWidth {
    /// 32 until a larger count proves 64.
    Bits32,
    Bits64,
}

impl AccumulatorWidth {
    fn modulus(self) -> u128 {
        match self {
            Self::Bits64 => 1 << 64,
            Self::Bits32 => 1 << 32,
        }
    }

    /// The increase between two counts; `None` if a counter of this width does not show them.
    fn delta(self, first: u64, last: u64) -> Option<u64> {
        if last >= first {
            return Some(last - first);
        }
        let first = u32::try_from(first).ok().filter(|_| self == Self::Bits32)?;
        let counts = u64::from((last as u32).wrapping_sub(first));
        // A fall by less than half the range is no wrap.
        (counts < 1 << 31).then_some(counts)
    }
}

/// The width of the accumulator in a table of this version of format 1, by the firmware that fills it: the type of
/// `EnergyAccumulator` in the driver's interface headers (linux drivers/gpu/drm/amd/pm/swsmu/inc/pmfw_if). Whatever is not
/// known to have 64 bits has 32 until a count proves more.
///
/// | versions | SMU | cards | field of the firmware |
/// |---|---|---|---|
/// | 1.0 | all | | 32 bits, as the table's |
/// | 1.1 to 1.3 | 11.0.2 | Arcturus | `uint32_t` |
/// | 1.1 to 1.3 | 11.0.9 | Navi 12 | `uint32_t`, newer firmware `uint64_t` |
/// | 1.1 to 1.3 | 11.0.7, 11.0.11 to 11.0.13 | Navi 21 to 24 | `uint32_t` |
/// | 1.3 | 13.0.0, 13.0.7, 13.0.10 | Navi 31 to 33 | `uint32_t`; not filled since commit 68785c5e79e0 |
/// | 1.3 | 14.0.2, 14.0.3 | Navi 44, 48 | `uint32_t`; not filled by newer drivers |
/// | 1.3 | 13.0.2 | Aldebaran | `EnergyAcc64bitHigh`, `EnergyAcc64bitLow` |
/// | 1.4 and later | 13.0.6, 13.0.12, 13.0.14 | MI300 and later | 64 bits |
fn accumulator_width(version: (u8, u8), smu: Option<SmuVersion>) -> AccumulatorWidth {
    match (version, smu) {
        ((1, 0), _) => AccumulatorWidth::Bits32,
        ((1, 4..), _) | (_, Some((13, 0, 2))) => AccumulatorWidth::Bits64,
        _ => AccumulatorWidth::Bits32,
    }
}

fn open_card(
    card: &AmdCard,
    name: &str,
    method: EnergyMethod,
    clock: &Clock,
    found: &mut Inventory,
) -> Option<OpenedSource> {
    match method {
        EnergyMethod::Unavailable(reason) => {
            found.add_absent(NAME, format!("{}: {reason}", card.device_id()));
            None
        }
        EnergyMethod::Accumulator(width) => card.open_accumulator(name, width, clock).or_else(|| {
            found.add_absent(NAME, format!("{}: gpu_metrics can no longer be read", card.device_id()));
            None
        }),
        EnergyMethod::Power(reason) => open_power_source(card, name, Some(reason), clock, found),
        EnergyMethod::ApuPower => open_power_source(card, name, None, clock, found),
    }
}

/// Opens the power sensor of a card without a usable accumulator. `reason`: why there is none; `None` for an APU.
fn open_power_source(
    card: &AmdCard,
    name: &str,
    reason: Option<String>,
    clock: &Clock,
    found: &mut Inventory,
) -> Option<OpenedSource> {
    let device_id = card.device_id();
    let is_apu = reason.is_none();
    let Some((sensor, file)) = card.open_power_sensor(is_apu) else {
        let reason = reason.as_deref().unwrap_or("no accumulator");
        if let Some(sensor) = card.open_estimate().filter(|_| !is_apu) {
            let note = format!(
                "{device_id}: {reason}, and there is no power1_average or power1_input either; it is estimated from \
                 its power limit and utilization"
            );
            found.add_absent(NAME, note);
            let domain = Domain { grade: Grade::Estimated, ..card.power_domain(name, false, &sensor) };
            return Some(SensorFileGroup::open_source(NAME, vec![(domain, sensor)], MAX_RATE_HZ, clock));
        }
        found.add_absent(
            NAME,
            format!(
                "{device_id}: {reason}, and there is no power1_average or power1_input either; a guest's card \
                 shows neither, and no limit for an estimate"
            ),
        );
        return None;
    };
    if let Some(reason) = reason {
        found.add_absent(NAME, format!("{device_id}: {reason}; {file} is integrated instead"));
    }
    let domain = card.power_domain(name, is_apu, &sensor);
    Some(SensorFileGroup::open_source(NAME, vec![(domain, sensor)], MAX_RATE_HZ, clock))
}

#[derive(Clone)]
struct AmdCard {
    /// "card0"; the number may change between boots.
    name: String,
    device_dir: PathBuf,
}

/// AMD cards in the order of their addresses.
fn list_cards(class: &Path) -> Vec<AmdCard> {
    let numbered = |id: &str| {
        id.strip_prefix("card").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut cards: Vec<AmdCard> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| AmdCard {
            name: entry.file_name().to_string_lossy().into_owned(),
            device_dir: entry.path().join("device"),
        })
        .filter(|card| {
            numbered(&card.name)
                && read_trimmed(&card.device_dir.join("vendor")).as_deref() == Some(AMD_VENDOR_ID)
        })
        .map(|card| AmdCard {
            device_dir: fs::canonicalize(&card.device_dir).unwrap_or(card.device_dir),
            ..card
        })
        .collect();
    cards.sort_by(|a, b| a.device_dir.cmp(&b.device_dir));
    cards
}

impl AmdCard {
    fn read_metrics(&self) -> Option<GpuMetrics> {
        if is_suspended(&self.device_dir) {
            return None;
        }
        let mut table = [0; MAX_READ_BYTES];
        let length = SysfsFile::open(self.device_dir.join("gpu_metrics")).ok()?.read_bytes(0, &mut table)?;
        GpuMetrics::parse(&table[..length])
    }

    /// An identifier that is stable over reboots: the card's unique ID, else its address.
    fn device_id(&self) -> String {
        read_trimmed(&self.device_dir.join("unique_id"))
            .or_else(|| pci_address(&self.device_dir))
            .unwrap_or_else(|| self.name.clone())
    }

    fn hwmon_chip(&self) -> Option<HwmonChip> {
        let chips = fs::read_dir(self.device_dir.join("hwmon")).ok()?;
        let mut folders: Vec<_> = chips.flatten().map(|entry| entry.path()).collect();
        folders.sort();
        folders.iter().find_map(|folder| HwmonChip::read(folder))
    }

    /// The version of the System Management Unit from the card's discovery table. Cards before Navi have none.
    fn smu_version(&self) -> Option<SmuVersion> {
        let block = self.device_dir.join("ip_discovery/die/0/MP1/0");
        let number = |file: &str| read_trimmed(&block.join(file))?.parse().ok();
        Some((number("major")?, number("minor")?, number("revision")?))
    }

    fn open_accumulator(&self, name: &str, width: AccumulatorWidth, clock: &Clock) -> Option<OpenedSource> {
        let path = self.device_dir.join("gpu_metrics");
        let table = SysfsFile::open(path.clone()).ok()?;
        let table = self.only_of_this_card(table, move |_| Some(path.clone()));
        let mut source = AccumulatorSource::new(table, width, not_suspended(&self.device_dir), clock);
        source.cap = self.hwmon_chip().and_then(|chip| self.open_chip_file(&chip, "power1_cap"));
        let domain = Domain {
            grade: Grade::Measured,
            latency_ns: LATENCY_NS,
            quantum_uj: ACCUMULATOR_UNIT.quantum_uj(),
            ..self.base_domain(name, DomainKind::Gpu)
        };
        Some(OpenedSource {
            name: NAME,
            source: Box::new(source),
            domains: vec![domain],
            cpu: None,
            max_rate_hz: MAX_RATE_HZ,
            advanced: vec![false],
        })
    }

    /// The card's power sensor and the name of its file. The averaging time of `power1_average` is unknown.
    fn open_power_sensor(&self, is_apu: bool) -> Option<(SensorFile, &'static str)> {
        let chip = self.hwmon_chip()?;
        let open = |file: &'static str| Some((self.open_chip_file(&chip, file)?, file));
        let (power, file) = open("power1_average").or_else(|| open("power1_input"))?;
        let kind = if is_apu { DomainKind::Soc } else { DomainKind::Gpu };
        let limit_mw = chip
            .read_number("power1_cap_max")
            .filter(|limit| *limit > 0)
            .map(|limit| limit / 1_000 * TRANSIENT_FACTOR);
        let plausible_mw = plausible_ceiling_mw(kind);
        let ceiling_mw = limit_mw.unwrap_or(plausible_mw).min(plausible_mw);
        let sensor = PowerSensor::instantaneous(PowerInput::Microwatts(power), ceiling_mw)
            .with_plausible_power(plausible_mw);
        Some((SensorFile::power(sensor).with_condition(not_suspended(&self.device_dir)), file))
    }

    /// The estimate of a card that shows its limit and its utilization only. Its interval is from 0 to the highest limit.
    fn open_estimate(&self) -> Option<SensorFile> {
        let chip = self.hwmon_chip()?;
        let limit_mw = |file: &str| {
            chip.read_number(file).map(|microwatts| microwatts / 1_000).filter(|limit_mw| *limit_mw > 0)
        };
        let highest_mw = limit_mw("power1_cap_max").max(limit_mw("power1_cap"))?;
        let path = self.device_dir.join("gpu_busy_percent");
        let busy = open_unless_suspended(path.clone(), &self.device_dir).ok()?;
        let busy = self.only_of_this_card(busy, move |_| Some(path.clone()));
        let load = GpuLoad::by_percent(self.open_chip_file(&chip, "power1_cap")?, busy);
        let plausible_mw = plausible_ceiling_mw(DomainKind::Gpu);
        let sensor = PowerSensor::instantaneous(PowerInput::Estimate(load), highest_mw.min(plausible_mw))
            .with_plausible_power(plausible_mw);
        Some(SensorFile::power(sensor).with_condition(not_suspended(&self.device_dir)))
    }

    /// Opens a file of the card's chip. It is not opened again if another card is in this slot.
    fn open_chip_file(&self, chip: &HwmonChip, name: &str) -> Option<SysfsFile> {
        let (file, name) = (chip.open_file(name, &self.device_dir).ok()?, name.to_owned());
        Some(self.only_of_this_card(file, move |card| card.hwmon_chip()?.find_file(&name)))
    }

    /// Opens the file again only while this card is in its slot: another one has domains of its own.
    fn only_of_this_card(
        &self,
        file: SysfsFile,
        locate: impl Fn(&AmdCard) -> Option<PathBuf> + Send + 'static,
    ) -> SysfsFile {
        let (card, device_id) = (self.clone(), self.device_id());
        file.relocated_by(move || locate(&card).filter(|_| card.device_id() == device_id))
    }

    /// The domain of a card whose power is integrated. A processor with graphics shows the power of the whole socket, which
    /// the package's counter contains too.
    fn power_domain(&self, name: &str, is_apu: bool, sensor: &SensorFile) -> Domain {
        Domain {
            parent: is_apu.then(|| "package-0".to_owned()),
            latency_ns: sensor.latency_ns(),
            ..self.base_domain(name, if is_apu { DomainKind::Soc } else { DomainKind::Gpu })
        }
    }

    fn base_domain(&self, name: &str, kind: DomainKind) -> Domain {
        Domain {
            name: name.into(),
            kind,
            source: NAME.into(),
            device: Some(self.device_id()),
            parent: None,
            grade: Grade::Integrated,
            ceiling_mw: Some(plausible_ceiling_mw(kind)),
            latency_ns: 0,
            quantum_uj: ROUNDING_UJ,
        }
    }
}

/// The energy of one count: 2^-16 J. AMD's own libraries use 15.3 µJ, which is 0.27 % high.
const ACCUMULATOR_UNIT: EnergyUnit = EnergyUnit::TWO_TO_THE_MINUS_16_JOULES;

/// The energy accumulator of one card as a source.
struct AccumulatorSource {
    table: SysfsFile,
    /// The condition that the card is not suspended.
    condition: Option<ReadCondition>,
    /// The limit of the mean power, in microwatts.
    cap: Option<SysfsFile>,
    counter: Counter,
    width: AccumulatorWidth,
    suspend: SuspendDetector,
    clock: Clock,
}

/// The counter of an accumulator of this width.
fn accumulator_spec(width: AccumulatorWidth) -> CounterSpec {
    let modulus = width.modulus();
    CounterSpec {
        unit: ACCUMULATOR_UNIT,
        modulus,
        ceiling_mw: plausible_ceiling_mw(DomainKind::Gpu),
        staleness_ns: 100_000_000,
        range_uj: u64::try_from(ACCUMULATOR_UNIT.to_uj(modulus)).unwrap_or(u64::MAX),
    }
}

impl AccumulatorSource {
    /// Creates a source from an open table.
    fn new(
        table: SysfsFile,
        width: AccumulatorWidth,
        condition: Option<ReadCondition>,
        clock: &Clock,
    ) -> Self {
        let counter = Counter::new(accumulator_spec(width));
        let (suspend, clock) = (SuspendDetector::new(clock), clock.clone());
        Self { table, condition, cap: None, counter, width, suspend, clock }
    }

    /// Converts a count. A count above 32 bits proves a counter of 64, whatever the table of firmwares says.
    fn advance(&mut self, count: u64, before_ns: u64, after_ns: u64) -> EnergyReading {
        if self.width != AccumulatorWidth::Bits64 && count > u64::from(u32::MAX) {
            self.width = AccumulatorWidth::Bits64;
            self.counter.set_spec(accumulator_spec(self.width));
        }
        self.counter.advance(count, before_ns, after_ns)
    }

    /// Whether a read does not wake the card.
    fn is_awake(&mut self, now_ns: u64) -> bool {
        self.condition.as_mut().is_none_or(|condition| {
            condition.file.equals(now_ns, condition.word) == Some(condition.must_equal)
        })
    }

    fn read_metrics(&mut self, now_ns: u64) -> Option<GpuMetrics> {
        if !self.is_awake(now_ns) {
            return None;
        }
        let mut bytes = [0; MAX_READ_BYTES];
        let length = self.table.read_bytes(now_ns, &mut bytes)?;
        GpuMetrics::parse(&bytes[..length])
    }
}

impl Source for AccumulatorSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let before_ns = self.clock.now_ns();
        let metrics = self.read_metrics(before_ns);
        let after_ns = self.clock.now_ns();
        let energy = metrics.and_then(|metrics| metrics.energy_count);
        if energy.is_none() || self.suspend.has_suspended() {
            self.counter.interrupt();
        }
        let reading =
            energy.map_or_else(EnergyReading::default, |energy| self.advance(energy, before_ns, after_ns));
        if let Some(into) = into.first_mut() {
            *into = reading;
        }
        let taken_ns = self.suspend.latest_monotonic_ns(metrics?.boot_ns?)?;
        (before_ns..=after_ns).contains(&taken_ns).then_some((before_ns, taken_ns))
    }

    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        let now_ns = self.clock.now_ns();
        if !self.is_awake(now_ns) {
            return false;
        }
        let cap_uw = self.cap.as_mut().and_then(|cap| cap.read_number::<u64>(now_ns));
        into.fill(cap_uw.map_or_else(PowerLimits::default, card_limits));
        true
    }
}

/// Time over which a card's power is at most its cap in the mean. AMD does not document it.
const CAP_WINDOW_NS: u64 = 1_000_000_000;

/// The limits of a card with this cap. Three times the cap, which PCI Express allows for 100 µs, at every instant.
fn card_limits(cap_uw: u64) -> PowerLimits {
    let mut limits = PowerLimits::default();
    let cap_mw = cap_uw.div_ceil(1_000);
    let peak_mw = cap_mw.saturating_mul(TRANSIENT_FACTOR);
    if cap_mw > 0 && peak_mw <= plausible_ceiling_mw(DomainKind::Gpu) {
        limits[0] = Some(PowerLimit { limit_mw: peak_mw, window_ns: 0, origin: "3 x amdgpu power1_cap" });
        let (window_ns, origin) = (CAP_WINDOW_NS, "amdgpu power1_cap");
        limits[1] = Some(PowerLimit { limit_mw: cap_mw, window_ns, origin });
    }
    limits
}

/// Number of bytes that contain the read fields in every version.
const MAX_READ_BYTES: usize = 128;

/// The read fields of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GpuMetrics {
    /// Whether it is a processor with graphics, whose socket power includes the CPU.
    is_apu: bool,
    /// The accumulator's count; `None` if this version or this board has none.
    pub(super) energy_count: Option<u64>,
    /// The instant at which the driver read the table, in nanoseconds of CLOCK_BOOTTIME.
    pub(super) boot_ns: Option<u64>,
    /// The mean or instantaneous power, in whole watts.
    pub(super) power_w: Option<u16>,
    /// The table's format and content revision.
    version: (u8, u8),
}

/// The field offsets of a version.
struct GpuMetricsLayout {
    energy_offset: usize,
    clock_offset: usize,
    power_offset: usize,
    /// The width of the accumulator's field, in bits.
    field_bits: u32,
}

impl GpuMetrics {
    /// Parses the start of a table; `None` if it is too short or of an unknown version.
    pub(super) fn parse(table: &[u8]) -> Option<GpuMetrics> {
        let size = usize::from(u16_at(table, 0)?);
        let (format, content) = (*table.get(2)?, *table.get(3)?);
        if size < 16 {
            return None;
        }
        if matches!(format, 2 | 3) {
            return Some(GpuMetrics {
                is_apu: true,
                energy_count: None,
                boot_ns: None,
                power_w: None,
                version: (format, content),
            });
        }
        let layout = layout_for(format, content)
            .filter(|layout| layout.clock_offset.max(layout.energy_offset) + 8 <= size)?;
        let energy = if layout.field_bits == 32 {
            u32_at(table, layout.energy_offset).filter(|count| *count != u32::MAX).map(u64::from)
        } else {
            // The driver sets all bits of fields that a board does not have.
            u64_at(table, layout.energy_offset)
                .filter(|count| *count != u64::MAX && *count != u64::from(u32::MAX))
        };
        Some(GpuMetrics {
            is_apu: false,
            energy_count: energy,
            boot_ns: u64_at(table, layout.clock_offset).filter(|at| *at != u64::MAX && *at != 0),
            power_w: u16_at(table, layout.power_offset).filter(|watts| *watts != u16::MAX),
            version: (format, content),
        })
    }

    /// Whether energy and power are 0: the second die of a board whose first die counts both.
    fn is_secondary_die(&self) -> bool {
        self.energy_count == Some(0) && self.power_w.unwrap_or(0) == 0
    }
}

fn layout_for(format: u8, content: u8) -> Option<GpuMetricsLayout> {
    match (format, content) {
        (1, 0) => {
            Some(GpuMetricsLayout { clock_offset: 8, power_offset: 34, energy_offset: 36, field_bits: 32 })
        }
        (1, 1..=3) => {
            Some(GpuMetricsLayout { power_offset: 22, energy_offset: 24, clock_offset: 32, field_bits: 64 })
        }
        (1, 4) => {
            Some(GpuMetricsLayout { power_offset: 10, energy_offset: 24, clock_offset: 32, field_bits: 64 })
        }
        // Versions 1.5 and 1.6 have 32 decoder values before the accumulator.
        (1, 5 | 6) => {
            Some(GpuMetricsLayout { power_offset: 10, energy_offset: 88, clock_offset: 96, field_bits: 64 })
        }
        (1, 7 | 8) => {
            Some(GpuMetricsLayout { power_offset: 10, energy_offset: 24, clock_offset: 32, field_bits: 64 })
        }
        _ => None,
    }
}

fn u16_at(table: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(table.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(table: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(table.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(table: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(table.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metrics(energy: u64, boot_ns: u64, power_w: u16) -> Option<GpuMetrics> {
        Some(GpuMetrics {
            is_apu: false,
            energy_count: Some(energy),
            boot_ns: Some(boot_ns),
            power_w: Some(power_w),
            version: (1, 3),
        })
    }

    #[test]
    fn an_accumulator_that_moves_as_the_card_says_is_taken() {
        // 100 W for 20 ms are 2 J: 131 072 counts.
        let method = choose_method(metrics(5, 1_000, 100), metrics(131_077, 20_001_000, 100), 1, None);
        assert_eq!(method, EnergyMethod::Accumulator(AccumulatorWidth::Bits32));
        // The card was idle in the averaging time of its power.
        assert_eq!(
            choose_method(metrics(5, 1, 4), metrics(131_077, 20_000_001, 4), 1, None),
            EnergyMethod::Accumulator(AccumulatorWidth::Bits32)
        );
    }

    #[test]
    fn an_accumulator_in_another_unit_or_one_that_stands_still_is_not() {
        let power_reason = |method| match method {
            EnergyMethod::Power(reason) => reason,
            other => panic!("{other:?}"),
        };
        let other_unit =
            power_reason(choose_method(metrics(5, 1_000, 100), metrics(2_000_005, 20_001_000, 100), 1, None));
        assert!(other_unit.contains("1525 W and the card's power reading 100 W"), "{other_unit}");
        let stuck = power_reason(choose_method(metrics(5, 1_000, 100), metrics(5, 20_001_000, 100), 1, None));
        assert!(stuck.contains("it reads 5"), "{stuck}");
    }

    #[test]
    fn a_die_without_energy_and_power_is_the_second_one() {
        let method = choose_method(metrics(0, 1_000, 0), metrics(0, 20_001_000, 0), 1, None);
        assert!(matches!(method, EnergyMethod::Unavailable(reason) if reason.contains("second die")));
    }

    const MS: u64 = 1_000_000;

    /// Version 1.1 (64 bits at 24) or 1.0 (32 bits at 36).
    fn write(path: &Path, version: u8, count: u64) {
        let mut table = vec![0_u8; 120];
        table[..4].copy_from_slice(&[120, 0, 1, version]);
        match version {
            0 => table[36..40].copy_from_slice(&(count as u32).to_le_bytes()),
            _ => table[24..32].copy_from_slice(&count.to_le_bytes()),
        }
        fs::write(path, table).unwrap();
    }

    fn reading_after(version: u8, width: AccumulatorWidth, from: u64, to: u64) -> EnergyReading {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu_metrics");
        let clock = Clock::manual(0);
        write(&path, version, from);
        let mut source = AccumulatorSource::new(SysfsFile::open(path.clone()).unwrap(), width, None, &clock);
        let mut reading = [EnergyReading::default()];
        assert_eq!(source.read(&mut reading), None, "a manual clock has no boot clock beside it");
        clock.set(20 * MS);
        write(&path, version, to);
        source.read(&mut reading);
        reading[0]
    }

    #[test]
    fn a_count_is_two_to_the_minus_16_joules_and_not_what_the_vendors_libraries_multiply_with() {
        // 15.3 µJ a count would give 1 004 108.
        assert_eq!(reading_after(1, AccumulatorWidth::Bits64, 7, 65_635).energy_uj, 1_001_403);
    }

    #[test]
    fn the_32_bit_accumulator_of_the_first_version_wraps() {
        let reading = reading_after(0, AccumulatorWidth::Bits32, 0xFFFF_0000, 0x0001_0000);
        assert_eq!((reading.energy_uj, reading.epoch), (2_000_000, 0));
    }

    #[test]
    fn a_32_bit_accumulator_in_the_64_bit_field_wraps_and_a_64_bit_one_does_not() {
        let over = |width, from, to| {
            let reading = reading_after(3, width, from, to);
            (reading.energy_uj, reading.epoch)
        };
        let (from, to) = (0xFFFF_0000, 0x0001_0000);
        assert_eq!(over(AccumulatorWidth::Bits32, from, to), (2_000_000, 0));
        for width in [AccumulatorWidth::Bits64, AccumulatorWidth::Bits32] {
            assert_eq!(over(width, from, (1 << 32) + to), (2_000_000, 0), "{width:?}");
        }
        assert_eq!(over(AccumulatorWidth::Bits64, from, to), (0, 1), "a restart");
        assert_eq!(over(AccumulatorWidth::Bits64, (7 << 32) + from, (8 << 32) + to), (2_000_000, 0));
    }

    #[test]
    fn the_width_follows_from_the_firmware_that_fills_the_table() {
        use AccumulatorWidth::{Bits32, Bits64};
        for (version, smu, width) in [
            ((1, 0), None, Bits32),
            ((1, 1), Some((11, 0, 7)), Bits32),
            ((1, 3), Some((11, 0, 2)), Bits32),
            ((1, 3), Some((11, 0, 13)), Bits32),
            ((1, 3), Some((13, 0, 0)), Bits32),
            ((1, 3), Some((13, 0, 2)), Bits64),
            ((1, 3), Some((13, 0, 10)), Bits32),
            ((1, 3), Some((14, 0, 3)), Bits32),
            ((1, 3), Some((11, 0, 9)), Bits32),
            ((1, 3), None, Bits32),
            ((1, 4), Some((13, 0, 6)), Bits64),
            ((1, 8), None, Bits64),
        ] {
            assert_eq!(accumulator_width(version, smu), width, "{version:?} of {smu:?}");
        }
    }

    #[test]
    fn an_accumulator_that_wraps_during_the_probe_advances() {
        let (from, to) = (0xFFFF_FFF0, 131_056);
        let method =
            choose_method(metrics(from, 1_000, 100), metrics(to, 20_001_000, 100), 1, Some((13, 0, 0)));
        assert_eq!(method, EnergyMethod::Accumulator(AccumulatorWidth::Bits32));
    }

    #[test]
    fn an_accumulator_of_64_bits_that_restarts_during_the_probe_does_not_advance() {
        for smu in [None, Some((11, 0, 7)), Some((13, 0, 2))] {
            let method = choose_method(metrics(7 << 32, 1_000, 100), metrics(5, 20_001_000, 100), 1, smu);
            assert!(
                matches!(&method, EnergyMethod::Power(reason) if reason.contains("it reads 5")),
                "{smu:?}: {method:?}"
            );
        }
    }

    #[test]
    fn a_count_that_falls_back_is_a_restart_and_no_energy() {
        let reading = reading_after(1, AccumulatorWidth::Bits64, 900_000_000_000, 5);
        assert_eq!((reading.valid, reading.energy_uj, reading.epoch), (true, 0, 1));
    }

    #[test]
    fn a_card_has_its_cap_over_a_second_and_three_times_the_cap_at_every_instant() {
        let folder = tempfile::tempdir().unwrap();
        let (table, cap) = (folder.path().join("gpu_metrics"), folder.path().join("power1_cap"));
        write(&table, 1, 7);
        let open = |path: &Path| SysfsFile::open(path.to_path_buf()).unwrap();
        let mut source =
            AccumulatorSource::new(open(&table), AccumulatorWidth::Bits64, None, &Clock::manual(0));
        let limits_at = |source: &mut AccumulatorSource, cap_uw: &str| {
            fs::write(&cap, cap_uw).unwrap();
            source.cap = Some(open(&cap));
            let mut limits = [PowerLimits::default()];
            assert!(source.read_power_limits(&mut limits));
            limits[0].map(|limit| limit.map(|limit| (limit.limit_mw, limit.window_ns)))
        };
        let expected = [Some((900_000, 0)), Some((300_000, 1_000 * MS)), None];
        assert_eq!(limits_at(&mut source, "300000000"), expected);
        assert_eq!(limits_at(&mut source, "0"), [None; 3], "no cap");
        assert_eq!(limits_at(&mut source, "4294967295000"), [None; 3], "absurd");
    }

    fn table(content: u8, size: u16, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut table = vec![0_u8; usize::from(size)];
        table[..2].copy_from_slice(&size.to_le_bytes());
        (table[2], table[3]) = (1, content);
        for (at, bytes) in fields {
            table[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        table
    }

    #[test]
    fn each_version_has_its_fields_where_the_kernels_header_puts_them() {
        let (energy, clock, power) = (65_628_u64.to_le_bytes(), 77_u64.to_le_bytes(), 250_u16.to_le_bytes());
        let versions = [(1, 22, 24, 32), (3, 22, 24, 32), (4, 10, 24, 32), (5, 10, 88, 96), (7, 10, 24, 32)];
        for (content, power_at, energy_at, clock_at) in versions {
            let fields: [(usize, &[u8]); 3] = [(power_at, &power), (energy_at, &energy), (clock_at, &clock)];
            let metrics = GpuMetrics::parse(&table(content, 200, &fields)).unwrap();
            assert_eq!(
                (metrics.energy_count, metrics.boot_ns, metrics.power_w),
                (Some(65_628), Some(77), Some(250)),
                "version 1.{content}"
            );
        }
        let narrow = GpuMetrics::parse(&table(0, 80, &[(36, &[1, 2, 0, 0]), (8, &clock)])).unwrap();
        assert_eq!((narrow.energy_count, narrow.boot_ns, narrow.version), (Some(513), Some(77), (1, 0)));
    }

    #[test]
    fn what_a_board_does_not_have_is_absent_and_not_all_ones() {
        let metrics = GpuMetrics::parse(&table(3, 120, &[(22, &[0xFF; 2]), (24, &[0xFF; 16])])).unwrap();
        assert_eq!((metrics.energy_count, metrics.boot_ns, metrics.power_w), (None, None, None));
        let mut apu = table(2, 120, &[]);
        apu[2] = 2;
        assert!(GpuMetrics::parse(&apu).unwrap().is_apu);
        apu[2] = 9;
        assert_eq!(GpuMetrics::parse(&apu), None);
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(table in proptest::collection::vec(any::<u8>(), 0..160)) {
            let _ = GpuMetrics::parse(&table);
        }
    }
}
