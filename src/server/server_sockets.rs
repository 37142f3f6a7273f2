//! Where clients come from, what ends the service, and what makes it read its configuration again.
//!
//! Owns nothing but the list; whoever starts a service makes it.

use std::os::unix::net::{UnixListener, UnixStream};

use super::connection_channel::ConnectionReceiver;

/// Where clients come from, and what ends the service.
#[derive(Debug, Default)]
pub struct ServerSockets {
    /// Where new clients come in, if any do.
    pub listeners: Vec<UnixListener>,
    /// Connections that another server of this daemon (D-Bus) forwards.
    pub forwarded: Option<ConnectionReceiver>,
    /// Clients that are connected already: ends of pairs made by this very process, trusted as itself.
    pub connections: Vec<UnixStream>,
    /// Serving ends when something can be read here, the end of the stream included. Without it, and without a
    /// listener, it ends with the last client.
    pub stop: Option<UnixStream>,
    /// The configuration is read again whenever bytes come here.
    pub reload: Option<UnixStream>,
}
