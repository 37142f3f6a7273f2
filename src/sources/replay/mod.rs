//! Scripted and recorded machines as a source.
//!
//! Tests, demos and bug reports use this mechanism in the released program. Owns the machine's start on the given clock,
//! which may be a manual one. Counters of a scripted machine wrap, restart and disappear like real ones, and use the same
//! `counter`. A read never blocks.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::clock::Clock;
use crate::domain::EnergyReading;
use crate::sources::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use crate::sources::energy_unit::EnergyUnit;
use crate::sources::{Inventory, OpenedSource, Source};

use script::{Script, SimulatedDomain};
use trace::RecordedTrace;

/// Power in repeating steps, and its energy in closed form.
pub mod power_profile;

/// Records the readings of a machine as a trace.
pub mod recorder;

/// A simulated machine, computed from a description.
pub mod script;

/// The readings of a machine from a recording.
pub mod trace;

/// The name in the configuration and in domains: "replay".
pub const NAME: &str = crate::domain::REPLAY_SOURCE;

const MAX_SCRIPT_BYTES: u64 = 16 << 20;

/// Reads per update interval of a counter: more reads locate its edges more precisely, up to this number.
const READS_PER_UPDATE: f64 = 8.0;
const MAX_RATE_HZ: f64 = 10_000.0;

/// Opens the machine in the file at `path`: a trace if the file begins with `{`, else a script.
pub fn open(path: &Path, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    match load(path, clock) {
        Ok(opened) => found.opened.push(opened),
        Err(LoadError::Unreadable(error)) => {
            found.add_failed(NAME, &error, format!("{}: {error}", path.display()));
        }
        Err(LoadError::Invalid(reason)) => found.add_absent(NAME, format!("{}: {reason}", path.display())),
    }
    found
}

/// Why a file is no machine.
enum LoadError {
    Unreadable(io::Error),
    Invalid(String),
}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}

fn load(path: &Path, clock: &Clock) -> Result<OpenedSource, LoadError> {
    let mut file = BufReader::new(File::open(path)?);
    if file.fill_buf()?.first() == Some(&b'{') {
        return RecordedTrace::parse(file)
            .map(|trace| start_trace(trace, clock))
            .map_err(|error| LoadError::Invalid(error.to_string()));
    }
    let mut text = String::new();
    file.take(MAX_SCRIPT_BYTES).read_to_string(&mut text)?;
    let script = Script::parse(&text).map_err(|error| LoadError::Invalid(error.to_string()))?;
    Ok(start_script(script, clock))
}

/// Starts a scripted machine now: its time 0 is the current time of `clock`.
pub fn start_script(script: Script, clock: &Clock) -> OpenedSource {
    let shortest_ns = script.domains.iter().map(|domain| domain.update_ns).min().unwrap_or(1_000_000);
    OpenedSource {
        name: NAME,
        domains: script.domains.iter().map(|domain| domain.domain.clone()).collect(),
        cpu: None,
        max_rate_hz: max_rate_hz(shortest_ns),
        advanced: script.domains.iter().map(|domain| !domain.stuck && domain.profile.peak_mw() > 0).collect(),
        source: Box::new(ScriptSource {
            counters: script.domains.iter().map(|domain| Counter::new(counter_spec(domain))).collect(),
            script,
            start_ns: clock.now_ns(),
            clock: clock.clone(),
        }),
    }
}

/// Starts a recorded machine now.
pub fn start_trace(trace: RecordedTrace, clock: &Clock) -> OpenedSource {
    OpenedSource {
        name: NAME,
        domains: trace.domains.clone(),
        cpu: None,
        max_rate_hz: max_rate_hz(trace.min_interval_ns()),
        advanced: trace.advancing_domains(),
        source: Box::new(TraceSource { trace, start_ns: clock.now_ns(), clock: clock.clone() }),
    }
}

fn max_rate_hz(shortest_ns: u64) -> f64 {
    (READS_PER_UPDATE * 1e9 / shortest_ns as f64).clamp(1.0, MAX_RATE_HZ)
}

struct ScriptSource {
    script: Script,
    counters: Vec<Counter>,
    start_ns: u64,
    clock: Clock,
}

impl Source for ScriptSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let now_ns = self.clock.now_ns();
        let since_start_ns = now_ns.saturating_sub(self.start_ns);
        for ((domain, counter), reading) in self.script.domains.iter().zip(&mut self.counters).zip(into) {
            *reading = match domain.count_at(since_start_ns) {
                None => {
                    counter.interrupt();
                    EnergyReading::default()
                }
                Some(shown) => {
                    let reading = counter.advance(shown.raw, now_ns, now_ns);
                    EnergyReading {
                        stamp_ns: shown.stamp_ns.map_or(0, |stamp_ns| self.start_ns + stamp_ns),
                        ..reading
                    }
                }
            };
        }
        None
    }

    fn can_block(&self) -> bool {
        false
    }
}

fn counter_spec(domain: &SimulatedDomain) -> CounterSpec {
    let quantum_uj = domain.domain.quantum_uj;
    let modulus = domain.wrap_counts.map_or(1 << 64, u128::from);
    CounterSpec {
        unit: EnergyUnit::from_fraction(quantum_uj, 1).unwrap_or(EnergyUnit::MICROJOULE),
        modulus,
        ceiling_mw: plausible_ceiling_mw(domain.domain.kind).max(domain.domain.ceiling_mw.unwrap_or(0)),
        staleness_ns: domain.update_ns + domain.jitter_ns + domain.domain.latency_ns,
        range_uj: u64::try_from(modulus * u128::from(quantum_uj)).unwrap_or(u64::MAX),
    }
}

struct TraceSource {
    trace: RecordedTrace,
    start_ns: u64,
    clock: Clock,
}

impl Source for TraceSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let since_start_ns = self.clock.now_ns().saturating_sub(self.start_ns);
        for (domain, reading) in into.iter_mut().enumerate() {
            let shown = self.trace.reading(domain, since_start_ns);
            let stamp_ns = if shown.stamp_ns == 0 { 0 } else { self.start_ns.saturating_add(shown.stamp_ns) };
            *reading = EnergyReading { stamp_ns, ..shown };
        }
        None
    }

    fn can_block(&self) -> bool {
        false
    }
}
