//! Encryption of positions in the store, for callers that see the accounts of one user only.
//!
//! All users' accounts share one number sequence, so a plain number would reveal how many accounts others have. The cipher is
//! a Feistel network over SipHash. Invariants: `decrypt(uid, encrypt(uid, number))` is `number`; a cursor of another user or
//! key is rejected, except 1 in 2^18.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// Two halves of 31 bits: the cursor is positive as a signed 64-bit integer of the protocol.
const HALF_BITS: u32 = 31;
const HALF_MASK: u64 = (1 << HALF_BITS) - 1;
/// Zero bits below the number; a wrong cursor decrypts to other bits. The 44 bits above them number the accounts of five
/// years at 100,000 per second.
const CHECK_BITS: u32 = 18;
/// Twice the rounds that make a pseudorandom permutation of random functions (Luby and Rackoff 1988).
const ROUNDS: u32 = 8;

/// The key of the cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionCipher {
    key: [u64; 2],
}

impl PositionCipher {
    /// A cipher with a key that is stored.
    pub(super) fn new(key: [u64; 2]) -> Self {
        Self { key }
    }

    /// A cipher with a new key.
    pub fn random() -> Self {
        Self { key: [0, 1].map(|half| RandomState::new().hash_one(half)) }
    }

    /// The cursor of a user for an account number.
    pub fn encrypt(&self, uid: u32, number: u64) -> u64 {
        let block = number << CHECK_BITS;
        let (mut left, mut right) = (block >> HALF_BITS & HALF_MASK, block & HALF_MASK);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.round_function(uid, round, right));
        }
        left << HALF_BITS | right
    }

    /// The account number in a cursor; `None`: the cursor was not made for this user with this key.
    pub fn decrypt(&self, uid: u32, cursor: u64) -> Option<u64> {
        if cursor >> (2 * HALF_BITS) != 0 {
            return None;
        }
        let (mut left, mut right) = (cursor >> HALF_BITS, cursor & HALF_MASK);
        for round in (0..ROUNDS).rev() {
            (left, right) = (right ^ self.round_function(uid, round, left), left);
        }
        let block = left << HALF_BITS | right;
        (block & ((1 << CHECK_BITS) - 1) == 0).then_some(block >> CHECK_BITS)
    }

    fn round_function(&self, uid: u32, round: u32, half: u64) -> u64 {
        #[expect(
            deprecated,
            reason = "the only hash of std with a key that can be stored; it is SipHash-2-4"
        )]
        let mut hasher = std::hash::SipHasher::new_with_keys(self.key[0], self.key[1]);
        (uid, round, half).hash(&mut hasher);
        hasher.finish() & HALF_MASK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_decrypts_to_its_number_only_for_its_user() {
        let cursors = PositionCipher::random();
        let mut opened_by_others = 0;
        for number in (0..2000).chain([1 << 20, (1 << 44) - 1]) {
            let cursor = cursors.encrypt(1000, number);
            assert!(i64::try_from(cursor).is_ok());
            assert_eq!(cursors.decrypt(1000, cursor), Some(number));
            opened_by_others += usize::from(cursors.decrypt(1001, cursor).is_some());
            opened_by_others += usize::from(PositionCipher::random().decrypt(1000, cursor).is_some());
            opened_by_others += usize::from(cursors.decrypt(1000, cursor ^ 1).is_some());
        }
        // One of 6,006 happens once in 40 runs, three once in a million.
        assert!(opened_by_others < 3, "{opened_by_others}");
        assert_eq!(cursors.decrypt(1000, u64::MAX), None);
    }

    #[test]
    fn a_stored_key_gives_the_same_cursors() {
        let cursor = PositionCipher::new([7, 9]).encrypt(1000, 4711);
        assert_eq!(PositionCipher::new([7, 9]).decrypt(1000, cursor), Some(4711));
    }

    #[test]
    fn cursors_reveal_neither_order_nor_distance() {
        let cursors = PositionCipher::random();
        let sealed: Vec<u64> = (1..=4096).map(|number| cursors.encrypt(1000, number)).collect();
        let rising = sealed.windows(2).filter(|pair| pair[0] < pair[1]).count();
        // Half of 4,095, the standard deviation of the rises of a random order being 18.5.
        assert!((1900..2195).contains(&rising), "{rising} of 4095 rise");
        let steps: std::collections::HashSet<u64> =
            sealed.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert_eq!(steps.len(), 4095, "equal distances give equal steps");
        for bit in 0..2 * HALF_BITS {
            let set = sealed.iter().filter(|cursor| **cursor >> bit & 1 == 1).count();
            assert!((1800..2296).contains(&set), "bit {bit} is set in {set} of 4096");
        }
    }
}
