//! The spans of coarse callers, from their opening until their accounts may be told.
//!
//! Owns where each of their edges lies, how far it was moved, and the settled accounts that wait for the grid: when the
//! counter moved for the last time is a matter of milliseconds and says how much was used, so nobody is told at that
//! moment. Knows no attributor. Invariant: an account leaves at the grid's instants only, rounded.

use std::collections::{BTreeMap, HashMap};

use super::coarse_grid::{self, GRID_NS};
use crate::attribution::SpanKey;
use crate::attribution::account::Account;
use crate::protocol::MethodError;

#[derive(Debug)]
struct CoarseSpan {
    /// When the client says that it began.
    requested_ns: u64,
    opened_ns: u64,
    moved_ns: u64,
    /// Settled, and not told yet.
    account: Option<Account>,
}

/// All of them.
#[derive(Debug)]
pub struct CoarseSpans {
    spans: HashMap<SpanKey, CoarseSpan>,
    /// When the settled ones may be told.
    releases: BTreeMap<u64, Vec<SpanKey>>,
    horizon_ns: u64,
}

impl CoarseSpans {
    /// None yet; the attributor takes edges as far back as this horizon.
    pub fn new(horizon_ns: u64) -> Self {
        Self { spans: HashMap::new(), releases: BTreeMap::new(), horizon_ns }
    }

    /// Where the opening lies of a span that is to begin at `at_ns`.
    pub fn opening_ns(&self, at_ns: u64, now_ns: u64) -> u64 {
        coarse_grid::grid_edge_ns(at_ns, now_ns, self.horizon_ns)
    }

    /// The attributor has opened it.
    pub fn insert(&mut self, key: SpanKey, requested_ns: u64, opened_ns: u64) {
        let moved_ns = opened_ns.saturating_sub(requested_ns);
        self.spans.insert(key, CoarseSpan { requested_ns, opened_ns, moved_ns, account: None });
    }

    /// Whether it is one of them.
    pub fn contains(&self, key: SpanKey) -> bool {
        self.spans.contains_key(&key)
    }

    /// When the client says that it began, if it is one of them.
    pub fn requested_ns(&self, key: SpanKey) -> Option<u64> {
        self.spans.get(&key).map(|span| span.requested_ns)
    }

    /// Where an edge lies that is asked for at `at_ns`: as asked for a span that is not coarse.
    ///
    /// # Errors
    /// `InvalidTime` before the opening.
    pub fn edge_ns(&self, key: SpanKey, at_ns: u64, now_ns: u64) -> Result<u64, MethodError> {
        let Some(span) = self.spans.get(&key) else { return Ok(at_ns) };
        if at_ns < span.requested_ns {
            let requested = at_ns.try_into().unwrap_or(i64::MAX);
            return Err(MethodError::InvalidTime {
                at_ns: requested,
                earliest_ns: span.requested_ns,
                latest_ns: now_ns,
            });
        }
        Ok(coarse_grid::grid_edge_ns(at_ns, now_ns, self.horizon_ns).max(span.opened_ns))
    }

    /// Where the close lies: the same, and a whole step of the grid behind the opening.
    ///
    /// # Errors
    /// As for [`CoarseSpans::edge_ns`].
    pub fn close_ns(&self, key: SpanKey, at_ns: u64, now_ns: u64) -> Result<u64, MethodError> {
        let edge_ns = self.edge_ns(key, at_ns, now_ns)?;
        let span = self.spans.get(&key);
        Ok(span.map_or(edge_ns, |span| edge_ns.max(span.opened_ns + GRID_NS)))
    }

    /// The attributor has put an edge of it at `at_ns`, which was asked for at `requested_ns`.
    pub fn add_moved_ns(&mut self, key: SpanKey, requested_ns: u64, at_ns: u64) {
        if let Some(span) = self.spans.get_mut(&key) {
            span.moved_ns += at_ns.abs_diff(requested_ns);
        }
    }

    /// Gives memory back that many spans took.
    pub fn shrink(&mut self) {
        self.spans.shrink_to(2 * self.spans.len());
    }

    /// It is cancelled.
    pub fn remove(&mut self, key: SpanKey) {
        self.spans.remove(&key);
    }

    /// The attributor has settled a span at `now_ns`. Keeps the account back where it is a coarse one, else gives it again.
    pub fn withhold(&mut self, key: SpanKey, mut account: Account, now_ns: u64) -> Option<Account> {
        let Some(span) = self.spans.get_mut(&key) else { return Some(account) };
        account.moved_ns += span.moved_ns;
        coarse_grid::round_account(&mut account);
        let end_ns = account.closed_ns.unwrap_or(now_ns);
        span.account = Some(account);
        self.releases
            .entry(coarse_grid::round_up_to_grid(now_ns).max(end_ns + GRID_NS))
            .or_default()
            .push(key);
        None
    }

    /// When the next accounts may be told.
    pub fn next_release_ns(&self) -> Option<u64> {
        self.releases.keys().next().copied()
    }

    /// The accounts that may be told now, each with its span's key.
    pub fn release(&mut self, now_ns: u64) -> Vec<(SpanKey, Account)> {
        let mut released = Vec::new();
        while let Some(entry) = self.releases.first_entry().filter(|entry| *entry.key() <= now_ns) {
            let keys = entry.remove();
            let settled = |key| Some((key, self.spans.remove(&key)?.account?));
            let mut accounts: Vec<(SpanKey, Account)> = keys.into_iter().filter_map(settled).collect();
            // Which settled first is a matter of milliseconds too.
            accounts.sort_by(|(_, one), (_, other)| (one.uid, &one.span).cmp(&(other.uid, &other.span)));
            released.append(&mut accounts);
        }
        released
    }

    /// What may be told of a span that is not final: nothing of it is; `current_account` is what the attributor says, which knows
    /// nothing any more of one that waits for the grid.
    pub fn provisional_account(
        &self,
        key: SpanKey,
        current_account: impl FnOnce() -> Option<Account>,
    ) -> Option<Account> {
        let Some(span) = self.spans.get(&key) else { return current_account() };
        let mut account = match &span.account {
            Some(account) => account.clone(),
            None => {
                let account = current_account()?;
                Account { moved_ns: account.moved_ns + span.moved_ns, ..account }
            }
        };
        coarse_grid::hide_figures(&mut account);
        Some(account)
    }
}
