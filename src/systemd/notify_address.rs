//! The address of the service manager's socket on Linux: a path, or an abstract address written with `@`
//! (unix(7)).
//!
//! The socket is connected, so that the address is resolved only once.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

pub(super) fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_abstract_addresses_connect() {
        let name = format!("wattspan-test-{}", std::process::id());
        let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let seen = UnixDatagram::bind(&path).unwrap();
        for (name, manager) in [(format!("@{name}").into(), hidden), (path.into_os_string(), seen)] {
            connect(&name).unwrap().send(b"READY=1").unwrap();
            let mut bytes = [0; 16];
            assert_eq!(manager.recv(&mut bytes).unwrap(), 7);
        }
    }
}
