//! The access rule for annotated responses.
//!
//! The rule is applied once, when a connection is accepted: it permits the proxy's own user, root, and the members of
//! one group, where the user of the connection is known. The proxy reads energy with its own access to the daemon;
//! without this rule every local user would get the same access (docs/access.md). All requests are measured.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use wattspan_system::groups::{is_user_in_group, lookup_gid};
use wattspan_system::unix_socket::{OVERFLOW_UID, PeerCredentials};

use super::tcp_owner;

/// How long a group membership is cached: a look-up in a name service can take seconds.
const MEMBERSHIP_TTL: Duration = Duration::from_secs(30);

/// The user at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerUser {
    /// The client is on another machine, or the system does not report its user.
    Unknown,
    /// The transport reports the user but no groups.
    Uid(u32),
    /// The kernel reports user and groups of a Unix socket.
    Credentials(PeerCredentials),
}

/// The group whose members get annotated responses; it need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationGroup {
    name: String,
    gid: Option<u32>,
}

impl AnnotationGroup {
    /// Looks up the group in the group database.
    pub fn lookup(name: &str) -> Self {
        AnnotationGroup { name: name.to_owned(), gid: lookup_gid(name) }
    }

    /// Whether the group database has the group.
    pub fn exists(&self) -> bool {
        self.gid.is_some()
    }
}

pub struct AnnotationPolicy {
    annotate_all: bool,
    own_uid: u32,
    group: AnnotationGroup,
    members: Mutex<HashMap<u32, (bool, Instant)>>,
}

impl AnnotationPolicy {
    /// With `annotate_all` the policy permits every connection.
    pub fn new(annotate_all: bool, group: AnnotationGroup) -> Self {
        let own_uid = rustix::process::geteuid().as_raw();
        AnnotationPolicy { annotate_all, own_uid, group, members: Mutex::default() }
    }

    pub async fn is_permitted(&self, user: &PeerUser) -> bool {
        match user {
            _ if self.annotate_all => true,
            PeerUser::Unknown => false,
            PeerUser::Uid(OVERFLOW_UID)
            | PeerUser::Credentials(PeerCredentials { uid: OVERFLOW_UID, .. }) => false,
            PeerUser::Uid(uid) | PeerUser::Credentials(PeerCredentials { uid, .. })
                if self.is_trusted(*uid) =>
            {
                true
            }
            PeerUser::Uid(uid) => self.is_group_member(*uid).await,
            PeerUser::Credentials(credentials) => {
                self.group.gid.is_some_and(|gid| credentials.has_group(gid))
            }
        }
    }

    /// Whether the policy permits every connection.
    pub fn is_unrestricted(&self) -> bool {
        self.annotate_all
    }

    /// One sentence for the log; `tcp` is the address of a TCP socket, `None` for a Unix socket.
    pub fn describe(&self, tcp: Option<SocketAddr>) -> String {
        if self.annotate_all {
            return "replies to every client have energy annotations (--annotate-all)".to_owned();
        }
        if tcp.is_some() && !tcp_owner::IS_SUPPORTED {
            return "replies have no energy annotations: this system does not report the user of a TCP connection; \
                    listen on unix:PATH, or use --annotate-all"
                .to_owned();
        }
        let own = match self.own_uid {
            0 => "clients of root".to_owned(),
            uid => format!("clients of user {uid}, of root"),
        };
        let via = if tcp.is_some() { " over loopback" } else { "" };
        format!("energy annotations: only in replies to {own} {}{via}", self.group)
    }

    fn is_trusted(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }

    async fn is_group_member(&self, uid: u32) -> bool {
        let Some(gid) = self.group.gid else { return false };
        let cached = |members: &HashMap<u32, (bool, Instant)>| {
            members
                .get(&uid)
                .filter(|(_, since)| since.elapsed() < MEMBERSHIP_TTL)
                .map(|(is_member, _)| *is_member)
        };
        if let Some(is_member) = cached(&self.members.lock().unwrap_or_else(PoisonError::into_inner)) {
            return is_member;
        }
        // A name service can block, and one thread serves every client.
        let is_member =
            tokio::task::spawn_blocking(move || is_user_in_group(uid, gid)).await.unwrap_or(false);
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|_, (_, since)| since.elapsed() < MEMBERSHIP_TTL);
        members.insert(uid, (is_member, Instant::now()));
        is_member
    }
}

impl fmt::Display for AnnotationGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gid {
            Some(_) => write!(f, "and of members of the group {}", self.name),
            None => write!(f, "and of no other user (the group {} does not exist)", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 990;

    fn policy(annotate_all: bool) -> AnnotationPolicy {
        let group = AnnotationGroup { name: "meter".into(), gid: Some(50) };
        AnnotationPolicy { annotate_all, own_uid: OWN, group, members: Mutex::default() }
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> PeerUser {
        PeerUser::Credentials(PeerCredentials { uid, gid, groups: groups.to_vec() })
    }

    #[tokio::test]
    async fn annotations_go_to_own_user_root_and_group_members() {
        let policy = policy(false);
        for user in
            [PeerUser::Uid(0), PeerUser::Uid(OWN), peer(OWN, 1, &[]), peer(7, 50, &[]), peer(7, 7, &[3, 50])]
        {
            assert!(policy.is_permitted(&user).await, "{user:?}");
        }
        let unmapped = peer(OVERFLOW_UID, 50, &[50]);
        for user in [PeerUser::Unknown, peer(7, 7, &[3]), PeerUser::Uid(OVERFLOW_UID), unmapped] {
            assert!(!policy.is_permitted(&user).await, "{user:?}");
        }
    }

    #[tokio::test]
    async fn the_overflow_uid_is_never_trusted() {
        let policy = AnnotationPolicy { own_uid: OVERFLOW_UID, ..policy(false) };
        assert!(!policy.is_permitted(&PeerUser::Uid(OVERFLOW_UID)).await);
    }

    #[tokio::test]
    async fn annotate_all_includes_unknown_users() {
        assert!(policy(true).is_permitted(&PeerUser::Unknown).await);
    }

    #[tokio::test]
    async fn a_missing_group_has_no_members() {
        let group = AnnotationGroup { name: "none".into(), gid: None };
        let policy = AnnotationPolicy { group, ..policy(false) };
        assert!(!policy.is_permitted(&peer(7, 0, &[0])).await);
    }
}
