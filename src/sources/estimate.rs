//! CPU load times a power model, for machines without an energy counter, such as most cloud machines.
//!
//! An idle CPU draws `IDLE_MW_PER_CPU`, a busy one `MAX_MW_PER_CPU`; between them, power is linear in the busy share of
//! time. Invariant: if the true power stays within [idle, full load], the true energy is within `energy_uj` ±
//! `uncertainty_uj`. The grade is always estimated. Discovery never opens it beside a live counter of the CPU.

pub use crate::sources::source_settings::ESTIMATE as NAME;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading, Grade};

use super::energy_integral::{EnergyIntegral, IntervalEnergy, ROUNDING_UJ};
use super::{Inventory, OpenedSource, Source, SourceSettings};

/// Power of an idle logical CPU of a server: the lowest of the three means that Cloud Carbon Footprint publishes for the
/// large clouds (AWS 0.74, Azure 0.74, Google 0.68 W), themselves fitted to SPECpower results.
pub const IDLE_MW_PER_CPU: u64 = 680;

/// Power of a logical CPU of a server at full load: the highest of the three (AWS 3.5, Azure 3.54, Google 4.11 W).
pub const MAX_MW_PER_CPU: u64 = 4_110;

/// Longest first line of `/proc/stat`: ten numbers of 20 digits.
const MAX_LINE_BYTES: usize = 256;

/// Limit of the busy time that is carried over, in ticks of each CPU.
const MAX_DEFERRED_TICKS: u128 = 10;

/// A package domain whose power is modelled from the busy time in `/proc/stat`.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    let path = settings.proc_root.join("stat");
    match CpuEstimate::open(&path, settings.estimate_mw, clock) {
        Ok(estimate) => found.opened.push(estimate.into_opened()),
        Err(error) => found.add_absent(NAME, format!("{}: {error}", path.display())),
    }
    found
}

struct CpuEstimate {
    stat: File,
    clock: Clock,
    cpus: u64,
    idle_mw: u64,
    max_mw: u64,
    /// The kernel's clock tick, the unit of `/proc/stat`.
    tick_ns: u64,
    busy_ticks: u64,
    /// Counted busy time of all CPUs that exceeds the elapsed time and is carried over: the kernel counts whole ticks.
    deferred_busy_ns: u128,
    integral: EnergyIntegral,
    last_reading: EnergyReading,
}

impl CpuEstimate {
    fn open(path: &Path, power_mw: Option<(u64, u64)>, clock: &Clock) -> io::Result<CpuEstimate> {
        let stat = File::open(path)?;
        let busy_ticks = read_busy_ticks(&stat)?;
        let cpus = count_cpus(path)?;
        let (idle_mw, max_mw) = power_mw.unwrap_or((cpus * IDLE_MW_PER_CPU, cpus * MAX_MW_PER_CPU));
        Ok(CpuEstimate {
            stat,
            clock: clock.clone(),
            cpus,
            idle_mw,
            max_mw: max_mw.max(idle_mw),
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
            ceiling_mw: Some(self.max_mw),
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
        let low_pj = u128::from(self.idle_mw) * elapsed_ns;
        let range_mw = u128::from(self.max_mw - self.idle_mw);
        IntervalEnergy {
            energy_pj: low_pj + range_mw * used_ns / u128::from(self.cpus),
            low_pj,
            high_pj: u128::from(self.max_mw) * elapsed_ns,
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

fn parse_busy_ticks(line: &str) -> Option<u64> {
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
