//! The recorded readings of a machine as JSON lines: a header, then one line for each read of a source.
//!
//! ```text
//! {"wattspan_trace":1,"loop":true,"domains":[{"name":"package-0","kind":"package","grade":"measured",...}]}
//! {"first":0,"before_ns":1000,"after_ns":2500,"readings":[[12000000,0,0,0],null]}
//! ```
//!
//! A reading is `[energy_uj, uncertainty_uj, stamp_ns, epoch]`, or null if the domain did not answer. A domain with a
//! power sensor beside its counter has `shape_uj` as a fifth number, or alone if the counter was not read. `first` is
//! the index of the source's first domain. With `loop` the trace restarts at its end, else it keeps its last
//! readings. Owns the format and the lookup. Every error has the line and, if possible, the field. Memory is limited
//! by `MAX_READINGS`.

use std::io::{BufRead, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::domain::{Domain, DomainKind, EnergyReading, Grade};

/// Largest number of readings in a trace, over all domains: about 200 MB, or 17 minutes of 4 domains at 1 kHz.
pub const MAX_READINGS: usize = 4_000_000;

/// The readings of a machine, from a trace file.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedTrace {
    /// In the order of the readings.
    pub domains: Vec<Domain>,
    /// The readings of each domain, in the order of the domains.
    readings: Vec<DomainReadings>,
    looped: bool,
    /// The first and the last instant of the recording, on the recorded machine's clock.
    start_ns: u64,
    end_ns: u64,
}

/// One domain's readings in the order of time.
#[derive(Debug, Clone, PartialEq, Default)]
struct DomainReadings {
    /// Each reading with the instant of the end of its read.
    readings: Vec<(u64, EnergyReading)>,
}

impl RecordedTrace {
    /// Parses a recording. Ignores an incomplete last line, which a killed recorder leaves.
    ///
    /// # Errors
    /// The recording is invalid; the error has the line and the field.
    pub fn parse(mut from: impl BufRead) -> Result<RecordedTrace, ParseTraceError> {
        let mut line = Vec::new();
        read_line(&mut from, 1, &mut line)?;
        let (domains, looped) = parse_header(&line)?;
        let all_series = vec![DomainReadings::default(); domains.len()];
        let mut trace =
            RecordedTrace { domains, readings: all_series, looped, start_ns: u64::MAX, end_ns: 0 };
        let mut readings = 0;
        for number in 2.. {
            if !read_line(&mut from, number, &mut line)? {
                break;
            }
            match trace.add_sample(number, &line) {
                Err(_) if line.last() != Some(&b'\n') => break,
                sample => readings += sample?,
            }
            if readings > MAX_READINGS {
                return Err(ParseTraceError::line(
                    number,
                    format!("more than {MAX_READINGS} readings; cut the trace"),
                ));
            }
        }
        if readings == 0 {
            return Err(ParseTraceError::line(2, "the trace has no reading"));
        }
        Ok(trace)
    }

    /// The reading of a domain `since_start_ns` after the start, with a stamp relative to the start. A looped trace
    /// restarts after `period_ns`, the length of one round.
    pub fn reading(&self, domain: usize, since_start_ns: u64) -> EnergyReading {
        let Some(series) = self.readings.get(domain) else { return EnergyReading::default() };
        let period_ns = (self.end_ns - self.start_ns).max(1);
        let (round, within_ns) = match self.looped {
            true => (since_start_ns / period_ns, since_start_ns % period_ns),
            false => (0, since_start_ns),
        };
        let known = series.readings.partition_point(|(at_ns, _)| at_ns - self.start_ns <= within_ns);
        match (known.checked_sub(1), round.checked_sub(1)) {
            (Some(at), _) => series.reading(at, round, period_ns, self.start_ns),
            // No reading in this round yet: the last one of the previous round.
            (None, Some(before)) => {
                series.readings.len().checked_sub(1).map_or_else(EnergyReading::default, |last| {
                    series.reading(last, before, period_ns, self.start_ns)
                })
            }
            (None, None) => EnergyReading::default(),
        }
    }

    /// For each domain: whether it ever advances.
    pub fn advancing_domains(&self) -> Vec<bool> {
        self.readings.iter().map(|series| series.round_growth().energy_uj > 0).collect()
    }

    /// The shortest time between two readings of one domain.
    pub fn min_interval_ns(&self) -> u64 {
        let gaps = self
            .readings
            .iter()
            .flat_map(|series| series.readings.windows(2).map(|pair| pair[1].0 - pair[0].0));
        gaps.min().unwrap_or(1_000_000).max(1)
    }

    /// Adds the readings of one line; returns their number.
    fn add_sample(&mut self, number: usize, line: &[u8]) -> Result<usize, ParseTraceError> {
        let sample = TraceSample::parse(number, line)?;
        let count = sample.readings.len();
        if sample.first.checked_add(count).is_none_or(|end| end > self.readings.len()) {
            return Err(ParseTraceError::field(
                number,
                "readings",
                "extends beyond the last domain of the header",
            ));
        }
        for (nth, reading) in sample.readings.into_iter().enumerate() {
            let pushed = self.readings[sample.first + nth].push(sample.after_ns, reading);
            pushed.map_err(|reason| ParseTraceError::field(number, &format!("readings[{nth}]"), reason))?;
        }
        self.start_ns = self.start_ns.min(sample.before_ns);
        self.end_ns = self.end_ns.max(sample.after_ns);
        Ok(count)
    }
}

impl DomainReadings {
    fn push(&mut self, at_ns: u64, reading: EnergyReading) -> Result<(), &'static str> {
        if self.readings.last().is_some_and(|(last_ns, _)| *last_ns >= at_ns) {
            return Err("is not later than the domain's previous reading");
        }
        if let Some((_, last)) =
            self.readings.iter().rev().find(|(_, last)| last.valid).filter(|_| reading.valid)
        {
            if reading.energy_uj < last.energy_uj || reading.uncertainty_uj < last.uncertainty_uj {
                return Err("decreases");
            }
            if reading.epoch < last.epoch {
                return Err("returns to an earlier epoch");
            }
        }
        self.readings.push((at_ns, reading));
        Ok(())
    }

    /// The increase of energy, uncertainty and epoch per round.
    fn round_growth(&self) -> EnergyReading {
        let shapes =
            || self.readings.iter().map(|(_, reading)| reading.shape_uj).filter(|shape_uj| *shape_uj != 0);
        let shape_uj = shapes().max().unwrap_or(0) - shapes().min().unwrap_or(0);
        let mut valid = self.readings.iter().map(|(_, reading)| reading).filter(|reading| reading.valid);
        let Some(first) = valid.next() else { return EnergyReading { shape_uj, ..EnergyReading::default() } };
        let last = valid.next_back().unwrap_or(first);
        let whole = [self.readings.first(), self.readings.last()]
            .into_iter()
            .flatten()
            .all(|(_, reading)| reading.valid);
        EnergyReading {
            valid: true,
            energy_uj: last.energy_uj - first.energy_uj,
            uncertainty_uj: last.uncertainty_uj - first.uncertainty_uj,
            stamp_ns: 0,
            epoch: (last.epoch - first.epoch).wrapping_add(u32::from(!whole)),
            shape_uj,
        }
    }

    /// The reading with index `at`, shifted to round `round`.
    fn reading(&self, at: usize, round: u64, period_ns: u64, start_ns: u64) -> EnergyReading {
        let reading = self.readings[at].1;
        let growth = if round == 0 { EnergyReading::default() } else { self.round_growth() };
        let shifted = |value: u64, by: u64| value.saturating_add(by.saturating_mul(round));
        let shape_uj = if reading.shape_uj == 0 { 0 } else { shifted(reading.shape_uj, growth.shape_uj) };
        if !reading.valid {
            return EnergyReading { shape_uj, ..EnergyReading::default() };
        }
        EnergyReading {
            valid: true,
            energy_uj: shifted(reading.energy_uj, growth.energy_uj),
            uncertainty_uj: shifted(reading.uncertainty_uj, growth.uncertainty_uj),
            stamp_ns: match reading.stamp_ns {
                0 => 0,
                stamp_ns => shifted(stamp_ns.saturating_sub(start_ns), period_ns).max(1),
            },
            epoch: reading.epoch.wrapping_add(growth.epoch.wrapping_mul(round as u32)),
            shape_uj,
        }
    }
}

/// The version of the format, in the header.
pub(super) const TRACE_VERSION: u64 = 1;

/// Largest number of domains in a trace.
const MAX_DOMAINS: usize = 1_024;

/// Largest length of a line.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The reason why a trace is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {}{reason}", field.as_ref().map(|field| format!("field `{field}`: ")).unwrap_or_default())]
pub struct ParseTraceError {
    /// The line, from 1.
    pub line: usize,
    /// The field, if one is invalid.
    pub field: Option<String>,
    /// What is wrong, and what is expected.
    pub reason: String,
}

impl ParseTraceError {
    fn line(line: usize, reason: impl Into<String>) -> ParseTraceError {
        ParseTraceError { line, field: None, reason: reason.into() }
    }

    fn field(line: usize, field: &str, reason: impl Into<String>) -> ParseTraceError {
        ParseTraceError { line, field: Some(field.into()), reason: reason.into() }
    }
}

/// A domain in the header.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceDomain {
    name: String,
    kind: DomainKind,
    grade: Grade,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ceiling_mw: Option<u64>,
    latency_ns: u64,
    quantum_uj: u64,
}

impl From<&Domain> for TraceDomain {
    fn from(domain: &Domain) -> Self {
        Self {
            name: domain.name.clone(),
            kind: domain.kind,
            grade: domain.grade,
            source: Some(domain.source.clone()),
            device: domain.device.clone(),
            parent: domain.parent.clone(),
            ceiling_mw: domain.ceiling_mw,
            latency_ns: domain.latency_ns,
            quantum_uj: domain.quantum_uj,
        }
    }
}

impl From<TraceDomain> for Domain {
    fn from(line: TraceDomain) -> Self {
        Self {
            name: line.name,
            kind: line.kind,
            // The source is the replay, not the recorded one.
            source: crate::domain::REPLAY_SOURCE.into(),
            device: line.device,
            parent: line.parent,
            grade: line.grade,
            ceiling_mw: line.ceiling_mw,
            latency_ns: line.latency_ns,
            quantum_uj: line.quantum_uj.max(1),
        }
    }
}

/// One read of a source.
#[derive(Debug)]
struct TraceSample {
    /// The index of the source's first domain.
    first: usize,
    /// The clock before the read.
    before_ns: u64,
    /// The clock after it; not before `before_ns`.
    after_ns: u64,
    readings: Vec<EnergyReading>,
}

impl TraceSample {
    /// Parses the line with this number.
    fn parse(number: usize, line: &[u8]) -> Result<TraceSample, ParseTraceError> {
        let mut fields = LineFields::parse(number, line)?;
        let (first, before_ns) = (fields.take::<usize>("first")?, fields.take::<u64>("before_ns")?);
        let after_ns = fields.take::<u64>("after_ns")?;
        let listed: Vec<Value> = fields.take("readings")?;
        fields.reject_unknown()?;
        if after_ns < before_ns {
            return Err(ParseTraceError::field(number, "after_ns", "is before before_ns"));
        }
        let mut readings = Vec::with_capacity(listed.len());
        for (nth, reading) in listed.into_iter().enumerate() {
            let reading = parse_reading(reading);
            readings.push(
                reading
                    .map_err(|reason| ParseTraceError::field(number, &format!("readings[{nth}]"), reason))?,
            );
        }
        Ok(TraceSample { first, before_ns, after_ns, readings })
    }
}

/// Reads line `number`, including its newline, into `line`; false at the end of the file.
fn read_line(from: &mut impl BufRead, number: usize, line: &mut Vec<u8>) -> Result<bool, ParseTraceError> {
    line.clear();
    let read = from.take(MAX_LINE_BYTES).read_until(b'\n', line);
    match read {
        Err(error) => Err(ParseTraceError::line(number, error.to_string())),
        Ok(length) if length as u64 == MAX_LINE_BYTES => {
            Err(ParseTraceError::line(number, format!("longer than {MAX_LINE_BYTES} bytes")))
        }
        Ok(length) => Ok(length > 0),
    }
}

/// Parses the header: the domains, and whether the trace loops.
fn parse_header(line: &[u8]) -> Result<(Vec<Domain>, bool), ParseTraceError> {
    let mut fields = LineFields::parse(1, line)?;
    let version = fields.take::<u64>("wattspan_trace")?;
    if version != TRACE_VERSION {
        return Err(ParseTraceError::field(
            1,
            "wattspan_trace",
            format!("is version {version}; this program reads {TRACE_VERSION}"),
        ));
    }
    let looped = fields.take::<Option<bool>>("loop")?.unwrap_or(false);
    let listed: Vec<Value> = fields.take("domains")?;
    fields.reject_unknown()?;
    if listed.is_empty() || listed.len() > MAX_DOMAINS {
        return Err(ParseTraceError::field(
            1,
            "domains",
            format!("must have from 1 to {MAX_DOMAINS} entries"),
        ));
    }
    let mut domains: Vec<Domain> = Vec::with_capacity(listed.len());
    for (nth, domain) in listed.into_iter().enumerate() {
        let field = format!("domains[{nth}]");
        let domain: TraceDomain =
            serde_json::from_value(domain).map_err(|e| ParseTraceError::field(1, &field, e.to_string()))?;
        if domains.iter().any(|other| other.name == domain.name) {
            return Err(ParseTraceError::field(
                1,
                &field,
                format!("the name {:?} is used twice", domain.name),
            ));
        }
        domains.push(domain.into());
    }
    Ok((domains, looped))
}

fn parse_reading(value: Value) -> Result<EnergyReading, String> {
    let fields: Option<Vec<u64>> = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let (known, shape_uj) = match fields.as_deref() {
        None => return Ok(EnergyReading::default()),
        // The counter was not read or did not answer; the power sensor did.
        Some([shape_uj]) => return Ok(EnergyReading { shape_uj: *shape_uj, ..EnergyReading::default() }),
        Some([known @ .., shape_uj]) if known.len() == 4 => (known, *shape_uj),
        Some(known) => (known, 0),
    };
    let [energy_uj, uncertainty_uj, stamp_ns, epoch] = *known else {
        return Err(format!(
            "has {} numbers; a reading has 4, or 5 with its shape, or 1 if it is the shape alone",
            known.len()
        ));
    };
    let epoch = u32::try_from(epoch).map_err(|_| format!("epoch {epoch} is larger than {}", u32::MAX))?;
    Ok(EnergyReading { valid: true, energy_uj, uncertainty_uj, stamp_ns, epoch, shape_uj })
}

/// The fields of one line, taken by name, so that every error has the field.
struct LineFields {
    line: usize,
    map: Map<String, Value>,
}

impl LineFields {
    fn parse(line: usize, text: &[u8]) -> Result<LineFields, ParseTraceError> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(LineFields { line, map }),
            Ok(_) => Err(ParseTraceError::line(line, "is not a JSON object")),
            Err(error) => Err(ParseTraceError::line(line, format!("is not JSON: {error}"))),
        }
    }

    fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<T, ParseTraceError> {
        let value = self.map.remove(field).unwrap_or(Value::Null);
        serde_json::from_value(value)
            .map_err(|error| ParseTraceError::field(self.line, field, error.to_string()))
    }

    fn reject_unknown(&self) -> Result<(), ParseTraceError> {
        self.map
            .keys()
            .next()
            .map_or(Ok(()), |field| Err(ParseTraceError::field(self.line, field, "is unknown")))
    }
}
