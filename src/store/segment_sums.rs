//! The sums of the accounts of a segment in small groups of each user, from which a query takes whole segments without reading
//! their rows.
//!
//! Where there are many groups, those of the user with the most of them are merged step by step: first they take hours, then they
//! leave out the names, then they take days; at last there are none, and the accounts of this user are read row by row.
//! Invariants: the size is bounded, and a user cannot take the groups of a user who has fewer; each user's groups can be read without
//! those of the others.

use std::collections::HashMap;

use wattspan_client::account::SpanState;

use super::account_record::{decode_state, put_varint, skip_texts, stored_text, take_byte, take_varint};
use super::account_sums::AccountSum;
use super::key_hash::KeyHash;
use super::summed_account::{SummedAccount, SummedAttributes};
use super::user_groups::UserGroups;

/// The version of the stored form, and that in which all accounts of each user are in groups.
const FORMAT_VERSION: u8 = 2;
const GROUPS_ONLY_VERSION: u8 = 1;

/// The maximum number of groups of a segment, and of the bytes of their keys: 16,384 accounts have some 3.4 MB, and these
/// groups 3 % of it.
const MAX_GROUPS: usize = 1024;
const MAX_KEY_BYTES: usize = 64 * 1024;

/// The maximum number of users without groups; with more of them a segment has no sums.
const MAX_UNGROUPED_USERS: usize = 256;

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
    /// The number of the accounts, and the place of the last one in the segment, from 0; `None` in an older form.
    pub rows: Option<(u64, u64)>,
    /// Empty: the accounts are read row by row.
    pub groups: Vec<SumGroup<'a>>,
}

/// The stored sums of some users.
#[derive(Debug, PartialEq)]
pub(super) struct StoredSums<'a> {
    /// When the last account of the segment was stored, in seconds since 1970.
    pub kept_s: i64,
    pub users: Vec<UserSums<'a>>,
}

/// The sums of a segment that is being filled.
#[derive(Debug, Default)]
pub(super) struct SegmentSums {
    /// The number of accounts that were added.
    accounts: u64,
    kept_s: i64,
    hash: KeyHash,
    users: Vec<UserGroups>,
    by_uid: HashMap<u32, usize, KeyHash>,
    /// The user of the last account.
    last_user: usize,
    groups: usize,
    key_bytes: usize,
    ungrouped_users: usize,
    /// A buffer for the key of a group.
    key: Vec<u8>,
}

impl SegmentSums {
    /// Adds the next account, from its stored columns. `stored`: its `kept_s` and its `previous`.
    pub fn add(&mut self, uid: u32, name: &str, layout: &[u8], figures: &[u8], stored: (i64, i64)) {
        let place = self.accounts;
        self.accounts += 1;
        self.kept_s = stored.0;
        if self.is_given_up() {
            return;
        }
        let at = self.user(uid, stored.1);
        let mut key = std::mem::take(&mut self.key);
        self.change_user(at, |user| {
            user.count(place);
            if !user.is_grouped() {
                return;
            }
            match read_account(uid, name, layout, figures) {
                Some((account, attributes)) => user.add(&account, &attributes, &mut key),
                None => user.give_up(),
            }
        });
        self.key = key;
        self.keep_limits();
    }

    /// The number of accounts that were added.
    pub fn accounts(&self) -> u64 {
        self.accounts
    }

    fn is_given_up(&self) -> bool {
        self.ungrouped_users > MAX_UNGROUPED_USERS
    }

    /// The place of a user in `users`.
    fn user(&mut self, uid: u32, previous: i64) -> usize {
        if self.users.get(self.last_user).is_none_or(|user| user.uid != uid) {
            self.last_user = *self.by_uid.entry(uid).or_insert(self.users.len());
            if self.last_user == self.users.len() {
                self.users.push(UserGroups::new(uid, previous, self.hash));
            }
        }
        self.last_user
    }

    /// Changes the groups of a user, and the totals with them.
    fn change_user(&mut self, at: usize, change: impl FnOnce(&mut UserGroups)) {
        let Some(user) = self.users.get_mut(at) else { return };
        let ((groups, key_bytes), was_grouped) = (user.size(), user.is_grouped());
        change(user);
        let (groups_now, key_bytes_now) = user.size();
        self.groups = self.groups - groups + groups_now;
        self.key_bytes = self.key_bytes - key_bytes + key_bytes_now;
        self.ungrouped_users += usize::from(was_grouped && !user.is_grouped());
    }

    /// Merges groups of the user with the most of what there is too much of.
    fn keep_limits(&mut self) {
        while self.groups > MAX_GROUPS || self.key_bytes > MAX_KEY_BYTES {
            let has_too_many_groups = self.groups > MAX_GROUPS;
            let size = |user: &UserGroups| {
                let (groups, key_bytes) = user.size();
                if has_too_many_groups { groups } else { key_bytes }
            };
            let Some((largest, _)) = (0..).zip(&self.users).max_by_key(|(_, user)| size(user)) else {
                return;
            };
            self.change_user(largest, UserGroups::coarsen);
        }
        if self.is_given_up() {
            (self.users, self.groups, self.key_bytes) = (Vec::new(), 0, 0);
            self.by_uid = HashMap::default();
        }
    }

    /// The stored form of each part of the users, selected by `part_of`; empty parts where no user has groups.
    pub fn encode(&self, parts: usize, part_of: impl Fn(u32) -> usize) -> Vec<Vec<u8>> {
        let mut encoded = vec![Vec::new(); parts];
        if !self.users.iter().any(UserGroups::is_grouped) {
            return encoded;
        }
        for part in &mut encoded {
            part.push(FORMAT_VERSION);
            put_varint(part, self.kept_s.unsigned_abs());
        }
        let mut users: Vec<&UserGroups> = self.users.iter().collect();
        users.sort_by_key(|user| user.uid);
        users.into_iter().for_each(|user| user.encode(&mut encoded[part_of(user.uid)]));
        encoded
    }
}

fn read_account<'a>(
    uid: u32,
    name: &'a str,
    layout: &[u8],
    figures: &'a [u8],
) -> Option<(SummedAccount<'a>, SummedAttributes<'a>)> {
    let account = SummedAccount::read(uid, name, layout, figures)?;
    let attributes = account.attributes()?;
    Some((account, attributes))
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
        let version = take_byte(from)?;
        if ![FORMAT_VERSION, GROUPS_ONLY_VERSION].contains(&version) {
            return None;
        }
        let kept_s = i64::try_from(take_varint(from)?).ok()?;
        let mut users = Vec::new();
        while !from.is_empty() {
            users.push(UserSums::decode(version, from)?);
        }
        Some(Self { kept_s, users })
    }
}

impl<'a> UserSums<'a> {
    fn decode(version: u8, from: &mut &'a [u8]) -> Option<Self> {
        let uid = u32::try_from(take_varint(from)?).ok()?;
        let previous = i64::try_from(take_varint(from)?).ok()?;
        let rows = match version {
            GROUPS_ONLY_VERSION => None,
            _ => Some((take_varint(from)?, take_varint(from)?)),
        };
        let count = take_varint(from)?;
        if count == 0 && rows.is_none() {
            return None;
        }
        let mut groups = Vec::new();
        for _ in 0..count {
            groups.push(SumGroup::decode(uid, from)?);
        }
        Some(Self { uid, previous, rows, groups })
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
