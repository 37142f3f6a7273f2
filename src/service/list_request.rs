//! The parameters of ListSpans, checked once, and the answer from memory.
//!
//! The same request is answered from the store, from memory, or from memory when the store fails.

use wattspan_client::account::{Account, SpanState};
use wattspan_client::protocol::{Access, ListSpans, MethodError, SpanAccounts};

use super::access::{Peer, is_visible_to};
use super::span_registry::SpanRegistry;
use crate::store::{DatabaseId, Filter, ForwardQuery, ReplyForm};

/// Accounts per list where the caller names no limit.
const DEFAULT_LIST_LIMIT: i64 = 20;

const MAX_LIST_LIMIT: usize = 256;

/// The maximum of a list after a number: the store encodes it, and the bytes of a reply limit it too.
const MAX_FORWARD_LIMIT: usize = 4096;

/// A valid ListSpans call.
#[derive(Debug, Clone)]
pub(crate) struct ListRequest {
    pub(crate) limit: usize,
    pub(crate) filter: Filter,
    /// The cursor of an earlier answer.
    pub(crate) cursor: Option<i64>,
    /// The position from which the list runs forward.
    pub(crate) after: Option<StartPosition>,
}

/// A valid position in the store from which accounts are read forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartPosition {
    /// 0, or the position of an earlier reply.
    pub after: u64,
    /// The database that the position belongs to, if the caller names one.
    pub database: Option<DatabaseId>,
}

impl StartPosition {
    /// The position in a call; `None` if it has none.
    ///
    /// # Errors
    /// `InvalidValue`: a value is invalid, or there is a database without a position. `AccessDenied`: coarse access, which
    /// shows nothing of the order in which accounts became final.
    pub(crate) fn parse(
        peer: &Peer,
        after: Option<i64>,
        database: Option<&str>,
    ) -> Result<Option<Self>, MethodError> {
        let invalid = |field: &str, reason: &str| MethodError::InvalidValue {
            field: field.into(),
            reason: reason.into(),
        };
        let Some(after) = after else {
            let reason = "belongs to after, which is missing";
            return database.map_or(Ok(None), |_| Err(invalid("database", reason)));
        };
        if peer.access < Access::Span {
            return Err(MethodError::AccessDenied { needs: Access::Span.as_str().to_owned() });
        }
        let after =
            u64::try_from(after).map_err(|_| invalid("after", "is negative; use 0 for all accounts"))?;
        let id = database.map(|text| {
            DatabaseId::parse(text).ok_or_else(|| invalid("database", "is not a UUID as GetInfo returns it"))
        });
        Ok(Some(Self { after, database: id.transpose()? }))
    }
}

impl ListRequest {
    /// # Errors
    /// `InvalidValue` for a limit below 1, a negative time, or a list in two directions. `AccessDenied`, see
    /// [`StartPosition::parse`].
    pub(crate) fn parse(peer: &Peer, call: &ListSpans) -> Result<Self, MethodError> {
        let after = StartPosition::parse(peer, call.after, call.database.as_deref())?;
        let invalid = |field: &str, reason: &str| {
            Err(MethodError::InvalidValue { field: field.to_owned(), reason: reason.to_owned() })
        };
        if after.is_some() && call.before.is_some() {
            return invalid("before", "cannot be combined with after");
        }
        if after.is_some() && call.state == Some(SpanState::Open) {
            return invalid("state", "cannot be open with after: open spans have no number");
        }
        Ok(Self { limit: list_limit(call)?, filter: list_filter(call)?, cursor: call.before, after })
    }

    /// The query for the accounts after the position, if the request has one.
    pub(crate) fn forward_query(&self, peer: &Peer) -> Option<ForwardQuery> {
        let StartPosition { after, database } = self.after?;
        Some(ForwardQuery {
            uid: peer.uid_filter(),
            filter: self.filter.clone(),
            limit: self.limit,
            after,
            database,
            form: ReplyForm::List,
            gaps: Vec::new(),
        })
    }

    pub(crate) fn is_for_open_spans(&self) -> bool {
        self.filter.state == Some(SpanState::Open)
    }

    /// Whether it goes on after an earlier page, of which memory has none.
    pub(crate) fn is_continued(&self) -> bool {
        self.cursor.is_some()
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
        SpanAccounts::of_accounts(accounts)
    }
}

fn list_limit(call: &ListSpans) -> Result<usize, MethodError> {
    let max = if call.after.is_some() { MAX_FORWARD_LIMIT } else { MAX_LIST_LIMIT };
    match call.limit.unwrap_or(DEFAULT_LIST_LIMIT) {
        limit @ 1.. => Ok(usize::try_from(limit).unwrap_or(max).min(max)),
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
