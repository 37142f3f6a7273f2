//! What one frame of `wattspan top` shows, as values: drawing and `--json` have the same figures.

use serde::Serialize;
use wattspan_client::account::Account;
use wattspan_client::domain::{Grade, Liveness};
use wattspan_client::protocol::DomainStatus;

use super::account_totals::{AccountTotals, counted_share};
use super::group_table::{EnergyTable, GroupSelection};
use super::grouping::Grouping;
use super::meter_feed::MeterSnapshot;
use super::power_history::PowerHistory;
use crate::domain_tree;

/// The name of the machine in the history. No domain has a name in parentheses.
pub const MACHINE: &str = "(machine)";

/// Dots of the longest history that a frame shows: two for each of 300 columns.
const MAX_DOTS: usize = 600;

/// A domain as the frame shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DomainRow {
    pub name: String,
    /// The number of shown domains that contain it.
    pub depth: usize,
    pub counted: bool,
    pub grade: Grade,
    pub simulated: bool,
    pub liveness: Liveness,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u64>,
    /// Settled energy since the daemon started, as in the balance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_uj: Option<u64>,
    /// The idle part of the listed and open spans' shares.
    pub idle_uj: u64,
    #[serde(skip)]
    pub history_mw: Vec<Option<u64>>,
}

/// An open span as the frame shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenSpanRow {
    pub span: String,
    pub name: String,
    pub group: String,
    pub age_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_uj: Option<u64>,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopView {
    pub version: String,
    pub now_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_ns: Option<u64>,
    /// The sum over the counted domains; absent if one is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u64>,
    /// A domain may be missing from the sums.
    pub at_least: bool,
    pub simulated: bool,
    pub domains: Vec<DomainRow>,
    pub energy: EnergyTable,
    /// The oldest first.
    pub open: Vec<OpenSpanRow>,
    #[serde(skip)]
    pub history_mw: Vec<Option<u64>>,
}

/// The sum of the counted domains' power; `None` if one of them is unknown.
pub fn machine_power_mw(domains: &[DomainStatus]) -> Option<u64> {
    let counted: Vec<&DomainStatus> = domains.iter().filter(|domain| domain.counted).collect();
    if counted.is_empty() {
        return None;
    }
    counted.into_iter().map(live_power_mw).sum()
}

/// The power of a domain, if it is live.
pub fn live_power_mw(domain: &DomainStatus) -> Option<u64> {
    domain.power_mw.filter(|_| domain.liveness == Liveness::Live)
}

impl TopView {
    pub fn build(
        snapshot: &MeterSnapshot,
        totals: &AccountTotals,
        history: &PowerHistory,
        selection: &GroupSelection,
        samples_per_dot: usize,
    ) -> Self {
        let dots = |name: &str| history.dots(name, samples_per_dot, MAX_DOTS);
        let rows = domain_tree::order_rows(&snapshot.domains, |domain| &domain.name, &snapshot.domains);
        let domain_row = |(depth, domain): (usize, &DomainStatus)| {
            let balance = snapshot.balance.iter().find(|balance| balance.domain == domain.name);
            let shares = snapshot.open.iter().flat_map(|account| &account.domains);
            let open_idle_uj: u64 =
                shares.filter(|share| share.domain == domain.name).filter_map(|share| share.idle_uj).sum();
            DomainRow {
                name: domain.name.clone(),
                depth,
                counted: domain.counted,
                grade: domain.grade,
                simulated: domain.is_simulated(),
                liveness: domain.liveness,
                reason: domain.reason.clone(),
                power_mw: live_power_mw(domain),
                measured_uj: balance.map(|balance| balance.measured_uj),
                idle_uj: totals.domain_idle_uj(&domain.name) + open_idle_uj,
                history_mw: dots(&domain.name),
            }
        };
        TopView {
            version: snapshot.version.clone(),
            now_ns: snapshot.now_ns,
            uptime_ns: snapshot.uptime_ns(),
            power_mw: machine_power_mw(&snapshot.domains),
            at_least: snapshot.at_least == Some(true),
            simulated: snapshot.domains.iter().any(DomainStatus::is_simulated),
            domains: rows.into_iter().map(domain_row).collect(),
            energy: EnergyTable::build(snapshot, totals, selection),
            open: open_rows(snapshot, selection),
            history_mw: dots(MACHINE),
        }
    }
}

/// The open spans that the filter passes by name or group, the oldest first.
fn open_rows(snapshot: &MeterSnapshot, selection: &GroupSelection) -> Vec<OpenSpanRow> {
    // Of a span without a model so far, the name says more.
    let group_of = |account: &Account| match selection.grouping {
        Grouping::Name => Grouping::Model.key_of(account),
        grouping => grouping.key_of(account),
    };
    let counted = snapshot.counted_domains();
    let row = |account: &Account| OpenSpanRow {
        span: account.span.clone(),
        name: account.name.clone(),
        group: group_of(account),
        age_ns: snapshot.now_ns.saturating_sub(account.opened_ns),
        share_uj: account.share_uj.or_else(|| Some(counted_share(account, &counted).0).filter(|&uj| uj > 0)),
        error_uj: account.error_uj,
    };
    let mut rows: Vec<OpenSpanRow> = snapshot.open.iter().map(row).collect();
    rows.retain(|row| selection.contains(&row.name) || selection.contains(&row.group));
    rows.sort_by_key(|row| std::cmp::Reverse(row.age_ns));
    rows
}
