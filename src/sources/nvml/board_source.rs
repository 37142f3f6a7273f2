//! One NVIDIA board as a source: its counters, and its power between the counters' steps.
//!
//! Owns the order of a read: first the power of all scopes, then their counters if they are due, with clock readings around
//! them. Each source has its own thread, so a call that hangs in the driver delays no other source. While the driver or the
//! board is unavailable, readings are invalid; the counters begin a new epoch afterwards. Never repeats an old value.

use std::ffi::OsString;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError;

use crate::clock::Clock;
use crate::domain::{Domain, EnergyReading, PowerLimits};
use crate::sources::call_cost::CallCost;
use crate::sources::{OpenedSource, Source};

use super::board_connection::BoardConnection;
use super::board_ffi::{FieldResult, MAX_FIELDS, NvmlBoard, NvmlField};
use super::call_schedule::CallSchedule;
use super::error_reason::{board_error_reason, is_board_lost};
use super::scope_meter::{PowerScope, QueryMethod, ScopeMeter, estimate_power_mw};

/// Highest rate of one board: instantaneous power changes about 50 times a second, the counter 10 to 50 times.
const MAX_RATE_HZ: f64 = 100.0;
/// Highest rate of all boards together: waking their threads costs more than most of the calls.
const MAX_TOTAL_RATE_HZ: f64 = 400.0;
/// Lowest rate, for any cost of the calls.
const MIN_RATE_HZ: f64 = 1.0;

/// Largest duration of the probe of a counter that does not advance, after its first read.
const PROBE_TIME: Duration = Duration::from_millis(300);
/// Shortest pause between two reads of the probe.
const MIN_PROBE_PAUSE: Duration = Duration::from_millis(5);
/// Shortest pause as a multiple of the duration of a read: the board's workload needs the driver's locks too.
const PROBE_PAUSE_FACTOR: u32 = 4;

#[derive(Debug, Clone)]
pub struct BoardIdentity {
    /// Its index in NVML at the start, which its domains' names contain.
    pub number: u32,
    /// Its UUID, which is unique and constant.
    pub uuid: String,
    /// The number of boards in the machine.
    pub boards: usize,
}

/// An open board with notes.
pub struct OpenedBoard {
    pub opened: OpenedSource,
    /// Missing values, with the reasons.
    pub notes: Vec<String>,
}

struct BoardSource {
    connection: BoardConnection,
    meters: Vec<ScopeMeter>,
    /// The schedule of counter reads; every read includes the power.
    counter_schedule: CallSchedule,
    clock: Clock,
}

/// Opens the board and probes its counters. May block in the driver.
///
/// # Errors
/// The reason why the board cannot be measured.
pub fn open(
    name: &'static str,
    library: OsString,
    identity: &BoardIdentity,
    clock: &Clock,
) -> Result<OpenedBoard, String> {
    let board = NvmlBoard::find(&library, &identity.uuid).map_err(|error| board_error_reason(&error))?;
    let (meters, notes) = find_meters(&board, identity)?;
    let (energy, power) = (
        CallCost::measure(|| drop(read_counters(&board, &meters))),
        CallCost::measure(|| drop(read_powers(&board, &meters))),
    );
    let counting_ns = counter_period_ns(&energy, &meters, identity.boards);
    let max_rate_hz = max_rate_hz(&power, identity.boards);
    let domains = board_domains(name, &meters, identity);
    let mut source = BoardSource {
        connection: BoardConnection::new(library, identity.uuid.clone(), board),
        meters,
        // Every read of the probe includes the counters, so that an advance is visible.
        counter_schedule: CallSchedule::new(0),
        clock: clock.clone(),
    };
    let advanced = probe(&mut source, Duration::from_nanos(energy.wall_ns + power.wall_ns));
    // A new schedule, so that the first read of the sampler includes the counters.
    source.counter_schedule = CallSchedule::new(counting_ns);
    let opened = OpenedSource { name, source: Box::new(source), domains, cpu: None, max_rate_hz, advanced };
    Ok(OpenedBoard { opened, notes })
}

/// The shortest time between two reads of the counters. 0: each read of the board includes them, since the energy of a
/// scope without a counter comes from its power.
fn counter_period_ns(energy: &CallCost, meters: &[ScopeMeter], boards: usize) -> u64 {
    if meters.iter().any(|meter| meter.energy.is_none()) {
        return 0;
    }
    // Counters are read often enough to stay valid, for any cost of the call.
    energy.min_period_ns(boards).min((1e9 / MIN_RATE_HZ) as u64)
}

/// The highest rate of one of several boards, for the cost of reading its power.
fn max_rate_hz(power: &CallCost, boards: usize) -> f64 {
    let max_hz = MAX_RATE_HZ.min(MAX_TOTAL_RATE_HZ / boards.max(1) as f64).max(MIN_RATE_HZ);
    (1e9 / power.min_period_ns(boards).max(1) as f64).clamp(MIN_RATE_HZ, max_hz)
}

/// The scopes of the board, with notes about skipped ones.
fn find_meters(
    board: &NvmlBoard,
    identity: &BoardIdentity,
) -> Result<(Vec<ScopeMeter>, Vec<String>), String> {
    let device = board.device();
    let product = device.name().unwrap_or_default();
    let domain_name = PowerScope::Gpu.domain_name(identity.number);
    let missing = format!(
        "{product} reports neither an energy counter nor its current power; a driver from version 530 on may, and a \
         virtual GPU has neither"
    );
    let Some(whole) = ScopeMeter::probe(board, PowerScope::Gpu) else {
        let estimated = ScopeMeter::estimated(board).ok_or_else(|| missing.clone())?;
        let note = format!("{domain_name}: {missing}; it is estimated from its power limit and utilization");
        return Ok((vec![estimated], vec![note]));
    };
    let (mut meters, mut notes) = (vec![whole], Vec::new());
    if let Some(module) = ScopeMeter::probe(board, PowerScope::Module) {
        // Only Grace Hopper is known to have one board per module; elsewhere a module might be counted twice.
        if product.contains("GH200") {
            meters.push(module);
        } else {
            notes.push(format!(
                "{domain_name}: {product} also reports its module, which may contain other boards: not counted"
            ));
        }
    }
    meters.extend(ScopeMeter::probe(board, PowerScope::Memory));
    if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
        notes.push(format!(
            "{domain_name}: MIG is enabled; NVML reports the energy of the whole board only, not of its instances"
        ));
    }
    Ok((meters, notes))
}

fn board_domains(source: &str, meters: &[ScopeMeter], identity: &BoardIdentity) -> Vec<Domain> {
    let number = identity.number;
    let module = meters.iter().any(|meter| meter.scope == PowerScope::Module);
    let parent = |part| match part {
        PowerScope::Gpu => module.then(|| PowerScope::Module.domain_name(number)),
        PowerScope::Module => None,
        PowerScope::Memory => Some(PowerScope::Gpu.domain_name(number)),
    };
    let domain = |meter: &ScopeMeter| meter.domain(source, number, &identity.uuid, parent(meter.scope));
    meters.iter().map(domain).collect()
}

/// Reads until every scope's energy has advanced or the probe ends; returns for each scope whether it advanced. An idle board
/// draws watts, so a live counter advances without load. The last read is always at the end of the probe.
fn probe(source: &mut BoardSource, read_time: Duration) -> Vec<bool> {
    let pause = (PROBE_PAUSE_FACTOR * read_time).clamp(MIN_PROBE_PAUSE, PROBE_TIME);
    let mut readings = vec![EnergyReading::default(); source.meters.len()];
    let mut first: Vec<Option<EnergyReading>> = vec![None; source.meters.len()];
    let mut advanced = vec![false; source.meters.len()];
    let mut until = None;
    loop {
        let started = Instant::now();
        source.read(&mut readings);
        for ((reading, first), advanced) in readings.iter().zip(&mut first).zip(&mut advanced) {
            if reading.valid {
                *advanced |= reading.energy_uj > first.get_or_insert(*reading).energy_uj;
            }
        }
        if !advanced.contains(&false) || started >= *until.get_or_insert_with(|| Instant::now() + PROBE_TIME)
        {
            return advanced;
        }
        sleep(pause);
    }
}

/// One result for each scope, in the order of the meters.
type FieldResults = [FieldResult; MAX_FIELDS];

/// No field was queried.
fn no_results() -> FieldResults {
    std::array::from_fn(|_| Err(NvmlError::NoData))
}

/// The counters of all parts, in millijoules.
fn read_counters(board: &NvmlBoard, meters: &[ScopeMeter]) -> Result<FieldResults, NvmlError> {
    query_meters(board, meters, |meter| meter.energy, || board.device().total_energy_consumption())
}

/// The power of all parts, in milliwatts.
fn read_powers(board: &NvmlBoard, meters: &[ScopeMeter]) -> Result<FieldResults, NvmlError> {
    query_meters(board, meters, |meter| meter.power, || board.device().power_usage().map(u64::from))
}

/// Reads all fields in one call. A value of the whole board may need its own call.
fn query_meters(
    board: &NvmlBoard,
    meters: &[ScopeMeter],
    method_of: impl Fn(&ScopeMeter) -> Option<QueryMethod>,
    call: impl Fn() -> FieldResult,
) -> Result<FieldResults, NvmlError> {
    let (mut fields, mut indices, mut count) =
        ([NvmlField { id: 0, scope: 0 }; MAX_FIELDS], [0; MAX_FIELDS], 0);
    let mut answers = no_results();
    for (index, meter) in meters.iter().enumerate() {
        match method_of(meter) {
            Some(QueryMethod::Field(field)) => {
                (fields[count], indices[count]) = (field, index);
                count += 1;
            }
            Some(QueryMethod::Call) => answers[index] = call(),
            Some(QueryMethod::Estimate) => answers[index] = estimate_power_mw(board),
            None => {}
        }
    }
    if count > 0 {
        let mut results = no_results();
        board.query_fields(&fields[..count], &mut results)?;
        for (answer, index) in results.into_iter().zip(&indices[..count]) {
            answers[*index] = answer;
        }
    }
    match answers.iter().position(|answer| answer.as_ref().is_err_and(is_board_lost)) {
        Some(index) => Err(std::mem::replace(&mut answers[index], Ok(0)).err().unwrap_or(NvmlError::Unknown)),
        None => Ok(answers),
    }
}

impl BoardSource {
    /// Reads the board; an error means that the board is lost.
    fn read_board(&mut self, into: &mut [EnergyReading]) -> Result<Option<(u64, u64)>, NvmlError> {
        let now_ns = self.clock.now_ns();
        let Some(board) = self.connection.board(now_ns) else { return Ok(None) };
        // The initialisation of the library may have taken long.
        let sensed_ns = self.clock.now_ns();
        let powers = read_powers(board, &self.meters)?;
        let before_ns = self.clock.now_ns();
        let is_counting = self.counter_schedule.claim_if_due(before_ns);
        let counts = if is_counting { read_counters(board, &self.meters)? } else { no_results() };
        let after_ns = self.clock.now_ns();
        let at_ns = sensed_ns + (before_ns - sensed_ns) / 2;
        for (index, (meter, reading)) in self.meters.iter_mut().zip(into).enumerate() {
            meter.add_power(&powers[index], at_ns);
            *reading = meter.energy_reading(&counts[index], before_ns, after_ns);
        }
        self.connection.reset_backoff();
        Ok(Some(if is_counting { (before_ns, after_ns) } else { (sensed_ns, before_ns) }))
    }
}

impl Source for BoardSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        into.fill(EnergyReading::default());
        match self.read_board(into) {
            Ok(Some(window)) => Some(window),
            Ok(None) => None,
            Err(_) => {
                into.fill(EnergyReading::default());
                self.meters.iter_mut().for_each(ScopeMeter::interrupt);
                self.connection.disconnect(self.clock.now_ns());
                None
            }
        }
    }

    fn read_power_limits(&mut self, into: &mut [PowerLimits]) -> bool {
        let now_ns = self.clock.now_ns();
        let Some(board) = self.connection.board(now_ns) else { return false };
        // Of the limits that were set and those of the hardware the lowest.
        let Ok(enforced_mw) = board.device().enforced_power_limit() else { return false };
        for (meter, into) in self.meters.iter().zip(into) {
            *into = meter.power_limits(u64::from(enforced_mw));
        }
        true
    }
}
