//! The parameters of ListSpans, checked once, and the answer from memory.
//!
//! The same request is answered from the store, from memory, or from memory when the store fails.

use wattspan_client::account::{Account, SpanState};
use wattspan_client::protocol::{ListSpans, MethodError, SpanAccounts};

use super::access::{Peer, is_visible_to};
use super::span_registry::SpanRegistry;
use crate::store::Filter;

/// Accounts per list where the caller names no limit.
const DEFAULT_LIST_LIMIT: i64 = 20;

const MAX_LIST_LIMIT: usize = 256;

/// A valid ListSpans call.
#[derive(Debug, Clone)]
pub(crate) struct ListRequest {
    pub(crate) limit: usize,
    pub(crate) filter: Filter,
    /// The cursor of an earlier answer.
    pub(crate) cursor: Option<i64>,
}

impl ListRequest {
    /// # Errors
    /// `InvalidValue` for a limit below 1 or a negative time.
    pub(crate) fn parse(call: &ListSpans) -> Result<Self, MethodError> {
        Ok(Self { limit: list_limit(call)?, filter: list_filter(call)?, cursor: call.before })
    }

    pub(crate) fn is_for_open_spans(&self) -> bool {
        self.filter.state == Some(SpanState::Open)
    }

    /// The latest remembered accounts that match, the latest last. `mark_durability` sets the state of each account from
    /// its number in the store. A request with a cursor gets none: memory holds the first page only.
    pub(crate) fn remembered_accounts(
        &self,
        peer: &Peer,
        registry: &SpanRegistry,
        mark_durability: impl Fn(&Account, Option<u64>) -> Account,
    ) -> SpanAccounts {
        let limit = if self.cursor.is_some() { 0 } else { self.limit };
        let matches = |account: &Account| self.filter.matches(account) && is_visible_to(peer, account);
        let latest = registry.latest_accounts(peer.uid_filter(), limit, matches);
        let accounts =
            latest.iter().map(|(account, store_number)| mark_durability(account, *store_number)).collect();
        SpanAccounts { accounts, before: None }
    }
}

fn list_limit(call: &ListSpans) -> Result<usize, MethodError> {
    match call.limit.unwrap_or(DEFAULT_LIST_LIMIT) {
        limit @ 1.. => Ok(usize::try_from(limit).unwrap_or(MAX_LIST_LIMIT).min(MAX_LIST_LIMIT)),
        _ => {
            let reason = "must be at least 1; omit it for 20".to_owned();
            Err(MethodError::InvalidValue { field: "limit".into(), reason })
        }
    }
}

fn list_filter(call: &ListSpans) -> Result<Filter, MethodError> {
    let since = call.since_unix_ns.map(u64::try_from).transpose();
    let negative = || {
        let reason = "is negative; omit it for all accounts".to_owned();
        MethodError::InvalidValue { field: "since_unix_ns".into(), reason }
    };
    Ok(Filter {
        since_unix_ns: since.map_err(|_| negative())?,
        name: call.name.clone(),
        attributes: call.attributes.clone().unwrap_or_default(),
        state: call.state,
    })
}
