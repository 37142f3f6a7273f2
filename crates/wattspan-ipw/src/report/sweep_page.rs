//! A sweep as a self-contained HTML page: energy of a token and IPW against latency, with the Pareto fronts, and a table.
//!
//! Invariant: the page has no script and no URL that a browser would fetch.

use minijinja::{Value, context};
use wattspan_system::escape::printable_lines;

use super::super::metrics::Estimate;
use super::super::sweep::{LatencyMeasure, LimitKind, SweepPoint, SweepReport};
use super::format::format_significant;
use super::html_page::{estimate_cell, page_environment, page_style};
use super::pictures::Picture;
use super::uncertainty::with_combined;
use super::units::InverseUnit;
use wattspan_page::chart::{Axis, Chart};

const TEMPLATE: &str = include_str!("sweep.html");

/// Renders the points as two charts and a table.
pub fn render_sweep_page(report: &SweepReport) -> String {
    let environment = page_environment(TEMPLATE);
    let template = environment.get_template("page").expect("it was added just now");
    let unit = InverseUnit::of(
        report.points.iter().filter_map(|point| point.figures.per_watt.map(|figure| figure.value)),
    );
    let picture =
        |Picture { title, svg, note }| context! { title, note, svg => Value::from_safe_string(svg) };
    let pictures: Vec<Value> =
        [energy_picture(report), ipw_picture(report, unit)].into_iter().flatten().map(picture).collect();
    let values = context! {
        style => page_style(),
        basis => describe_sweep(report),
        latency => report.latency.name(),
        best => describe_best(report),
        unit => unit.name("1", "W"),
        rows => report.points.iter().map(|point| row(point, unit)).collect::<Vec<_>>(),
        pictures,
    };
    printable_lines(&template.render(values).expect("a test renders the template"))
}

/// Scope, idle policy and grade of a sweep, in one line.
pub fn describe_sweep(report: &SweepReport) -> String {
    let Some(figures) = report.points.iter().map(|point| &point.figures).max_by_key(|it| it.grade) else {
        return "no point".into();
    };
    let grade =
        figures.grade.map_or_else(|| "of unknown grade".to_owned(), |grade| grade.as_str().to_owned());
    let simulated = if figures.simulated { ", simulated" } else { "" };
    format!("{}, {}, energy {grade}{simulated}", figures.scope.title(), figures.idle.title())
}

/// The best points within the bound of the latency, one sentence each.
pub fn describe_best(report: &SweepReport) -> Vec<String> {
    let Some(best) = &report.best else { return Vec::new() };
    let bound =
        format!("{} of at most {} s", report.latency.name(), format_significant(best.latency_bound_s));
    let named = |what: &str, at: Option<usize>| {
        at.map_or_else(
            || format!("{what} at a {bound}: no point is within the bound"),
            |at| {
                let point = &report.points[at];
                let latency =
                    point.latency_s.map_or_else(String::new, |it| format!(" ({} s)", format_significant(it)));
                format!("{what} at a {bound}: {}, {} at once{latency}", point.model, point.concurrency)
            },
        )
    };
    vec![named("least energy of a token", best.energy), named("highest IPW", best.ipw)]
}

/// On which fronts a point is.
pub fn front_name(point: &SweepPoint) -> &'static str {
    match (point.on_energy_front, point.on_ipw_front) {
        (true, true) => "J/token, IPW",
        (true, false) => "J/token",
        (false, true) => "IPW",
        (false, false) => "",
    }
}

/// What limits a point, with the facts.
pub fn describe_limits(point: &SweepPoint) -> String {
    let name = |kind| match kind {
        LimitKind::Client => "the client",
        LimitKind::PowerLimit => "power limit",
        LimitKind::Server => "the server is saturated",
        LimitKind::Concurrency => "the concurrency",
        LimitKind::MeterError => "error too large",
        LimitKind::Coverage => "too few queries",
    };
    let all: Vec<String> =
        point.limits.iter().map(|limit| format!("{} ({})", name(limit.kind), limit.fact)).collect();
    if all.is_empty() { "unknown: no other concurrency to compare with".into() } else { all.join("; ") }
}

fn row(point: &SweepPoint, unit: InverseUnit) -> Value {
    let figures = &point.figures;
    let plain = |value: Option<f64>| value.map(|value| Estimate { value, interval: None });
    let ipw = with_combined(figures.per_watt, figures.per_watt_combined);
    context! {
        model => point.model.clone(),
        server => point.server.clone(),
        at_once => point.concurrency,
        queries => format!("{}{}", figures.covered, if point.steady { "" } else { " (no steady state)" }),
        cells => vec![
            estimate_cell(plain(point.latency_s).as_ref(), 1.0, ""),
            estimate_cell(plain(point.tokens_per_second).as_ref(), 1.0, ""),
            estimate_cell(point.token_j.as_ref(), 1.0, ""),
            estimate_cell(figures.accuracy.as_ref(), 100.0, " %"),
            estimate_cell(ipw.as_ref(), unit.factor, ""),
        ],
        front => front_name(point),
        limits => describe_limits(point),
    }
}

fn latency_axis(report: &SweepReport) -> Axis {
    let title = match report.latency {
        LatencyMeasure::P50 => "latency of a query, p50, s",
        LatencyMeasure::P95 => "latency of a query, p95, s",
        LatencyMeasure::P99 => "latency of a query, p99, s",
    };
    let bound = report.best.as_ref().map(|best| best.latency_bound_s);
    Axis::from_zero(title, report.points.iter().filter_map(|point| point.latency_s).chain(bound))
}

fn energy_picture(report: &SweepReport) -> Option<Picture> {
    let value = |point: &SweepPoint| Some(point.token_j?.value);
    let y = Axis::from_zero("energy of an output token, J", report.points.iter().filter_map(value));
    let svg =
        draw_points(report, "Energy of an output token against latency", y, value, |it| it.on_energy_front)?;
    Some(Picture { title: "What does a token cost at which latency?", svg, note: note("lower") })
}

fn ipw_picture(report: &SweepReport, unit: InverseUnit) -> Option<Picture> {
    let value = |point: &SweepPoint| Some(point.figures.per_watt?.value * unit.factor);
    let title = unit.choose(["IPW, 1/W", "IPW, 1/kW", "IPW, 1/MW", "IPW, 1/GW"]);
    let y = Axis::from_zero(title, report.points.iter().filter_map(value));
    let svg = draw_points(report, "Intelligence per watt against latency", y, value, |it| it.on_ipw_front)?;
    Some(Picture { title: "How much intelligence per watt at which latency?", svg, note: note("higher") })
}

fn note(better: &str) -> String {
    format!(
        "Dots and the line are the Pareto front, crosses the points that another one surpasses; {better} and further left is better. \
         Numbers: queries at once."
    )
}

/// Draws the points, the front as a line and the bound; `None` without a point.
fn draw_points(
    report: &SweepReport,
    label: &str,
    y: Axis,
    value: impl Fn(&SweepPoint) -> Option<f64>,
    is_on_front: impl Fn(&SweepPoint) -> bool,
) -> Option<String> {
    let mut chart = Chart::new(label, latency_axis(report), y);
    let placed: Vec<(&SweepPoint, (f64, f64))> =
        report.points.iter().filter_map(|point| Some((point, (point.latency_s?, value(point)?)))).collect();
    let mut front: Vec<(f64, f64)> =
        placed.iter().filter(|(point, _)| is_on_front(point)).map(|(_, at)| *at).collect();
    front.sort_by(|one, other| one.0.total_cmp(&other.0));
    chart.polyline("curve", front.iter().copied());
    chart.crosses("wrong", placed.iter().filter(|(point, _)| !is_on_front(point)).map(|(_, at)| *at));
    chart.dots("dot", front.into_iter());
    if let Some(best) = &report.best {
        chart.marker_line(best.latency_bound_s, "bound");
    }
    let several = placed.iter().any(|(point, _)| point.model != placed[0].0.model);
    for (point, at) in &placed {
        let model: String = point.model.chars().take(14).collect();
        let name =
            if several { format!("{model} {}", point.concurrency) } else { point.concurrency.to_string() };
        chart.label(*at, &name);
    }
    (!placed.is_empty()).then(|| chart.to_svg())
}
