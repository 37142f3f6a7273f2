//! Parses and formats points in time: "90s", "15m", "2h", "7d" ago, a date, or an instant in UTC.
//!
//! Only UTC is supported, so that results do not depend on the user's time zone.

use wattspan_client::clock;

/// Parses an instant or an age relative to `now_ns`; both are nanoseconds since 1970.
///
/// # Errors
/// Lists the accepted formats.
pub fn parse_instant(text: &str, now_ns: u64) -> Result<u64, String> {
    parse_age(text).map(|ago_ns| now_ns.saturating_sub(ago_ns)).or_else(|| parse_date_time(text)).ok_or_else(|| {
        "expected an age (90s, 15m, 2h, 7d), or a date or an instant in UTC (2026-11-22, 2026-11-22T10:30:00Z)"
            .to_owned()
    })
}

/// Value parser of `--since`.
pub fn parse_since(text: &str) -> Result<u64, String> {
    parse_instant(text, clock::unix_ns())
}

fn parse_age(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(seconds)?.checked_mul(1_000_000_000)
}

fn parse_date_time(text: &str) -> Option<u64> {
    let word = text.strip_suffix('Z').unwrap_or(text);
    let (day, time) = word.split_once(['T', ' ']).unwrap_or((word, "00:00:00"));
    let mut day = day.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day_of_month) = (day.next()??, day.next()??, day.next()??);
    let mut time = time.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next().unwrap_or(Some(0))?);
    let is_valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day_of_month)
        && hour < 24
        && minute < 60
        && second < 60;
    let days = days_since_epoch(year, month) + day_of_month.checked_sub(1)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    if is_valid { seconds.checked_mul(1_000_000_000) } else { None }
}

/// Days from 1970 to the first of a month of the Gregorian calendar.
fn days_since_epoch(year: u64, month: u64) -> u64 {
    const DAYS_BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leaps = |years: u64| years / 4 - years / 100 + years / 400;
    let year = year.clamp(1970, 9999);
    let is_leap = leaps(year) > leaps(year - 1);
    let leap_day = u64::from(is_leap && month > 2);
    let month = usize::try_from(month.clamp(1, 12)).unwrap_or(1);
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969) + DAYS_BEFORE_MONTH[month - 1] + leap_day
}

/// Formats the date of an instant as `2026-11-22`, in UTC.
pub fn format_date(unix_ns: u64) -> String {
    let days = unix_ns / 86_400_000_000_000;
    let mut year = 1970 + days / 366;
    while days_since_epoch(year + 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12).rev().find(|month| days_since_epoch(year, *month) <= days).unwrap_or(1);
    format!("{year:04}-{month:02}-{:02}", days - days_since_epoch(year, month) + 1)
}

/// Formats an instant as `2026-11-22T10:30:00.123Z` (RFC 3339, UTC).
pub fn format_rfc3339(unix_ns: u64) -> String {
    let (seconds, milliseconds) = (unix_ns / 1_000_000_000 % 86_400, unix_ns / 1_000_000 % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z", format_date(unix_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: u64 = 1_763_000_000_000_000_000;

    #[test]
    fn ages_dates_and_instants_are_parsed_and_nothing_else() {
        let seconds = |word: &str| parse_instant(word, NOW_NS).map(|ns| ns / 1_000_000_000);
        assert_eq!(seconds("90s"), Ok(1_763_000_000 - 90));
        assert_eq!(seconds("2h"), Ok(1_763_000_000 - 7200));
        assert_eq!(seconds("7d"), Ok(1_763_000_000 - 7 * 86_400));
        assert_eq!(seconds("2025-11-13T02:13:20Z"), Ok(1_763_000_000));
        assert_eq!(seconds("2024-03-01"), Ok(1_709_251_200));
        assert_eq!(seconds("1970-01-01"), Ok(0));
        for word in
            ["", "h", "2x", "yesterday", "2025-13-01", "2025-00-01", "2025-01-00", "2025-01", "-1h", "\u{fc}"]
        {
            assert!(seconds(word).is_err(), "{word}");
        }
    }

    #[test]
    fn a_formatted_date_parses_back_to_the_start_of_the_day() {
        for days in (0..40_000).step_by(7) {
            let ns = days * 86_400_000_000_000;
            assert_eq!(parse_instant(&format_date(ns + 5), NOW_NS), Ok(ns), "{}", format_date(ns));
        }
        assert_eq!(format_date(NOW_NS), "2025-11-13");
        assert_eq!(format_rfc3339(NOW_NS + 45_678_999), "2025-11-13T02:13:20.045Z");
    }
}
