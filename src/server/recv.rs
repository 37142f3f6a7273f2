//! One read from a client: bytes, and whether descriptors came along.
//!
//! Owns the rule that nobody's descriptors are taken. There is no room for them in the call, so the kernel closes them and
//! says that something was cut off (MSG_CTRUNC, recvmsg(2)); nothing else is ever sent beside the bytes, since the sockets
//! ask for no credentials.

use std::io::{self, IoSliceMut};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};

/// What one read gave.
pub struct RecvResult {
    /// How many bytes; none where the client sends no more.
    pub length: usize,
    /// Descriptors came along, and are closed.
    pub has_descriptors: bool,
}

/// Reads once.
pub fn recv(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<RecvResult> {
    let (mut buffers, mut no_control) = ([IoSliceMut::new(buffer)], RecvAncillaryBuffer::default());
    let message = recvmsg(socket, &mut buffers, &mut no_control, RecvFlags::empty())?;
    Ok(RecvResult { length: message.bytes, has_descriptors: message.flags.contains(ReturnFlags::CTRUNC) })
}
