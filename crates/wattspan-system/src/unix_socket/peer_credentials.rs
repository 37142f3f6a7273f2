//! The peer credentials of a connection, as its transport states them: the kernel for a Unix socket, the bus daemon for D-Bus.
//!
//! A plain value. The `*_ffi` files and `dbus` create it, and the access rules read it.

/// The uid of a Linux process whose user has no mapping in this user namespace. It identifies no user.
pub const OVERFLOW_UID: u32 = 65_534;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCredentials {
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// IDs of the supplementary groups.
    pub groups: Vec<u32>,
}

impl PeerCredentials {
    /// Whether this group is the primary or a supplementary one.
    pub fn has_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}
