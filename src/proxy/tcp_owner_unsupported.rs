//! The user of a TCP client on systems where it is not looked up: always unknown.

use std::io;
use std::net::SocketAddr;

/// Whether this system states owners of TCP connections.
pub const IS_SUPPORTED: bool = false;

/// The user that owns the client's socket: unknown.
pub fn uid(_client: SocketAddr, _local: SocketAddr) -> io::Result<Option<u32>> {
    Ok(None)
}
