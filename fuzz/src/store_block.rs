//! The blocks of the store's index, its marks, the names of spans, and IDs of databases.

use wattspan::store::{DatabaseId, fuzz_entry};

/// A block has no other checksum than its own, and what is encoded is decoded.
pub fn check(bytes: &[u8]) {
    let key = bytes.first_chunk().map_or(7, |key| i64::from_le_bytes(*key));
    let stored = fuzz_entry::append_checksum(key, bytes);
    assert_eq!(fuzz_entry::strip_checksum(key, &stored), Some(bytes));
    assert_eq!(fuzz_entry::strip_checksum(key ^ 1, &stored), None, "the block of another key");
    if let Some(block) = fuzz_entry::strip_checksum(key, bytes) {
        assert_eq!(fuzz_entry::append_checksum(key, block), bytes);
    }
    let segment = key.rem_euclid(1 << 40);
    let mut entries = fuzz_entry::name_entries(segment, bytes);
    let first_id = segment << 14;
    // A block holds IDs of its segment only; other low bits are of a damaged block that its checksum rejects.
    entries.retain(|(_, _, id)| (first_id..first_id + (1 << 14)).contains(id));
    let mut stored = fuzz_entry::stored_name_entries(segment, &entries);
    stored.sort_unstable();
    entries.sort_unstable();
    assert_eq!(stored, entries);
    assert!(fuzz_entry::heads(bytes).len() <= bytes.len() / 12);
    let mut mark = bytes.to_vec();
    if fuzz_entry::is_high_water_mark(bytes) {
        mark[0] ^= 1;
        assert!(!fuzz_entry::is_high_water_mark(&mark), "a damaged mark is accepted");
    }
    mark.resize(72, 0);
    let _ = fuzz_entry::is_high_water_mark(&mark);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert_eq!(fuzz_entry::stored_span_name(text).as_deref(), Some(text));
    if let Some(id) = DatabaseId::parse(text) {
        assert_eq!(id.to_string(), text);
    }
}
