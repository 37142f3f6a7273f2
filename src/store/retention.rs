//! Retention: deletes the oldest accounts by age and by size, in steps of bounded size, so that no commit waits long.
//!
//! An account's age is the store's running time since it was stored, which changes of the wall clock do not affect.
//! Wall time, which also counts while the daemon is off, may delete more: after each day of running time at most one
//! day's accounts, and only if the latest of them is too old. So a clock that is wrong for hours deletes nothing, and
//! one that stays wrong deletes at most one day's accounts per day.

use super::account_index;
use super::account_table::{ACCOUNT_COLUMNS, AccountRow};
use super::database::Database;
use super::forecast::{RATE_WINDOW_S, RetentionForecast};
use super::retention_state::{DeletionReason, DeletionRun, Retention};
use super::schema::{DatabaseError, unless_corrupt};
use super::settings::StoreSettings;
use super::time::{ClockReading, CommitTime, format_duration, format_utc};

const DAY_S: i64 = 86_400;

/// The maximum number of accounts deleted in one step.
const MAX_DELETED_PER_STEP: i64 = 2000;

/// The number of pages returned to the file system in one step, if many are free.
const VACUUM_PAGES: i64 = 256;

/// A deletion by age starts when accounts exceed the maximum age by this fraction of it: once an hour for 30 days. A
/// deletion by size ends when this fraction of the maximum size is free.
const AGE_SLACK_DIVISOR: i64 = 720;
const SIZE_SLACK_DIVISOR: u64 = 20;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RetentionStep {
    /// Another step is due.
    pub more: bool,
    pub log_lines: Vec<String>,
}

/// Runs one bounded step of the deletions that are due.
pub(super) fn run_step(
    database: &mut Database,
    settings: &StoreSettings,
    now: ClockReading,
) -> Result<RetentionStep, DatabaseError> {
    let mut step = RetentionStep::default();
    let (target, reason) = match deletion_target(database, settings, now)? {
        Some(target) => target,
        None => {
            finish_deletion_run(database, settings, now, &mut step)?;
            step.more = vacuum_step(database)?;
            return Ok(step);
        }
    };
    if database.retention.run.as_ref().is_some_and(|run| run.reason != reason) {
        finish_deletion_run(database, settings, now, &mut step)?;
    }
    let first = database.index.first_id;
    let next = target.min(first + MAX_DELETED_PER_STEP);
    let from_s = time_from(database, first)?.map(|commit_time| commit_time.kept_s);
    let to_s = time_from(database, next - 1)?.map(|commit_time| commit_time.kept_s).or(from_s);
    let run = database.retention.run.get_or_insert(DeletionRun {
        reason,
        first,
        from_s: from_s.unwrap_or(0),
        to_s: 0,
    });
    run.to_s = to_s.unwrap_or(run.to_s);
    delete_below(database, next)?;
    step.more = true;
    Ok(step)
}

/// The ID below which accounts are due for deletion, with the reason.
fn deletion_target(
    database: &mut Database,
    settings: &StoreSettings,
    now: ClockReading,
) -> Result<Option<(i64, DeletionReason)>, DatabaseError> {
    let (first, end) = (database.index.first_id, database.index.last_id + 1);
    let deleting = |reason| database.retention.run.as_ref().is_some_and(|run| run.reason == reason);
    let slack_bytes =
        if deleting(DeletionReason::Size) { settings.max_bytes / SIZE_SLACK_DIVISOR } else { 0 };
    if first < end && database.size_bytes()? > settings.max_bytes - slack_bytes {
        return Ok(Some((end, DeletionReason::Size)));
    }
    let age_s = i64::try_from(settings.max_age.as_secs()).unwrap_or(i64::MAX);
    let (running_s, slack_s) =
        (database.running_s(now), if deleting(DeletionReason::Age) { 0 } else { age_s / AGE_SLACK_DIVISOR });
    let overage_s = |since_s: i64| running_s.saturating_sub(age_s).saturating_sub(since_s);
    advance_day(database, age_s, running_s, now.unix_s)?;
    let mut target = database.retention.expired_below;
    if running_s_of(database, first)?.is_some_and(|oldest_s| overage_s(oldest_s) > slack_s) {
        target = target.max(first_id_since(database, running_s.saturating_sub(age_s))?);
    }
    Ok((target > first).then_some((target, DeletionReason::Age)))
}

/// After a whole day of running time, marks at most one day's accounts for deletion if the latest of them is too old by
/// wall time.
fn advance_day(
    database: &mut Database,
    age_s: i64,
    running_s: i64,
    unix_s: i64,
) -> Result<(), DatabaseError> {
    let Some(oldest_s) = running_s_of(database, database.index.first_id)? else { return Ok(()) };
    let Retention { day_began_s, day_end_s, .. } = database.retention;
    if day_end_s > 0 && running_s < day_began_s + DAY_S {
        return Ok(());
    }
    let mut deleted_to_s = oldest_s;
    if day_end_s > 0 {
        let next = first_id_since(database, day_end_s)?;
        let latest = time_from(database, next - 1)?.map(|commit_time| commit_time.kept_s);
        if latest.is_some_and(|kept_s| unix_s.saturating_sub(kept_s) >= age_s) {
            (database.retention.expired_below, deleted_to_s) = (next, deleted_to_s.max(day_end_s));
        }
    }
    (database.retention.day_began_s, database.retention.day_end_s) = (running_s, deleted_to_s + DAY_S);
    database.retention.save(&database.connection)?;
    Ok(())
}

/// Deletes the accounts below this ID, with their index blocks and gaps. Where a page of them cannot be read, they are only
/// deleted from the range of IDs, and their pages stay in use.
fn delete_below(database: &mut Database, next: i64) -> Result<(), DatabaseError> {
    let first = database.index.first_id;
    database.retention.first = next;
    let rows_deleted = delete_rows(database, first, next);
    if unless_corrupt(rows_deleted)?.is_none() {
        database.retention.save(&database.connection)?;
    }
    database.index.set_first_id(next);
    Ok(())
}

/// What was left below `first` is on pages that cannot be read, or next to them.
fn delete_rows(database: &mut Database, first: i64, next: i64) -> rusqlite::Result<()> {
    let transaction = database.connection.transaction()?;
    transaction.execute("DELETE FROM account WHERE id >= ?1 AND id < ?2", [first, next])?;
    // Names of deleted accounts stay until their whole segment is deleted; a look-up skips them.
    let blocks = [first, next].map(|id| account_index::block_key(account_index::segment_of(id), 0));
    transaction.execute("DELETE FROM block WHERE id >= ?1 AND id < ?2", blocks)?;
    transaction.execute("DELETE FROM gap WHERE last < ?1", [next])?;
    database.retention.save(&transaction)?;
    transaction.commit()
}

fn finish_deletion_run(
    database: &mut Database,
    settings: &StoreSettings,
    now: ClockReading,
    step: &mut RetentionStep,
) -> Result<(), DatabaseError> {
    let Some(DeletionRun { reason, first, from_s, to_s }) = database.retention.run.take() else {
        return Ok(());
    };
    let text = match reason {
        DeletionReason::Age => format!("older than {}", format_duration(settings.max_age.as_secs())),
        DeletionReason::Size => {
            format!("the store is larger than {:.0} MB", settings.max_bytes as f64 / 1e6)
        }
    };
    let count = database.index.first_id - first;
    step.log_lines.push(format!(
        "deleted {count} accounts, stored from {} to {}: {text}",
        format_utc(from_s),
        format_utc(to_s)
    ));
    if reason == DeletionReason::Size && !std::mem::replace(&mut database.retention.size_limit_logged, true) {
        let kept = forecast(database, settings, now)?
            .map_or("a shorter time".into(), |forecast| format_duration(forecast.retention_s));
        step.log_lines.push(format!(
            "size, not age, limits how long accounts are kept: at the present rate {kept}, not {}; raise \
             ledger.megabytes to keep them longer",
            format_duration(settings.max_age.as_secs())
        ));
    }
    Ok(())
}

/// The times of the first valid account from this ID on; only a few rows are read. Where they cannot be read, it is a later one.
fn time_from(database: &Database, id: i64) -> Result<Option<CommitTime>, DatabaseError> {
    let mut distance = 0;
    while id + distance <= database.index.last_id {
        if let Some(found) = unless_corrupt(first_time_from(database, id + distance))? {
            return Ok(found);
        }
        distance = (distance * 2).max(1);
    }
    Ok(None)
}

fn first_time_from(database: &Database, id: i64) -> rusqlite::Result<Option<CommitTime>> {
    const MAX_ROWS_SCANNED: i64 = 64;
    let sql = format!("SELECT {ACCOUNT_COLUMNS} WHERE id >= ?1 ORDER BY id LIMIT {MAX_ROWS_SCANNED}");
    let mut statement = database.connection.prepare(&sql)?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        if let Some(AccountRow { kept_s, running_s, .. }) = AccountRow::read(row, &database.layouts) {
            return Ok(Some(CommitTime { kept_s, running_s }));
        }
    }
    Ok(None)
}

/// The running time at which an account was stored, or that of the gap that contains it.
fn running_s_of(database: &Database, id: i64) -> Result<Option<i64>, DatabaseError> {
    if let Some(gap) = database.index.gap_within(id, id) {
        return Ok(Some(gap.running_s));
    }
    Ok(time_from(database, id)?.map(|commit_time| commit_time.running_s))
}

/// The lowest ID of an account that was stored at this running time or later.
fn first_id_since(database: &Database, running_s: i64) -> Result<i64, DatabaseError> {
    let (mut low, mut high) = (database.index.first_id, database.index.last_id + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match running_s_of(database, middle)? {
            Some(at_s) if at_s < running_s => low = middle + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// The expected retention time at the present rate; `None` if there are too few accounts.
pub(super) fn forecast(
    database: &Database,
    settings: &StoreSettings,
    now: ClockReading,
) -> Result<Option<RetentionForecast>, DatabaseError> {
    let (first, last) = (database.index.first_id, database.index.last_id);
    let running_s = database.running_s(now);
    let first_recent = first_id_since(database, running_s - RATE_WINDOW_S)?;
    let Some(since_s) = running_s_of(database, first_recent)? else { return Ok(None) };
    // With older accounts the window is full; otherwise it starts with the first account.
    let window_s = if first_recent > first { RATE_WINDOW_S } else { (running_s - since_s).max(1) };
    Ok(RetentionForecast::from_counts(
        settings,
        database.size_bytes()?,
        last + 1 - first,
        last + 1 - first_recent,
        window_s,
    ))
}

/// Returns free pages to the file system if they are more than a quarter of all; returns whether there are more.
fn vacuum_step(database: &mut Database) -> Result<bool, DatabaseError> {
    let pragma = |name: &str| database.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (pages, free) = (pragma("page_count")?, pragma("freelist_count")?);
    if free <= VACUUM_PAGES || free * 4 <= pages {
        return Ok(false);
    }
    let mut vacuum = database.connection.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut free = || {
        let mut freed = vacuum.query([])?;
        while freed.next()?.is_some() {}
        Ok(())
    };
    // Free pages stay where the pages that would be moved cannot be read; new accounts use them.
    Ok(unless_corrupt(free())?.is_some())
}
