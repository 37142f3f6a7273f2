//! GPU time of each process: NVML's per-process utilisation (nvml.h, nvmlDeviceGetProcessUtilization).
//!
//! Owns one thread for each board, separate from the board's sampler, so a call that hangs delays no reading. The driver
//! provides the percentage of the streaming multiprocessors' time for each process, updated 1 to 6 times a second; an empty
//! list means that no process computed. The thread calls NVML only on request and blocks otherwise.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;

use crate::clock::monotonic_ns;

use super::board_ffi::{DEFAULT_LIBRARY, NvmlBoard};

/// Shortest useful period of calls.
const MIN_QUERY_INTERVAL: Duration = Duration::from_millis(200);

/// Largest number of processes on one board.
const MAX_PROCESSES: usize = 4096;

/// A board's report since the previous one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UtilizationReport {
    /// The use of each process up to this instant, in percent times microseconds.
    Measured(u64, HashMap<u32, u64>),
    /// No report, with the reason.
    Unavailable(String),
}

/// The utilization reader of one board.
#[derive(Debug)]
pub struct ProcessUtilization {
    requests: SyncSender<()>,
    report: Arc<Mutex<Option<UtilizationReport>>>,
}

impl ProcessUtilization {
    /// Starts the thread for the board with this UUID; the first request loads the library. `None` if no thread starts.
    pub fn spawn(library: Option<&PathBuf>, uuid: String) -> Option<Self> {
        let library = library.map_or_else(|| DEFAULT_LIBRARY.into(), OsString::from);
        let (requests, receiver) = sync_channel(1);
        let report = Arc::new(Mutex::new(None));
        let shared_report = Arc::clone(&report);
        let run = move || {
            UtilizationPoller { library, uuid, board: None, last_query_ns: 0, last_sample_us: 0 }
                .run(&receiver, &shared_report)
        };
        thread::Builder::new().name("nvml-use".into()).spawn(run).ok()?;
        Some(Self { requests, report })
    }

    /// Requests a report, which can be taken later.
    pub fn request(&self) {
        // Full: a request is pending.
        let _ = self.requests.try_send(());
    }

    /// Takes the report since the previous call.
    pub fn take_report(&self) -> Option<UtilizationReport> {
        self.report.lock().ok()?.take()
    }
}

struct UtilizationPoller {
    library: OsString,
    uuid: String,
    board: Option<NvmlBoard>,
    /// The instant of the last call; 0: none since the board was opened.
    last_query_ns: u64,
    /// The latest sample's time stamp, on the driver's clock.
    last_sample_us: u64,
}

impl UtilizationPoller {
    fn run(mut self, receiver: &Receiver<()>, report: &Mutex<Option<UtilizationReport>>) {
        // Ends when the sender is dropped.
        while receiver.recv().is_ok() {
            let new_report = self.poll();
            if let (Some(new_report), Ok(mut report)) = (new_report, report.lock()) {
                *report = Some(merge(report.take(), new_report));
            }
            thread::sleep(MIN_QUERY_INTERVAL);
        }
    }

    fn poll(&mut self) -> Option<UtilizationReport> {
        match self.query() {
            Ok(report) => report,
            Err(error) => {
                (self.board, self.last_query_ns) = (None, 0);
                Some(UtilizationReport::Unavailable(error_reason(&error)))
            }
        }
    }

    fn query(&mut self) -> Result<Option<UtilizationReport>, NvmlError> {
        if self.board.is_none() {
            self.board = Some(NvmlBoard::find(&self.library, &self.uuid)?);
        }
        let Some(board) = &self.board else { return Ok(None) };
        let device = board.device();
        if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
            return Ok(Some(UtilizationReport::Unavailable(
                "MIG is enabled: NVML reports no per-process use of a whole board".into(),
            )));
        }
        let now_ns = monotonic_ns();
        let samples = match device.process_utilization_stats(self.last_sample_us) {
            // nvml.h: no process has used the board since the last call.
            Err(NvmlError::NotFound) => Vec::new(),
            samples => samples?,
        };
        self.last_sample_us =
            samples.iter().map(|sample| sample.timestamp).fold(self.last_sample_us, u64::max);
        let since_ns = std::mem::replace(&mut self.last_query_ns, now_ns);
        if since_ns == 0 {
            // The first report covers a time of unknown length.
            return Ok(Some(UtilizationReport::Measured(now_ns, HashMap::new())));
        }
        let past_us = now_ns.saturating_sub(since_ns) / 1000;
        let mut means: HashMap<u32, (u64, u64)> = HashMap::new();
        for sample in samples.iter().take(MAX_PROCESSES) {
            let sums = means.entry(sample.pid).or_default();
            *sums = (sums.0 + u64::from(sample.sm_util.min(100)), sums.1 + 1);
        }
        let used = means.into_iter().map(|(pid, (sum, count))| (pid, sum * past_us / count));
        Ok(Some(UtilizationReport::Measured(now_ns, used.collect())))
    }
}

/// Merges a report that was not taken yet with a new one.
fn merge(before: Option<UtilizationReport>, now: UtilizationReport) -> UtilizationReport {
    match (before, now) {
        (Some(UtilizationReport::Measured(_, mut sums)), UtilizationReport::Measured(at_ns, used)) => {
            for (pid, used) in used {
                *sums.entry(pid).or_default() += used;
            }
            UtilizationReport::Measured(at_ns, sums)
        }
        (_, now) => now,
    }
}

fn error_reason(error: &NvmlError) -> String {
    match error {
        NvmlError::NotSupported => "the board's driver does not report per-process use".into(),
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            "the driver is too old to report per-process use".into()
        }
        error => format!("per-process use cannot be read: NVML: {error}"),
    }
}
