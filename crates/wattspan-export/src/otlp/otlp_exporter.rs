//! Sends what is stored, batch by batch, and remembers on disk up to which number.

use std::io;
use std::iter::Peekable;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wattspan_client::account::Gap;
use wattspan_client::clock;
use wattspan_client::protocol::{Access, ListSpans, MethodError, SpanAccounts};
use wattspan_client::{Client, ClientError};

use super::backoff::Backoff;
use super::collector::{Answer, Collector, CollectorSettings};
use super::metrics::{self, EnergyStart};
use super::spans::{self, EncodedSpan};
use crate::exporter::{ExportError, create_directory, describe_gap, file_error};
use crate::state::StateFile;

/// The accounts of a call, and the spans of a request, at most.
const SPANS_PER_REQUEST: i64 = 512;

/// The bytes of a request, about; a longer span is sent alone. Collectors accept 4 MB or more.
const BYTES_PER_REQUEST: usize = 1 << 20;

/// What to do with a state that cannot be read.
const STATE_REMEDY: &str =
    "restore it, or remove it: all accounts that are still stored are then sent again, with the same IDs";

const TRACES: &str = "/v1/traces";
const METRICS: &str = "/v1/metrics";

/// A kind of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpSignal {
    /// Accounts as spans.
    Traces,
    /// Energy and power.
    Metrics,
}

/// What to send, and where to.
#[derive(Debug, Clone)]
pub struct OtlpSettings {
    /// Where the requests go.
    pub collector: CollectorSettings,
    /// The state file.
    pub state: PathBuf,
    /// The host in the resource.
    pub host: String,
    /// The attributes of accounts that are sent.
    pub attributes: Vec<String>,
    /// What is sent.
    pub signals: Vec<OtlpSignal>,
    /// The times before a request is repeated.
    pub backoff: Backoff,
    /// How long a request is repeated; `None`: for ever.
    pub retry_limit: Option<Duration>,
}

/// What a run has sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtlpSummary {
    /// The accounts that the collector has accepted.
    pub accounts: u64,
    /// The accounts that it has rejected, and that are not sent again.
    pub rejected: u64,
}

/// Why a run ended early; the next one continues with the same account.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The daemon or a file.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The collector cannot be used at all.
    #[error("cannot prepare the connection to the collector: {0}")]
    Setup(#[source] io::Error),
    /// Repetition is useless.
    #[error("{endpoint} refuses the data: {reason}; correct it and export again: nothing is skipped")]
    Refused {
        /// The URL.
        endpoint: String,
        /// The status, or what is wrong.
        reason: String,
    },
    /// The collector did not accept the data in time.
    #[error("{endpoint} is unavailable: {reason}; export again: nothing is skipped")]
    Unavailable {
        /// The URL.
        endpoint: String,
        /// The last failure.
        reason: String,
    },
}

/// What is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtlpState {
    /// The UUID of the database; absent before the first account.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    database: Option<String>,
    /// All accounts up to this number are sent, or rejected.
    #[serde(default)]
    after: u64,
    /// The accounts that the collector has rejected so far.
    #[serde(default)]
    rejected: u64,
    /// Whether the collector has ever accepted an account.
    #[serde(default)]
    any_accepted: bool,
    /// The start of the sums of energy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    energy: Option<EnergyStart>,
}

/// An export that continues where the last one with the same state file ended.
#[derive(Debug)]
pub struct OtlpExporter {
    settings: OtlpSettings,
    collector: Collector,
    state_file: StateFile,
    state: OtlpState,
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Delivery {
    accepted: u64,
    rejected: u64,
    /// What the collector said about the rejected ones.
    reason: Option<String>,
}

impl OtlpExporter {
    /// Locks the state file and reads it.
    ///
    /// # Errors
    /// A file cannot be used, another process exports with this state, or there are no certificates for TLS.
    pub fn open(settings: OtlpSettings) -> Result<Self, OtlpError> {
        let path = settings.state.clone();
        create_directory(path.parent().unwrap_or(&path))?;
        let state_file = StateFile::lock(path.clone())
            .map_err(file_error("lock", &path))?
            .ok_or(ExportError::Locked(path.clone()))?;
        let state = state_file.read(STATE_REMEDY).map_err(file_error("read", &path))?;
        let collector = Collector::new(settings.collector.clone()).map_err(OtlpError::Setup)?;
        Ok(Self { settings, collector, state_file, state })
    }

    /// The accounts that the collector has rejected since the state file was new.
    pub fn rejected(&self) -> u64 {
        self.state.rejected
    }

    /// Sends all accounts that are stored now. `report` gets a message for each failure that is repeated or skipped, and for
    /// each run of numbers without an account and another database, before the state file is beyond it.
    ///
    /// # Errors
    /// A call failed, or the collector does not take the data. The next run continues.
    pub fn send_accounts(
        &mut self,
        client: &Client,
        report: &mut dyn FnMut(&str),
    ) -> Result<OtlpSummary, OtlpError> {
        check_access(client)?;
        self.send_listed(&mut |call| client.call(call), report)
    }

    /// [`Self::send_accounts`] with any source of accounts.
    fn send_listed(
        &mut self,
        list: &mut dyn FnMut(ListSpans) -> Result<SpanAccounts, ClientError>,
        report: &mut dyn FnMut(&str),
    ) -> Result<OtlpSummary, OtlpError> {
        let mut summary = OtlpSummary::default();
        loop {
            let reply = list(ListSpans {
                after: Some(i64::try_from(self.state.after).unwrap_or(i64::MAX)),
                database: self.state.database.clone(),
                limit: Some(SPANS_PER_REQUEST),
                ..ListSpans::default()
            });
            let reply = match reply {
                Err(ClientError::Method(MethodError::InvalidValue { field, .. }))
                    if field == "database" && self.state.database.is_some() =>
                {
                    // What the last database has not given is lost with it.
                    report("the daemon has another database; its accounts are sent from the first one on");
                    self.save(OtlpState { database: None, after: 0, ..self.state.clone() })?;
                    continue;
                }
                reply => reply.map_err(ExportError::Client)?,
            };
            if self.send_reply(reply, &mut summary, report)? {
                return Ok(summary);
            }
        }
    }

    /// Sends the accounts of a reply; returns whether they were the last ones.
    fn send_reply(
        &mut self,
        reply: SpanAccounts,
        summary: &mut OtlpSummary,
        report: &mut dyn FnMut(&str),
    ) -> Result<bool, OtlpError> {
        let SpanAccounts { accounts, after, at_end, gaps, database, .. } = reply;
        let (Some(after), Some(at_end), Some(database)) = (after, at_end, database) else {
            return Err(ExportError::NoNumbers.into());
        };
        let allowed = &self.settings.attributes;
        let mut encoded = Vec::with_capacity(accounts.len());
        for account in accounts {
            let number = account.number.ok_or(ExportError::NoNumbers)?;
            let account = spans::without_others(account, allowed);
            encoded.push(EncodedSpan::new(&account, &database, number, allowed));
        }
        let mut gaps = gaps.into_iter().flatten().peekable();
        for batch in batches(&encoded) {
            let delivery = self.deliver(batch, report)?;
            if delivery.rejected > 0 {
                let reason = delivery.reason.as_deref().unwrap_or("without a reason");
                report(&format!(
                    "accounts that are rejected and not sent again: {} ({reason})",
                    delivery.rejected
                ));
            }
            summary.accounts += delivery.accepted;
            summary.rejected += delivery.rejected;
            let sent = batch.last().map_or(self.state.after, |span| span.number);
            let rejected = self.state.rejected.saturating_add(delivery.rejected);
            report_gaps(&mut gaps, sent, report);
            let any_accepted = self.state.any_accepted || delivery.accepted > 0;
            self.save(OtlpState {
                database: Some(database.clone()),
                after: sent,
                rejected,
                any_accepted,
                ..self.state.clone()
            })?;
        }
        report_gaps(&mut gaps, u64::MAX, report);
        self.save(OtlpState { database: Some(database), after, ..self.state.clone() })?;
        Ok(at_end)
    }

    /// Sends a batch until the collector has it. Invalid data is halved, to find the spans that are invalid.
    fn deliver(&self, batch: &[EncodedSpan], report: &mut dyn FnMut(&str)) -> Result<Delivery, OtlpError> {
        let mut total = Delivery::default();
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            match self.post(TRACES, &|| spans::request_body(part, &self.settings.host), report)? {
                Answer::Accepted { rejected, message } => {
                    let rejected = rejected.min(part.len() as u64);
                    total.accepted += part.len() as u64 - rejected;
                    total.rejected += rejected;
                    match message {
                        Some(message) if rejected > 0 => total.reason = Some(message),
                        Some(message) => report(&format!("the collector warns: {message}")),
                        None => {}
                    }
                }
                Answer::InvalidData { reason } if part.len() == 1 => {
                    total.rejected += 1;
                    total.reason = Some(reason);
                }
                _ => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        if total.accepted == 0 && !self.state.any_accepted {
            // A collector that has never taken a span does not take this format, rather than these spans.
            let reason = total.reason.unwrap_or_else(|| "it rejects each span".into());
            return Err(self.refused(reason));
        }
        Ok(total)
    }

    /// Sends a body until the collector accepts it, or finds it invalid.
    fn post(
        &self,
        path: &'static str,
        body: &dyn Fn() -> Vec<u8>,
        report: &mut dyn FnMut(&str),
    ) -> Result<Answer, OtlpError> {
        let since = Instant::now();
        let mut failures = 0;
        loop {
            match self.collector.post(path, body()) {
                Answer::Retry { reason, after } => {
                    failures += 1;
                    let delay = self.settings.backoff.delay(failures, after);
                    if self.settings.retry_limit.is_some_and(|limit| since.elapsed() + delay > limit) {
                        let endpoint = self.collector.endpoint().to_string();
                        return Err(OtlpError::Unavailable { endpoint, reason });
                    }
                    report(&format!(
                        "{}: {reason}; it is tried again in {:.1} s",
                        self.collector.endpoint(),
                        delay.as_secs_f64()
                    ));
                    std::thread::sleep(delay);
                }
                Answer::Refused { reason } => return Err(self.refused(format!("{path}: {reason}"))),
                answer => return Ok(answer),
            }
        }
    }

    fn refused(&self, reason: String) -> OtlpError {
        OtlpError::Refused { endpoint: self.collector.endpoint().to_string(), reason }
    }

    /// Sends energy and power as of now, once: the next point has the energy of one that was lost.
    ///
    /// # Errors
    /// A call failed, or the collector refuses the data.
    pub fn send_metrics(&mut self, client: &Client, report: &mut dyn FnMut(&str)) -> Result<(), OtlpError> {
        check_access(client)?;
        let info = client.info().map_err(ExportError::Client)?;
        let now_unix_ns = clock::unix_ns();
        let start = EnergyStart::update(self.state.energy.as_ref(), &info, now_unix_ns)
            .ok_or(ExportError::NoNumbers)?;
        self.save(OtlpState { energy: Some(start.clone()), ..self.state.clone() })?;
        let body = metrics::request_body(&info, &start, now_unix_ns, &self.settings.host);
        match self.collector.post(METRICS, body) {
            Answer::Accepted { rejected: 0, message: None } => Ok(()),
            Answer::Accepted { rejected, message } => {
                let message = message.unwrap_or_default();
                report(&format!("the collector rejects {rejected} points of the metrics: {message}"));
                Ok(())
            }
            Answer::Retry { reason, .. } => {
                report(&format!("{}: {reason}; the metrics are sent again later", self.collector.endpoint()));
                Ok(())
            }
            Answer::InvalidData { reason } | Answer::Refused { reason } => {
                Err(self.refused(format!("{METRICS}: {reason}")))
            }
        }
    }

    /// Whether this kind of data is sent.
    pub fn sends(&self, signal: OtlpSignal) -> bool {
        self.settings.signals.contains(&signal)
    }

    fn save(&mut self, state: OtlpState) -> Result<(), OtlpError> {
        if state != self.state {
            self.state_file.write(&state).map_err(file_error("write", self.state_file.path()))?;
            self.state = state;
        }
        Ok(())
    }
}

/// Reports the gaps that begin up to a number.
fn report_gaps(gaps: &mut Peekable<impl Iterator<Item = Gap>>, last: u64, report: &mut dyn FnMut(&str)) {
    while let Some(gap) = gaps.next_if(|gap| gap.first.is_none_or(|first| first <= last)) {
        report(&describe_gap(&gap));
    }
}

fn check_access(client: &Client) -> Result<(), OtlpError> {
    if client.info().map_err(ExportError::Client)?.access < Access::Telemetry {
        let needs = Access::Telemetry.as_str().to_owned();
        return Err(ExportError::Client(ClientError::Method(MethodError::AccessDenied { needs })).into());
    }
    Ok(())
}

/// Splits spans into batches of at most [`BYTES_PER_REQUEST`], or of one span.
fn batches(spans: &[EncodedSpan]) -> impl Iterator<Item = &[EncodedSpan]> {
    let mut rest = spans;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |span: &&EncodedSpan| {
            bytes += span.json.len() + 1;
            bytes <= BYTES_PER_REQUEST
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, after) = rest.split_at(count);
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
#[path = "otlp_exporter_tests.rs"]
mod tests;
