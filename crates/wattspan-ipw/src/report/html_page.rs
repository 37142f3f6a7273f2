//! The report as a self-contained HTML page.
//!
//! Chooses the charts and formats the figures. The text is a template (`report.html`, escaped by minijinja) with
//! inline styles and charts. Invariant: the page has no script and no URL that a browser would fetch.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use wattspan_system::escape::printable_lines;

use super::super::metrics::{EfficiencyMetrics, Estimate};
use super::super::run_settings::describe_workload;
use super::super::statistics::Distribution;
use super::chart::{Axis, Chart};
use super::format::{format_estimate, format_inverse, format_significant, quantity_label};
use super::plot_data::PlotData;
use super::uncertainty::{figure_uncertainties, with_combined};
use super::units::InverseUnit;
use super::{PhaseEnergy, Report};

const TEMPLATE: &str = include_str!("report.html");

/// Renders the page of a report.
pub fn render_page(report: &Report) -> String {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("page", TEMPLATE).expect("a test renders the template");
    let template = environment.get_template("page").expect("it was added just now");
    let steady_state = report.steady_state.iter().map(|steady| &steady.figures);
    let rows: Vec<_> = std::iter::once(&report.all).chain(steady_state).chain(&report.subjects).collect();
    let (units, scope_units) =
        (ColumnUnits::of(&rows), ColumnUnits::of(&report.scopes.iter().collect::<Vec<_>>()));
    let rows: Vec<Value> = rows.into_iter().map(|metrics| metrics_row(metrics, units)).collect();
    let charts: Vec<Value> = charts(report)
        .into_iter()
        .map(|(title, chart, note)| context! { title, note, svg => Value::from_safe_string(chart.to_svg()) })
        .collect();
    let values = context! {
        report => Value::from(Serde(report)),
        headline => headline_tiles(&report.all),
        units => units.names(),
        scope_units => scope_units.names(),
        uncertainties => Value::from(Serde(figure_uncertainties(&report.all))),
        remarks => report.remarks(),
        partial_notice => report.partial_notice(),
        pace => describe_workload(&report.run.settings),
        sum_j => format_significant(report.sum.energy_j),
        cost => report.sum.cost.map(format_significant),
        co2_g => report.sum.co2_g.map(format_significant),
        cached_percent => report.cached_part.map(|part| format_significant(part * 100.0)),
        power_error => report.all.power_error_w.map(format_significant),
        idle => report.idle.title(),
        scope => report.scope.title(),
        rows,
        scopes => report.scopes.iter().map(|metrics| metrics_row(metrics, scope_units)).collect::<Vec<_>>(),
        spreads => report.spreads.iter().map(|(name, distribution)| distribution_row(name, distribution)).collect::<Vec<_>>(),
        pictures => charts,
    };
    let page =
        template.render(values).expect("a test renders the template with every part absent and present");
    // The rendered text is sanitized here once, so that it covers all names, servers, failures and chart labels.
    printable_lines(&page)
}

/// Formats a figure with its interval below it.
fn estimate_cell(estimate: Option<&Estimate>, scale: f64, unit: &str) -> Value {
    let Some(estimate) = estimate else { return context! { value => "\u{2013}" } };
    let interval = estimate.interval.map(|it| {
        format!("{} .. {}", format_significant(it.low * scale), format_significant(it.high * scale))
    });
    context! { value => format!("{}{unit}", format_significant(estimate.value * scale)), interval }
}

/// The units of a table's columns per watt, per joule, and of tokens per joule.
#[derive(Clone, Copy)]
struct ColumnUnits([InverseUnit; 3]);

impl ColumnUnits {
    fn of(rows: &[&EfficiencyMetrics]) -> Self {
        let unit = |of: fn(&EfficiencyMetrics) -> Option<Estimate>| {
            InverseUnit::of(rows.iter().filter_map(|metrics| Some(of(metrics)?.value)))
        };
        Self([unit(|it| it.per_watt), unit(|it| it.per_joule), unit(|it| it.tokens_per_joule)])
    }

    fn names(self) -> Vec<String> {
        let Self([per_watt, per_joule, tokens]) = self;
        vec![per_watt.name("1", "W"), per_joule.name("1", "J"), tokens.name("tokens", "J")]
    }
}

fn metrics_row(
    metrics: &EfficiencyMetrics,
    ColumnUnits([per_watt, per_joule, tokens]): ColumnUnits,
) -> Value {
    let both = |figure, combined, factor, unit| {
        estimate_cell(with_combined(figure, combined).as_ref(), factor, unit)
    };
    context! {
        of => format!("{}{}", metrics.of, if metrics.partial { " (partial)" } else { "" }),
        at_once => metrics.concurrency.map(|at_once| at_once.to_string()).or_else(|| {
            metrics.queries_per_second.map(|rate| format!("{}/s", format_significant(rate)))
        }),
        scope => metrics.scope.title(),
        idle => metrics.idle.title(),
        grade => metrics.grade.map_or(Value::from("unknown"), |grade| Value::from(Serde(grade))),
        covered => format!("{} of {}", metrics.covered, metrics.asked),
        error => metrics.energy_error_j.map(format_significant),
        perplexity => metrics.perplexity.map(|_| format_estimate(metrics.perplexity.as_ref(), 1.0, "")),
        perplexity_per_watt => format_inverse(metrics.perplexity_per_watt.as_ref(), "W"),
        perplexity_per_joule => format_inverse(metrics.perplexity_per_joule.as_ref(), "J"),
        cells => vec![
            estimate_cell(metrics.accuracy.as_ref(), 100.0, " %"),
            both(metrics.energy_j, metrics.energy_combined_j, 1.0, " J"),
            both(metrics.power_w, metrics.power_combined_w, 1.0, " W"),
            estimate_cell(metrics.attributed_power_w.as_ref(), 1.0, " W"),
            both(metrics.per_watt, metrics.per_watt_combined, per_watt.factor, ""),
            both(metrics.per_joule, metrics.per_joule_combined, per_joule.factor, ""),
            estimate_cell(metrics.tokens_per_joule.as_ref(), tokens.factor, ""),
            estimate_cell(metrics.queries_per_kwh.as_ref(), 1.0, ""),
        ],
    }
}

fn headline_tiles(all: &EfficiencyMetrics) -> Vec<Value> {
    let tile = |name, cell: Value, unit: &str| context! { name, cell, unit };
    let both = |figure, combined, factor, unit| {
        estimate_cell(with_combined(figure, combined).as_ref(), factor, unit)
    };
    let ColumnUnits([per_watt, per_joule, _]) = ColumnUnits::of(&[all]);
    let of = if all.covered > 0 { "of the covered queries" } else { "of the scored queries" };
    vec![
        tile(
            "intelligence per watt",
            both(all.per_watt, all.per_watt_combined, per_watt.factor, ""),
            &per_watt.name("accuracy", "W"),
        ),
        tile(
            "intelligence per joule",
            both(all.per_joule, all.per_joule_combined, per_joule.factor, ""),
            &per_joule.name("accuracy", "J"),
        ),
        tile("accuracy", estimate_cell(all.accuracy.as_ref(), 100.0, " %"), of),
        tile("energy", both(all.energy_j, all.energy_combined_j, 1.0, " J"), "mean share of a query"),
        tile(
            "power",
            both(all.power_w, all.power_combined_w, 1.0, " W"),
            "mean of the machine while a query was open",
        ),
        tile(
            "attributed power",
            estimate_cell(all.attributed_power_w.as_ref(), 1.0, " W"),
            "mean share over time of a query",
        ),
    ]
}

fn distribution_row(name: &str, distribution: &Distribution) -> Value {
    let all = [
        distribution.mean,
        distribution.least,
        distribution.p5,
        distribution.p50,
        distribution.p95,
        distribution.p99,
        distribution.most,
    ];
    context! { name => quantity_label(name), count => distribution.count, values => all.map(format_significant).to_vec() }
}

/// A chart with the title above it and the note below it.
type TitledChart = (&'static str, Chart, String);

fn charts(report: &Report) -> Vec<TitledChart> {
    let accuracy_note = "Each point is a subject, with 95 % intervals.".to_owned();
    let mut all = vec![("Accuracy against energy", accuracy_chart(report), accuracy_note)];
    all.extend(token_chart(report).map(|chart| ("Energy against tokens", chart, token_note(&report.points))));
    all.extend(distribution_charts(report));
    all.extend(report.phases.as_ref().map(|phases| {
        let note = format!("Over {} queries with both.", phases.count);
        ("Prefill and decode", phase_chart(phases), note)
    }));
    if !report.points.timeline.is_empty() {
        all.push(("Power over time", timeline_chart(&report.points), timeline_note(report)));
    }
    all
}

fn token_note(points: &PlotData) -> String {
    let sample_note = if points.queries.len() < points.query_count {
        format!("{} of {} queries are drawn.", points.queries.len(), points.query_count)
    } else {
        String::new()
    };
    format!("Green: right; orange: wrong or not scored. The line is the least-squares fit. {sample_note}")
}

fn distribution_charts(report: &Report) -> impl Iterator<Item = TitledChart> {
    let titles = [
        ("energy_j", "How energy spreads"),
        ("duration_s", "How time spreads"),
        ("first_token_s", "How the time to the first token spreads"),
        ("power_w", "How the machine's power spreads"),
        ("attributed_power_w", "How attributed power spreads"),
    ];
    titles.into_iter().filter_map(|(name, title)| {
        let distribution = report.spreads.get(name)?;
        Some((title, histogram(name, distribution), String::new()))
    })
}

fn phase_chart(phases: &PhaseEnergy) -> Chart {
    let joules =
        Axis::from_zero("mean energy of a query, J", [phases.prefill_j, phases.decode_j].into_iter());
    let mut chart = Chart::new(
        "Energy of prefill and decode",
        Axis { title: "", low: 0.0, high: 2.0, has_numbers: false },
        joules,
    );
    chart.rectangle("prefill", (0.3, 0.0), (0.7, phases.prefill_j));
    chart.rectangle("decode", (1.3, 0.0), (1.7, phases.decode_j));
    chart.x_label(0.5, "prefill, until the first token");
    chart.x_label(1.5, "decode, from there on");
    chart
}

fn timeline_note(report: &Report) -> String {
    let curve = if report.points.measured_power.is_empty() {
        format!("the sum of the open queries' shares, {}", report.idle.title())
    } else {
        "all that the domains of the scope drew, idle power included".to_owned()
    };
    format!(
        "The curve: {curve}. Below it a bar for each of the first {} queries: dark until its first token, then light.",
        report.points.timeline.len()
    )
}

fn accuracy_chart(report: &Report) -> Chart {
    let of: Vec<&EfficiencyMetrics> =
        if report.subjects.is_empty() { vec![&report.all] } else { report.subjects.iter().collect() };
    let high =
        |estimate: &Estimate| estimate.interval.map_or(estimate.value, |it| it.high.max(estimate.value));
    let x = Axis::from_zero(
        "mean energy of a query, J",
        of.iter().filter_map(|it| it.energy_j.as_ref().map(high)),
    );
    let mut chart = Chart::new(
        "Accuracy against mean energy",
        x,
        Axis { title: "accuracy", low: 0.0, high: 1.0, has_numbers: true },
    );
    for metrics in of {
        let (Some(energy), Some(accuracy)) = (metrics.energy_j, metrics.accuracy) else { continue };
        let range = |estimate: Estimate| {
            estimate.interval.map_or((estimate.value, estimate.value), |it| (it.low, it.high))
        };
        chart.point_with_intervals(
            "dot",
            &metrics.of,
            (energy.value, accuracy.value),
            range(energy),
            range(accuracy),
        );
    }
    chart
}

fn token_chart(report: &Report) -> Option<Chart> {
    let line = report.lines.get("energy_j by tokens")?;
    let queries = &report.points.queries;
    let with_tokens = || queries.iter().filter_map(|point| Some((point.tokens?, point)));
    let x = Axis::from_zero("tokens of prompt and answer", with_tokens().map(|(tokens, _)| tokens));
    let y = Axis::from_zero("energy of a query, J", with_tokens().map(|(_, point)| point.energy_j));
    let mut chart = Chart::new("Energy of each query against its tokens", x, y);
    let of = |right: bool| {
        with_tokens()
            .filter(move |(_, point)| (point.score.unwrap_or(0.0) >= 0.5) == right)
            .map(|(tokens, point)| (tokens, point.energy_j))
    };
    chart.points("wrong", of(false));
    chart.points("dot", of(true));
    chart.line_segment("fit", [x.low, x.high].map(|x| (x, line.intercept + line.slope * x)));
    Some(chart)
}

fn histogram(name: &str, distribution: &Distribution) -> Chart {
    let title = match name {
        "energy_j" => "energy of a query, J",
        "duration_s" => "time of a query, s",
        "first_token_s" => "time to the first token, s",
        "power_w" => "power of the machine while a query was open, W",
        _ => "attributed power of a query, W",
    };
    let filled = distribution.bars.iter().filter(|(_, count)| *count > 0).map(|(edge, _)| *edge);
    let x = Axis::fitted(title, distribution.least, filled.fold(distribution.least, f64::max));
    let y = Axis::from_zero("queries", distribution.bars.iter().map(|(_, count)| *count as f64));
    let mut chart = Chart::new("Histogram", x, y);
    let width =
        distribution.bars.first().zip(distribution.bars.get(1)).map_or(0.0, |(one, two)| two.0 - one.0);
    for (edge, count) in distribution.bars.iter().filter(|(_, count)| *count > 0) {
        chart.rectangle("bar", (edge - width, 0.0), (*edge, *count as f64));
    }
    chart
}

fn timeline_chart(points: &PlotData) -> Chart {
    const TIMELINE_RATIO: f64 = 0.6;
    let curve =
        if points.measured_power.is_empty() { &points.attributed_power } else { &points.measured_power };
    // The axis ends at the last query's end; rounding up would leave a quarter of a long run's chart empty.
    let end = points.timeline.iter().map(|bar| bar.to_s).fold(0.0, f64::max);
    let x = Axis {
        title: "seconds since the first query",
        low: 0.0,
        high: if end > 0.0 { end } else { 1.0 },
        has_numbers: true,
    };
    let y = Axis::from_zero("W", curve.iter().map(|(_, watts)| *watts)).with_room_below(TIMELINE_RATIO);
    let mut chart = Chart::new("Power over time, and below it when each query was open", x, y);
    let mut lanes: Vec<f64> = Vec::new();
    let mut placed = Vec::new();
    for bar in &points.timeline {
        let lane = lanes.iter().position(|free_s| *free_s <= bar.from_s).unwrap_or(lanes.len());
        if lane == lanes.len() {
            lanes.push(0.0);
        }
        lanes[lane] = bar.to_s;
        placed.push((lane, bar));
    }
    // A single lane does not need the full height.
    let tall = -y.low * 0.92 / lanes.len().max(4) as f64;
    for (lane, bar) in placed {
        let high = y.low * 0.06 - lane as f64 * tall;
        let low = high - tall * 0.8;
        let class = if bar.answered { "decode" } else { "failed" };
        chart.rectangle(class, (bar.from_s, low), (bar.to_s, high));
        if let Some(first) = bar.first_token_s {
            chart.rectangle("prefill", (bar.from_s, low), (bar.from_s + first, high));
        }
    }
    chart.polyline("curve", curve.iter().copied());
    chart
}

#[cfg(test)]
mod tests {
    use wattspan_client::domain::Grade;

    use super::super::super::metrics::MetricOptions;
    use super::super::super::question;
    use super::super::super::row::{QueryEnergy, QueryRow, ReplyText};
    use super::super::super::run_dir::{FORMAT_VERSION, Manifest, RunDir};
    use super::super::super::scope::{IdlePolicy, Scope};
    use super::super::super::table::RunTable;
    use super::super::EnergyPrices;
    use super::*;

    fn rendered(rows: &[QueryRow], label: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let questions = question::built_in();
        let fingerprint = question::fingerprint(&questions);
        let manifest =
            Manifest { version: FORMAT_VERSION, fingerprint, label: label.into(), ..Manifest::default() };
        let mut run = RunDir::create(dir.path(), &manifest, &questions).unwrap();
        rows.iter().for_each(|row| run.append_row(row, &ReplyText::default()).unwrap());
        let table = RunTable::read(dir.path()).unwrap();
        let options = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included };
        render_page(&Report::new(
            &table,
            &options,
            EnergyPrices { per_kwh: Some(0.3), co2_g_per_kwh: Some(400.0) },
        ))
    }

    #[test]
    fn a_page_is_complete_and_self_contained() {
        let row = |id: u64| {
            let energy = QueryEnergy {
                window_uj: Some(4_000_000 + id * 200_000),
                at_once: 2,
                share_uj: Some(2_000_000 + id * 100_000),
                error_uj: Some(50_000),
                idle_uj: Some(500_000),
                prefill_uj: Some(500_000),
                decode_uj: Some(1_500_000 + id * 100_000),
                span_ns: 1_000_000_000,
                grade: Some(Grade::Measured),
                ..QueryEnergy::default()
            };
            QueryRow {
                id: id.to_string(),
                subject: ["sums", "words"][id as usize % 2].into(),
                score: Some(id.is_multiple_of(3).into()),
                began_ns: id * 300_000_000,
                duration_ns: 1_000_000_000,
                first_token_ns: Some(200_000_000),
                tokens_in: Some(20 + id),
                tokens_out: Some(10 + id),
                energy: Some(energy),
                ..QueryRow::default()
            }
        };
        let mut rows: Vec<QueryRow> = (0..40).map(row).collect();
        rows.push(QueryRow { id: "x".into(), error: Some("<timed out>".into()), ..QueryRow::default() });
        let page = rendered(&rows, "<script>alert(1)</script>");
        assert_eq!(page.matches("<svg").count(), 9);
        for wanted in [
            "40 of 41",
            "&lt;script&gt;",
            "&lt;timed out&gt;",
            "J guarantee".split(' ').next().unwrap(),
            "measured",
            "± 0.0500",
        ] {
            assert!(page.contains(wanted), "{wanted} is missing");
        }
        for forbidden in ["<script", "http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(forbidden), "{forbidden} is in the page");
        }
    }

    #[test]
    fn the_fit_line_is_drawn_with_its_slope() {
        // Energy in J is 0.2 × tokens - 10, negative for short queries.
        let row = |id: u64| {
            let energy = QueryEnergy {
                share_uj: Some(id * 200_000 * 2 - 10_000_000),
                span_ns: 1_000_000_000,
                ..QueryEnergy::default()
            };
            let tokens = Some(id);
            QueryRow {
                id: id.to_string(),
                tokens_in: tokens,
                tokens_out: tokens,
                energy: Some(energy),
                ..QueryRow::default()
            }
        };
        let page = rendered(&(30..80).map(row).collect::<Vec<_>>(), "");
        let figure = page.split("<b>Energy against tokens</b>").nth(1).unwrap();
        let number = |text: &str| text.parse::<f64>().unwrap();
        let path = figure.split("<path class=fit d='M").nth(1).unwrap().split('\'').next().unwrap();
        let ends: Vec<f64> = path.split(['L', ' ']).map(number).collect();
        let slope = (ends[3] - ends[1]) / (ends[2] - ends[0]);
        let value =
            |circle: &str, name: &str| number(circle.split(name).nth(1).unwrap().split(' ').next().unwrap());
        let dots: Vec<(f64, f64)> =
            figure.split("<circle").skip(1).map(|it| (value(it, "cx="), value(it, "cy="))).collect();
        let (first, last) = (dots[0], dots[49]);
        let truth = (last.1 - first.1) / (last.0 - first.0);
        assert!((slope / truth - 1.0).abs() < 0.01, "{slope}, and the points rise by {truth}");
        assert!((ends[1] + slope * (first.0 - ends[0]) - first.1).abs() < 0.5, "the line misses its points");
    }

    #[test]
    fn a_run_without_answers_renders() {
        let page = rendered(
            &[QueryRow { id: "x".into(), error: Some("refused".into()), ..QueryRow::default() }],
            "",
        );
        assert!(page.contains("0 of 1 queries covered") && page.contains("gave no guaranteed error"));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}
