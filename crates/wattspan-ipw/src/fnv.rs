//! The FNV-1a hash, 64 bits.
//!
//! Hashes are stored in users' files (fingerprints of question sets, keys of verdicts), so the function must never
//! change with the compiler or a library. It is not collision-resistant against an attacker; both inputs of a
//! comparison are the user's own. The constants are those of draft-eastlake-fnv, section 5.

/// The offset basis: the initial hash.
pub const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// Continues the hash `begin` over `bytes`.
pub fn fnv1a(state: u64, bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(state, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_published_test_vectors() {
        for (text, hash) in
            [("", OFFSET_BASIS), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(fnv1a(OFFSET_BASIS, text.bytes()), hash, "{text}");
        }
    }
}
