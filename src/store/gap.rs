//! Numbers whose accounts may be lost, and damage that a look-up met.
//!
//! Owns how a loss is described. A gap is noted when a store opens and finds fewer accounts than it had committed, and goes
//! when accounts of its age are deleted.

/// Numbers whose accounts may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub first: i64,
    pub last: i64,
    /// Wall time of the account before it; 0 where there is none.
    pub since_s: i64,
    /// Wall time by which its last account was kept.
    pub until_s: i64,
    /// Running time of the store by then.
    pub running_s: i64,
}

/// What a look-up met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Accounts that may be lost.
    Lost(Gap),
    /// Accounts or index blocks that are unsound: of these numbers.
    Corrupt { first: i64, last: i64 },
}

impl Damage {
    /// The lowest number concerned: a list goes on before it.
    pub fn first(&self) -> i64 {
        match self {
            Damage::Lost(gap) => gap.first,
            Damage::Corrupt { first, .. } => *first,
        }
    }

    /// The highest number concerned.
    pub fn last(&self) -> i64 {
        match self {
            Damage::Lost(gap) => gap.last,
            Damage::Corrupt { last, .. } => *last,
        }
    }

    /// For a client, without numbers: they count other users' accounts.
    pub fn reason(&self) -> String {
        match self {
            Damage::Lost(Gap { since_s: 0, until_s, .. }) => {
                format!("accounts kept before {} may be lost", format_utc(*until_s))
            }
            Damage::Lost(Gap { since_s, until_s, .. }) => {
                format!(
                    "accounts kept between {} and {} may be lost",
                    format_utc(*since_s),
                    format_utc(*until_s)
                )
            }
            Damage::Corrupt { .. } => {
                "the store on disk is damaged: a checksum is wrong or a record is missing".into()
            }
        }
    }
}

impl Gap {
    /// For the administrator.
    pub fn describe(&self) -> String {
        let Gap { first, last, since_s, until_s, .. } = self;
        let since = if *since_s == 0 { "the beginning".into() } else { format_utc(*since_s) };
        format!("accounts {first} to {last} may be lost since {since} (until {})", format_utc(*until_s))
    }
}

/// Seconds since 1970 as date and time (Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
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
