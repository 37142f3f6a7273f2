//! Unix sockets: a path that is taken safely, and the peer's credentials as the kernel states them.
//!
//! Owns both for every listener of these programs, so that the daemon and the proxy identify a caller by one rule.

mod listener;

#[cfg(target_os = "linux")]
mod so_peercred_ffi;
#[cfg(target_os = "linux")]
use so_peercred_ffi as peer;

#[cfg(target_os = "macos")]
mod local_peercred_ffi;
#[cfg(target_os = "macos")]
use local_peercred_ffi as peer;

pub use listener::{ListenError, SocketFile, SocketPermissions, bind};
pub use peer::{peer_credentials, peer_pid};

/// The user of a Linux process that has no number in this user namespace: it identifies no user.
pub const OVERFLOW_UID: u32 = 65_534;

/// What a transport knows of its peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl PeerCredentials {
    /// Whether this group is the primary or a supplementary one.
    pub fn has_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}
