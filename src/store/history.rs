//! Questions to the past: one span by its name, or the latest that fit a filter.
//!
//! Owns what may be asked and how far one answer looks: a bounded number of rows, so that those who wait for a commit
//! never wait long for somebody's search. A list that ends early says where to go on. Never shows a user more than what
//! the question was allowed to: whose accounts may be seen is part of it. Invariant: nothing that is damaged or lost is
//! passed over in silence. A list ends before it, and begins with an error where it would be the first.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Statement};

use super::database::{Broken, COLUMNS, Database, SpanName, Stored, bytes_of, span_name};
use super::gap::Damage;
use super::name_index::{self, bucket, key, stretch, stretch_start};
use super::record::{self, Named};
use crate::attribution::account::{Account, State};

/// Most rows that one answer looks at.
const MOST_ROWS: usize = 16_384;

/// Most bytes of accounts in one answer, so that it stays below a megabyte on the wire.
const MOST_BYTES: usize = 256 * 1024;

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

/// Why the disk gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// What was asked for is, or may be, among accounts that are damaged or lost.
    Damaged {
        /// In words, without numbers of accounts.
        reason: String,
        /// A list goes on before it: ask again with this as `before`.
        before: Option<u64>,
    },
    /// The disk cannot be read at present.
    Unavailable {
        /// In words.
        reason: String,
    },
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{}", .0.reason())]
    Damaged(Damage),
    #[error(transparent)]
    Database(#[from] Broken),
}

impl From<rusqlite::Error> for ReadError {
    fn from(cause: rusqlite::Error) -> Self {
        ReadError::Database(cause.into())
    }
}

/// What a row is to a list.
struct Listed {
    uid: u32,
    kept_s: i64,
    previous: i64,
    bytes: usize,
    /// Where it fits.
    account: Option<Account>,
}

impl Database {
    /// Answers a question.
    pub(super) fn answer(&self, question: &Question) -> Result<Found, ReadError> {
        match question {
            Question::Span { uid, anybody, span } => {
                let mut lookup = Lookup::over(self)?;
                let mut found = lookup.latest(span, Some(*uid))?;
                if found.is_none() && *anybody {
                    found = lookup.latest(span, None)?;
                }
                Ok(Found { accounts: found.into_iter().collect(), before: None })
            }
            Question::List { whose, filter, limit, before } => self.list(*whose, filter, *limit, *before),
        }
    }

    /// Goes down the numbers; a user's own accounts each name the one before.
    fn list(
        &self,
        whose: Option<u32>,
        filter: &Filter,
        limit: usize,
        before: Option<u64>,
    ) -> Result<Found, ReadError> {
        let numbers = &self.numbers;
        let mut row = self.connection.prepare(&format!("SELECT {COLUMNS} WHERE id = ?1"))?;
        let before = before.map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
        let mut above = before.min(numbers.last + 1);
        let mut next = match whose {
            Some(uid) if before > numbers.last && numbers.heads_known => {
                numbers.heads.get(&uid).copied().unwrap_or(0)
            }
            _ => above - 1,
        };
        let since_s = filter.since_unix_ns.map_or(0, |ns| (ns / 1_000_000_000) as i64);
        let (mut found, mut looked, mut bytes) = (Found::default(), 0, 0);
        loop {
            let gap = numbers.gap_within(next.max(numbers.first), above - 1).map(|gap| Damage::Lost(*gap));
            if gap.is_none() && next < numbers.first {
                return Ok(found);
            }
            let wanted = |listed: &Stored<'_>| listed_as(listed, whose, filter);
            let listed = if gap.is_some() { None } else { self.row(&mut row, next, wanted)? };
            let Some(listed) = listed else {
                let damage = gap.unwrap_or(Damage::Unsound { first: next, last: next });
                if looked == 0 {
                    return Err(ReadError::Damaged(damage));
                }
                found.before = Some(damage.last() as u64 + 1);
                return Ok(found);
            };
            // Accounts are kept after their spans have opened, and in the order of `kept_s`.
            if listed.kept_s < since_s {
                return Ok(found);
            }
            looked += 1;
            if let Some(account) = listed.account {
                bytes += listed.bytes + 512;
                found.accounts.push(account);
            }
            if found.accounts.len() >= limit || looked >= MOST_ROWS || bytes >= MOST_BYTES {
                found.before = Some(next as u64);
                return Ok(found);
            }
            above = next;
            next = if whose == Some(listed.uid) { listed.previous } else { next - 1 };
        }
    }
}

/// A look-up by name, with its statements.
struct Lookup<'a> {
    database: &'a Database,
    row: Statement<'a>,
    block: Statement<'a>,
}

impl<'a> Lookup<'a> {
    fn over(database: &'a Database) -> rusqlite::Result<Self> {
        let row = database.connection.prepare(&format!("SELECT {COLUMNS} WHERE id = ?1"))?;
        let block = database.connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
        Ok(Self { database, row, block })
    }

    /// The latest account of this name; of one user, whose rows alone are read then, or of all. Damage on the way is an
    /// error: the latest may be there. A name that was given is unique, so what is found beyond the damage is it.
    fn latest(&mut self, span: &str, whose: Option<u32>) -> Result<Option<Account>, ReadError> {
        let (database, numbers) = (self.database, &self.database.numbers);
        let name = SpanName::of(span);
        let is_unique = matches!(name, SpanName::Given(_));
        let hash = name_index::hash(bytes_of(name.value()));
        let mut met = None;
        let mut above = numbers.last + 1;
        for stretch in (stretch(numbers.first)..=stretch(above)).rev() {
            let candidates = match self.candidates(stretch, hash, whose)? {
                Ok(candidates) => candidates,
                Err(damage) if is_unique => {
                    met = met.or(Some(damage));
                    continue;
                }
                Err(damage) => return Err(ReadError::Damaged(damage)),
            };
            for id in candidates.into_iter().filter(|id| *id >= numbers.first) {
                let gap = numbers.gap_within(id, above - 1).map(|gap| Damage::Lost(*gap));
                if let Some(damage) = gap.filter(|_| !is_unique) {
                    return Err(ReadError::Damaged(damage));
                }
                above = id;
                let Some(account) = database.row(&mut self.row, id, account)? else {
                    return Err(ReadError::Damaged(Damage::Unsound { first: id, last: id }));
                };
                if account.span == span && whose.is_none_or(|uid| uid == account.uid) {
                    return Ok(Some(account));
                }
            }
        }
        let lost = numbers.gap_within(numbers.first, numbers.last).map(|gap| Damage::Lost(*gap));
        lost.or(met).map_or(Ok(None), |damage| Err(ReadError::Damaged(damage)))
    }

    /// The numbers that a stretch has for a hash, the latest first.
    fn candidates(
        &mut self,
        of: i64,
        hash: u32,
        whose: Option<u32>,
    ) -> Result<Result<Vec<i64>, Damage>, ReadError> {
        let numbers = &self.database.numbers;
        if of == stretch(numbers.last + 1) {
            let recent = numbers.recent.iter().rev().filter(|entry| entry.fits(hash, whose));
            return Ok(Ok(recent.map(|entry| entry.id).collect()));
        }
        let (first, last) = (stretch_start(of).max(numbers.first), stretch_start(of + 1) - 1);
        let block = key(of, bucket(hash));
        let bytes = self.block.query_row([block], |row| row.get::<_, Vec<u8>>(0)).optional();
        let bytes = match bytes.map_err(Broken::Sqlite) {
            Err(broken) if broken.is_damage() => None,
            bytes => bytes?,
        };
        if let Some(block) = bytes.as_deref().and_then(|bytes| name_index::opened(block, bytes)) {
            return Ok(Ok(name_index::candidates(of, block, hash, whose)));
        }
        let lost = numbers.gaps.iter().find(|gap| gap.first <= first && gap.last >= last);
        Ok(Err(lost.map_or(Damage::Unsound { first, last }, |gap| Damage::Lost(*gap))))
    }
}

/// What a row is to a list; `None` where it is no account.
fn listed_as(stored: &Stored<'_>, whose: Option<u32>, filter: &Filter) -> Option<Listed> {
    let columns = &stored.columns;
    let plausible = whose.is_none_or(|uid| uid == columns.uid)
        && filter.name.as_ref().is_none_or(|name| name == columns.name);
    let account =
        if plausible { Some(account(stored)?).filter(|account| filter.takes(account)) } else { None };
    let (uid, kept_s, previous, bytes) = (columns.uid, stored.kept_s, stored.previous, columns.figures.len());
    Some(Listed { uid, kept_s, previous, bytes, account })
}

/// The account of a sound row.
fn account(stored: &Stored<'_>) -> Option<Account> {
    let columns = &stored.columns;
    let span = span_name(columns.span)?;
    let named = Named { uid: columns.uid, span: &span, name: columns.name };
    record::read(named, columns.layout, columns.figures)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use rusqlite::StatementStatus;

    use super::super::clock_reading::ClockReading;
    use super::super::mark::Mark;
    use super::super::record::tests::account;
    use super::super::{Settings, Store, Sync, place};
    use super::*;

    const OWN: u32 = 1;
    const OTHER: u32 = 2;

    /// A database with spans of both users, in a full stretch and in one that is being filled.
    fn database(dir: &Path) -> Database {
        let settings = Settings {
            directory: dir.join("state"),
            age: Duration::from_secs(3600),
            bytes: 1 << 30,
            waiting_bytes: 1 << 26,
            sync: Sync::Off,
        };
        let mut store = Store::start(settings.clone(), |_| ()).unwrap();
        for at in 0..9_000 {
            for (uid, span) in [(OTHER, format!("o{at}")), (OWN, format!("s{at}"))] {
                while !store.keep(&Account { uid, ..account(&span) }, None, false) {
                    std::thread::yield_now();
                }
            }
        }
        store.finish(Duration::from_secs(60));
        let file = settings.directory.join(place::FILE);
        let mark = std::fs::File::options()
            .read(true)
            .write(true)
            .open(settings.directory.join(place::MARK))
            .unwrap();
        let mark = Mark(mark);
        let database = Database::open(&file, mark, &settings, ClockReading::now()).unwrap();
        assert_eq!((database.numbers.last, stretch(database.numbers.last)), (18_000, 1));
        database
    }

    /// What SQLite did to look a name up: steps of its machine, and rows that it was asked for.
    fn work(database: &Database, span: &str) -> (bool, [i32; 2]) {
        let mut lookup = Lookup::over(database).unwrap();
        let found = lookup.latest(span, Some(OWN)).unwrap();
        let sum = |of| [&lookup.row, &lookup.block].iter().map(|statement| statement.get_status(of)).sum();
        (found.is_some(), [sum(StatementStatus::VmStep), sum(StatementStatus::Run)])
    }

    #[test]
    fn another_users_name_costs_the_work_of_one_that_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let database = database(dir.path());
        let (found, missing) = work(&database, "no such span");
        assert!(!found);
        for span in ["o7", "o8000", "o8999"] {
            assert_eq!(work(&database, span), (false, missing), "{span}");
        }
        let (found, own) = work(&database, "s7");
        assert!(found && own > missing, "the count sees the work of a row that is read");
        let question = Question::Span { uid: OWN, anybody: true, span: "o7".into() };
        assert_eq!(database.answer(&question).unwrap().accounts[0].uid, OTHER);
    }
}
