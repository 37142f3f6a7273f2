//! What a machine showed, recorded line by line: JSON lines, the first the header, then one for each read of a source.
//!
//! ```text
//! {"wattspan_trace":1,"loop":true,"domains":[{"name":"package-0","kind":"package","grade":"measured",...}]}
//! {"first":0,"before_ns":1000,"after_ns":2500,"readings":[[12000000,0,0,0],null]}
//! ```
//!
//! A reading is `[energy_uj, doubt_uj, stamp_ns, epoch]`, or null where the domain did not answer; `first` is the index of the
//! first domain that the source has. With `loop` the trace begins anew at its end, else it holds its last readings.
//! Owns the format and the looking up. Reads no clock; never takes more memory than [`MOST_READINGS`] need.

use std::io::{BufRead, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::energy::{Domain, Grade, Kind, Reading};

/// The version of the format, in the header.
pub const VERSION: u64 = 1;

/// Readings of all domains together that a trace may hold: some 200 MB, or 17 minutes of 4 domains at 1 kHz.
pub const MOST_READINGS: usize = 4_000_000;

/// Domains that a trace may have.
const MOST_DOMAINS: usize = 1_024;

/// No line is longer.
const LONGEST_LINE: u64 = 1 << 20;

/// Why a trace is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {}{reason}", field.as_ref().map(|field| format!("field `{field}`: ")).unwrap_or_default())]
pub struct Invalid {
    /// The line, from 1.
    pub line: usize,
    /// The field, where it is one.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

/// A domain as the header has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DomainLine {
    name: String,
    kind: Kind,
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

impl From<&Domain> for DomainLine {
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

impl From<DomainLine> for Domain {
    fn from(line: DomainLine) -> Self {
        Self {
            name: line.name,
            kind: line.kind,
            // Whoever read it then, it is replayed now.
            source: "replay".into(),
            device: line.device,
            parent: line.parent,
            grade: line.grade,
            ceiling_mw: line.ceiling_mw,
            latency_ns: line.latency_ns,
            quantum_uj: line.quantum_uj.max(1),
        }
    }
}

/// A recorded machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Its domains.
    pub domains: Vec<Domain>,
    /// One for each domain, in their order.
    tracks: Vec<Track>,
    looped: bool,
    /// The first and the last instant of the recording, on the recorded machine's clock.
    start_ns: u64,
    end_ns: u64,
}

/// One domain's readings in the order of time.
#[derive(Debug, Clone, PartialEq, Default)]
struct Track {
    /// Each with the instant at which it was known.
    points: Vec<(u64, Reading)>,
}

impl Trace {
    /// Reads a recording. A last line without its end, as a killed recorder leaves it, is ignored if it is broken.
    ///
    /// # Errors
    /// With the line and the field that is wrong.
    pub fn parse(mut from: impl BufRead) -> Result<Trace, Invalid> {
        let mut line = Vec::new();
        next_line(&mut from, 1, &mut line)?;
        let (domains, looped) = header(&line)?;
        let tracks = vec![Track::default(); domains.len()];
        let mut trace = Trace { domains, tracks, looped, start_ns: u64::MAX, end_ns: 0 };
        let mut readings = 0;
        for number in 2.. {
            if !next_line(&mut from, number, &mut line)? {
                break;
            }
            match trace.sample(number, &line) {
                Err(_) if line.last() != Some(&b'\n') => break,
                sample => readings += sample?,
            }
            if readings > MOST_READINGS {
                return Err(invalid(number, format!("more than {MOST_READINGS} readings; cut the trace")));
            }
        }
        if readings == 0 {
            return Err(invalid(2, "there is no reading in it".into()));
        }
        Ok(trace)
    }

    /// What the domains showed `since_start_ns` after the beginning; stamps are given relative to it too. `turn_ns`, the
    /// length of one round, is where a looped trace begins anew.
    pub fn reading(&self, domain: usize, since_start_ns: u64) -> Reading {
        let Some(track) = self.tracks.get(domain) else { return Reading::default() };
        let turn_ns = (self.end_ns - self.start_ns).max(1);
        let (turn, within_ns) = match self.looped {
            true => (since_start_ns / turn_ns, since_start_ns % turn_ns),
            false => (0, since_start_ns),
        };
        let known = track.points.partition_point(|(at_ns, _)| at_ns - self.start_ns <= within_ns);
        match (known.checked_sub(1), turn.checked_sub(1)) {
            (Some(at), _) => track.reading(at, turn, turn_ns, self.start_ns),
            // Not yet in this round: what the last one ended with.
            (None, Some(before)) => track
                .points
                .len()
                .checked_sub(1)
                .map_or_else(Reading::default, |last| track.reading(last, before, turn_ns, self.start_ns)),
            (None, None) => Reading::default(),
        }
    }

    /// For each domain whether it moves at all.
    pub fn advances(&self) -> Vec<bool> {
        self.tracks.iter().map(|track| track.growth().energy_uj > 0).collect()
    }

    /// The shortest time between two readings of one domain.
    pub fn shortest_ns(&self) -> u64 {
        let gaps =
            self.tracks.iter().flat_map(|track| track.points.windows(2).map(|pair| pair[1].0 - pair[0].0));
        gaps.min().unwrap_or(1_000_000).max(1)
    }

    /// Takes one line; gives the number of readings in it.
    fn sample(&mut self, number: usize, line: &[u8]) -> Result<usize, Invalid> {
        let mut fields = Fields::parse(number, line)?;
        let (first, before_ns) = (fields.take::<usize>("first")?, fields.take::<u64>("before_ns")?);
        let after_ns = fields.take::<u64>("after_ns")?;
        let readings: Vec<Value> = fields.take("readings")?;
        fields.nothing_else()?;
        if after_ns < before_ns {
            return Err(wrong(number, "after_ns", "is before before_ns"));
        }
        if first.checked_add(readings.len()).is_none_or(|end| end > self.tracks.len()) {
            return Err(wrong(number, "readings", "reaches beyond the domains of the header"));
        }
        let count = readings.len();
        for (nth, reading) in readings.into_iter().enumerate() {
            let reading =
                reading_of(reading).and_then(|reading| self.tracks[first + nth].push(after_ns, reading));
            reading.map_err(|reason| wrong(number, &format!("readings[{nth}]"), &reason))?;
        }
        self.start_ns = self.start_ns.min(before_ns);
        self.end_ns = self.end_ns.max(after_ns);
        Ok(count)
    }
}

impl Track {
    fn push(&mut self, at_ns: u64, reading: Reading) -> Result<(), String> {
        if self.points.last().is_some_and(|(last_ns, _)| *last_ns >= at_ns) {
            return Err("is not later than the domain's reading before".into());
        }
        if let Some((_, last)) =
            self.points.iter().rev().find(|(_, last)| last.valid).filter(|_| reading.valid)
        {
            if reading.energy_uj < last.energy_uj || reading.doubt_uj < last.doubt_uj {
                return Err("decreases".into());
            }
            if reading.epoch < last.epoch {
                return Err("goes back to an epoch that was over".into());
            }
        }
        self.points.push((at_ns, reading));
        Ok(())
    }

    /// By how much a whole round adds to energy, doubt and epoch.
    fn growth(&self) -> Reading {
        let mut valid = self.points.iter().map(|(_, reading)| reading).filter(|reading| reading.valid);
        let Some(first) = valid.next() else { return Reading::default() };
        let last = valid.next_back().unwrap_or(first);
        let whole =
            [self.points.first(), self.points.last()].into_iter().flatten().all(|(_, reading)| reading.valid);
        Reading {
            valid: true,
            energy_uj: last.energy_uj - first.energy_uj,
            doubt_uj: last.doubt_uj - first.doubt_uj,
            stamp_ns: 0,
            epoch: last.epoch - first.epoch + u32::from(!whole),
        }
    }

    /// The reading at `at` as it looks in round `turn`.
    fn reading(&self, at: usize, turn: u64, turn_ns: u64, start_ns: u64) -> Reading {
        let reading = self.points[at].1;
        if !reading.valid {
            return Reading::default();
        }
        let growth = if turn == 0 { Reading::default() } else { self.growth() };
        let shifted = |value: u64, by: u64| value.saturating_add(by.saturating_mul(turn));
        Reading {
            valid: true,
            energy_uj: shifted(reading.energy_uj, growth.energy_uj),
            doubt_uj: shifted(reading.doubt_uj, growth.doubt_uj),
            stamp_ns: match reading.stamp_ns {
                0 => 0,
                stamp_ns => shifted(stamp_ns.saturating_sub(start_ns), turn_ns).max(1),
            },
            epoch: reading.epoch.wrapping_add(growth.epoch.wrapping_mul(turn as u32)),
        }
    }
}

/// Reads a line with its end into `line`; false at the end of the file.
fn next_line(from: &mut impl BufRead, number: usize, line: &mut Vec<u8>) -> Result<bool, Invalid> {
    line.clear();
    let read = from.take(LONGEST_LINE).read_until(b'\n', line);
    match read {
        Err(error) => Err(invalid(number, error.to_string())),
        Ok(length) if length as u64 == LONGEST_LINE => {
            Err(invalid(number, format!("longer than {LONGEST_LINE} bytes")))
        }
        Ok(length) => Ok(length > 0),
    }
}

fn header(line: &[u8]) -> Result<(Vec<Domain>, bool), Invalid> {
    let mut fields = Fields::parse(1, line)?;
    let version = fields.take::<u64>("wattspan_trace")?;
    if version != VERSION {
        return Err(wrong(
            1,
            "wattspan_trace",
            &format!("is version {version}; this program reads {VERSION}"),
        ));
    }
    let looped = fields.take::<Option<bool>>("loop")?.unwrap_or(false);
    let listed: Vec<Value> = fields.take("domains")?;
    fields.nothing_else()?;
    if listed.is_empty() || listed.len() > MOST_DOMAINS {
        return Err(wrong(1, "domains", &format!("must have from 1 to {MOST_DOMAINS} entries")));
    }
    let mut domains: Vec<Domain> = Vec::with_capacity(listed.len());
    for (nth, domain) in listed.into_iter().enumerate() {
        let field = format!("domains[{nth}]");
        let domain: DomainLine =
            serde_json::from_value(domain).map_err(|e| wrong(1, &field, &e.to_string()))?;
        if domains.iter().any(|other| other.name == domain.name) {
            return Err(wrong(1, &field, &format!("the name {:?} is used twice", domain.name)));
        }
        domains.push(domain.into());
    }
    Ok((domains, looped))
}

fn reading_of(value: Value) -> Result<Reading, String> {
    let fields: Option<(u64, u64, u64, u32)> =
        serde_json::from_value(value).map_err(|error| error.to_string())?;
    Ok(fields.map_or_else(Reading::default, |(energy_uj, doubt_uj, stamp_ns, epoch)| Reading {
        valid: true,
        energy_uj,
        doubt_uj,
        stamp_ns,
        epoch,
    }))
}

/// The fields of one line, taken out by name so that every error can say which.
struct Fields {
    line: usize,
    map: Map<String, Value>,
}

impl Fields {
    fn parse(line: usize, text: &[u8]) -> Result<Fields, Invalid> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(Fields { line, map }),
            Ok(_) => Err(invalid(line, "is no JSON object".into())),
            Err(error) => Err(invalid(line, format!("is no JSON: {error}"))),
        }
    }

    fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<T, Invalid> {
        let value = self.map.remove(field).unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|error| wrong(self.line, field, &error.to_string()))
    }

    fn nothing_else(&self) -> Result<(), Invalid> {
        self.map.keys().next().map_or(Ok(()), |field| Err(wrong(self.line, field, "is not known")))
    }
}

fn invalid(line: usize, reason: String) -> Invalid {
    Invalid { line, field: None, reason }
}

fn wrong(line: usize, field: &str, reason: &str) -> Invalid {
    Invalid { line, field: Some(field.into()), reason: reason.into() }
}
