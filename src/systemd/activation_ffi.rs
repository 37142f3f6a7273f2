//! Sockets that the service manager creates and listens on (sd_listen_fds(3)).
//!
//! Takes the descriptors from 3 on once, if LISTEN_PID is this process. Any number of listening Unix stream
//! sockets is accepted, with any names (LISTEN_FDNAMES). Anything else is an error that states the name, so
//! that a mistake in a unit is reported at the start.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{AddressFamily, SocketType, getsockname};

/// A passed descriptor is not a listening Unix stream socket.
#[derive(Debug, thiserror::Error)]
#[error(
    "the service manager passed {name:?} as descriptor {descriptor}, which is not a listening Unix stream socket; check Sockets= of its units"
)]
pub struct SocketActivationError {
    descriptor: RawFd,
    name: String,
}

const SD_LISTEN_FDS_START: RawFd = 3;

/// The passed sockets. Empty without socket activation, and on the second call.
///
/// # Errors
/// A descriptor is not a listening Unix stream socket.
pub fn listeners() -> Result<Vec<UnixListener>, SocketActivationError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let text = |name: &str| std::env::var(name).ok();
    let ours = text("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(std::process::id());
    let count = text("LISTEN_FDS").and_then(|count| count.parse::<u16>().ok()).filter(|_| ours).unwrap_or(0);
    let names = text("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat("unknown"));
    (SD_LISTEN_FDS_START..SD_LISTEN_FDS_START + RawFd::from(count))
        .zip(names)
        .map(|(descriptor, name)| into_listener(descriptor, name))
        .collect()
}

fn into_listener(descriptor: RawFd, name: &str) -> Result<UnixListener, SocketActivationError> {
    let error = || SocketActivationError { descriptor, name: name.to_owned() };
    // SAFETY: the descriptor is only queried; if it is not open, the first query fails.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    if !is_listening_unix_stream(borrowed) {
        return Err(error());
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|_| error())?;
    // SAFETY: the descriptor is open, as the queries above show. LISTEN_PID states that it was passed to this
    // process, which takes it once (TAKEN) and before it opens any other, so nothing else owns it.
    Ok(UnixListener::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

fn is_listening_unix_stream(borrowed: BorrowedFd) -> bool {
    socket_type(borrowed) == Ok(SocketType::STREAM)
        && socket_acceptconn(borrowed) == Ok(true)
        && getsockname(borrowed.as_fd()).is_ok_and(|address| address.address_family() == AddressFamily::UNIX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_a_listening_unix_stream_socket_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        assert!(is_listening_unix_stream(listener.as_fd()));
        assert!(!is_listening_unix_stream(UnixStream::pair().unwrap().0.as_fd()));
        assert!(!is_listening_unix_stream(std::fs::File::open("/dev/null").unwrap().as_fd()));
        assert!(!is_listening_unix_stream(std::net::TcpListener::bind("127.0.0.1:0").unwrap().as_fd()));
    }

    #[test]
    fn without_a_service_manager_there_are_no_sockets() {
        assert!(listeners().unwrap().is_empty());
    }
}
