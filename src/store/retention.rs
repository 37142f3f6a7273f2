//! How long accounts are kept: by age and by size, the oldest go first.
//!
//! Owns what is due and the steps: each deletes a bounded number, so that no commit waits for a big deletion. An account's
//! age is the store's own running time since it was kept, which no setting of a clock moves. Wall time, which also counts
//! while the daemon is off, may delete more: after each whole day of running at most one day's worth, and only where the
//! whole of that day is too old. So a clock that is wrong for a while deletes nothing, and one that stays wrong a day per
//! day. Invariant: numbers are deleted from the lowest upwards, and everything below `first` was deleted on purpose.

use rusqlite::{Connection, OptionalExtension, params};

use super::checksum::Checksum;
use super::clock_reading::ClockReading;
use super::database::{ACCOUNT_COLUMNS, AccountRow, CommitTime, Database, DatabaseError};
use super::gap::format_utc;
use super::health::RetentionForecast;
use super::name_index;
use super::settings::StoreSettings;

const DAY_S: i64 = 86_400;

/// Accounts deleted in one step.
const MAX_DELETED_PER_STEP: i64 = 2000;

/// Pages given back to the file system in one step, where many are free.
const VACUUM_PAGES: i64 = 256;

/// A run by age waits until this part of the age is due, so that there is one an hour for 30 days; one by size goes on until
/// this part of the limit is free.
const AGE_SLACK_DIVISOR: i64 = 720;
const SIZE_SLACK_DIVISOR: u64 = 20;

/// The present rate is that of so long.
pub(super) const RATE_WINDOW_S: i64 = 6 * 3600;

/// What was deleted, and what may be.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// The lowest number that was not deleted; 0: not known.
    pub first: i64,
    /// The running time at which the current day began, and the running time of accounts up to which it may delete by wall
    /// time at its end.
    day_began_s: i64,
    day_end_s: i64,
    /// What an ended day lets go of by wall time.
    expired_below: i64,
    run: Option<DeletionRun>,
    size_limit_logged: bool,
}

/// Why accounts are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeletionReason {
    Age,
    Size,
}

/// Deletions of one reason without a pause.
#[derive(Debug)]
struct DeletionRun {
    reason: DeletionReason,
    first: i64,
    from_s: i64,
    to_s: i64,
}

/// What one step did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RetentionStep {
    /// Another one is due.
    pub more: bool,
    /// What to log.
    pub log_lines: Vec<String>,
}

impl Retention {
    /// Of a store whose lowest number this is.
    pub fn starting_at(first: i64) -> Self {
        Self { first, ..Self::default() }
    }

    pub fn load(connection: &Connection) -> Result<Self, DatabaseError> {
        let sql = "SELECT first, day_began_s, day_end_s, crc FROM retention WHERE id = 1";
        let read =
            |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)?]);
        let row = match connection.query_row(sql, [], read).optional().map_err(DatabaseError::Sqlite) {
            Err(error) if error.is_corruption() => None,
            row => row?,
        };
        let sound =
            row.filter(|[first, began, end, crc]| *crc == i64::from(checksum([*first, *began, *end])));
        let [first, day_began_s, day_end_s, _] = sound.unwrap_or_default();
        Ok(Self { first, day_began_s, day_end_s, ..Self::default() })
    }

    pub fn save(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self { first, day_began_s, day_end_s, .. } = self;
        let crc = checksum([*first, *day_began_s, *day_end_s]);
        let sql = "INSERT OR REPLACE INTO retention VALUES (1, ?1, ?2, ?3, ?4)";
        connection.execute(sql, params![first, day_began_s, day_end_s, crc]).map(drop)
    }
}

fn checksum(integers: [i64; 3]) -> i32 {
    Checksum::default().numbers(&integers).finish()
}

impl Database {
    /// One step of deleting what is due.
    pub(super) fn retention_step(
        &mut self,
        settings: &StoreSettings,
        now: ClockReading,
    ) -> Result<RetentionStep, DatabaseError> {
        let mut step = RetentionStep::default();
        let (target, reason) = match self.deletion_target(settings, now)? {
            Some(target) => target,
            None => {
                self.finish_deletion_run(settings, now, &mut step)?;
                step.more = self.vacuum_step()?;
                return Ok(step);
            }
        };
        if self.retention.run.as_ref().is_some_and(|run| run.reason != reason) {
            self.finish_deletion_run(settings, now, &mut step)?;
        }
        let first = self.index.first_id;
        let next = target.min(first + MAX_DELETED_PER_STEP);
        let from_s = self.first_row_from(first)?.map(|(_, commit_time)| commit_time.kept_s);
        let to_s = self.first_row_from(next - 1)?.map(|(_, commit_time)| commit_time.kept_s).or(from_s);
        let run = self.retention.run.get_or_insert(DeletionRun {
            reason,
            first,
            from_s: from_s.unwrap_or(0),
            to_s: 0,
        });
        run.to_s = to_s.unwrap_or(run.to_s);
        self.delete_below(next)?;
        step.more = true;
        Ok(step)
    }

    /// Up to which number accounts are to be deleted now, and why.
    fn deletion_target(
        &mut self,
        settings: &StoreSettings,
        now: ClockReading,
    ) -> Result<Option<(i64, DeletionReason)>, DatabaseError> {
        let (first, end) = (self.index.first_id, self.index.last_id + 1);
        let deleting = |reason| self.retention.run.as_ref().is_some_and(|run| run.reason == reason);
        let slack_bytes =
            if deleting(DeletionReason::Size) { settings.max_bytes / SIZE_SLACK_DIVISOR } else { 0 };
        if first < end && self.size_bytes()? > settings.max_bytes - slack_bytes {
            return Ok(Some((end, DeletionReason::Size)));
        }
        let age_s = i64::try_from(settings.max_age.as_secs()).unwrap_or(i64::MAX);
        let (running_s, slack_s) =
            (self.running_s(now), if deleting(DeletionReason::Age) { 0 } else { age_s / AGE_SLACK_DIVISOR });
        let overage_s = |since_s: i64| running_s.saturating_sub(age_s).saturating_sub(since_s);
        self.advance_day(age_s, running_s, now.unix_s)?;
        let mut target = self.retention.expired_below;
        if self.running_s_of(first)?.is_some_and(|oldest_s| overage_s(oldest_s) > slack_s) {
            target = target.max(self.first_id_since(running_s.saturating_sub(age_s))?);
        }
        Ok((target > first).then_some((target, DeletionReason::Age)))
    }

    /// After a whole day of running: lets go of at most one day's worth of accounts, where the latest of them is too old by
    /// wall time.
    fn advance_day(&mut self, age_s: i64, running_s: i64, unix_s: i64) -> Result<(), DatabaseError> {
        let Some(oldest_s) = self.running_s_of(self.index.first_id)? else { return Ok(()) };
        let Retention { day_began_s, day_end_s, .. } = self.retention;
        if day_end_s > 0 && running_s < day_began_s + DAY_S {
            return Ok(());
        }
        let mut deleted_to_s = oldest_s;
        if day_end_s > 0 {
            let next = self.first_id_since(day_end_s)?;
            let latest = self.first_row_from(next - 1)?.map(|(_, commit_time)| commit_time.kept_s);
            if latest.is_some_and(|kept_s| unix_s.saturating_sub(kept_s) >= age_s) {
                (self.retention.expired_below, deleted_to_s) = (next, deleted_to_s.max(day_end_s));
            }
        }
        (self.retention.day_began_s, self.retention.day_end_s) = (running_s, deleted_to_s + DAY_S);
        self.retention.save(&self.connection)?;
        Ok(())
    }

    /// Deletes every number below this one, with their names and what is known of their loss.
    fn delete_below(&mut self, next: i64) -> Result<(), DatabaseError> {
        let transaction = self.connection.transaction()?;
        transaction.execute("DELETE FROM account WHERE id < ?1", [next])?;
        // Names of accounts that are gone stay until their whole segment is; a look-up passes them over.
        let blocks = name_index::block_key(name_index::segment_of(next), 0);
        transaction.execute("DELETE FROM block WHERE id < ?1", [blocks])?;
        transaction.execute("DELETE FROM gap WHERE last < ?1", [next])?;
        self.retention.first = next;
        self.retention.save(&transaction)?;
        transaction.commit()?;
        self.index.first_id = next;
        self.index.gaps.retain(|gap| gap.last >= next);
        Ok(())
    }

    fn finish_deletion_run(
        &mut self,
        settings: &StoreSettings,
        now: ClockReading,
        step: &mut RetentionStep,
    ) -> Result<(), DatabaseError> {
        let Some(DeletionRun { reason, first, from_s, to_s }) = self.retention.run.take() else {
            return Ok(());
        };
        let text = match reason {
            DeletionReason::Age => format!("older than {}", format_duration(settings.max_age.as_secs())),
            DeletionReason::Size => {
                format!("the store is larger than {:.0} MB", settings.max_bytes as f64 / 1e6)
            }
        };
        let count = self.index.first_id - first;
        step.log_lines.push(format!(
            "deleted {count} accounts, kept from {} to {}: {text}",
            format_utc(from_s),
            format_utc(to_s)
        ));
        if reason == DeletionReason::Size && !std::mem::replace(&mut self.retention.size_limit_logged, true) {
            let kept = self
                .retention_forecast(settings, now)?
                .map_or("a shorter time".into(), |forecast| format_duration(forecast.retention_s));
            step.log_lines.push(format!(
                "size, not age, limits how long accounts are kept: at the present rate {kept}, not {}; raise \
                 ledger.megabytes to keep them longer",
                format_duration(settings.max_age.as_secs())
            ));
        }
        Ok(())
    }

    /// The first sound account from this number on, with its times; a few are looked at.
    fn first_row_from(&self, id: i64) -> Result<Option<(i64, CommitTime)>, DatabaseError> {
        const MAX_ROWS_SCANNED: i64 = 64;
        let sql = format!("SELECT {ACCOUNT_COLUMNS} WHERE id >= ?1 ORDER BY id LIMIT {MAX_ROWS_SCANNED}");
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([id])?;
        while let Some(row) = rows.next()? {
            if let Some(AccountRow { id, kept_s, running_s, .. }) = AccountRow::read(row, &self.layouts) {
                return Ok(Some((id, CommitTime { kept_s, running_s })));
            }
        }
        Ok(None)
    }

    /// The running time at which an account was kept, or those of the gap that it is in.
    fn running_s_of(&self, id: i64) -> Result<Option<i64>, DatabaseError> {
        if let Some(gap) = self.index.gap_within(id, id) {
            return Ok(Some(gap.running_s));
        }
        Ok(self.first_row_from(id)?.map(|(_, commit_time)| commit_time.running_s))
    }

    /// The lowest number of an account that was kept at this running time or later.
    fn first_id_since(&self, running_s: i64) -> Result<i64, DatabaseError> {
        let (mut low, mut high) = (self.index.first_id, self.index.last_id + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.running_s_of(middle)? {
                Some(at_s) if at_s < running_s => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// How long accounts will be kept at the present rate; `None` where there are too few to say.
    pub(super) fn retention_forecast(
        &self,
        settings: &StoreSettings,
        now: ClockReading,
    ) -> Result<Option<RetentionForecast>, DatabaseError> {
        let (first, last) = (self.index.first_id, self.index.last_id);
        let running_s = self.running_s(now);
        let first_recent = self.first_id_since(running_s - RATE_WINDOW_S)?;
        let Some(since_s) = self.running_s_of(first_recent)? else { return Ok(None) };
        // What came before that instant is known; a store that has just begun has nothing before it.
        let window_s = if first_recent > first { RATE_WINDOW_S } else { (running_s - since_s).max(1) };
        Ok(RetentionForecast::from_counts(
            settings,
            self.size_bytes()?,
            last + 1 - first,
            last + 1 - first_recent,
            window_s,
        ))
    }

    /// Gives free pages back where they are more than a quarter; whether there are more.
    fn vacuum_step(&mut self) -> Result<bool, DatabaseError> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (pages, free) = (pragma("page_count")?, pragma("freelist_count")?);
        if free <= VACUUM_PAGES || free * 4 <= pages {
            return Ok(false);
        }
        let mut vacuum = self.connection.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        let mut freed = vacuum.query([])?;
        while freed.next()?.is_some() {}
        Ok(true)
    }
}

/// A length of time in its two leading units.
pub(super) fn format_duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..259_200 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
