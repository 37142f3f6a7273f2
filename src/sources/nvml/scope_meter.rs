//! The meter of one power scope of a board: the board, its module, or its memory.
//!
//! Owns the choice of the NVML value: the energy counter if it exists (whole millijoules since the driver was
//! loaded), else integrated power. Power is POWER_INSTANT (field 186). `nvmlDeviceGetPowerUsage` is a mean over one
//! second since Ampere and is used for older boards only. The time stamps of fields are not used: they are wall time,
//! and nvml.h does not define whether they belong to the value or to the call. Makes no calls itself.

use nvml_wrapper::enums::device::DeviceArchitecture as Architecture;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper_sys::bindings::{NVML_POWER_SCOPE_GPU, NVML_POWER_SCOPE_MEMORY, NVML_POWER_SCOPE_MODULE};

use crate::domain::{Domain, DomainKind, EnergyReading, Grade, PowerLimit, PowerLimits};
use crate::sources::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use crate::sources::energy_integral::{PowerSample, ROUNDING_UJ, TrapezoidIntegrator};
use crate::sources::energy_unit::EnergyUnit;
use crate::sources::gpu_power_model;

use super::board_ffi::{FieldResult, NvmlBoard, NvmlField};

/// The counter counts millijoules.
const QUANTUM_UJ: u64 = 1_000;

/// Latency from the board to the counter. NVIDIA does not document it; spans were seen outside of their bounds at 40 to
/// 60 ms. It is assumed to be at most one update interval: until that is measured, the longest one that was observed
/// (106 ms on an RTX 4090).
const LATENCY_NS: u64 = 110_000_000;

/// Upper bound of a count's age: many update intervals of the slowest known counter.
const STALENESS_NS: u64 = 2_000_000_000;

/// Largest factor by which a board exceeds its highest power limit, for a millisecond.
const TRANSIENT_FACTOR: u64 = 2;

/// Time over which a board's power is at most its limit in the mean. NVIDIA does not document it.
const LIMIT_WINDOW_NS: u64 = 1_000_000_000;

/// NVML's power scopes: the parts of a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerScope {
    Gpu,
    /// The module with the board and its CPU.
    Module,
    Memory,
}

impl PowerScope {
    /// The domain name on the board with this number.
    pub fn domain_name(self, board: u32) -> String {
        match self {
            PowerScope::Gpu => format!("gpu-{board}"),
            PowerScope::Module => format!("module-{board}"),
            PowerScope::Memory => format!("gpu-memory-{board}"),
        }
    }

    fn kind(self) -> DomainKind {
        match self {
            PowerScope::Gpu => DomainKind::Gpu,
            PowerScope::Module => DomainKind::Module,
            PowerScope::Memory => DomainKind::GpuMemory,
        }
    }

    fn field(self, id: u32) -> NvmlField {
        let scope = match self {
            PowerScope::Gpu => NVML_POWER_SCOPE_GPU,
            PowerScope::Module => NVML_POWER_SCOPE_MODULE,
            PowerScope::Memory => NVML_POWER_SCOPE_MEMORY,
        };
        NvmlField { id, scope }
    }
}

/// The NVML call for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryMethod {
    Field(NvmlField),
    /// A separate call (`nvmlDeviceGetTotalEnergyConsumption`, `nvmlDeviceGetPowerUsage`).
    Call,
    /// The power is estimated from the board's power limit and utilization.
    Estimate,
}

pub struct ScopeMeter {
    pub scope: PowerScope,
    /// The call for its energy counter, if it has one.
    pub energy: Option<QueryMethod>,
    /// The call for its instantaneous power, if available.
    pub power: Option<QueryMethod>,
    counter: Counter,
    /// The integrated power: the scope's energy if it has no counter, else the shape between the counter's steps.
    integrator: TrapezoidIntegrator,
    integrated_power: Option<EnergyReading>,
    max_power_mw: u64,
}

impl ScopeMeter {
    /// The meter of this scope; `None` if the board has no value for it.
    pub fn probe(board: &NvmlBoard, part: PowerScope) -> Option<ScopeMeter> {
        let answers = |id: u32| {
            let field = part.field(id);
            query_field(board, field).ok().map(|_| QueryMethod::Field(field))
        };
        let is_whole_board = part == PowerScope::Gpu;
        let device = board.device();
        let energy =
            if is_whole_board { answers(field_id::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION) } else { None }
                .or_else(|| answers(field_id::NVML_FI_DEV_ENERGY))
                .or_else(|| {
                    (is_whole_board && device.total_energy_consumption().is_ok()).then_some(QueryMethod::Call)
                });
        let power = answers(field_id::NVML_FI_DEV_POWER_INSTANT)
            .or_else(|| (is_whole_board && is_power_usage_instantaneous(board)).then_some(QueryMethod::Call));
        if energy.is_none() && power.is_none() {
            return None;
        }
        let plausible_mw = plausible_ceiling_mw(part.kind());
        let limit_mw = query_field(board, part.field(field_id::NVML_FI_DEV_POWER_MAX_LIMIT)).ok();
        let limit_mw = limit_mw.filter(|limit_mw| *limit_mw > 0);
        let highest_mw =
            limit_mw.map_or(plausible_mw, |mw| mw.saturating_mul(TRANSIENT_FACTOR).min(plausible_mw));
        Some(ScopeMeter {
            scope: part,
            energy,
            power,
            counter: Counter::new(counter_spec(part)),
            integrator: TrapezoidIntegrator::default(),
            integrated_power: None,
            max_power_mw: highest_mw,
        })
    }

    /// The meter of a board that shows neither energy nor power, by its power limit and utilization; `None` if it lacks one
    /// of them too.
    pub fn estimated(board: &NvmlBoard) -> Option<ScopeMeter> {
        estimate_power_mw(board).ok()?;
        Some(ScopeMeter {
            scope: PowerScope::Gpu,
            energy: None,
            power: Some(QueryMethod::Estimate),
            counter: Counter::new(counter_spec(PowerScope::Gpu)),
            integrator: TrapezoidIntegrator::default(),
            integrated_power: None,
            max_power_mw: u64::from(board.device().enforced_power_limit().ok()?),
        })
    }

    /// The scope as a domain of the board with this number and UUID.
    pub fn domain(&self, source: &str, board: u32, uuid: &str, parent: Option<String>) -> Domain {
        let counted = self.energy.is_some();
        let kind = self.scope.kind();
        Domain {
            name: self.scope.domain_name(board),
            kind,
            source: source.into(),
            device: Some(uuid.into()),
            parent,
            grade: match self.power {
                _ if counted => Grade::Measured,
                Some(QueryMethod::Estimate) => Grade::Estimated,
                _ => Grade::Integrated,
            },
            ceiling_mw: Some(if counted { plausible_ceiling_mw(kind) } else { self.max_power_mw }),
            latency_ns: if counted { LATENCY_NS } else { 0 },
            quantum_uj: if counted { QUANTUM_UJ } else { ROUNDING_UJ },
        }
    }

    /// The limits of the scope on a board with this enforced limit. A module contains more than the board. A scope without
    /// a counter has its limits in the uncertainty of its integral.
    pub fn power_limits(&self, enforced_mw: u64) -> PowerLimits {
        let mut limits = PowerLimits::default();
        let peak_mw = enforced_mw.saturating_mul(TRANSIENT_FACTOR);
        let is_sound = enforced_mw > 0 && peak_mw <= plausible_ceiling_mw(self.scope.kind());
        if is_sound && self.scope != PowerScope::Module && self.energy.is_some() {
            let peak = PowerLimit { limit_mw: peak_mw, window_ns: 0, origin: "2 x NVML enforced limit" };
            let mean = (enforced_mw, LIMIT_WINDOW_NS, "NVML enforced limit");
            limits[0] = Some(peak);
            limits[1] = Some(PowerLimit { limit_mw: mean.0, window_ns: mean.1, origin: mean.2 });
        }
        limits
    }

    /// Adds the power at `at_ns`; without a value the integral waits for the next one.
    pub fn add_power(&mut self, power: &FieldResult, at_ns: u64) {
        self.integrated_power = None;
        let plausible_mw = plausible_ceiling_mw(self.scope.kind());
        if let Ok(power_mw) = power.as_ref().copied()
            && power_mw <= plausible_mw
        {
            // Between two readings, only the board's highest power bounds the power.
            let (low_mw, high_mw) = (0, self.max_power_mw.max(power_mw));
            self.integrated_power =
                Some(self.integrator.advance(PowerSample { at_ns, power_mw, low_mw, high_mw }));
        }
    }

    /// The scope's energy: from its counter, read between `before_ns` and `after_ns` if this read includes it, else
    /// from its power.
    pub fn energy_reading(&mut self, count_mj: &FieldResult, before_ns: u64, after_ns: u64) -> EnergyReading {
        if self.energy.is_none() {
            return self.integrated_power.unwrap_or_default();
        }
        let reading = match count_mj {
            Ok(count_mj) => self.counter.advance(*count_mj, before_ns, after_ns),
            Err(_) => EnergyReading::default(),
        };
        let shape_uj = self.integrated_power.map_or(0, |integrated| integrated.energy_uj + 1);
        EnergyReading { shape_uj, ..reading }
    }

    /// Records that the board was unavailable. The energy up to the next reading is unknown.
    pub fn interrupt(&mut self) {
        self.counter.interrupt();
        self.integrator.interrupt();
        self.integrated_power = None;
    }
}

/// The power of a board by its limit and the share of time in which it computes, in milliwatts. The interval of this model
/// is from 0 to the limit.
pub fn estimate_power_mw(board: &NvmlBoard) -> FieldResult {
    let limit_mw = u64::from(board.device().enforced_power_limit()?);
    let busy_percent = u64::from(board.device().utilization_rates()?.gpu.min(100));
    Ok(gpu_power_model::power_mw(limit_mw, 10 * busy_percent))
}

fn counter_spec(part: PowerScope) -> CounterSpec {
    CounterSpec {
        unit: EnergyUnit::MILLIJOULE,
        modulus: 1 << 64,
        ceiling_mw: plausible_ceiling_mw(part.kind()),
        staleness_ns: STALENESS_NS,
        range_uj: u64::MAX,
    }
}

fn query_field(board: &NvmlBoard, field: NvmlField) -> FieldResult {
    let mut answers = [Ok(0)];
    board.query_fields(&[field], &mut answers)?;
    let [answer] = answers;
    answer
}

/// Whether `nvmlDeviceGetPowerUsage` is instantaneous power: on boards before Ampere (nvml.h; GA100 is excluded,
/// because its architecture number is that of Ampere).
fn is_power_usage_instantaneous(board: &NvmlBoard) -> bool {
    use Architecture::{Kepler, Maxwell, Pascal, Turing, Volta};
    let device = board.device();
    matches!(device.architecture(), Ok(Kepler | Maxwell | Pascal | Volta | Turing))
        && device.power_usage().is_ok()
}
