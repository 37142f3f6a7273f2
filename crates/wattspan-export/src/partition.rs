//! The partition of an account: the UTC date of its closing, and the host.

use std::path::{Path, PathBuf};

use wattspan_client::account::Account;

use super::columns::closed_unix_ns;

const DAY_NS: u64 = 86_400_000_000_000;

/// The UTC day of the closing, counted from 1970.
pub fn closing_day(account: &Account) -> u64 {
    day(closed_unix_ns(account))
}

/// The UTC day of a wall time, counted from 1970.
pub fn day(unix_ns: u64) -> u64 {
    unix_ns / DAY_NS
}

/// The date of a day, as year, month and day (Howard Hinnant, "chrono-compatible low-level date algorithms",
/// civil_from_days).
pub fn date(day: u64) -> String {
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A text as a part of a path: other characters than letters, digits, `.`, `_` and `-` become `_`.
pub fn path_word(text: &str) -> String {
    let word: String = text
        .chars()
        .map(
            |character| {
                if character.is_ascii_alphanumeric() || "._-".contains(character) { character } else { '_' }
            },
        )
        .collect();
    if word.is_empty() { "unknown".into() } else { word }
}

/// The directory of a partition.
pub fn directory(root: &Path, date: &str, host: &str) -> PathBuf {
    root.join(format!("date={date}")).join(format!("host={}", path_word(host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(opened_unix_ns: u64, duration_ns: u64) -> Account {
        let account: Account = serde_json::from_str(include_str!("test_account.json")).unwrap();
        Account { opened_unix_ns, closed_ns: Some(account.opened_ns + duration_ns), ..account }
    }

    fn closing_date(account: &Account) -> String {
        date(closing_day(account))
    }

    #[test]
    fn the_date_is_that_of_the_closing_in_utc() {
        let midnight = 1_763_000_000 / 86_400 * DAY_NS + DAY_NS;
        assert_eq!(closing_date(&account(midnight - 2, 1)), "2025-11-13");
        assert_eq!(closing_date(&account(midnight - 2, 2)), "2025-11-14");
        assert_eq!(closing_date(&account(951_782_400_000_000_000, 0)), "2000-02-29");
        assert_eq!(closing_date(&account(0, 0)), "1970-01-01");
    }

    #[test]
    fn a_host_cannot_leave_its_directory() {
        let path = directory(Path::new("/x"), "2025-11-13", "../a/b");
        assert_eq!(path, Path::new("/x/date=2025-11-13/host=.._a_b"));
        assert_eq!((path_word(""), path_word("node-7.example")), ("unknown".into(), "node-7.example".into()));
    }
}
