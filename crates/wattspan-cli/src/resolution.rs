//! Finds the domains whose counters are too coarse for a span.
//!
//! A span is too short for a counter if it is shorter than the update interval, or if the guaranteed error is as large as
//! the share.

use serde::Serialize;
use wattspan_client::account::Account;
use wattspan_client::domain::Grade;
use wattspan_client::protocol::DomainStatus;

use super::quantity::{format_duration, is_within_error};

/// A domain whose counter is too coarse for a span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TooShortDomain {
    pub domain: String,
    pub reason: TooShortReason,
    pub duration_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_interval_ns: Option<u64>,
}

/// Why a span is too short for a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TooShortReason {
    /// The counter may not have moved during the span.
    ShorterThanUpdateInterval,
    /// The guaranteed error is as large as the share.
    ErrorNotBelowShare,
}

/// The domains of an account for which its span was too short; `all` has their update intervals. Estimated domains are
/// excluded, since a model's error does not shrink with time.
pub fn too_short_domains(account: &Account, all: &[DomainStatus]) -> Vec<TooShortDomain> {
    let Some(closed_ns) = account.closed_ns else { return Vec::new() };
    let duration_ns = closed_ns.saturating_sub(account.opened_ns);
    let classify = |share: &wattspan_client::account::Share| {
        let share_uj = share.share_uj.filter(|_| share.grade != Grade::Estimated)?;
        let status = all.iter().find(|domain| domain.name == share.domain);
        let update_interval_ns = status.and_then(|domain| domain.update_interval_ns);
        let reason = if update_interval_ns.is_some_and(|interval_ns| duration_ns < interval_ns) {
            TooShortReason::ShorterThanUpdateInterval
        } else if share.error_uj.is_some_and(|error_uj| is_within_error(share_uj, error_uj)) {
            TooShortReason::ErrorNotBelowShare
        } else {
            return None;
        };
        Some(TooShortDomain { domain: share.domain.to_string(), reason, duration_ns, update_interval_ns })
    };
    account.domains.iter().filter_map(classify).collect()
}

/// `for psys (updates every 1.000 s), gpu-0 (updates every 100.0 ms)`; a domain is named once.
pub fn format_too_short(all: &[TooShortDomain]) -> String {
    let mut descriptions: Vec<String> = Vec::new();
    for counter in all {
        let interval = counter.update_interval_ns.map(|ns| format!("updates every {}", format_duration(ns)));
        let interval = interval.unwrap_or_else(|| "its update interval is not known yet".into());
        let description = format!("{} ({interval})", counter.domain);
        if !descriptions.contains(&description) {
            descriptions.push(description);
        }
    }
    format!("for {}", descriptions.join(", "))
}
