//! The machine's power during a run.
//!
//! Writes `power.jsonl`: ten lines per second with the power of every domain, for the chart of power over time. This
//! needs telemetry access; without it the file is absent and the chart shows the sum of the queries' powers.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};

use wattspan_client::{Client, ClientError};
use wattspan_system::private_file;

const SAMPLE_RATE_HZ: f64 = 10.0;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PowerSample {
    /// The instant, monotonic clock.
    pub at_ns: u64,
    /// The power of each domain, in the order of the run's `domains`.
    pub power_mw: Vec<Option<u64>>,
}

/// A recorder of power samples; it stops when it is dropped.
#[derive(Debug)]
pub struct PowerRecorder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PowerRecorder {
    /// Starts recording.
    ///
    /// # Errors
    /// The caller lacks telemetry access, or the file cannot be written.
    pub fn start(client: Client, run: &Path, domains: &[String]) -> Result<Self, ClientError> {
        let mut stream = client.watch_domains(Some(SAMPLE_RATE_HZ))?;
        // The first reply is awaited before the file is created, so that a refusal leaves no file.
        let Some(first) = stream.next().transpose()? else { return Err(ClientError::ConnectionClosed) };
        let file = private_file::append(&run.join("power.jsonl"));
        let mut file = file.map_err(ClientError::Io)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, domains) = (Arc::clone(&stop), domains.to_vec());
        let thread = thread::Builder::new().name("power".into()).spawn(move || {
            for update in std::iter::once(Ok(first)).chain(stream) {
                let Ok(update) = update else { return };
                let power =
                    |name: &String| update.domains.iter().find(|domain| domain.name == *name)?.power_mw;
                let power_mw = domains.iter().map(power).collect();
                let line = serde_json::to_string(&PowerSample { at_ns: update.now_ns, power_mw });
                let Ok(line) = line else { return };
                if stopped.load(Ordering::Relaxed) || file.write_all((line + "\n").as_bytes()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { stop, thread: Some(thread.map_err(ClientError::Io)?) })
    }
}

impl Drop for PowerRecorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread ends at its next sample; the panic hook has reported a panic.
            let _ = thread.join();
        }
    }
}

/// Reads the summed power of some domains between two instants (seconds of the monotonic clock), as (seconds, watts).
/// Samples with an unknown value are skipped.
///
/// # Errors
/// The file exists and cannot be read.
pub fn read_power_series(
    run: &Path,
    domains: &[usize],
    (from_s, to_s): (f64, f64),
) -> io::Result<Vec<(f64, f64)>> {
    let file = match File::open(run.join("power.jsonl")) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut series = Vec::new();
    if domains.is_empty() {
        return Ok(series);
    }
    for line in BufReader::new(file).lines() {
        let Ok(sample) = serde_json::from_str::<PowerSample>(&line?) else { continue };
        let at_s = sample.at_ns as f64 / 1e9;
        // The clock restarts if a run is resumed after a reboot, so lines are not always in order.
        if !(from_s..=to_s).contains(&at_s) {
            continue;
        }
        let power = |sum: u64, at: &usize| sum.checked_add(sample.power_mw.get(*at).copied().flatten()?);
        if let Some(power_mw) = domains.iter().try_fold(0, power) {
            series.push((at_s, power_mw as f64 / 1e3));
        }
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: (f64, f64) = (0.0, f64::MAX);

    #[test]
    fn a_missing_file_is_empty_and_unknown_samples_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_power_series(dir.path(), &[0], ALWAYS).unwrap(), []);
        let lines = "{\"at_ns\":1000000000,\"power_mw\":[1500,500]}\n{\"at_ns\":2000000000,\"power_mw\":[null,500]}\ncut";
        std::fs::write(dir.path().join("power.jsonl"), lines).unwrap();
        assert_eq!(read_power_series(dir.path(), &[0, 1], ALWAYS).unwrap(), [(1.0, 2.0)]);
        assert_eq!(read_power_series(dir.path(), &[1], ALWAYS).unwrap().len(), 2);
        assert_eq!(read_power_series(dir.path(), &[1], (1.5, 9.0)).unwrap(), [(2.0, 0.5)]);
        assert_eq!(read_power_series(dir.path(), &[], ALWAYS).unwrap(), []);
        std::fs::write(dir.path().join("power.jsonl"), "{\"at_ns\":1,\"power_mw\":[18446744073709551615,1]}")
            .unwrap();
        assert_eq!(read_power_series(dir.path(), &[0, 1], ALWAYS).unwrap(), [], "no sum");
    }
}
