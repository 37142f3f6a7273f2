//! The message that the page receives twice a second: every figure as text, with the digits of `wattspan top`.

use serde::Serialize;
use wattspan_client::domain::Liveness;

use super::health::HealthLine;
use super::live_pictures::LivePicture;
use super::request_log::{RequestRow, shown_name};
use crate::account_report::grade_name;
use crate::quantity::{format_duration, format_energy, format_energy_or_bound};
use crate::top::group_table::{EnergyRowKind, EnergyTable};
use crate::top::row_figures::{RowFigures, TableFigures, format_optional_power, merge_last_groups};
use crate::top::top_view::{DomainRow, OpenSpanRow, TopView};
use crate::top::unit::{ColumnScale, EnergyUnit, UnitFactors};

/// Rows of the table of energies, and of the open spans.
const MAX_ENERGY_ROWS: usize = 40;
const MAX_OPEN_ROWS: usize = 40;

/// A figure of the first screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tile {
    pub name: &'static str,
    pub value: String,
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DomainCells {
    name: String,
    depth: usize,
    state: Liveness,
    power: String,
    energy: String,
    idle: String,
    grade: String,
    counted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnergyCells {
    pub kind: EnergyRowKind,
    pub name: String,
    /// The energy as in the accounts, percent of the machine, without the idle part, requests per second, power, energy of
    /// a request and of a token, time to the first token.
    pub cells: [String; 8],
}

/// The table of energies. Both columns of energies add up to the machine as printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnergyMessage {
    pub unit: String,
    pub rows: Vec<EnergyCells>,
    pub machine: String,
    pub machine_above_idle: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenCells {
    name: String,
    group: String,
    age: String,
    energy: String,
}

/// Why the meter is unreachable, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreachableMessage {
    pub reason: String,
    pub since_unix_ms: u64,
}

/// All figures but the pictures and the requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FiguresMessage {
    unix_ms: u64,
    version: String,
    meter: &'static str,
    simulated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_s: Option<u64>,
    tiles: Vec<Tile>,
    domains: Vec<DomainCells>,
    pub energy: EnergyMessage,
    open: Vec<OpenCells>,
    open_count: usize,
    health: Vec<HealthLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreachable: Option<UnreachableMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
}

/// A whole message.
#[derive(Debug, Serialize)]
pub struct PageMessage<'a> {
    /// Replaces all that the page has; otherwise the requests are added.
    pub full: bool,
    pub range: &'static str,
    #[serde(flatten)]
    pub figures: &'a FiguresMessage,
    /// Those that changed.
    pub pictures: &'a [LivePicture],
    /// The oldest first.
    pub requests: &'a [RequestRow],
}

/// What a message needs beside the view.
#[derive(Debug, Clone)]
pub struct MessageContext {
    pub unix_ms: u64,
    pub meter: &'static str,
    pub notice: Option<String>,
    pub unreachable: Option<UnreachableMessage>,
    pub health: Vec<HealthLine>,
    /// Energy and number of the output tokens of the last ten minutes.
    pub token_uj: u64,
    pub tokens: u64,
}

impl FiguresMessage {
    pub fn new(view: &TopView, context: MessageContext) -> Self {
        let (unit, factors) = (EnergyUnit::Joules, UnitFactors::default());
        let scale = ColumnScale::choose(unit, &factors, view.energy.machine_uj, view.uptime_ns);
        let energy = EnergyMessage::new(&view.energy, &scale);
        FiguresMessage {
            unix_ms: context.unix_ms,
            version: shown_name(&view.version),
            meter: context.meter,
            simulated: view.simulated,
            uptime_s: view.uptime_ns.map(|ns| ns / 1_000_000_000),
            tiles: tiles(view, &energy, &context),
            domains: view.domains.iter().map(|domain| DomainCells::new(domain, &scale)).collect(),
            energy,
            open: view.open.iter().take(MAX_OPEN_ROWS).map(OpenCells::new).collect(),
            open_count: view.open.len(),
            health: context.health,
            unreachable: context.unreachable,
            notice: context.notice,
        }
    }
}

fn tiles(view: &TopView, energy: &EnergyMessage, context: &MessageContext) -> Vec<Tile> {
    let at_least = if view.at_least { "at least " } else { "" };
    let groups = || view.energy.rows.iter().filter(|row| row.kind == EnergyRowKind::Group);
    let per_ks: u64 = groups().filter_map(|row| row.requests_per_ks).sum();
    let requests: u64 = groups().filter_map(|row| row.requests).sum();
    let per_token = context.token_uj.checked_div(context.tokens);
    vec![
        Tile {
            name: "power of the machine",
            value: format!("{at_least}{}", format_optional_power(view.power_mw)),
            note: "the counted domains, now".into(),
        },
        Tile {
            name: "energy of the machine",
            value: format!("{} {}", energy.machine, energy.unit),
            note: "since the daemon started".into(),
        },
        Tile {
            name: "energy of a token",
            value: per_token.map_or_else(|| "–".into(), |uj| format_energy(uj, None)),
            note: "all models, last 10 minutes".into(),
        },
        Tile {
            name: "requests a second",
            value: format!("{}.{:03}", per_ks / 1000, per_ks % 1000),
            note: format!("last minute; {requests} in all, {} open", view.open.len()),
        },
    ]
}

impl DomainCells {
    fn new(domain: &DomainRow, scale: &ColumnScale) -> Self {
        let simulated = if domain.simulated { " (simulated)" } else { "" };
        DomainCells {
            name: shown_name(&domain.name),
            depth: domain.depth,
            state: domain.liveness,
            power: format_optional_power(domain.power_mw),
            energy: domain.measured_uj.map_or_else(|| "unknown".into(), |uj| scale.format(uj)),
            idle: scale.format(domain.idle_uj),
            grade: format!("{}{simulated}", grade_name(domain.grade)),
            counted: domain.counted,
        }
    }
}

impl EnergyMessage {
    fn new(table: &EnergyTable, scale: &ColumnScale) -> Self {
        let rows = merge_last_groups(&table.rows, Some(MAX_ENERGY_ROWS));
        let figures = TableFigures::new(&rows, table.machine_uj, scale);
        let cells = |figures: RowFigures| {
            let RowFigures { share, percent, above_idle, rate, power, per_request, per_token, first_token } =
                figures;
            [share, percent, Some(above_idle), rate, power, per_request, per_token, first_token]
                .map(Option::unwrap_or_default)
        };
        let row = |(row, figures): (&crate::top::group_table::EnergyRow, RowFigures)| EnergyCells {
            kind: row.kind,
            name: shown_name(&row.name),
            cells: cells(figures),
        };
        EnergyMessage {
            unit: scale.unit_name.clone(),
            rows: rows.iter().zip(figures.rows).map(row).collect(),
            machine: figures.machine_share,
            machine_above_idle: figures.machine_above_idle,
        }
    }
}

impl OpenCells {
    fn new(row: &OpenSpanRow) -> Self {
        OpenCells {
            name: shown_name(&row.name),
            group: shown_name(&row.group),
            age: format_duration(row.age_ns),
            energy: row
                .share_uj
                .map_or_else(|| "unknown".into(), |uj| format_energy_or_bound(uj, row.error_uj)),
        }
    }
}
