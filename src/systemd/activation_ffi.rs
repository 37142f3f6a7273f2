//! Sockets that the service manager has made and listens on for us (sd_listen_fds(3)).
//!
//! Owns the descriptors from 3 on that LISTEN_FDS and LISTEN_PID vouch for, once. Takes Unix stream sockets that
//! listen, any number, whatever their names (LISTEN_FDNAMES), and refuses everything else by name: a unit that passes
//! another thing is a mistake that would otherwise show as a client nobody answers.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{AddressFamily, SocketType, getsockname};

/// What was handed over cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "the service manager passed {name:?} as descriptor {descriptor}, which is no listening Unix stream socket; see Sockets= of its units"
)]
pub struct SocketActivationError {
    descriptor: RawFd,
    name: String,
}

/// The first descriptor that is passed.
const SD_LISTEN_FDS_START: RawFd = 3;

/// The sockets handed over; none where nobody did. A second call gives none.
///
/// # Errors
/// One of them is no listening Unix stream socket.
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
    // SAFETY: only looked at; a number that is no open descriptor makes the first look fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    if !is_listening_unix_stream(borrowed) {
        return Err(error());
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|_| error())?;
    // SAFETY: it is open, as the looks above have shown; by LISTEN_PID it was passed to this very process, which takes it
    // once (TAKEN) and before it opens anything of its own, so that nobody else owns it.
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
