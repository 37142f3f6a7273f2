//! A scan of stored accounts for their sums, in turns of bounded size, each a read transaction of its own.
//!
//! Sums of all users go through the segments in their order; sums of one user follow the links from each account to the user's
//! previous one, and read no row of another user where the links are sound. A full segment whose stored sums decide the query
//! is taken from them; the rows of others are read, or only those of the users whose groups do not decide it. Invariant: an account
//! that could not be read is counted as missing; an account that retention has deleted is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, Statement};
use wattspan_client::account::GapReason;
use wattspan_client::protocol::{MissingAccounts, SpanSums};

use super::account_index::{AccountIndex, Gap, SEGMENT_BITS, segment_ids, segment_of};
use super::account_read::decode_account;
use super::account_sums::{AccountSums, GroupFields, GroupedSums};
use super::account_table::{ACCOUNT_COLUMNS, AccountColumns, AccountRow, LayoutTable};
use super::database_identity::DatabaseId;
use super::retention_state::Retention;
use super::schema::{DatabaseError, unless_corrupt};
use super::segment_filter;
use super::segment_sums::{StoredSums, SumGroup, UserSums};
use super::sum_blocks;
use super::sum_query::{GroupMatch, SumQuery};
use super::summed_account::SummedAccount;
use super::user_walk::UserWalk;

/// The maximum number of rows of one turn.
const ROWS_PER_TURN: i64 = 2048;

/// The maximum number of segments of one turn that are taken from their stored sums.
const SEGMENTS_PER_TURN: usize = 8;

/// The maximum number of rows of a segment that are read by links; more are read with all others, because a look-up takes as long as
/// some rows of a scan.
const MAX_LINKED_ROWS: u64 = 1 << (SEGMENT_BITS - 2);

/// The accounts of a scan, as of its begin.
#[derive(Debug, Clone)]
pub(super) struct SumRange {
    pub first_id: i64,
    pub last_id: i64,
    database: DatabaseId,
    gaps: Vec<Gap>,
    /// The user's latest account, for sums of one user. If it is not known, the search begins at the last account.
    head: i64,
}

impl SumRange {
    pub fn new(index: &AccountIndex, database: DatabaseId, uid: Option<u32>) -> Self {
        let AccountIndex { first_id, last_id, .. } = *index;
        let head = match uid {
            Some(uid) if index.heads_known => index.heads.get(&uid).copied().unwrap_or(0),
            _ => last_id,
        };
        Self { first_id, last_id, database, gaps: index.gaps.clone(), head }
    }

    fn gap_at(&self, id: i64) -> Option<Gap> {
        self.gaps.iter().find(|gap| (gap.first..=gap.last).contains(&id)).copied()
    }

    fn has_gap_within(&self, from: i64, to: i64) -> bool {
        self.gaps.iter().any(|gap| gap.first <= to && gap.last >= from)
    }
}

/// A query that runs in turns.
pub(super) struct SumScan {
    query: SumQuery,
    range: SumRange,
    layouts: Arc<LayoutTable>,
    sums: AccountSums,
    /// The ID to read next: upwards for all users, downwards for one user.
    next: i64,
    lost: u64,
    damaged: u64,
    /// One user: the segment whose rows are read.
    row_segment: Option<i64>,
    /// All users: those whose rows of a segment are to be read, before the next segment.
    walks: Vec<UserWalk>,
    /// The hashes of the names of all groups, once there is no room for further ones.
    group_names: Option<Vec<u32>>,
    /// The rows that were read.
    pub rows_read: u64,
}

/// The result of a scan.
#[derive(Debug, PartialEq)]
pub struct SumResult {
    pub(super) grouped: GroupedSums,
    pub(super) missing: Vec<MissingAccounts>,
    /// The last number, and the database that was read.
    pub(super) last: u64,
    pub(super) database: DatabaseId,
    /// The work, for tests.
    pub(super) rows_read: u64,
}

impl SumResult {
    /// The reply to a caller that has `open` open spans; with the last number if it may see that.
    pub fn into_reply(self, open: u64, shows_last: bool) -> SpanSums {
        let GroupedSums { sums, other, total } = self.grouped;
        SpanSums {
            sums,
            other,
            total,
            open,
            last: shows_last.then_some(self.last),
            missing: (!self.missing.is_empty()).then_some(self.missing),
            database: self.database.to_string(),
        }
    }
}

/// The groups of a user that belong to the sums.
#[derive(Default)]
struct MatchedGroups<'a, 'b> {
    whole: Vec<&'a SumGroup<'b>>,
    /// Those whose names differ, if it depends on the name.
    by_name: Vec<&'a SumGroup<'b>>,
}

/// Where a turn continues within its rows.
enum Step {
    /// The row read next is the one to consider next.
    Next,
    /// The search is to be repeated from `next`.
    Seek,
    End,
}

impl SumScan {
    /// Begins a query in a transaction of the connection.
    pub fn begin(query: SumQuery, range: SumRange, connection: &Connection) -> Result<Self, DatabaseError> {
        let layouts = Arc::new(LayoutTable::load(connection)?);
        let sums = AccountSums::new(query.by.clone(), query.utc_offset_s);
        let next = match (query.uid, query.filter.since_unix_ns) {
            (Some(_), _) => range.head,
            (None, None) => range.first_id,
            (None, Some(since_ns)) => {
                first_stored_since(connection, &layouts, &range, unix_seconds(since_ns))?
            }
        };
        let lost = u64::from(
            query.uid.is_some() && range.has_gap_within(range.first_id.max(next + 1), range.last_id),
        );
        query.note_progress();
        Ok(Self {
            query,
            range,
            layouts,
            sums,
            next,
            lost,
            damaged: 0,
            row_segment: None,
            walks: Vec::new(),
            group_names: None,
            rows_read: 0,
        })
    }

    /// Reads at most [`ROWS_PER_TURN`] rows; returns whether there are more.
    pub fn run_turn(&mut self, connection: &Connection) -> Result<bool, DatabaseError> {
        let _transaction = connection.unchecked_transaction()?;
        // Accounts below it were deleted on purpose.
        self.range.first_id = self.range.first_id.max(Retention::load(connection)?.first);
        if self.query.uid.is_some() {
            self.run_user_turn(connection)
        } else {
            self.run_range_turn(connection)
        }
    }

    pub fn finish(self) -> SumResult {
        let is_numbered = self.query.uid.is_none();
        let count = |accounts: u64| is_numbered.then_some(accounts);
        let missing = [(GapReason::Lost, self.lost), (GapReason::Damaged, self.damaged)];
        let missing = missing.into_iter().filter(|(_, accounts)| *accounts > 0);
        SumResult {
            grouped: self.sums.finish(),
            missing: missing
                .map(|(reason, accounts)| MissingAccounts { reason, accounts: count(accounts) })
                .collect(),
            last: self.range.last_id.unsigned_abs(),
            database: self.range.database,
            rows_read: self.rows_read,
        }
    }

    /// All users: the next segments or rows upwards.
    fn run_range_turn(&mut self, connection: &Connection) -> Result<bool, DatabaseError> {
        self.next = self.next.max(self.range.first_id);
        for _ in 0..SEGMENTS_PER_TURN {
            if !self.walks.is_empty() {
                self.read_walks(connection)?;
                return Ok(!self.walks.is_empty() || self.next <= self.range.last_id);
            }
            let segment = segment_of(self.next);
            let (first, last) = segment_ids(segment);
            if self.next != first || !self.add_segment(connection, segment)? {
                return self.read_rows(connection);
            }
            self.next = last + 1;
        }
        Ok(!self.walks.is_empty() || self.next <= self.range.last_id)
    }

    /// All users: the next rows of those users whose rows are read by links.
    fn read_walks(&mut self, connection: &Connection) -> Result<(), DatabaseError> {
        let first_id = self.range.first_id;
        let mut rows_left = ROWS_PER_TURN.cast_unsigned();
        while rows_left > 0
            && let Some(walk) = self.walks.last_mut()
        {
            let Self { query, sums, layouts, rows_read, .. } = self;
            let mut show = |row: &AccountRow<'_>| {
                query.note_progress();
                add_account(query, sums, row).is_some()
            };
            let rows = walk.run_turn(connection, layouts, (first_id, rows_left), &mut show)?;
            (*rows_read, rows_left) = (*rows_read + rows, rows_left.saturating_sub(rows));
            if walk.is_over(first_id) {
                self.damaged += walk.missing(first_id);
                self.walks.pop();
            }
        }
        Ok(())
    }

    /// All users: the next rows upwards, of one segment.
    fn read_rows(&mut self, connection: &Connection) -> Result<bool, DatabaseError> {
        let (_, last) = segment_ids(segment_of(self.next));
        let end = self.range.last_id.min(last).min(self.next.saturating_add(ROWS_PER_TURN - 1));
        match self.read_range(connection, end) {
            // The rest of these rows one by one: those on undamaged pages can be read.
            Err(error) if error.is_corruption() => {}
            result => result?,
        }
        while self.next <= end {
            self.read_missing(connection, self.next, end)?;
        }
        Ok(self.next <= self.range.last_id)
    }

    /// Whether the segment was full at the begin, and no account of it has been deleted or lost.
    fn is_whole(&self, segment: i64) -> bool {
        let (first, last) = segment_ids(segment);
        first >= self.range.first_id && last <= self.range.last_id && !self.range.has_gap_within(first, last)
    }

    /// Adds the stored sums of a segment; returns whether they decide the query, with the rows of a few users in `walks`.
    fn add_segment(&mut self, connection: &Connection, segment: i64) -> Result<bool, DatabaseError> {
        if !self.is_whole(segment) || self.query.is_visible.is_some() {
            return Ok(false);
        }
        let Some(parts) = sum_blocks::read(connection, segment, None)? else { return Ok(false) };
        let stored: Option<Vec<_>> = parts.iter().map(|part| StoredSums::decode(part)).collect();
        let Some(stored) = stored else { return Ok(false) };
        let users = stored.iter().flat_map(|stored| &stored.users);
        let users: Vec<_> = users.map(|user| (user, self.match_user(user))).collect();
        let mut matched = users.iter().filter_map(|(_, matched)| matched.as_ref());
        let needs_names = matched.any(|matched| !matched.by_name.is_empty())
            && self.has_searched_names(connection, segment)?;
        let (mut decided, mut walks) = (Vec::new(), Vec::new());
        for (user, matched) in users {
            let matched = matched.filter(|matched| !needs_names || matched.by_name.is_empty());
            match matched.ok_or_else(|| UserWalk::new(segment, user)) {
                Ok(matched) => decided.push(matched),
                Err(Some(walk)) => walks.push(walk),
                Err(None) => return Ok(false),
            }
        }
        if walks.iter().map(UserWalk::unfound).sum::<u64>() > MAX_LINKED_ROWS {
            return Ok(false);
        }
        decided.iter().for_each(|matched| self.add_matched(matched));
        self.walks = walks;
        Ok(true)
    }

    /// The groups of a user that match; `None` if the user's rows have to be read.
    fn match_user<'a, 'b>(&self, user: &'a UserSums<'b>) -> Option<MatchedGroups<'a, 'b>> {
        if user.groups.is_empty() {
            return None;
        }
        let mut matched = MatchedGroups::default();
        for group in &user.groups {
            match self.query.matches_group(group) {
                GroupMatch::No => {}
                GroupMatch::Yes => matched.whole.push(group),
                GroupMatch::ByName => matched.by_name.push(group),
                GroupMatch::ByAccount => return None,
            }
        }
        Some(matched)
    }

    fn add_matched(&mut self, matched: &MatchedGroups<'_, '_>) {
        for group in &matched.whole {
            let SumGroup { uid, model, operation, sum, .. } = group;
            let (name, (closed_unix_ns, _)) = (group.name.unwrap_or_default(), sum.closed_range());
            let fields =
                GroupFields { uid: *uid, name, model: *model, operation: *operation, closed_unix_ns };
            self.sums.add_sum(&fields, sum);
        }
        if self.query.filter.name.is_none() {
            matched.by_name.iter().for_each(|group| self.sums.add_other(&group.sum));
        }
        self.query.note_progress();
    }

    /// Whether an account of a full segment may have the name that is searched for, or that of a group. As long as there is
    /// room for groups each name is one that is searched for.
    fn has_searched_names(&mut self, connection: &Connection, segment: i64) -> Result<bool, DatabaseError> {
        let uid = self.query.uid;
        let hashes = |name| segment_filter::searched_values(uid, Some(name), &BTreeMap::new());
        let mut statement = connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
        if let Some(name) = self.query.filter.name.as_deref() {
            return Ok(!segment_filter::has_none(&mut statement, segment, &hashes(name))?);
        }
        if !self.sums.is_full() {
            return Ok(true);
        }
        let sums = &self.sums;
        let names = self.group_names.get_or_insert_with(|| sums.names().flat_map(hashes).collect());
        Ok(!segment_filter::has_none(&mut statement, segment, names)?)
    }

    fn read_range(&mut self, connection: &Connection, end: i64) -> Result<(), DatabaseError> {
        let sql = format!("SELECT {ACCOUNT_COLUMNS} WHERE id BETWEEN ?1 AND ?2 ORDER BY id");
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query([self.next, end])?;
        while let Some(row) = rows.next()? {
            let id = row.get_ref(0)?.as_i64().unwrap_or(self.next);
            while self.next < id {
                self.read_missing(connection, self.next, id - 1)?;
            }
            let stored = AccountRow::read(row, &self.layouts);
            let Self { query, sums, damaged, rows_read, .. } = self;
            *rows_read += 1;
            query.note_progress();
            *damaged += u64::from(stored.and_then(|stored| add_account(query, sums, &stored)).is_none());
            self.next = id + 1;
        }
        Ok(())
    }

    /// Considers an ID that a scan did not return, and moves past it, or past the gap up to `end` in which it lies: in a damaged
    /// B-tree a scan may leave out rows that can be found.
    fn read_missing(&mut self, connection: &Connection, id: i64, end: i64) -> Result<(), DatabaseError> {
        if let Some(gap) = self.range.gap_at(id) {
            let last = gap.last.min(end);
            self.lost += (last - id + 1).unsigned_abs();
            self.next = last + 1;
            return Ok(());
        }
        let mut statement = select_one(connection)?;
        let Self { query, sums, layouts, .. } = self;
        query.note_progress();
        let added = (|| {
            let mut rows = statement.query([id])?;
            Ok(rows
                .next()?
                .and_then(|row| AccountRow::read(row, layouts))
                .and_then(|stored| add_account(query, sums, &stored)))
        })();
        let added = unless_corrupt(added)?.flatten();
        self.rows_read += 1;
        self.damaged += u64::from(added.is_none());
        self.next = id + 1;
        Ok(())
    }

    /// One user: the next segments or rows downwards.
    fn run_user_turn(&mut self, connection: &Connection) -> Result<bool, DatabaseError> {
        let sql = format!(
            "SELECT {ACCOUNT_COLUMNS} WHERE id <= ?1 AND id >= ?2 ORDER BY id DESC LIMIT {ROWS_PER_TURN}"
        );
        let mut statement = connection.prepare(&sql)?;
        // One look-up may read as many rows as a whole turn; rows that cannot be read count as look-ups.
        let end = self.rows_read + ROWS_PER_TURN.cast_unsigned();
        let mut segments = 0;
        for _ in 0..ROWS_PER_TURN {
            if self.next < self.range.first_id {
                return Ok(false);
            }
            if self.rows_read >= end || segments >= SEGMENTS_PER_TURN {
                break;
            }
            let segment = segment_of(self.next);
            if self.row_segment.replace(segment) != Some(segment) {
                match self.add_user_segment(connection, segment)? {
                    Some(Step::End) => return Ok(false),
                    Some(_) => {
                        segments += 1;
                        continue;
                    }
                    None => {}
                }
            }
            match self.read_links(&mut statement) {
                Ok(Step::End) => return Ok(false),
                Ok(Step::Seek) => {}
                Ok(Step::Next) => return Ok(true),
                Err(error) if error.is_corruption() => {
                    self.damaged += 1;
                    self.next -= 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Adds the stored sums of the user in a segment of which no row was read, and moves to the user's account before it; `None`
    /// if its rows have to be read.
    fn add_user_segment(
        &mut self,
        connection: &Connection,
        segment: i64,
    ) -> Result<Option<Step>, DatabaseError> {
        if !self.is_whole(segment) || self.query.is_visible.is_some() {
            return Ok(None);
        }
        let Some(parts) = sum_blocks::read(connection, segment, self.query.uid)? else { return Ok(None) };
        let Some(stored) = parts.first().and_then(|part| StoredSums::decode(part)) else { return Ok(None) };
        let since_s = self.query.filter.since_unix_ns.map_or(0, unix_seconds);
        if stored.kept_s < since_s {
            return Ok(Some(Step::End));
        }
        let (first, _) = segment_ids(segment);
        let Some(user) = stored.users.iter().find(|user| Some(user.uid) == self.query.uid) else {
            // The link named no account of the user: which is the latest was not known.
            self.query.note_progress();
            self.next = first - 1;
            return Ok(Some(Step::Seek));
        };
        let Some(matched) = self.match_user(user) else { return Ok(None) };
        if !matched.by_name.is_empty() && self.has_searched_names(connection, segment)? {
            return Ok(None);
        }
        self.add_matched(&matched);
        self.next = user.previous.min(first - 1);
        // The link skips accounts that were lost before it was made.
        let from = self.next.max(self.range.first_id - 1) + 1;
        self.lost += u64::from(self.range.has_gap_within(from, first - 1));
        Ok(Some(Step::Seek))
    }

    /// Reads rows downwards from `next`, of one segment, as long as each is the one that the last link names.
    fn read_links(&mut self, statement: &mut Statement<'_>) -> Result<Step, DatabaseError> {
        let layouts = Arc::clone(&self.layouts);
        let mut rows = statement.query([self.next, self.range.first_id])?;
        let mut is_first = true;
        while let Some(row) = rows.next()? {
            let id = row.get_ref(0)?.as_i64().unwrap_or(self.next);
            if id < self.next {
                self.note_unread(id + 1, self.next);
                self.next = id;
            }
            self.rows_read += 1;
            self.query.note_progress();
            self.row_segment = Some(segment_of(id));
            match self.take_linked(AccountRow::read(row, &layouts).as_ref(), id) {
                Step::Next if self.next < self.range.first_id => return Ok(Step::End),
                Step::Next if segment_of(self.next) == segment_of(id) => is_first = false,
                Step::Next | Step::Seek => return Ok(Step::Seek),
                Step::End => return Ok(Step::End),
            }
        }
        if is_first {
            // No row is left, although the link names one.
            self.note_unread(self.range.first_id, self.next);
            return Ok(Step::End);
        }
        Ok(Step::Next)
    }

    /// Takes the row of this ID, and moves to the next one.
    fn take_linked(&mut self, stored: Option<&AccountRow<'_>>, id: i64) -> Step {
        self.next = id - 1;
        let Some(stored) = stored else {
            self.damaged += 1;
            return Step::Next;
        };
        let since_s = self.query.filter.since_unix_ns.map_or(0, unix_seconds);
        // An account is stored after its span opened, and `kept_s` decreases from here: no older account can match.
        if stored.kept_s < since_s {
            return Step::End;
        }
        if Some(stored.columns.uid) != self.query.uid {
            return Step::Next;
        }
        if add_account(&self.query, &mut self.sums, stored).is_none() {
            self.damaged += 1;
        }
        let previous = stored.previous.min(id - 1);
        // The link skips accounts that were lost before it was made.
        self.lost += u64::from(self.range.has_gap_within(previous.max(self.range.first_id - 1) + 1, id - 1));
        let is_adjacent = previous == id - 1;
        self.next = previous;
        if is_adjacent { Step::Next } else { Step::Seek }
    }

    /// Counts IDs without a row as lost, where the index says so, or as damaged.
    fn note_unread(&mut self, from: i64, to: i64) {
        let is_lost = self.range.has_gap_within(from, to);
        if is_lost { self.lost += 1 } else { self.damaged += 1 }
    }
}

fn select_one(connection: &Connection) -> rusqlite::Result<Statement<'_>> {
    connection.prepare(&format!("SELECT {ACCOUNT_COLUMNS} WHERE id = ?1"))
}

/// Adds a row to the sums if it matches; `None` if its figures are not valid.
fn add_account(query: &SumQuery, sums: &mut AccountSums, row: &AccountRow<'_>) -> Option<()> {
    let AccountColumns { uid, layout, name, figures, .. } = row.columns;
    let account = SummedAccount::read(uid, name, layout, figures)?;
    let SumQuery { uid, filter, until_unix_ns, model, is_visible, .. } = query;
    let matches = uid.is_none_or(|uid| uid == account.uid)
        && filter.since_unix_ns.is_none_or(|since| account.opened_unix_ns >= since)
        && until_unix_ns.is_none_or(|until| account.opened_unix_ns < until)
        && filter.name.as_ref().is_none_or(|name| *name == *account.name)
        && filter.state.is_none_or(|state| state == account.state)
        && filter.attributes.iter().all(|(key, value)| account.has_attribute(key, value));
    if !matches {
        return Some(());
    }
    let attributes = account.attributes()?;
    if model.is_some() && model.as_deref() != attributes.model {
        return Some(());
    }
    if let Some(is_visible) = is_visible
        && !is_visible(&decode_account(row)?)
    {
        return Some(());
    }
    sums.add(&account, &attributes);
    Some(())
}

fn unix_seconds(unix_ns: u64) -> i64 {
    (unix_ns / 1_000_000_000) as i64
}

/// The lowest ID that may have been stored at this wall time or later: `kept_s` never decreases. Rows that cannot be read move
/// it down.
fn first_stored_since(
    connection: &Connection,
    layouts: &LayoutTable,
    range: &SumRange,
    since_s: i64,
) -> Result<i64, DatabaseError> {
    let sql = format!("SELECT {ACCOUNT_COLUMNS} WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT 1");
    let mut statement = connection.prepare(&sql)?;
    let (mut low, mut high) = (range.first_id, range.last_id + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let found = (|| {
            let mut rows = statement.query([middle, high])?;
            Ok(rows
                .next()?
                .and_then(|row| AccountRow::read(row, layouts))
                .map(|stored| (stored.id, stored.kept_s)))
        })();
        let found = unless_corrupt(found)?.flatten();
        match found {
            Some((id, kept_s)) if kept_s < since_s => low = id + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}
