//! Draws a frame of `wattspan top` as lines. Every name passes `printable`: it may come from any client.

use ratatui::text::{Line, Span};
use wattspan_client::domain::Liveness;

use super::account_totals::RATE_WINDOW_NS;
use super::group_table::{EnergyRow, EnergyRowKind, EnergyTable};
use super::palette::{Palette, TopStyle};
use super::power_history::ZOOM_STEPS;
use super::row_figures::{RowFigures, TableFigures, format_optional_power, merge_last_groups};
use super::text_columns::{TextColumn, TopCell, cut, table_lines};
use super::top_state::TopState;
use super::top_view::{DomainRow, OpenSpanRow, TopView};
use super::unit::{ColumnScale, EnergyUnit};
use crate::account_report::grade_name;
use crate::quantity::{format_duration, format_energy};
use crate::terminal::{display_width, printable, wrap};
use crate::utc_time::format_rfc3339;

/// What a frame needs beside the figures.
#[derive(Debug, Clone, Copy)]
pub struct FrameSize {
    pub width: usize,
    /// Lines; `None`: as many as there are.
    pub height: Option<usize>,
}

/// The keys in the footer, the most important first.
const KEYS: &[&str] =
    &["q quit", "? help", "g group", "s sort", "/ filter", "u unit", "space pause", "+/- zoom", "r reverse"];

const HELP: &[(&str, &str)] = &[
    ("q  F10  Ctrl-C", "quit"),
    ("?  h  F1", "this help"),
    ("g", "group by model, name, user, operation"),
    ("s  >  F6", "sort by energy, requests, J/request, name"),
    ("r  I", "reverse the order"),
    ("/  F3  F4", "filter groups and open spans by name; Enter keeps it, Esc removes it"),
    ("space  p  Z", "pause; figures are collected meanwhile"),
    ("+  -", "time of a history: 0.5 s to 30 s for each column of dots"),
    ("u", "unit: J, Wh, W (mean since the start), cost and g CO2 if the settings have their factors"),
    ("", ""),
    ("ENERGY", "the accounts' shares, as in `wattspan spans`; the rows add up to the machine"),
    ("ABOVE IDLE", "the same without the idle part, which is a row of its own; adds up, too"),
    ("other spans", "spans that are settling, of other users, or too old to be listed"),
    ("unattributed", "energy while no span was open; takes the remainder of the roundings"),
    ("REQ/S, POWER, TTFT", "of the last minute; TTFT is the median time to the first token"),
];

/// The frame as lines, each at most as wide as the terminal.
pub fn frame_lines(
    state: &TopState,
    view: &TopView,
    size: FrameSize,
    palette: Palette,
) -> Vec<Line<'static>> {
    let mut lines = header_lines(state, view, size.width, palette);
    if state.shows_help {
        lines.extend(help_lines(size.width, palette));
        return lines;
    }
    lines.push(Line::default());
    lines.extend(domain_lines(state, view, size.width, palette));
    lines.push(Line::default());
    // The footer and the space between the tables; at least the header and one row of the open spans.
    const RESERVED: usize = 5;
    let budget = size.height.map(|height| height.saturating_sub(lines.len() + RESERVED));
    lines.extend(energy_lines(state, view, budget, size.width, palette));
    if !view.open.is_empty() {
        lines.push(Line::default());
        let budget = size.height.map(|height| height.saturating_sub(lines.len() + 2));
        lines.extend(open_lines(view, budget, size.width, palette));
    }
    if let Some(height) = size.height {
        lines.truncate(height.saturating_sub(1));
        lines.resize(height.saturating_sub(1), Line::default());
        lines.push(footer_line(state, size.width, palette));
    }
    lines
}

fn styled(text: String, style: TopStyle, palette: Palette) -> Line<'static> {
    Line::from(Span::styled(text, palette.style(style)))
}

fn header_lines(state: &TopState, view: &TopView, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let power = format_optional_power(view.power_mw);
    let at_least = if view.at_least { "at least " } else { "" };
    let uptime = view.uptime_ns.map_or_else(String::new, |ns| format!("  up {}", format_clock(ns)));
    let simulated = if view.simulated { "  simulated" } else { "" };
    let paused = if state.is_paused() { "  PAUSED" } else { "" };
    let mut line = Line::from(format!("machine {at_least}"));
    line.push_span(Span::styled(power, palette.style(TopStyle::Value)));
    line.push_span(Span::styled(simulated, palette.style(TopStyle::Warning)));
    line.push_span(format!("{uptime}  version {}", printable(&view.version)));
    line.push_span(Span::styled(paused, palette.style(TopStyle::Alarm)));
    let mut lines = vec![line];
    for notice in state.fallback_notice.iter().flat_map(|notice| notice.lines()) {
        let text = wrap(notice, Some(width));
        lines.extend(text.into_iter().map(|text| styled(text, TopStyle::Warning, palette)));
    }
    if let Some((reason, since_unix_ns)) = &state.unreachable {
        let since = format_rfc3339(*since_unix_ns);
        let text = format!("daemon unreachable since {since}, reconnecting: {reason}");
        let text = wrap(&text, Some(width));
        lines.extend(text.into_iter().map(|text| styled(text, TopStyle::Alarm, palette)));
    }
    lines
}

/// `2:03:04`, or `1d 02:03:04`.
fn format_clock(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let rest = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    if days > 0 { format!("{days}d {hours:02}:{rest}") } else { format!("{hours}:{rest}") }
}

fn column(title: impl Into<String>, is_number: bool, drop_order: u8) -> TextColumn {
    TextColumn { title: title.into(), is_number, drop_order }
}

fn domain_lines(state: &TopState, view: &TopView, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let machine_uj = view.energy.machine_uj;
    let scale = ColumnScale::choose(state.unit, &state.factors, machine_uj, view.uptime_ns);
    let dot_s = ZOOM_STEPS[state.zoom] as f64 / 2.0;
    let columns = [
        column("DOMAIN", false, 0),
        column("POWER", true, 0),
        column(format!("HISTORY {dot_s} s/dot"), false, 1),
        column(energy_title(state.unit, &scale), true, 0),
        column("IDLE PART", true, 3),
        column("GRADE", false, 2),
        column("TOTAL", false, 4),
    ];
    let machine = vec![
        TopCell::Text("machine".into(), TopStyle::Total),
        TopCell::Text(format_optional_power(view.power_mw), TopStyle::Value),
        graph(&view.history_mw),
        TopCell::Text(scale.format(machine_uj), TopStyle::Total),
        TopCell::plain(scale.format(idle_uj(&view.energy))),
        TopCell::plain(""),
        TopCell::plain(""),
    ];
    let rows: Vec<Vec<TopCell>> =
        view.domains.iter().map(|domain| domain_cells(domain, &scale)).chain([machine]).collect();
    let mut table = table_lines(&columns, &rows, width, palette).into_iter();
    let mut lines: Vec<Line<'static>> = table.next().into_iter().collect();
    for (domain, line) in view.domains.iter().zip(table.by_ref()) {
        lines.push(line);
        if let Some(reason) = domain.reason.as_ref().filter(|_| domain.liveness != Liveness::Live) {
            let text = wrap(reason, Some(width.saturating_sub(4)));
            let style = liveness_style(domain.liveness);
            lines.extend(text.into_iter().map(|text| styled(format!("    {text}"), style, palette)));
        }
    }
    lines.extend(table);
    lines
}

/// The heading of the energies in a unit.
fn energy_title(unit: EnergyUnit, scale: &ColumnScale) -> String {
    let quantity = match unit {
        EnergyUnit::Joules | EnergyUnit::WattHours => "ENERGY",
        EnergyUnit::Watts => "MEAN",
        EnergyUnit::Cost => "COST",
        EnergyUnit::Co2 => return scale.unit_name.clone(),
    };
    format!("{quantity} {}", scale.unit_name)
}

fn idle_uj(table: &EnergyTable) -> u64 {
    let idle = table.rows.iter().find(|row| row.kind == EnergyRowKind::Idle);
    idle.map_or(0, |row| row.above_idle_uj)
}

fn liveness_style(liveness: Liveness) -> TopStyle {
    if liveness == Liveness::Lost { TopStyle::Alarm } else { TopStyle::Warning }
}

fn domain_cells(domain: &DomainRow, scale: &ColumnScale) -> Vec<TopCell> {
    let name = format!("{}{}", "  ".repeat(domain.depth), printable(&domain.name));
    let power = match domain.liveness {
        Liveness::Live => TopCell::Text(format_optional_power(domain.power_mw), TopStyle::Value),
        Liveness::Stuck => TopCell::Text("stuck".into(), TopStyle::Warning),
        Liveness::Lost => TopCell::Text("lost".into(), TopStyle::Alarm),
        Liveness::Starting => TopCell::Text("starting".into(), TopStyle::Warning),
    };
    let grade = match domain.simulated {
        true => format!("{} (simulated)", grade_name(domain.grade)),
        false => grade_name(domain.grade).to_owned(),
    };
    vec![
        TopCell::plain(name),
        power,
        graph(&domain.history_mw),
        TopCell::plain(domain.measured_uj.map_or_else(|| "unknown".into(), |uj| scale.format(uj))),
        TopCell::plain(scale.format(domain.idle_uj)),
        TopCell::Text(grade, TopStyle::Dim),
        TopCell::Text(if domain.counted { "counted" } else { "not counted" }.into(), TopStyle::Dim),
    ]
}

/// A history on the scale of its own maximum.
fn graph(dots: &[Option<u64>]) -> TopCell {
    let max = dots.iter().flatten().max().copied().unwrap_or(0);
    TopCell::Graph(dots.to_vec(), max)
}

/// The table of groups. With a budget of lines, the last groups share a row.
fn energy_lines(
    state: &TopState,
    view: &TopView,
    budget: Option<usize>,
    width: usize,
    palette: Palette,
) -> Vec<Line<'static>> {
    let table = &view.energy;
    let scale = ColumnScale::choose(state.unit, &state.factors, table.machine_uj, view.uptime_ns);
    let order = if state.selection.reversed { " reversed" } else { "" };
    let columns = [
        column(table.grouping.title(), false, 0),
        column(energy_title(state.unit, &scale), true, 0),
        column("SHARE", true, 1),
        column("ABOVE IDLE", true, 0),
        column("REQ/S", true, 2),
        column("POWER", true, 6),
        column("J/REQUEST", true, 3),
        column("J/TOKEN", true, 4),
        column("TTFT", true, 5),
    ];
    let rows = merge_last_groups(&table.rows, budget.map(|budget| budget.saturating_sub(2)));
    let figures = TableFigures::new(&rows, table.machine_uj, &scale);
    let mut cells: Vec<Vec<TopCell>> = Vec::new();
    for (row, figures) in rows.iter().zip(figures.rows) {
        cells.push(energy_cells(row, figures));
    }
    let total = |text: &str| TopCell::Text(text.to_owned(), TopStyle::Total);
    let whole = if table.machine_uj > 0 { "100 %" } else { "" };
    let (share, above_idle) = (total(&figures.machine_share), total(&figures.machine_above_idle));
    cells.push([total("machine"), share, total(whole), above_idle].to_vec());
    let mut lines = table_lines(&columns, &cells, width, palette);
    if let Some(header) = lines.first_mut() {
        let sorted = format!("  by {}{order}", state.selection.sort.label());
        if header.width() + sorted.len() <= width {
            header.push_span(Span::styled(sorted, palette.style(TopStyle::Dim)));
        }
    }
    lines
}

fn energy_cells(row: &EnergyRow, figures: RowFigures) -> Vec<TopCell> {
    let style = if row.kind == EnergyRowKind::Group { TopStyle::Plain } else { TopStyle::Dim };
    let text = |text: Option<String>| TopCell::Text(text.unwrap_or_default(), style);
    vec![
        text(Some(printable(&row.name))),
        text(figures.share),
        text(figures.percent),
        text(Some(figures.above_idle)),
        text(figures.rate),
        text(figures.power),
        text(figures.per_request),
        text(figures.per_token),
        text(figures.first_token),
    ]
}

fn open_lines(view: &TopView, budget: Option<usize>, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let columns = [
        column(format!("OPEN SPANS {}", view.open.len()), false, 0),
        column("AGE", true, 0),
        column("ENERGY SO FAR", true, 0),
        column("GROUP", false, 2),
        column("SPAN", false, 1),
    ];
    let most = budget.map_or(view.open.len(), |budget| budget.saturating_sub(1));
    let rows: Vec<Vec<TopCell>> = view.open.iter().take(most).map(open_cells).collect();
    table_lines(&columns, &rows, width, palette)
}

fn open_cells(row: &OpenSpanRow) -> Vec<TopCell> {
    let energy = row.share_uj.map_or_else(|| "unknown".into(), |uj| format_energy(uj, row.error_uj));
    vec![
        TopCell::plain(printable(&row.name)),
        TopCell::plain(format_duration(row.age_ns)),
        TopCell::plain(energy),
        TopCell::plain(printable(&row.group)),
        TopCell::Text(printable(&row.span), TopStyle::Dim),
    ]
}

fn help_lines(width: usize, palette: Palette) -> Vec<Line<'static>> {
    const KEY_WIDTH: usize = 20;
    let mut lines = vec![Line::default()];
    for (key, text) in HELP {
        for (number, text) in wrap(text, Some(width.saturating_sub(KEY_WIDTH))).into_iter().enumerate() {
            let key = if number == 0 { *key } else { "" };
            let key = Span::styled(format!("{key:KEY_WIDTH$}"), palette.style(TopStyle::Heading));
            lines.push(Line::from(vec![key, Span::raw(text)]));
        }
    }
    let window_s = RATE_WINDOW_NS / 1_000_000_000;
    lines.push(Line::from(format!("Rates are of the last {window_s} s. Press a key to return.")));
    lines
}

fn footer_line(state: &TopState, width: usize, palette: Palette) -> Line<'static> {
    let filter = printable(&state.selection.filter);
    let mut text = match (state.edits_filter, filter.is_empty()) {
        (true, _) => format!("filter: {filter}_  Enter keep  Esc remove"),
        (false, false) => format!("filter: {filter}  Esc remove"),
        (false, true) => String::new(),
    };
    for key in KEYS.iter().filter(|_| !state.edits_filter) {
        let gap = if text.is_empty() { "" } else { "  " };
        if display_width(&text) + gap.len() + key.len() <= width {
            text = text + gap + key;
        }
    }
    styled(cut(&text, width), TopStyle::Dim, palette)
}
