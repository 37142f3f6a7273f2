//! The service manager's socket where there are no abstract addresses: a path.
//!
//! Owns nothing but the connection.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::UnixDatagram;

pub(super) fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(name)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
