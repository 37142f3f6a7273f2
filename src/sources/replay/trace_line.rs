//! The lines of a trace: the header, and one for each read of a source.
//!
//! Owns the format (see `trace`) and the naming of what is wrong in it: every refusal has the line and, where it
//! is one, the field. Looks at one line at a time; what holds between lines is the trace's business.

use std::io::{BufRead, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::domain::{Domain, DomainKind, EnergyReading, Grade};

/// The version of the format, in the header.
pub const TRACE_VERSION: u64 = 1;

/// Domains that a trace may have.
const MAX_DOMAINS: usize = 1_024;

/// No line is longer.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Why a trace is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {}{reason}", field.as_ref().map(|field| format!("field `{field}`: ")).unwrap_or_default())]
pub struct ParseTraceError {
    /// The line, from 1.
    pub line: usize,
    /// The field, where it is one.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl ParseTraceError {
    /// A line that is wrong as a whole.
    pub fn line(line: usize, reason: impl Into<String>) -> ParseTraceError {
        ParseTraceError { line, field: None, reason: reason.into() }
    }

    /// A field that is wrong.
    pub fn field(line: usize, field: &str, reason: impl Into<String>) -> ParseTraceError {
        ParseTraceError { line, field: Some(field.into()), reason: reason.into() }
    }
}

/// A domain as the header has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceDomain {
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
            // Whoever read it then, it is replayed now.
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

/// What one read of a source gave.
#[derive(Debug)]
pub struct TraceSample {
    /// The index of the source's first domain.
    pub first: usize,
    /// The clock before the read.
    pub before_ns: u64,
    /// The clock after it; not before `before_ns`.
    pub after_ns: u64,
    /// One reading for each domain.
    pub readings: Vec<EnergyReading>,
}

impl TraceSample {
    /// Reads the line with this number.
    pub fn parse(number: usize, line: &[u8]) -> Result<TraceSample, ParseTraceError> {
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

/// Reads line `number` with its end into `line`; false at the end of the file.
pub fn read_line(
    from: &mut impl BufRead,
    number: usize,
    line: &mut Vec<u8>,
) -> Result<bool, ParseTraceError> {
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

/// The domains that the first line lists, and whether the trace loops.
pub fn parse_header(line: &[u8]) -> Result<(Vec<Domain>, bool), ParseTraceError> {
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
        // The counter was not asked, or did not answer; the power was.
        Some([shape_uj]) => return Ok(EnergyReading { shape_uj: *shape_uj, ..EnergyReading::default() }),
        Some([known @ .., shape_uj]) if known.len() == 4 => (known, *shape_uj),
        Some(known) => (known, 0),
    };
    let [energy_uj, uncertainty_uj, stamp_ns, epoch] = *known else {
        return Err(format!(
            "has {} numbers; a reading has 4, or 5 with its shape, or its shape alone",
            known.len()
        ));
    };
    let epoch = u32::try_from(epoch).map_err(|_| format!("epoch {epoch} is larger than {}", u32::MAX))?;
    Ok(EnergyReading { valid: true, energy_uj, uncertainty_uj, stamp_ns, epoch, shape_uj })
}

/// The fields of one line, taken out by name so that every error can say which.
struct LineFields {
    line: usize,
    map: Map<String, Value>,
}

impl LineFields {
    fn parse(line: usize, text: &[u8]) -> Result<LineFields, ParseTraceError> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(LineFields { line, map }),
            Ok(_) => Err(ParseTraceError::line(line, "is no JSON object")),
            Err(error) => Err(ParseTraceError::line(line, format!("is no JSON: {error}"))),
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
            .map_or(Ok(()), |field| Err(ParseTraceError::field(self.line, field, "is not known")))
    }
}
