//! Who is at the other end of a Unix socket, by SO_PEERCRED and SO_PEERGROUPS (Linux, unix(7)).
//!
//! Owns the two calls. They tell the credentials at the time of `connect`, which is what is wanted: a process that
//! changes its identity afterwards gains nothing. `libc` directly, because rustix does not know SO_PEERGROUPS, and
//! its SO_PEERCRED demands a process id other than 0, which a peer in another PID namespace has not.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::peer_credentials::PeerCredentials;

/// More groups than this are not asked for (the kernel's own limit, NGROUPS_MAX, is 65,536).
const MAX_GROUPS: usize = 65_536;

/// The peer's credentials.
pub fn peer_credentials(socket: BorrowedFd) -> io::Result<PeerCredentials> {
    let cred = peer_ucred(socket)?;
    Ok(PeerCredentials { uid: cred.uid, gid: cred.gid, groups: peer_groups(socket)? })
}

/// The process that connected; `None` where it has no number in this PID namespace.
pub fn peer_pid(socket: BorrowedFd) -> Option<u32> {
    u32::try_from(peer_ucred(socket).ok()?.pid).ok().filter(|pid| *pid > 0)
}

fn peer_ucred(socket: BorrowedFd) -> io::Result<libc::ucred> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes, the size of `cred`.
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

/// The peer's supplementary groups.
fn peer_groups(socket: BorrowedFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0 as libc::gid_t; 32];
    loop {
        let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes, the size of
        // the vector's initialised contents; where that is too little it writes the size it needs to `length`.
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
