//! The users whose spans may add a model's label: root, this program's own user, and the members of one group.
//!
//! An account does not state the access of its caller. A user with coarse access may open spans with any model's name;
//! without this rule one such user could take all labels.

use std::collections::HashMap;

use wattspan_system::groups::{is_user_in_group, lookup_gid};
use wattspan_system::unix_socket::OVERFLOW_UID;

/// A group, and the users that were looked up in it.
#[derive(Debug)]
pub struct SpanGroup {
    own_uid: u32,
    gid: Option<u32>,
    members: HashMap<u32, bool>,
}

impl SpanGroup {
    /// Looks up the group; it need not exist.
    pub fn lookup(name: &str) -> Self {
        let own_uid = rustix::process::geteuid().as_raw();
        Self { own_uid, gid: lookup_gid(name), members: HashMap::new() }
    }

    /// Whether the group database has the group.
    pub fn exists(&self) -> bool {
        self.gid.is_some()
    }

    /// Whether a user is one of these.
    pub fn has_user(&mut self, uid: u32) -> bool {
        let Self { own_uid, gid, members } = self;
        let is_member = || gid.is_some_and(|gid| is_user_in_group(uid, gid));
        uid != OVERFLOW_UID && (uid == 0 || uid == *own_uid || *members.entry(uid).or_insert_with(is_member))
    }

    /// Looks up all users again.
    pub fn forget(&mut self) {
        self.members.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_own_user_are_members_and_unknown_users_are_not() {
        let mut group =
            SpanGroup { own_uid: 990, gid: None, members: HashMap::from([(7, true), (8, false)]) };
        assert_eq!(
            [0, 990, 7, 8, 9, OVERFLOW_UID].map(|uid| group.has_user(uid)),
            [true, true, true, false, false, false]
        );
        group.forget();
        assert!(!group.has_user(7));
        assert!(!SpanGroup::lookup("no such\0group").exists());
    }
}
