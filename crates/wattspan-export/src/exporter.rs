//! The export of ranges: one state file, and for each range one file in each of its partitions.
//!
//! One thread reads and parses accounts, the other encodes and writes them. Invariant: a range is in the state before its files
//! are written, and its files are written before the next range is in the state.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::SystemTime;

use wattspan_client::account::{Account, Gap, GapReason};
use wattspan_client::protocol::{Access, ListSpans, MethodError, SpanAccounts};
use wattspan_client::{Client, ClientError};
use wattspan_system::private_file::{self, sync_directory, write_atomically};

use super::balance;
use super::format::{AccountRows, ExportFormat, FileContent, RangeLimits};
use super::partition;
use super::state::{ExportState, NumberRange, StateFile};

/// The accounts that the reading thread passes on at once.
const ROWS_PER_PIECE: usize = 4096;

/// The pieces that wait for the writing thread.
const WAITING_PIECES: usize = 2;

/// Where the balances are. Readers of partitions ignore names that begin with `_`, as they do for `.`.
const BALANCE_DIRECTORY: &str = "_balance";

/// The accounts of a call.
const ROWS_PER_CALL: i64 = 4096;

/// What to do with a state that cannot be read. Without it all stored accounts would be exported again.
const STATE_REMEDY: &str = "restore it, or export to an empty directory with a new state, or remove it together with the files of \
                            this export: all accounts that are still stored are then exported again";

/// The connections that may be lost one after another without a range being exported.
const MAX_LOST_CONNECTIONS: u32 = 3;

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// The format of the files.
    pub format: ExportFormat,
    /// The directory of the partitions.
    pub directory: PathBuf,
    /// The state file; `None`: in the directory.
    pub state: Option<PathBuf>,
    /// The host in the names of the partitions.
    pub host: String,
    /// The attributes that are exported.
    pub attributes: Vec<String>,
}

/// What a run has exported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportSummary {
    /// The number of accounts.
    pub accounts: u64,
    /// The number of files.
    pub files: u64,
}

/// Why a run ended early; the next one continues.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A call failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {cause}", path.display())]
    File {
        /// What failed.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Another process exports with the same state.
    #[error("another process exports with the state {}", .0.display())]
    Locked(PathBuf),
    /// The daemon is older than this program.
    #[error("the daemon does not number its accounts; upgrade it")]
    NoNumbers,
}

/// An export that continues where the last one with the same state file ended.
#[derive(Debug)]
pub struct Exporter {
    settings: ExportSettings,
    state_file: StateFile,
    state: ExportState,
}

/// What the reading thread passes to the writing one.
enum Piece {
    /// Accounts of a range that closed on this UTC day.
    Rows { day: u64, rows: AccountRows },
    /// The end of the range.
    End(RangeEnd),
}

/// Where a range ends.
#[derive(Debug)]
struct RangeEnd {
    accounts: u64,
    gaps: Vec<Gap>,
    database: String,
    last: u64,
    at_end: bool,
}

/// The accounts of a range that were read and not yet passed on, by the UTC day of their closing.
struct Staging<'a> {
    format: ExportFormat,
    attributes: &'a [String],
    days: BTreeMap<u64, AccountRows>,
    pieces: &'a SyncSender<Result<Piece, ExportError>>,
}

/// Calls ListSpans, passes its accounts on, and returns the rest of the reply.
type ListAccounts<'a> =
    dyn FnMut(&ListSpans, &mut dyn FnMut(Account)) -> Result<SpanAccounts, ClientError> + 'a;

impl Exporter {
    /// Creates the directory, locks the state file and reads it.
    ///
    /// # Errors
    /// A file cannot be used, or another process exports with this state.
    pub fn open(settings: ExportSettings) -> Result<Self, ExportError> {
        create_directory(&settings.directory)?;
        // A killed run may have created it; a parent that this user cannot read cannot be synced either.
        let _ = settings.directory.parent().map_or(Ok(()), sync_directory);
        let name = format!(".wattspan-export-{}.json", settings.format.extension());
        let path = settings.state.clone().unwrap_or_else(|| settings.directory.join(name));
        let state_file = StateFile::lock(path.clone())
            .map_err(file_error("lock", &path))?
            .ok_or(ExportError::Locked(path.clone()))?;
        let state: ExportState = state_file.read(STATE_REMEDY).map_err(file_error("read", &path))?;
        state.check(STATE_REMEDY).map_err(file_error("read", &path))?;
        Ok(Self { settings, state_file, state })
    }

    /// Exports all accounts that are stored now, over a connection of `connect`. `report` gets a message for each run of numbers
    /// without an account and for another database, before the state file is beyond it: an error after that does not hide it.
    ///
    /// The daemon closes the connection of a client that does not read for some time, such as one whose disk hangs; then the export
    /// continues over a new one.
    ///
    /// # Errors
    /// A call failed, or a file cannot be written. The next run continues.
    pub fn run(
        &mut self,
        connect: &mut dyn FnMut() -> Result<Client, ClientError>,
        report: &mut dyn FnMut(&str),
    ) -> Result<ExportSummary, ExportError> {
        let (mut summary, mut lost) = (ExportSummary::default(), 0);
        loop {
            let before = self.state.clone();
            let result = self.export_over(&connect()?, &mut summary, report);
            if self.state != before {
                lost = 0;
            }
            match result {
                Err(ExportError::Client(ClientError::ConnectionClosed)) if lost < MAX_LOST_CONNECTIONS => {
                    lost += 1;
                    report("the daemon closed the connection; the export continues over a new one");
                }
                result => return result.map(|()| summary),
            }
        }
    }

    /// Exports what is stored over one connection.
    fn export_over(
        &mut self,
        client: &Client,
        summary: &mut ExportSummary,
        report: &mut dyn FnMut(&str),
    ) -> Result<(), ExportError> {
        if client.info()?.access < Access::Telemetry {
            let needs = Access::Telemetry.as_str().to_owned();
            return Err(ClientError::Method(MethodError::AccessDenied { needs }).into());
        }
        loop {
            match self.export_ranges(client, summary, report) {
                Err(ExportError::Client(ClientError::Method(MethodError::InvalidValue {
                    field, ..
                }))) if field == "database" && self.state.database.is_some() => {
                    // What the last database has not given is lost with it. Its files stay.
                    report(
                        "the daemon has another database; its accounts are exported from the first one on",
                    );
                    self.save(ExportState::default())?;
                }
                result => break result?,
            }
        }
        self.write_balance(client)
    }

    /// Exports ranges until no account is left.
    fn export_ranges(
        &mut self,
        client: &Client,
        summary: &mut ExportSummary,
        report: &mut dyn FnMut(&str),
    ) -> Result<(), ExportError> {
        let ExportSettings { format, attributes, .. } = self.settings.clone();
        let (attributes, state) = (&attributes, self.state.clone());
        thread::scope(|scope| {
            let (sender, pieces) = sync_channel(WAITING_PIECES);
            scope.spawn(move || {
                let mut reader = client.account_reader();
                let mut list = |call: &ListSpans, take: &mut dyn FnMut(Account)| reader.read(call, take);
                if let Err(error) = read_ranges(state, format, attributes, &mut list, &sender) {
                    // The receiver is gone after an error of its own, which is reported.
                    let _ = sender.send(Err(error));
                }
            });
            let mut contents: BTreeMap<u64, FileContent> = BTreeMap::new();
            for piece in pieces {
                match piece? {
                    Piece::Rows { day, rows } => self.append(&mut contents, day, rows)?,
                    Piece::End(end) => {
                        self.export_range(std::mem::take(&mut contents), &end, summary, report)?;
                    }
                }
            }
            Ok(())
        })
    }

    fn append(
        &self,
        contents: &mut BTreeMap<u64, FileContent>,
        day: u64,
        rows: AccountRows,
    ) -> Result<(), ExportError> {
        let ExportSettings { format, attributes, directory, .. } = &self.settings;
        let appended = match contents.entry(day) {
            Entry::Occupied(content) => content.into_mut().append(rows),
            Entry::Vacant(place) => {
                format.content(attributes).and_then(|content| place.insert(content).append(rows))
            }
        };
        appended.map_err(file_error("encode accounts for", directory))
    }

    /// Replaces today's balance of the daemon's life.
    fn write_balance(&self, client: &Client) -> Result<(), ExportError> {
        let ExportSettings { format, directory, host, .. } = &self.settings;
        let info = client.info()?;
        let Some(life) = balance::life(&info).filter(|_| format.has_balance()) else {
            return Ok(());
        };
        let balance = client.balance()?;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at_unix_ns = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        let date = partition::date(partition::day(at_unix_ns));
        let partition = partition::directory(&directory.join(BALANCE_DIRECTORY), &date, host);
        create_directory(&partition)?;
        let path = partition.join(format!("{life}.{}", format.extension()));
        let rows = balance::rows(&info, balance, &life, at_unix_ns);
        write_atomically(&path, 0o640, |file| format.write_balance(file, &rows))
            .map_err(file_error("write", &path))
    }

    /// Writes the files of a range, after its state.
    fn export_range(
        &mut self,
        contents: BTreeMap<u64, FileContent>,
        end: &RangeEnd,
        summary: &mut ExportSummary,
        report: &mut dyn FnMut(&str),
    ) -> Result<(), ExportError> {
        let first = self.state.after.saturating_add(1);
        if end.last >= first && !contents.is_empty() {
            let begun_on = self.state.range.as_ref().and_then(|range| range.host.clone());
            let host = begun_on.unwrap_or_else(|| self.settings.host.clone());
            let range = NumberRange { first, last: end.last, host: Some(host.clone()) };
            let database = Some(end.database.clone());
            self.save(ExportState { database, after: self.state.after, range: Some(range.clone()) })?;
            summary.files += self.write_files(contents, &end.database, &range, &host)?;
            summary.accounts += end.accounts;
        }
        end.gaps.iter().for_each(|gap| report(&describe_gap(gap)));
        self.save(ExportState { database: Some(end.database.clone()), after: end.last, range: None })
    }

    fn save(&mut self, state: ExportState) -> Result<(), ExportError> {
        if state != self.state {
            self.state_file.write(&state).map_err(file_error("write", self.state_file.path()))?;
            self.state = state;
        }
        Ok(())
    }

    /// Writes the file of each partition; returns their number. A file that is there is complete.
    fn write_files(
        &self,
        contents: BTreeMap<u64, FileContent>,
        database: &str,
        range: &NumberRange,
        host: &str,
    ) -> Result<u64, ExportError> {
        let ExportSettings { format, directory, attributes, .. } = &self.settings;
        let NumberRange { first, last, .. } = range;
        let name = format!("{database}-{first}-{last}.{}", format.extension());
        let count = contents.len() as u64;
        for (day, content) in contents {
            let partition = partition::directory(directory, &partition::date(day), host);
            let path = partition.join(&name);
            if !path.exists() {
                create_directory(&partition)?;
                write_atomically(&path, 0o640, |file| format.write(file, content, attributes))
                    .map_err(file_error("write", &path))?;
            }
            // Also for names that a killed run created: the state is about to say that they are on disk.
            for ancestor in partition.ancestors().take_while(|at| at.starts_with(directory)) {
                sync_directory(ancestor).map_err(file_error("sync", ancestor))?;
            }
        }
        Ok(count)
    }
}

/// Reads ranges from the one in the state on, or from the next one, until no account is left or the receiver is gone.
fn read_ranges(
    mut state: ExportState,
    format: ExportFormat,
    attributes: &[String],
    list: &mut ListAccounts<'_>,
    pieces: &SyncSender<Result<Piece, ExportError>>,
) -> Result<(), ExportError> {
    loop {
        let mut staging = Staging { format, attributes, days: BTreeMap::new(), pieces };
        let end = read_range(&state, format.range_limits(), list, &mut |account| staging.keep(account))?;
        staging.pass_on();
        let is_last = end.at_end;
        state = ExportState { database: Some(end.database.clone()), after: end.last, range: None };
        if pieces.send(Ok(Piece::End(end))).is_err() || is_last {
            return Ok(());
        }
    }
}

/// Reads the range in the state, or the next one. `keep` gets its accounts and returns the bytes that it keeps of each.
fn read_range(
    state: &ExportState,
    limits: RangeLimits,
    list: &mut ListAccounts<'_>,
    keep: &mut dyn FnMut(Account) -> usize,
) -> Result<RangeEnd, ExportError> {
    let mut range =
        RangeEnd { accounts: 0, gaps: Vec::new(), database: String::new(), last: state.after, at_end: false };
    let end = state.range.as_ref().map(|range| range.last);
    let (mut replies, mut bytes) = (0, 0);
    // A repeated range is read to its end, however long it is: a shorter one would have files of other names.
    while !range.at_end
        && end.map_or(
            range.accounts < limits.accounts && replies < limits.replies && bytes < limits.text_bytes,
            |end| range.last < end,
        )
    {
        let read = Some(range.database.clone()).filter(|id| !id.is_empty());
        let call = ListSpans {
            after: Some(i64::try_from(range.last).unwrap_or(i64::MAX)),
            database: state.database.clone().or(read),
            limit: Some(ROWS_PER_CALL),
            ..ListSpans::default()
        };
        let reply = list(&call, &mut |account| {
            // A repeated range ends where it ended before, whatever has been stored since.
            if end.is_none_or(|end| account.number.is_some_and(|number| number <= end)) {
                range.accounts += 1;
                bytes += keep(account);
            }
        })?;
        range.append(reply)?;
        replies += 1;
    }
    if let Some(end) = end.filter(|end| *end < range.last) {
        range.gaps.retain(|gap| gap.first.is_some_and(|first| first <= end));
        (range.last, range.at_end) = (end, false);
    }
    Ok(range)
}

impl RangeEnd {
    /// Adds the end of a reply.
    fn append(&mut self, reply: SpanAccounts) -> Result<(), ExportError> {
        let SpanAccounts { after, at_end, gaps, database, .. } = reply;
        let (Some(after), Some(at_end), Some(database)) = (after, at_end, database) else {
            return Err(ExportError::NoNumbers);
        };
        self.gaps.extend(gaps.into_iter().flatten());
        (self.last, self.at_end, self.database) = (after, at_end, database);
        Ok(())
    }
}

impl Staging<'_> {
    /// Keeps an account; returns the bytes of its texts.
    fn keep(&mut self, account: Account) -> usize {
        let day = partition::closing_day(&account);
        let rows = self.days.entry(day).or_insert_with(|| self.format.rows(self.attributes));
        let bytes = rows.push(account, self.attributes);
        if rows.len() >= ROWS_PER_PIECE {
            self.pass_on();
        }
        bytes
    }

    /// Passes all accounts on.
    fn pass_on(&mut self) {
        for (day, rows) in std::mem::take(&mut self.days) {
            // A receiver that is gone has reported an error. The range is read to its end, and then no further one.
            let _ = self.pieces.send(Ok(Piece::Rows { day, rows }));
        }
    }
}

/// A text about numbers without an account.
pub fn describe_gap(gap: &Gap) -> String {
    let reason = match gap.reason {
        GapReason::Deleted => "were deleted by age or size",
        GapReason::Lost => "were lost with the end of the database",
        GapReason::Damaged => "are damaged on disk",
    };
    let (first, last) = (gap.first.unwrap_or_default(), gap.last.unwrap_or_default());
    format!("accounts {first} to {last} are not exported: they {reason}")
}

/// Creates a directory, with the names of the new ones on disk.
pub(super) fn create_directory(path: &Path) -> Result<(), ExportError> {
    // The last ancestor of a relative path is empty, which means the working directory, and does not count as existing.
    let ancestors = path.ancestors();
    let missing: Vec<&Path> = ancestors.take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
    for directory in missing.into_iter().rev() {
        let made = private_file::create_dir_all(directory)
            .and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o750)))
            .and_then(|()| sync_directory(directory.parent().unwrap_or(Path::new("/"))));
        made.map_err(file_error("create", directory))?;
    }
    Ok(())
}

pub(super) fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ExportError {
    let path = path.to_owned();
    move |cause| ExportError::File { action, path, cause }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    use serde_json::{Value, json};

    use super::*;

    fn account(number: u64) -> Account {
        let account: Account = serde_json::from_str(include_str!("test_account.json")).unwrap();
        Account { number: Some(number), ..account }
    }

    const LIMITS: RangeLimits = RangeLimits { accounts: 32_768, replies: 64, text_bytes: 1000 };

    /// Reads a range from a daemon that has stored the accounts from 1 to `stored`, `per_reply` in each reply, of which each has
    /// `bytes`; returns the number of its accounts and its end.
    fn read(state: &ExportState, stored: u64, per_reply: u64, bytes: usize) -> (u64, u64, bool) {
        let template = account(0);
        let mut list = |call: &ListSpans, take: &mut dyn FnMut(Account)| {
            let first = u64::try_from(call.after.unwrap()).unwrap() + 1;
            let last = stored.min(first + per_reply - 1);
            (first..=last).for_each(|number| take(Account { number: Some(number), ..template.clone() }));
            Ok(SpanAccounts {
                after: Some(last),
                at_end: Some(last == stored),
                database: Some("uuid".into()),
                ..SpanAccounts::of_accounts(Vec::new())
            })
        };
        let mut kept = state.after;
        let mut keep = |account: Account| {
            kept += 1;
            assert_eq!(account.number, Some(kept), "each account once, in order");
            bytes
        };
        let range = read_range(state, LIMITS, &mut list, &mut keep).unwrap();
        assert_eq!((kept - state.after, range.last), (range.accounts, kept));
        (range.accounts, range.last, range.at_end)
    }

    #[test]
    fn a_new_range_ends_after_a_number_of_accounts_of_replies_or_of_bytes() {
        let new = ExportState::default();
        assert_eq!(read(&new, 50_000, 4096, 0), (32_768, 32_768, false));
        assert_eq!(read(&new, 50_000, 1, 0), (64, 64, false));
        assert_eq!(read(&new, 50_000, 4, 100), (12, 12, false));
        assert_eq!(read(&new, 50, 30, 0), (50, 50, true));
    }

    #[test]
    fn a_repeated_range_is_read_to_its_end_and_not_beyond() {
        let repeated = |last| {
            let range = Some(NumberRange { first: 11, last, host: None });
            ExportState { database: Some("uuid".into()), after: 10, range }
        };
        assert_eq!(read(&repeated(40_000), 50_000, 4096, 100), (39_990, 40_000, false));
        assert_eq!(read(&repeated(200), 50_000, 1, 0), (190, 200, false));
        assert_eq!(read(&repeated(50), 50, 4096, 0), (40, 50, true));
        assert_eq!(read(&repeated(49), 50, 4096, 0), (39, 49, false), "the next range has account 50");
    }

    #[test]
    fn the_accounts_of_a_day_are_passed_on_in_pieces_and_before_the_end_of_their_range() {
        let attributes = Vec::new();
        let mut list = |call: &ListSpans, take: &mut dyn FnMut(Account)| {
            let first = u64::try_from(call.after.unwrap()).unwrap() + 1;
            for number in first..first + 4096 {
                // Every tenth account closed a day later.
                let opened_unix_ns = (number % 10 / 9) * 86_400_000_000_000;
                take(Account { opened_unix_ns, ..account(number) });
            }
            let (after, at_end) = (Some(first + 4095), Some(first > 32_768));
            let reply = SpanAccounts::of_accounts(Vec::new());
            Ok(SpanAccounts { after, at_end, database: Some("uuid".into()), ..reply })
        };
        let (sender, pieces) = sync_channel(100);
        read_ranges(ExportState::default(), ExportFormat::Csv, &attributes, &mut list, &sender).unwrap();
        drop(sender);
        let (mut of_range, mut ranges) = (BTreeMap::new(), Vec::new());
        for piece in pieces {
            match piece.unwrap() {
                Piece::Rows { day, rows } => {
                    assert!(rows.len() <= ROWS_PER_PIECE);
                    *of_range.entry(day).or_insert(0) += rows.len();
                }
                Piece::End(end) => ranges.push((std::mem::take(&mut of_range), end.last, end.accounts)),
            }
        }
        let expected = [
            (BTreeMap::from([(0, 29_492), (1, 3276)]), 32_768, 32_768),
            (BTreeMap::from([(0, 3686), (1, 410)]), 36_864, 4096),
        ];
        assert_eq!(ranges, expected);
    }

    #[test]
    fn numbers_without_an_account_are_reported_before_the_state_is_beyond_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut exporter = exporter_to(dir.path());
        let state = exporter.state_file.path().to_owned();
        let gap = Gap { first: Some(1), last: Some(4), reason: GapReason::Deleted };
        let end =
            RangeEnd { accounts: 1, gaps: vec![gap.clone()], database: "uuid".into(), last: 5, at_end: true };
        let contents = BTreeMap::from([(0, FileContent::Accounts(vec![account(5)]))]);
        let mut messages = Vec::new();
        let mut report = |message: &str| {
            let stored: ExportState = crate::state::parse(&fs::read(&state).unwrap()).unwrap();
            assert_eq!(stored.after, 0);
            messages.push(message.to_owned());
        };
        exporter.export_range(contents, &end, &mut ExportSummary::default(), &mut report).unwrap();
        assert_eq!(messages, [describe_gap(&gap)]);
        assert_eq!(exporter.state.after, 5);
    }

    /// A daemon that has stored `stored` accounts, two in each reply, and closes a connection after some replies.
    fn daemon(stored: u64, replies: usize) -> Client {
        let (client_end, mut daemon_end) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut calls = BufReader::new(daemon_end.try_clone().unwrap()).split(0);
            for _ in 0..replies {
                let Some(Ok(call)) = calls.next() else { return };
                let call: Value = serde_json::from_slice(&call).unwrap();
                let after = call["parameters"]["after"].as_u64();
                let reply = after.map_or_else(info, |after| accounts_after(after, stored));
                let message = format!("{}\0", json!({ "parameters": reply }));
                if daemon_end.write_all(message.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Client::from_stream(client_end).unwrap()
    }

    fn info() -> Value {
        json!({
            "version": "0", "boot_id": "b", "now_ns": 1, "horizon_ns": 1, "history_ns": 1, "domains": [],
            "absent": [], "access": "telemetry",
        })
    }

    fn accounts_after(after: u64, stored: u64) -> Value {
        let last = stored.min(after + 2);
        let accounts: Vec<Account> = (after + 1..=last).map(account).collect();
        json!({ "accounts": accounts, "after": last, "at_end": last == stored, "database": "uuid" })
    }

    fn exporter_to(directory: &Path) -> Exporter {
        exporter_on("node-7", directory)
    }

    fn exporter_on(host: &str, directory: &Path) -> Exporter {
        let settings = ExportSettings {
            format: ExportFormat::Jsonl,
            directory: directory.to_owned(),
            state: None,
            host: host.into(),
            attributes: Vec::new(),
        };
        Exporter::open(settings).unwrap()
    }

    #[test]
    fn an_export_continues_over_a_new_connection_where_the_daemon_closed_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut exporter = exporter_to(dir.path());
        // A range ends after 64 replies: the first connection is closed within the second range, others in the first call.
        let mut connections = [67, 0, 1, 1000].into_iter();
        let mut connect = || Ok(daemon(300, connections.next().unwrap()));
        let mut messages = Vec::new();
        let mut report = |message: &str| messages.push(message.to_owned());
        let exported = exporter.run(&mut connect, &mut report);
        assert_eq!(exported.unwrap(), ExportSummary { accounts: 300, files: 3 });
        assert_eq!(messages.len(), 3);
        let names = names_in(&date_directory(dir.path()).join("host=node-7"));
        assert_eq!(names, ["uuid-1-128.jsonl", "uuid-129-256.jsonl", "uuid-257-300.jsonl"]);
    }

    /// The directory of the day on which all accounts closed.
    fn date_directory(directory: &Path) -> PathBuf {
        directory.join(format!("date={}", partition::date(partition::closing_day(&account(1)))))
    }

    fn names_in(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_range_is_repeated_under_the_host_that_it_was_begun_with() {
        let dir = tempfile::tempdir().unwrap();
        let date = date_directory(dir.path());
        // A file in the place of the partition: the state has the range, and its file cannot be written.
        fs::write(&date, "").unwrap();
        let mut connect = || Ok(daemon(300, 1000));
        exporter_to(dir.path()).run(&mut connect, &mut |_| {}).unwrap_err();
        fs::remove_file(&date).unwrap();
        let exported = exporter_on("other", dir.path()).run(&mut connect, &mut |_| {});
        assert_eq!(exported.unwrap(), ExportSummary { accounts: 300, files: 3 });
        assert_eq!(names_in(&date.join("host=node-7")), ["uuid-1-128.jsonl"]);
        assert_eq!(names_in(&date.join("host=other")), ["uuid-129-256.jsonl", "uuid-257-300.jsonl"]);
    }

    #[test]
    fn an_export_ends_where_one_connection_after_another_is_lost_without_progress() {
        let dir = tempfile::tempdir().unwrap();
        let mut exporter = exporter_to(dir.path());
        let mut connections = 0;
        let mut connect = || {
            connections += 1;
            Ok(daemon(300, 3))
        };
        let error = exporter.run(&mut connect, &mut |_| {}).unwrap_err();
        assert!(matches!(error, ExportError::Client(ClientError::ConnectionClosed)), "{error}");
        assert_eq!(connections, 4);
    }
}
