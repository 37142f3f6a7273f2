//! The energy balance of the daemon, beside the accounts: how much energy of each domain belongs to no span.
//!
//! `_balance/date=/host=/BOOT-STARTED.EXT` in the directory of the export has the latest balance of one life of the daemon
//! (from its start to its end) on one UTC day. Each export replaces it, so that it needs no state.

use wattspan_client::account::Balance;
use wattspan_client::domain::DomainKind;
use wattspan_client::protocol::DaemonInfo;

use super::columns::{Cell, Column, ColumnType};
use super::partition::path_word;

/// The balance of one domain.
#[derive(Debug, Clone)]
pub struct BalanceRow {
    life: String,
    at_unix_ns: u64,
    balance: Balance,
    kind: Option<String>,
    grade: &'static str,
    is_counted: bool,
    is_simulated: bool,
}

/// The columns of a balance. `life` differs between two starts of the daemon, from which the energies count.
pub const BALANCE_COLUMNS: &[Column<BalanceRow>] = &[
    ("life", ColumnType::Text, |row| Some(row.life.as_str()).into()),
    ("at_unix_ns", ColumnType::Integer, |row| Some(row.at_unix_ns).into()),
    ("domain", ColumnType::Text, |row| Some(row.balance.domain.as_str()).into()),
    ("kind", ColumnType::Text, |row| row.kind.as_deref().into()),
    ("grade", ColumnType::Text, |row| Cell::Text(row.grade)),
    ("counted", ColumnType::Flag, |row| Cell::Flag(row.is_counted)),
    ("simulated", ColumnType::Flag, |row| Cell::Flag(row.is_simulated)),
    ("measured_uj", ColumnType::Integer, |row| Some(row.balance.measured_uj).into()),
    ("attributed_uj", ColumnType::Integer, |row| Some(row.balance.attributed_uj).into()),
    ("unattributed_uj", ColumnType::Integer, |row| Some(row.balance.unattributed_uj).into()),
];

/// The name of a daemon's life; absent for a daemon that does not report its start.
pub fn life(info: &DaemonInfo) -> Option<String> {
    info.started_ns.map(|started_ns| format!("{}-{started_ns}", path_word(&info.boot_id)))
}

/// The name of a kind in the contract.
fn kind_name(kind: DomainKind) -> Option<String> {
    serde_json::to_value(kind).ok()?.as_str().map(str::to_owned)
}

/// The rows of a balance: those of the domains that the daemon lists.
pub fn rows(info: &DaemonInfo, balance: Vec<Balance>, life: &str, at_unix_ns: u64) -> Vec<BalanceRow> {
    let row = |balance: Balance| {
        let domain = info.domains.iter().find(|domain| domain.name == balance.domain)?;
        Some(BalanceRow {
            life: life.to_owned(),
            at_unix_ns,
            balance,
            kind: kind_name(domain.kind),
            grade: domain.grade.as_str(),
            is_counted: domain.counted,
            is_simulated: info.simulated == Some(true),
        })
    };
    balance.into_iter().filter_map(row).collect()
}
