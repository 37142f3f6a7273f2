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

use super::board_connection::BoardConnection;
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
        let connection = BoardConnection::unopened(library, uuid);
        let run = move || UtilizationPoller::new(connection).run(&receiver, &shared_report);
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
    connection: BoardConnection,
    /// Why there is no report during the connection's delay.
    failure: Option<String>,
    /// The instant of the last call; 0: none since the board was opened.
    last_query_ns: u64,
    /// The latest sample's time stamp, on the driver's clock.
    last_sample_us: u64,
}

impl UtilizationPoller {
    fn new(connection: BoardConnection) -> Self {
        Self { connection, failure: None, last_query_ns: 0, last_sample_us: 0 }
    }

    fn run(mut self, receiver: &Receiver<()>, report: &Mutex<Option<UtilizationReport>>) {
        // Ends when the sender is dropped.
        while receiver.recv().is_ok() {
            let new_report = self.poll(monotonic_ns());
            if let (Some(new_report), Ok(mut report)) = (new_report, report.lock()) {
                *report = Some(merge(report.take(), new_report));
            }
            thread::sleep(MIN_QUERY_INTERVAL);
        }
    }

    /// Queries the board. After a failure the board is opened again after ever longer delays: opening it loads each of the
    /// library's symbols, and a board that does not support the query fails each time.
    fn poll(&mut self, now_ns: u64) -> Option<UtilizationReport> {
        let times = (self.last_query_ns, self.last_sample_us);
        let error = match self.connection.connect(now_ns) {
            Ok(None) => return self.failure.clone().map(UtilizationReport::Unavailable),
            // The connection's delay has begun.
            Err(error) => error,
            Ok(Some(board)) => match query(board, times, now_ns) {
                Ok(answer) => return Some(self.record(answer, now_ns)),
                Err(error) => {
                    if is_lasting(&error) {
                        self.connection.disconnect(now_ns);
                    }
                    error
                }
            },
        };
        self.last_query_ns = 0;
        let failure = self.failure.insert(error_reason(&error));
        Some(UtilizationReport::Unavailable(failure.clone()))
    }

    fn record(&mut self, answer: BoardAnswer, now_ns: u64) -> UtilizationReport {
        self.connection.reset_backoff();
        (self.last_query_ns, self.last_sample_us) = (now_ns, answer.last_sample_us);
        answer.report
    }
}

/// What a board has answered.
struct BoardAnswer {
    report: UtilizationReport,
    /// The latest sample's time stamp, on the driver's clock.
    last_sample_us: u64,
}

/// The use of a board since `times`, the instant of the last query and the time stamp of the last sample.
fn query(board: &NvmlBoard, times: (u64, u64), now_ns: u64) -> Result<BoardAnswer, NvmlError> {
    let ((since_ns, last_sample_us), device) = (times, board.device());
    if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
        let reason = "MIG is enabled: NVML reports no per-process use of a whole board".into();
        return Ok(BoardAnswer { report: UtilizationReport::Unavailable(reason), last_sample_us });
    }
    let samples = match device.process_utilization_stats(last_sample_us) {
        // nvml.h: no process has used the board since the last call.
        Err(NvmlError::NotFound) => Vec::new(),
        samples => samples?,
    };
    let last_sample_us = samples.iter().map(|sample| sample.timestamp).fold(last_sample_us, u64::max);
    if since_ns == 0 {
        // The first report covers a time of unknown length.
        let report = UtilizationReport::Measured(now_ns, HashMap::new());
        return Ok(BoardAnswer { report, last_sample_us });
    }
    let past_us = now_ns.saturating_sub(since_ns) / 1000;
    let mut means: HashMap<u32, (u64, u64)> = HashMap::new();
    for sample in samples.iter().take(MAX_PROCESSES) {
        let sums = means.entry(sample.pid).or_default();
        *sums = (sums.0 + u64::from(sample.sm_util.min(100)), sums.1 + 1);
    }
    let used = means.into_iter().map(|(pid, (sum, count))| (pid, sum * past_us / count));
    Ok(BoardAnswer { report: UtilizationReport::Measured(now_ns, used.collect()), last_sample_us })
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

/// Whether the next query of the open board would fail too. Others concern one query: a process may begin between the two calls
/// that give the number of samples and the samples.
fn is_lasting(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::GpuLost
            | NvmlError::Uninitialized
    )
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
