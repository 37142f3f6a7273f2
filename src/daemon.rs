//! The daemon, in the order in which it comes up: configuration, sources, samplers, ledger, socket, service.
//!
//! Owns the wiring and the exit status, and nothing else. Says on stderr what changes, one plain line each, and is
//! quiet otherwise: the service manager adds the time.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::bus;
use crate::clock::Clock;
use crate::config::{self, Config, Flags};
use crate::energy::Domain;
use crate::ipc::{self, Doors, Listening, Plan, Service, Taken};
use crate::ring::Sample;
use crate::sampler::record::{self, Recording};
use crate::source::recorder::Recorder;
use crate::store::{self, Store};

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
    make_room(config.limits.connections + bus::DESCRIPTORS);
    let stop = until_signalled().context("cannot listen for signals")?;
    let plan = Plan::of(&config);
    let reach = plan.service.policy.reach();
    let mut service = plan.build(Clock::Machine, tell).context("cannot start")?;
    refuse_nothing(&service)?;
    let recording = flags.record.as_deref().map(|file| record(file, &mut service)).transpose()?;
    let (listener, listening) = listen(&config, reach)?;
    let place = match &listening {
        Some(listening) => listening.path().display().to_string(),
        None => "the socket of launchd".into(),
    };
    tell(&format!("measures {}, listens on {place}", service.names().join(", ")));
    keep(&config, &mut service).context("cannot start the ledger on disk")?;
    let (bus, arrivals) = bus::start(&config, tell).context("cannot go on the bus")?.unzip();
    let doors = Doors { listener: Some(listener), arrivals, stop: Some(stop), ..Doors::default() };
    ipc::serve(service, doors).context("the poller failed")?;
    if let Some(bus) = bus {
        bus.finish();
    }
    drop(listening);
    tell("stops as asked");
    recording.map_or(Ok(()), finish)
}

/// Keeps final accounts on disk, where that is wanted and there is a place for it.
fn keep(config: &Config, service: &mut Service) -> std::io::Result<()> {
    let disk = &config.ledger;
    // A simulated machine's accounts have no place among the real one's.
    if !disk.keep || (config.source.replay.is_some() && config.state_dir.is_none()) {
        return Ok(());
    }
    let Some(directory) = config.state_dir.clone().or_else(config::state_dir) else {
        tell("keeps no accounts: there is no place for them; give --state-dir, or set HOME");
        return Ok(());
    };
    let settings = store::Settings {
        directory,
        age: Duration::from_secs_f64(disk.days * 86_400.0),
        bytes: disk.megabytes * 1_000_000,
        waiting_bytes: usize::try_from(disk.waiting_megabytes * 1_000_000).unwrap_or(usize::MAX),
        sync: match disk.sync {
            config::Sync::Off => store::Sync::Off,
            config::Sync::Normal => store::Sync::Normal,
            config::Sync::Full => store::Sync::Full,
        },
    };
    service.keep(Store::start(settings, tell)?, tell);
    Ok(())
}

/// The socket that launchd made for us, else one of our own making, which goes with the second value.
fn listen(config: &Config, reach: ipc::Reach) -> Result<(UnixListener, Option<Listening>)> {
    if let Some(listener) = ipc::launchd_listeners().context("launchd hands over no socket")?.pop() {
        return Ok((listener, None));
    }
    let (listener, listening) = ipc::bind(&place(config)?, reach)?;
    Ok((listener, Some(listening)))
}

/// Keeps what the sources say, at the full rate, in a file that `--replay` takes.
fn record(file: &Path, service: &mut Service) -> Result<Recording> {
    let cannot = || format!("cannot record to {}", file.display());
    let feeds = service.record();
    let domains: Vec<Domain> = feeds.iter().flat_map(|feed| feed.domains.iter().cloned()).collect();
    let mut firsts = vec![0];
    firsts.extend(feeds.iter().scan(0, |first, feed| {
        *first += feed.domains.len();
        Some(*first)
    }));
    let out = File::create(file).with_context(cannot)?;
    let mut recorder = Recorder::new(out, &domains, false).with_context(cannot)?;
    let sink = move |ring: usize, sample: &Sample| {
        recorder.record(firsts[ring], sample.before_ns, sample.after_ns, &sample.readings)
    };
    record::start(feeds.into_iter().map(|feed| feed.ring).collect(), sink).with_context(cannot)
}

fn finish(recording: Recording) -> Result<()> {
    let recorded = recording.finish().context("the recording failed")?;
    tell(&format!("recorded {} samples, lost {}", recorded.kept, recorded.lost));
    Ok(())
}

/// Takes as many descriptors as the connections may need, as far as the system lets us; where it does not, the gate turns
/// clients away.
fn make_room(connections: usize) {
    /// For the sources, the rings' threads, the poller and the reserve.
    const OWN: u64 = 256;
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = connections as u64 + OWN;
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
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

/// Where to listen: as asked, else the system's place, else the user's own.
fn place(config: &Config) -> Result<PathBuf> {
    if let Some(path) = &config.socket {
        return Ok(path.clone());
    }
    let mut places = config::listening_places().into_iter();
    let system = places.next().context("no place for a socket")?;
    // Root makes the system's directory itself; for a user of its own the service manager has made it.
    if rustix::process::geteuid().is_root() || system.parent().is_some_and(is_own) {
        return Ok(system);
    }
    places.next().context("no place for a socket: give --socket PATH, or set XDG_RUNTIME_DIR")
}

fn is_own(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(directory).is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
}

/// One line for the administrator.
fn tell(line: &str) {
    // Without anybody to tell it goes on; eprintln! would panic.
    let _ = writeln!(std::io::stderr(), "wattspand: {line}");
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
