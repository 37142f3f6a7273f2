//! Writes the readings of a machine as a trace that `trace` reads.
//!
//! Owns the buffer. Invariant: the file ends with a complete line, unless the system truncated a write. The caller decides
//! when to write.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};

use serde::Serialize;

use crate::domain::{Domain, EnergyReading};

use super::trace::{TRACE_VERSION, TraceDomain};

/// Writes samples, one line each.
pub struct TraceRecorder<W: Write> {
    /// Flushes before a line that does not fit, so that every write has complete lines.
    out: BufWriter<W>,
    line: String,
}

#[derive(Serialize)]
struct TraceHeader {
    wattspan_trace: u64,
    #[serde(rename = "loop")]
    looped: bool,
    domains: Vec<TraceDomain>,
}

impl<W: Write> TraceRecorder<W> {
    /// Starts a trace of `domains` with its header. `looped`: a replay restarts at the end of the trace.
    ///
    /// # Errors
    /// The header cannot be written.
    pub fn new(out: W, domains: &[Domain], looped: bool) -> io::Result<Self> {
        let domains: Vec<TraceDomain> = domains.iter().map(TraceDomain::from).collect();
        let mut out = BufWriter::with_capacity(1 << 16, out);
        serde_json::to_writer(&mut out, &TraceHeader { wattspan_trace: TRACE_VERSION, looped, domains })?;
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(Self { out, line: String::with_capacity(1_024) })
    }

    /// Adds one read of a source whose first domain has the index `first` in the header.
    ///
    /// # Errors
    /// The buffer is full and cannot be written.
    pub fn record(
        &mut self,
        first: usize,
        before_ns: u64,
        after_ns: u64,
        readings: &[EnergyReading],
    ) -> io::Result<()> {
        self.line.clear();
        let line = &mut self.line;
        let written =
            write!(line, r#"{{"first":{first},"before_ns":{before_ns},"after_ns":{after_ns},"readings":["#)
                .and_then(|()| {
                    readings
                        .iter()
                        .enumerate()
                        .try_for_each(|(nth, reading)| push_reading(line, nth, reading))
                })
                .and_then(|()| writeln!(line, "]}}"));
        written.map_err(io::Error::other)?;
        self.out.write_all(self.line.as_bytes())
    }

    /// Writes all buffered lines.
    ///
    /// # Errors
    /// The lines cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn push_reading(line: &mut String, nth: usize, reading: &EnergyReading) -> std::fmt::Result {
    let comma = if nth == 0 { "" } else { "," };
    let EnergyReading { valid, energy_uj, uncertainty_uj, stamp_ns, epoch, shape_uj } = reading;
    match (valid, shape_uj) {
        (true, 0) => write!(line, "{comma}[{energy_uj},{uncertainty_uj},{stamp_ns},{epoch}]"),
        (true, _) => write!(line, "{comma}[{energy_uj},{uncertainty_uj},{stamp_ns},{epoch},{shape_uj}]"),
        (false, 0) => write!(line, "{comma}null"),
        (false, _) => write!(line, "{comma}[{shape_uj}]"),
    }
}
