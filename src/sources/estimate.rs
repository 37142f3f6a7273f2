//! CPU load times a power model, for machines without an energy counter, such as most cloud machines.
//!
//! Power is linear in the busy share of time, between the powers of idle and of busy CPUs (`cpu_power_model`). Invariant: if
//! the true power stays within the model's interval, the true energy is within `energy_uj` ± `uncertainty_uj`; nothing
//! guarantees that it does. The grade is always estimated. Discovery never opens it beside a live counter of the CPU.

pub use crate::sources::source_settings::ESTIMATE as NAME;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading, Grade, PowerLimit, PowerLimits};

use super::cpu_info::CpuInfo;
use super::cpu_power_model::CpuPowerModel;
use super::energy_integral::{EnergyIntegral, IntervalEnergy, ROUNDING_UJ};
use super::{Inventory, OpenedSource, Source, SourceSettings};

/// Longest first line of `/proc/stat`: ten numbers of 20 digits.
const MAX_LINE_BYTES: usize = 256;

/// Limit of the busy time that is carried over, in ticks of each CPU.
const MAX_DEFERRED_TICKS: u128 = 10;

/// A package domain whose power is modelled from the busy time in `/proc/stat`.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let path = settings.proc_root.join("stat");
    match CpuEstimate::open(&path, settings, clock) {
        Ok(estimate) => found.opened.push(estimate.into_opened()),
        Err(error) => found.add_failed(NAME, &error, format!("{}: {error}", path.display())),
    }
    found
}

struct CpuEstimate {
    stat: File,
    clock: Clock,
    cpus: u64,
    model: CpuPowerModel,
    /// The kernel's clock tick, the unit of `/proc/stat`.
    tick_ns: u64,
    busy_ticks: u64,
    /// Counted busy time of all CPUs that exceeds the elapsed time and is carried over: the kernel counts whole ticks.
    deferred_busy_ns: u128,
    integral: EnergyIntegral,
    last_reading: EnergyReading,
}

impl CpuEstimate {
    fn open(path: &Path, settings: &SourceSettings, clock: &Clock) -> io::Result<CpuEstimate> {
        let stat = File::open(path)?;
        let busy_ticks = read_busy_ticks(&stat)?;
        let cpus = count_cpus(path)?;
        let model = match settings.estimate_mw {
            Some((idle_mw, max_mw)) => CpuPowerModel::configured(idle_mw, max_mw),
            None => CpuPowerModel::of(&CpuInfo::read(&settings.proc_root), cpus),
        };
        Ok(CpuEstimate {
            stat,
            clock: clock.clone(),
            cpus,
            model,
            tick_ns: 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1),
            busy_ticks,
            deferred_busy_ns: 0,
            integral: EnergyIntegral::default(),
            last_reading: EnergyReading::default(),
        })
    }

    fn into_opened(self) -> OpenedSource {
        let domain = Domain {
            name: "cpu".into(),
            kind: DomainKind::Cpu,
            source: NAME.into(),
            device: None,
            parent: None,
            grade: Grade::Estimated,
            ceiling_mw: Some(self.model.high_mw),
            latency_ns: 0,
            quantum_uj: ROUNDING_UJ,
        };
        OpenedSource {
            name: NAME,
            cpu: None,
            max_rate_hz: 1e9 / self.tick_ns as f64,
            domains: vec![domain],
            // A model always advances.
            advanced: vec![true],
            source: Box::new(self),
        }
    }

    /// The model's energy of `elapsed_ns`. Uses as much of the carried busy time as fits into it.
    fn interval_energy(&mut self, elapsed_ns: u128) -> IntervalEnergy {
        let capacity_ns = elapsed_ns * u128::from(self.cpus);
        let used_ns = self.deferred_busy_ns.min(capacity_ns);
        let max_deferred_ns = MAX_DEFERRED_TICKS * u128::from(self.tick_ns * self.cpus);
        self.deferred_busy_ns = (self.deferred_busy_ns - used_ns).min(max_deferred_ns);
        let CpuPowerModel { idle_mw, busy_mw, low_mw, high_mw, .. } = self.model;
        let load_pj = u128::from(busy_mw - idle_mw) * used_ns / u128::from(self.cpus);
        IntervalEnergy {
            energy_pj: u128::from(idle_mw) * elapsed_ns + load_pj,
            low_pj: u128::from(low_mw) * elapsed_ns,
            high_pj: u128::from(high_mw) * elapsed_ns,
        }
    }
}

impl Source for CpuEstimate {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let now_ns = self.clock.now_ns();
        // The kernel's values change once a tick; the last reading remains valid for its time stamp.
        let is_fresh = self.last_reading.valid && now_ns < self.last_reading.stamp_ns + self.tick_ns * 9 / 10;
        if !is_fresh {
            self.last_reading = match read_busy_ticks(&self.stat) {
                Err(_) => {
                    self.integral.interrupt();
                    EnergyReading::default()
                }
                Ok(busy_ticks) => {
                    let busy_ns =
                        u128::from(busy_ticks.saturating_sub(self.busy_ticks)) * u128::from(self.tick_ns);
                    self.busy_ticks = busy_ticks;
                    self.deferred_busy_ns += busy_ns;
                    let mut integral = std::mem::take(&mut self.integral);
                    let reading = integral.advance(now_ns, |elapsed_ns| self.interval_energy(elapsed_ns));
                    self.integral = integral;
                    reading
                }
            };
        }
        if let Some(reading) = into.first_mut() {
            *reading = self.last_reading;
        }
        None
    }

    /// The highest power of the model. Its origin names the model.
    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        let CpuPowerModel { high_mw, origin, .. } = self.model;
        let mut limits = PowerLimits::default();
        limits[0] = Some(PowerLimit { limit_mw: high_mw, window_ns: 0, origin });
        into.fill(limits);
        true
    }
}

/// Busy ticks of all CPUs since boot: the first line of `/proc/stat` without idle, iowait and steal (time in which the
/// host ran other guests). User time contains guest time (proc_stat(5)).
fn read_busy_ticks(stat: &File) -> io::Result<u64> {
    let mut text = [0; MAX_LINE_BYTES];
    let length = stat.read_at(&mut text, 0)?;
    let line =
        text[..length].split(|byte| *byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    line.and_then(parse_busy_ticks)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat has no line of CPU times"))
}

pub(super) fn parse_busy_ticks(line: &str) -> Option<u64> {
    let mut fields =
        line.strip_prefix("cpu ")?.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
    let (user, nice, system) = (fields.next()??, fields.next()??, fields.next()??);
    let (_idle, _iowait) = (fields.next()??, fields.next()??);
    let (irq, softirq) = (fields.next()??, fields.next()??);
    [user, nice, system, irq, softirq].into_iter().try_fold(0_u64, u64::checked_add)
}

/// Number of online CPUs, which have a line in `/proc/stat`; the model keeps this number.
fn count_cpus(path: &Path) -> io::Result<u64> {
    let numbered = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let cpus = std::fs::read_to_string(path)?.lines().filter(numbered).count();
    u64::try_from(cpus.max(1)).map_err(io::Error::other)
}
