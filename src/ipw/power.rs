//! The machine's power while a run goes on.
//!
//! Owns `power.jsonl`: a line ten times a second with every domain's power, for the picture of power over time. Needs
//! telemetry access; without it there is no such file, and the picture adds up the queries' own powers.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};

use crate::client::{Client, Failure};
use crate::private_file;

const RATE_HZ: f64 = 10.0;

/// One instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instant {
    /// On the machine's monotonic clock.
    pub at_ns: u64,
    /// Each domain's power, in the order of the run's `domains`.
    pub power_mw: Vec<Option<u64>>,
}

/// Somebody who writes the power down.
#[derive(Debug)]
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches until it is dropped.
    ///
    /// # Errors
    /// The caller may not watch, or the file cannot be written.
    pub fn start(client: Client, run: &Path, domains: &[String]) -> Result<Self, Failure> {
        let mut stream = client.watch_domains(Some(RATE_HZ))?;
        // The first answer, or the refusal, before a file is made.
        let Some(first) = stream.next().transpose()? else { return Err(Failure::Gone) };
        let file = private_file::append(&run.join("power.jsonl"));
        let mut file = file.map_err(Failure::Socket)?;
        let over = Arc::new(AtomicBool::new(false));
        let (ended, domains) = (Arc::clone(&over), domains.to_vec());
        let thread = thread::Builder::new().name("power".into()).spawn(move || {
            for tick in std::iter::once(Ok(first)).chain(stream) {
                let Ok(tick) = tick else { return };
                let power = |name: &String| tick.domains.iter().find(|domain| domain.name == *name)?.power_mw;
                let power_mw = domains.iter().map(power).collect();
                let line = serde_json::to_string(&Instant { at_ns: tick.now_ns, power_mw });
                let Ok(line) = line else { return };
                if ended.load(Ordering::Relaxed) || file.write_all((line + "\n").as_bytes()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { over, thread: Some(thread.map_err(Failure::Socket)?) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends with the next tick; a panic of it was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// The power of some domains together over time, between two seconds of the monotonic clock: seconds, watts. Instants at
/// which one of them is unknown are left out.
///
/// # Errors
/// The file is there and cannot be read.
pub fn curve(run: &Path, domains: &[usize], (from_s, to_s): (f64, f64)) -> io::Result<Vec<(f64, f64)>> {
    let file = match File::open(run.join("power.jsonl")) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut curve = Vec::new();
    if domains.is_empty() {
        return Ok(curve);
    }
    for line in BufReader::new(file).lines() {
        let Ok(instant) = serde_json::from_str::<Instant>(&line?) else { continue };
        let at_s = instant.at_ns as f64 / 1e9;
        // A run that was resumed after a reboot begins its clock anew: no line says that the next ones are later.
        if !(from_s..=to_s).contains(&at_s) {
            continue;
        }
        let power = |sum: u64, at: &usize| Some(sum + instant.power_mw.get(*at).copied().flatten()?);
        if let Some(power_mw) = domains.iter().try_fold(0, power) {
            curve.push((at_s, power_mw as f64 / 1e3));
        }
    }
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: (f64, f64) = (0.0, f64::MAX);

    #[test]
    fn a_run_without_the_file_has_no_curve_and_unknown_instants_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(curve(dir.path(), &[0], ALWAYS).unwrap(), []);
        let lines = "{\"at_ns\":1000000000,\"power_mw\":[1500,500]}\n{\"at_ns\":2000000000,\"power_mw\":[null,500]}\ncut";
        std::fs::write(dir.path().join("power.jsonl"), lines).unwrap();
        assert_eq!(curve(dir.path(), &[0, 1], ALWAYS).unwrap(), [(1.0, 2.0)]);
        assert_eq!(curve(dir.path(), &[1], ALWAYS).unwrap().len(), 2);
        assert_eq!(curve(dir.path(), &[1], (1.5, 9.0)).unwrap(), [(2.0, 0.5)]);
        assert_eq!(curve(dir.path(), &[], ALWAYS).unwrap(), []);
    }
}
