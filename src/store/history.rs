//! Questions to the past: one span by its name, or the latest that fit a filter.
//!
//! Owns what may be asked and how far one answer looks: a bounded number of rows, so that those who wait for a commit
//! never wait long for somebody's search. A list that ends early says where to go on. Never shows a user more than what
//! the question was allowed to: whose accounts may be seen is part of it.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Statement};

use super::database::{Broken, Database, name_key, span_name, stretch};
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
        Lookup::over(&self.connection, whose)?.latest(span)
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

/// The statements of a look-up by name.
struct Lookup<'a> {
    whose: Option<u32>,
    edges: Statement<'a>,
    ids: Statement<'a>,
    account: Statement<'a>,
}

impl<'a> Lookup<'a> {
    /// Of this user's accounts alone, and then no row of another is read; `None`: of everybody's.
    fn over(connection: &'a Connection, whose: Option<u32>) -> rusqlite::Result<Self> {
        let keys = if whose.is_some() { "hash = ?2" } else { "hash BETWEEN ?2 AND ?2 | 0xffffffff" };
        let ids = format!("SELECT id FROM named WHERE stretch = ?1 AND {keys} ORDER BY id DESC");
        let edges = "SELECT (SELECT min(id) FROM account), (SELECT max(id) FROM account)";
        Ok(Self {
            whose,
            edges: connection.prepare(edges)?,
            ids: connection.prepare(&ids)?,
            account: connection.prepare(&format!("SELECT {COLUMNS} WHERE account.id = ?1"))?,
        })
    }

    /// The latest account of this name.
    fn latest(&mut self, span: &str) -> Result<Option<Account>, Broken> {
        let whose = self.whose;
        let edges = self.edges.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let (Some(first), Some(last)): (Option<i64>, Option<i64>) = edges else { return Ok(None) };
        let key = name_key(span, whose.unwrap_or(0));
        for stretch in (stretch(first)..=stretch(last)).rev() {
            let mut candidates = self.ids.query([stretch, key])?;
            while let Some(candidate) = candidates.next()? {
                let id: i64 = candidate.get(0)?;
                let found = self.account.query_row([id], |row| Ok(read(row))).optional()?.flatten();
                let ours = |found: &Account| found.span == span && whose.is_none_or(|uid| uid == found.uid);
                if let Some(found) = found.filter(ours) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use rusqlite::StatementStatus;

    use super::super::record::tests::account;
    use super::super::{Settings, Store, Sync};
    use super::*;

    const OWN: u32 = 1;
    const OTHER: u32 = 2;

    /// A database with spans of both users.
    fn database(dir: &Path) -> (Database, Settings) {
        let settings = Settings {
            directory: dir.join("state"),
            age: Duration::from_secs(3600),
            bytes: 1 << 30,
            waiting_bytes: 1 << 24,
            sync: Sync::Normal,
        };
        let mut store = Store::start(settings.clone(), |_| ()).unwrap();
        for at in 0..300 {
            for (uid, span) in
                [(OTHER, "theirs".to_owned()), (OTHER, format!("o{at}")), (OWN, format!("s{at}"))]
            {
                assert!(store.keep(&Account { uid, ..account(&span) }, None, false));
            }
        }
        store.finish(Duration::from_secs(20));
        let file = settings.directory.join(super::super::place::FILE);
        (Database::open(&file, &settings, 0).unwrap(), settings)
    }

    /// What SQLite did to look a name up: steps of its machine, and rows it was asked for.
    fn work(database: &Database, span: &str) -> (bool, [i32; 2]) {
        let mut lookup = Lookup::over(&database.connection, Some(OWN)).unwrap();
        let found = lookup.latest(span).unwrap();
        let statements = [&lookup.edges, &lookup.ids, &lookup.account];
        let sum = |of| statements.iter().map(|statement| statement.get_status(of)).sum();
        (found.is_some(), [sum(StatementStatus::VmStep), sum(StatementStatus::Run)])
    }

    #[test]
    fn another_users_name_costs_the_work_of_one_that_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let (database, _) = database(dir.path());
        let (found, missing) = work(&database, "no such span");
        assert!(!found);
        for span in ["theirs", "o7", "o299"] {
            assert_eq!(work(&database, span), (false, missing), "{span}");
        }
        let (found, own) = work(&database, "s7");
        assert!(found && own > missing, "the count sees the work of a row that is read");
    }

    #[test]
    fn names_of_an_earlier_version_are_found_and_then_cost_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (database, settings) = database(dir.path());
        // An earlier version indexed a name without its user.
        let changed =
            database.connection.execute("UPDATE named SET hash = hash >> 32 & 0xffffffff", []).unwrap();
        assert_eq!(changed, 900);
        drop(database);
        let file = settings.directory.join(super::super::place::FILE);
        let database = Database::open(&file, &settings, 0).unwrap();
        let missing = work(&database, "no such span");
        assert_eq!(work(&database, "theirs"), missing);
        assert!(work(&database, "s7").0);
        let question = Question::Span { uid: OWN, anybody: true, span: "o7".into() };
        assert_eq!(database.answer(&question).unwrap().accounts[0].uid, OTHER);
    }
}
