//! Start-time fair queueing of users (Goyal, Vin, Cheng 1996), by the service time that each has used.
//!
//! Owns the virtual time. A user that was idle starts at the current virtual time, and each slice advances it
//! by the slice's duration. A user with few calls waits for one slice of a busy user, not for one slice of
//! each of its clients.

use std::collections::HashMap;

/// Length of a slice without and with recent slices of another user.
const UNCONTENDED_SLICE_NS: u64 = 1_000_000;
const CONTENDED_SLICE_NS: u64 = 100_000;

/// Slices stay short for this time after two users alternated.
const CONTENTION_WINDOW_NS: u64 = 100_000_000;

/// Above this number of users, all start tags are reset.
const MAX_USERS: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct FairScheduler {
    /// By user id: the start tag of the next slice.
    finish_tags: HashMap<u32, u64>,
    /// Start tag of the latest slice.
    virtual_time_ns: u64,
    last_uid: Option<u32>,
    contended_until_ns: u64,
}

impl FairScheduler {
    /// The start tag of this user's next slice; the lowest is served first.
    pub(crate) fn start_tag(&self, uid: u32) -> u64 {
        self.finish_tags
            .get(&uid)
            .map_or(self.virtual_time_ns, |finish_tag| *finish_tag.max(&self.virtual_time_ns))
    }

    /// Whether two users have alternated within the last time.
    pub(crate) fn is_contended(&self, now_ns: u64) -> bool {
        now_ns < self.contended_until_ns
    }

    /// Length of a slice that starts now.
    pub(crate) fn slice_ns(&self, now_ns: u64) -> u64 {
        if self.is_contended(now_ns) { CONTENDED_SLICE_NS } else { UNCONTENDED_SLICE_NS }
    }

    /// Charges a user for a slice that ended at `now_ns`.
    pub(crate) fn charge(&mut self, uid: u32, used_ns: u64, now_ns: u64) {
        let start_tag = self.start_tag(uid);
        self.virtual_time_ns = start_tag;
        self.finish_tags.insert(uid, start_tag + used_ns);
        if self.last_uid.replace(uid).is_some_and(|last| last != uid) {
            self.contended_until_ns = now_ns + CONTENTION_WINDOW_NS;
        }
        if self.finish_tags.len() > MAX_USERS {
            self.finish_tags.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: u32 = 1;
    const BOB: u32 = 2;

    #[test]
    fn an_infrequent_user_is_served_before_a_busy_one() {
        let mut scheduler = FairScheduler::default();
        scheduler.charge(ANN, 1_000_000, 0);
        assert!(scheduler.start_tag(BOB) < scheduler.start_tag(ANN));
        scheduler.charge(BOB, 10, 0);
        scheduler.charge(ANN, 1_000_000, 0);
        assert!(scheduler.start_tag(BOB) < scheduler.start_tag(ANN));
    }

    #[test]
    fn idle_time_earns_no_credit() {
        let mut scheduler = FairScheduler::default();
        (0..1000).for_each(|_| scheduler.charge(ANN, 1000, 0));
        scheduler.charge(BOB, 5000, 0);
        assert!(
            scheduler.start_tag(BOB) > scheduler.start_tag(ANN),
            "the other user is served after one long slice"
        );
    }

    #[test]
    fn slices_are_short_only_under_contention() {
        let mut scheduler = FairScheduler::default();
        scheduler.charge(ANN, 10, 0);
        scheduler.charge(ANN, 10, 1);
        assert_eq!(scheduler.slice_ns(2), UNCONTENDED_SLICE_NS);
        scheduler.charge(BOB, 10, 3);
        assert_eq!(scheduler.slice_ns(4), CONTENDED_SLICE_NS);
        assert_eq!(scheduler.slice_ns(3 + CONTENTION_WINDOW_NS), UNCONTENDED_SLICE_NS);
    }

    #[test]
    fn the_table_of_users_is_bounded() {
        let mut scheduler = FairScheduler::default();
        (0..100_000).for_each(|uid| scheduler.charge(uid, 10, 0));
        assert!(scheduler.finish_tags.len() <= MAX_USERS + 1);
    }
}
