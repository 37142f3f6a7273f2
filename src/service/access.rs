//! Access control: the access that each method needs, and the access that a peer has.
//!
//! Owns the table of methods and the rule from credentials to access. Identity comes from the transport only, never from a
//! message. Fast energy readings leak secrets (CVE-2020-8694): the kernel restricts them to root, and a user without access
//! gets none here.

use wattspan_client::account::Account;
use wattspan_client::protocol::{Access, MethodError, MethodName};
use wattspan_system::unix_socket::{OVERFLOW_UID, PeerCredentials, SocketPermissions};

use super::coarse_grid;
use crate::config::{AccessGroups, gid_by_name};

/// The access that each method needs. A method without a row does not compile.
pub fn required_access(method: MethodName) -> Access {
    use MethodName as M;
    match method {
        M::GetInfo | M::GetServiceInfo | M::GetInterfaceDescription => Access::None,
        M::OpenSpan | M::CloseSpan | M::MarkPhase | M::SetWeight | M::CancelSpan => Access::Coarse,
        M::GetSpan | M::ListSpans | M::SumSpans | M::WatchSpans => Access::Coarse,
        M::GetBalance => Access::Span,
        M::WatchDomains | M::ReadWindow => Access::Telemetry,
        M::Reload => Access::Admin,
    }
}

/// Checks that a peer may call a method. The only check, for the socket and for D-Bus.
///
/// # Errors
/// `AccessDenied` with the access that the method needs.
pub fn authorize(peer: &Peer, method: MethodName) -> Result<(), MethodError> {
    require(peer, required_access(method))
}

/// Checks that a peer still has the access with which it made a call: the reply to a query has what that access may see.
///
/// # Errors
/// `AccessDenied` with the access at the call.
pub(crate) fn check_not_reduced(now: &Peer, at_call: &Peer) -> Result<(), MethodError> {
    // No query sees more than with telemetry access.
    require(now, at_call.access.min(Access::Telemetry))
}

fn require(peer: &Peer, needs: Access) -> Result<(), MethodError> {
    if peer.access < needs {
        return Err(MethodError::AccessDenied { needs: needs.as_str().to_owned() });
    }
    Ok(())
}

/// A client's identity and access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Owner of the spans that the client opens.
    pub uid: u32,
    /// The methods and figures that the client may have.
    pub access: Access,
    /// No limit per user applies, only the totals: root and the daemon's own user.
    pub unlimited: bool,
}

impl Peer {
    /// The user whose accounts this peer may list; `None`: those of all users.
    pub(crate) fn uid_filter(&self) -> Option<u32> {
        (self.access < Access::Telemetry).then_some(self.uid)
    }
}

/// Checks the weight that a peer gives to a span. Only the maximum of coarse access is checked here; the attributor rejects
/// invalid weights.
///
/// # Errors
/// `InvalidValue`.
pub(crate) fn check_weight(peer: &Peer, weight: f64) -> Result<(), MethodError> {
    if peer.access < Access::Span { coarse_grid::check_weight(weight) } else { Ok(()) }
}

/// Whether a peer that may see accounts of the account's user may see this one. With coarse access only coarse accounts
/// are visible.
pub(crate) fn is_visible_to(peer: &Peer, account: &Account) -> bool {
    peer.access >= Access::Span || coarse_grid::is_coarse(account)
}

/// The rule from credentials to access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessPolicy {
    own_uid: u32,
    coarse_gid: Option<u32>,
    span_gid: Option<u32>,
    telemetry_gid: Option<u32>,
}

impl AccessPolicy {
    /// Looks up the groups once. A group that does not exist has no members.
    pub fn new(groups: &AccessGroups) -> Self {
        Self {
            own_uid: rustix::process::geteuid().as_raw(),
            coarse_gid: groups.coarse_group.as_deref().and_then(gid_by_name),
            span_gid: gid_by_name(&groups.span_group),
            telemetry_gid: gid_by_name(&groups.telemetry_group),
        }
    }

    /// Gives access to root and to the user of this process only.
    pub fn own_user_only() -> Self {
        let own_uid = rustix::process::geteuid().as_raw();
        Self { own_uid, coarse_gid: None, span_gid: None, telemetry_gid: None }
    }

    /// The permissions of the socket file.
    pub fn socket_permissions(&self) -> SocketPermissions {
        match self.coarse_gid {
            Some(_) => SocketPermissions::AllUsers,
            None => self.span_gid.into(),
        }
    }

    /// The peer that stands for the daemon itself.
    pub fn daemon_peer(&self) -> Peer {
        Peer { uid: self.own_uid, access: Access::Admin, unlimited: true }
    }

    /// The peer with these credentials.
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
        let unmapped_daemon = AccessPolicy { own_uid: OVERFLOW_UID, ..POLICY };
        let peer = unmapped_daemon.peer_of(&PeerCredentials { uid: OVERFLOW_UID, gid: 0, groups: vec![] });
        assert_eq!((peer.access, peer.unlimited), (Access::None, false));
    }

    #[test]
    fn a_group_that_does_not_exist_has_no_members() {
        let none = AccessPolicy { coarse_gid: None, span_gid: None, telemetry_gid: None, ..POLICY };
        assert_eq!(none.peer_of(&PeerCredentials { uid: 5, gid: 0, groups: vec![0] }).access, Access::None);
    }

    #[test]
    fn a_call_that_waits_is_denied_only_if_its_caller_may_see_less_now() {
        let peer = |access| Peer { uid: 5, access, unlimited: false };
        let check = |at_call, now| check_not_reduced(&peer(now), &peer(at_call));
        let denied = |needs: Access| Err(MethodError::AccessDenied { needs: needs.as_str().to_owned() });
        assert_eq!(check(Access::Coarse, Access::None), denied(Access::Coarse));
        assert_eq!(check(Access::Telemetry, Access::Span), denied(Access::Telemetry));
        assert_eq!(check(Access::Admin, Access::Span), denied(Access::Telemetry));
        for (at_call, now) in [
            (Access::Span, Access::Span),
            (Access::Coarse, Access::Telemetry),
            (Access::Admin, Access::Telemetry),
        ] {
            assert_eq!(check(at_call, now), Ok(()));
        }
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
