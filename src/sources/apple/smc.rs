//! Integrated power from the sensors of a Mac's System Management Controller; needs no privilege.
//!
//! Apple silicon has the system's total (`PSTR`). Most Intel Macs have it too, and the processor's parts, which vary by
//! model. Owns the choice of the keys. The averaging time of the controller is not documented, so the uncertainty allows any
//! power up to the Mac's ceiling between two reads. Never writes a key.

pub use crate::sources::source_settings::SMC as NAME;

use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading, Grade};
use crate::sources::energy_integral::{PowerSample, ROUNDING_UJ, TrapezoidIntegrator};
use crate::sources::suspend_detector::SuspendDetector;
use crate::sources::{Inventory, OpenedSource, Source, SourceSettings};

use super::function_loader::load_functions;
use super::functions_ffi::AppleFunctions;
use super::smc_ffi::{OpenSmcError, SmcConnection};
use super::smc_protocol::{
    GET_KEY_INFO, KEY_NOT_FOUND, KeyInfo, MAX_POWER_MW, READ_KEY, SmcParam, four_char_code, power_mw,
};

/// Highest rate: enough for the power within a span, and low enough for a bus that also controls the fans.
const MAX_RATE_HZ: f64 = 10.0;

/// The interval between attempts to reconnect.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// Three times the rating of the largest processor in an Intel Mac (Xeon W-3275M, 205 W): limits on averages allow short
/// excursions.
const MAX_PROCESSOR_MW: u64 = 615_000;

/// A key with a power value.
struct SmcKey {
    code: &'static [u8; 4],
    name: &'static str,
    kind: DomainKind,
    parent: Option<&'static str>,
    max_mw: u64,
    /// Read on Intel Macs only: on Apple silicon, IOReport's counters contain its energy.
    is_intel_only: bool,
}

const KEYS: [SmcKey; 4] = [
    SmcKey {
        code: b"PSTR",
        name: "psys",
        kind: DomainKind::Psys,
        parent: None,
        max_mw: MAX_POWER_MW,
        is_intel_only: false,
    },
    SmcKey {
        code: b"PCPT",
        name: "package-0",
        kind: DomainKind::Package,
        parent: Some("psys"),
        max_mw: MAX_PROCESSOR_MW,
        is_intel_only: true,
    },
    SmcKey {
        code: b"PCPC",
        name: "core-0",
        kind: DomainKind::Core,
        parent: Some("package-0"),
        max_mw: MAX_PROCESSOR_MW,
        is_intel_only: true,
    },
    SmcKey {
        code: b"PCPG",
        name: "uncore-0",
        kind: DomainKind::Uncore,
        parent: Some("package-0"),
        max_mw: MAX_PROCESSOR_MW,
        is_intel_only: true,
    },
];

/// Opens the controller and probes its keys.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    match SmcSource::open(settings, clock, &mut found) {
        Ok(smc) => found.opened.push(OpenedSource {
            name: NAME,
            domains: smc.sensors.iter().map(SmcSensor::domain).collect(),
            advanced: vec![false; smc.sensors.len()],
            source: Box::new(smc),
            cpu: None,
            max_rate_hz: MAX_RATE_HZ,
        }),
        Err(reason) => found.add_absent(NAME, reason),
    }
    found
}

struct SmcSource {
    calls: AppleFunctions,
    connection: Option<SmcConnection>,
    /// The instant of the last connection attempt.
    last_attempt: Instant,
    sensors: Vec<SmcSensor>,
    suspend: SuspendDetector,
    clock: Clock,
}

struct SmcSensor {
    key: &'static SmcKey,
    key_info: KeyInfo,
    integrator: TrapezoidIntegrator,
}

impl SmcSource {
    fn open(settings: &SourceSettings, clock: &Clock, found: &mut Inventory) -> Result<SmcSource, String> {
        let calls = load_functions(settings.apple_library.as_deref())?;
        let connection = SmcConnection::open(&calls).map_err(|closed| open_error_reason(&closed))?;
        let mut sensors = Vec::new();
        for key in KEYS.iter().filter(|key| !key.is_intel_only || !connection.is_apple_silicon()) {
            match SmcSensor::probe(&connection, key) {
                Ok(sensor) => sensors.push(sensor),
                Err(reason) => found.add_absent(NAME, format!("{}: {reason}", key.name)),
            }
        }
        if sensors.is_empty() {
            return Err("the controller has no known power key; please report the Mac's model".into());
        }
        Ok(SmcSource {
            calls,
            connection: Some(connection),
            last_attempt: Instant::now(),
            sensors,
            suspend: SuspendDetector::new(clock),
            clock: clock.clone(),
        })
    }

    /// Reconnects to a missing controller, at most once per interval.
    fn reconnect(&mut self) {
        if self.connection.is_none() && self.last_attempt.elapsed() >= RECONNECT_INTERVAL {
            self.last_attempt = Instant::now();
            self.connection = SmcConnection::open(&self.calls).ok();
        }
    }
}

impl Source for SmcSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        self.reconnect();
        let mut gone = false;
        for (sensor, reading) in self.sensors.iter_mut().zip(&mut *into) {
            let shown = self.connection.as_ref().map(|connection| sensor.power_mw(connection));
            gone |= matches!(shown, Some(Err(_)));
            *reading = match shown {
                Some(Ok(Some(power_mw))) => sensor.advance(self.clock.now_ns(), power_mw),
                _ => {
                    sensor.integrator.interrupt();
                    EnergyReading::default()
                }
            };
        }
        if gone {
            self.connection = None;
        }
        if self.suspend.has_suspended() {
            self.sensors.iter_mut().for_each(|sensor| sensor.integrator.interrupt());
            into.fill(EnergyReading::default());
        }
        None
    }
}

impl SmcSensor {
    /// Reads the key's description, and checks that its value is a power.
    fn probe(connection: &SmcConnection, key: &'static SmcKey) -> Result<SmcSensor, String> {
        let name = String::from_utf8_lossy(key.code);
        let param = SmcParam { key: four_char_code(key.code), command: GET_KEY_INFO, ..SmcParam::default() };
        let answer = connection.call(&param).map_err(|status| format!("{name} answers {status:#x}"))?;
        match answer.result {
            0 => {}
            KEY_NOT_FOUND => return Err(format!("this Mac's controller has no key {name}")),
            result => {
                return Err(format!("the controller answers {result:#04x} for {name}; please report it"));
            }
        }
        let sensor = SmcSensor { key, key_info: answer.key_info, integrator: TrapezoidIntegrator::default() };
        match sensor.power_mw(connection) {
            Ok(Some(_)) => Ok(sensor),
            _ => Err(format!(
                "{name} has no readable power (its type is {:?}); please report it",
                String::from_utf8_lossy(&answer.key_info.type_code.to_be_bytes())
            )),
        }
    }

    /// The power; `None` if the value is no power. An error means that the connection is lost.
    fn power_mw(&self, connection: &SmcConnection) -> Result<Option<u64>, i32> {
        let key_info = self.key_info;
        let param = SmcParam {
            key: four_char_code(self.key.code),
            command: READ_KEY,
            key_info,
            ..SmcParam::default()
        };
        let answer = connection.call(&param)?;
        let power_mw = power_mw(&key_info, &answer.bytes).filter(|mw| *mw <= self.key.max_mw);
        Ok(power_mw.filter(|_| answer.result == 0))
    }

    fn advance(&mut self, at_ns: u64, power_mw: u64) -> EnergyReading {
        self.integrator.advance(PowerSample { at_ns, power_mw, low_mw: 0, high_mw: self.key.max_mw })
    }

    fn domain(&self) -> Domain {
        Domain {
            name: self.key.name.into(),
            kind: self.key.kind,
            source: NAME.into(),
            device: None,
            parent: self.key.parent.map(String::from),
            grade: Grade::Integrated,
            ceiling_mw: Some(self.key.max_mw),
            latency_ns: 0,
            quantum_uj: ROUNDING_UJ,
        }
    }
}

fn open_error_reason(closed: &OpenSmcError) -> String {
    match closed {
        OpenSmcError::NotFound => "no System Management Controller; a virtual machine has none".into(),
        OpenSmcError::Refused(status) => {
            format!("IOKit refuses the System Management Controller ({status:#x}), as in a sandbox")
        }
    }
}
