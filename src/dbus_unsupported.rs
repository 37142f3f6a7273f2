//! Where there is no system bus: the same calls, which do nothing.
//!
//! Owns nothing. The key `bus` of the configuration is read everywhere and means something on Linux only.

use std::convert::Infallible;
use std::io;

use crate::config::Config;
use crate::server::Arrivals;

/// Descriptors that the bus may take.
pub const DESCRIPTORS: usize = 0;

/// The daemon's presence on the bus: none.
#[derive(Debug)]
pub struct Bus(Infallible);

/// There is no bus.
///
/// # Errors
/// None; where there is a bus, the system may have no thread to give.
pub fn start(_: &Config, _: fn(&str)) -> io::Result<Option<(Bus, Arrivals)>> {
    Ok(None)
}

impl Bus {
    /// Never comes to be called.
    pub fn finish(self) {
        match self.0 {}
    }
}
