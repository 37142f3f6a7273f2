//! `wattspan export prometheus`: serves metrics of the daemon over HTTP.

use std::env;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use wattspan_client::SocketPath;
use wattspan_export::prometheus::{
    HttpAccess, MAX_MODELS, MetricsAddress, MetricsServer, MetricsUpdater, ModelLabels, PrometheusError,
    SpanGroup, TlsSettings, Token, UpdaterSettings,
};
use wattspan_system::groups::lookup_gid;

use super::connect::{MeterConnector, MeterOptions};
use super::exit_status::{CliError, FAILURE, OK, USAGE};
use super::export_options::parse_interval;
use super::listen_group::listen_group_gid;
use super::output::eprint_message;
use super::termination::TerminationSignals;

/// The group that opens the Unix socket, if it exists and this user is a member: it sees all accounts anyway.
const DEFAULT_SOCKET_GROUP: &str = "wattspan-telemetry";

/// The group with span access, unless the daemon's configuration names another.
const DEFAULT_SPAN_GROUP: &str = "wattspan";

/// The last section of the help.
pub const SECURITY_HELP: &str = "\
Energy readings reveal what others compute. The values change on one grid of
--every, however often they are read, and no label names a user, a process or a
span. A Unix socket is opened by its owner and its group. A TCP address, also on
loopback, needs a bearer token or a TLS client certificate; beyond loopback it
needs TLS. The metrics show what this user may read from the daemon: the spans
of all users with telemetry access, its own otherwise.";

/// Arguments of `wattspan export prometheus`.
#[derive(Debug, clap::Args)]
pub struct PrometheusArgs {
    /// Listen on unix:PATH or ADDRESS:PORT [default: metrics.sock in $RUNTIME_DIRECTORY, else wattspan-metrics.sock in
    /// $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<MetricsAddress>,
    /// Group that may connect to the Unix socket, besides its owner [default: wattspan-telemetry, if this user is a
    /// member]
    #[arg(long, value_name = "GROUP")]
    listen_group: Option<String>,
    /// File with the bearer token that a TCP client sends, at least 16 characters
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate chain of the server, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the server, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificates of the authorities that sign those of clients, in PEM; a client without one is refused
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Name of this server in the Host header, besides its address; repeatable
    #[arg(long = "host-name", value_name = "NAME")]
    host_names: Vec<String>,
    /// Interval at which the values change, at least 1s
    #[arg(long, value_name = "INTERVAL", value_parser = parse_interval, default_value = "10s")]
    every: Duration,
    /// Show this model by its name, and others as _other; repeatable, at most 64 [default: the first 64 models of root,
    /// this user and members of --model-group]
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// Group whose members' spans may add a model
    #[arg(long, value_name = "GROUP", default_value = DEFAULT_SPAN_GROUP)]
    model_group: String,
    /// File with the totals, which continue over restarts [default: prometheus.json in $STATE_DIRECTORY, else in
    /// $XDG_STATE_HOME/wattspan or ~/.local/state/wattspan]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

/// Runs `wattspan export prometheus` until a signal stops it.
pub fn export_prometheus(options: &MeterOptions, args: &PrometheusArgs) -> Result<u8, CliError> {
    // The error of a wrong option or an unreachable daemon is that of the other commands.
    drop(MeterConnector::connect_daemon(options)?);
    let group = SpanGroup::lookup(&args.model_group);
    if !group.exists() && args.model_group != DEFAULT_SPAN_GROUP {
        return Err(CliError::new(
            USAGE,
            format!("--model-group {}: no such group on this machine", args.model_group),
        ));
    }
    let address = address(args)?;
    let updater = MetricsUpdater::open(UpdaterSettings {
        socket: options.socket.clone().map_or_else(SocketPath::from_env, SocketPath::Explicit),
        state: state_file(args)?,
        every: args.every,
        models: model_labels(args)?,
        group,
        log: eprint_message,
    })
    .map_err(to_cli_error)?;
    let access = HttpAccess { token: token(args)?, host_names: args.host_names.clone() };
    let server =
        MetricsServer::bind(&address, listen_gid(args, &address)?, access, tls(args).as_ref(), &updater)
            .map_err(to_cli_error)?;
    eprint_message(&format!("serving metrics at {}", server.address()?));
    thread::Builder::new().name("metrics".into()).spawn(|| updater.run())?;
    server.serve(shutdown_signal())?;
    Ok(OK)
}

fn address(args: &PrometheusArgs) -> Result<MetricsAddress, CliError> {
    if let Some(address) = &args.listen {
        return Ok(address.clone());
    }
    let places = [("RUNTIME_DIRECTORY", "metrics.sock"), ("XDG_RUNTIME_DIR", "wattspan-metrics.sock")];
    let path =
        places.into_iter().find_map(|(variable, name)| directory(variable).map(|found| found.join(name)));
    path.map(MetricsAddress::Unix).ok_or_else(|| {
        CliError::new(USAGE, "neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set; give --listen unix:PATH")
    })
}

/// The first directory in a variable of systemd.exec(5) or the XDG base directories.
fn directory(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable).filter(|value| !value.is_empty())?;
    env::split_paths(&value).next()
}

fn state_file(args: &PrometheusArgs) -> Result<PathBuf, CliError> {
    if let Some(path) = &args.state {
        return Ok(path.clone());
    }
    if let Some(found) = directory("STATE_DIRECTORY") {
        return Ok(found.join("prometheus.json"));
    }
    let home = directory("HOME").map(|home| home.join(".local/state"));
    let place = directory("XDG_STATE_HOME").or(home).map(|place| place.join("wattspan"));
    let place = place.ok_or_else(|| CliError::new(USAGE, "HOME is not set; give --state FILE"))?;
    wattspan_system::private_file::create_dir_all(&place)?;
    Ok(place.join("prometheus.json"))
}

fn model_labels(args: &PrometheusArgs) -> Result<ModelLabels, CliError> {
    match args.models.len() {
        0 => Ok(ModelLabels::First),
        1..=MAX_MODELS => Ok(ModelLabels::Listed(args.models.iter().cloned().collect())),
        count => Err(CliError::new(
            USAGE,
            format!("--model is given {count} times; at most {MAX_MODELS} are shown"),
        )),
    }
}

fn token(args: &PrometheusArgs) -> Result<Option<Token>, CliError> {
    let Some(path) = &args.token_file else { return Ok(None) };
    let failed = |error| CliError::new(FAILURE, format!("--token-file {}: {error}", path.display()));
    Token::read(path).map(Some).map_err(failed)
}

fn tls(args: &PrometheusArgs) -> Option<TlsSettings> {
    let (certificate, key) = args.tls_cert.clone().zip(args.tls_key.clone())?;
    Some(TlsSettings { certificate, key, client_authorities: args.tls_client_ca.clone() })
}

/// The ID of the group that may connect to the Unix socket. Only the default group may be missing.
fn listen_gid(args: &PrometheusArgs, address: &MetricsAddress) -> Result<Option<u32>, CliError> {
    match &args.listen_group {
        Some(name) => listen_group_gid(name, matches!(address, MetricsAddress::Tcp(_))).map(Some),
        None => Ok(lookup_gid(DEFAULT_SOCKET_GROUP).filter(|gid| is_own_group(*gid))),
    }
}

fn is_own_group(gid: u32) -> bool {
    let groups = rustix::process::getgroups().unwrap_or_default();
    rustix::process::getegid().as_raw() == gid || groups.iter().any(|group| group.as_raw() == gid)
}

/// Completes at the first SIGINT or SIGTERM.
async fn shutdown_signal() {
    match TerminationSignals::register() {
        Ok(mut signals) => signals.next().await,
        // Without handlers the signals keep their default action.
        Err(_) => std::future::pending().await,
    }
}

fn to_cli_error(error: PrometheusError) -> CliError {
    match error {
        PrometheusError::Client(error) => error.into(),
        PrometheusError::Setting(message) => CliError::new(USAGE, message),
        other => CliError::new(FAILURE, other),
    }
}
