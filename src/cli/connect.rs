//! Which meter answers: the daemon, or one in this process.
//!
//! Owns the choice and the one line that tells of it. A daemon that was named and does not answer is an error, never
//! a reason to measure here: the caller would take our figures for its.

use serde::Serialize;

use super::MeterOptions;
use super::eprint_message;
use super::exit_status::{CliError, NO_COUNTER, USAGE};
use super::terminal::printable;
use crate::client::{Client, ClientError, SocketPath};
use crate::config::{AcceptedOwner, Config, Flags, SourceConfig};
use crate::domain::Liveness;
use crate::embedded::EmbeddedMeter;
use crate::protocol::{Access, DaemonInfo, MethodError};

/// How late a message may come where nobody waits for accounts.
const LONG_HORIZON_MS: f64 = 250.0;

/// A meter that answers.
pub struct MeterConnector {
    backend: MeterBackend,
    /// Said once, where a person reads it.
    fallback_notice: Option<String>,
}

enum MeterBackend {
    Daemon(SocketPath),
    Embedded(Box<EmbeddedMeter>),
}

/// How the meter is named in JSON.
#[derive(Debug, Clone, Serialize)]
pub struct MeterDescription {
    /// "daemon" or "embedded".
    pub kind: &'static str,
    /// Where the daemon was, or would have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Why it is embedded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

impl MeterConnector {
    /// The meter that `options` name, and a first connection to it.
    pub fn open(options: &MeterOptions) -> Result<(Self, Client), CliError> {
        Self::open_with_horizon(options, 0.0)
    }

    fn open_with_horizon(options: &MeterOptions, horizon_ms: f64) -> Result<(Self, Client), CliError> {
        let place = options.socket.clone().map_or_else(SocketPath::from_env, SocketPath::Explicit);
        if options.replay.is_some() || options.config.is_some() {
            return Self::start_embedded(options, None, horizon_ms);
        }
        match (Client::connect(&place), &place) {
            (Ok(client), _) => {
                Ok((MeterConnector { backend: MeterBackend::Daemon(place), fallback_notice: None }, client))
            }
            (Err(error), SocketPath::Explicit(_)) => Err(error.into()),
            (Err(error), SocketPath::Search(_)) => {
                Self::start_embedded(options, Some(fallback_notice(&error)), horizon_ms)
            }
        }
    }

    /// The meter that `options` name, for a run in which nobody waits for accounts: one in this process takes messages that
    /// come late, as they do on a busy machine, and settles later for it.
    pub fn open_with_long_horizon(options: &MeterOptions) -> Result<(Self, Client), CliError> {
        Self::open_with_horizon(options, LONG_HORIZON_MS)
    }

    /// A daemon, for questions after what other programs did; a meter in this process has no answer to them.
    pub fn connect_daemon(options: &MeterOptions) -> Result<Client, CliError> {
        let embedded_only = [("--replay", options.replay.is_some()), ("--config", options.config.is_some())];
        if let Some((flag, _)) = embedded_only.into_iter().find(|(_, given)| *given) {
            let reason =
                "this command asks a daemon, since a meter in this process knows of no other program's spans";
            let remedy = "start one: wattspand --socket PATH";
            return Err(CliError::new(
                USAGE,
                format!(
                    "{flag} has no effect here: {reason}; leave it out, or {remedy} {flag} FILE, and give --socket PATH"
                ),
            ));
        }
        let place = options.socket.clone().map_or_else(SocketPath::from_env, SocketPath::Explicit);
        Ok(Client::connect(&place)?)
    }

    fn start_embedded(
        options: &MeterOptions,
        notice: Option<String>,
        horizon_ms: f64,
    ) -> Result<(Self, Client), CliError> {
        let (mut config, config_notice) = load_config(options)?;
        config.horizon_ms = config.horizon_ms.max(horizon_ms);
        let notice =
            [notice, config_notice].into_iter().flatten().reduce(|one, other| format!("{one}; {other}"));
        let embedded = EmbeddedMeter::start(&config).map_err(anyhow::Error::from)?;
        let client = embedded.connect()?;
        Ok((
            MeterConnector { backend: MeterBackend::Embedded(Box::new(embedded)), fallback_notice: notice },
            client,
        ))
    }

    /// Another connection to the same meter.
    pub fn connect(&self) -> Result<Client, ClientError> {
        match &self.backend {
            MeterBackend::Daemon(place) => Client::connect(place),
            MeterBackend::Embedded(embedded) => embedded.connect(),
        }
    }

    /// Says in one line that the meter is embedded, where it is so by default.
    pub fn print_fallback_notice(&self) {
        if let Some(notice) = &self.fallback_notice {
            eprint_message(notice);
        }
    }

    /// How the meter is named in JSON.
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

/// The settings for measuring here, and what is to be said of them. A simulated machine is measured with the same
/// settings everywhere, else a report made with it could not be repeated. The administrator's files may be closed to
/// this user or wrong, which is no reason to measure nothing: the default settings hold then.
fn load_config(options: &MeterOptions) -> Result<(Config, Option<String>), CliError> {
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
            "no daemon at {}: measuring in this process (start wattspand for a meter that every user shares)",
            path.display()
        ),
        other => format!("{other}: measuring in this process"),
    }
}

/// An error if nothing of this machine can be measured or estimated.
pub fn ensure_measurable(info: &DaemonInfo) -> Result<(), CliError> {
    let measurable = info.domains.iter().any(|domain| domain.counted && domain.liveness == Liveness::Live);
    // Without any access the domains are not told, and whoever asks on is told so.
    if measurable || (info.domains.is_empty() && info.access < Access::Coarse) {
        return Ok(());
    }
    let absent = info.absent.iter().map(|absent| (&absent.source, &absent.reason));
    let stuck = info.domains.iter().filter_map(|domain| Some((&domain.name, domain.reason.as_ref()?)));
    let reasons: String = absent
        .chain(stuck)
        .map(|(name, reason)| format!("\n{}: {}", printable(name), printable(reason)))
        .collect();
    Err(CliError::new(NO_COUNTER, format!("there is nothing to measure here:{reasons}")))
}

/// An error if this user may open no spans, as the meter itself would say at the first one.
pub fn ensure_span_access(info: &DaemonInfo) -> Result<(), CliError> {
    if info.access < Access::Coarse {
        let needs = Access::Coarse.as_str().to_owned();
        return Err(ClientError::Method(MethodError::AccessDenied { needs }).into());
    }
    Ok(())
}
