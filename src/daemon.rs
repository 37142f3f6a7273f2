//! The daemon, in the order in which it comes up: configuration, sources, samplers, ledger, socket, service.
//!
//! Owns the wiring and the exit status, and nothing else. Says on stderr what changes, one plain line each, and is
//! quiet otherwise: the service manager adds the time.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Parser;

use crate::clock::Clock;
use crate::config::{self, Config, Flags};
use crate::ipc::{self, Doors, Plan, Service, Taken};

/// The whole program.
pub fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            tell(&format!("{cause:#}"));
            ExitCode::from(status(&cause))
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    let config = Config::load(flags)?;
    if flags.check {
        print!("{}", toml::to_string(&config).context("cannot print the configuration")?);
        return Ok(());
    }
    let stop = until_signalled().context("cannot listen for signals")?;
    let plan = Plan::of(&config);
    let group = plan.service.policy.span_gid();
    let service = plan.build(Clock::Machine, tell).context("cannot start")?;
    refuse_nothing(&service)?;
    let _ = &flags.record;
    let (listener, listening) = ipc::bind(&place(&config)?, group)?;
    tell(&format!("measures {}, listens on {}", service.names().join(", "), listening.path().display()));
    let doors = Doors { listener: Some(listener), connections: Vec::new(), stop: Some(stop) };
    ipc::serve(service, doors).context("the poller failed")?;
    tell("stops as asked");
    Ok(())
}

/// A stream that can be read once SIGTERM or SIGINT came.
fn until_signalled() -> std::io::Result<UnixStream> {
    let (stop, signalled) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(libc::SIGTERM, signalled.try_clone()?)?;
    signal_hook::low_level::pipe::register(libc::SIGINT, signalled)?;
    Ok(stop)
}

/// There is something to measure, or the reasons why not.
fn refuse_nothing(service: &Service) -> Result<()> {
    if !service.names().is_empty() {
        return Ok(());
    }
    let reasons = service.absent().iter().map(|absent| format!("\n  {}: {}", absent.source, absent.reason));
    Err(anyhow!(NoSource(reasons.collect())))
}

/// Where to listen.
fn place(config: &Config) -> Result<PathBuf> {
    if let Some(path) = &config.socket {
        return Ok(path.clone());
    }
    let places = config::socket_places();
    let root = rustix::process::geteuid().is_root();
    let usable = |path: &&PathBuf| {
        // The service manager makes the directory for a user of its own; root makes it itself.
        root || path
            .parent()
            .is_some_and(|directory| is_own(directory) || directory != system_directory(&places))
    };
    let found = places.iter().find(usable).cloned();
    found.context("no place for a socket: give --socket PATH, or set XDG_RUNTIME_DIR")
}

fn system_directory(places: &[PathBuf]) -> &Path {
    places.first().and_then(|path| path.parent()).unwrap_or(Path::new("/"))
}

fn is_own(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(directory).is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
}

/// One line for the administrator.
fn tell(line: &str) {
    eprintln!("wattspand: {line}");
}

/// No source was found.
#[derive(Debug, thiserror::Error)]
#[error("there is nothing to measure here:{0}")]
struct NoSource(String);

/// The exit status that tells a service manager what kind of failure it was (sysexits.h).
fn status(cause: &anyhow::Error) -> u8 {
    const UNAVAILABLE: u8 = 69;
    const SOFTWARE: u8 = 70;
    const TEMPORARY: u8 = 75;
    const NO_PERMISSION: u8 = 77;
    const CONFIGURATION: u8 = 78;
    if cause.is::<config::Wrong>() {
        return CONFIGURATION;
    }
    if cause.is::<NoSource>() {
        return UNAVAILABLE;
    }
    match cause.downcast_ref::<Taken>() {
        Some(Taken::Running { .. }) => TEMPORARY,
        Some(_) => NO_PERMISSION,
        None => SOFTWARE,
    }
}
