//! What is still remembered of spans: one by its name, or the latest.
//!
//! Owns the looking up and changes nothing: the register remembers and forgets.

use std::sync::Arc;

use super::span_registry::{OpenSpanEntry, SpanEntry, SpanRegistry, UserSpans};
use crate::attribution::SpanKey;
use crate::attribution::account::Account;
use crate::protocol::MethodError;

/// The most bytes of accounts in one list, as they are in memory, so that an answer stays below a megabyte.
pub(crate) const MAX_LIST_BYTES: usize = 512 * 1024;

/// What is known of a name.
#[derive(Debug)]
pub enum SpanLookup {
    /// The attributor has it.
    Unsettled(SpanKey),
    /// It is final, and to be on disk under this number.
    Settled(Arc<Account>, Option<u64>),
}

impl SpanRegistry {
    /// Whatever is known of the user's span of this name.
    pub fn find(&self, uid: u32, span: &str) -> Result<SpanLookup, MethodError> {
        let entry = self.users.get(&uid).and_then(|user| user.spans.get(span));
        entry.map(SpanLookup::from).ok_or_else(|| MethodError::NoSuchSpan { span: span.to_owned() })
    }

    /// Whatever is known of anybody's span of this name, the lowest user number first.
    pub fn find_of_any_user(&self, span: &str) -> Result<SpanLookup, MethodError> {
        let entry = self.users.values().find_map(|user| user.spans.get(span)).map(SpanLookup::from);
        entry.ok_or_else(|| MethodError::NoSuchSpan { span: span.to_owned() })
    }

    /// The spans that are open, one user's or everybody's: name and place in the attributor, in no order.
    pub fn open_spans(&self, uid_filter: Option<u32>) -> impl Iterator<Item = (&str, SpanKey)> {
        let connections =
            self.connections.values().filter(move |(uid, _)| uid_filter.is_none_or(|wanted| wanted == *uid));
        let names = connections.flat_map(|(uid, spans)| spans.iter().map(|span| (*uid, span)));
        names.filter_map(|(uid, span)| Some((&**span, self.find_open(uid, span).ok()?.key)))
    }

    /// The latest remembered accounts, one user's or everybody's, the latest last: at most `limit`, and fewer where they
    /// are large, so that an answer stays below a megabyte; each with its number in the store. Only those that `matches`.
    pub fn latest_accounts(
        &self,
        uid_filter: Option<u32>,
        limit: usize,
        matches: impl Fn(&Account) -> bool,
    ) -> Vec<(Arc<Account>, Option<u64>)> {
        let users = self.users.iter().filter(|(uid, _)| uid_filter.is_none_or(|wanted| wanted == **uid));
        let of_user = |user: &'_ UserSpans| {
            let settled = user.remembered.iter().rev().filter_map(|span| match user.spans.get(span) {
                Some(SpanEntry::Settled { account, bytes, store_number }) => {
                    Some((Arc::clone(account), *bytes, *store_number))
                }
                _ => None,
            });
            settled.filter(|(account, ..)| matches(account)).take(limit).collect::<Vec<_>>()
        };
        let mut accounts: Vec<_> = users.flat_map(|(_, user)| of_user(user)).collect();
        accounts.sort_by_key(|(account, ..)| std::cmp::Reverse((account.closed_ns, account.opened_ns)));
        let fits = accounts.into_iter().take(limit).scan(0, |sum, (account, bytes, store_number)| {
            *sum += bytes;
            (*sum <= MAX_LIST_BYTES).then_some((account, store_number))
        });
        let mut latest: Vec<_> = fits.collect();
        latest.reverse();
        latest
    }
}

impl From<&SpanEntry> for SpanLookup {
    fn from(entry: &SpanEntry) -> Self {
        match entry {
            SpanEntry::Open(OpenSpanEntry { key, .. }) | SpanEntry::Closing { key, .. } => {
                SpanLookup::Unsettled(*key)
            }
            SpanEntry::Settled { account, store_number, .. } => {
                SpanLookup::Settled(Arc::clone(account), *store_number)
            }
        }
    }
}
