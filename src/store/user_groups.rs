//! The sums of one user's accounts in a segment that is being filled, in groups.
//!
//! The accounts of a group have state, model, operation and name in common, and were opened in one quarter of an hour and closed in
//! one. Invariant: each account of the user is in one group, or there are no groups and the accounts are read row by row.

use std::collections::HashMap;

use super::account_record::{
    encode_state, put_text, put_varint, skip_texts, take_byte, take_bytes, take_text_bytes,
};
use super::account_sums::AccountSum;
use super::key_hash::KeyHash;
use super::summed_account::{SummedAccount, SummedAttributes};

const MINUTE_NS: u64 = 60_000_000_000;

/// How far the accounts of a user are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    NamesAndQuarterHours,
    NamesAndHours,
    Hours,
    Days,
}

impl Detail {
    fn coarser(self) -> Option<Self> {
        match self {
            Self::NamesAndQuarterHours => Some(Self::NamesAndHours),
            Self::NamesAndHours => Some(Self::Hours),
            Self::Hours => Some(Self::Days),
            Self::Days => None,
        }
    }

    /// The begin of the period of an instant. Each duration is a multiple of the one before, and a constant: a division by one
    /// is a multiplication.
    fn period_of(self, unix_ns: u64) -> u64 {
        unix_ns
            - match self {
                Self::NamesAndQuarterHours => unix_ns % (15 * MINUTE_NS),
                Self::NamesAndHours | Self::Hours => unix_ns % (60 * MINUTE_NS),
                Self::Days => unix_ns % (24 * 60 * MINUTE_NS),
            }
    }

    fn has_names(self) -> bool {
        matches!(self, Self::NamesAndQuarterHours | Self::NamesAndHours)
    }
}

/// The sum of a group, with its first and its last opening on the wall clock.
#[derive(Debug)]
struct GroupSum {
    opened_unix_ns: (u64, u64),
    sum: AccountSum,
}

impl GroupSum {
    fn new(opened_ns: u64) -> Self {
        Self { opened_unix_ns: (opened_ns, opened_ns), sum: AccountSum::default() }
    }

    fn merge(&mut self, other: &Self) {
        let ((first, last), (other_first, other_last)) = (self.opened_unix_ns, other.opened_unix_ns);
        self.opened_unix_ns = (first.min(other_first), last.max(other_last));
        self.sum.merge(&other.sum);
    }
}

/// The accounts of one user.
#[derive(Debug)]
pub(super) struct UserGroups {
    pub uid: u32,
    /// The ID of the user's account before the first one in this segment, as of `AccountRow::previous`.
    previous: i64,
    pub accounts: u64,
    /// The place of the user's last account in the segment, from 0.
    last: u64,
    /// `None`: the accounts are read row by row.
    detail: Option<Detail>,
    groups: Vec<GroupSum>,
    by_key: HashMap<Box<[u8]>, usize, KeyHash>,
    key_bytes: usize,
    /// The key of the user's last account and its group: neighbours are often of one group.
    last_key: Vec<u8>,
    last_group: usize,
}

impl UserGroups {
    pub fn new(uid: u32, previous: i64, hash: KeyHash) -> Self {
        Self {
            uid,
            previous,
            accounts: 0,
            last: 0,
            detail: Some(Detail::NamesAndQuarterHours),
            groups: Vec::new(),
            by_key: HashMap::with_hasher(hash),
            key_bytes: 0,
            last_key: Vec::new(),
            last_group: 0,
        }
    }

    /// The number of groups, and the bytes of their keys.
    pub fn size(&self) -> (usize, usize) {
        (self.groups.len(), self.key_bytes)
    }

    /// Whether the accounts are in groups.
    pub fn is_grouped(&self) -> bool {
        self.detail.is_some()
    }

    /// Counts an account, which is at this place of the segment.
    pub fn count(&mut self, place: u64) {
        self.accounts += 1;
        self.last = place;
    }

    /// Adds an account that was counted to its group. `key` is a buffer.
    pub fn add(&mut self, account: &SummedAccount<'_>, attributes: &SummedAttributes<'_>, key: &mut Vec<u8>) {
        let Some(detail) = self.detail else { return };
        if !is_key(&self.last_key, detail, account, attributes) {
            encode_key(key, detail, account, attributes);
            self.last_group = self.find_group(key, account.opened_unix_ns);
            std::mem::swap(key, &mut self.last_key);
        }
        let opened_ns = account.opened_unix_ns;
        let Some(group) = self.groups.get_mut(self.last_group) else { return };
        let (first, last) = group.opened_unix_ns;
        group.opened_unix_ns = (first.min(opened_ns), last.max(opened_ns));
        group.sum.add_account(account, attributes);
    }

    /// The place of the group with this key, which is created if there is none.
    fn find_group(&mut self, key: &[u8], opened_ns: u64) -> usize {
        if let Some(group) = self.by_key.get(key) {
            return *group;
        }
        self.key_bytes += key.len();
        self.by_key.insert(key.into(), self.groups.len());
        self.groups.push(GroupSum::new(opened_ns));
        self.groups.len() - 1
    }

    /// Merges groups, or gives them up.
    pub fn coarsen(&mut self) {
        match self.detail.and_then(Detail::coarser) {
            Some(detail) => self.merge_groups(detail),
            None => self.give_up(),
        }
    }

    /// Without groups: the accounts are read row by row.
    pub fn give_up(&mut self) {
        (self.detail, self.key_bytes) = (None, 0);
        (self.groups, self.last_key) = (Vec::new(), Vec::new());
        self.by_key = HashMap::with_hasher(*self.by_key.hasher());
    }

    fn merge_groups(&mut self, detail: Detail) {
        let by_key = HashMap::with_hasher(*self.by_key.hasher());
        let fine_keys = std::mem::replace(&mut self.by_key, by_key);
        let fine_groups = std::mem::take(&mut self.groups);
        (self.detail, self.key_bytes) = (Some(detail), 0);
        self.last_key.clear();
        for (fine_key, at) in fine_keys {
            let Some((key, group)) = coarser_key(&fine_key, detail).zip(fine_groups.get(at)) else {
                return self.give_up();
            };
            let merged = self.find_group(&key, group.opened_unix_ns.0);
            if let Some(merged) = self.groups.get_mut(merged) {
                merged.merge(group);
            }
        }
    }

    /// Appends the stored form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.uid));
        put_varint(out, self.previous.unsigned_abs());
        put_varint(out, self.accounts);
        put_varint(out, self.last);
        put_varint(out, self.groups.len() as u64);
        for (key, at) in &self.by_key {
            let Some(GroupSum { opened_unix_ns: (first, last), sum }) = self.groups.get(*at) else {
                continue;
            };
            out.extend(&key[KEY_HEAD_BYTES..]);
            put_varint(out, *first);
            put_varint(out, last - first);
            sum.encode(out);
        }
    }
}

/// The two periods at the begin of a key. State, model, operation and name follow, as they are stored.
const KEY_HEAD_BYTES: usize = 8 + 8;

fn encode_key(
    key: &mut Vec<u8>,
    detail: Detail,
    account: &SummedAccount<'_>,
    attributes: &SummedAttributes<'_>,
) {
    key.clear();
    for unix_ns in [account.opened_unix_ns, account.closed_unix_ns()] {
        key.extend_from_slice(&detail.period_of(unix_ns).to_le_bytes());
    }
    key.push(encode_state(account.state));
    let name = detail.has_names().then_some(account.name);
    for text in [attributes.model, attributes.operation, name] {
        key.push(u8::from(text.is_some()));
        text.iter().for_each(|text| put_text(key, text));
    }
}

/// Whether a key is the one that [`encode_key`] writes; an empty one never is.
fn is_key(
    key: &[u8],
    detail: Detail,
    account: &SummedAccount<'_>,
    attributes: &SummedAttributes<'_>,
) -> bool {
    let (mut from, state) = (key, encode_state(account.state));
    let is_head = [account.opened_unix_ns, account.closed_unix_ns()].into_iter().all(|unix_ns| {
        take_bytes(&mut from, 8).is_some_and(|begin| *begin == detail.period_of(unix_ns).to_le_bytes())
    });
    let name = detail.has_names().then_some(account.name);
    is_head
        && take_byte(&mut from) == Some(state)
        && [attributes.model, attributes.operation, name].into_iter().all(|text| {
            let is_there = take_byte(&mut from) == Some(u8::from(text.is_some()));
            is_there && text.is_none_or(|text| take_text_bytes(&mut from) == Some(text.as_bytes()))
        })
        && from.is_empty()
}

/// The key with less detail.
fn coarser_key(key: &[u8], detail: Detail) -> Option<Vec<u8>> {
    let mut from = key;
    let mut coarser = Vec::with_capacity(key.len());
    for _ in 0..2 {
        let period_ns = u64::from_le_bytes(take_bytes(&mut from, 8)?.try_into().ok()?);
        coarser.extend_from_slice(&detail.period_of(period_ns).to_le_bytes());
    }
    if detail.has_names() {
        coarser.extend_from_slice(from);
        return Some(coarser);
    }
    let rest = from;
    // The state, model and operation.
    take_byte(&mut from)?;
    for _ in 0..2 {
        if take_byte(&mut from)? != 0 {
            skip_texts(&mut from, 1)?;
        }
    }
    coarser.extend_from_slice(&rest[..rest.len() - from.len()]);
    // No name.
    coarser.push(0);
    Some(coarser)
}
