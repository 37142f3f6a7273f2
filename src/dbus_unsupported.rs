//! Where there is no system bus: the same calls, which do nothing.
//!
//! Owns nothing. The key `bus` of the configuration is read everywhere and means something on Linux only.

use std::convert::Infallible;
use std::io;

use crate::config::Config;
use crate::server::ConnectionReceiver;

/// Descriptors that the bus may take.
pub const MAX_DESCRIPTORS: usize = 0;

/// The daemon's presence on the bus: none.
#[derive(Debug)]
pub struct DbusServer(Infallible);

/// There is no bus.
///
/// # Errors
/// None; where there is a bus, the system may have no thread to give.
pub fn start(_: &Config, _: fn(&str)) -> io::Result<Option<(DbusServer, ConnectionReceiver)>> {
    Ok(None)
}

impl DbusServer {
    /// Never comes to be called.
    pub fn shut_down(self) {
        match self.0 {}
    }
}
