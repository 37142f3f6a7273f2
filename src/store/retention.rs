//! How long accounts are kept: by age and by size, the oldest go first.
//!
//! Owns the steps: each lets go of a bounded number, so that nobody waits for a big tidying-up. Invariant: after enough
//! steps nothing older than the age is left, and the database is no larger than the limit, or empty.

use rusqlite::OptionalExtension;

use super::database::{Broken, Database, stretch};
use super::settings::Settings;

/// Accounts let go in one step.
const STEP: i64 = 2000;

/// Pages given back to the file system in one step, where many are free.
const PAGES: i64 = 256;

impl Database {
    /// One step; whether another is due.
    pub(super) fn let_go(&mut self, settings: &Settings, now_s: i64) -> Result<bool, Broken> {
        let oldest = "SELECT id, kept_s FROM account ORDER BY id LIMIT 1";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let Some((first, kept_s)) = self.connection.query_row(oldest, [], read).optional()? else {
            return self.give_back();
        };
        let age_s = i64::try_from(settings.age.as_secs()).unwrap_or(i64::MAX);
        let before_s = now_s.saturating_sub(age_s);
        let too_large = self.bytes()? > settings.bytes;
        if !too_large && kept_s >= before_s {
            return self.give_back();
        }
        let before_s = if too_large { i64::MAX } else { before_s };
        let transaction = self.connection.transaction()?;
        let sql = "DELETE FROM account WHERE id < ?1 AND kept_s < ?2";
        transaction.execute(sql, [first + STEP, before_s])?;
        let left = "SELECT id FROM account ORDER BY id LIMIT 1";
        let left = transaction.query_row(left, [], |row| row.get::<_, i64>(0)).optional()?;
        // Names of accounts that are gone stay until their whole stretch is; a look-up finds no account for them.
        transaction.execute("DELETE FROM named WHERE stretch < ?1", [left.map_or(i64::MAX, stretch)])?;
        transaction.commit()?;
        Ok(true)
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
