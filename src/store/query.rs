//! Queries over stored accounts: one span by its name, or the latest that match a filter.
//!
//! One query reads a bounded number of rows, and each of its turns fewer; a list that ends early returns a cursor. The query contains the users whose accounts may be returned. Invariant: damaged or lost accounts are never
//! skipped silently. A list ends before them, and fails if they come first.

use std::ops::ControlFlow;

use rusqlite::Statement;
use wattspan_client::account::Account;

use super::account_index::{self, Damage, block_key, bucket, segment_of, segment_start};
use super::account_read::{Filter, MAX_ROWS_READ, ROWS_PER_TURN, ReadError, decode_account};
use super::account_table::{ACCOUNT_COLUMNS, AccountRow, SpanName, name_bytes};
use super::database_identity::DatabaseId;
use super::forward_scan::{ForwardQuery, ForwardReply, ForwardScan};
use super::read_view::ReadView;
use super::schema::DatabaseError;
use super::segment_filter::{self, FilterLookup};

/// The maximum bytes of accounts in one result, so that the response stays below a megabyte.
const MAX_RESULT_BYTES: usize = 256 * 1024;

/// The maximum number of blocks and rows that one turn of a look-up by name reads. Each may be on a page of its own, so that it is
/// lower than [`ROWS_PER_TURN`].
const LOOKUPS_PER_TURN: usize = 64;

/// What the store looks for.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreQuery {
    /// The latest span of this name of the user, else of any user if `all_users` is set.
    Span {
        /// The user whose spans come first.
        uid: u32,
        /// Spans of other users may be returned.
        all_users: bool,
        /// The span's name in the protocol.
        span: String,
    },
    /// The latest accounts that match the filter.
    List {
        /// The user ID; `None` for all users.
        uid: Option<u32>,
        /// All of its conditions hold for a listed account.
        filter: Filter,
        /// The maximum number of accounts.
        limit: usize,
        /// The cursor of an earlier result: only accounts stored before it are listed.
        before: Option<u64>,
    },
    /// The accounts after a position, encoded.
    Forward(Box<ForwardQuery>),
}

/// What a query has found, as far as one answer holds it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueryResult {
    /// The accounts, the latest first.
    pub accounts: Vec<Account>,
    /// The cursor for the next query, as its `before`; `None` if there are no older accounts.
    pub before: Option<u64>,
    /// The result of [`StoreQuery::Forward`], which has no other one.
    pub forward: Option<ForwardReply>,
}

/// The error of a query, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryError {
    /// The requested accounts are, or may be, damaged or lost.
    Damaged {
        /// The description, without IDs of accounts.
        reason: String,
        /// The cursor for a query that lists the accounts before the damage.
        before: Option<u64>,
    },
    /// A field of the query is not valid for this database.
    Invalid {
        /// The name of the field in the contract.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// The database cannot be read at present.
    Unavailable {
        /// The error of SQLite or of the file system.
        reason: String,
    },
}

/// The fields of a row that a list needs.
struct ListedRow {
    uid: u32,
    kept_s: i64,
    previous: i64,
    bytes: usize,
    /// `None` if the account does not match the filter.
    account: Option<Account>,
}

/// A query that runs in turns.
#[derive(Debug)]
pub(super) struct RunningQuery {
    pub(super) query: StoreQuery,
    result: QueryResult,
    rows_read: usize,
    bytes: usize,
    /// The position of a list after its first turn: the fields `next` and `above` of its scan.
    position: Option<(i64, i64)>,
    /// The scan of a [`StoreQuery::Forward`] after its first turn.
    forward: Option<Box<ForwardScan>>,
    /// The position of a [`StoreQuery::Span`] after its first turn.
    search: Option<NameSearch>,
}

impl RunningQuery {
    pub(super) fn new(query: StoreQuery) -> Self {
        let result = QueryResult::default();
        Self { query, result, rows_read: 0, bytes: 0, position: None, forward: None, search: None }
    }

    /// Reads at most [`ROWS_PER_TURN`] rows; returns the result at the end.
    pub(super) fn run_turn(&mut self, database: &ReadView<'_>) -> Result<Option<QueryResult>, ReadError> {
        let list = match &self.query {
            StoreQuery::Span { uid, all_users, span } => {
                let begin = || NameSearch::new(database, Some(*uid));
                let mut search =
                    self.search.take().filter(|search| search.is_in(database)).unwrap_or_else(begin);
                let flow = NameLookup::new(database)?.run_turn(span, &mut search)?;
                if flow == ControlFlow::Break(None) && *all_users && search.uid.is_some() {
                    self.search = Some(NameSearch::new(database, None));
                    return Ok(None);
                }
                self.search = Some(search);
                let ControlFlow::Break(found) = flow else { return Ok(None) };
                let accounts = found.into_iter().collect();
                return Ok(Some(QueryResult { accounts, ..QueryResult::default() }));
            }
            StoreQuery::Forward(query) => {
                let mut scan = match self.forward.take() {
                    Some(scan) => scan,
                    None => Box::new(ForwardScan::begin((**query).clone(), database)?),
                };
                let forward = scan.run_turn(database)?;
                self.forward = Some(scan);
                return Ok(
                    forward.map(|reply| QueryResult { forward: Some(reply), ..QueryResult::default() })
                );
            }
            StoreQuery::List { uid, filter, limit, before } => (*uid, filter.clone(), *limit, *before),
        };
        let (uid, filter, limit, before) = list;
        let mut scan = AccountScan::new(database, uid, before)?;
        if let Some((next, above)) = self.position {
            (scan.next, scan.above) = (next, above);
        }
        let is_complete = self.list_accounts(&mut scan, &filter, limit)?;
        self.position = Some((scan.next, scan.above));
        Ok(is_complete.then(|| std::mem::take(&mut self.result)))
    }

    /// Lists the latest accounts that match the filter; returns whether the list is complete.
    fn list_accounts(
        &mut self,
        scan: &mut AccountScan<'_>,
        filter: &Filter,
        limit: usize,
    ) -> Result<bool, ReadError> {
        let searched = segment_filter::searched_values(scan.uid, filter.name.as_deref(), &filter.attributes);
        let since_s = filter.since_unix_ns.map_or(0, |ns| (ns / 1_000_000_000) as i64);
        for _ in 0..ROWS_PER_TURN {
            if !searched.is_empty() && scan.skip_segment(&searched)? {
                continue;
            }
            let listed = match scan.read(filter) {
                Ok(Some(listed)) => listed,
                Ok(None) => return Ok(true),
                Err(ReadError::Damaged(damage)) if self.rows_read > 0 => {
                    self.result.before = Some(damage.last() as u64 + 1);
                    return Ok(true);
                }
                Err(error) => return Err(error),
            };
            // An account is stored after its span opened, and `kept_s` decreases from here: no older account can match.
            if listed.kept_s < since_s {
                return Ok(true);
            }
            self.rows_read += 1;
            scan.advance(&listed);
            if let Some(account) = listed.account {
                self.bytes += listed.bytes + 512;
                self.result.accounts.push(account);
            }
            let is_full = self.result.accounts.len() >= limit || self.bytes >= MAX_RESULT_BYTES;
            if is_full || self.rows_read >= MAX_ROWS_READ {
                self.result.before = Some(scan.above as u64);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A scan of accounts in descending order of IDs; a scan of one user follows the `previous` links.
struct AccountScan<'a> {
    database: &'a ReadView<'a>,
    row: Statement<'a>,
    uid: Option<u32>,
    /// The ID to read next.
    next: i64,
    /// The ID that was read last, or the end of the range. No account of the scan is between `next` and it.
    above: i64,
    /// The segment whose filter was looked up last.
    checked_segment: Option<i64>,
}

impl<'a> AccountScan<'a> {
    /// Starts before the ID `before`, or at the last account.
    fn new(database: &'a ReadView<'a>, uid: Option<u32>, before: Option<u64>) -> rusqlite::Result<Self> {
        let index = &database.index;
        let row = database.connection.prepare(&format!("SELECT {ACCOUNT_COLUMNS} WHERE id = ?1"))?;
        let before = before.map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
        let above = before.min(index.last_id + 1);
        let next = match uid {
            Some(uid) if before > index.last_id && index.heads_known => {
                index.heads.get(&uid).copied().unwrap_or(0)
            }
            _ => above - 1,
        };
        Ok(Self { database, row, uid, next, above, checked_segment: None })
    }

    /// Reads the next row; `None` after the oldest account. Damage at the row or before it is an error.
    fn read(&mut self, filter: &Filter) -> Result<Option<ListedRow>, ReadError> {
        let Self { database, uid, next, .. } = *self;
        let index = &database.index;
        if let Some(gap) = index.gap_within(next.max(index.first_id), self.above - 1) {
            return Err(ReadError::Damaged(Damage::Lost(*gap)));
        }
        if next < index.first_id {
            return Ok(None);
        }
        let convert = |row: &AccountRow<'_>| to_listed_row(row, uid, filter);
        let listed = database.read_row(&mut self.row, next, convert)?;
        listed.ok_or(ReadError::Damaged(Damage::Corrupt { first: next, last: next })).map(Some)
    }

    /// Moves past the accounts of segments whose filters exclude these values. Returns false where rows must be read.
    fn skip_segment(&mut self, searched: &[u32]) -> Result<bool, ReadError> {
        let index = &self.database.index;
        let segment = segment_of(self.next);
        if self.next < index.first_id || self.checked_segment == Some(segment) {
            return Ok(false);
        }
        self.checked_segment = Some(segment);
        // A gap ends the list, so that segments with one are not skipped.
        let first_usable =
            index.gap_within(index.first_id, self.above - 1).map_or(0, |gap| segment_of(gap.last) + 1);
        if segment < first_usable {
            return Ok(false);
        }
        let count = if segment == segment_of(index.last_id + 1) {
            i64::from(!searched.iter().all(|hash| index.open_values.contains(hash)))
        } else {
            FilterLookup::new(self.database.connection, searched)?.excluded_down(segment, first_usable)?
        };
        let lowest = segment + 1 - count;
        if count == 0 {
            return Ok(false);
        }
        let Some(next) = self.latest_before(lowest)? else { return Ok(false) };
        (self.next, self.above) = (next, segment_start(lowest));
        Ok(true)
    }

    /// The ID to read after a segment is skipped; `None` if it is unknown.
    fn latest_before(&self, segment: i64) -> Result<Option<i64>, DatabaseError> {
        let before = segment_start(segment) - 1;
        let Some(uid) = self.uid.filter(|_| before >= self.database.index.first_id) else {
            return Ok(Some(before));
        };
        self.database.latest_of_user(uid, segment - 1)
    }

    /// Moves past the row that was read.
    fn advance(&mut self, listed: &ListedRow) {
        self.above = self.next;
        self.next = if self.uid == Some(listed.uid) { listed.previous } else { self.next - 1 };
    }
}

/// The position of a look-up by name between two turns.
#[derive(Debug)]
struct NameSearch {
    /// Another database has other IDs.
    database: DatabaseId,
    /// The user whose accounts are searched; `None` for all users.
    uid: Option<u32>,
    /// The segment to search next, downwards.
    segment: i64,
    /// The lowest ID that was considered. Accounts that are stored after the begin of the search are not.
    above: i64,
    /// The first damage, if a match after it would be valid.
    damage: Option<Damage>,
}

impl NameSearch {
    fn new(database: &ReadView<'_>, uid: Option<u32>) -> Self {
        let above = database.index.last_id + 1;
        Self { database: database.identity.id, uid, segment: segment_of(above), above, damage: None }
    }

    /// Whether the position is one in this database.
    fn is_in(&self, database: &ReadView<'_>) -> bool {
        self.database == database.identity.id && self.above <= database.index.last_id + 1
    }
}

/// A look-up by name, with its statements.
struct NameLookup<'a> {
    database: &'a ReadView<'a>,
    row: Statement<'a>,
    block: Statement<'a>,
}

impl<'a> NameLookup<'a> {
    fn new(database: &'a ReadView<'a>) -> rusqlite::Result<Self> {
        let row = database.connection.prepare(&format!("SELECT {ACCOUNT_COLUMNS} WHERE id = ?1"))?;
        let block = database.connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
        Ok(Self { database, row, block })
    }

    /// Searches for the latest account of this name, of one user (only that user's rows are read) or of all users, and breaks at the
    /// end. Damage before the first match is an error: the latest account may be lost. A generated name is unique, so that a match
    /// after damage is valid.
    fn run_turn(
        &mut self,
        span: &str,
        search: &mut NameSearch,
    ) -> Result<ControlFlow<Option<Account>>, ReadError> {
        let index = &self.database.index;
        let mut lookups_left = LOOKUPS_PER_TURN;
        while search.segment >= segment_of(index.first_id) {
            if lookups_left == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            lookups_left -= 1;
            if let Some(flow) = self.search_segment(span, search, &mut lookups_left)? {
                return Ok(flow);
            }
            search.segment -= 1;
        }
        let lost = index.gap_within(index.first_id, index.last_id).map(|gap| Damage::Lost(*gap));
        let damage = lost.or(search.damage);
        damage.map_or(Ok(ControlFlow::Break(None)), |damage| Err(ReadError::Damaged(damage)))
    }

    /// Searches one segment; `None` if it has no match.
    fn search_segment(
        &mut self,
        span: &str,
        search: &mut NameSearch,
        lookups_left: &mut usize,
    ) -> Result<Option<ControlFlow<Option<Account>>>, ReadError> {
        let (database, index) = (self.database, &self.database.index);
        let (name, ids) = (SpanName::parse(span), index.first_id..search.above);
        let is_unique = matches!(name, SpanName::Generated(_));
        let hash = account_index::name_hash(name_bytes(name.as_value()));
        let candidates = match self.candidates(search.segment, hash, search.uid)? {
            Ok(candidates) => candidates,
            Err(damage) if is_unique => {
                search.damage = search.damage.or(Some(damage));
                return Ok(None);
            }
            Err(damage) => return Err(ReadError::Damaged(damage)),
        };
        for id in candidates.into_iter().filter(|id| ids.contains(id)) {
            if *lookups_left == 0 {
                return Ok(Some(ControlFlow::Continue(())));
            }
            *lookups_left -= 1;
            let gap = index.gap_within(id, search.above - 1).map(|gap| Damage::Lost(*gap));
            if let Some(damage) = gap.filter(|_| !is_unique) {
                return Err(ReadError::Damaged(damage));
            }
            search.above = id;
            let Some(account) = database.read_row(&mut self.row, id, decode_account)? else {
                return Err(ReadError::Damaged(Damage::Corrupt { first: id, last: id }));
            };
            if account.span == span && search.uid.is_none_or(|uid| uid == account.uid) {
                return Ok(Some(ControlFlow::Break(Some(account))));
            }
        }
        Ok(None)
    }

    /// The IDs that a segment has for a hash, the latest first.
    fn candidates(
        &mut self,
        segment: i64,
        hash: u32,
        uid: Option<u32>,
    ) -> Result<Result<Vec<i64>, Damage>, ReadError> {
        let index = &self.database.index;
        if segment == segment_of(index.last_id + 1) {
            let entries = index.open_segment.iter().rev().filter(|entry| entry.matches(hash, uid));
            return Ok(Ok(entries.map(|entry| entry.id).collect()));
        }
        let (first, last) = (segment_start(segment).max(index.first_id), segment_start(segment + 1) - 1);
        let block = block_key(segment, bucket(hash));
        if let Some(block) = segment_filter::read_block(&mut self.block, block)? {
            return Ok(Ok(account_index::candidates(segment, &block, hash, uid)));
        }
        let lost = index.gaps.iter().find(|gap| gap.first <= first && gap.last >= last);
        Ok(Err(lost.map_or(Damage::Corrupt { first, last }, |gap| Damage::Lost(*gap))))
    }
}

/// Converts a row for a list; `None` if the row is not a valid account.
fn to_listed_row(row: &AccountRow<'_>, uid: Option<u32>, filter: &Filter) -> Option<ListedRow> {
    let columns = &row.columns;
    let plausible = uid.is_none_or(|uid| uid == columns.uid)
        && filter.name.as_ref().is_none_or(|name| name == columns.name);
    let account =
        if plausible { Some(decode_account(row)?).filter(|account| filter.matches(account)) } else { None };
    let (uid, kept_s, previous, bytes) = (columns.uid, row.kept_s, row.previous, columns.figures.len());
    Some(ListedRow { uid, kept_s, previous, bytes, account })
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;
    use std::time::Duration;

    use rusqlite::StatementStatus;

    use super::super::account_index::BUCKETS;
    use super::super::account_record::tests::account;
    use super::super::database::Database;
    use super::super::high_water_mark::MarkFile;
    use super::super::tests::{Fixture, account_of};
    use super::super::time::ClockReading;
    use super::super::{Store, StoreSettings, SyncMode, state_dir};
    use super::*;
    use crate::clock::Clock;

    /// What a query on the writer's own connection reads.
    pub fn view(database: &Database) -> ReadView<'_> {
        let Database { connection, identity, layouts, index, .. } = database;
        ReadView { connection, identity: *identity, layouts, index }
    }

    /// Runs a query to its end.
    pub fn run(database: &Database, query: &StoreQuery) -> Result<QueryResult, ReadError> {
        let mut running = RunningQuery::new(query.clone());
        loop {
            if let Some(result) = running.run_turn(&view(database))? {
                return Ok(result);
            }
        }
    }

    const OWN: u32 = 1;
    const OTHER: u32 = 2;

    /// A database with spans of both users, in a full segment and in the open one.
    fn database(dir: &Path) -> Database {
        database_with(dir, |_| None)
    }

    /// The same, with some accounts replaced.
    fn database_with(dir: &Path, replacement: impl Fn(usize) -> Option<Account>) -> Database {
        let settings = StoreSettings {
            directory: dir.join("state"),
            max_age: Duration::from_secs(3600),
            max_bytes: 1 << 30,
            max_waiting_bytes: 1 << 26,
            sync: SyncMode::Off,
            sync_interval: Duration::from_secs(1),
            boot_id: String::new(),
        };
        let mut store = Store::start(settings.clone(), |_| ()).unwrap();
        for at in 0..9_000 {
            for (uid, span) in [(OTHER, format!("o{at}")), (OWN, format!("s{at}"))] {
                let account = replacement(at)
                    .filter(|_| uid == OWN)
                    .unwrap_or_else(|| Account { uid, ..account(&span) });
                while !store.append(&account, None, false) {
                    std::thread::yield_now();
                }
            }
        }
        store.shutdown(Duration::from_secs(60));
        let file = settings.directory.join(state_dir::DATABASE_FILE);
        let mark_file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(settings.directory.join(state_dir::MARK_FILE))
            .unwrap();
        let mark_file = MarkFile(mark_file);
        let database =
            Database::open(&file, mark_file, &settings, ClockReading::of(&Clock::Machine)).unwrap();
        assert_eq!((database.index.last_id, segment_of(database.index.last_id)), (18_000, 1));
        database
    }

    /// The cost of a look-up in SQLite: virtual machine steps, and runs of statements.
    fn lookup_cost(database: &Database, span: &str) -> (bool, [i32; 2]) {
        let view = view(database);
        let (mut lookup, mut search) = (NameLookup::new(&view).unwrap(), NameSearch::new(&view, Some(OWN)));
        let found = loop {
            if let ControlFlow::Break(found) = lookup.run_turn(span, &mut search).unwrap() {
                break found;
            }
        };
        let sum = |of| [&lookup.row, &lookup.block].iter().map(|statement| statement.get_status(of)).sum();
        (found.is_some(), [sum(StatementStatus::VmStep), sum(StatementStatus::Run)])
    }

    #[test]
    fn a_lookup_of_another_users_name_costs_as_much_as_of_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let database = database(dir.path());
        let (found, missing) = lookup_cost(&database, "no such span");
        assert!(!found);
        for span in ["o7", "o8000", "o8999"] {
            assert_eq!(lookup_cost(&database, span), (false, missing), "{span}");
        }
        let (found, own) = lookup_cost(&database, "s7");
        assert!(found && own > missing, "the count sees the work of a row that is read");
        let query = StoreQuery::Span { uid: OWN, all_users: true, span: "o7".into() };
        assert_eq!(run(&database, &query).unwrap().accounts[0].uid, OTHER);
    }

    /// Writes the empty name blocks of these segments, as if they had accounts with other names only.
    fn add_segments(database: &mut Database, segments: std::ops::Range<i64>) {
        let buckets = segments.clone().flat_map(|segment| (0..BUCKETS).map(move |bucket| (segment, bucket)));
        let keys = buckets.map(|(segment, bucket)| block_key(segment, bucket));
        let blocks = keys.map(|key| (key, account_index::append_checksum(key, Vec::new())));
        segment_filter::write_blocks(&database.connection, blocks).unwrap();
        database.index.seal();
        database.index.last_id = segment_start(segments.end);
    }

    fn named(uid: u32, all_users: bool, span: &str) -> RunningQuery {
        RunningQuery::new(StoreQuery::Span { uid, all_users, span: span.into() })
    }

    #[test]
    fn a_lookup_of_a_missing_name_reads_its_blocks_in_turns() {
        let fixture = Fixture::new();
        let mut database = fixture.open();
        let segments = 3 * LOOKUPS_PER_TURN + 7;
        add_segments(&mut database, 0..segments as i64);
        let (view, mut blocks) = (view(&database), Vec::new());
        let mut search = NameSearch::new(&view, Some(OWN));
        let mut is_over = false;
        while !is_over {
            let mut lookup = NameLookup::new(&view).unwrap();
            is_over = lookup.run_turn("none", &mut search).unwrap() == ControlFlow::Break(None);
            blocks.push(lookup.block.get_status(StatementStatus::Run) as usize);
        }
        // The first segment is the open one, whose names are in memory.
        assert_eq!(blocks, [LOOKUPS_PER_TURN - 1, LOOKUPS_PER_TURN, LOOKUPS_PER_TURN, 8]);
        for (all_users, expected) in [(false, 4), (true, 8)] {
            let mut running = named(OWN, all_users, "none");
            let turns = (1..).find(|_| running.run_turn(&view).unwrap().is_some());
            assert_eq!(turns, Some(expected), "all users: {all_users}");
        }
    }

    #[test]
    fn a_lookup_among_equal_hashes_reads_its_rows_in_turns_and_finds_the_latest_match() {
        let mut fixture = Fixture::new();
        let mut database = fixture.open();
        let span = |at: i64| if at == 3 || at == 5 { "wanted".into() } else { format!("s{at}") };
        let accounts = (0..200).map(|at| Account { name: format!("n{at}"), ..account_of(OWN, span(at)) });
        fixture.write(&mut database, accounts);
        let hash = account_index::name_hash(b"wanted");
        database.index.open_segment.iter_mut().for_each(|entry| entry.hash = hash);
        let mut running = named(OWN, false, "wanted");
        let view = view(&database);
        for _ in 0..3 {
            assert_eq!(running.run_turn(&view).unwrap(), None, "at most {LOOKUPS_PER_TURN} rows of 200");
        }
        let found = running.run_turn(&view).unwrap().unwrap().accounts;
        assert_eq!(found.iter().map(|account| &account.name[..]).collect::<Vec<_>>(), ["n5"]);
    }

    #[test]
    fn a_lookup_continues_over_a_full_segment_a_deletion_and_another_database() {
        let mut fixture = Fixture::new();
        let mut database = fixture.open();
        fixture.write(&mut database, [account_of(OWN, "wanted".into()), account_of(OWN, "other".into())]);
        let id = account_index::segment_ids(0).0;
        let names = account_index::encode_blocks(0, &database.index.open_segment);
        let keyed = (0..).zip(names).map(|(bucket, block)| (block_key(0, bucket), block));
        segment_filter::write_blocks(&database.connection, keyed).unwrap();
        let end = 2 * LOOKUPS_PER_TURN as i64;
        add_segments(&mut database, 1..end);
        let mut running =
            [named(OWN, false, "wanted"), named(OWN, false, "wanted"), named(OWN, false, "wanted")];
        for running in &mut running {
            assert_eq!(running.run_turn(&view(&database)).unwrap(), None);
        }
        let finish = |running: &mut RunningQuery, database: &Database| loop {
            if let Some(result) = running.run_turn(&view(database)).unwrap() {
                return result.accounts.into_iter().map(|account| account.span).collect::<Vec<_>>();
            }
        };
        // The open segment is full now, and what is stored from here on is after the begin of the look-up.
        add_segments(&mut database, end..end + 3);
        assert_eq!(finish(&mut running[0], &database), ["wanted"]);
        database.index.set_first_id(id + 1);
        assert_eq!(finish(&mut running[1], &database), Vec::<String>::new(), "it was deleted");
        let mut other = Fixture::new();
        let mut database = other.open();
        other.write(&mut database, [account_of(OWN, "wanted".into())]);
        assert_eq!(finish(&mut running[2], &database), ["wanted"]);
    }

    fn list(uid: Option<u32>, filter: Filter) -> StoreQuery {
        StoreQuery::List { uid, filter, limit: 100, before: None }
    }

    /// The number of turns of a query, the rows that it read, and its result.
    fn turns(database: &Database, query: StoreQuery) -> (usize, usize, QueryResult) {
        let mut running = RunningQuery::new(query);
        for turn in 1.. {
            let rows_before = running.rows_read;
            let result = running.run_turn(&view(database)).unwrap();
            assert!(running.rows_read - rows_before <= ROWS_PER_TURN, "a commit waits for one turn");
            if let Some(result) = result {
                return (turn, running.rows_read, result);
            }
        }
        unreachable!("the loop has no end")
    }

    #[test]
    fn an_absent_name_or_model_reads_no_row_and_another_attribute_scans_in_turns() {
        let dir = tempfile::tempdir().unwrap();
        let database = database(dir.path());
        let with = |key: &str, value: &str| Filter {
            attributes: [(key.to_owned(), value.to_owned())].into(),
            ..Filter::default()
        };
        let absent_name = Filter { name: Some("no such name".into()), ..Filter::default() };
        for filter in [absent_name, with("model", "absent"), with("gen_ai.request.model", "absent")] {
            for uid in [None, Some(OWN), Some(77)] {
                let (turns, rows, result) = turns(&database, list(uid, filter.clone()));
                assert_eq!((turns, rows, result), (1, 0, QueryResult::default()), "{filter:?}");
            }
        }
        let (turns, rows, result) = turns(&database, list(None, with("another", "absent")));
        assert_eq!((turns, rows), (MAX_ROWS_READ / ROWS_PER_TURN, MAX_ROWS_READ));
        assert!(result.accounts.is_empty() && result.before.is_some(), "the next page continues");
    }

    #[test]
    fn a_rare_model_is_found_in_a_full_segment_by_its_own_user_and_by_all_only() {
        let dir = tempfile::tempdir().unwrap();
        let rare = |span: &str| Account {
            uid: OWN,
            attributes: [("model".to_owned(), "rare".to_owned())].into(),
            ..account(span)
        };
        let database = database_with(dir.path(), |at| (at == 100).then(|| rare("wanted")));
        let filter = Filter { attributes: rare("").attributes, ..Filter::default() };
        for uid in [None, Some(OWN)] {
            let found = run(&database, &list(uid, filter.clone())).unwrap().accounts;
            assert_eq!(found.iter().map(|account| &account.span[..]).collect::<Vec<_>>(), ["wanted"]);
        }
        let (_, rows, result) = turns(&database, list(Some(OTHER), filter));
        assert_eq!((rows, result), (0, QueryResult::default()), "another user's model changes nothing");
    }

    #[test]
    fn a_database_of_a_version_without_filters_gets_them_in_steps_and_answers_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut database = database(dir.path());
        let sql = "DELETE FROM block WHERE id & 127 > 64";
        assert_eq!(database.connection.execute(sql, []).unwrap(), 8 + 16, "the filter and the sums");
        let absent = list(None, Filter { name: Some("no such name".into()), ..Filter::default() });
        let (_, rows, result) = turns(&database, absent.clone());
        assert_eq!((rows, result.accounts), (MAX_ROWS_READ - 1, Vec::new()), "all rows of the full segment");
        let mut steps = 0;
        while database.build_filters().unwrap() {
            steps += 1;
        }
        assert!((64..70).contains(&steps), "{steps} steps of 256 rows");
        let (_, rows, result) = turns(&database, absent);
        assert_eq!((rows, result), (0, QueryResult::default()));
    }
}
