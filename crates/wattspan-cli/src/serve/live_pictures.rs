//! The pictures of the live page, drawn as those of the report. Each answers the question of its title on the page.

use std::collections::VecDeque;

use serde::Serialize;
use wattspan_client::account::Account;
use wattspan_page::chart::{Axis, Chart, Ticks};
use wattspan_page::timeline::assign_rows;

use super::live_history::{
    HistoryRange, HistorySlot, IDLE, LiveHistory, MAX_DOMAINS, MAX_MODELS, OTHER_MODELS, OTHER_SPANS,
    UNATTRIBUTED,
};
use super::request_log::{RequestRow, RequestTimes, shown_name};
use crate::quantity::{format_energy, format_percent, format_power, mean_mw};
use crate::top::grouping::Grouping;

/// Slots whose mean is the present value in a legend.
const PRESENT_SLOTS: u64 = 5;

/// The time that the picture of the requests covers.
const REQUESTS_S: u64 = 60;

/// Requests and rows of that picture.
const MAX_BARS: usize = 240;
const MAX_ROWS: usize = 40;

/// Points of a line over the whole range.
const TOKEN_POINTS: u64 = 60;

const SERIES: [&str; MAX_MODELS] =
    ["series0", "series1", "series2", "series3", "series4", "series5", "series6", "series7"];
const LINES: [&str; MAX_MODELS] = ["line0", "line1", "line2", "line3", "line4", "line5", "line6", "line7"];
const REST: &str = "series-rest";

/// What a colour stands for, with its present value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LegendEntry {
    pub class: &'static str,
    pub name: String,
    pub value: String,
}

/// A picture with its legend, in the order of the picture from top to bottom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LivePicture {
    pub id: &'static str,
    pub svg: String,
    pub legend: Vec<LegendEntry>,
}

/// The parts of time that a picture has, as seconds before its end.
struct TimeColumns {
    /// The length of the axis.
    seconds: u64,
    columns: Vec<TimeColumn>,
    /// The sum of the latest slots.
    present: HistorySlot,
}

struct TimeColumn {
    from_s: f64,
    to_s: f64,
    slot: HistorySlot,
}

/// One layer of a stack, or one line.
struct Series {
    class: &'static str,
    name: String,
    energy_uj: fn(&HistorySlot, usize) -> u64,
    column: usize,
}

impl Series {
    fn energy_uj(&self, slot: &HistorySlot) -> u64 {
        (self.energy_uj)(slot, self.column)
    }
}

impl HistoryRange {
    fn words(self) -> &'static str {
        match self {
            HistoryRange::TenMinutes => "10 minutes",
            HistoryRange::Hour => "hour",
            HistoryRange::Day => "24 hours",
        }
    }

    /// The lengths of the time axis: the shortest that has all data is drawn, so that a new history is legible.
    fn axis_lengths_s(self) -> &'static [u64] {
        match self {
            HistoryRange::TenMinutes => &[60, 120, 300, 600],
            HistoryRange::Hour => &[600, 1_200, 3_600],
            HistoryRange::Day => &[7_200, 21_600, 43_200, 86_400],
        }
    }
}

/// `30 s ago`, `10 min ago`, `8 h ago`.
fn time_label(ago_s: u64) -> String {
    match ago_s {
        0 => "now".into(),
        1..60 => format!("{ago_s} s ago"),
        60..3_600 => format!("{} min ago", ago_s / 60),
        _ => format!("{} h ago", ago_s / 3_600),
    }
}

impl TimeColumns {
    /// Sums of `per_column` slots each.
    fn new(history: &LiveHistory, range: HistoryRange, per_column: u64, now_unix_ns: u64) -> Self {
        let (slots, end) = (history.slots(range), range.slot_of(now_unix_ns) + 1);
        let seconds = |number: u64| -((end.saturating_sub(number) * range.slot_s()) as f64);
        let mut columns: Vec<TimeColumn> = Vec::new();
        for slot in slots.iter().filter(|slot| slot.number < end && slot.number + range.slots() >= end) {
            let first = slot.number / per_column * per_column;
            let from_s = seconds(first);
            match columns.last_mut().filter(|last| last.slot.number == first) {
                Some(last) => last.slot.add(slot),
                None => {
                    let to_s = seconds(first + per_column);
                    columns.push(TimeColumn { from_s, to_s, slot: HistorySlot { number: first, ..*slot } });
                }
            }
        }
        let mut present = HistorySlot::default();
        let now = HistoryRange::TenMinutes.slot_of(now_unix_ns);
        let latest: &VecDeque<HistorySlot> = history.slots(HistoryRange::TenMinutes);
        let latest = latest.iter().rev().take_while(|slot| slot.number + PRESENT_SLOTS >= now);
        latest.for_each(|slot| present.add(slot));
        let oldest_s = columns.first().map_or(0.0, |column| -column.to_s);
        let lengths = range.axis_lengths_s();
        let seconds = lengths.iter().copied().find(|length_s| *length_s as f64 >= oldest_s);
        TimeColumns { seconds: seconds.unwrap_or(range.seconds()), columns, present }
    }

    fn low(&self) -> f64 {
        -(self.seconds as f64)
    }

    fn time_axis(&self) -> Axis {
        Axis { title: "", low: self.low(), high: 0.0, ticks: Ticks::Hidden }
    }

    fn label_time(&self, chart: &mut Chart) {
        for ago_s in [self.seconds, self.seconds / 2, 0] {
            chart.x_label(-(ago_s as f64), &time_label(ago_s));
        }
        if self.columns.is_empty() {
            note_empty(chart, self.low() / 2.0, "no data in this time yet");
        }
    }
}

/// A name as a label within a picture, where a long one would lie on the axis. The legend has more of it.
fn short_label(name: &str) -> String {
    const MAX_CHARS: usize = 28;
    match name.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Text in the middle of a chart without data.
fn note_empty(chart: &mut Chart, middle: f64, text: &str) {
    chart.column_label((middle, 0.0), text);
}

/// Watts from microjoules in nanoseconds.
fn watts(uj: u64, ns: u64) -> f64 {
    uj as f64 * 1e3 / ns.max(1) as f64
}

/// All pictures but that of the requests.
pub fn history_pictures(history: &LiveHistory, range: HistoryRange, now_unix_ns: u64) -> Vec<LivePicture> {
    let per_column = match range {
        HistoryRange::TenMinutes | HistoryRange::Day => 2,
        HistoryRange::Hour => 1,
    };
    let columns = TimeColumns::new(history, range, per_column, now_unix_ns);
    let power = |slot: &HistorySlot, uj: u64| watts(uj, slot.elapsed_ns);
    let percent =
        |slot: &HistorySlot, uj: u64| uj as f64 * 100.0 / (slot.use_uj.iter().sum::<u64>().max(1)) as f64;
    let power_value =
        |slot: &HistorySlot, uj: u64| mean_mw(uj, slot.elapsed_ns).map(|mw| format_power(mw, None));
    let percent_value = |slot: &HistorySlot, uj: u64| format_percent(uj, slot.use_uj.iter().sum());
    let domains = domain_series(history);
    let (models, uses) = (model_series(history), use_series(history));
    let totals = |of: &[Series]| -> Vec<f64> {
        let total = |slot: &HistorySlot| -> u64 { of.iter().map(|series| series.energy_uj(slot)).sum() };
        columns.columns.iter().map(|column| power(&column.slot, total(&column.slot))).collect()
    };
    let watt_axis = |of: &[Series]| Axis::from_zero("power, W", totals(of).into_iter());
    let period = range.words();
    vec![
        stack(
            "domains",
            &format!("Power of each domain over the last {period}"),
            (&columns, watt_axis(&domains), &domains),
            (&power, &power_value),
        ),
        stack(
            "uses",
            &format!("Use of the machine's power over the last {period}"),
            (&columns, watt_axis(&uses), &uses),
            (&power, &power_value),
        ),
        stack(
            "models",
            &format!("Share of each model in the machine's energy over the last {period}"),
            (&columns, Axis::of_percent("share of the machine, %"), &models),
            (&percent, &percent_value),
        ),
        tokens_picture(history, range, now_unix_ns),
    ]
}

fn domain_series(history: &LiveHistory) -> Vec<Series> {
    let energy_uj = |slot: &HistorySlot, column: usize| slot.domain_uj[column];
    let named = history.domains().iter().enumerate().map(|(column, name)| {
        let class = SERIES[column % SERIES.len()];
        Series { class, name: shown_name(name), energy_uj, column }
    });
    let rest = Series { class: REST, name: "other domains".into(), energy_uj, column: MAX_DOMAINS };
    named.chain([rest]).collect()
}

fn model_series(history: &LiveHistory) -> Vec<Series> {
    let energy_uj = |slot: &HistorySlot, column: usize| slot.use_uj[column];
    let named = history.models().iter().enumerate().map(|(column, name)| {
        let class = SERIES[column % SERIES.len()];
        Series { class, name: shown_name(name), energy_uj, column }
    });
    let rest = Series { class: REST, name: "other models".into(), energy_uj, column: OTHER_MODELS };
    named.chain([rest]).collect()
}

fn use_series(history: &LiveHistory) -> Vec<Series> {
    let energy_uj = |slot: &HistorySlot, column: usize| slot.use_uj[column];
    let use_of =
        |class: &'static str, name: &str, column| Series { class, name: name.into(), energy_uj, column };
    let mut all = vec![
        use_of("use-none", "unattributed", UNATTRIBUTED),
        use_of("use-idle", "idle part of spans", IDLE),
        use_of("use-other", "other spans", OTHER_SPANS),
    ];
    all.extend(model_series(history));
    all
}

/// How a picture shows an energy within a slot: as a number and as text.
type ShowEnergy<'a> = (&'a dyn Fn(&HistorySlot, u64) -> f64, &'a dyn Fn(&HistorySlot, u64) -> Option<String>);

/// Layers from the bottom up, whose upper edge is their sum.
fn stack(
    id: &'static str,
    label: &str,
    (times, y, series): (&TimeColumns, Axis, &[Series]),
    (height, text): ShowEnergy,
) -> LivePicture {
    let has_energy = |series: &&Series| times.columns.iter().any(|column| series.energy_uj(&column.slot) > 0);
    let drawn: Vec<&Series> = series.iter().filter(has_energy).collect();
    let entry = |series: &&Series| LegendEntry {
        class: series.class,
        name: series.name.clone(),
        value: text(&times.present, series.energy_uj(&times.present)).unwrap_or_else(|| "–".into()),
    };
    let legend: Vec<LegendEntry> = drawn.iter().rev().map(entry).collect();
    let mut chart = Chart::new(&describe(label, &legend), times.time_axis(), y);
    let mut edges: Vec<(f64, f64, f64)> =
        times.columns.iter().map(|column| (column.from_s, column.to_s, 0.0)).collect();
    let mut layers = Vec::new();
    for series in &drawn {
        let below = edges.last().map_or(0.0, |edge| edge.2);
        for (edge, column) in edges.iter_mut().zip(&times.columns) {
            edge.2 += height(&column.slot, series.energy_uj(&column.slot));
        }
        layers.push((series, below, edges.clone()));
    }
    // Each layer reaches to the bottom, and the lower ones are drawn over it.
    for (series, _, edges) in layers.iter().rev() {
        chart.step_area(series.class, edges, &series.name);
    }
    for (series, below, edges) in &layers {
        if let Some((.., top)) = edges.last() {
            chart.band_label(0.0, (*below, *top), &short_label(&series.name));
        }
    }
    times.label_time(&mut chart);
    LivePicture { id, svg: chart.to_svg(), legend }
}

/// The description for screen readers: what the picture is of, and the present values.
fn describe(label: &str, legend: &[LegendEntry]) -> String {
    let values: Vec<String> = legend.iter().map(|entry| format!("{} {}", entry.name, entry.value)).collect();
    if values.is_empty() { label.to_owned() } else { format!("{label}. Now: {}", values.join(", ")) }
}

fn tokens_picture(history: &LiveHistory, range: HistoryRange, now_unix_ns: u64) -> LivePicture {
    let per_column = range.slots() / TOKEN_POINTS;
    let times = TimeColumns::new(history, range, per_column, now_unix_ns);
    let models = model_series(history);
    let mut legend = Vec::new();
    let mut lines: Vec<(&Series, Vec<(f64, f64)>)> = Vec::new();
    for series in &models {
        let at = series.column;
        let with_tokens = || times.columns.iter().filter(move |column| column.slot.tokens[at] > 0);
        let joules = |uj: u64, tokens: u64| uj as f64 / 1e6 / tokens as f64;
        let point = |column: &TimeColumn| {
            let slot = &column.slot;
            ((column.from_s + column.to_s) / 2.0, joules(slot.token_uj[at], slot.tokens[at]))
        };
        let points: Vec<(f64, f64)> = with_tokens().map(point).collect();
        let (uj, tokens) = with_tokens().fold((0, 0), |(uj, tokens): (u64, u64), column| {
            (uj.saturating_add(column.slot.token_uj[at]), tokens.saturating_add(column.slot.tokens[at]))
        });
        if let Some(mean_uj) = uj.checked_div(tokens) {
            let (name, value) = (series.name.clone(), format_energy(mean_uj, None));
            legend.push(LegendEntry { class: series.class, name, value });
            lines.push((series, points));
        }
    }
    let values = lines.iter().flat_map(|(_, points)| points.iter().map(|(_, joules)| *joules));
    let y = Axis::from_zero("energy of a token, J", values);
    let label = format!("Energy of an output token of each model over the last {}", range.words());
    let mut chart = Chart::new(&describe(&label, &legend), times.time_axis(), y);
    for (series, points) in &lines {
        chart.polyline(LINES.get(series.column).copied().unwrap_or("line-rest"), points.iter().copied());
        chart.dots(series.class, points.iter().copied());
    }
    for (series, points) in &lines {
        if let Some(last) = points.last() {
            chart.label(*last, &short_label(&series.name));
        }
    }
    if lines.is_empty() && !times.columns.is_empty() {
        note_empty(&mut chart, times.low() / 2.0, "no request stated its tokens in this time");
    }
    times.label_time(&mut chart);
    LivePicture { id: "tokens", svg: chart.to_svg(), legend }
}

/// A bar of the picture of the requests.
struct RequestBar {
    times: RequestTimes,
    title: String,
    is_open: bool,
}

/// The requests of the last minute, each as a bar in the first row that is free.
pub fn requests_picture<'a>(
    settled: impl DoubleEndedIterator<Item = &'a RequestRow>,
    open: &[Account],
    now_unix_ns: u64,
) -> LivePicture {
    let start_unix_ns = now_unix_ns.saturating_sub(REQUESTS_S * 1_000_000_000);
    let end_unix_ns = |times: &RequestTimes| times.closed_unix_ns.unwrap_or(now_unix_ns);
    let open_bars = open.iter().map(|account| RequestBar {
        times: RequestTimes { closed_unix_ns: None, ..RequestTimes::of(account) },
        title: format!(
            "{}, {}: open",
            shown_name(&account.name),
            shown_name(&Grouping::Model.key_of(account))
        ),
        is_open: true,
    });
    let settled_bars = settled.rev().map(|row| RequestBar {
        times: row.times,
        title: format!("{}, {}: {} in {}", row.name, row.model, row.energy, row.duration),
        is_open: false,
    });
    let mut bars: Vec<RequestBar> = open_bars
        .chain(settled_bars)
        .filter(|bar| end_unix_ns(&bar.times) > start_unix_ns)
        .take(MAX_BARS)
        .collect();
    bars.sort_by_key(|bar| bar.times.opened_unix_ns);
    let seconds = |unix_ns: u64| unix_ns as i64 as f64 / 1e9 - now_unix_ns as i64 as f64 / 1e9;
    let (rows, count) = assign_rows(
        bars.iter().map(|bar| (seconds(bar.times.opened_unix_ns), seconds(end_unix_ns(&bar.times)))),
    );
    let count = count.min(MAX_ROWS);
    let low = -(REQUESTS_S as f64);
    let x = Axis { title: "", low, high: 0.0, ticks: Ticks::Hidden };
    let y = Axis {
        high: count.max(4) as f64,
        ..Axis::of_counts("requests at once", [count.max(4) as u64].into_iter())
    };
    let open_count = bars.iter().filter(|bar| bar.is_open).count();
    let label = format!("{} requests of the last minute, {open_count} of them open", bars.len());
    let mut chart = Chart::new(&label, x, y);
    for (bar, row) in bars.iter().zip(rows).filter(|(_, row)| *row < MAX_ROWS) {
        let (bottom, top) = (row as f64 + 0.12, row as f64 + 0.88);
        let (from, to) = (seconds(bar.times.opened_unix_ns).max(low), seconds(end_unix_ns(&bar.times)));
        chart.titled_rectangle("decode", (from, bottom), (to, top), &bar.title);
        if let Some(first_token_unix_ns) = bar.times.first_token_unix_ns
            && seconds(first_token_unix_ns) > from
        {
            let first_token = seconds(first_token_unix_ns).min(to);
            chart.titled_rectangle("prefill", (from, bottom), (first_token, top), &bar.title);
        }
        if bar.is_open {
            chart.polyline("mark-open", [(to, bottom), (to, top)].into_iter());
        }
    }
    for ago_s in [REQUESTS_S, REQUESTS_S / 2, 0] {
        chart.x_label(-(ago_s as f64), &time_label(ago_s));
    }
    if bars.is_empty() {
        note_empty(&mut chart, low / 2.0, "no request in the last minute");
    }
    let entry = |class, name: &str| LegendEntry { class, name: name.into(), value: String::new() };
    let legend = vec![
        entry("prefill", "until the first token (prefill)"),
        entry("decode", "from there on (decode), or without phases"),
    ];
    LivePicture { id: "requests", svg: chart.to_svg(), legend }
}

#[cfg(test)]
mod tests {
    use super::super::request_log::RequestLog;
    use super::*;
    use crate::top::account_totals::AccountTotals;
    use crate::top::test_machine::{account, snapshot};

    const NOW_UNIX_NS: u64 = 1_700_000_000_000_000_000;

    fn history() -> LiveHistory {
        let (mut history, mut totals) = (LiveHistory::new(), AccountTotals::default());
        for second in 0..=30_u64 {
            let mut snapshot = snapshot(&[
                ("package-0", 60_000_000 * second, 50_000_000 * second),
                ("dram-0", 20_000_000 * second, 0),
            ]);
            snapshot.now_ns = (100 + second) * 1_000_000_000;
            let mut request = account("s", "<b>small</b>", &[("package-0", 45_000_000, 5_000_000)]);
            request.attributes.insert("gen_ai.usage.output_tokens".into(), "30".into());
            totals.add(&request, &snapshot.counted_domains());
            let at_unix_ns = NOW_UNIX_NS - (30 - second) * 1_000_000_000;
            history.update(&snapshot, &totals, &[request], second == 0, at_unix_ns);
        }
        history
    }

    fn legend(picture: &LivePicture) -> Vec<(&str, &str)> {
        picture.legend.iter().map(|entry| (entry.name.as_str(), entry.value.as_str())).collect()
    }

    #[test]
    fn the_layers_add_up_to_the_machine() {
        let pictures = history_pictures(&history(), HistoryRange::TenMinutes, NOW_UNIX_NS);
        assert_eq!(legend(&pictures[0]), [("dram-0", "20.00 W"), ("package-0", "60.00 W")]);
        let uses = [
            ("<b>small</b>", "40.00 W"),
            ("other spans", "5.000 W"),
            ("idle part of spans", "5.000 W"),
            ("unattributed", "30.00 W"),
        ];
        assert_eq!(legend(&pictures[1]), uses);
        assert_eq!(legend(&pictures[2]), [("<b>small</b>", "50 %")]);
        assert_eq!(legend(&pictures[3]), [("<b>small</b>", "1.500 J")]);
        let ids: Vec<&str> = pictures.iter().map(|picture| picture.id).collect();
        assert_eq!(ids, ["domains", "uses", "models", "tokens"]);
        for picture in pictures {
            assert!(!picture.svg.contains("<b>"), "{}", picture.svg);
            assert!(
                picture.svg.contains("aria-label=\"") && !picture.svg.contains("no data"),
                "{}",
                picture.svg
            );
        }
    }

    #[test]
    fn without_data_each_picture_states_it() {
        let pictures = history_pictures(&LiveHistory::new(), HistoryRange::Day, NOW_UNIX_NS);
        assert!(pictures.iter().all(|picture| picture.svg.contains("no data in this time yet")));
        let none = requests_picture([].iter(), &[], NOW_UNIX_NS);
        assert!(none.svg.contains("no request in the last minute"));
    }

    #[test]
    fn requests_that_overlap_are_in_rows_of_their_own_and_have_their_phases() {
        let request = |from_s: u64, first_s: u64| {
            let mut account = account("s", "small", &[("package-0", 2_000_000, 0)]);
            account.name = "</svg><script>".into();
            account.opened_unix_ns = NOW_UNIX_NS - from_s * 1_000_000_000;
            account.phases = serde_json::from_value(serde_json::json!([
                {"name": "decode", "opened_ns": account.opened_ns + first_s * 1_000_000_000}
            ]))
            .unwrap();
            account
        };
        let mut log = RequestLog::default();
        log.add(&[request(20, 1), request(19, 1), request(100, 1)]);
        let mut open = request(5, 1);
        open.closed_ns = None;
        let picture = requests_picture(log.rows().iter(), &[open], NOW_UNIX_NS);
        assert_eq!(picture.svg.matches("<rect class=decode").count(), 3, "{}", picture.svg);
        assert_eq!(picture.svg.matches("<rect class=prefill").count(), 3, "{}", picture.svg);
        assert_eq!(picture.svg.matches("<path class=mark-open").count(), 1);
        assert!(picture.svg.contains("3 requests of the last minute, 1 of them open"));
        assert!(!picture.svg.contains("<script>") && picture.svg.contains("&lt;script&gt;"));
    }
}
