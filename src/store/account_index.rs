//! The index of accounts: which IDs exist, which were lost, and which account has a name.
//!
//! Names are indexed by hash in blocks, one set of blocks per segment of IDs. The open segment is in memory and is
//! read from the accounts at a start; a full segment is written and never changes. Each block has a checksum, and
//! each full segment has all its blocks: a name in no block is in no account, and a block that is missing or unsound
//! is damage, not an absence. The writer's index records its changes as an [`IndexUpdate`], from which a reader keeps a copy.

use std::collections::{HashMap, HashSet};

use super::checksum::Checksum;
use super::segment_sums::SegmentSums;
use super::time::format_utc;

/// A segment has 2 to this power IDs.
pub(super) const SEGMENT_BITS: u32 = 14;

/// The number of name blocks of a segment, selected by the top bits of the hash: a look-up reads one block of 1.5 KB.
pub(super) const BUCKETS: u32 = 64;

/// The block after the name blocks: each user's latest account as of the segment's end.
pub(super) const HEADS: u32 = BUCKETS;

const BUCKET_BITS: u32 = 7;

/// A name's hash (4 bytes), its user (4) and its ID within the segment (2).
const ENTRY_BYTES: usize = 10;

pub(super) fn segment_of(id: i64) -> i64 {
    id >> SEGMENT_BITS
}

/// The first ID of a segment.
pub(super) fn segment_start(segment: i64) -> i64 {
    segment << SEGMENT_BITS
}

/// The IDs of a segment, first and last. There is no account 0.
pub(super) fn segment_ids(segment: i64) -> (i64, i64) {
    (segment_start(segment).max(1), segment_start(segment + 1) - 1)
}

/// FNV-1a, 32 bits. It only finds candidates; their names are then compared.
pub(super) fn name_hash(span: &[u8]) -> u32 {
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = span.iter().fold(0x811c_9dc5, mix);
    // The top bits of FNV-1a, which select the block, hardly depend on the last byte: mix them.
    hash.wrapping_mul(0x9e37_79b9)
}

pub(super) fn bucket(hash: u32) -> u32 {
    hash >> (u32::BITS - BUCKETS.ilog2())
}

/// A block's key in the block table.
pub(super) fn block_key(segment: i64, bucket: u32) -> i64 {
    segment << BUCKET_BITS | i64::from(bucket)
}

/// An index entry: the account of a name. It includes the user, so that a look-up for one user reads no row of
/// another user: a look-up of another user's name takes as long as one of a missing name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NameEntry {
    pub hash: u32,
    pub uid: u32,
    pub id: i64,
}

impl NameEntry {
    /// Whether the entry is a candidate for a hash; `uid` restricts the match to one user.
    pub fn matches(&self, hash: u32, uid: Option<u32>) -> bool {
        self.hash == hash && uid.is_none_or(|uid| uid == self.uid)
    }
}

/// The names of a segment that is not full, in the order of IDs.
pub(super) type OpenSegment = Vec<NameEntry>;

/// The blocks of a segment, by bucket.
pub(super) fn encode_blocks(segment: i64, names: &OpenSegment) -> Vec<Vec<u8>> {
    let mut blocks = vec![Vec::new(); BUCKETS as usize];
    for NameEntry { hash, uid, id } in names {
        let block = &mut blocks[bucket(*hash) as usize];
        block.extend(hash.to_le_bytes());
        block.extend(uid.to_le_bytes());
        block.extend(((id - segment_start(segment)) as u16).to_le_bytes());
    }
    let keyed = blocks.into_iter().zip(0..);
    keyed.map(|(block, bucket)| append_checksum(block_key(segment, bucket), block)).collect()
}

/// The IDs that a valid block has for a hash, for one user or all users, the latest first.
pub(super) fn candidates(segment: i64, block: &[u8], hash: u32, uid: Option<u32>) -> Vec<i64> {
    let entries = decode_names(segment, block).rev();
    entries.filter(|entry| entry.matches(hash, uid)).map(|entry| entry.id).collect()
}

/// Decodes the entries of a valid name block, in the order of IDs.
pub(super) fn decode_names(segment: i64, block: &[u8]) -> impl DoubleEndedIterator<Item = NameEntry> {
    block.chunks_exact(ENTRY_BYTES).map(move |bytes| {
        let word = |from: usize| u32::from_le_bytes(std::array::from_fn(|at| bytes[from + at]));
        let id = segment_start(segment) + i64::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        NameEntry { hash: word(0), uid: word(4), id }
    })
}

/// Encodes each user's latest account.
pub(super) fn encode_heads(segment: i64, heads: &HashMap<u32, i64>) -> Vec<u8> {
    let pair = |(uid, id): (&u32, &i64)| uid.to_le_bytes().into_iter().chain(id.to_le_bytes());
    append_checksum(block_key(segment, HEADS), heads.iter().flat_map(pair).collect())
}

/// Decodes each user's latest account from a valid block.
pub(super) fn decode_heads(block: &[u8]) -> HashMap<u32, i64> {
    let pair = |entry: &[u8]| {
        let id = i64::from_le_bytes(std::array::from_fn(|at| entry[4 + at]));
        (u32::from_le_bytes(std::array::from_fn(|at| entry[at])), id)
    };
    block.chunks_exact(12).map(pair).collect()
}

pub(super) fn append_checksum(key: i64, mut block: Vec<u8>) -> Vec<u8> {
    let checksum = Checksum::default().numbers(&[key]).bytes(&block).finish();
    block.extend(checksum.to_le_bytes());
    block
}

/// Returns a block without its checksum; `None` if the checksum is wrong.
pub(super) fn strip_checksum(key: i64, stored: &[u8]) -> Option<&[u8]> {
    let (block, checksum) = stored.split_last_chunk::<4>()?;
    let expected = Checksum::default().numbers(&[key]).bytes(block).finish().to_le_bytes();
    (*checksum == expected).then_some(block)
}

/// The range of IDs and the part of the index that is in memory.
#[derive(Debug)]
pub(super) struct AccountIndex {
    /// The lowest ID that was not deleted, and the highest.
    pub first_id: i64,
    pub last_id: i64,
    /// The names of the segment that is being filled.
    pub open_segment: OpenSegment,
    /// The filter of that segment, see `segment_filter`.
    pub open_values: HashSet<u32>,
    /// The sums of that segment. A copy has none.
    pub open_sums: SegmentSums,
    /// Each user's latest account.
    pub heads: HashMap<u32, i64>,
    /// `heads` is complete; otherwise a missing user has to be searched for.
    pub heads_known: bool,
    /// In the order of IDs.
    pub gaps: Vec<Gap>,
    /// The changes since the last [`Self::take_update`].
    changes: IndexUpdate,
}

/// Changes of an index, which make a copy of its earlier state equal to it.
#[derive(Debug, Default)]
pub(super) struct IndexUpdate {
    /// The earlier state does not matter: the database was opened.
    replaces: bool,
    /// The open segment was sealed, while this was the first ID; what follows belongs to the next one.
    sealed_at: Option<i64>,
    entries: Vec<NameEntry>,
    values: Vec<u32>,
    heads: HashMap<u32, i64>,
    /// 0 in an update without changes.
    first_id: i64,
    last_id: i64,
    heads_known: bool,
    gaps: Vec<Gap>,
}

impl IndexUpdate {
    /// Takes the changes, if there are any since the last call.
    pub fn take(&mut self) -> Option<Self> {
        (self.first_id > 0).then(|| std::mem::take(self))
    }

    /// Adds later changes. Those of a segment that is sealed now are dropped, so that the size stays that of one segment.
    pub fn merge(&mut self, later: Self) {
        if later.replaces {
            *self = later;
            return;
        }
        if let Some(first_id) = later.sealed_at {
            self.seal(first_id);
        }
        self.entries.extend(later.entries);
        self.values.extend(later.values);
        self.heads.extend(later.heads);
        (self.first_id, self.last_id) = (later.first_id, later.last_id);
        (self.heads_known, self.gaps) = (later.heads_known, later.gaps);
    }

    fn seal(&mut self, first_id: i64) {
        self.sealed_at = Some(first_id);
        self.entries.clear();
        self.values.clear();
        self.heads.retain(|_, id| *id >= first_id);
    }
}

impl AccountIndex {
    pub fn empty() -> Self {
        let (heads, gaps) = (HashMap::new(), Vec::new());
        let (open_segment, open_values) = (OpenSegment::new(), HashSet::new());
        let (open_sums, changes) = (SegmentSums::default(), IndexUpdate::default());
        let (first_id, last_id, heads_known) = (1, 0, true);
        Self { first_id, last_id, open_segment, open_values, open_sums, heads, heads_known, gaps, changes }
    }

    /// The changes since the last call.
    pub fn take_update(&mut self) -> IndexUpdate {
        let (first_id, last_id, heads_known) = (self.first_id, self.last_id, self.heads_known);
        let gaps = self.gaps.clone();
        IndexUpdate { first_id, last_id, heads_known, gaps, ..std::mem::take(&mut self.changes) }
    }

    /// An update that replaces the state of any copy by this one.
    pub fn full_update(&mut self) -> IndexUpdate {
        self.changes = IndexUpdate {
            replaces: true,
            entries: self.open_segment.clone(),
            values: self.open_values.iter().copied().collect(),
            heads: self.heads.clone(),
            ..IndexUpdate::default()
        };
        self.take_update()
    }

    /// Applies an update of the index that this one is a copy of.
    pub fn apply(&mut self, update: IndexUpdate) {
        if update.replaces {
            *self = Self::empty();
        }
        if let Some(first_id) = update.sealed_at {
            self.open_segment.clear();
            self.open_values.clear();
            self.heads.retain(|_, id| *id >= first_id);
        }
        self.open_segment.extend(update.entries);
        self.open_values.extend(update.values);
        self.heads.extend(update.heads);
        (self.first_id, self.last_id) = (update.first_id, update.last_id);
        (self.heads_known, self.gaps) = (update.heads_known, update.gaps);
    }

    /// Removes what is below this ID, which retention has deleted.
    pub fn set_first_id(&mut self, first_id: i64) {
        self.first_id = first_id;
        self.gaps.retain(|gap| gap.last >= first_id);
    }

    /// Takes the names, the filter and the sums of the open segment, which is full.
    pub fn seal(&mut self) -> (OpenSegment, HashSet<u32>, SegmentSums) {
        self.changes.seal(self.first_id);
        self.heads.retain(|_, id| *id >= self.first_id);
        let (names, values) = (&mut self.open_segment, &mut self.open_values);
        (std::mem::take(names), std::mem::take(values), std::mem::take(&mut self.open_sums))
    }

    /// Adds a value to the filter of the open segment.
    pub fn add_value(&mut self, hash: u32) {
        if self.open_values.insert(hash) {
            self.changes.values.push(hash);
        }
    }

    /// The highest gap with an ID in `from..=to`.
    pub fn gap_within(&self, from: i64, to: i64) -> Option<&Gap> {
        self.gaps.iter().rev().find(|gap| gap.first <= to && gap.last >= from)
    }

    pub fn append(&mut self, uid: u32, hash: u32) -> (i64, i64) {
        let id = self.last_id + 1;
        self.last_id = id;
        self.open_segment.push(NameEntry { hash, uid, id });
        self.changes.entries.push(NameEntry { hash, uid, id });
        self.changes.heads.insert(uid, id);
        let unknown = if self.heads_known { 0 } else { id - 1 };
        (id, self.heads.insert(uid, id).unwrap_or(unknown))
    }
}

/// A range of IDs whose accounts may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub first: i64,
    pub last: i64,
    /// Wall time of the account before the gap; 0 if there is none.
    pub since_s: i64,
    /// Wall time by which the last account of the gap was stored.
    pub until_s: i64,
    /// Running time of the store at `until_s`.
    pub running_s: i64,
}

/// Damage that a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Accounts that may be lost.
    Lost(Gap),
    /// Accounts or index blocks that fail their checksum or are missing, in this range of IDs.
    Corrupt { first: i64, last: i64 },
}

impl Damage {
    /// The lowest ID affected; the next page of a list starts before it.
    pub fn first(&self) -> i64 {
        match self {
            Damage::Lost(gap) => gap.first,
            Damage::Corrupt { first, .. } => *first,
        }
    }

    /// The highest ID affected.
    pub fn last(&self) -> i64 {
        match self {
            Damage::Lost(gap) => gap.last,
            Damage::Corrupt { last, .. } => *last,
        }
    }

    /// The text for a client, without IDs: they count other users' accounts.
    pub fn reason(&self) -> String {
        match self {
            Damage::Lost(Gap { since_s: 0, until_s, .. }) => {
                format!("accounts stored before {} may be lost", format_utc(*until_s))
            }
            Damage::Lost(Gap { since_s, until_s, .. }) => {
                format!(
                    "accounts stored between {} and {} may be lost",
                    format_utc(*since_s),
                    format_utc(*until_s)
                )
            }
            Damage::Corrupt { .. } => {
                "the store on disk is damaged: a checksum is wrong or a record is missing".into()
            }
        }
    }
}

impl Gap {
    /// The text for the administrator.
    pub fn describe(&self) -> String {
        let Gap { first, last, since_s, until_s, .. } = self;
        let since = if *since_s == 0 { "the beginning".into() } else { format_utc(*since_s) };
        format!("accounts {first} to {last} may be lost since {since} (until {})", format_utc(*until_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_segment_is_found_in_its_block_the_latest_first() {
        let named = |at: i64| NameEntry {
            hash: name_hash(format!("s{}", at % 900).as_bytes()),
            uid: 1,
            id: segment_start(3) + at,
        };
        let names: OpenSegment = (0..1000).map(named).collect();
        let blocks = encode_blocks(3, &names);
        for at in 0..900 {
            let hash = name_hash(format!("s{at}").as_bytes());
            let block = strip_checksum(block_key(3, bucket(hash)), &blocks[bucket(hash) as usize]).unwrap();
            let expected: Vec<i64> =
                [at + 900, at].into_iter().filter(|at| *at < 1000).map(|at| segment_start(3) + at).collect();
            assert_eq!(candidates(3, block, hash, Some(1)), expected);
            assert_eq!(candidates(3, block, hash, None), expected);
            assert!(candidates(3, block, hash, Some(2)).is_empty(), "another user's names are no candidates");
        }
        assert!(blocks.iter().all(|block| block.len() < 1700), "the hashes are spread over the blocks");
        assert_eq!(strip_checksum(block_key(4, 0), &blocks[0]), None, "a block of another segment");
    }

    #[test]
    fn heads_read_back() {
        let heads = HashMap::from([(1000, 5), (u32::MAX, i64::MAX)]);
        assert_eq!(
            decode_heads(strip_checksum(block_key(7, HEADS), &encode_heads(7, &heads)).unwrap()),
            heads
        );
    }

    /// The state that a reader uses.
    fn state(index: &AccountIndex) -> impl PartialEq + std::fmt::Debug {
        let mut values: Vec<u32> = index.open_values.iter().copied().collect();
        values.sort_unstable();
        let AccountIndex { first_id, last_id, open_segment, heads, heads_known, gaps, .. } = index;
        (*first_id, *last_id, open_segment.clone(), values, heads.clone(), *heads_known, gaps.clone())
    }

    #[test]
    fn a_copy_follows_updates_one_by_one_and_merged() {
        let mut index = AccountIndex::empty();
        for uid in 0..10 {
            index.append(uid, uid);
        }
        let [mut direct, mut merged] = [AccountIndex::empty(), AccountIndex::empty()];
        direct.apply(index.full_update());
        let mut waiting = index.full_update();
        for round in 0_u32..2000 {
            let random = name_hash(&round.to_le_bytes());
            match random % 16 {
                0 => drop(index.seal()),
                1 => index.set_first_id(index.first_id.max(index.last_id - i64::from(random >> 8 & 7))),
                2 => {
                    let id = index.last_id + 1;
                    index.gaps.push(Gap { first: id, last: id, since_s: 0, until_s: 0, running_s: 0 });
                    index.last_id = id;
                }
                3 => index.heads_known = random & 64 > 0,
                4 => waiting.merge(index.full_update()),
                _ => {
                    index.append(random >> 8 & 7, random);
                    index.add_value(random >> 16 & 31);
                }
            }
            if random >> 28 == 0 {
                waiting.take().into_iter().for_each(|update| merged.apply(update));
            }
            if random & 32 > 0 {
                waiting.merge(index.take_update());
            }
        }
        waiting.merge(index.take_update());
        merged.apply(waiting);
        assert!(state(&merged) == state(&index), "{merged:?} {index:?}");
        direct.apply(index.full_update());
        assert!(state(&direct) == state(&index));
    }
}
