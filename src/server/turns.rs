//! Which client's turn is next: users in the order of the service time that they have used.
//!
//! Owns one virtual time for each user, as in start-time fair queueing (Goyal, Vin, Cheng 1996): a user that was idle begins
//! at the present virtual time, and each turn moves it on by what the turn took. So a user that asks seldom waits for one
//! turn of those that ask all the time, not for one of each. Knows no connection.

use std::collections::HashMap;

/// A client's turn while no other user was served lately, and while one was.
const ALONE_NS: u64 = 1_000_000;
const AMONG_OTHERS_NS: u64 = 100_000;

/// For so long after two users took turns, turns are short.
const LATELY_NS: u64 = 100_000_000;

/// Beyond so many users, all begin anew together.
const MANY: usize = 1024;

/// All users' times.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// By user, when its next turn would begin.
    next: HashMap<u32, u64>,
    /// When the latest turn began.
    virtual_ns: u64,
    latest: Option<u32>,
    among_others_until_ns: u64,
}

impl Turns {
    /// When a turn of this user would begin; the lowest goes first.
    pub(crate) fn rank(&self, uid: u32) -> u64 {
        self.next.get(&uid).map_or(self.virtual_ns, |next| *next.max(&self.virtual_ns))
    }

    /// How long a turn may take now.
    pub(crate) fn length_ns(&self, now_ns: u64) -> u64 {
        if now_ns < self.among_others_until_ns { AMONG_OTHERS_NS } else { ALONE_NS }
    }

    /// A turn of this user, which ended at `now_ns`, took so long.
    pub(crate) fn charge(&mut self, uid: u32, took_ns: u64, now_ns: u64) {
        let rank = self.rank(uid);
        self.virtual_ns = rank;
        self.next.insert(uid, rank + took_ns);
        if self.latest.replace(uid).is_some_and(|latest| latest != uid) {
            self.among_others_until_ns = now_ns + LATELY_NS;
        }
        if self.next.len() > MANY {
            self.next.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: u32 = 1;
    const BOB: u32 = 2;

    #[test]
    fn a_user_that_asks_seldom_comes_before_one_that_asks_all_the_time() {
        let mut turns = Turns::default();
        turns.charge(ANN, 1_000_000, 0);
        assert!(turns.rank(BOB) < turns.rank(ANN));
        turns.charge(BOB, 10, 0);
        turns.charge(ANN, 1_000_000, 0);
        assert!(turns.rank(BOB) < turns.rank(ANN));
    }

    #[test]
    fn time_in_which_a_user_was_idle_is_not_saved_up() {
        let mut turns = Turns::default();
        (0..1000).for_each(|_| turns.charge(ANN, 1000, 0));
        turns.charge(BOB, 5000, 0);
        assert!(turns.rank(BOB) > turns.rank(ANN), "one long turn, then it is the other's");
    }

    #[test]
    fn turns_are_short_only_while_several_users_take_them() {
        let mut turns = Turns::default();
        turns.charge(ANN, 10, 0);
        turns.charge(ANN, 10, 1);
        assert_eq!(turns.length_ns(2), ALONE_NS);
        turns.charge(BOB, 10, 3);
        assert_eq!(turns.length_ns(4), AMONG_OTHERS_NS);
        assert_eq!(turns.length_ns(3 + LATELY_NS), ALONE_NS);
    }

    #[test]
    fn users_that_have_gone_are_forgotten() {
        let mut turns = Turns::default();
        (0..100_000).for_each(|uid| turns.charge(uid, 10, 0));
        assert!(turns.next.len() <= MANY + 1);
    }
}
