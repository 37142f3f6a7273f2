//! What the queries have in common: the filter, the limits of their turns, the errors, and the decoding of a row.

use std::collections::BTreeMap;

use wattspan_client::account::{Account, SpanState};

use super::account_index::Damage;
use super::account_record::{self, AccountIdentity};
use super::account_table::{AccountRow, decode_span_name};
use super::schema::DatabaseError;

/// The maximum number of rows that one query reads.
pub(super) const MAX_ROWS_READ: usize = 16_384;

/// The maximum number of rows or skipped segments of one turn. A reset of the write-ahead log waits for the turn.
pub(super) const ROWS_PER_TURN: usize = 256;

/// The conditions for an account to be listed; all of them apply.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Opened at this wall time or later, in nanoseconds since 1970.
    pub since_unix_ns: Option<u64>,
    /// With exactly this name.
    pub name: Option<String>,
    /// With these attributes, among others.
    pub attributes: BTreeMap<String, String>,
    /// In this state of the span.
    pub state: Option<SpanState>,
}

impl Filter {
    /// Whether the account meets all conditions.
    pub fn matches(&self, account: &Account) -> bool {
        self.since_unix_ns.is_none_or(|since| account.opened_unix_ns >= since)
            && self.name.as_ref().is_none_or(|name| *name == account.name)
            && self.state.is_none_or(|state| state == account.state)
            && self.attributes.iter().all(|(key, value)| account.attributes.get(key) == Some(value))
    }
}

/// The error of a query, in the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{}", .0.reason())]
    Damaged(Damage),
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<rusqlite::Error> for ReadError {
    fn from(cause: rusqlite::Error) -> Self {
        ReadError::Database(cause.into())
    }
}

/// Decodes the account of a row.
pub(super) fn decode_account(row: &AccountRow<'_>) -> Option<Account> {
    let columns = &row.columns;
    let span = decode_span_name(columns.span)?;
    let identity = AccountIdentity { uid: columns.uid, span: &span, name: columns.name };
    account_record::decode(identity, columns.layout, columns.figures)
}
