//! A query for sums of accounts, and what it needs of a group of accounts whose sums are stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wattspan_client::account::Account;

use super::account_read::Filter;
use super::account_sums::{SumField, day_of};
use super::segment_sums::SumGroup;

/// A query for sums of accounts.
#[derive(Debug, Clone, Default)]
pub struct SumQuery {
    /// The user ID; `None` for all users.
    pub uid: Option<u32>,
    /// All of its conditions hold for an account of the sums.
    pub filter: Filter,
    /// Opened before this wall time, in nanoseconds since 1970.
    pub until_unix_ns: Option<u64>,
    /// With this requested model.
    pub model: Option<String>,
    /// Which accounts the caller may see; `None`: all.
    pub is_visible: Option<fn(&Account) -> bool>,
    /// The fields of the groups.
    pub by: Vec<SumField>,
    /// The time zone of the days, in seconds east of UTC.
    pub utc_offset_s: i64,
    /// Set by the owner to end the query.
    pub is_cancelled: Arc<AtomicBool>,
    /// Changes while the query progresses.
    pub progress: Arc<AtomicU64>,
}

/// A query with the number that its result will carry.
pub(super) type NumberedSumQuery = (u64, SumQuery);

/// Whether the accounts of a group belong to the sums of a query, in one of its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupMatch {
    /// None of them.
    No,
    /// All of them.
    Yes,
    /// It depends on their names, which differ.
    ByName,
    /// It depends on each account.
    ByAccount,
}

impl SumQuery {
    /// Whether the owner has ended the query.
    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Notes that a part was read: there is one thread that does.
    pub(super) fn note_progress(&self) {
        self.progress.store(self.progress.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Whether the accounts of a group belong to the sums.
    pub(super) fn matches_group(&self, group: &SumGroup<'_>) -> GroupMatch {
        let (first_ns, last_ns) = group.opened_unix_ns;
        let (since_ns, until_ns) = (self.filter.since_unix_ns, self.until_unix_ns);
        let is_excluded = self.uid.is_some_and(|uid| uid != group.uid)
            || self.filter.state.is_some_and(|state| state != group.state)
            || self.model.as_deref().is_some_and(|model| group.model != Some(model))
            || since_ns.is_some_and(|since_ns| last_ns < since_ns)
            || until_ns.is_some_and(|until_ns| first_ns >= until_ns)
            || self.filter.name.as_deref().is_some_and(|name| group.name.is_some_and(|own| own != name));
        if is_excluded {
            return GroupMatch::No;
        }
        let (first_closed_ns, last_closed_ns) = group.sum.closed_range();
        let day = |unix_ns| day_of(unix_ns, self.utc_offset_s);
        let is_divided = since_ns.is_some_and(|since_ns| first_ns < since_ns)
            || until_ns.is_some_and(|until_ns| last_ns >= until_ns)
            || self.by.contains(&SumField::Day) && day(first_closed_ns) != day(last_closed_ns)
            || self.is_visible.is_some()
            || !self.filter.attributes.is_empty();
        let needs_name = self.filter.name.is_some() || self.by.contains(&SumField::Name);
        match group.name {
            _ if is_divided => GroupMatch::ByAccount,
            None if needs_name => GroupMatch::ByName,
            _ => GroupMatch::Yes,
        }
    }
}
