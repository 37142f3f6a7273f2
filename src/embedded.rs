//! A meter in the client's own process, used where no daemon runs.
//!
//! It runs the daemon's service on one thread, with the same sources, samplers, attribution and protocol; its clients use
//! socket pairs. It has no socket in the file system, no stored state and no other users. It drops no privileges, since
//! they belong to the caller.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wattspan_client::protocol::DomainStatus;
use wattspan_client::{Client, ClientError};

use crate::clock::Clock;
use crate::config::Config;
use crate::domain::{Absent, Domain, Liveness};
use crate::server::ServerSockets;
use crate::service::{Service, ServiceBuilder, StartupSettings};
use crate::sources::dedup::domain_tree::counted_in_total;
use crate::sources::mechanism_comparison;
use crate::sources::{self, ProbeLoad, SourceSettings};

pub use crate::sources::mechanism_comparison::{ComparedMechanism, MechanismPair};

/// The pauses of the wait for the first reading: a second altogether, or more on a busy machine.
const MAX_PAUSES: usize = 2_000;
const PAUSE: Duration = Duration::from_micros(500);

/// Connections created at the start: for calls, a watch and a warm-up. The server accepts no others.
const CONNECTION_COUNT: usize = 3;

/// What an embedded meter is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MeterUse {
    /// Any calls, on three connections.
    #[default]
    Any,
    /// Spans of commands that are started next, on one connection: no CPU time is used for the test of the counters.
    Commands,
    /// The same for one span: a counter that has never moved is read at its edges and at the idle rate.
    OneCommand,
}

/// The embedded meter could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartMeterError {
    /// The system failed to provide a thread, a socket pair or random numbers.
    #[error("cannot start measuring in this process: {0}")]
    System(#[from] io::Error),
}

/// A meter in this process; dropping it stops it.
pub struct EmbeddedMeter {
    unused_connections: Mutex<Vec<UnixStream>>,
    /// Closing it stops the service.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedMeter {
    /// Discovers the sources, starts the samplers and serves. Without any counter the meter has no domains.
    pub fn start(config: &Config) -> Result<Self, StartMeterError> {
        Self::start_for(config, MeterUse::Any)
    }

    /// Like [`Self::start`], for a certain use.
    pub fn start_for(config: &Config, meter_use: MeterUse) -> Result<Self, StartMeterError> {
        let mut settings = StartupSettings::for_own_process(config);
        // What appears or moves after the span is not in its account.
        settings.sampler.serves_one_span = meter_use == MeterUse::OneCommand;
        settings.sources.finds_new_devices = meter_use != MeterUse::OneCommand;
        let connection_count = match meter_use {
            MeterUse::Any => CONNECTION_COUNT,
            MeterUse::Commands | MeterUse::OneCommand => {
                settings.sources.probe_load = ProbeLoad::Background;
                1
            }
        };
        // No log: changes of a domain's state are visible in the replies.
        let mut service = ServiceBuilder::discover(settings, Clock::Machine, |_| ())?.build()?;
        wait_for_first_reading(&mut service);
        let pairs: Vec<_> = (0..connection_count).map(|_| UnixStream::pair()).collect::<io::Result<_>>()?;
        let (unused_connections, connections) = pairs.into_iter().unzip();
        let (stop, stopped) = UnixStream::pair()?;
        let sockets = ServerSockets { connections, stop: Some(stopped), ..ServerSockets::default() };
        let thread = thread::Builder::new().name("meter".into()).spawn(move || {
            // On failure the connections close, and the clients' next call returns the error.
            let _ = crate::server::serve(service, sockets);
        })?;
        Ok(EmbeddedMeter {
            unused_connections: Mutex::new(unused_connections),
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Takes one of the connections created at the start.
    pub fn connect(&self) -> Result<Client, ClientError> {
        let connection = self.unused_connections.lock().map(|mut free| free.pop());
        match connection {
            Ok(Some(stream)) => Client::from_stream(stream),
            _ => Err(ClientError::ConnectionClosed),
        }
    }
}

/// Waits until every live domain was read once: a span opened before the first reading would have unknown time. A domain
/// that takes longer shows as unknown time in the account.
fn wait_for_first_reading(service: &mut Service) {
    let peer = service.policy().daemon_peer();
    let unread = |domain: &DomainStatus| domain.liveness == Liveness::Live && domain.energy_uj.is_none();
    for _ in 0..MAX_PAUSES {
        if !service.get_info(&peer).domains.iter().any(unread) {
            return;
        }
        thread::sleep(PAUSE);
    }
}

/// Records the readings of this machine's sources as a trace for `--replay`. Returns the unavailable sources with their
/// reasons.
///
/// # Errors
/// `out` fails, or the system cannot start a thread.
pub fn record(
    config: &Config,
    out: impl Write + Send + 'static,
    duration: Duration,
) -> io::Result<Vec<Absent>> {
    let settings = StartupSettings::for_own_process(config);
    let mut builder = ServiceBuilder::discover(settings, Clock::Machine, |_| ())?;
    let recording = builder.start_recording(out)?;
    thread::sleep(duration);
    recording.finish()?;
    Ok(builder.absent().to_vec())
}

/// Reads all mechanisms of this machine, and compares those that show the same energy. `load` runs on this thread meanwhile
/// and returns after the duration. Returns the unavailable sources too, with their reasons.
pub fn compare_mechanisms(
    config: &Config,
    duration: Duration,
    load: impl FnOnce(Duration),
) -> (Vec<MechanismPair>, Vec<Absent>) {
    let settings = StartupSettings::for_own_process(config);
    let found = sources::discover_all(&settings.sources, &Clock::Machine);
    (mechanism_comparison::compare(found.opened, &Clock::Machine, duration, load), found.absent)
}

/// The domains that the files below these roots show, in lines of name, kind, parent and whether the total counts it.
/// Without the sources that would find this machine's own counters.
pub fn describe_tree(sysfs_root: &Path, proc_root: &Path) -> Vec<String> {
    const OWN_COUNTERS: [&str; 3] = [sources::perf::NAME, sources::nvml::NAME, sources::estimate::NAME];
    let mut settings = SourceSettings {
        sysfs_root: sysfs_root.to_owned(),
        proc_root: proc_root.to_owned(),
        ..SourceSettings::default()
    };
    settings.enabled.retain(|name| !OWN_COUNTERS.contains(&name.as_str()));
    let found = sources::discover(&settings, &Clock::Machine);
    let domains: Vec<Domain> = found.opened.iter().flat_map(|opened| opened.domains.clone()).collect();
    let counted = counted_in_total(&domains, &vec![true; domains.len()]);
    let describe = |(domain, counted): (&Domain, bool)| {
        let kind = serde_json::to_value(domain.kind).unwrap_or_default();
        let parent = domain.parent.as_deref().unwrap_or("-");
        let counted = if counted { "counted" } else { "-" };
        format!("{} {} {parent} {counted}", domain.name, kind.as_str().unwrap_or_default())
    };
    let mut lines: Vec<String> = domains.iter().zip(counted).map(describe).collect();
    lines.sort();
    lines
}

impl Drop for EmbeddedMeter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic of the thread.
            let _ = thread.join();
        }
    }
}
