//! The accounts after a position, in the order of their numbers, encoded for the client on the thread for queries.
//!
//! Invariants: between the position of the query and that of the result, each number has an account that is returned, an
//! account that does not match the filter, or a gap. A caller that sees one user's accounts gets positions that are encrypted
//! and no numbers, because a number counts all users' accounts; its scan reads no row of another user where the index is
//! sound, and its position moves with its own accounts and with gaps only.

use rusqlite::Statement;
use serde::Serialize;
use wattspan_client::account::{Account, Gap, GapReason};
use wattspan_client::protocol::{MESSAGE_TERMINATOR, MethodReply, WatchedSpan};

use super::account_index::{self, AccountIndex, BUCKETS, NameEntry, block_key, segment_of, segment_start};
use super::account_json;
use super::account_read::{Filter, MAX_ROWS_READ, ROWS_PER_TURN, ReadError, decode_account};
use super::account_table::{ACCOUNT_COLUMNS, AccountRow};
use super::database_identity::{DatabaseId, DatabaseIdentity};
use super::read_view::ReadView;
use super::segment_filter::{self, FilterLookup};

/// What is before the accounts of a list's reply.
const LIST_START: &[u8] = b"{\"parameters\":{\"accounts\":[";

/// The maximum bytes of a list's reply, without its end.
const MAX_LIST_BYTES: usize = 1_000_000;

/// The maximum number of rows of a user's chain that are read in a segment before its name blocks are.
const MAX_CHAIN_ROWS: usize = 128;

/// The bytes of stream items after which a page ends. The last item may exceed it.
const STREAM_PAGE_BYTES: usize = 48 * 1024;

/// How the accounts are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyForm {
    /// One reply to ListSpans.
    List,
    /// Items of a WatchSpans stream.
    Stream,
}

/// A query for the accounts after a position.
#[derive(Debug, Clone, PartialEq)]
pub struct ForwardQuery {
    /// The user ID; `None` for all users.
    pub uid: Option<u32>,
    /// All of its conditions hold for a returned account.
    pub filter: Filter,
    /// The maximum number of accounts.
    pub limit: usize,
    /// 0, or the position of an earlier result.
    pub after: u64,
    /// The database that the position belongs to, if the caller names one.
    pub database: Option<DatabaseId>,
    /// The form of the reply.
    pub form: ReplyForm,
    /// Gaps before the position that no stream item has reported yet.
    pub gaps: Vec<Gap>,
}

/// The result of a [`ForwardQuery`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardReply {
    /// Complete messages; empty for a stream without new accounts.
    pub messages: Vec<u8>,
    /// The position of the next query.
    pub after: u64,
    /// All stored accounts after the position of the query were considered.
    pub at_end: bool,
    /// The database that was read.
    pub database: DatabaseId,
    /// For a stream: the gaps after its last item.
    pub gaps: Vec<Gap>,
}

/// The fields of a list's reply after its accounts.
#[derive(Serialize)]
struct ListEnd<'a> {
    after: u64,
    at_end: bool,
    #[serde(skip_serializing_if = "<[Gap]>::is_empty")]
    gaps: &'a [Gap],
    database: String,
}

/// A query that runs in turns.
#[derive(Debug)]
pub(super) struct ForwardScan {
    query: ForwardQuery,
    identity: DatabaseIdentity,
    /// The ID to consider next.
    next: i64,
    /// IDs up to this one were looked up: those still to be read are in `candidates`, the lowest last.
    looked_up: i64,
    candidates: Vec<i64>,
    /// The look-up in progress: the next ID of the user's chain of accounts, from the latest down, and the number of rows
    /// that were read of it.
    chain: Option<(i64, usize)>,
    /// The position of the result.
    position: i64,
    /// For one user: a deletion that the scan has passed. Whether the user's accounts were among the deleted ones is known
    /// from the user's next account.
    passed: Option<Deletion>,
    gaps: Vec<Gap>,
    accounts: usize,
    bytes: Vec<u8>,
    rows_read: usize,
    is_full: bool,
}

/// Accounts after the position `after` and before `first_id` were deleted.
#[derive(Debug, Clone, Copy)]
struct Deletion {
    after: i64,
    first_id: i64,
}

impl ForwardScan {
    /// Begins a query.
    ///
    /// # Errors
    /// The position or the database of the query is not one of this database.
    pub fn begin(mut query: ForwardQuery, database: &ReadView<'_>) -> Result<Self, ReadError> {
        let identity = database.identity;
        if query.database.is_some_and(|id| id != identity.id) {
            let reason = format!("is not the present database, which is {}; begin at 0 there", identity.id);
            return Err(ReadError::Invalid { field: "database", reason });
        }
        let invalid = |reason: String| ReadError::Invalid { field: "after", reason };
        let last_id = database.index.last_id;
        let after = match query.uid {
            Some(uid) if query.after > 0 => identity.cipher.decrypt(uid, query.after).ok_or_else(|| {
                invalid("was not returned to this user for this database; begin at 0".into())
            })?,
            _ => query.after,
        };
        let after = i64::try_from(after).ok().filter(|after| *after <= last_id);
        let after = after.ok_or_else(|| {
            invalid(match query.uid {
                None => format!("is greater than {last_id}, the latest number"),
                Some(_) => "is after the latest account; begin at 0".into(),
            })
        })?;
        Ok(Self {
            gaps: std::mem::take(&mut query.gaps),
            query,
            identity,
            next: after + 1,
            looked_up: after,
            candidates: Vec::new(),
            chain: None,
            position: after,
            passed: None,
            accounts: 0,
            bytes: Vec::new(),
            rows_read: 0,
            is_full: false,
        })
    }

    /// Considers at most [`ROWS_PER_TURN`] rows or ranges; returns the result at the end.
    pub fn run_turn(&mut self, database: &ReadView<'_>) -> Result<Option<ForwardReply>, ReadError> {
        if database.identity.id != self.identity.id {
            let reason = "was replaced during the call; call again".to_owned();
            return Err(ReadError::Invalid { field: "database", reason });
        }
        let mut row = database.connection.prepare(&format!("SELECT {ACCOUNT_COLUMNS} WHERE id = ?1"))?;
        for _ in 0..ROWS_PER_TURN {
            let is_full =
                self.is_full || self.accounts >= self.query.limit || self.rows_read >= MAX_ROWS_READ;
            if is_full || self.next > database.index.last_id {
                return Ok(Some(self.finish(database)));
            }
            self.step(database, &mut row)?;
        }
        Ok(None)
    }

    /// Considers one account, or a range of IDs without one.
    fn step(&mut self, database: &ReadView<'_>, row: &mut Statement<'_>) -> Result<(), ReadError> {
        let index = &database.index;
        if self.next < index.first_id {
            self.skip_deleted(index.first_id);
            return Ok(());
        }
        if self.next > self.looked_up {
            if self.is_after_last_account(index) {
                self.next = index.last_id + 1;
                return Ok(());
            }
            self.look_up(database)?;
        }
        if let Some((id, rows)) = self.chain {
            return self.follow_chain(database, row, id, rows);
        }
        self.rows_read += 1;
        let end = self.candidates.last().copied().unwrap_or(self.looked_up + 1);
        if let Some(lost) = index.gaps.iter().find(|gap| gap.first <= end && gap.last >= self.next) {
            self.add_gap(lost.first.max(self.next), lost.last, GapReason::Lost);
            self.skip_to(lost.last + 1);
            return Ok(());
        }
        let Some(id) = self.candidates.pop() else {
            self.next = end;
            return Ok(());
        };
        self.next = id + 1;
        if self.lists_all_accounts() {
            return self.add_row(database, row, id);
        }
        let read = database.read_row(row, id, |row| Some((row.previous, decode_account(row)?)))?;
        let Some((previous, account)) = read else {
            self.add_gap(id, id, GapReason::Damaged);
            return Ok(());
        };
        if self.query.uid.is_none_or(|uid| uid == account.uid) {
            self.resolve_deletion(previous);
            self.add_account(id, account);
        }
        Ok(())
    }

    /// Whether the reply has each account of all users, so that no row has to be decoded for the decision.
    fn lists_all_accounts(&self) -> bool {
        self.query.uid.is_none()
            && self.query.form == ReplyForm::List
            && self.query.filter == Filter::default()
    }

    /// Encodes the account of a row, or notes that the row is damaged.
    fn add_row(
        &mut self,
        database: &ReadView<'_>,
        row: &mut Statement<'_>,
        id: i64,
    ) -> Result<(), ReadError> {
        let length = self.bytes.len();
        self.begin_listed();
        let bytes = &mut self.bytes;
        let append = |row: &AccountRow<'_>| account_json::append_account(row, Some(id.unsigned_abs()), bytes);
        match database.read_row(row, id, append)? {
            Some(()) => self.end_listed(id, length),
            None => {
                self.bytes.truncate(length);
                self.add_gap(id, id, GapReason::Damaged);
            }
        }
        Ok(())
    }

    /// Whether the user has no account from `next` on, and no gap is there: nothing is read for an idle user.
    fn is_after_last_account(&self, index: &AccountIndex) -> bool {
        let latest = |uid| index.heads.get(&uid).copied().unwrap_or(0);
        index.heads_known
            && self.query.uid.is_some_and(|uid| latest(uid) < self.next)
            && index.gap_within(self.next, index.last_id).is_none()
    }

    fn skip_to(&mut self, id: i64) {
        self.next = id;
        while self.candidates.pop_if(|candidate| *candidate < id).is_some() {}
    }

    /// Passes accounts that retention has deleted.
    fn skip_deleted(&mut self, first_id: i64) {
        match self.query.uid {
            None => self.add_gap(self.next, first_id - 1, GapReason::Deleted),
            Some(_) => {
                // Gaps of other reasons may have moved the position since an earlier deletion, without an account.
                let after = self.passed.map_or(self.position, |passed| passed.after);
                self.passed = Some(Deletion { after, first_id });
            }
        }
        self.skip_to(first_id);
    }

    /// Notes a gap unless the user's account `latest`, the last one before the position of the scan, was read before the
    /// deletion. It is 0 for a user without accounts, and for one whose accounts were all deleted: the index forgets such a
    /// user. An account after the deletion that was not read (the filter has skipped its segment, or it is damaged) does not
    /// show what was before it. In doubt there is a gap, so that no account is passed silently.
    fn resolve_deletion(&mut self, latest: i64) {
        if let Some(Deletion { after, first_id }) = self.passed.take()
            && !(1..=after).contains(&latest)
        {
            self.add_gap(first_id - 1, first_id - 1, GapReason::Deleted);
        }
    }

    /// Looks up the IDs from `next` to the end of its segment that may match.
    fn look_up(&mut self, database: &ReadView<'_>) -> Result<(), ReadError> {
        let index = &database.index;
        let segment = segment_of(self.next);
        let is_open = segment == segment_of(index.last_id + 1);
        self.looked_up = (segment_start(segment + 1) - 1).min(index.last_id);
        self.candidates.clear();
        let ForwardQuery { uid, filter, .. } = &self.query;
        let searched = segment_filter::searched_values(*uid, filter.name.as_deref(), &filter.attributes);
        let last_full = segment_of(index.last_id + 1) - 1;
        let excluded = match is_open {
            _ if searched.is_empty() => 0,
            true => i64::from(!searched.iter().all(|hash| index.open_values.contains(hash))),
            false => FilterLookup::new(database.connection, &searched)?.excluded_up(segment, last_full)?,
        };
        match *uid {
            _ if excluded > 0 => {
                self.looked_up = (segment_start(segment + excluded) - 1).min(index.last_id);
            }
            None => self.candidates.extend((self.next..=self.looked_up).rev()),
            Some(uid) if is_open => {
                let own = |entry: &&NameEntry| entry.uid == uid && entry.id >= self.next;
                self.candidates.extend(index.open_segment.iter().rev().filter(own).map(|entry| entry.id));
            }
            Some(uid) => match database.latest_of_user(uid, segment)? {
                Some(latest) => self.chain = Some((latest, 0)),
                None => self.read_all_rows(),
            },
        }
        Ok(())
    }

    /// Without the index all rows are read, so that no account of the user is passed silently.
    fn read_all_rows(&mut self) {
        self.chain = None;
        self.candidates.clear();
        self.candidates.extend((self.next..=self.looked_up).rev());
    }

    /// Adds one account of the user's chain to the candidates. A long chain is not followed: the name blocks of the segment have
    /// the IDs of all its accounts.
    fn follow_chain(
        &mut self,
        database: &ReadView<'_>,
        row: &mut Statement<'_>,
        id: i64,
        rows: usize,
    ) -> Result<(), ReadError> {
        if id < self.next {
            self.chain = None;
            return Ok(());
        }
        if rows == MAX_CHAIN_ROWS
            && let Some(uid) = self.query.uid
            && let Some(ids) = ids_of_user(database, uid, segment_of(self.looked_up))?
        {
            self.chain = None;
            self.candidates = ids;
            self.candidates.retain(|id| *id >= self.next);
            return Ok(());
        }
        let previous = database.read_row(row, id, |row| {
            (Some(row.columns.uid) == self.query.uid && row.previous < id).then_some(row.previous)
        })?;
        match previous {
            Some(previous) => {
                self.candidates.push(id);
                self.chain = Some((previous, rows + 1));
            }
            None => self.read_all_rows(),
        }
        Ok(())
    }

    /// Notes that these numbers have no account.
    fn add_gap(&mut self, first: i64, last: i64, reason: GapReason) {
        self.position = self.position.max(last);
        // Without numbers, neighbouring gaps of one reason are one.
        let is_numbered = self.query.uid.is_none();
        let [first, last] = [first, last].map(|id| is_numbered.then_some(id.unsigned_abs()));
        match self.gaps.last_mut() {
            Some(gap) if gap.reason == reason && gap.last.map(|last| last + 1) == first => gap.last = last,
            _ => self.gaps.push(Gap { first, last, reason }),
        }
    }

    /// Encodes an account if it matches the filter and has room.
    fn add_account(&mut self, id: i64, mut account: Account) {
        if self.query.filter.matches(&account) {
            account.number = self.query.uid.is_none().then_some(id.unsigned_abs());
            match self.query.form {
                ReplyForm::Stream => {
                    self.encode_item(id, account);
                    self.accounts += 1;
                }
                ReplyForm::List => {
                    let length = self.bytes.len();
                    self.begin_listed();
                    serde_json::to_writer(&mut self.bytes, &account).expect("an account has string keys");
                    return self.end_listed(id, length);
                }
            }
        }
        self.position = id;
    }

    /// Appends what is before a listed account.
    fn begin_listed(&mut self) {
        self.bytes.extend_from_slice(if self.accounts == 0 { LIST_START } else { b"," });
    }

    /// Counts the account that was appended after `length` bytes, or removes it if the reply is full.
    fn end_listed(&mut self, id: i64, length: usize) {
        if self.bytes.len() > MAX_LIST_BYTES && self.accounts > 0 {
            // It is the first account of the next reply.
            self.bytes.truncate(length);
            (self.next, self.is_full) = (id, true);
            return;
        }
        self.accounts += 1;
        self.position = id;
    }

    /// Encodes a stream item, with the gaps before its account.
    fn encode_item(&mut self, id: i64, account: Account) {
        let gaps = std::mem::take(&mut self.gaps);
        MethodReply::continued(WatchedSpan {
            account,
            gaps: (!gaps.is_empty()).then_some(gaps),
            after: Some(self.encode_position(id)),
            database: Some(self.identity.id.to_string()),
        })
        .encode(&mut self.bytes);
        self.is_full = self.bytes.len() >= STREAM_PAGE_BYTES;
    }

    /// The position for the client.
    fn encode_position(&self, id: i64) -> u64 {
        let number = id.unsigned_abs();
        self.query.uid.filter(|_| number > 0).map_or(number, |uid| self.identity.cipher.encrypt(uid, number))
    }

    fn finish(&mut self, database: &ReadView<'_>) -> ForwardReply {
        let at_end = self.next > database.index.last_id;
        if let Some(uid) = self.query.uid {
            self.resolve_deletion(database.index.heads.get(&uid).copied().unwrap_or(0));
        }
        // At the end, the position of one user stays at its own last account: its changes would show those of other users.
        if self.query.uid.is_none() || !at_end {
            self.position = self.position.max(self.next - 1);
        }
        let (after, database) = (self.encode_position(self.position), self.identity.id);
        let (mut messages, gaps) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.gaps));
        match self.query.form {
            ReplyForm::Stream => ForwardReply { messages, after, at_end, database, gaps },
            ReplyForm::List => {
                if self.accounts == 0 {
                    messages.extend_from_slice(LIST_START);
                }
                let end = ListEnd { after, at_end, gaps: &gaps, database: database.to_string() };
                end_list(&mut messages, &end);
                ForwardReply { messages, after, at_end, database, gaps: Vec::new() }
            }
        }
    }
}

/// Appends what is after the accounts of a reply to ListSpans.
fn end_list(reply: &mut Vec<u8>, end: &ListEnd<'_>) {
    reply.extend_from_slice(b"],");
    let end = serde_json::to_vec(end).expect("a struct has string keys");
    reply.extend_from_slice(&end[1..]);
    reply.extend_from_slice(&[b'}', MESSAGE_TERMINATOR]);
}

/// The IDs of a user's accounts in a full segment, the lowest last; `None`: unknown, because a block is absent or damaged.
fn ids_of_user(database: &ReadView<'_>, uid: u32, segment: i64) -> Result<Option<Vec<i64>>, ReadError> {
    let mut statement = database.connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
    let mut ids = Vec::new();
    for bucket in 0..BUCKETS {
        let Some(names) = segment_filter::read_block(&mut statement, block_key(segment, bucket))? else {
            return Ok(None);
        };
        let own = account_index::decode_names(segment, &names).filter(|entry| entry.uid == uid);
        ids.extend(own.map(|entry| entry.id));
    }
    ids.sort_unstable_by_key(|id| std::cmp::Reverse(*id));
    Ok(Some(ids))
}
