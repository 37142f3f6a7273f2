//! Credentials of a Unix socket's peer by SO_PEERCRED and SO_PEERGROUPS (Linux, unix(7)).
//!
//! The kernel states the credentials at the time of `connect`, so a later change of identity has no effect.
//! `libc` is used directly: rustix has no SO_PEERGROUPS, and its SO_PEERCRED fails for the process id 0 of a
//! peer in another PID namespace.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::peer_credentials::PeerCredentials;

/// NGROUPS_MAX of the kernel.
const MAX_GROUPS: usize = 65_536;

pub fn peer_credentials(socket: BorrowedFd) -> io::Result<PeerCredentials> {
    let cred = peer_ucred(socket)?;
    Ok(PeerCredentials { uid: cred.uid, gid: cred.gid, groups: peer_groups(socket)? })
}

/// The process that connected, or `None` if it has no id in this PID namespace.
pub fn peer_pid(socket: BorrowedFd) -> Option<u32> {
    u32::try_from(peer_ucred(socket).ok()?.pid).ok().filter(|pid| *pid > 0)
}

fn peer_ucred(socket: BorrowedFd) -> io::Result<libc::ucred> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes, the size of
    // `cred`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cred)
}

fn peer_groups(socket: BorrowedFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0 as libc::gid_t; 32];
    loop {
        let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes, the size
        // of the vector's initialised contents. If that is too small, it stores the required size in
        // `length`.
        let status = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        if status == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let cause = io::Error::last_os_error();
        if cause.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MAX_GROUPS {
            return Err(cause);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = peer_credentials(here.as_fd()).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer_pid(here.as_fd()), Some(std::process::id()));
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        let mut ours: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(|group| group.as_raw()).collect();
        let mut theirs = peer.groups;
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(theirs, ours);
    }
}
