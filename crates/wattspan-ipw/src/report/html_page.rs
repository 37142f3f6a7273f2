//! The report as a self-contained HTML page.
//!
//! Formats the figures. The text is a template (`report.html`, escaped by minijinja) with inline styles and pictures. Invariant: the page has no script and no URL that a browser would fetch.

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};
use wattspan_system::escape::printable_lines;

use super::super::metrics::{EfficiencyMetrics, Estimate};
use super::super::run_settings::describe_workload;
use super::super::statistics::Distribution;
use super::Report;
use super::format::{format_estimate, format_inverse, format_significant, quantity_label};
use super::pictures::{Picture, draw_pictures};
use super::uncertainty::{figure_uncertainties, with_combined};
use super::units::InverseUnit;

const TEMPLATE: &str = include_str!("report.html");

/// Returns the style of all pages, as a value of their templates.
pub(super) fn page_style() -> Value {
    Value::from_safe_string(wattspan_page::STYLE.to_owned())
}

/// Returns an environment with a page's template, "page".
pub(super) fn page_environment(template: &'static str) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("page", template).expect("a test renders the template");
    environment
}

/// Renders the page of a report.
pub fn render_page(report: &Report) -> String {
    let environment = page_environment(TEMPLATE);
    let template = environment.get_template("page").expect("it was added just now");
    let steady_state = report.steady_state.iter().map(|steady| &steady.figures);
    let rows: Vec<_> = std::iter::once(&report.all).chain(steady_state).chain(&report.subjects).collect();
    let (units, scope_units) =
        (ColumnUnits::of(&rows), ColumnUnits::of(&report.scopes.iter().collect::<Vec<_>>()));
    let rows: Vec<Value> = rows.into_iter().map(|metrics| metrics_row(metrics, units)).collect();
    let picture =
        |Picture { title, svg, note }| context! { title, note, svg => Value::from_safe_string(svg) };
    let pictures: Vec<Value> = draw_pictures(report).into_iter().map(picture).collect();
    let values = context! {
        style => page_style(),
        report => Value::from(Serde(report)),
        headline => headline_tiles(report),
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
        pictures,
    };
    let page =
        template.render(values).expect("a test renders the template with every part absent and present");
    // The rendered text is sanitized here once, so that it covers all names, servers, failures and chart labels.
    printable_lines(&page)
}

/// Formats a figure with its interval below it.
pub(super) fn estimate_cell(estimate: Option<&Estimate>, scale: f64, unit: &str) -> Value {
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
        at_once => concurrency_text(metrics),
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

/// The figures that the first screen shows: how right, how much energy, at what power, how many at once, how sure.
fn headline_tiles(report: &Report) -> Vec<Value> {
    let all = &report.all;
    let tile = |name: &str, cell: Value, note: &str| context! { name, cell, note };
    let both = |figure, combined, factor, unit| {
        estimate_cell(with_combined(figure, combined).as_ref(), factor, unit)
    };
    let ColumnUnits([per_watt, per_joule, _]) = ColumnUnits::of(&[all]);
    let of =
        if all.covered > 0 { "of the covered queries are right" } else { "of the scored queries are right" };
    let relative = |error: Option<f64>, figure: Option<Estimate>| {
        error.zip(figure).map(|(error, figure)| error / figure.value.abs() * 100.0)
    };
    let sure = relative(all.energy_error_j, all.energy_j);
    let sure =
        sure.map_or("no bound".to_owned(), |percent| format!("\u{b1} {} %", format_significant(percent)));
    let grade = all.grade.map_or_else(|| "of unknown grade".to_owned(), |grade| grade.as_str().to_owned());
    let at_once = concurrency_text(all).unwrap_or_else(|| "unknown".into());
    vec![
        tile("accuracy", estimate_cell(all.accuracy.as_ref(), 100.0, " %"), of),
        tile(
            "energy of a query",
            both(all.energy_j, all.energy_combined_j, 1.0, " J"),
            "mean share, all tries together",
        ),
        tile(
            "power of the machine",
            both(all.power_w, all.power_combined_w, 1.0, " W"),
            "mean while a query was open",
        ),
        tile("queries at once", context! { value => at_once }, "each figure depends on it"),
        tile(
            "intelligence per watt",
            both(all.per_watt, all.per_watt_combined, per_watt.factor, ""),
            &format!("accuracy / power, {}", per_watt.name("1", "W")),
        ),
        tile(
            "intelligence per joule",
            both(all.per_joule, all.per_joule_combined, per_joule.factor, ""),
            &format!("accuracy / energy, {}", per_joule.name("1", "J")),
        ),
        tile("error of the meter", context! { value => sure }, &format!("of the energy, which is {grade}")),
        tile(
            "attributed power",
            estimate_cell(all.attributed_power_w.as_ref(), 1.0, " W"),
            "mean share over time of a query",
        ),
    ]
}

/// How many queries were open at once, or began each second.
fn concurrency_text(metrics: &EfficiencyMetrics) -> Option<String> {
    let at_once = metrics.concurrency.map(|at_once| at_once.to_string());
    at_once.or_else(|| Some(format!("{}/s", format_significant(metrics.queries_per_second?))))
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
        let manifest = Manifest {
            version: FORMAT_VERSION,
            fingerprint,
            label: label.into(),
            settings: [("at once".into(), "2".into())].into(),
            ..Manifest::default()
        };
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
        let titles: Vec<&str> =
            page.split("<figure><b>").skip(1).filter_map(|rest| rest.split("</b>").next()).collect();
        assert!(titles.len() == 9 && titles.iter().all(|title| title.ends_with('?')), "{titles:?}");
        // 50 mJ of 3.95 J. The first screen has the concurrency, the meter's error and both phases' energies are labelled.
        let tile = |name: &str| {
            page.split(&format!("<span>{name}</span><b>")).nth(1).and_then(|it| it.split("</b>").next())
        };
        assert_eq!(
            (tile("queries at once"), tile("error of the meter")),
            (Some("2"), Some("\u{b1} 1.266 %"))
        );
        assert!(page.contains(">0.5000 J</text>") && page.contains("<details><summary>By scope"));
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
                score: Some(1.0),
                tokens_in: tokens,
                tokens_out: tokens,
                energy: Some(energy),
                ..QueryRow::default()
            }
        };
        let page = rendered(&(30..80).map(row).collect::<Vec<_>>(), "");
        let figure = page.split("<b>What does one more token cost?</b>").nth(1).unwrap();
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
