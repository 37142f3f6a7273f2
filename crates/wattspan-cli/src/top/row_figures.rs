//! The figures of the energy table as text: `wattspan top` and the live page show the same digits.

use super::group_table::{EnergyRow, EnergyRowKind};
use super::unit::ColumnScale;
use crate::quantity::{format_duration, format_energy_or_bound, format_percent, format_power};

/// The figures of one row. One that is absent is not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFigures {
    /// Absent in the idle row, whose energy the other rows contain.
    pub share: Option<String>,
    pub percent: Option<String>,
    pub above_idle: String,
    /// Requests per second.
    pub rate: Option<String>,
    pub power: Option<String>,
    pub per_request: Option<String>,
    pub per_token: Option<String>,
    pub first_token: Option<String>,
}

/// The figures of a table. Each column of energies adds up as printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFigures {
    pub rows: Vec<RowFigures>,
    pub machine_share: String,
    pub machine_above_idle: String,
}

impl TableFigures {
    pub fn new(rows: &[EnergyRow], machine_uj: u64, scale: &ColumnScale) -> Self {
        let residual = rows.iter().position(|row| row.kind == EnergyRowKind::Unattributed).unwrap_or(0);
        let column = |figure: fn(&EnergyRow) -> u64| {
            let parts: Vec<u64> = rows.iter().map(figure).collect();
            scale.format_sum(&parts, residual)
        };
        let (mut shares, mut above) = (column(|row| row.share_uj), column(|row| row.above_idle_uj));
        let machine_share = shares.pop().unwrap_or_default();
        let machine_above_idle = above.pop().unwrap_or_default();
        let figures = rows.iter().zip(shares).zip(above);
        let rows = figures.map(|((row, share), above)| RowFigures::new(row, share, above, machine_uj));
        TableFigures { rows: rows.collect(), machine_share, machine_above_idle }
    }
}

impl RowFigures {
    fn new(row: &EnergyRow, share: String, above_idle: String, machine_uj: u64) -> Self {
        let is_idle = row.kind == EnergyRowKind::Idle;
        RowFigures {
            share: Some(share).filter(|_| !is_idle),
            percent: format_percent(row.share_uj, machine_uj).filter(|_| !is_idle),
            above_idle,
            rate: row.requests_per_ks.map(|rate| format!("{}.{:03}", rate / 1000, rate % 1000)),
            power: row.power_mw.map(|mw| format_power(mw, None)),
            per_request: row.request_uj.map(|uj| format_energy_or_bound(uj, row.request_error_uj)),
            per_token: row.token_uj.map(|uj| format_energy_or_bound(uj, row.token_error_uj)),
            first_token: row.first_token_ns.map(format_duration),
        }
    }
}

/// A power, or `unknown`.
pub fn format_optional_power(power_mw: Option<u64>) -> String {
    power_mw.map_or_else(|| "unknown".into(), |mw| format_power(mw, None))
}

/// The rows with the last groups merged, so that there are at most `max_rows`.
pub fn merge_last_groups(rows: &[EnergyRow], max_rows: Option<usize>) -> Vec<EnergyRow> {
    let groups = rows.iter().filter(|row| row.kind == EnergyRowKind::Group).count();
    let others = rows.len() - groups;
    let kept = match max_rows {
        Some(max_rows) if rows.len() > max_rows => max_rows.saturating_sub(others + 1).min(groups),
        _ => groups,
    };
    let hidden = &rows[kept..groups];
    if hidden.is_empty() {
        return rows.to_vec();
    }
    let sum = |figure: fn(&EnergyRow) -> u64| hidden.iter().map(figure).sum();
    let (share_uj, above_idle_uj) = (sum(|row| row.share_uj), sum(|row| row.above_idle_uj));
    let name = format!("({} more groups)", hidden.len());
    let merged = EnergyRow::of_energy(EnergyRowKind::Group, &name, share_uj, above_idle_uj);
    [&rows[..kept], &[merged], &rows[groups..]].concat()
}
