//! How long accounts will be kept, for an administrator who checks the configuration: no store is opened for it.
//!
//! Owns the words. A database that a daemon has open is not touched: then the rule is given with an example.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::health::Outlook;
use super::place::FILE;
use super::retention::{RATE_S, duration};
use super::settings::Settings;

/// One paragraph.
pub fn forecast(settings: &Settings) -> String {
    let (megabytes, age) = (settings.bytes as f64 / 1e6, duration(settings.age.as_secs()));
    let limits = format!(
        "Accounts are kept for {age} of running or up to {megabytes:.0} MB, whichever is reached first."
    );
    match read(settings) {
        Ok(Some(outlook)) => format!("{limits} {}", outlook.sentence()),
        found => {
            let why = match found {
                Err(reason) => format!("cannot be read now ({reason})"),
                Ok(_) => "has too few accounts to tell the rate".to_owned(),
            };
            let fills = |per_s: f64| duration((settings.bytes as f64 / (per_s * EXAMPLE_BYTES)) as u64);
            format!(
                "{limits} The store in {} {why}. The size lasts for megabytes * 10^6 / (accounts a second * bytes of an \
                 account): with {EXAMPLE_BYTES:.0} bytes, {} at 1 a second, {} at 100 a second.",
                settings.directory.display(),
                fills(1.0),
                fills(100.0)
            )
        }
    }
}

/// What an account of four domains takes (benches/store.rs).
const EXAMPLE_BYTES: f64 = 200.0;

fn read(settings: &Settings) -> Result<Option<Outlook>, String> {
    let file = settings.directory.join(FILE);
    let length = std::fs::metadata(&file).map_err(|cause| cause.to_string())?.len();
    let log = settings.directory.join(format!("{FILE}-wal"));
    if std::fs::metadata(log).is_ok_and(|found| found.len() > 0) {
        return Err(
            "a daemon has it open, or was killed; `wattspan doctor` tells the rate of a running one".into()
        );
    }
    let rows = rows(&file).map_err(|cause| cause.to_string())?;
    let Some((accounts, recent, length_s)) = rows else { return Ok(None) };
    Ok(Outlook::of(settings, length, accounts, recent, length_s))
}

/// How many accounts there are, how many of them came last, and within how long.
fn rows(file: &Path) -> rusqlite::Result<Option<(i64, i64, i64)>> {
    // Nothing is locked or made beside it: without a log nothing changes it.
    let escaped = file.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
    let edges = "SELECT min(id), max(id) FROM account";
    let edges = connection.query_row(edges, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last)): (Option<i64>, Option<i64>) = edges else { return Ok(None) };
    let mut at = connection.prepare("SELECT running_s FROM account WHERE id >= ?1 ORDER BY id LIMIT 1")?;
    let mut running_s = |id: i64| at.query_row([id], |row| row.get::<_, i64>(0));
    let end_s = running_s(last)?;
    let (mut low, mut high) = (first, last);
    while low < high {
        let middle = low + (high - low) / 2;
        if running_s(middle)? < end_s - RATE_S { low = middle + 1 } else { high = middle }
    }
    let length_s = if low > first { RATE_S } else { (end_s - running_s(first)?).max(1) };
    Ok(Some((last + 1 - first, last + 1 - low, length_s)))
}
