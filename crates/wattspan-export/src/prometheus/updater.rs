//! Reads the daemon at the instants of a grid, adds to the totals, stores them, and replaces the snapshot.
//!
//! The grid is that of the multiples of the interval on the monotonic clock, so that restarts of the exporter do not give
//! further instants between them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wattspan_client::account::Balance;
use wattspan_client::clock::monotonic_now_ns;
use wattspan_client::protocol::{Access, DaemonInfo, ListSpans, MethodError, SpanAccounts};
use wattspan_client::{Client, ClientError, SocketPath};

use super::machine_totals::DaemonLife;
use super::metrics_text::LatestSnapshot;
use super::model_labels::ModelLabels;
use super::snapshot::{CurrentValues, Snapshot};
use super::span_group::SpanGroup;
use super::totals_state::TotalsState;
use crate::state::StateFile;

/// The accounts of a call; a reply has at most about 1 MB.
const ACCOUNTS_PER_CALL: i64 = 4096;

/// What to do with a state that cannot be read.
const STATE_REMEDY: &str =
    "restore it, or remove it: the totals then begin again with the accounts that are still stored";

/// The replies after which the totals are stored, so that a kill during the first read of a large database costs little.
const REPLIES_PER_STORE: usize = 64;

/// The replies at one instant, at most: with a load that is faster than this program, the values still change.
const MAX_REPLIES: usize = 4096;

/// Why no metrics can be shown.
#[derive(Debug, thiserror::Error)]
pub enum PrometheusError {
    /// A call failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {cause}", path.display())]
    File {
        /// What failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Another process exports with the same state.
    #[error("another process exports with the state {}", .0.display())]
    Locked(PathBuf),
    /// A setting is not safe or not possible.
    #[error("{0}")]
    Setting(String),
    /// The daemon is older than this program.
    #[error("the daemon does not number its accounts or state when it started; upgrade it")]
    OldDaemon,
    /// The state has positions of the other kind.
    #[error(
        "the state counts the accounts of {}, and the exporter's access is to those of {} now; restore its access, or use \
         another state file", users(*.was_all), users(!*.was_all)
    )]
    AccessChanged {
        /// The state counts those of all users.
        was_all: bool,
    },
}

fn users(all: bool) -> &'static str {
    if all { "all users" } else { "one user" }
}

/// What to read, and where to keep the totals.
#[derive(Debug)]
pub struct UpdaterSettings {
    /// The daemon.
    pub socket: SocketPath,
    /// The state file.
    pub state: PathBuf,
    /// The interval of the grid.
    pub every: Duration,
    /// The models with labels of their own.
    pub models: ModelLabels,
    /// The users whose spans may add a model.
    pub group: SpanGroup,
    /// Receives a message where something changed.
    pub log: fn(&str),
}

/// The totals, and where they come from.
#[derive(Debug)]
pub struct MetricsUpdater {
    settings: UpdaterSettings,
    state_file: StateFile,
    totals: TotalsState,
    latest: LatestSnapshot,
    /// The daemon's life and clock at the last reply, for the power since then.
    last_reply: Option<(DaemonLife, u64)>,
    last_message: Option<String>,
}

impl MetricsUpdater {
    /// Locks and reads the state; shows its totals.
    ///
    /// # Errors
    /// The state cannot be used.
    pub fn open(settings: UpdaterSettings) -> Result<Self, PrometheusError> {
        let path = &settings.state;
        let state_file = StateFile::lock(path.clone())
            .map_err(file_error("lock", path))?
            .ok_or_else(|| PrometheusError::Locked(path.clone()))?;
        let totals: TotalsState = state_file.read(STATE_REMEDY).map_err(file_error("read", path))?;
        let latest = LatestSnapshot::default();
        latest.set(Snapshot { totals: totals.clone(), ..Snapshot::default() });
        Ok(Self { settings, state_file, totals, latest, last_reply: None, last_message: None })
    }

    /// What is shown.
    pub(super) fn latest(&self) -> LatestSnapshot {
        self.latest.clone()
    }

    /// Updates at each instant of the grid, for ever.
    pub fn run(mut self) {
        let every_ns = u64::try_from(self.settings.every.as_nanos()).unwrap_or(u64::MAX);
        loop {
            let now_ns = u64::try_from(monotonic_now_ns()).unwrap_or(0);
            let rest_ns = every_ns - now_ns % every_ns;
            std::thread::sleep(Duration::from_nanos(rest_ns));
            self.update();
        }
    }

    /// Reads, stores and shows.
    fn update(&mut self) {
        self.settings.group.forget();
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let read = self.read_daemon();
        let (current, failure) = match read {
            Ok((current, failure)) => (Some(current), failure),
            Err(error) => (None, Some(error)),
        };
        let mut message = failure.map(|error| format!("{error}; this is tried again each time"));
        // What cannot be stored is not shown: it could go back.
        match self.store() {
            Ok(()) => {
                let unix_ms = u64::try_from(unix_ms).ok();
                self.latest.set(Snapshot { totals: self.totals.clone(), current, unix_ms });
            }
            Err(error) => message = Some(format!("{error}; the values do not change until it can be stored")),
        }
        if message != self.last_message {
            (self.settings.log)(
                message.as_deref().unwrap_or("the daemon is read again, and the totals are stored"),
            );
            self.last_message = message;
        }
    }

    /// The values of this instant, and why the accounts could not be read, if so.
    fn read_daemon(&mut self) -> Result<(CurrentValues, Option<PrometheusError>), PrometheusError> {
        let client = Client::connect(&self.settings.socket)?;
        let info = client.info()?;
        let started_ns = info.started_ns.ok_or(PrometheusError::OldDaemon)?;
        let life = DaemonLife { boot_id: info.boot_id.clone(), started_ns };
        let balance = match client.balance() {
            Err(ClientError::Method(MethodError::AccessDenied { .. })) => Vec::new(),
            balance => balance?,
        };
        let mut current = CurrentValues::new(&info);
        self.update_machine(&mut current, &life, &info, &balance);
        let failure = self.read_accounts(&client, info.access).err();
        current.accounts_up = failure.is_none();
        Ok((current, failure))
    }

    /// Adds the energies, and shows their mean power since the last instant of the same life.
    fn update_machine(
        &mut self,
        current: &mut CurrentValues,
        life: &DaemonLife,
        info: &DaemonInfo,
        balance: &[Balance],
    ) {
        let gained: BTreeMap<String, u64> = self.totals.machine.update(life.clone(), info, balance);
        let last = self.last_reply.replace((life.clone(), info.now_ns));
        let Some((_, last_ns)) = last.filter(|(last, _)| last == life) else { return };
        let interval_ns = info.now_ns.saturating_sub(last_ns);
        if interval_ns == 0 || gained.is_empty() {
            return;
        }
        let watts = |uj: u64| uj as f64 * 1e3 / interval_ns as f64;
        let domains = &self.totals.machine.domains;
        let is_counted = |name: &String| domains.get(name).is_some_and(|totals| totals.counted);
        let host_uj = gained
            .iter()
            .filter(|(name, _)| is_counted(name))
            .fold(0, |sum: u64, (_, uj)| sum.saturating_add(*uj));
        current.host_power_w = Some(watts(host_uj));
        current.power_w = gained.into_iter().map(|(name, uj)| (name, watts(uj))).collect();
    }

    /// Adds all accounts that are stored and not in the totals.
    fn read_accounts(&mut self, client: &Client, access: Access) -> Result<(), PrometheusError> {
        let all_users = access >= Access::Telemetry;
        if let Some(was_all) = self.totals.all_users.filter(|was_all| *was_all != all_users) {
            return Err(PrometheusError::AccessChanged { was_all });
        }
        for replies in 1..=MAX_REPLIES {
            let call = ListSpans {
                after: Some(i64::try_from(self.totals.after).unwrap_or(i64::MAX)),
                database: self.totals.database.clone(),
                limit: Some(ACCOUNTS_PER_CALL),
                ..ListSpans::default()
            };
            let reply = match client.call(call) {
                Err(ClientError::Method(MethodError::InvalidValue { field, .. }))
                    if field == "database" && self.totals.database.is_some() =>
                {
                    // What the last database has not given is lost with it.
                    self.totals.begin_database();
                    (self.settings.log)(
                        "the daemon has another database; its accounts are added from the first one on",
                    );
                    continue;
                }
                reply => reply?,
            };
            self.totals.all_users = Some(all_users);
            if self.add_reply(reply)? {
                return Ok(());
            }
            if replies.is_multiple_of(REPLIES_PER_STORE) {
                self.store()?;
            }
        }
        Ok(())
    }

    /// Adds a reply; returns whether it was the last one.
    fn add_reply(&mut self, reply: SpanAccounts) -> Result<bool, PrometheusError> {
        let SpanAccounts { accounts, after, at_end, gaps, database, .. } = reply;
        let (Some(after), Some(at_end), Some(database)) = (after, at_end, database) else {
            return Err(PrometheusError::OldDaemon);
        };
        for account in &accounts {
            self.totals.add(account, &self.settings.models, &mut self.settings.group);
        }
        for gap in gaps.iter().flatten() {
            self.totals.add_gap(gap);
        }
        (self.totals.after, self.totals.database) = (after, Some(database));
        Ok(at_end)
    }

    fn store(&self) -> Result<(), PrometheusError> {
        self.state_file.write(&self.totals).map_err(file_error("write", self.state_file.path()))
    }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrometheusError {
    let path = path.to_owned();
    move |cause| PrometheusError::File { action, path, cause }
}
