//! Credentials of a Unix socket's peer by LOCAL_PEERCRED (macOS, unix(4); `struct xucred` of <sys/ucred.h>).
//!
//! The kernel states the credentials at the time of `connect`, with at most 16 groups; the first is the
//! primary one. A user in more groups may therefore not be recognized as a member of the daemon's group
//! (README). getpeereid(3) uses the same option, but omits the groups.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::peer_credentials::PeerCredentials;

/// Not determined: the CPU time of processes is not read on this system.
pub fn peer_pid(_socket: BorrowedFd) -> Option<u32> {
    None
}

pub fn peer_credentials(socket: BorrowedFd) -> io::Result<PeerCredentials> {
    // SAFETY: all-zero bytes are a valid `xucred`, which contains only integers.
    let mut cred: libc::xucred = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::xucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes, the size of
    // `cred`.
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
