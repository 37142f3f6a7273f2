//! Who is at the other end of a Unix socket, by LOCAL_PEERCRED (macOS, unix(4); `struct xucred` of <sys/ucred.h>).
//!
//! Owns the one call. It tells the credentials at the time of `connect` (getpeereid(3) asks for the same and leaves out the
//! groups), with at most 16 groups, the first of which is the primary one: the kernel keeps no more, and whoever is in the
//! meter's group as one of many may have to be told so (README).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::peer_credentials::PeerCredentials;

/// Which process connected is not asked here: CPU time of processes is not read on this system.
pub fn peer_pid(_socket: BorrowedFd) -> Option<u32> {
    None
}

/// The peer's credentials.
pub fn peer_credentials(socket: BorrowedFd) -> io::Result<PeerCredentials> {
    // SAFETY: all-zero bytes are a valid `xucred`, which is numbers only.
    let mut cred: libc::xucred = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::xucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes, the size of `cred`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_LOCAL,
            libc::LOCAL_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    if cred.cr_version != libc::XUCRED_VERSION {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let count = usize::try_from(cred.cr_ngroups).unwrap_or(0).min(cred.cr_groups.len());
    let groups = cred.cr_groups[..count].to_vec();
    let gid = *groups.first().ok_or(io::ErrorKind::InvalidData)?;
    Ok(PeerCredentials { uid: cred.cr_uid, gid, groups })
}
