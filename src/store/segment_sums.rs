//! The sums of the accounts of a segment in small groups, from which a query takes whole segments without reading their rows.
//!
//! The accounts of a group have user, state, model, operation and name in common, and were opened in one quarter of an hour and
//! closed in one. A segment with many groups merges them step by step: first it takes hours, then it leaves out the names, then
//! it takes days. Invariants: each account is in one group; the size is bounded; each user's groups can be read without those of the
//! others.

use std::collections::{BTreeMap, HashMap};

use wattspan_client::account::SpanState;

use super::account_record::{
    decode_state, encode_state, put_text, put_varint, skip_texts, stored_text, take_byte, take_bytes,
    take_varint,
};
use super::account_sums::AccountSum;
use super::summed_account::{SummedAccount, SummedAttributes};

/// The version of the stored form.
const FORMAT_VERSION: u8 = 1;

/// The maximum number of groups of a segment, and of the bytes of their keys: 16,384 accounts have some 3.4 MB, and these
/// groups 3 % of it.
const MAX_GROUPS: usize = 1024;
const MAX_KEY_BYTES: usize = 64 * 1024;

/// How far the groups of a segment are divided.
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

    /// The duration of a period. Each is a multiple of the one before.
    fn period_ns(self) -> u64 {
        let minutes = match self {
            Self::NamesAndQuarterHours => 15,
            Self::NamesAndHours | Self::Hours => 60,
            Self::Days => 24 * 60,
        };
        minutes * 60_000_000_000
    }

    fn has_names(self) -> bool {
        matches!(self, Self::NamesAndQuarterHours | Self::NamesAndHours)
    }
}

/// What the accounts of a group have in common.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SumGroup<'a> {
    pub uid: u32,
    pub state: SpanState,
    pub model: Option<&'a str>,
    pub operation: Option<&'a str>,
    /// `None`: their names differ.
    pub name: Option<&'a str>,
    /// The first and the last opening, on the wall clock.
    pub opened_unix_ns: (u64, u64),
    pub sum: AccountSum,
}

/// The accounts of one user in a segment.
#[derive(Debug, PartialEq)]
pub(super) struct UserSums<'a> {
    pub uid: u32,
    /// The ID of the user's account before the first one in this segment, as of `AccountRow::previous`.
    pub previous: i64,
    pub groups: Vec<SumGroup<'a>>,
}

/// The stored sums of some users.
#[derive(Debug, PartialEq)]
pub(super) struct StoredSums<'a> {
    /// When the last account of the segment was stored, in seconds since 1970.
    pub kept_s: i64,
    pub users: Vec<UserSums<'a>>,
}

#[derive(Debug)]
struct GroupSum {
    opened_unix_ns: (u64, u64),
    sum: AccountSum,
}

/// The sums of a segment that is being filled.
#[derive(Debug)]
pub(super) struct SegmentSums {
    /// The number of accounts that were added.
    accounts: i64,
    kept_s: i64,
    /// `None`: there are too many groups, or an account could not be read.
    detail: Option<Detail>,
    previous: HashMap<u32, i64>,
    groups: HashMap<Box<[u8]>, GroupSum>,
    key_bytes: usize,
    key: Vec<u8>,
}

impl Default for SegmentSums {
    fn default() -> Self {
        Self {
            accounts: 0,
            kept_s: 0,
            detail: Some(Detail::NamesAndQuarterHours),
            previous: HashMap::new(),
            groups: HashMap::new(),
            key_bytes: 0,
            key: Vec::new(),
        }
    }
}

impl SegmentSums {
    /// Adds the next account, from its stored columns. `stored`: its `kept_s` and its `previous`.
    pub fn add(&mut self, uid: u32, name: &str, layout: &[u8], figures: &[u8], stored: (i64, i64)) {
        self.accounts += 1;
        self.kept_s = stored.0;
        let Some(detail) = self.detail else { return };
        let account = SummedAccount::read(uid, name, layout, figures);
        let Some((account, attributes)) = account.and_then(|account| {
            let attributes = account.attributes()?;
            Some((account, attributes))
        }) else {
            return self.give_up();
        };
        self.previous.entry(uid).or_insert(stored.1);
        encode_key(&mut self.key, detail, &account, &attributes);
        let opened_ns = account.opened_unix_ns;
        if let Some(group) = self.groups.get_mut(&self.key[..]) {
            let (first, last) = group.opened_unix_ns;
            group.opened_unix_ns = (first.min(opened_ns), last.max(opened_ns));
            group.sum.add_account(&account, &attributes);
            return;
        }
        let mut sum = AccountSum::default();
        sum.add_account(&account, &attributes);
        self.key_bytes += self.key.len();
        self.groups.insert(self.key[..].into(), GroupSum { opened_unix_ns: (opened_ns, opened_ns), sum });
        while self.groups.len() > MAX_GROUPS || self.key_bytes > MAX_KEY_BYTES {
            self.coarsen();
        }
    }

    /// The number of accounts that were added.
    pub fn accounts(&self) -> i64 {
        self.accounts
    }

    fn give_up(&mut self) {
        (self.detail, self.key_bytes) = (None, 0);
        (self.previous, self.groups) = (HashMap::new(), HashMap::new());
    }

    /// Merges groups, or gives up.
    fn coarsen(&mut self) {
        let Some(detail) = self.detail.and_then(Detail::coarser) else { return self.give_up() };
        self.detail = Some(detail);
        self.key_bytes = 0;
        for (fine_key, group) in std::mem::take(&mut self.groups) {
            let Some(key) = coarser_key(&fine_key, detail) else { return self.give_up() };
            if let Some(merged) = self.groups.get_mut(&key[..]) {
                let ((first, last), (other_first, other_last)) =
                    (merged.opened_unix_ns, group.opened_unix_ns);
                merged.opened_unix_ns = (first.min(other_first), last.max(other_last));
                merged.sum.merge(&group.sum);
            } else {
                self.key_bytes += key.len();
                self.groups.insert(key, group);
            }
        }
    }

    /// The stored form of each part of the users, selected by `part_of`; empty parts where there are no sums.
    pub fn encode(&self, parts: usize, part_of: impl Fn(u32) -> usize) -> Vec<Vec<u8>> {
        let mut encoded = vec![Vec::new(); parts];
        if self.detail.is_none() {
            return encoded;
        }
        for part in &mut encoded {
            part.push(FORMAT_VERSION);
            put_varint(part, self.kept_s.unsigned_abs());
        }
        let mut users: BTreeMap<u32, Vec<(&[u8], &GroupSum)>> = BTreeMap::new();
        for (key, group) in &self.groups {
            users.entry(uid_of(key)).or_default().push((key, group));
        }
        for (uid, groups) in users {
            let out = &mut encoded[part_of(uid)];
            put_varint(out, u64::from(uid));
            put_varint(out, self.previous.get(&uid).map_or(0, |previous| previous.unsigned_abs()));
            put_varint(out, groups.len() as u64);
            for (key, GroupSum { opened_unix_ns: (first, last), sum }) in groups {
                out.extend(&key[KEY_HEAD_BYTES..]);
                put_varint(out, *first);
                put_varint(out, last - first);
                sum.encode(out);
            }
        }
        encoded
    }
}

/// The user and the two periods at the begin of a key. State, model, operation and name follow, as they are stored.
const KEY_HEAD_BYTES: usize = 4 + 8 + 8;

fn encode_key(
    key: &mut Vec<u8>,
    detail: Detail,
    account: &SummedAccount<'_>,
    attributes: &SummedAttributes<'_>,
) {
    key.clear();
    key.extend(account.uid.to_le_bytes());
    for unix_ns in [account.opened_unix_ns, account.closed_unix_ns()] {
        key.extend((unix_ns - unix_ns % detail.period_ns()).to_le_bytes());
    }
    key.push(encode_state(account.state));
    let name = detail.has_names().then_some(account.name);
    for text in [attributes.model, attributes.operation, name] {
        key.push(u8::from(text.is_some()));
        text.iter().for_each(|text| put_text(key, text));
    }
}

fn uid_of(key: &[u8]) -> u32 {
    key.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The key with less detail.
fn coarser_key(key: &[u8], detail: Detail) -> Option<Box<[u8]>> {
    let mut from = key;
    let mut coarser = take_bytes(&mut from, 4)?.to_vec();
    for _ in 0..2 {
        let period_ns = u64::from_le_bytes(take_bytes(&mut from, 8)?.try_into().ok()?);
        coarser.extend((period_ns - period_ns % detail.period_ns()).to_le_bytes());
    }
    if detail.has_names() {
        coarser.extend(from);
        return Some(coarser.into());
    }
    let rest = from;
    // The state, model and operation.
    take_byte(&mut from)?;
    take_optional_text(&mut from)?;
    take_optional_text(&mut from)?;
    coarser.extend(&rest[..rest.len() - from.len()]);
    // No name.
    coarser.push(0);
    Some(coarser.into())
}

fn take_optional_text<'a>(from: &mut &'a [u8]) -> Option<Option<&'a str>> {
    if take_byte(from)? == 0 {
        return Some(None);
    }
    let text = std::str::from_utf8(stored_text(from)?).ok()?;
    skip_texts(from, 1)?;
    Some(Some(text))
}

impl<'a> StoredSums<'a> {
    /// Reads a part; `None` if it has no sums, or is not valid.
    pub fn decode(part: &'a [u8]) -> Option<Self> {
        let mut rest = part;
        let from = &mut rest;
        if take_byte(from)? != FORMAT_VERSION {
            return None;
        }
        let kept_s = i64::try_from(take_varint(from)?).ok()?;
        let mut users = Vec::new();
        while !from.is_empty() {
            let uid = u32::try_from(take_varint(from)?).ok()?;
            let previous = i64::try_from(take_varint(from)?).ok()?;
            let mut groups = Vec::new();
            for _ in 0..take_varint(from)? {
                groups.push(SumGroup::decode(uid, from)?);
            }
            users.push(UserSums { uid, previous, groups });
        }
        Some(Self { kept_s, users })
    }
}

impl<'a> SumGroup<'a> {
    fn decode(uid: u32, from: &mut &'a [u8]) -> Option<Self> {
        let (state, _, _) = decode_state(take_byte(from)?)?;
        let (model, operation) = (take_optional_text(from)?, take_optional_text(from)?);
        let name = take_optional_text(from)?;
        let first = take_varint(from)?;
        let opened_unix_ns = (first, first.checked_add(take_varint(from)?)?);
        Some(Self { uid, state, model, operation, name, opened_unix_ns, sum: AccountSum::decode(from)? })
    }
}
