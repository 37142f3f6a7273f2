//! The export of ranges: one state file, and for each range one file in each of its partitions.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use wattspan_client::account::{Account, Gap, GapReason};
use wattspan_client::protocol::{Access, ListSpans, MethodError, SpanAccounts};
use wattspan_client::{Client, ClientError};
use wattspan_system::private_file::{self, sync_directory, write_atomically};

use super::balance;
use super::columns;
use super::format::ExportFormat;
use super::partition;
use super::state::{ExportState, NumberRange, StateFile};

/// The accounts of a range, at least; the last page may exceed it. They are in memory while its files are written.
const ROWS_PER_RANGE: usize = 32_768;

/// The replies of a range, at most. A reply has at most about 1 MB, so that long accounts do not fill the memory.
const REPLIES_PER_RANGE: usize = 64;

/// Where the balances are. Readers of partitions ignore names that begin with `_`, as they do for `.`.
const BALANCE_DIRECTORY: &str = "_balance";

/// The accounts of a call.
const ROWS_PER_CALL: i64 = 4096;

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

/// Accounts with consecutive positions, and where they end.
struct Page {
    accounts: Vec<Account>,
    gaps: Vec<Gap>,
    database: String,
    last: u64,
    at_end: bool,
}

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
        let state = state_file.read().map_err(file_error("read", &path))?;
        Ok(Self { settings, state_file, state })
    }

    /// Exports all accounts that are stored now. `report` gets a message for each run of numbers without an account and for
    /// another database, before the state file is beyond it: an error after that does not hide it.
    ///
    /// # Errors
    /// A call failed, or a file cannot be written. The next run continues.
    pub fn run(
        &mut self,
        client: &Client,
        report: &mut dyn FnMut(&str),
    ) -> Result<ExportSummary, ExportError> {
        if client.info()?.access < Access::Telemetry {
            let needs = Access::Telemetry.as_str().to_owned();
            return Err(ClientError::Method(MethodError::AccessDenied { needs }).into());
        }
        let mut summary = ExportSummary::default();
        let attributes = self.settings.attributes.clone();
        let read = |state: &ExportState| read_page(state, &attributes, |call| client.call(call));
        let mut read_ahead = None;
        loop {
            let page = match read_ahead.take().unwrap_or_else(|| read(&self.state)) {
                Err(ExportError::Client(ClientError::Method(MethodError::InvalidValue {
                    field, ..
                }))) if field == "database" && self.state.database.is_some() => {
                    // What the last database has not given is lost with it. Its files stay.
                    report(
                        "the daemon has another database; its accounts are exported from the first one on",
                    );
                    self.save(ExportState::default())?;
                    continue;
                }
                page => page?,
            };
            if page.at_end {
                self.export_page(&page, &mut summary, report)?;
                self.write_balance(client)?;
                return Ok(summary);
            }
            let following =
                ExportState { database: Some(page.database.clone()), after: page.last, range: None };
            // The next range is read while this one is written.
            let next = thread::scope(|scope| {
                let reading = scope.spawn(|| read(&following));
                self.export_page(&page, &mut summary, report)?;
                Ok::<_, ExportError>(reading.join().unwrap_or_else(|panic| resume_unwind(panic)))
            });
            read_ahead = Some(next?);
        }
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
        let date = partition::date(at_unix_ns);
        let partition = partition::directory(&directory.join(BALANCE_DIRECTORY), &date, host);
        create_directory(&partition)?;
        let path = partition.join(format!("{life}.{}", format.extension()));
        let rows = balance::rows(&info, balance, &life, at_unix_ns);
        write_atomically(&path, 0o640, |file| format.write_balance(file, &rows))
            .map_err(file_error("write", &path))
    }

    /// Writes the files of a range, after its state.
    fn export_page(
        &mut self,
        page: &Page,
        summary: &mut ExportSummary,
        report: &mut dyn FnMut(&str),
    ) -> Result<(), ExportError> {
        let first = self.state.after + 1;
        if page.last >= first && !page.accounts.is_empty() {
            let range = NumberRange { first, last: page.last };
            let database = Some(page.database.clone());
            self.save(ExportState { database, after: self.state.after, range: Some(range) })?;
            summary.files += self.write_files(page, range)?;
            summary.accounts += page.accounts.len() as u64;
        }
        page.gaps.iter().for_each(|gap| report(&describe_gap(gap)));
        self.save(ExportState { database: Some(page.database.clone()), after: page.last, range: None })
    }

    fn save(&mut self, state: ExportState) -> Result<(), ExportError> {
        if state != self.state {
            self.state_file.write(&state).map_err(file_error("write", self.state_file.path()))?;
            self.state = state;
        }
        Ok(())
    }

    /// Writes the file of each partition; returns their number. A file that is there is complete.
    fn write_files(&self, page: &Page, range: NumberRange) -> Result<u64, ExportError> {
        let ExportSettings { format, directory, host, attributes, .. } = &self.settings;
        let mut partitions: BTreeMap<String, Vec<&Account>> = BTreeMap::new();
        for account in &page.accounts {
            partitions.entry(partition::closing_date(account)).or_default().push(account);
        }
        let NumberRange { first, last } = range;
        let name = format!("{}-{first}-{last}.{}", page.database, format.extension());
        for (date, accounts) in &partitions {
            let partition = partition::directory(directory, date, host);
            let path = partition.join(&name);
            if !path.exists() {
                create_directory(&partition)?;
                write_atomically(&path, 0o640, |file| format.write(file, accounts, attributes))
                    .map_err(file_error("write", &path))?;
            }
            // Also for names that a killed run created: the state is about to say that they are on disk.
            for ancestor in partition.ancestors().take_while(|at| at.starts_with(directory)) {
                sync_directory(ancestor).map_err(file_error("sync", ancestor))?;
            }
        }
        Ok(partitions.len() as u64)
    }
}

/// The accounts of the range in the state, or of the next one.
fn read_page(
    state: &ExportState,
    attributes: &[String],
    mut list: impl FnMut(ListSpans) -> Result<SpanAccounts, ClientError>,
) -> Result<Page, ExportError> {
    let mut page = Page {
        accounts: Vec::new(),
        gaps: Vec::new(),
        database: String::new(),
        last: state.after,
        at_end: false,
    };
    let end = state.range.map(|range| range.last);
    let mut replies = 0;
    // A repeated range is read to its end, however long it is: a shorter one would have files of other names.
    while !page.at_end
        && end.map_or(page.accounts.len() < ROWS_PER_RANGE && replies < REPLIES_PER_RANGE, |end| {
            page.last < end
        })
    {
        let read = Some(page.database.clone()).filter(|id| !id.is_empty());
        let reply = list(ListSpans {
            after: Some(i64::try_from(page.last).unwrap_or(i64::MAX)),
            database: state.database.clone().or(read),
            limit: Some(ROWS_PER_CALL),
            ..ListSpans::default()
        })?;
        page.append(reply, attributes)?;
        replies += 1;
    }
    if let Some(end) = end.filter(|end| *end < page.last) {
        // A repeated range ends where it ended before, whatever has been stored since.
        page.accounts.retain(|account| account.number.is_some_and(|number| number <= end));
        page.gaps.retain(|gap| gap.first.is_some_and(|first| first <= end));
        (page.last, page.at_end) = (end, false);
    }
    Ok(page)
}

impl Page {
    /// Adds a reply, without the attributes that are not exported.
    fn append(&mut self, reply: SpanAccounts, attributes: &[String]) -> Result<(), ExportError> {
        let SpanAccounts { accounts, after, at_end, gaps, database, .. } = reply;
        let (Some(after), Some(at_end), Some(database)) = (after, at_end, database) else {
            return Err(ExportError::NoNumbers);
        };
        self.accounts
            .extend(accounts.into_iter().map(|account| columns::without_others(account, attributes)));
        self.gaps.extend(gaps.into_iter().flatten());
        (self.last, self.at_end, self.database) = (after, at_end, database);
        Ok(())
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
    use super::*;

    fn account(number: u64) -> Account {
        let account: Account = serde_json::from_str(include_str!("test_account.json")).unwrap();
        Account { number: Some(number), ..account }
    }

    /// Reads a page from a daemon that has stored the accounts from 1 to `stored`, `per_reply` in each reply.
    fn read(state: &ExportState, stored: u64, per_reply: u64) -> Page {
        let template = account(0);
        let list = |call: ListSpans| {
            let first = u64::try_from(call.after.unwrap()).unwrap() + 1;
            let last = stored.min(first + per_reply - 1);
            let numbered = (first..=last).map(|number| Account { number: Some(number), ..template.clone() });
            Ok(SpanAccounts {
                after: Some(last),
                at_end: Some(last == stored),
                database: Some("uuid".into()),
                ..SpanAccounts::of_accounts(numbered.collect())
            })
        };
        read_page(state, &["kept".into()], list).unwrap()
    }

    fn extent(page: &Page) -> (usize, u64, bool) {
        (page.accounts.len(), page.last, page.at_end)
    }

    #[test]
    fn a_new_range_ends_after_a_number_of_accounts_or_of_replies() {
        let new = ExportState::default();
        assert_eq!(extent(&read(&new, 50_000, 4096)), (ROWS_PER_RANGE, 32_768, false));
        assert_eq!(extent(&read(&new, 50_000, 1)), (REPLIES_PER_RANGE, 64, false));
        assert_eq!(extent(&read(&new, 50, 30)), (50, 50, true));
    }

    #[test]
    fn a_repeated_range_is_read_to_its_end_and_not_beyond() {
        let repeated = |last| {
            let range = Some(NumberRange { first: 11, last });
            ExportState { database: Some("uuid".into()), after: 10, range }
        };
        assert_eq!(extent(&read(&repeated(40_000), 50_000, 4096)), (39_990, 40_000, false));
        assert_eq!(extent(&read(&repeated(200), 50_000, 1)), (190, 200, false));
        assert_eq!(extent(&read(&repeated(50), 50, 4096)), (40, 50, true));
        assert_eq!(extent(&read(&repeated(49), 50, 4096)), (39, 49, false), "the next range has account 50");
    }

    #[test]
    fn numbers_without_an_account_are_reported_before_the_state_is_beyond_them() {
        let dir = tempfile::tempdir().unwrap();
        let settings = ExportSettings {
            format: ExportFormat::Jsonl,
            directory: dir.path().to_owned(),
            state: None,
            host: "node-7".into(),
            attributes: Vec::new(),
        };
        let mut exporter = Exporter::open(settings).unwrap();
        let state = exporter.state_file.path().to_owned();
        let gap = Gap { first: Some(1), last: Some(4), reason: GapReason::Deleted };
        let page = Page {
            accounts: vec![account(5)],
            gaps: vec![gap.clone()],
            database: "uuid".into(),
            last: 5,
            at_end: true,
        };
        let mut messages = Vec::new();
        let mut report = |message: &str| {
            let stored: ExportState = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
            assert_eq!(stored.after, 0);
            messages.push(message.to_owned());
        };
        exporter.export_page(&page, &mut ExportSummary::default(), &mut report).unwrap();
        assert_eq!(messages, [describe_gap(&gap)]);
        assert_eq!(exporter.state.after, 5);
    }

    #[test]
    fn attributes_that_are_not_exported_are_not_kept_in_memory_but_the_model_is() {
        let mut long = account(1);
        long.attributes.insert("kept".into(), "v".into());
        let reply = SpanAccounts {
            after: Some(1),
            at_end: Some(true),
            database: Some("uuid".into()),
            ..SpanAccounts::of_accounts(vec![long])
        };
        let page = read_page(&ExportState::default(), &["kept".into()], |_| Ok(reply.clone())).unwrap();
        let account = &page.accounts[0];
        assert_eq!((account.model(), account.attributes.len()), (Some("llama"), 2));
        assert_eq!(account.attributes["kept"], "v");
    }
}
