//! Look-ups in the group database. They may ask a name service and take seconds.

use uzers::{get_group_by_name, get_user_by_uid, get_user_groups};

/// The ID of a group by its name; `None` if there is no such group.
pub fn lookup_gid(name: &str) -> Option<u32> {
    // A C string cannot contain NUL, so no group has such a name.
    if name.contains('\0') { None } else { get_group_by_name(name).map(|group| group.gid()) }
}

/// Whether the group is a primary or supplementary group of the user.
pub fn is_user_in_group(uid: u32, gid: u32) -> bool {
    let Some(user) = get_user_by_uid(uid) else { return false };
    let primary = user.primary_group_id();
    let groups = || get_user_groups(user.name(), primary);
    primary == gid || groups().is_some_and(|groups| groups.iter().any(|group| group.gid() == gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_group_counts() {
        let root = get_user_by_uid(0).unwrap();
        assert!(is_user_in_group(0, root.primary_group_id()));
        assert!(!is_user_in_group(0, u32::MAX - 7));
        assert!(!is_user_in_group(u32::MAX - 7, 0));
    }
}
