//! One part of a board with its own meter: the board as a whole, the module it sits on, its memory.
//!
//! Owns which of NVML's figures the part's energy comes from: its counter where there is one (whole millijoules since the
//! driver was loaded), else its power, integrated. Power is POWER_INSTANT (field 186); `nvmlDeviceGetPowerUsage` is a mean
//! over one second from Ampere on and is taken only from older boards. A field's own time stamp is not used: it is
//! wall time, and nvml.h leaves open whether it is that of the value or of the question. Never reads anything itself.

use nvml_wrapper::enums::device::DeviceArchitecture as Architecture;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper_sys::bindings::{NVML_POWER_SCOPE_GPU, NVML_POWER_SCOPE_MEMORY, NVML_POWER_SCOPE_MODULE};

use crate::domain::{Domain, DomainKind, EnergyReading, Grade};
use crate::sources::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use crate::sources::energy_integral::{PowerSample, ROUNDING_UJ, TrapezoidIntegrator};
use crate::sources::energy_unit::EnergyUnit;

use super::board_ffi::{FieldResult, NvmlBoard, NvmlField};

/// The counter counts millijoules.
const QUANTUM_UJ: u64 = 1_000;

/// How long an energy may take from the board to where it can be read. NVIDIA does not say; the counter's own step is 20
/// to 100 ms long, and the way through the board's own processor is taken to be no longer than the shortest of them.
const LATENCY_NS: u64 = 20_000_000;

/// How old a count may be: many steps of the slowest counter that was ever seen.
const STALENESS_NS: u64 = 2_000_000_000;

/// A board exceeds the highest limit that can be set on it, for a millisecond, by up to this factor.
const TRANSIENT_FACTOR: u64 = 2;

/// A part of a board; NVML's power scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerScope {
    /// The graphics board.
    Gpu,
    /// The module that it sits on, with its CPU.
    Module,
    /// Its memory.
    Memory,
}

impl PowerScope {
    /// What it is called on the board with this number.
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

/// How one of NVML's figures is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryMethod {
    /// As a field.
    Field(NvmlField),
    /// By a call of its own (`nvmlDeviceGetTotalEnergyConsumption`, `nvmlDeviceGetPowerUsage`).
    Call,
}

/// A part that has a meter.
pub struct ScopeMeter {
    /// Which part.
    pub scope: PowerScope,
    /// Its counter, where it has one.
    pub energy: Option<QueryMethod>,
    /// Its power of the moment, where that is told.
    pub power: Option<QueryMethod>,
    counter: Counter,
    /// The power's integral: the part's energy where it has no counter, else the shape of the counter's steps.
    integrator: TrapezoidIntegrator,
    integrated_power: Option<EnergyReading>,
    max_power_mw: u64,
}

impl ScopeMeter {
    /// What `board_labels` has for this part; `None` where it is nothing.
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

    /// The part as a domain of the board with this number and UUID.
    pub fn domain(&self, source: &str, board: u32, uuid: &str, parent: Option<String>) -> Domain {
        let counted = self.energy.is_some();
        let kind = self.scope.kind();
        Domain {
            name: self.scope.domain_name(board),
            kind,
            source: source.into(),
            device: Some(uuid.into()),
            parent,
            grade: if counted { Grade::Measured } else { Grade::Integrated },
            ceiling_mw: Some(if counted { plausible_ceiling_mw(kind) } else { self.max_power_mw }),
            latency_ns: if counted { LATENCY_NS } else { 0 },
            quantum_uj: if counted { QUANTUM_UJ } else { ROUNDING_UJ },
        }
    }

    /// Takes the power at `at_ns`; without an answer the integral waits for the next one.
    pub fn add_power(&mut self, power: &FieldResult, at_ns: u64) {
        self.integrated_power = None;
        let plausible_mw = plausible_ceiling_mw(self.scope.kind());
        if let Ok(power_mw) = power.as_ref().copied()
            && power_mw <= plausible_mw
        {
            // Nothing is known of the power between two readings but what the board can draw.
            let (low_mw, high_mw) = (0, self.max_power_mw.max(power_mw));
            self.integrated_power =
                Some(self.integrator.advance(PowerSample { at_ns, power_mw, low_mw, high_mw }));
        }
    }

    /// What the part's energy is: by its counter, read between `before_ns` and `after_ns` where this read asked for it;
    /// else by its power.
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

    /// The board was away: whatever it shows next, the energy in between is unknown.
    pub fn interrupt(&mut self) {
        self.counter.interrupt();
        self.integrator.interrupt();
        self.integrated_power = None;
    }
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

/// Whether `nvmlDeviceGetPowerUsage` is the power of the moment: on boards before Ampere (nvml.h; GA100 is left out, since
/// its architecture does not tell it from the rest of Ampere).
fn is_power_usage_instantaneous(board: &NvmlBoard) -> bool {
    use Architecture::{Kepler, Maxwell, Pascal, Turing, Volta};
    let device = board.device();
    matches!(device.architecture(), Ok(Kepler | Maxwell | Pascal | Volta | Turing))
        && device.power_usage().is_ok()
}
