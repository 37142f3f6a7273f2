//! The user of a TCP client on systems without a look-up: always unknown.

use std::io;
use std::net::SocketAddr;

/// Whether the user of a TCP connection can be looked up on this system.
pub const IS_SUPPORTED: bool = false;

pub fn uid(_client: SocketAddr, _local: SocketAddr) -> io::Result<Option<u32>> {
    Ok(None)
}
