//! The state of retention: the part that the database stores, and the deletion in progress.
//!
//! Invariant: accounts are deleted from the lowest ID upwards, and everything below `first` was deleted on purpose.

use rusqlite::{Connection, OptionalExtension, params};

use super::checksum::Checksum;
use super::schema::{DatabaseError, unless_corrupt};

/// The IDs that were deleted, and those that may be.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// The lowest ID that was not deleted; 0 if unknown.
    pub first: i64,
    /// The running time at which the current day began, and the running time of accounts up to which it may delete by wall
    /// time at its end.
    pub day_began_s: i64,
    pub day_end_s: i64,
    /// IDs below this one are due for deletion by wall time.
    pub expired_below: i64,
    pub run: Option<DeletionRun>,
    pub size_limit_logged: bool,
}

/// The limit that causes a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeletionReason {
    Age,
    Size,
}

/// A series of deletions for one reason.
#[derive(Debug)]
pub(super) struct DeletionRun {
    pub reason: DeletionReason,
    pub first: i64,
    pub from_s: i64,
    pub to_s: i64,
}

impl Retention {
    /// The state of a store whose lowest ID is `first`.
    pub fn starting_at(first: i64) -> Self {
        Self { first, ..Self::default() }
    }

    pub fn load(connection: &Connection) -> Result<Self, DatabaseError> {
        let sql = "SELECT first, day_began_s, day_end_s, crc FROM retention WHERE id = 1";
        let read =
            |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)?]);
        let row = unless_corrupt(connection.query_row(sql, [], read).optional())?.flatten();
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
