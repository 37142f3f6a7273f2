//! The same meter inside the client's process, where no daemon answers.
//!
//! Owns one service on one thread, with the same sources, samplers, attributor and words as the daemon's; its clients are
//! ends of socket pairs, so that nothing which is measured here is measured differently there. It has no socket in the
//! file system, no state and no other users, and it ends with its owner. Gives up no privilege: it is the caller.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::{Client, ClientError};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::Liveness;
use crate::protocol::DomainStatus;
use crate::server::ServerSockets;
use crate::service::{ServiceBuilder, StartupSettings};

/// How long to wait for the first reading, and how often to look for it.
const FIRST_READING_TIMEOUT: Duration = Duration::from_millis(150);
const POLL_INTERVAL: Duration = Duration::from_micros(500);

/// Connections made when the meter starts: to see it started, to ask, to watch, to waken. The server accepts none later.
const CONNECTION_COUNT: usize = 4;

/// Why there is no embedded meter.
#[derive(Debug, thiserror::Error)]
pub enum StartMeterError {
    /// The system refuses a thread, a socket pair or random numbers.
    #[error("cannot start measuring in this process: {0}")]
    System(#[from] io::Error),
}

/// A meter in this process; dropping it ends it.
pub struct EmbeddedMeter {
    unused_connections: Mutex<Vec<UnixStream>>,
    /// Hanging up ends the service.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedMeter {
    /// Finds the sources, starts the samplers and serves. A machine without any counter has a meter without domains.
    pub fn start(config: &Config) -> Result<Self, StartMeterError> {
        // A domain's change of state is in what the meter answers; there is no log here.
        let settings = StartupSettings::from_config(config);
        let service = ServiceBuilder::discover(settings, Clock::Machine, |_| ())?.build()?;
        let pairs: Vec<_> = (0..CONNECTION_COUNT).map(|_| UnixStream::pair()).collect::<io::Result<_>>()?;
        let (unused_connections, connections) = pairs.into_iter().unzip();
        let (stop, stopped) = UnixStream::pair()?;
        let sockets = ServerSockets { connections, stop: Some(stopped), ..ServerSockets::default() };
        let thread = thread::Builder::new().name("meter".into()).spawn(move || {
            // A service that fails hangs up, and its clients are told so by their next call.
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

    /// Waits until every live domain was read once: time before the first reading would be unknown time of a span that
    /// opens at once. A domain that takes longer than a fresh start may is left to its span's account.
    fn wait_for_first_reading(&self) {
        let Ok(client) = self.connect() else { return };
        let deadline = Instant::now() + FIRST_READING_TIMEOUT;
        let unread = |domain: &DomainStatus| domain.liveness == Liveness::Live && domain.energy_uj.is_none();
        while client.info().is_ok_and(|info| info.domains.iter().any(unread)) && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// A connection to it, as to a daemon; there are a few, made at the start.
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
            // A panic of the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}
