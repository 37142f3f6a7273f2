//! The pictures of the page: which there are, and what each shows.
//!
//! The title of a picture is the question that it answers. Right and wrong answers differ in shape and lightness, so that
//! colour is never the only difference.

use wattspan_page::chart::{Axis, Chart, Ticks};
use wattspan_page::timeline::assign_rows;

use super::super::metrics::{EfficiencyMetrics, Estimate};
use super::super::statistics::Distribution;
use super::format::format_significant;
use super::interval_rows::{IntervalRow, draw_interval_rows};
use super::plot_data::PlotData;
use super::{PhaseEnergy, Report};

/// The maximum number of subjects in a picture.
const MAX_SUBJECTS: usize = 40;

/// A picture with the question above it and the note below it.
#[derive(Debug)]
pub struct Picture {
    pub title: &'static str,
    pub svg: String,
    pub note: String,
}

/// Draws all pictures for which the run has data.
pub fn draw_pictures(report: &Report) -> Vec<Picture> {
    let mut all = vec![subjects_picture(report)];
    all.extend(tokens_picture(report));
    all.extend(report.phases.as_ref().map(phases_picture));
    if !report.points.timeline.is_empty() {
        all.push(timeline_picture(report));
    }
    all.extend(distribution_pictures(report));
    all
}

fn subjects_picture(report: &Report) -> Picture {
    let mut of: Vec<&EfficiencyMetrics> =
        if report.subjects.is_empty() { vec![&report.all] } else { report.subjects.iter().collect() };
    let energy = |metrics: &EfficiencyMetrics| metrics.energy_j.map_or(-1.0, |energy| energy.value);
    of.sort_by(|one, other| energy(other).total_cmp(&energy(one)));
    let note = if of.len() > MAX_SUBJECTS {
        format!("The {MAX_SUBJECTS} of {} subjects that cost most. ", of.len())
    } else {
        String::new()
    };
    of.truncate(MAX_SUBJECTS);
    let percent = |figure: Estimate| Estimate {
        value: figure.value * 100.0,
        interval: figure.interval.map(|mut it| {
            (it.low, it.high) = (it.low * 100.0, it.high * 100.0);
            it
        }),
    };
    let row = |metrics: &&EfficiencyMetrics| IntervalRow {
        name: metrics.of.clone(),
        figures: [metrics.energy_j, metrics.accuracy.map(percent)],
    };
    let rows: Vec<IntervalRow> = of.iter().map(row).collect();
    let high = |it: &Estimate| it.interval.map_or(it.value, |interval| interval.high.max(it.value));
    let energies = rows.iter().filter_map(|row| row.figures[0].as_ref().map(high));
    let columns = [Axis::from_zero("mean energy of a query, J", energies), Axis::of_percent("accuracy, %")];
    Picture {
        title: "Which subject costs what, and is it right?",
        svg: draw_interval_rows("Mean energy and accuracy of each subject", columns, &rows),
        note: format!("{note}Lines are 95 % intervals over the choice of questions."),
    }
}

fn tokens_picture(report: &Report) -> Option<Picture> {
    let line = report.lines.get("energy_j by tokens")?;
    let points = &report.points;
    let with_tokens = || points.queries.iter().filter_map(|point| Some((point.tokens?, point)));
    let x = Axis::from_zero("tokens of prompt and answer", with_tokens().map(|(tokens, _)| tokens));
    let y = Axis::from_zero("energy of a query, J", with_tokens().map(|(_, point)| point.energy_j));
    let mut chart = Chart::new("Energy of each query against its tokens", x, y);
    let of = |right: bool| {
        with_tokens()
            .filter(move |(_, point)| (point.score.unwrap_or(0.0) >= 0.5) == right)
            .map(|(tokens, point)| (tokens, point.energy_j))
    };
    chart.crosses("wrong", of(false));
    chart.dots("dot", of(true));
    chart.line_segment("fit", [x.low, x.high].map(|x| (x, line.intercept + line.slope * x)));
    let sample_note = if points.queries.len() < points.query_count {
        format!(" {} of {} queries are drawn.", points.queries.len(), points.query_count)
    } else {
        String::new()
    };
    Some(Picture {
        title: "What does one more token cost?",
        svg: chart.to_svg(),
        note: format!(
            "{} J for each further token: the slope of the least-squares line. Dot: right; cross: wrong or not scored.{sample_note}",
            format_significant(line.slope)
        ),
    })
}

fn phases_picture(phases: &PhaseEnergy) -> Picture {
    let energies = [phases.prefill_j, phases.decode_j];
    let joules = Axis::from_zero("mean energy of a query, J", energies.iter().map(|joules| joules * 1.08));
    let categories = Axis { title: "", low: 0.0, high: 2.0, ticks: Ticks::Hidden };
    let mut chart = Chart::new("Mean energy of prefill and of decode", categories, joules);
    let bars = [("prefill", "prefill, until the first token"), ("decode", "decode, from there on")];
    for (nth, ((class, name), joules)) in bars.into_iter().zip(energies).enumerate() {
        let left = nth as f64;
        chart.rectangle(class, (left + 0.3, 0.0), (left + 0.7, joules));
        chart.column_label((left + 0.5, joules), &format!("{} J", format_significant(joules)));
        chart.x_label(left + 0.5, name);
    }
    Picture {
        title: "Which costs more, reading the prompt or writing the answer?",
        svg: chart.to_svg(),
        note: format!("Over {} queries with both.", phases.count),
    }
}

fn distribution_pictures(report: &Report) -> impl Iterator<Item = Picture> {
    let all = [
        ("energy_j", "How much do queries differ in energy?", "energy of a query, J"),
        ("duration_s", "How long does a query take?", "time of a query, s"),
        ("first_token_s", "How long until the first token?", "time to the first token, s"),
        (
            "power_w",
            "At what power does the machine answer?",
            "power of the machine while a query was open, W",
        ),
        ("attributed_power_w", "What power is attributed to a query?", "attributed power of a query, W"),
    ];
    all.into_iter().filter_map(|(name, title, axis)| {
        let chart = histogram(axis, report.spreads.get(name)?);
        Some(Picture { title, svg: chart.to_svg(), note: String::new() })
    })
}

fn histogram(title: &'static str, distribution: &Distribution) -> Chart {
    let bins = || distribution.bars.iter().filter(|(_, count)| *count > 0);
    let end = bins().map(|(edge, _)| *edge).fold(distribution.least, f64::max).max(distribution.p95);
    let x = Axis::fitted(title, distribution.least, end);
    // The room above the bars holds the names of the lines.
    let y = Axis::of_counts("queries", bins().map(|(_, count)| count + count / 4));
    let mut chart = Chart::new(&format!("Histogram: {title}"), x, y);
    let width =
        distribution.bars.first().zip(distribution.bars.get(1)).map_or(0.0, |(one, two)| two.0 - one.0);
    for (edge, count) in bins() {
        chart.rectangle("bar", (edge - width, 0.0), (*edge, *count as f64));
    }
    for (name, value) in [("median", distribution.p50), ("95 % below", distribution.p95)] {
        chart.marker_line(value, &format!("{name} {}", format_significant(value)));
    }
    chart
}

fn timeline_picture(report: &Report) -> Picture {
    let points = &report.points;
    let curve = if points.has_measured_power {
        "all that the domains of the scope drew, idle power included".to_owned()
    } else {
        format!("the sum of the open queries' shares, {}", report.idle.title())
    };
    let band = if points.power.iter().any(|of| of.least_w < of.most_w) {
        " The line is the mean, the band reaches from the lowest to the highest value."
    } else {
        ""
    };
    let shown = points.timeline.len();
    Picture {
        title: "When did the machine draw what?",
        svg: timeline_chart(points).to_svg(),
        note: format!(
            "The curve: {curve}.{band} Below it a bar for each of the first {shown} queries: dark until its first token, \
             then light; hollow if it failed."
        ),
    }
}

fn timeline_chart(points: &PlotData) -> Chart {
    const TIMELINE_RATIO: f64 = 0.6;
    // The axis ends at the last query's end; rounding up would leave a quarter of a long run's chart empty.
    let end = points.timeline.iter().map(|bar| bar.to_s).fold(0.0, f64::max);
    let x = Axis {
        title: "seconds since the first query",
        low: 0.0,
        high: if end > 0.0 { end } else { 1.0 },
        ticks: Ticks::Numbers,
    };
    let y =
        Axis::from_zero("power, W", points.power.iter().map(|of| of.most_w)).with_room_below(TIMELINE_RATIO);
    let mut chart = Chart::new("Power over time, and below it when each query was open", x, y);
    let (rows, row_count) = assign_rows(points.timeline.iter().map(|bar| (bar.from_s, bar.to_s)));
    // A single row does not need the full height.
    let tall = -y.low * 0.92 / row_count.max(4) as f64;
    for (row, bar) in rows.into_iter().zip(&points.timeline) {
        let high = y.low * 0.06 - row as f64 * tall;
        let low = high - tall * 0.8;
        let class = if bar.answered { "decode" } else { "failed" };
        chart.rectangle(class, (bar.from_s, low), (bar.to_s, high));
        if let Some(first) = bar.first_token_s {
            chart.rectangle("prefill", (bar.from_s, low), (bar.from_s + first, high));
        }
    }
    let band: Vec<_> = points.power.iter().map(|of| (of.at_s, of.least_w, of.most_w)).collect();
    chart.band("band", &band);
    chart.polyline("curve", points.power.iter().map(|of| (of.at_s, of.mean_w)));
    chart
}
