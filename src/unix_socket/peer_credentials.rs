//! The credentials of a peer, as its transport states them: the kernel for a Unix socket, the bus daemon for D-Bus.
//!
//! A plain value. The `*_ffi` files and `dbus` create it, and the access rules read it.

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
