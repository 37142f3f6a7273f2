//! Entry point of the daemon. Starts, in order: configuration, socket, sources, confinement, samplers, store, service.
//!
//! Contains only the wiring and the exit status.

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use libc::{SIGHUP, SIGINT, SIGTERM};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};
use wattspan_client::protocol::ProcessPrivileges;
use wattspan_system::private_file;
use wattspan_system::unix_socket::{self, ListenError, SocketFile, SocketPermissions};

use crate::clock::{self, Clock};
use crate::config::{self, AcceptedOwner, Config, Flags};
use crate::dbus;
use crate::privileges::{self, RequiredPrivileges};
use crate::sampler;
use crate::sampler::recording::Recording;
use crate::server::{ForwardedReceiver, ServerSockets};
use crate::service::{ConfigLoader, DaemonControl, Service, ServiceBuilder, StartupSettings};
use crate::sources::powercap::NAME as POWERCAP;
use crate::sources::{self, Inventory};
use crate::store::{self, Store};
use crate::systemd::activation_ffi;
use crate::systemd::journal::{
    DBUS_STATE, EXCESS_PRIVILEGES, FAILED, LogEntry, LogEvent, RECORDING_ENDED, STARTED, STOPPED,
    STORE_STATE, UNKNOWN_GROUP, log,
};
use crate::systemd::notify::ServiceManager;

/// Entry point of `wattspand`.
pub fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            log_event(&FAILED, &format!("{cause:#}"));
            ExitCode::from(exit_status(&cause))
        }
    }
}

/// Runs the daemon. A start without resources under a service manager ends only after a wait.
fn run(flags: &Flags) -> Result<()> {
    let mut stop = None;
    let Err(cause) = serve(flags, &mut stop) else { return Ok(()) };
    // Not by the connection to the service manager, which takes a descriptor.
    let is_managed = std::env::var_os("NOTIFY_SOCKET").is_some();
    if is_managed && is_resource_shortage(&cause) && wait_for_resources(&cause, stop.as_ref()) {
        return Ok(());
    }
    Err(cause)
}

/// Starts and serves. `stop`: the stream of signals that end the daemon, until the server has it.
fn serve(flags: &Flags, stop: &mut Option<UnixStream>) -> Result<()> {
    let owner = AcceptedOwner::for_this_process();
    let config = Config::load(flags, owner)?;
    if flags.check {
        return print_configuration(&config);
    }
    raise_descriptor_limit(config.limits.connections + dbus::MAX_DESCRIPTORS);
    *stop = Some(signal_stream(&[SIGTERM, SIGINT]).context("cannot listen for signals")?);
    let reload = signal_stream(&[SIGHUP]).context("cannot listen for signals")?;
    let manager = ServiceManager::from_environment();
    let StartedDaemon { service, listeners, socket_file, recording, bus } =
        start(flags, owner, config, manager)?;
    let (bus, forwarded) = bus.unzip();
    let sockets = ServerSockets {
        listeners,
        forwarded,
        stop: stop.take(),
        reload: Some(reload),
        ..ServerSockets::default()
    };
    crate::server::serve(service, sockets).context("the poller failed")?;
    if let Some(bus) = bus {
        bus.shut_down();
    }
    drop(socket_file);
    log_event(&STOPPED, "stopped");
    recording.map_or(Ok(()), finish_recording)
}

/// A daemon whose parts run, before it serves clients.
struct StartedDaemon {
    service: Service,
    listeners: Vec<UnixListener>,
    /// `None` where the service manager passed the sockets.
    socket_file: Option<SocketFile>,
    recording: Option<(Recording, File)>,
    bus: Option<(dbus::DbusServer, ForwardedReceiver)>,
}

fn start(
    flags: &Flags,
    owner: AcceptedOwner,
    config: Config,
    manager: ServiceManager,
) -> Result<StartedDaemon> {
    let plan = StartupSettings::from_config(&config);
    let permissions = plan.service.policy.socket_permissions();
    // The steps that need privileges: the socket's path, the sources, the recording's file.
    let (listeners, socket_file) = listen(&config, permissions)?;
    let inventory =
        sources::discover_within(&plan.sources, &Clock::Machine, crate::service::DAEMON_DISCOVERY_TIMEOUT);
    let out = flags.record.as_deref().map(|file| (file, create_recording(file)));
    let confinement = drop_privileges(&config, &inventory, &manager);
    let is_short_of_resources = inventory.is_short_of_resources;
    let mut builder = ServiceBuilder::start(plan, inventory, Clock::Machine, log).context("cannot start")?;
    ensure_sources(&builder, is_short_of_resources)?;
    let recording = out.map(|(file, out)| start_recording(file, out, &mut builder)).transpose()?;
    let is_manual_root = rustix::process::geteuid().is_root() && !manager.is_present();
    let control = DaemonControl::new(config.clone(), config_loader(flags.clone(), owner), manager, log);
    let service = with_store(&config, builder)
        .context("cannot start the ledger on disk")?
        .daemon(control, confinement)
        .build()
        .context("cannot start")?;
    log_start(&service.domain_names(), &listeners, socket_file.as_ref());
    if is_manual_root {
        log_event(&EXCESS_PRIVILEGES, MANUAL_ROOT_NOTICE);
    }
    log_missing_groups(&config);
    let bus = dbus::start(&config, log_bus).context("cannot start the D-Bus thread")?;
    Ok(StartedDaemon { service, listeners, socket_file, recording, bus })
}

/// How long a start that lacks memory, threads or descriptors goes on before it fails. systemd gives up after five starts
/// within a minute (`StartLimitBurst=`), and only version 254 and later can wait longer after each (`RestartSteps=`).
pub const SHORTAGE_WAIT: Duration = Duration::from_millis(12_500);

/// Waits until there may be resources again. Returns whether the daemon was stopped meanwhile. Without the stream, whose
/// creation may have failed, a signal has its default action.
fn wait_for_resources(cause: &anyhow::Error, stop: Option<&UnixStream>) -> bool {
    let message = "waits 12 s, so that the service manager tries again";
    log_event(&FAILED, &format!("{cause:#}: no memory, thread or descriptor is left: {message}"));
    let Some(stop) = stop else {
        std::thread::sleep(SHORTAGE_WAIT);
        return false;
    };
    let until = Instant::now() + SHORTAGE_WAIT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut sockets = [PollFd::new(stop, PollFlags::IN)];
        match poll(&mut sockets, Timespec::try_from(left).ok().as_ref()) {
            // Another signal, such as that of a reload.
            Err(Errno::INTR) => {}
            ended => return ended.is_ok_and(|count| count > 0),
        }
    }
}

/// Prints the configuration that applies, and how long the store keeps accounts with it.
fn print_configuration(config: &Config) -> Result<()> {
    print!("{}", toml::to_string(config).context("cannot print the configuration")?);
    if let Some(settings) = store_settings(config) {
        print!("\n# {}\n", store::describe_retention(&settings));
    }
    Ok(())
}

fn log_start(domain_names: &[&str], listeners: &[UnixListener], socket_file: Option<&SocketFile>) {
    // Our own socket was renamed into place, and the kernel reports only its original path.
    let addresses =
        socket_file.map_or_else(|| listener_paths(listeners), |own| own.path().display().to_string());
    log_event(&STARTED, &format!("measures {}, listens on {addresses}", domain_names.join(", ")));
}

fn log_missing_groups(config: &Config) {
    if config::is_system_daemon() {
        config::missing_group_warnings(&config.access)
            .iter()
            .for_each(|missing| log_event(&UNKNOWN_GROUP, missing));
    }
}

/// Starts the store, if it is enabled and has a directory.
fn with_store(config: &Config, builder: ServiceBuilder) -> std::io::Result<ServiceBuilder> {
    if let Some(settings) = store_settings(config) {
        return Ok(builder.store(Store::start(settings, log_store)?, log_store));
    }
    if is_store_enabled(config) {
        log_store("accounts are not stored: no state directory; set --state-dir or HOME");
    }
    Ok(builder)
}

/// Whether the store is enabled. Accounts of a simulated machine are stored only in an explicit directory.
fn is_store_enabled(config: &Config) -> bool {
    config.ledger.keep && (config.source.replay.is_none() || config.state_dir.is_some())
}

/// With `ledger.sync = "normal"`, how much a power cut may lose, besides what the disk needs for a sync.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The settings of the store; `None` if it is disabled or has no directory.
fn store_settings(config: &Config) -> Option<store::StoreSettings> {
    let disk = &config.ledger;
    Some(store::StoreSettings {
        directory: state_dir(config).filter(|_| is_store_enabled(config))?,
        max_age: Duration::from_secs_f64(disk.days * 86_400.0),
        max_bytes: disk.megabytes * 1_000_000,
        max_waiting_bytes: usize::try_from(disk.waiting_megabytes * 1_000_000).unwrap_or(usize::MAX),
        sync: match disk.sync {
            config::SyncConfig::Off => store::SyncMode::Off,
            config::SyncConfig::Normal => store::SyncMode::Normal,
            config::SyncConfig::Full => store::SyncMode::Full,
        },
        sync_interval: SYNC_INTERVAL,
        boot_id: clock::boot_id(),
    })
}

/// The state directory: as configured, else the system's or the user's default.
fn state_dir(config: &Config) -> Option<PathBuf> {
    config.state_dir.clone().or_else(config::default_state_dir)
}

/// Warning for a start as root without a service manager.
const MANUAL_ROOT_NOTICE: &str = "started as root without a service manager: privileges dropped; \
                                  `systemctl start wattspand` runs it as its own user";

/// The sockets passed by the service manager, else a new one, which is removed when the second value is dropped.
fn listen(
    config: &Config,
    permissions: SocketPermissions,
) -> Result<(Vec<UnixListener>, Option<SocketFile>)> {
    let mut listeners = activation_ffi::listeners()?;
    listeners.extend(crate::launchd::listeners().context("launchd passed no socket")?);
    if !listeners.is_empty() {
        return Ok((listeners, None));
    }
    let (listener, socket_file) = unix_socket::bind(&socket_path(config)?, permissions)?;
    Ok((vec![listener], Some(socket_file)))
}

/// The paths of the listeners, for the log.
fn listener_paths(listeners: &[UnixListener]) -> String {
    let path =
        |listener: &UnixListener| Some(listener.local_addr().ok()?.as_pathname()?.display().to_string());
    let paths: Vec<String> = listeners
        .iter()
        .map(|listener| path(listener).unwrap_or_else(|| "a socket without a path".into()))
        .collect();
    paths.join(", ")
}

/// Drops the privileges that are not needed after the start.
fn drop_privileges(config: &Config, inventory: &Inventory, manager: &ServiceManager) -> ProcessPrivileges {
    let root = rustix::process::geteuid().is_root();
    let state_dir = state_dir(config).unwrap_or_default();
    privileges::drop_privileges(&RequiredPrivileges {
        powercap: inventory.opened.iter().any(|opened| opened.name == POWERCAP)
            || inventory.starting.iter().any(|starting| starting.names().iter().any(|name| name == POWERCAP)),
        state_dir: &state_dir,
        serves_other_users: root || manager.is_present(),
        realtime_priority: sampler::REALTIME_PRIORITY.unsigned_abs().into(),
    })
}

/// Reloads the configuration from the same files and flags.
fn config_loader(flags: Flags, owner: AcceptedOwner) -> ConfigLoader {
    Box::new(move || {
        let config = Config::load(&flags, owner)?;
        raise_descriptor_limit(config.limits.connections + dbus::MAX_DESCRIPTORS);
        Ok(config)
    })
}

/// Creates the file of a recording, with its name on disk.
fn create_recording(path: &Path) -> std::io::Result<File> {
    let file = private_file::create(path)?;
    if file.metadata()?.is_file() {
        // A directory that this user cannot read cannot be synced either.
        let _ = path.parent().map_or(Ok(()), private_file::sync_directory);
    }
    Ok(file)
}

/// Records the readings, at the full rate, to a file for `--replay`.
fn start_recording(
    file: &Path,
    out: std::io::Result<File>,
    builder: &mut ServiceBuilder,
) -> Result<(Recording, File)> {
    let context = || format!("cannot record to {}", file.display());
    let out = out.with_context(context)?;
    let recorded_file = out.try_clone().with_context(context)?;
    Ok((builder.start_recording(out).with_context(context)?, recorded_file))
}

/// Ends the recording. What is then said to be recorded is on disk.
fn finish_recording((recording, file): (Recording, File)) -> Result<()> {
    let recorded = recording.finish().context("the recording failed")?;
    private_file::sync_output(&file).context("the recording cannot be synced")?;
    log_event(&RECORDING_ENDED, &format!("recorded {} samples, lost {}", recorded.recorded, recorded.lost));
    Ok(())
}

/// Raises the descriptor limit to what the connections may need, up to the hard limit. Beyond it the acceptor rejects
/// clients.
fn raise_descriptor_limit(connections: usize) {
    /// For the sources, the rings' threads, the poller and the reserve.
    const RESERVED_DESCRIPTORS: u64 = 256;
    let mut limit = getrlimit(Resource::Nofile);
    let required = connections as u64 + RESERVED_DESCRIPTORS;
    if limit.current.is_some_and(|current| current < required) {
        limit.current = Some(limit.maximum.map_or(required, |maximum| maximum.min(required)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// A stream that becomes readable when one of these signals arrives.
fn signal_stream(signals: &[i32]) -> std::io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
    }
    Ok(reader)
}

/// Fails with the reasons if no source is available. `is_temporary`: a later start may find one.
fn ensure_sources(builder: &ServiceBuilder, is_temporary: bool) -> Result<()> {
    if !builder.domain_names().is_empty() {
        return Ok(());
    }
    let reasons: String =
        builder.absent().iter().map(|absent| format!("\n  {}: {}", absent.source, absent.reason)).collect();
    Err(anyhow!(NoSourceError { reasons, is_temporary }))
}

/// Whether a start failed because no memory, thread or descriptor was left, so that a later one may succeed.
fn is_resource_shortage(cause: &anyhow::Error) -> bool {
    if let Some(none) = cause.downcast_ref::<NoSourceError>() {
        return none.is_temporary;
    }
    let system_error = match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(config::ConfigError::Unreadable { cause, .. }), _) => Some(cause),
        (_, Some(ListenError::Io { cause, .. })) => Some(cause),
        _ => cause.chain().find_map(|cause| cause.downcast_ref()),
    };
    system_error.is_some_and(sources::is_resource_shortage)
}

/// The socket path: as configured, else the system's or the user's default.
fn socket_path(config: &Config) -> Result<PathBuf> {
    if let Some(path) = &config.socket {
        return Ok(path.clone());
    }
    let mut candidates = config::listen_paths().into_iter();
    let system_path = candidates.next().context("no default socket path")?;
    // Root creates the system's directory; for the daemon's own user the service manager has created it.
    if rustix::process::geteuid().is_root() || system_path.parent().is_some_and(is_owned_by_this_user) {
        return Ok(system_path);
    }
    candidates.next().context("no default socket path: set --socket PATH or XDG_RUNTIME_DIR")
}

fn is_owned_by_this_user(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(directory).is_ok_and(|metadata| metadata.uid() == rustix::process::geteuid().as_raw())
}

fn log_event(event: &'static LogEvent, message: &str) {
    log(&LogEntry { event, message, fields: &[] });
}

fn log_store(message: &str) {
    log_event(&STORE_STATE, message);
}

fn log_bus(message: &str) {
    log_event(&DBUS_STATE, message);
}

/// No energy source is available; contains the reasons.
#[derive(Debug, thiserror::Error)]
#[error("no energy source is available:{reasons}")]
struct NoSourceError {
    reasons: String,
    /// A later start may find one.
    is_temporary: bool,
}

/// Maps an error to an exit status of sysexits.h, for service managers.
fn exit_status(cause: &anyhow::Error) -> u8 {
    const EX_UNAVAILABLE: u8 = 69;
    const EX_SOFTWARE: u8 = 70;
    const EX_OSERR: u8 = 71;
    const EX_TEMPFAIL: u8 = 75;
    const EX_NOPERM: u8 = 77;
    const EX_CONFIG: u8 = 78;
    // First: the service manager does not start the daemon again after EX_UNAVAILABLE and EX_CONFIG.
    if is_resource_shortage(cause) {
        return EX_OSERR;
    }
    if cause.is::<config::ConfigError>() {
        return EX_CONFIG;
    }
    if cause.is::<activation_ffi::SocketActivationError>() {
        return EX_CONFIG;
    }
    if cause.is::<NoSourceError>() {
        return EX_UNAVAILABLE;
    }
    match cause.downcast_ref::<ListenError>() {
        Some(ListenError::AddrInUse { .. }) => EX_TEMPFAIL,
        Some(_) => EX_NOPERM,
        None => EX_SOFTWARE,
    }
}
