//! Connection to a meter: the daemon, or an embedded meter in this process.
//!
//! An explicitly named daemon that is unreachable is an error and never leads to the embedded meter, whose figures could
//! be mistaken for the daemon's.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use wattspan::config::{AcceptedOwner, Config, Flags, SourceConfig};
use wattspan::embedded::{EmbeddedMeter, MeterUse};
use wattspan_client::domain::Liveness;
use wattspan_client::protocol::{Access, DaemonInfo, MethodError};
use wattspan_client::{Client, ClientError, SocketPath};

use super::exit_status::{CliError, NO_COUNTER, USAGE};
use super::output::eprint_message;
use super::terminal::printable;

/// Horizon of an embedded meter whose caller does not wait for accounts.
const LONG_HORIZON_MS: f64 = 250.0;

/// Connection and output options of every subcommand.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection and output options")]
pub struct MeterOptions {
    /// Use the daemon at this socket only [default: $WATTSPAN_SOCKET, else the standard sockets, else measure in this
    /// process]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON; keys carry their unit, and unknown values are absent
    #[arg(long, short = 'j', global = true)]
    pub json: bool,
    /// Measure a recorded or scripted machine, in this process, instead of the real one
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "socket")]
    pub replay: Option<PathBuf>,
    /// Configuration file for measuring in this process [default: the daemon's]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "socket")]
    pub config: Option<PathBuf>,
}

impl MeterOptions {
    /// Rejects conflicting options. clap does not detect a conflict between an option before the subcommand and one
    /// after it.
    pub fn ensure_consistent(&self) -> Result<(), CliError> {
        let embedded_only = [("--replay", self.replay.is_some()), ("--config", self.config.is_some())];
        match embedded_only.into_iter().find(|(_, given)| *given && self.socket.is_some()) {
            Some((flag, _)) => Err(CliError::new(
                USAGE,
                format!(
                    "--socket selects a daemon, but {flag} applies to measuring in this process: remove one of them"
                ),
            )),
            None => Ok(()),
        }
    }
}

/// How an embedded meter starts.
#[derive(Debug, Clone, Copy, Default)]
struct EmbeddedOptions {
    horizon_ms: f64,
    meter_use: MeterUse,
}

/// A reachable meter, from which further connections can be opened.
pub struct MeterConnector {
    backend: MeterBackend,
    /// Why the meter is embedded, if that was not requested.
    fallback_notice: Option<String>,
}

enum MeterBackend {
    Daemon(SocketPath),
    Embedded(Box<EmbeddedMeter>),
}

/// The meter's description in JSON output.
#[derive(Debug, Clone, Serialize)]
pub struct MeterDescription {
    /// "daemon" or "embedded".
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Why the meter is embedded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

impl MeterConnector {
    /// Opens the meter selected by `options`, with a first connection to it.
    pub fn open(options: &MeterOptions) -> Result<(Self, Client), CliError> {
        Self::open_with(options, EmbeddedOptions::default())
    }

    fn open_with(options: &MeterOptions, embedded: EmbeddedOptions) -> Result<(Self, Client), CliError> {
        let place = options.socket.clone().map_or_else(SocketPath::from_env, SocketPath::Explicit);
        if options.replay.is_some() || options.config.is_some() {
            return Self::start_embedded(options, None, embedded);
        }
        match (Client::connect(&place), &place) {
            (Ok(client), _) => {
                Ok((MeterConnector { backend: MeterBackend::Daemon(place), fallback_notice: None }, client))
            }
            (Err(error), SocketPath::Explicit(_)) => Err(error.into()),
            (Err(error), SocketPath::Search(_)) => {
                Self::start_embedded(options, Some(fallback_notice(&error)), embedded)
            }
        }
    }

    /// Like [`Self::open`], for a run that does not wait for accounts. An embedded meter gets a long horizon: it accepts
    /// messages that a busy machine delays, and settles later.
    pub fn open_with_long_horizon(options: &MeterOptions) -> Result<(Self, Client), CliError> {
        Self::open_with(
            options,
            EmbeddedOptions { horizon_ms: LONG_HORIZON_MS, ..EmbeddedOptions::default() },
        )
    }

    /// Like [`Self::open`], for commands that start next, one in each of `runs`. An embedded meter uses no CPU time for the
    /// test of its counters: their states are those under the command's own load.
    pub fn open_for_commands(options: &MeterOptions, runs: u32) -> Result<(Self, Client), CliError> {
        let meter_use = if runs == 1 { MeterUse::OneCommand } else { MeterUse::Commands };
        Self::open_with(options, EmbeddedOptions { meter_use, ..EmbeddedOptions::default() })
    }

    /// Connects to a daemon, for queries about other programs, which an embedded meter cannot answer.
    pub fn connect_daemon(options: &MeterOptions) -> Result<Client, CliError> {
        Ok(Client::connect(&Self::daemon_socket(options)?)?)
    }

    /// The sockets of [`Self::connect_daemon`].
    pub fn daemon_socket(options: &MeterOptions) -> Result<SocketPath, CliError> {
        let embedded_only = [("--replay", options.replay.is_some()), ("--config", options.config.is_some())];
        if let Some((flag, _)) = embedded_only.into_iter().find(|(_, given)| *given) {
            let reason =
                "this command needs a daemon, because a meter in this process has no other program's spans";
            let remedy = "start a daemon: wattspand --socket PATH";
            return Err(CliError::new(
                USAGE,
                format!(
                    "{flag} has no effect here: {reason}; remove it, or {remedy} {flag} FILE, and give --socket PATH"
                ),
            ));
        }
        Ok(options.socket.clone().map_or_else(SocketPath::from_env, SocketPath::Explicit))
    }

    fn start_embedded(
        options: &MeterOptions,
        notice: Option<String>,
        EmbeddedOptions { horizon_ms, meter_use }: EmbeddedOptions,
    ) -> Result<(Self, Client), CliError> {
        let (mut config, config_notice) = load_config(options)?;
        config.horizon_ms = config.horizon_ms.max(horizon_ms);
        let notice =
            [notice, config_notice].into_iter().flatten().reduce(|one, other| format!("{one}; {other}"));
        let embedded = EmbeddedMeter::start_for(&config, meter_use).map_err(anyhow::Error::from)?;
        let client = embedded.connect()?;
        Ok((
            MeterConnector { backend: MeterBackend::Embedded(Box::new(embedded)), fallback_notice: notice },
            client,
        ))
    }

    /// Opens another connection to the same meter.
    pub fn connect(&self) -> Result<Client, ClientError> {
        match &self.backend {
            MeterBackend::Daemon(place) => Client::connect(place),
            MeterBackend::Embedded(embedded) => embedded.connect(),
        }
    }

    /// Prints why the meter is embedded, if that was not requested.
    pub fn print_fallback_notice(&self) {
        if let Some(notice) = &self.fallback_notice {
            eprint_message(notice);
        }
    }

    /// The meter's description for JSON output.
    pub fn description(&self) -> MeterDescription {
        match &self.backend {
            MeterBackend::Daemon(place) => MeterDescription {
                kind: "daemon",
                socket: Some(place.display_path().display().to_string()),
                remark: None,
            },
            MeterBackend::Embedded(_) => {
                MeterDescription { kind: "embedded", socket: None, remark: self.fallback_notice.clone() }
            }
        }
    }
}

/// The configuration of an embedded meter, and a notice about it. A replayed machine always gets the default settings,
/// so that reports are reproducible. If the system's configuration is unreadable or invalid, the defaults apply.
pub fn load_config(options: &MeterOptions) -> Result<(Config, Option<String>), CliError> {
    let flags = Flags { config: options.config.clone(), replay: options.replay.clone(), ..Flags::default() };
    if options.config.is_none() && options.replay.is_some() {
        let source = SourceConfig { replay: flags.replay, ..SourceConfig::default() };
        return Ok((Config { source, ..Config::default() }, None));
    }
    match Config::load(&flags, AcceptedOwner::for_this_process()) {
        Ok(config) => Ok((config, None)),
        Err(error) if options.config.is_none() => {
            Ok((Config::default(), Some(format!("{error}\nmeasuring with the default settings"))))
        }
        Err(error) => Err(anyhow::Error::from(error).into()),
    }
}

fn fallback_notice(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { path, .. } => format!(
            "no daemon at {}: measuring in this process (start wattspand for a meter shared by all users)",
            path.display()
        ),
        other => format!("{other}: measuring in this process"),
    }
}

/// Fails if no domain of this machine can be measured or estimated.
pub fn ensure_measurable(info: &DaemonInfo) -> Result<(), CliError> {
    let measurable = info.domains.iter().any(|domain| domain.counted && domain.liveness == Liveness::Live);
    // Without access the list of domains is empty; a later request fails with permission denied.
    if measurable || (info.domains.is_empty() && info.access < Access::Coarse) {
        return Ok(());
    }
    let absent = info.absent.iter().map(|absent| (&absent.source, &absent.reason));
    let stuck = info.domains.iter().filter_map(|domain| Some((&domain.name, domain.reason.as_ref()?)));
    let reasons: String = absent
        .chain(stuck)
        .map(|(name, reason)| format!("\n{}: {}", printable(name), printable(reason)))
        .collect();
    Err(CliError::new(NO_COUNTER, format!("no energy source is available:{reasons}")))
}

/// Fails if this user has less than this access, with the same error as a call that needs it.
pub fn ensure_access(info: &DaemonInfo, needed: Access) -> Result<(), CliError> {
    if info.access < needed {
        let needs = needed.as_str().to_owned();
        return Err(ClientError::Method(MethodError::AccessDenied { needs }).into());
    }
    Ok(())
}
