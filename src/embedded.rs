//! A meter in the client's own process, used where no daemon runs.
//!
//! It runs the daemon's service on one thread, with the same sources, samplers, attribution and protocol; its clients use
//! socket pairs. It has no socket in the file system, no stored state and no other users. It drops no privileges, since
//! they belong to the caller.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use wattspan_client::protocol::DomainStatus;
use wattspan_client::{Client, ClientError};

use crate::clock::Clock;
use crate::config::Config;
use crate::domain::Liveness;
use crate::server::ServerSockets;
use crate::service::{ServiceBuilder, StartupSettings};

pub use crate::sources::ProbeLoad;

/// Timeout and poll interval of the wait for the first reading.
const FIRST_READING_TIMEOUT: Duration = Duration::from_millis(150);
const POLL_INTERVAL: Duration = Duration::from_micros(500);

/// Connections created at the start: for the start itself, calls, a watch and a warm-up. The server accepts no others.
const CONNECTION_COUNT: usize = 4;

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
        Self::start_with_probe(config, ProbeLoad::default())
    }

    /// Like [`Self::start`], with the load under which discovery tests the counters.
    pub fn start_with_probe(config: &Config, probe_load: ProbeLoad) -> Result<Self, StartMeterError> {
        let mut settings = StartupSettings::for_own_process(config);
        settings.sources.probe_load = probe_load;
        // No log: changes of a domain's state are visible in the replies.
        let service = ServiceBuilder::discover(settings, Clock::Machine, |_| ())?.build()?;
        let pairs: Vec<_> = (0..CONNECTION_COUNT).map(|_| UnixStream::pair()).collect::<io::Result<_>>()?;
        let (unused_connections, connections) = pairs.into_iter().unzip();
        let (stop, stopped) = UnixStream::pair()?;
        let sockets = ServerSockets { connections, stop: Some(stopped), ..ServerSockets::default() };
        let thread = thread::Builder::new().name("meter".into()).spawn(move || {
            // On failure the connections close, and the clients' next call returns the error.
            let _ = crate::server::serve(service, sockets);
        })?;
        let embedded = EmbeddedMeter {
            unused_connections: Mutex::new(unused_connections),
            stop: Some(stop),
            thread: Some(thread),
        };
        embedded.wait_for_first_reading();
        Ok(embedded)
    }

    /// Waits until every live domain was read once: a span opened before the first reading would have unknown time. A domain
    /// that takes longer than the timeout shows as unknown time in the account.
    fn wait_for_first_reading(&self) {
        let Ok(client) = self.connect() else { return };
        let deadline = Instant::now() + FIRST_READING_TIMEOUT;
        let unread = |domain: &DomainStatus| domain.liveness == Liveness::Live && domain.energy_uj.is_none();
        while client.info().is_ok_and(|info| info.domains.iter().any(unread)) && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
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

impl Drop for EmbeddedMeter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic of the thread.
            let _ = thread.join();
        }
    }
}
