//! The access of the thread for queries to the database, beside the store's thread, which writes it.
//!
//! The writer publishes its commits; the reader has a connection and a copy of the index of its own. Invariants: a turn of the
//! reader sees all commits that were published before it; no read connection is open while the writer opens the file, because
//! the index of the write-ahead log, which connections share, would not be read anew from the file.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rusqlite::Connection;

use super::account_index::{AccountIndex, IndexUpdate};
use super::account_read::ReadError;
use super::account_table::LayoutTable;
use super::database_identity::DatabaseIdentity;
use super::read_view::ReadView;
use super::retention_state::Retention;
use super::schema::{DatabaseError, open_read_connection};

/// The database that the writer has opened.
#[derive(Debug, Clone)]
pub(super) struct OpenedFile {
    pub path: PathBuf,
    /// Device and inode number.
    pub inode: (u64, u64),
    pub identity: DatabaseIdentity,
}

/// The state that both threads share.
#[derive(Default)]
pub(super) struct ReadAccess {
    /// Locked before `turns`, and by a reader only for a moment: so the writer does not wait for more than one turn.
    entry: Mutex<()>,
    /// Shared by all turns, each with a connection of its own.
    turns: RwLock<()>,
    /// Locked during a turn of the reader. `None` while the database is not open.
    reader: Mutex<Option<Reader>>,
    /// Locked for moments only.
    published: Mutex<Published>,
    progress: Condvar,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first attempt to open the database has not ended.
    #[default]
    Opening,
    Open,
    Closed,
}

#[derive(Default)]
struct Published {
    phase: Phase,
    /// The last sequence number on disk.
    committed: u64,
    /// The changes of the index that the reader has not taken.
    update: IndexUpdate,
    /// The number of layouts in the database.
    layouts: usize,
}

/// The reader's side of an open database.
struct Reader {
    file: OpenedFile,
    /// Opened by the first query.
    connection: Option<Connection>,
    index: AccountIndex,
    layouts: LayoutTable,
    /// The number of layouts when they were loaded.
    loaded_layouts: usize,
}

/// No turn runs while this value lives.
pub(super) struct ReadPause<'a> {
    _entry: MutexGuard<'a, ()>,
    _turns: RwLockWriteGuard<'a, ()>,
}

impl ReadAccess {
    /// Writer: waits for the present turns, and allows none until the returned value is dropped.
    pub fn pause(&self) -> ReadPause<'_> {
        let entry = lock(&self.entry);
        ReadPause { _entry: entry, _turns: self.turns.write().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Begins a turn, which ends when the returned value is dropped. A read transaction of any connection is inside a turn.
    pub fn begin_turn(&self) -> RwLockReadGuard<'_, ()> {
        drop(lock(&self.entry));
        self.turns.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writer: the database is open, with this index.
    pub fn open(&self, file: OpenedFile, update: IndexUpdate, layouts: usize) {
        *lock(&self.reader) = Some(Reader {
            file,
            connection: None,
            index: AccountIndex::empty(),
            layouts: LayoutTable::default(),
            loaded_layouts: 0,
        });
        let mut published = lock(&self.published);
        (published.phase, published.update, published.layouts) = (Phase::Open, update, layouts);
        self.progress.notify_all();
    }

    /// Writer: a transaction was committed; it has the accounts up to the sequence number `committed`.
    pub fn publish(&self, committed: Option<u64>, update: IndexUpdate, layouts: usize) {
        let mut published = lock(&self.published);
        published.update.merge(update);
        published.layouts = layouts;
        published.committed = committed.unwrap_or(published.committed);
        self.progress.notify_all();
    }

    /// Writer: closes the reader's connection, because the database is closed next.
    pub fn close(&self) {
        let _pause = self.pause();
        *lock(&self.reader) = None;
        let mut published = lock(&self.published);
        (published.phase, published.update) = (Phase::Closed, IndexUpdate::default());
        self.progress.notify_all();
    }

    /// Reader: waits until the account with this sequence number is on disk, or until the database is closed.
    pub fn wait_for(&self, number: u64) {
        let mut published = lock(&self.published);
        while !published.is_ready(number) {
            published = self.progress.wait(published).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reader: whether [`Self::wait_for`] would return at once.
    pub fn is_ready(&self, number: u64) -> bool {
        lock(&self.published).is_ready(number)
    }

    /// Reader: runs one turn in a read transaction; `None` if the database is not open.
    pub fn run_turn<T>(
        &self,
        read: impl FnOnce(&ReadView<'_>) -> Result<T, ReadError>,
    ) -> Option<Result<T, ReadError>> {
        let _turn = self.begin_turn();
        let mut reader = lock(&self.reader);
        let reader = reader.as_mut()?;
        let (update, layouts) = {
            let mut published = lock(&self.published);
            (published.update.take(), published.layouts)
        };
        Some(reader.run_turn(update, layouts, read))
    }
}

impl Published {
    fn is_ready(&self, number: u64) -> bool {
        match self.phase {
            Phase::Opening => false,
            Phase::Open => self.committed >= number,
            Phase::Closed => true,
        }
    }
}

impl Reader {
    fn run_turn<T>(
        &mut self,
        update: Option<IndexUpdate>,
        layouts: usize,
        read: impl FnOnce(&ReadView<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        if let Some(update) = update {
            self.index.apply(update);
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            closed => closed.insert(open_connection(&self.file)?),
        };
        // Ends when it is dropped. Its first statement, in `Retention::load`, fixes the state that it sees.
        let transaction = connection.unchecked_transaction()?;
        // The state may be later than the index: accounts may have been deleted since.
        let first_id = Retention::load(&transaction)?.first;
        if first_id > self.index.first_id {
            self.index.set_first_id(first_id);
        }
        if self.loaded_layouts != layouts {
            self.layouts = LayoutTable::load(&transaction)?;
            self.loaded_layouts = layouts;
        }
        let identity = self.file.identity;
        read(&ReadView { connection: &transaction, identity, layouts: &self.layouts, index: &self.index })
    }
}

/// Opens the reader's connection, unless another file is at the path now.
fn open_connection(file: &OpenedFile) -> Result<Connection, DatabaseError> {
    let connection = open_read_connection(&file.path)?;
    let found = std::fs::symlink_metadata(&file.path).map_err(DatabaseError::File)?;
    if (found.dev(), found.ino()) != file.inode {
        return Err(DatabaseError::File(io::Error::other("the file was replaced")));
    }
    Ok(connection)
}

/// Ignores poisoning: after a panic of a turn the reader's state is that of the turn's begin.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::account_read::Filter;
    use super::super::database::Database;
    use super::super::query::{RunningQuery, StoreQuery};
    use super::super::tests::{Fixture, account_of};
    use super::*;

    fn open(fixture: &Fixture, database: &mut Database) -> ReadAccess {
        let access = ReadAccess::default();
        let path = fixture.dir.path().join("database");
        let found = std::fs::metadata(&path).unwrap();
        let inode = (found.dev(), found.ino());
        let file = OpenedFile { path, inode, identity: database.identity };
        let (_, layouts) = database.take_index_update();
        access.open(file, database.index.full_update(), layouts);
        access
    }

    fn publish(access: &ReadAccess, database: &mut Database) {
        let (update, layouts) = database.take_index_update();
        access.publish(None, update, layouts);
    }

    fn find(view: &ReadView<'_>, query: &StoreQuery) -> Result<Vec<String>, ReadError> {
        let mut running = RunningQuery::new(query.clone());
        loop {
            if let Some(found) = running.run_turn(view)? {
                return Ok(found.accounts.into_iter().map(|account| account.span).collect());
            }
        }
    }

    fn all() -> StoreQuery {
        StoreQuery::List { uid: None, filter: Filter::default(), limit: 3, before: None }
    }

    fn named(span: &str) -> StoreQuery {
        StoreQuery::Span { uid: 1, all_users: false, span: span.into() }
    }

    #[test]
    fn a_commit_waits_for_no_turn_and_is_seen_once_published() {
        let mut fixture = Fixture::new();
        let mut database = fixture.open();
        fixture.write(&mut database, [account_of(1, "a".into())]);
        let access = open(&fixture, &mut database);
        let turn = access.run_turn(|view| {
            assert_eq!(find(view, &all())?, ["a"]);
            // The whole segment and its index blocks.
            fixture.write(&mut database, (0..20_000).map(|at| account_of(1, format!("s{at}"))));
            assert_eq!(find(view, &named("s7"))?, Vec::<String>::new());
            find(view, &all())
        });
        assert_eq!(turn.unwrap().unwrap(), ["a"]);
        let turn = |query| access.run_turn(|view| find(view, &query)).unwrap().unwrap();
        assert_eq!(turn(all()), ["a"], "the accounts up to the last published one");
        publish(&access, &mut database);
        assert_eq!(turn(all()), ["s19999", "s19998", "s19997"]);
        for span in ["s7", "s19000"] {
            assert_eq!(turn(named(span)), [span]);
        }
        access.close();
        assert!(access.run_turn(|view| find(view, &all())).is_none());
    }

    #[test]
    fn a_deletion_that_is_not_published_is_no_damage() {
        let mut fixture = Fixture::new();
        let mut database = fixture.open();
        fixture.write(&mut database, (0..20_000).map(|at| account_of(1, format!("old{at}"))));
        fixture.advance(40 * 86_400);
        fixture.write(&mut database, [account_of(1, "new".into())]);
        let access = open(&fixture, &mut database);
        let turn = |query| access.run_turn(|view| find(view, &query)).unwrap().unwrap();
        assert_eq!(turn(all()), ["new", "old19999", "old19998"]);
        assert_eq!(fixture.apply_retention(&mut database).0, 1);
        assert_eq!(turn(all()), ["new"]);
        assert_eq!(turn(named("old3")), Vec::<String>::new());
    }

    #[test]
    fn another_file_at_the_path_is_not_read() {
        let mut fixture = Fixture::new();
        let mut database = fixture.open();
        fixture.write(&mut database, [account_of(1, "a".into())]);
        let access = open(&fixture, &mut database);
        let path = fixture.dir.path().join("database");
        std::fs::rename(&path, fixture.dir.path().join("aside")).unwrap();
        std::fs::copy(fixture.dir.path().join("aside"), &path).unwrap();
        let error = access.run_turn(|view| find(view, &all())).unwrap().unwrap_err();
        assert!(error.to_string().contains("was replaced"), "{error}");
    }

    #[test]
    fn the_log_is_emptied_although_a_query_runs_at_each_commit() {
        let mut fixture = Fixture::new();
        let mut database = fixture.open();
        let access = open(&fixture, &mut database);
        let mut longest = 0;
        for round in 0..200 {
            let turn = access.run_turn(|view| {
                find(view, &all())?;
                // This turn began before the commit, so that the commit cannot begin at the start of the log.
                fixture.write(&mut database, (0..100).map(|at| account_of(1, format!("{round}-{at}"))));
                database.checkpoint().map_err(ReadError::Database)
            });
            turn.unwrap().unwrap();
            if database.wal_pages() >= 100 {
                let _pause = access.pause();
                database.checkpoint().unwrap();
            }
            longest = longest.max(database.wal_pages());
        }
        assert!((100..200).contains(&longest), "{longest} pages");
    }
}
