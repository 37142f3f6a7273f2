//! The blocks with the sums of a full segment, in the block table after those of names and filters.
//!
//! The users of a segment are divided among [`SUM_BLOCKS`] blocks, so that the sums of one user read few groups of other users. The
//! sums of a segment are there only if all its accounts were stored. Blocks without sums state that there are none.

use rusqlite::Connection;

use super::account_index::{append_checksum, block_key, segment_ids};
use super::schema::DatabaseError;
use super::segment_filter::{END_OF_FILTER_BLOCKS, read_block};
use super::segment_sums::SegmentSums;

/// The number of blocks of a segment, selected by the user, and the first of them.
const SUM_BLOCKS: u32 = 16;
pub(super) const FIRST_SUM_BLOCK: u32 = END_OF_FILTER_BLOCKS;

fn block_of(uid: u32) -> u32 {
    uid % SUM_BLOCKS
}

/// The blocks of a full segment with their keys.
pub(super) fn encode(segment: i64, sums: &SegmentSums) -> Vec<(i64, Vec<u8>)> {
    let (first, last) = segment_ids(segment);
    let parts = if sums.accounts() == (last + 1 - first).unsigned_abs() {
        sums.encode(SUM_BLOCKS as usize, |uid| block_of(uid) as usize)
    } else {
        vec![Vec::new(); SUM_BLOCKS as usize]
    };
    let keyed = (FIRST_SUM_BLOCK..).zip(parts);
    keyed
        .map(|(block, part)| {
            let key = block_key(segment, block);
            (key, append_checksum(key, part))
        })
        .collect()
}

/// The sound blocks of a segment, of one user or of all users; `None` if one is missing or damaged.
pub(super) fn read(
    connection: &Connection,
    segment: i64,
    uid: Option<u32>,
) -> Result<Option<Vec<Vec<u8>>>, DatabaseError> {
    let mut statement = connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
    let blocks = uid.map_or(0..SUM_BLOCKS, |uid| block_of(uid)..block_of(uid) + 1);
    let mut parts = Vec::new();
    for block in blocks {
        match read_block(&mut statement, block_key(segment, FIRST_SUM_BLOCK + block))? {
            Some(part) => parts.push(part),
            None => return Ok(None),
        }
    }
    Ok(Some(parts))
}
