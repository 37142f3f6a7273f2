//! The D-Bus server: the service on the system bus.
//!
//! ```text
//! bus ─► capped_socket ─► dispatcher ─► bus_client ─► `server` ─► service
//! ```
//!
//! Each client on the bus becomes a client of the socket server, with the credentials that the bus states. Its calls
//! are the same requests, passed on as values: so access, quotas, errors and the abandonment of spans are the same code.
//! The D-Bus server has its own thread and runtime. Where the service is free, this thread performs the call; it never
//! waits for the service, and a flood of calls delays neither the service nor a sampler.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::{Config, DbusConfig};
use crate::server::ForwardedReceiver;

mod bus_client;
mod capped_socket;
mod connector;
mod context;
mod credentials;
mod dbus_error;
mod dispatcher;
mod encoded_reply_ffi;
#[doc(hidden)]
pub mod fuzz_entry;
mod interface;
mod names;
mod polkit;
mod service_connection;
mod variant_reader;
mod variant_writer;

/// Descriptors in use: the connection to the bus, and those of the runtime.
pub const MAX_DESCRIPTORS: usize = 8;

/// How long shutdown waits for the bus to accept the last replies.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// The running D-Bus server.
#[derive(Debug)]
pub struct DbusServer {
    stop: oneshot::Sender<()>,
    /// Disconnected once the thread has ended.
    ended: mpsc::Receiver<()>,
}

/// Starts the D-Bus server on the configured bus. Returns it with the receiver of its calls for the
/// socket server, or `None` if no bus is configured. `log` is called with each change of state.
///
/// # Errors
/// The system cannot create a thread or a socket.
pub fn start(config: &Config, log: fn(&str)) -> io::Result<Option<(DbusServer, ForwardedReceiver)>> {
    let address = match &config.bus {
        DbusConfig::System(false) => return Ok(None),
        DbusConfig::System(true) => None,
        DbusConfig::Address(address) => Some(address.clone()),
    };
    let (service, receiver) = crate::server::forwarded_calls();
    let (stop, stopped) = oneshot::channel();
    let max_message_bytes = config.limits.message_bytes;
    let connector = connector::DbusConnector { address, service, max_message_bytes, log };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (ended_sender, ended) = mpsc::channel();
    thread::Builder::new().name("bus".into()).spawn(move || {
        runtime.block_on(connector.run(stopped));
        drop(ended_sender);
    })?;
    Ok(Some((DbusServer { stop, ended }, receiver)))
}

impl DbusServer {
    /// Sends the last replies and leaves the bus. Call it after the service has ended.
    pub fn shut_down(self) {
        let _ = self.stop.send(());
        let _ = self.ended.recv_timeout(SHUTDOWN_TIMEOUT);
    }
}
