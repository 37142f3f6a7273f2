//! Questions to the past: one span by its name, or the latest that fit a filter.
//!
//! Owns what may be asked and how far one answer looks: a bounded number of rows, so that those who wait for a commit
//! never wait long for somebody's search. A list that ends early says where to go on. Never shows a user more than what
//! the question was allowed to: whose accounts may be seen is part of it.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row};

use super::database::{Broken, Database, hash, span_name, stretch};
use super::record::{self, Named};
use crate::ledger::account::{Account, State};

/// Most rows that one answer looks at.
const MOST_ROWS: usize = 16_384;

/// Most bytes of accounts in one answer, so that it stays below a megabyte on the wire.
const MOST_BYTES: usize = 256 * 1024;

const COLUMNS: &str = "account.id, account.uid, account.kept_s, layout.domains, account.span, account.name, \
                       account.figures, account.layout FROM account LEFT JOIN layout ON layout.id = account.layout";

/// What an account must be to be listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Opened at this wall time or later.
    pub since_unix_ns: Option<u64>,
    /// Of this name, exactly.
    pub name: Option<String>,
    /// With these attributes, among others.
    pub attributes: BTreeMap<String, String>,
    /// In this state.
    pub state: Option<State>,
}

impl Filter {
    /// Whether the account is one of those.
    pub fn takes(&self, account: &Account) -> bool {
        self.since_unix_ns.is_none_or(|since| account.opened_unix_ns >= since)
            && self.name.as_ref().is_none_or(|name| *name == account.name)
            && self.state.is_none_or(|state| state == account.state)
            && self.attributes.iter().all(|(key, value)| account.attributes.get(key) == Some(value))
    }
}

/// A question.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// The latest span of this name: the user's own, else anybody's where that may be seen.
    Span {
        /// Whose.
        uid: u32,
        /// Others' may be seen.
        anybody: bool,
        /// Its name in the protocol.
        span: String,
    },
    /// The latest accounts that fit.
    List {
        /// Whose; `None`: everybody's.
        whose: Option<u32>,
        /// Which.
        filter: Filter,
        /// At most so many.
        limit: usize,
        /// Only those kept before this one: where an earlier answer ended.
        before: Option<u64>,
    },
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The latest first.
    pub accounts: Vec<Account>,
    /// There may be older ones: ask again with this as `before`.
    pub before: Option<u64>,
}

impl Database {
    /// Answers a question. A row that cannot be read is passed over.
    pub(super) fn answer(&self, question: &Question) -> Result<Found, Broken> {
        match question {
            Question::Span { uid, anybody, span } => {
                let mut found = self.span(span, Some(*uid))?;
                if found.is_none() && *anybody {
                    found = self.span(span, None)?;
                }
                Ok(Found { accounts: found.into_iter().collect(), before: None })
            }
            Question::List { whose, filter, limit, before } => self.list(*whose, filter, *limit, *before),
        }
    }

    fn span(&self, span: &str, whose: Option<u32>) -> Result<Option<Account>, Broken> {
        let edge = |order: &str| {
            let sql = format!("SELECT id FROM account ORDER BY id {order} LIMIT 1");
            self.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).optional()
        };
        let (Some(first), Some(last)) = (edge("ASC")?, edge("DESC")?) else { return Ok(None) };
        let mut ids = self
            .connection
            .prepare("SELECT id FROM named WHERE stretch = ?1 AND hash = ?2 ORDER BY id DESC")?;
        let mut account = self.connection.prepare(&format!("SELECT {COLUMNS} WHERE account.id = ?1"))?;
        let hash = hash(span);
        for stretch in (stretch(first)..=stretch(last)).rev() {
            let mut candidates = ids.query([stretch, hash])?;
            while let Some(candidate) = candidates.next()? {
                let id: i64 = candidate.get(0)?;
                let found = account.query_row([id], |row| Ok(read(row))).optional()?.flatten();
                let ours = |found: &Account| found.span == span && whose.is_none_or(|uid| uid == found.uid);
                if let Some(found) = found.filter(ours) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    fn list(
        &self,
        whose: Option<u32>,
        filter: &Filter,
        limit: usize,
        before: Option<u64>,
    ) -> Result<Found, Broken> {
        let of_user = if whose.is_some() { "account.uid = ?2 AND" } else { "?2 IS NULL AND" };
        let sql = format!("SELECT {COLUMNS} WHERE {of_user} account.id < ?1 ORDER BY account.id DESC");
        let mut statement = self.connection.prepare(&sql)?;
        let below = before.map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
        let mut rows = statement.query(rusqlite::params![below, whose])?;
        let since_s = filter.since_unix_ns.map_or(0, |ns| (ns / 1_000_000_000) as i64);
        let (mut found, mut looked, mut bytes) = (Found::default(), 0, 0);
        while let Some(row) = rows.next()? {
            // Accounts are kept after their spans have opened, and in the order of `kept_s`.
            if row.get::<_, i64>(2)? < since_s {
                return Ok(found);
            }
            looked += 1;
            let id: i64 = row.get(0)?;
            let named = row.get_ref(5)?.as_bytes().unwrap_or_default();
            let plausible = filter.name.as_ref().is_none_or(|name| name.as_bytes() == named);
            let account = if plausible { read(row) } else { None };
            if let Some(account) = account.filter(|account| filter.takes(account)) {
                bytes += row.get_ref(6)?.as_bytes().map_or(0, <[u8]>::len) + 512;
                found.accounts.push(account);
            }
            if found.accounts.len() >= limit || looked >= MOST_ROWS || bytes >= MOST_BYTES {
                found.before = Some(id as u64);
                return Ok(found);
            }
        }
        Ok(found)
    }
}

/// The account of a row; `None` where it was damaged.
fn read(row: &Row<'_>) -> Option<Account> {
    let column = |at| row.get_ref(at).ok();
    let bytes = |at| column(at)?.as_bytes().ok();
    // Its layout, or the number of one.
    let layout = match column(7)? {
        ValueRef::Blob(own) => own,
        _ => bytes(3)?,
    };
    let span = span_name(column(4)?)?;
    let named = Named { uid: row.get(1).ok()?, span: &span, name: std::str::from_utf8(bytes(5)?).ok()? };
    record::read(named, layout, bytes(6)?)
}
