//! Splits the machine's energy since the daemon started into rows that add up to it.
//!
//! Invariant: in both columns, the rows add up to the machine to the microjoule. The balance gives measured = attributed +
//! unattributed; the part of the attributed energy that belongs to no listed account is a row of its own.

use std::cmp::Reverse;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::account_totals::{AccountTotals, GroupTotals, counted_share};
use super::grouping::Grouping;
use super::meter_feed::MeterSnapshot;
use crate::quantity::mean_mw;

/// The order of the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SortKey {
    /// Energy, largest first
    #[default]
    Energy,
    /// Requests per second, most first
    Requests,
    /// Energy per request, largest first
    PerRequest,
    /// Name
    Name,
}

impl SortKey {
    pub fn label(self) -> &'static str {
        match self {
            SortKey::Energy => "energy",
            SortKey::Requests => "requests",
            SortKey::PerRequest => "J/request",
            SortKey::Name => "name",
        }
    }
}

/// What a row of the table stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnergyRowKind {
    /// Settled spans of one group.
    Group,
    /// Groups that the filter hides.
    Filtered,
    /// Spans that are open now, so far.
    Open,
    /// Spans that are settling, that settled before the list began, or that this user may not see.
    Other,
    /// The idle part of the rows above.
    Idle,
    /// No span was open.
    Unattributed,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnergyRow {
    pub kind: EnergyRowKind,
    pub name: String,
    /// The energy as in the accounts, idle part included; 0 in the idle row, whose energy the other rows contain.
    pub share_uj: u64,
    /// The same without the idle part, which is in the idle row.
    pub above_idle_uj: u64,
    /// Settled spans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Requests in the last minute, per 1000 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_ks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_error_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_error_uj: Option<u64>,
    /// The mean power of the requests that ended in the last minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u64>,
    /// The median time to the first token in the last minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_ns: Option<u64>,
}

impl EnergyRow {
    /// A row that states only energies.
    pub fn of_energy(kind: EnergyRowKind, name: &str, share_uj: u64, above_idle_uj: u64) -> Self {
        EnergyRow {
            kind,
            name: name.to_owned(),
            share_uj,
            above_idle_uj,
            requests: None,
            requests_per_ks: None,
            request_uj: None,
            request_error_uj: None,
            token_uj: None,
            token_error_uj: None,
            power_mw: None,
            first_token_ns: None,
        }
    }
}

/// The rows, and the machine's energy to which both columns add up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnergyTable {
    pub grouping: Grouping,
    pub machine_uj: u64,
    pub rows: Vec<EnergyRow>,
}

/// How the groups are chosen and ordered.
#[derive(Debug, Clone, Default)]
pub struct GroupSelection {
    pub grouping: Grouping,
    pub sort: SortKey,
    pub reversed: bool,
    /// Only groups whose name contains this, whatever the case.
    pub filter: String,
}

impl GroupSelection {
    pub fn contains(&self, name: &str) -> bool {
        name.to_lowercase().contains(&self.filter.to_lowercase())
    }
}

impl EnergyTable {
    /// The table at the time of `snapshot`.
    pub fn build(snapshot: &MeterSnapshot, totals: &AccountTotals, selection: &GroupSelection) -> Self {
        let counted = snapshot.counted_domains();
        let balance = || snapshot.balance.iter().filter(|balance| counted.contains(&balance.domain));
        let attributed_uj: u64 = balance().map(|balance| balance.attributed_uj).sum();
        let unattributed_uj: u64 = balance().map(|balance| balance.unattributed_uj).sum();
        let (mut rows, hidden) = group_rows(snapshot, totals, selection);
        let settled_uj: u64 = totals.groups(selection.grouping).values().map(|group| group.share_uj).sum();
        let open = snapshot.open.iter().map(|account| counted_share(account, &counted));
        let (open_uj, open_idle_uj) =
            open.fold((0, 0), |(share, idle), (more, more_idle)| (share + more, idle + more_idle));
        // The accounts so far and the balance are of two instants: the later one may have more of the open spans.
        let open_uj = open_uj.min(attributed_uj.saturating_sub(settled_uj));
        let other_uj = attributed_uj.saturating_sub(settled_uj + open_uj);
        if hidden.requests > 0 {
            let above_uj = hidden.share_uj - hidden.idle_uj;
            let row = EnergyRow::of_energy(
                EnergyRowKind::Filtered,
                "(hidden by the filter)",
                hidden.share_uj,
                above_uj,
            );
            rows.push(EnergyRow { requests: Some(hidden.requests), ..row });
        }
        let open_idle_uj = open_idle_uj.min(open_uj);
        rows.push(EnergyRow::of_energy(EnergyRowKind::Open, "open spans", open_uj, open_uj - open_idle_uj));
        if other_uj > 0 {
            rows.push(EnergyRow::of_energy(EnergyRowKind::Other, "other spans", other_uj, other_uj));
        }
        let idle_uj = rows.iter().map(|row| row.share_uj - row.above_idle_uj).sum();
        rows.push(EnergyRow::of_energy(EnergyRowKind::Idle, "idle", 0, idle_uj));
        rows.push(EnergyRow::of_energy(
            EnergyRowKind::Unattributed,
            "unattributed",
            unattributed_uj,
            unattributed_uj,
        ));
        let machine_uj = rows.iter().map(|row| row.share_uj).sum();
        EnergyTable { grouping: selection.grouping, machine_uj, rows }
    }
}

/// The rows of the groups that the filter passes, in order, and the totals of the others.
fn group_rows(
    snapshot: &MeterSnapshot,
    totals: &AccountTotals,
    selection: &GroupSelection,
) -> (Vec<EnergyRow>, GroupTotals) {
    let recent = totals.recent(selection.grouping, snapshot.now_ns);
    let window_start_ns = totals.window_start_ns(snapshot.now_ns).max(snapshot.started_ns.unwrap_or(0));
    let window_ns = snapshot.now_ns.saturating_sub(window_start_ns).max(1);
    let mut hidden = GroupTotals::default();
    let mut rows = Vec::new();
    for (name, group) in totals.groups(selection.grouping) {
        if !selection.contains(name) {
            hidden.requests += group.requests;
            hidden.share_uj += group.share_uj;
            hidden.idle_uj += group.idle_uj;
            continue;
        }
        let recent = recent.get(name.as_str()).cloned().unwrap_or_default();
        let row =
            EnergyRow::of_energy(EnergyRowKind::Group, name, group.share_uj, group.share_uj - group.idle_uj);
        let mean = |uj: u64, count: u64| (uj + count / 2).checked_div(count);
        let mean_error = |uj: Option<u64>, count: u64| uj.filter(|_| count > 0).map(|uj| uj.div_ceil(count));
        rows.push(EnergyRow {
            requests: Some(group.requests),
            requests_per_ks: u64::try_from(
                (u128::from(recent.requests) * 1_000_000_000_000 + u128::from(window_ns) / 2)
                    / u128::from(window_ns),
            )
            .ok(),
            request_uj: mean(group.share_uj, group.requests),
            request_error_uj: mean_error(group.error_uj, group.requests),
            token_uj: mean(group.token_share_uj, group.tokens),
            token_error_uj: mean_error(group.token_error_uj, group.tokens),
            power_mw: mean_mw(recent.share_uj, window_ns),
            first_token_ns: recent.first_token_ns,
            ..row
        });
    }
    match selection.sort {
        SortKey::Energy => rows.sort_by_key(|row| Reverse(row.share_uj)),
        SortKey::Requests => rows.sort_by_key(|row| Reverse((row.requests_per_ks, row.requests))),
        SortKey::PerRequest => rows.sort_by_key(|row| Reverse(row.request_uj)),
        SortKey::Name => {}
    }
    if selection.reversed {
        rows.reverse();
    }
    (rows, hidden)
}

#[cfg(test)]
mod tests {
    use wattspan_client::account::Account;

    use super::super::test_machine::{account, snapshot, totals_of};
    use super::*;

    fn sums(table: &EnergyTable) -> (u64, u64) {
        let sum = |figure: fn(&EnergyRow) -> u64| table.rows.iter().map(figure).sum();
        (sum(|row| row.share_uj), sum(|row| row.above_idle_uj))
    }

    #[test]
    fn both_columns_add_up_to_the_measured_energy_with_and_without_a_filter() {
        let snapshot = snapshot(&[("package-0", 10_000, 6_500), ("dram-0", 5_000, 1_001)]);
        let measured_uj: u64 = snapshot.balance.iter().map(|balance| balance.measured_uj).sum();
        let totals = totals_of(&[
            account("a", "small", &[("package-0", 3_001, 999), ("dram-0", 700, 50)]),
            account("b", "large", &[("package-0", 2_003, 7)]),
        ]);
        for filter in ["", "LARGE", "nothing"] {
            let selection = GroupSelection { filter: filter.into(), ..GroupSelection::default() };
            let table = EnergyTable::build(&snapshot, &totals, &selection);
            assert_eq!(sums(&table), (measured_uj, measured_uj), "{filter}");
            assert_eq!(table.machine_uj, measured_uj);
            let row = |kind| table.rows.iter().find(|row| row.kind == kind);
            assert_eq!(row(EnergyRowKind::Unattributed).unwrap().share_uj, 3_500 + 3_999);
            assert_eq!(row(EnergyRowKind::Idle).unwrap().above_idle_uj, 999 + 50 + 7);
            assert_eq!(row(EnergyRowKind::Other).unwrap().share_uj, 6_500 + 1_001 - 3_701 - 2_003);
            assert_eq!(row(EnergyRowKind::Filtered).is_some(), !filter.is_empty());
        }
    }

    #[test]
    fn open_spans_that_are_ahead_of_the_balance_do_not_break_the_sum() {
        let mut snapshot = snapshot(&[("package-0", 10_000, 6_000)]);
        snapshot.open = vec![account("o", "", &[("package-0", 5_000, 4_999)])];
        let totals = totals_of(&[account("a", "small", &[("package-0", 2_000, 0)])]);
        let table = EnergyTable::build(&snapshot, &totals, &GroupSelection::default());
        assert_eq!(sums(&table), (10_000, 10_000));
        let open = table.rows.iter().find(|row| row.kind == EnergyRowKind::Open).unwrap();
        assert_eq!((open.share_uj, open.above_idle_uj), (4_000, 0));
    }

    #[test]
    fn groups_are_sorted_and_give_energy_per_request() {
        let snapshot = snapshot(&[("package-0", 90_000, 60_000)]);
        let accounts = [("a", "small", 100), ("b", "small", 201), ("c", "large", 250)];
        let accounts = accounts.map(|(span, model, uj)| account(span, model, &[("package-0", uj, 0)]));
        let totals = totals_of(&accounts);
        let names = |sort, reversed| {
            let selection = GroupSelection { sort, reversed, ..GroupSelection::default() };
            let rows = EnergyTable::build(&snapshot, &totals, &selection).rows;
            let groups = rows.iter().filter(|row| row.kind == EnergyRowKind::Group);
            groups.map(|row| (row.name.clone(), row.request_uj.unwrap())).collect::<Vec<_>>()
        };
        let (small, large) = (("small".to_owned(), 151), ("large".to_owned(), 250));
        assert_eq!(names(SortKey::Energy, false), [small.clone(), large.clone()]);
        assert_eq!(names(SortKey::PerRequest, false), [large.clone(), small.clone()]);
        assert_eq!(names(SortKey::Name, true), [small, large]);
    }

    #[test]
    fn rates_are_over_the_time_whose_accounts_are_known() {
        let account = account("a", "small", &[("package-0", 500, 0)]);
        let accounts = |first_ms: u64| {
            (first_ms..100_000)
                .map(|closed_ms| Account { closed_ns: Some(closed_ms * 1_000_000), ..account.clone() })
        };
        let rates = |totals: &AccountTotals| {
            let snapshot = snapshot(&[("package-0", 90_000_000, 60_000_000)]);
            let row = EnergyTable::build(&snapshot, totals, &GroupSelection::default()).rows.swap_remove(0);
            (row.requests_per_ks, row.power_mw)
        };
        // 1000 a second over a minute are more than are kept. Since the last one that is not, at 79.999 s: 20,000.
        let mut totals = AccountTotals::default();
        accounts(40_000).for_each(|account| totals.add(&account, &["package-0".to_owned()]));
        assert_eq!(rates(&totals), (Some(999_950), Some(500)));
        // The list of earlier accounts ended 5 s ago.
        let mut totals = AccountTotals::complete_since(95_000_000_000);
        accounts(95_000).for_each(|account| totals.add(&account, &["package-0".to_owned()]));
        assert_eq!(rates(&totals), (Some(1_000_000), Some(500)));
    }
}
