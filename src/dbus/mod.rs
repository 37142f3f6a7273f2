//! The D-Bus server: the service on the system bus, by name.
//!
//! ```text
//! bus ─► capped_socket ─► dispatcher ─► bus_client ─► (socket pair) ─► `server` ─► service
//!        size limit       routing       one client, one connection
//! ```
//!
//! Owns nothing of the meter. Each client on the bus becomes one ordinary connection of the socket server, with the
//! credentials that the bus states for it, so that access, quotas, refusals and abandonment are the same code. Runs on a
//! thread of its own with its own runtime; a flood here costs that thread, not the service's and never a sampler's.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::{Config, DbusConfig};
use crate::server::ConnectionReceiver;

mod bus_client;
mod capped_socket;
mod connector;
mod context;
mod credentials;
mod dbus_error;
mod dispatcher;
mod interface;
mod json;
mod names;
mod polkit;
mod service_connection;

/// Descriptors that a full bus may take: two for each client, which has a pair.
pub const MAX_DESCRIPTORS: usize = 2 * dispatcher::MAX_CLIENTS;

/// How long the daemon waits for the bus to take the last answers; a bus that hangs does not keep it from ending.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// The daemon's presence on the bus.
#[derive(Debug)]
pub struct DbusServer {
    stop: oneshot::Sender<()>,
    /// Disconnected once the thread has ended.
    ended: mpsc::Receiver<()>,
}

/// Goes on the bus that the configuration names, and returns the receiver of its connections, for the socket server; `None` where
/// it names none. `log` is called with each change of state.
///
/// # Errors
/// The system gives no thread or no sockets.
pub fn start(config: &Config, log: fn(&str)) -> io::Result<Option<(DbusServer, ConnectionReceiver)>> {
    let address = match &config.bus {
        DbusConfig::System(false) => return Ok(None),
        DbusConfig::System(true) => None,
        DbusConfig::Address(address) => Some(address.clone()),
    };
    let (connection_sender, receiver) = crate::server::connection_channel()?;
    let (stop, stopped) = oneshot::channel();
    let max_message_bytes = config.limits.message_bytes;
    let connector = connector::DbusConnector {
        address,
        connection_sender: Arc::new(connection_sender),
        max_message_bytes,
        log,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (ended_sender, ended) = mpsc::channel();
    thread::Builder::new().name("bus".into()).spawn(move || {
        runtime.block_on(connector.run(stopped));
        drop(ended_sender);
    })?;
    Ok(Some((DbusServer { stop, ended }, receiver)))
}

impl DbusServer {
    /// After the service has ended: passes its last answers on, and leaves the bus.
    pub fn shut_down(self) {
        let _ = self.stop.send(());
        let _ = self.ended.recv_timeout(SHUTDOWN_TIMEOUT);
    }
}
