//! The D-Bus server on systems without D-Bus: the same functions, without effect.
//!
//! The configuration key `bus` is accepted on every system, and has an effect on Linux only.

use std::convert::Infallible;
use std::io;

use crate::config::Config;
use crate::server::ForwardedReceiver;

/// Descriptors in use by the D-Bus server.
pub const MAX_DESCRIPTORS: usize = 0;

/// The running D-Bus server. There is none on this system.
#[derive(Debug)]
pub struct DbusServer(Infallible);

/// Starts nothing.
///
/// # Errors
/// None on this system.
pub fn start(_: &Config, _: fn(&str)) -> io::Result<Option<(DbusServer, ForwardedReceiver)>> {
    Ok(None)
}

impl DbusServer {
    pub fn shut_down(self) {
        match self.0 {}
    }
}
