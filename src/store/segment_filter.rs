//! The filter of a segment: which names and models its accounts have, so that a search skips segments without a match.
//!
//! A filter is a sorted list of hashes, in blocks beside those of the names. Groups of 8, 64 and 512 segments have one too, so
//! that a search of a large store reads few blocks; a group with too many values has none. A search of one user looks for hashes that include
//! the user: whether another user has the value does not change its time. Invariant: a value of an account is in the filter of
//! its segment. A segment without a filter, or with a damaged one, is read row by row.

use std::collections::{BTreeMap, HashSet};

use memchr::memmem;
use rusqlite::{Connection, OptionalExtension, Statement};

use super::account_index::{self, HEADS, block_key};
use super::account_record::stored_text;
use super::schema::{DatabaseError, unless_corrupt};

/// The attributes that name a model: of the proxy (OpenTelemetry), and of `wattspan ipw`.
const MODEL_ATTRIBUTES: [&str; 2] = ["gen_ai.request.model", "model"];

/// The number of blocks of a filter, selected by the top bits of the hash, and the first of them.
const FILTER_BLOCKS: u32 = 8;
pub(super) const FIRST_FILTER_BLOCK: u32 = HEADS + 1;
const FILTER_SHIFT: u32 = u32::BITS - FILTER_BLOCKS.ilog2();

/// A group of a level has 2 to this power groups of the level below; level 0 is one segment. Its filter has the key of its last
/// segment, after the filters of the lower levels.
const GROUP_BITS: u32 = 3;
const MAX_LEVEL: u32 = 3;

/// The maximum size of the filters from which that of a group is made. Commits wait while it is made.
const MAX_PART_BYTES: usize = 1_000_000;

/// FNV-1a of a value with the column or attribute that has it, for one user or for all users.
fn value_hash(uid: Option<u32>, field: &str, value: &[u8]) -> u32 {
    let user = uid.map_or(u64::MAX, u64::from).to_le_bytes();
    let bytes = user.iter().chain(field.as_bytes()).chain(&[0]).chain(value);
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.wrapping_mul(0x9e37_79b9)
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
    encode_sorted(segment, 0, &sorted)
}

fn encode_sorted(segment: i64, level: u32, sorted: &[u32]) -> Vec<(i64, Vec<u8>)> {
    let mut blocks = vec![Vec::new(); FILTER_BLOCKS as usize];
    for hash in sorted {
        blocks[(hash >> FILTER_SHIFT) as usize].extend(hash.to_le_bytes());
    }
    let keyed = blocks.into_iter().zip(0..);
    keyed
        .map(|(block, number)| {
            let key = first_key(segment, level) + number;
            (key, account_index::append_checksum(key, block))
        })
        .collect()
}

/// The key of the first block of a filter.
fn first_key(last_segment: i64, level: u32) -> i64 {
    block_key(last_segment, FIRST_FILTER_BLOCK + level * FILTER_BLOCKS)
}

/// The number of segments of a filter.
fn segments_of(level: u32) -> i64 {
    1 << (level * GROUP_BITS)
}

/// The levels of the groups that end with this segment, the lowest first.
pub(super) fn group_levels(last_segment: i64) -> impl Iterator<Item = u32> {
    (1..=MAX_LEVEL).take_while(move |level| (last_segment + 1) % segments_of(*level) == 0)
}

/// Writes the filter of one group from those of its parts; returns whether it was written. There is none if a part is missing
/// or damaged, or if there are too many values.
pub(super) fn write_group(
    connection: &Connection,
    level: u32,
    last_segment: i64,
) -> Result<bool, DatabaseError> {
    // What cannot be read is left to the searches, which report it.
    let Ok(Some(values)) = values_of_parts(connection, level, last_segment) else { return Ok(false) };
    Ok(unless_corrupt(write_blocks(connection, encode_sorted(last_segment, level, &values)))?.is_some())
}

/// Writes blocks in one transaction.
pub(super) fn write_blocks(
    connection: &Connection,
    blocks: impl IntoIterator<Item = (i64, Vec<u8>)>,
) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    for (key, block) in blocks {
        transaction.execute("INSERT OR REPLACE INTO block VALUES (?1, ?2)", (key, block))?;
    }
    transaction.commit()
}

/// The values of a group that has no filter yet.
fn values_of_parts(
    connection: &Connection,
    level: u32,
    last_segment: i64,
) -> rusqlite::Result<Option<Vec<u32>>> {
    let (mut values, mut bytes) = (Vec::new(), 0);
    let mut statement = connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
    if statement.exists([first_key(last_segment, level)])? {
        return Ok(None);
    }
    for part in 0..1 << GROUP_BITS {
        let first_key = first_key(last_segment - part * segments_of(level - 1), level - 1);
        for key in first_key..first_key + i64::from(FILTER_BLOCKS) {
            let mut rows = statement.query([key])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let stored = row.get_ref(0)?.as_blob().unwrap_or_default();
            bytes += stored.len();
            if bytes > MAX_PART_BYTES {
                return Ok(None);
            }
            let Some(block) = account_index::strip_checksum(key, stored) else { return Ok(None) };
            values.extend(block.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)));
        }
    }
    values.sort_unstable();
    values.dedup();
    Ok(Some(values))
}

/// The first block after those of all levels of filters.
pub(super) const END_OF_FILTER_BLOCKS: u32 = FIRST_FILTER_BLOCK + (MAX_LEVEL + 1) * FILTER_BLOCKS;

/// Reads a block without its checksum; `None` if it is missing or damaged.
pub(super) fn read_block(statement: &mut Statement<'_>, key: i64) -> Result<Option<Vec<u8>>, DatabaseError> {
    let found = unless_corrupt(statement.query_row([key], |row| row.get::<_, Vec<u8>>(0)).optional())?;
    let Some(mut bytes) = found.flatten() else { return Ok(None) };
    let length = account_index::strip_checksum(key, &bytes).map(<[u8]>::len);
    bytes.truncate(length.unwrap_or_default());
    Ok(length.map(|_| bytes))
}

/// Whether the filter of a full segment is sound and has none of these values.
pub(super) fn has_none(
    statement: &mut Statement<'_>,
    segment: i64,
    values: &[u32],
) -> Result<bool, DatabaseError> {
    for number in 0..FILTER_BLOCKS {
        let key = first_key(segment, 0) + i64::from(number);
        let Some(block) = read_block(statement, key)? else { return Ok(false) };
        let mut of_block = values.iter().filter(|hash| **hash >> FILTER_SHIFT == number);
        if of_block.any(|hash| contains(&block, *hash)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Looks values up in the filters of full segments.
pub(super) struct FilterLookup<'a> {
    statement: Statement<'a>,
    searched: &'a [u32],
}

impl<'a> FilterLookup<'a> {
    pub(super) fn new(connection: &'a Connection, searched: &'a [u32]) -> rusqlite::Result<Self> {
        Ok(Self { statement: connection.prepare("SELECT bytes FROM block WHERE id = ?1")?, searched })
    }

    /// The number of segments, down from this one, that have no account with all these values; 0 if there may be one here.
    /// `first_usable` is the lowest segment that may be among them.
    pub(super) fn excluded_down(&mut self, segment: i64, first_usable: i64) -> Result<i64, DatabaseError> {
        self.excluded(|count| {
            let is_last = (segment + 1) % count == 0 && segment + 1 - count >= first_usable;
            is_last.then_some(segment)
        })
    }

    /// The number of segments, up from this one, that have no account with all these values; 0 if there may be one here.
    /// `last_full` is the last full segment.
    pub(super) fn excluded_up(&mut self, segment: i64, last_full: i64) -> Result<i64, DatabaseError> {
        self.excluded(|count| {
            let last = segment + count - 1;
            (segment % count == 0 && last <= last_full).then_some(last)
        })
    }

    /// Tries the largest group first. `last_of` returns the last segment of the group of so many segments, if that can be used.
    fn excluded(&mut self, last_of: impl Fn(i64) -> Option<i64>) -> Result<i64, DatabaseError> {
        for level in (0..=MAX_LEVEL).rev() {
            let count = segments_of(level);
            if let Some(last) = last_of(count)
                && self.is_excluded(first_key(last, level))?
            {
                return Ok(count);
            }
        }
        Ok(0)
    }

    /// Whether the filter with this first block is sound and lacks one of the values.
    fn is_excluded(&mut self, first_key: i64) -> Result<bool, DatabaseError> {
        for hash in self.searched {
            let key = first_key + i64::from(hash >> FILTER_SHIFT);
            let Some(block) = read_block(&mut self.statement, key)? else { return Ok(false) };
            if !contains(&block, *hash) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A binary search in a block.
fn contains(block: &[u8], hash: u32) -> bool {
    let hashes = block.as_chunks::<4>().0;
    hashes.binary_search_by_key(&hash, |bytes| u32::from_le_bytes(*bytes)).is_ok()
}
