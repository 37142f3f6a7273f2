//! The forecast of the retention time, shown by the configuration check without opening the store.
//!
//! A database that a daemon has open is not read; the text then explains the calculation with an example.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::settings::StoreSettings;
use super::state_dir::DATABASE_FILE;
use super::time::format_duration;

/// The window over which the present rate is measured.
pub(super) const RATE_WINDOW_S: i64 = 6 * 3600;

/// The retention time expected at the rate of the last hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionForecast {
    /// The expected retention time, in seconds.
    pub retention_s: u64,
    /// The maximum size limits the retention time, not the maximum age.
    pub limited_by_size: bool,
    /// The present rate, in accounts per hour.
    pub accounts_per_h: u64,
    /// The mean size of an account on disk, in bytes.
    pub bytes_per_account: u64,
}

impl RetentionForecast {
    /// The forecast as a sentence.
    pub(super) fn describe(&self) -> String {
        let Self { retention_s, limited_by_size, accounts_per_h, bytes_per_account } = self;
        let key = if *limited_by_size { "ledger.megabytes" } else { "ledger.days" };
        format!(
            "At the rate of the last hours ({accounts_per_h} an hour, {bytes_per_account} bytes each) accounts are kept for \
             {}; {key} limits that.",
            format_duration(*retention_s)
        )
    }

    /// Computes the forecast of a store with `bytes` and `accounts`, of which `recent_accounts` were stored in the last
    /// `window_s`; `None` if they are too few.
    pub(super) fn from_counts(
        settings: &StoreSettings,
        bytes: u64,
        accounts: i64,
        recent_accounts: i64,
        window_s: i64,
    ) -> Option<Self> {
        /// With fewer accounts the pages of an empty database would dominate their size.
        const MIN_ACCOUNTS: i64 = 100;
        if accounts < MIN_ACCOUNTS || recent_accounts <= 0 || window_s <= 0 {
            return None;
        }
        let bytes_per_account = bytes as f64 / accounts as f64;
        let per_s = recent_accounts as f64 / window_s as f64;
        let (age_limit_s, size_limit_s) =
            (settings.max_age.as_secs(), (settings.max_bytes as f64 / bytes_per_account / per_s) as u64);
        Some(Self {
            retention_s: age_limit_s.min(size_limit_s),
            limited_by_size: size_limit_s < age_limit_s,
            accounts_per_h: (per_s * 3600.0).round() as u64,
            bytes_per_account: bytes_per_account.round() as u64,
        })
    }
}

/// Describes the limits and the expected retention time in one paragraph.
pub fn describe_retention(settings: &StoreSettings) -> String {
    let (megabytes, age) = (settings.max_bytes as f64 / 1e6, format_duration(settings.max_age.as_secs()));
    let limits = format!(
        "Accounts are kept for {age} of running or up to {megabytes:.0} MB, whichever is reached first."
    );
    match read_forecast(settings) {
        Ok(Some(forecast)) => format!("{limits} {}", forecast.describe()),
        found => {
            let why = match found {
                Err(reason) => format!("cannot be read now ({reason})"),
                Ok(_) => "has too few accounts for a forecast".to_owned(),
            };
            let time_to_fill = |per_s: f64| {
                format_duration((settings.max_bytes as f64 / (per_s * EXAMPLE_ACCOUNT_BYTES)) as u64)
            };
            format!(
                "{limits} The store in {} {why}. The size limit is reached after megabytes * 10^6 / (accounts a \
                 second * bytes of an account) seconds: with {EXAMPLE_ACCOUNT_BYTES:.0} bytes, \
                 {} at 1 a second, {} at 100 a second.",
                settings.directory.display(),
                time_to_fill(1.0),
                time_to_fill(100.0)
            )
        }
    }
}

/// The size of an account with four domains, measured by benches/store.rs.
const EXAMPLE_ACCOUNT_BYTES: f64 = 200.0;

fn read_forecast(settings: &StoreSettings) -> Result<Option<RetentionForecast>, String> {
    let file = settings.directory.join(DATABASE_FILE);
    let length = std::fs::metadata(&file).map_err(|cause| cause.to_string())?.len();
    let wal = settings.directory.join(format!("{DATABASE_FILE}-wal"));
    if std::fs::metadata(wal).is_ok_and(|found| found.len() > 0) {
        return Err(
            "a daemon has it open, or was killed; `wattspan doctor` shows the rate of a running daemon"
                .into(),
        );
    }
    let rows = count_accounts(&file).map_err(|cause| cause.to_string())?;
    let Some((accounts, recent, window_s)) = rows else { return Ok(None) };
    Ok(RetentionForecast::from_counts(settings, length, accounts, recent, window_s))
}

/// Counts all accounts and those in the last [`RATE_WINDOW_S`], and returns the length of that window.
fn count_accounts(file: &Path) -> rusqlite::Result<Option<(i64, i64, i64)>> {
    // `immutable` takes no lock and creates no files. It is safe here: without a log no process has the database open.
    let escaped = file.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
    let sql = "SELECT min(id), max(id) FROM account";
    let edges = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last)): (Option<i64>, Option<i64>) = edges else { return Ok(None) };
    let mut statement =
        connection.prepare("SELECT running_s FROM account WHERE id >= ?1 ORDER BY id LIMIT 1")?;
    let mut running_s = |id: i64| statement.query_row([id], |row| row.get::<_, i64>(0));
    let end_s = running_s(last)?;
    let (mut low, mut high) = (first, last);
    while low < high {
        let middle = low + (high - low) / 2;
        if running_s(middle)? < end_s - RATE_WINDOW_S { low = middle + 1 } else { high = middle }
    }
    let window_s = if low > first { RATE_WINDOW_S } else { (end_s - running_s(first)?).max(1) };
    Ok(Some((last + 1 - first, last + 1 - low, window_s)))
}
