//! Instants of the store, and their text forms.
//!
//! The store's *running time* counts boot time while a store is open, and continues from where the last process left
//! it. It never decreases and never jumps, so it orders and ages accounts independently of changes to the wall clock.

use crate::clock::Clock;

/// The wall and boot time of one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClockReading {
    /// Wall time, in seconds since 1970.
    pub unix_s: i64,
    /// Boot time, in seconds; suspend counts.
    pub boot_s: i64,
}

impl ClockReading {
    pub fn of(clock: &Clock) -> Self {
        let seconds = |ns: u64| (ns / 1_000_000_000) as i64;
        Self { unix_s: seconds(clock.unix_ns()), boot_s: seconds(clock.boottime_ns()) }
    }
}

/// The time of a commit, stored in each of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitTime {
    pub kept_s: i64,
    pub running_s: i64,
}

/// Formats seconds since 1970 as date and time (Howard Hinnant, "chrono-compatible low-level date algorithms",
/// civil_from_days).
pub(super) fn format_utc(unix_s: i64) -> String {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Formats a duration in its leading unit.
pub(super) fn format_duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..259_200 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_utc() {
        assert_eq!(format_utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(format_utc(1_763_000_000), "2025-11-13T02:13:20Z");
    }
}
