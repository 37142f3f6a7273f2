//! The spans of coarse access, from opening to the release of their accounts.
//!
//! Owns the instant and the displacement of each edge, and the settled accounts that wait for the grid: the time at which a span
//! settles reveals when a counter moved, and so how much energy was used. Independent of the attributor. Invariant: an
//! account is released at instants of the grid only, rounded.

use std::collections::{BTreeMap, HashMap};

use wattspan_client::account::Account;

use super::coarse_grid::{self, GRID_NS};
use super::domain_energy::DomainEnergy;
use crate::attribution::SpanKey;

#[derive(Debug)]
struct CoarseSpan {
    /// The opening that the client requested.
    requested_ns: u64,
    opened_ns: u64,
    moved_ns: u64,
    /// The account, settled and not released.
    account: Option<Account>,
}

/// The spans of all coarse callers.
#[derive(Debug)]
pub struct CoarseSpans {
    spans: HashMap<SpanKey, CoarseSpan>,
    /// The settled spans by time of release.
    releases: BTreeMap<u64, Vec<SpanKey>>,
    horizon_ns: u64,
    /// What rounding has added to the shares of settled accounts.
    rounding: DomainEnergy,
}

impl CoarseSpans {
    /// `horizon_ns`: the attributor accepts edges up to this age.
    pub fn new(horizon_ns: u64) -> Self {
        Self {
            spans: HashMap::new(),
            releases: BTreeMap::new(),
            horizon_ns,
            rounding: DomainEnergy::default(),
        }
    }

    /// The opening of a span that is requested for `at_ns`.
    pub fn opening_ns(&self, at_ns: u64, now_ns: u64) -> u64 {
        coarse_grid::grid_edge_ns(at_ns, now_ns, self.horizon_ns)
    }

    /// Adds a span that the attributor has opened.
    pub fn insert(&mut self, key: SpanKey, requested_ns: u64, opened_ns: u64) {
        let moved_ns = opened_ns.saturating_sub(requested_ns);
        self.spans.insert(key, CoarseSpan { requested_ns, opened_ns, moved_ns, account: None });
    }

    /// Whether a span is coarse.
    pub fn contains(&self, key: SpanKey) -> bool {
        self.spans.contains_key(&key)
    }

    /// The opening that the client requested, if the span is coarse.
    pub fn requested_ns(&self, key: SpanKey) -> Option<u64> {
        self.spans.get(&key).map(|span| span.requested_ns)
    }

    /// The instant of an edge that is requested for `at_ns`, not before the requested opening.
    pub fn edge_ns(&self, key: SpanKey, at_ns: u64, now_ns: u64) -> u64 {
        let edge_ns = coarse_grid::grid_edge_ns(at_ns, now_ns, self.horizon_ns);
        self.spans.get(&key).map_or(edge_ns, |span| edge_ns.max(span.opened_ns))
    }

    /// The instant of a close whose edge lies at `edge_ns`: at least one step of the grid after the opening.
    pub fn close_ns(&self, key: SpanKey, edge_ns: u64) -> u64 {
        self.spans.get(&key).map_or(edge_ns, |span| edge_ns.max(span.opened_ns + GRID_NS))
    }

    /// Adds the displacement of an edge from `requested_ns` to `at_ns`.
    pub fn add_moved_ns(&mut self, key: SpanKey, requested_ns: u64, at_ns: u64) {
        if let Some(span) = self.spans.get_mut(&key) {
            span.moved_ns += at_ns.abs_diff(requested_ns);
        }
    }

    /// Shrinks the table to twice its content.
    pub fn shrink(&mut self) {
        self.spans.shrink_to(2 * self.spans.len());
    }

    /// Removes a cancelled span.
    pub fn remove(&mut self, key: SpanKey) {
        self.spans.remove(&key);
    }

    /// Withholds the account of a coarse span that has settled at `now_ns`; returns any other account.
    pub fn withhold(&mut self, key: SpanKey, mut account: Account, now_ns: u64) -> Option<Account> {
        let Some(span) = self.spans.get_mut(&key) else { return Some(account) };
        account.moved_ns += span.moved_ns;
        self.rounding.subtract(&account);
        coarse_grid::round_account(&mut account);
        self.rounding.add(&account);
        let end_ns = account.closed_ns.unwrap_or(now_ns);
        span.account = Some(account);
        self.releases
            .entry(coarse_grid::round_up_to_grid(now_ns).max(end_ns + GRID_NS))
            .or_default()
            .push(key);
        None
    }

    /// What the rounding of accounts has added to their shares of a domain, µJ.
    pub fn rounding_uj(&self, domain: &str) -> i64 {
        self.rounding.of(domain)
    }

    /// The time of the next release.
    pub fn next_release_ns(&self) -> Option<u64> {
        self.releases.keys().next().copied()
    }

    /// Removes and returns the accounts whose time of release has come, with the keys of their spans.
    pub fn release(&mut self, now_ns: u64) -> Vec<(SpanKey, Account)> {
        let mut released = Vec::new();
        while let Some(entry) = self.releases.first_entry().filter(|entry| *entry.key() <= now_ns) {
            let keys = entry.remove();
            let settled = |key| Some((key, self.spans.remove(&key)?.account?));
            let mut accounts: Vec<(SpanKey, Account)> = keys.into_iter().filter_map(settled).collect();
            // The order of settling must not be visible.
            accounts.sort_by(|(_, one), (_, other)| (one.uid, &one.span).cmp(&(other.uid, &other.span)));
            released.append(&mut accounts);
        }
        released
    }

    /// The account of a span that is not final: without figures if the span is coarse. `current_account` returns the
    /// attributor's account, which does not exist for a withheld one.
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
