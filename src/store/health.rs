//! How the store is, for the administrator.
//!
//! Owns the words and the estimate of how long accounts will be kept.

use super::retention::format_duration;
use super::settings::StoreSettings;

/// How the store is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Accounts are on disk before they are answered.
    pub durable: bool,
    /// Why not, and what would help; or, where `durable`, what may be lost.
    pub reason: Option<String>,
    /// What it takes on disk, as of a while ago.
    pub bytes: u64,
    /// Accounts taken and not yet on disk.
    pub waiting: u64,
    /// Accounts that found no room, since the start.
    pub not_kept: u64,
    /// How long accounts will be kept; absent while there are too few to say.
    pub forecast: Option<RetentionForecast>,
}

/// How long accounts will be kept at the rate of the last hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionForecast {
    /// So long, in seconds.
    pub retention_s: u64,
    /// Their size limits that, not their age.
    pub limited_by_size: bool,
    /// Accounts an hour.
    pub accounts_per_h: u64,
    /// What one takes on disk, in bytes.
    pub bytes_per_account: u64,
}

impl RetentionForecast {
    /// In words.
    pub(super) fn describe(&self) -> String {
        let Self { retention_s, limited_by_size, accounts_per_h, bytes_per_account } = self;
        let key = if *limited_by_size { "ledger.megabytes" } else { "ledger.days" };
        format!(
            "At the rate of the last hours ({accounts_per_h} an hour, {bytes_per_account} bytes each) accounts are kept for \
             {}; {key} limits that.",
            format_duration(*retention_s)
        )
    }

    /// Of a store of `bytes` and `accounts`, of which the latest `recent_accounts` came within `window_s`.
    pub(super) fn from_counts(
        settings: &StoreSettings,
        bytes: u64,
        accounts: i64,
        recent_accounts: i64,
        window_s: i64,
    ) -> Option<Self> {
        /// Fewer say nothing: the pages of an empty database would count as theirs.
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
