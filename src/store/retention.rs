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
use super::database::{Broken, COLUMNS, Database, Stamp, Stored};
use super::gap::utc;
use super::health::Outlook;
use super::name_index;
use super::settings::Settings;

const DAY_S: i64 = 86_400;

/// Accounts deleted in one step.
const STEP: i64 = 2000;

/// Pages given back to the file system in one step, where many are free.
const PAGES: i64 = 256;

/// A run by age waits until this part of the age is due, so that there is one an hour for 30 days; one by size goes on until
/// this part of the limit is free.
const AGE_PART: i64 = 720;
const SIZE_PART: u64 = 20;

/// The present rate is that of so long.
pub(super) const RATE_S: i64 = 6 * 3600;

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
    granted: i64,
    run: Option<Run>,
    told_of_size: bool,
}

/// Why accounts are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Age,
    Size,
}

/// Deletions of one reason without a pause.
#[derive(Debug)]
struct Run {
    why: Why,
    first: i64,
    from_s: i64,
    to_s: i64,
}

/// What one step did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Another one is due.
    pub more: bool,
    /// What to log.
    pub lines: Vec<String>,
}

impl Retention {
    /// Of a store whose lowest number this is.
    pub fn from(first: i64) -> Self {
        Self { first, ..Self::default() }
    }

    pub fn load(connection: &Connection) -> Result<Self, Broken> {
        let sql = "SELECT first, day_began_s, day_end_s, crc FROM retention WHERE id = 1";
        let read =
            |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)?]);
        let row = match connection.query_row(sql, [], read).optional().map_err(Broken::Sqlite) {
            Err(broken) if broken.is_damage() => None,
            row => row?,
        };
        let sound =
            row.filter(|[first, began, end, crc]| *crc == i64::from(checksum([*first, *began, *end])));
        let [first, day_began_s, day_end_s, _] = sound.unwrap_or_default();
        Ok(Self { first, day_began_s, day_end_s, ..Self::default() })
    }

    pub fn store(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self { first, day_began_s, day_end_s, .. } = self;
        let crc = checksum([*first, *day_began_s, *day_end_s]);
        let sql = "INSERT OR REPLACE INTO retention VALUES (1, ?1, ?2, ?3, ?4)";
        connection.execute(sql, params![first, day_began_s, day_end_s, crc]).map(drop)
    }
}

fn checksum(numbers: [i64; 3]) -> i32 {
    Checksum::default().numbers(&numbers).finish()
}

impl Database {
    /// One step of deleting what is due.
    pub(super) fn let_go(&mut self, settings: &Settings, now: ClockReading) -> Result<Step, Broken> {
        let mut step = Step::default();
        let (target, why) = match self.due(settings, now)? {
            Some(due) => due,
            None => {
                self.end_run(settings, now, &mut step)?;
                step.more = self.give_back()?;
                return Ok(step);
            }
        };
        if self.retention.run.as_ref().is_some_and(|run| run.why != why) {
            self.end_run(settings, now, &mut step)?;
        }
        let first = self.numbers.first;
        let next = target.min(first + STEP);
        let from_s = self.at_or_after(first)?.map(|(_, stamp)| stamp.kept_s);
        let to_s = self.at_or_after(next - 1)?.map(|(_, stamp)| stamp.kept_s).or(from_s);
        let run = self.retention.run.get_or_insert(Run { why, first, from_s: from_s.unwrap_or(0), to_s: 0 });
        run.to_s = to_s.unwrap_or(run.to_s);
        self.delete_below(next)?;
        step.more = true;
        Ok(step)
    }

    /// Up to which number accounts are to be deleted now, and why.
    fn due(&mut self, settings: &Settings, now: ClockReading) -> Result<Option<(i64, Why)>, Broken> {
        let (first, end) = (self.numbers.first, self.numbers.last + 1);
        let deleting = |why| self.retention.run.as_ref().is_some_and(|run| run.why == why);
        let free = if deleting(Why::Size) { settings.bytes / SIZE_PART } else { 0 };
        if first < end && self.bytes()? > settings.bytes - free {
            return Ok(Some((end, Why::Size)));
        }
        let age_s = i64::try_from(settings.age.as_secs()).unwrap_or(i64::MAX);
        let (running_s, patience_s) =
            (self.running_s(now), if deleting(Why::Age) { 0 } else { age_s / AGE_PART });
        let aged = |since_s: i64| running_s.saturating_sub(age_s).saturating_sub(since_s);
        self.end_day(age_s, running_s, now.unix_s)?;
        let mut target = self.retention.granted;
        if self.running_at(first)?.is_some_and(|oldest_s| aged(oldest_s) > patience_s) {
            target = target.max(self.number_at(running_s.saturating_sub(age_s))?);
        }
        Ok((target > first).then_some((target, Why::Age)))
    }

    /// After a whole day of running: lets go of at most one day's worth of accounts, where the latest of them is too old by
    /// wall time.
    fn end_day(&mut self, age_s: i64, running_s: i64, unix_s: i64) -> Result<(), Broken> {
        let Some(oldest_s) = self.running_at(self.numbers.first)? else { return Ok(()) };
        let Retention { day_began_s, day_end_s, .. } = self.retention;
        if day_end_s > 0 && running_s < day_began_s + DAY_S {
            return Ok(());
        }
        let mut deleted_to_s = oldest_s;
        if day_end_s > 0 {
            let next = self.number_at(day_end_s)?;
            let latest = self.at_or_after(next - 1)?.map(|(_, stamp)| stamp.kept_s);
            if latest.is_some_and(|kept_s| unix_s.saturating_sub(kept_s) >= age_s) {
                (self.retention.granted, deleted_to_s) = (next, deleted_to_s.max(day_end_s));
            }
        }
        (self.retention.day_began_s, self.retention.day_end_s) = (running_s, deleted_to_s + DAY_S);
        self.retention.store(&self.connection)?;
        Ok(())
    }

    /// Deletes every number below this one, with their names and what is known of their loss.
    fn delete_below(&mut self, next: i64) -> Result<(), Broken> {
        let transaction = self.connection.transaction()?;
        transaction.execute("DELETE FROM account WHERE id < ?1", [next])?;
        // Names of accounts that are gone stay until their whole stretch is; a look-up passes them over.
        let blocks = name_index::key(name_index::stretch(next), 0);
        transaction.execute("DELETE FROM block WHERE id < ?1", [blocks])?;
        transaction.execute("DELETE FROM gap WHERE last < ?1", [next])?;
        self.retention.first = next;
        self.retention.store(&transaction)?;
        transaction.commit()?;
        self.numbers.first = next;
        self.numbers.gaps.retain(|gap| gap.last >= next);
        Ok(())
    }

    fn end_run(&mut self, settings: &Settings, now: ClockReading, step: &mut Step) -> Result<(), Broken> {
        let Some(Run { why, first, from_s, to_s }) = self.retention.run.take() else { return Ok(()) };
        let reason = match why {
            Why::Age => format!("older than {}", duration(settings.age.as_secs())),
            Why::Size => format!("the store is larger than {:.0} MB", settings.bytes as f64 / 1e6),
        };
        let count = self.numbers.first - first;
        step.lines.push(format!(
            "deleted {count} accounts, kept from {} to {}: {reason}",
            utc(from_s),
            utc(to_s)
        ));
        if why == Why::Size && !std::mem::replace(&mut self.retention.told_of_size, true) {
            let kept = self
                .outlook(settings, now)?
                .map_or("a shorter time".into(), |outlook| duration(outlook.keeps_s));
            step.lines.push(format!(
                "size, not age, limits how long accounts are kept: at the present rate {kept}, not {}; raise \
                 ledger.megabytes to keep them longer",
                duration(settings.age.as_secs())
            ));
        }
        Ok(())
    }

    /// The first sound account from this number on, with its times; a few are looked at.
    fn at_or_after(&self, id: i64) -> Result<Option<(i64, Stamp)>, Broken> {
        const LOOKED_AT: i64 = 64;
        let sql = format!("SELECT {COLUMNS} WHERE id >= ?1 ORDER BY id LIMIT {LOOKED_AT}");
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([id])?;
        while let Some(row) = rows.next()? {
            if let Some(Stored { id, kept_s, running_s, .. }) = Stored::read(row, &self.layouts) {
                return Ok(Some((id, Stamp { kept_s, running_s })));
            }
        }
        Ok(None)
    }

    /// The running time at which an account was kept, or those of the gap that it is in.
    fn running_at(&self, id: i64) -> Result<Option<i64>, Broken> {
        if let Some(gap) = self.numbers.gap_within(id, id) {
            return Ok(Some(gap.running_s));
        }
        Ok(self.at_or_after(id)?.map(|(_, stamp)| stamp.running_s))
    }

    /// The lowest number of an account that was kept at this running time or later.
    fn number_at(&self, running_s: i64) -> Result<i64, Broken> {
        let (mut low, mut high) = (self.numbers.first, self.numbers.last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.running_at(middle)? {
                Some(at_s) if at_s < running_s => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// How long accounts will be kept at the present rate; `None` where there are too few to say.
    pub(super) fn outlook(&self, settings: &Settings, now: ClockReading) -> Result<Option<Outlook>, Broken> {
        let (first, last) = (self.numbers.first, self.numbers.last);
        let running_s = self.running_s(now);
        let since = self.number_at(running_s - RATE_S)?;
        let Some(since_s) = self.running_at(since)? else { return Ok(None) };
        // What came before that instant is known; a store that has just begun has nothing before it.
        let length_s = if since > first { RATE_S } else { (running_s - since_s).max(1) };
        Ok(Outlook::of(settings, self.bytes()?, last + 1 - first, last + 1 - since, length_s))
    }

    /// Gives free pages back where they are more than a quarter; whether there are more.
    fn give_back(&mut self) -> Result<bool, Broken> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (pages, free) = (pragma("page_count")?, pragma("freelist_count")?);
        if free <= PAGES || free * 4 <= pages {
            return Ok(false);
        }
        let mut vacuum = self.connection.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
        let mut freed = vacuum.query([])?;
        while freed.next()?.is_some() {}
        Ok(true)
    }
}

/// A length of time in its two leading units.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..259_200 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
