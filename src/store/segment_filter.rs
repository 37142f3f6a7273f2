//! The filter of a segment: which names and models its accounts have, so that a search skips segments without a match.
//!
//! A filter is a sorted list of hashes, in blocks beside those of the names. A search of one user looks for hashes that include
//! the user: whether another user has the value does not change its time. Invariant: a value of an account is in the filter of
//! its segment. A segment without a filter, or with a damaged one, is read row by row.

use std::collections::{BTreeMap, HashSet};

use memchr::memmem;
use rusqlite::{Connection, OptionalExtension};

use super::account_index::{self, HEADS, block_key};
use super::account_record::stored_text;
use super::schema::DatabaseError;

/// The attributes that name a model: of the proxy (OpenTelemetry), and of `wattspan ipw`.
const MODEL_ATTRIBUTES: [&str; 2] = ["gen_ai.request.model", "model"];

/// The number of blocks of a filter, selected by the top bits of the hash, and the first of them.
const FILTER_BLOCKS: u32 = 8;
pub(super) const FIRST_FILTER_BLOCK: u32 = HEADS + 1;

/// FNV-1a of a value with the column or attribute that has it, for one user or for all users.
fn value_hash(uid: Option<u32>, field: &str, value: &[u8]) -> u32 {
    let user = uid.map_or(u64::MAX, u64::from).to_le_bytes();
    let bytes = user.iter().chain(field.as_bytes()).chain(&[0]).chain(value);
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.wrapping_mul(0x9e37_79b9)
}

fn filter_block(hash: u32) -> u32 {
    FIRST_FILTER_BLOCK + (hash >> (u32::BITS - FILTER_BLOCKS.ilog2()))
}

/// Passes on the hashes of an account's name and model, from its stored columns.
pub(super) fn add_values(mut add_hash: impl FnMut(u32), uid: u32, name: &str, figures: &[u8]) {
    let mut add = |field: &str, value: &[u8]| {
        add_hash(value_hash(None, field, value));
        add_hash(value_hash(Some(uid), field, value));
    };
    add("", name.as_bytes());
    for attribute in MODEL_ATTRIBUTES {
        // An attribute is stored as two texts with their lengths before them. The same bytes in another place add a hash,
        // which costs a search some time.
        let mut key = vec![attribute.len() as u8];
        key.extend(attribute.bytes());
        for position in memmem::find_iter(figures, &key) {
            if let Some(value) = stored_text(&figures[position + key.len()..]) {
                add(attribute, value);
            }
        }
    }
}

/// The hashes that an account of this name and with these attributes has; empty if none of them is indexed.
pub(super) fn searched_values(
    uid: Option<u32>,
    name: Option<&str>,
    attributes: &BTreeMap<String, String>,
) -> Vec<u32> {
    let name = name.map(|name| value_hash(uid, "", name.as_bytes()));
    let model = |attribute: &&str| {
        let value = attributes.get(*attribute)?;
        Some(value_hash(uid, attribute, value.as_bytes()))
    };
    name.into_iter().chain(MODEL_ATTRIBUTES.iter().filter_map(model)).collect()
}

/// The blocks of a segment's filter with their keys.
pub(super) fn encode_filter(segment: i64, values: &HashSet<u32>) -> Vec<(i64, Vec<u8>)> {
    let mut sorted: Vec<u32> = values.iter().copied().collect();
    sorted.sort_unstable();
    let mut blocks = vec![Vec::new(); FILTER_BLOCKS as usize];
    for hash in sorted {
        blocks[(filter_block(hash) - FIRST_FILTER_BLOCK) as usize].extend(hash.to_le_bytes());
    }
    let keyed = blocks.into_iter().zip(FIRST_FILTER_BLOCK..);
    keyed
        .map(|(block, number)| {
            let key = block_key(segment, number);
            (key, account_index::append_checksum(key, block))
        })
        .collect()
}

/// Whether a full segment may have accounts with all these values.
pub(super) fn may_contain(
    connection: &Connection,
    segment: i64,
    searched: &[u32],
) -> Result<bool, DatabaseError> {
    let mut statement = connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
    for hash in searched {
        let key = block_key(segment, filter_block(*hash));
        let found = statement.query_row([key], |row| row.get::<_, Vec<u8>>(0)).optional();
        let bytes = match found.map_err(DatabaseError::Sqlite) {
            Err(error) if error.is_corruption() => None,
            found => found?,
        };
        let Some(bytes) = bytes else { return Ok(true) };
        let Some(block) = account_index::strip_checksum(key, &bytes) else { return Ok(true) };
        if !contains(block, *hash) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A binary search in a block.
fn contains(block: &[u8], hash: u32) -> bool {
    let hashes = block.as_chunks::<4>().0;
    hashes.binary_search_by_key(&hash, |bytes| u32::from_le_bytes(*bytes)).is_ok()
}
