//! Who is at the other end of a connection.
//!
//! Owns what its transport stated when it came, and what that lets it do. Invariant: a later rule judges by the same
//! statement; the socket is not asked again, since that of a forwarded connection belongs to the daemon itself.

use crate::process_usage::ProcessIdentity;
use crate::service::access::{AccessPolicy, Peer};
use crate::unix_socket::PeerCredentials;

/// Somebody.
#[derive(Debug)]
pub struct PeerIdentity {
    /// What it may do.
    pub peer: Peer,
    /// By what it was judged.
    pub credentials: PeerCredentials,
    /// Its process.
    pub origin: Option<ProcessIdentity>,
}

impl PeerIdentity {
    /// Judges it by another rule; whether it may do something else now.
    pub fn apply_policy(&mut self, policy: &AccessPolicy) -> bool {
        let judged = policy.peer_of(&self.credentials);
        let changed = judged.access != self.peer.access;
        (self.peer.access, self.peer.unlimited) = (judged.access, judged.unlimited);
        changed
    }
}
