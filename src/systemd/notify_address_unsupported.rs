//! The address of the service manager's socket on systems without abstract addresses: a path.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::UnixDatagram;

pub(super) fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(name)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
