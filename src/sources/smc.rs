//! The power that a Mac's System Management Controller senses, integrated; no root needed.
//!
//! Apple silicon has the system's total (`PSTR`), Intel's Macs have it too, most of them, and the processor's parts, which vary by model.
//! Owns which keys are read, and what they mean. Nobody says over how long the controller averages, so between two
//! looks the power can have been anything that a Mac can draw, and the doubt says so. Reads keys only; never writes one.

use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::domain::{Domain, DomainKind, EnergyReading, Grade};

use super::apple_calls_ffi::Calls;
use super::integral::{Power, ROUNDING_UJ, Trapezoid};
use super::smc_ffi::{Closed, Connection};
use super::smc_key::{DESCRIBE, Description, MOST_MW, NO_SUCH_KEY, READ, Words, letters, power_mw};
use super::suspend::Suspend;
use super::{Inventory, Opened, Settings, Source, apple};

/// The mechanism's name.
pub const NAME: &str = "smc";

/// How often it is worth asking: fast enough for the shape of a span, slow enough for a bus that fans hang on too.
const MOST_HZ: f64 = 10.0;

/// A controller that went away is looked for so often.
const AGAIN: Duration = Duration::from_secs(5);

/// Three times what the largest processor in a Mac of Intel's is rated at (Xeon W-3275M, 205 W): limits on averages let
/// short excursions through.
const MOST_PROCESSOR_MW: u64 = 615_000;

/// A key that shows power.
struct Key {
    letters: &'static [u8; 4],
    name: &'static str,
    kind: DomainKind,
    parent: Option<&'static str>,
    most_mw: u64,
    /// Read on Intel's Macs only: on Apple silicon its energy is in IOReport's counters.
    intel: bool,
}

const KEYS: [Key; 4] = [
    Key {
        letters: b"PSTR",
        name: "psys",
        kind: DomainKind::Psys,
        parent: None,
        most_mw: MOST_MW,
        intel: false,
    },
    Key {
        letters: b"PCPT",
        name: "package-0",
        kind: DomainKind::Package,
        parent: Some("psys"),
        most_mw: MOST_PROCESSOR_MW,
        intel: true,
    },
    Key {
        letters: b"PCPC",
        name: "core-0",
        kind: DomainKind::Core,
        parent: Some("package-0"),
        most_mw: MOST_PROCESSOR_MW,
        intel: true,
    },
    Key {
        letters: b"PCPG",
        name: "uncore-0",
        kind: DomainKind::Uncore,
        parent: Some("package-0"),
        most_mw: MOST_PROCESSOR_MW,
        intel: true,
    },
];

/// Opens the controller and sees which keys it has.
pub fn open(settings: &Settings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    match Smc::open(settings, clock, &mut found) {
        Ok(smc) => found.opened.push(Opened {
            name: NAME,
            domains: smc.sensors.iter().map(Sensor::domain).collect(),
            advanced: vec![false; smc.sensors.len()],
            source: Box::new(smc),
            cpu: None,
            max_rate_hz: MOST_HZ,
        }),
        Err(reason) => found.miss(NAME, reason),
    }
    found
}

struct Smc {
    calls: Calls,
    connection: Option<Connection>,
    /// When the connection was last looked for.
    sought: Instant,
    sensors: Vec<Sensor>,
    suspend: Suspend,
    clock: Clock,
}

struct Sensor {
    key: &'static Key,
    description: Description,
    trapezoid: Trapezoid,
}

impl Smc {
    fn open(settings: &Settings, clock: &Clock, found: &mut Inventory) -> Result<Smc, String> {
        let calls = apple::calls(settings)?;
        let connection = Connection::open(&calls).map_err(|closed| refusal(&closed))?;
        let mut sensors = Vec::new();
        for key in KEYS.iter().filter(|key| !key.intel || !connection.is_apple_silicon()) {
            match Sensor::find(&connection, key) {
                Ok(sensor) => sensors.push(sensor),
                Err(reason) => found.miss(NAME, format!("{}: {reason}", key.name)),
            }
        }
        if sensors.is_empty() {
            return Err("the controller has no key that shows power; please report the Mac's model".into());
        }
        Ok(Smc {
            calls,
            connection: Some(connection),
            sought: Instant::now(),
            sensors,
            suspend: Suspend::new(clock),
            clock: clock.clone(),
        })
    }

    /// Looks for a controller that went away, now and then.
    fn seek(&mut self) {
        if self.connection.is_none() && self.sought.elapsed() >= AGAIN {
            self.sought = Instant::now();
            self.connection = Connection::open(&self.calls).ok();
        }
    }
}

impl Source for Smc {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        self.seek();
        let mut gone = false;
        for (sensor, reading) in self.sensors.iter_mut().zip(&mut *into) {
            let shown = self.connection.as_ref().map(|connection| sensor.power_mw(connection));
            gone |= matches!(shown, Some(Err(_)));
            *reading = match shown {
                Some(Ok(Some(power_mw))) => sensor.advance(self.clock.now_ns(), power_mw),
                _ => {
                    sensor.trapezoid.interrupt();
                    EnergyReading::default()
                }
            };
        }
        if gone {
            self.connection = None;
        }
        if self.suspend.slept() {
            self.sensors.iter_mut().for_each(|sensor| sensor.trapezoid.interrupt());
            into.fill(EnergyReading::default());
        }
        None
    }
}

impl Sensor {
    /// Asks for the key's description, and sees whether its value is a power.
    fn find(connection: &Connection, key: &'static Key) -> Result<Sensor, String> {
        let name = String::from_utf8_lossy(key.letters);
        let words = Words { key: letters(key.letters), command: DESCRIBE, ..Words::default() };
        let answer = connection.ask(&words).map_err(|status| format!("{name} answers {status:#x}"))?;
        match answer.result {
            0 => {}
            NO_SUCH_KEY => return Err(format!("this Mac's controller has no key {name}")),
            result => {
                return Err(format!("the controller answers {result:#04x} for {name}; please report it"));
            }
        }
        let sensor = Sensor { key, description: answer.description, trapezoid: Trapezoid::default() };
        match sensor.power_mw(connection) {
            Ok(Some(_)) => Ok(sensor),
            _ => Err(format!(
                "{name} shows no power that is known here (its type is {:?}); please report it",
                String::from_utf8_lossy(&answer.description.kind.to_be_bytes())
            )),
        }
    }

    /// What it shows; `None` where that is no power. An error means that the connection is of no use any more.
    fn power_mw(&self, connection: &Connection) -> Result<Option<u64>, i32> {
        let description = self.description;
        let words = Words { key: letters(self.key.letters), command: READ, description, ..Words::default() };
        let answer = connection.ask(&words)?;
        let power_mw = power_mw(&description, &answer.bytes).filter(|mw| *mw <= self.key.most_mw);
        Ok(power_mw.filter(|_| answer.result == 0))
    }

    fn advance(&mut self, at_ns: u64, power_mw: u64) -> EnergyReading {
        self.trapezoid.advance(Power { at_ns, power_mw, low_mw: 0, high_mw: self.key.most_mw })
    }

    fn domain(&self) -> Domain {
        Domain {
            name: self.key.name.into(),
            kind: self.key.kind,
            source: NAME.into(),
            device: None,
            parent: self.key.parent.map(String::from),
            grade: Grade::Integrated,
            ceiling_mw: Some(self.key.most_mw),
            latency_ns: 0,
            quantum_uj: ROUNDING_UJ,
        }
    }
}

fn refusal(closed: &Closed) -> String {
    match closed {
        Closed::Absent => "there is no System Management Controller here, as in a virtual machine".into(),
        Closed::Refused(status) => {
            format!("IOKit refuses the System Management Controller ({status:#x}), as in a sandbox")
        }
    }
}
