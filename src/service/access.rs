//! Who may ask what.
//!
//! Owns the one table from methods to the least access, and the one rule from a peer's credentials to its access.
//! Identity comes from the transport only; nothing a message says changes it. Fast energy readings leak secrets
//! (CVE-2020-8694), which is why the kernel keeps them for root, and why a stranger gets none here.

use crate::config::{AccessGroups, gid_by_name};
use crate::protocol::{Access, MethodError, MethodName};
use crate::unix_socket::{OVERFLOW_UID, PeerCredentials, SocketPermissions};

/// The least access each method needs: the table. A method that has no row here does not compile.
pub fn required_access(method: MethodName) -> Access {
    use MethodName as M;
    match method {
        M::GetInfo | M::GetServiceInfo | M::GetInterfaceDescription => Access::None,
        M::OpenSpan | M::CloseSpan | M::MarkPhase | M::SetWeight | M::CancelSpan => Access::Coarse,
        M::GetSpan | M::ListSpans | M::WatchSpans => Access::Coarse,
        M::GetBalance => Access::Span,
        M::WatchDomains | M::ReadWindow => Access::Telemetry,
        M::Reload => Access::Admin,
    }
}

/// Whether this peer may call this method at all; both doors ask here and nowhere else.
///
/// # Errors
/// `AccessDenied` with the least access that would do.
pub fn authorize(peer: &Peer, method: MethodName) -> Result<(), MethodError> {
    let needs = required_access(method);
    if peer.access < needs {
        return Err(MethodError::AccessDenied { needs: needs.as_str().to_owned() });
    }
    Ok(())
}

/// A caller, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Whose spans it may touch.
    pub uid: u32,
    /// What it may ask.
    pub access: Access,
    /// Root and the daemon's own user are bound by the totals only.
    pub unlimited: bool,
}

/// From credentials to access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessPolicy {
    own_uid: u32,
    coarse_gid: Option<u32>,
    span_gid: Option<u32>,
    telemetry_gid: Option<u32>,
}

impl AccessPolicy {
    /// The rule with these groups, which are looked up once, now; a group that does not exist has no members.
    pub fn new(groups: &AccessGroups) -> Self {
        Self {
            own_uid: rustix::process::geteuid().as_raw(),
            coarse_gid: groups.coarse_group.as_deref().and_then(gid_by_name),
            span_gid: gid_by_name(&groups.span_group),
            telemetry_gid: gid_by_name(&groups.telemetry_group),
        }
    }

    /// Who may open the socket.
    pub fn socket_permissions(&self) -> SocketPermissions {
        match self.coarse_gid {
            Some(_) => SocketPermissions::AllUsers,
            None => self.span_gid.into(),
        }
    }

    /// The daemon's own process at the other end.
    pub fn daemon_peer(&self) -> Peer {
        Peer { uid: self.own_uid, access: Access::Admin, unlimited: true }
    }

    /// What somebody with these credentials may do.
    pub fn peer_of(&self, credentials: &PeerCredentials) -> Peer {
        let uid = credentials.uid;
        let unlimited = uid != OVERFLOW_UID && (uid == 0 || uid == self.own_uid);
        let member = |group: Option<u32>| group.is_some_and(|group| credentials.has_group(group));
        let access = match () {
            () if unlimited => Access::Admin,
            () if uid == OVERFLOW_UID => Access::None,
            () if member(self.telemetry_gid) => Access::Telemetry,
            () if member(self.span_gid) => Access::Span,
            () if member(self.coarse_gid) => Access::Coarse,
            () => Access::None,
        };
        Peer { uid, access, unlimited }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: AccessPolicy =
        AccessPolicy { own_uid: 990, coarse_gid: Some(40), span_gid: Some(50), telemetry_gid: Some(60) };

    fn access(uid: u32, gid: u32, groups: &[u32]) -> Access {
        POLICY.peer_of(&PeerCredentials { uid, gid, groups: groups.to_vec() }).access
    }

    #[test]
    fn root_and_the_daemon_user_have_admin_access() {
        assert_eq!(access(0, 0, &[]), Access::Admin);
        assert_eq!(access(990, 990, &[]), Access::Admin);
    }

    #[test]
    fn groups_give_access_whether_primary_or_not_and_the_higher_one_wins() {
        assert_eq!(access(1000, 50, &[]), Access::Span);
        assert_eq!(access(1000, 1000, &[7, 50]), Access::Span);
        assert_eq!(access(1000, 50, &[60]), Access::Telemetry);
        assert_eq!(access(1000, 40, &[]), Access::Coarse);
        assert_eq!(access(1000, 1000, &[40, 50]), Access::Span);
        assert_eq!(access(1000, 1000, &[7]), Access::None);
    }

    #[test]
    fn the_overflow_uid_has_no_access_whatever_its_groups() {
        assert_eq!(access(OVERFLOW_UID, 60, &[50, 60]), Access::None);
        let nobody = AccessPolicy { own_uid: OVERFLOW_UID, ..POLICY };
        let peer = nobody.peer_of(&PeerCredentials { uid: OVERFLOW_UID, gid: 0, groups: vec![] });
        assert_eq!((peer.access, peer.unlimited), (Access::None, false));
    }

    #[test]
    fn a_group_that_does_not_exist_has_no_members() {
        let none = AccessPolicy { coarse_gid: None, span_gid: None, telemetry_gid: None, ..POLICY };
        assert_eq!(none.peer_of(&PeerCredentials { uid: 5, gid: 0, groups: vec![0] }).access, Access::None);
    }

    #[test]
    fn no_user_is_coarse_until_a_group_is_configured() {
        let policy = AccessPolicy::new(&AccessGroups::default());
        assert_eq!(
            (policy.coarse_gid, policy.socket_permissions() == SocketPermissions::AllUsers),
            (None, false)
        );
        let named = AccessPolicy::new(&AccessGroups {
            coarse_group: Some("daemon".into()),
            ..AccessGroups::default()
        });
        assert_eq!(
            (named.coarse_gid.is_some(), named.socket_permissions()),
            (true, SocketPermissions::AllUsers)
        );
    }
}
