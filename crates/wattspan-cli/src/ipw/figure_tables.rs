//! Tables of a run's figures for the terminal.
//!
//! Figures are always shown with their scope, idle policy, grade and coverage.

use std::collections::BTreeMap;

use wattspan_client::domain::Grade;
use wattspan_ipw::compare::Difference;
use wattspan_ipw::metrics::{EfficiencyMetrics, Estimate};
use wattspan_ipw::report::Report;
use wattspan_ipw::report::format::{format_estimate, format_inverse, format_significant, quantity_label};
use wattspan_ipw::report::uncertainty::{figure_uncertainties, with_combined};
use wattspan_ipw::report::units::InverseUnit;
use wattspan_ipw::route::IncomparableRuns;
use wattspan_ipw::run_settings::describe_workload;
use wattspan_ipw::scope::{IdlePolicy, Scope};
use wattspan_ipw::statistics::Distribution;

use super::super::table::{TextTable, number_column, text_column};
use super::super::terminal::{Terminal, printable};

/// Scope, idle policy and grade of the energies.
pub fn describe_energies(scope: Scope, idle: IdlePolicy, grade: Option<Grade>, simulated: bool) -> String {
    let grade = grade.map_or("of unknown grade", super::super::account_report::grade_name);
    let simulated = if simulated { ", simulated" } else { "" };
    format!("{}, {}, energy {grade}{simulated}", scope.title(), idle.title())
}

/// Scope, coverage and error of the figures, in one line.
pub fn describe_basis(figures: &EfficiencyMetrics) -> String {
    let basis = describe_energies(figures.scope, figures.idle, figures.grade, figures.simulated);
    let error = figures.energy_error_j.map_or_else(
        || "the meter gave no guaranteed error".to_owned(),
        |error| {
            let power = figures.power_error_w.map_or_else(String::new, |error| {
                format!(", the machine's mean power to \u{b1} {} W", format_significant(error))
            });
            format!("the meter guarantees the mean energy to \u{b1} {} J{power}", format_significant(error))
        },
    );
    format!(
        "{basis}; {} of {} queries covered; {error}; brackets: 95 % confidence interval over the choice of questions, widened \
         by the meter's error where that has a bound",
        figures.covered, figures.asked
    )
}

/// IPW and IPJ in one line, or the accuracy and the reason why there is no energy.
pub fn format_headline(report: &Report) -> String {
    let all = &report.all;
    if let Some(reason) = &report.no_energy {
        let accuracy = format_estimate(all.accuracy.as_ref(), 100.0, " %");
        let reason = printable(reason);
        return format!(
            "  no energy was measured: {reason}\n  accuracy {accuracy} over {} scored answers\n",
            all.scored
        );
    }
    if all.covered == 0 {
        return String::new();
    }
    let pace = describe_workload(&report.run.settings).map_or_else(String::new, |pace| format!("; {pace}"));
    let notice = report.partial_notice().map_or_else(String::new, |notice| format!("  {notice}\n"));
    if all.withheld {
        return notice;
    }
    format!(
        "{notice}  IPW {}, IPJ {}; {} of {} queries covered{}{}\n",
        format_inverse(with_combined(all.per_watt, all.per_watt_combined).as_ref(), "W"),
        format_inverse(with_combined(all.per_joule, all.per_joule_combined).as_ref(), "J"),
        all.covered,
        all.asked,
        printable(&pace),
        if all.simulated { "; simulated machine" } else { "" }
    )
}

/// The differences of two runs, one line each.
pub fn format_differences(first: &str, other: &str, differs: &[Difference]) -> String {
    let line = |difference: &Difference| {
        format!(
            "\n  {}: {} has {}, {} has {}",
            difference.what,
            printable(first),
            printable(&difference.first),
            printable(other),
            printable(&difference.other)
        )
    };
    differs.iter().map(line).collect()
}

/// The runs that are not comparable, below a line of text.
pub fn describe_incomparable(what: &str, unlike: &[IncomparableRuns]) -> String {
    let lines = unlike.iter().map(|it| format_differences(&it.first, &it.other, &it.differs));
    what.to_owned() + &lines.collect::<String>()
}

/// A row label: scope, idle policy and grade.
pub fn scope_label(figures: &EfficiencyMetrics) -> String {
    let idle = match figures.idle {
        IdlePolicy::Included => "with idle",
        IdlePolicy::Excluded => "without idle",
    };
    let grade = figures.grade.map_or("unknown grade", super::super::account_report::grade_name);
    let simulated = if figures.simulated { ", simulated" } else { "" };
    format!("{}, {idle}, {grade}{simulated}", figures.scope.title())
}

/// The distribution of each quantity over the queries.
pub fn spread_table(all: &BTreeMap<&'static str, Distribution>, terminal: Terminal) -> String {
    let mut columns = vec![text_column("DISTRIBUTION")];
    columns.extend(["QUERIES", "MEAN", "P5", "P50", "P95", "P99", "MAX"].map(number_column));
    let mut table = TextTable::new(columns);
    for (name, spread) in all {
        let values = [spread.mean, spread.p5, spread.p50, spread.p95, spread.p99, spread.most];
        let mut cells = vec![quantity_label(name), spread.count.to_string()];
        cells.extend(values.map(format_significant));
        table.add_row(cells);
    }
    table.render(terminal)
}

/// How many queries were open at a time, or began each second.
pub fn concurrency_label(concurrency: Option<usize>, queries_per_second: Option<f64>) -> String {
    let open_loop = || queries_per_second.map(|rate| format!("{}/s", format_significant(rate)));
    concurrency.map(|at_once| at_once.to_string()).or_else(open_loop).unwrap_or_else(|| "\u{2013}".into())
}

/// The name of a row, marked if its figures are over too few of its queries.
fn row_name(name: &str, figures: &EfficiencyMetrics) -> String {
    let mark = if figures.partial { " (partial)" } else { "" };
    format!("{}{mark}", printable(name))
}

/// The uncertainties of the figures, apart and together; empty without figures.
pub fn uncertainty_table(figures: &EfficiencyMetrics, terminal: Terminal) -> String {
    let rows = figure_uncertainties(figures);
    if rows.is_empty() {
        return String::new();
    }
    let mut columns = vec![text_column("UNCERTAINTY")];
    columns.extend(["VALUE", "QUESTIONS, 95 %", "METER ERROR", "BOTH"].map(number_column));
    let mut table = TextTable::new(columns);
    for row in rows {
        table.add_row(vec![row.figure, row.value, row.questions, row.meter, row.both]);
    }
    format!("\n{}\n", table.render(terminal))
}

/// A table of figures, one row per run or subject. Each column has one unit.
pub fn figure_table(
    first: &'static str,
    rows: &[(String, &EfficiencyMetrics)],
    terminal: Terminal,
) -> String {
    let unit = |of: fn(&EfficiencyMetrics) -> Option<Estimate>| {
        InverseUnit::of(rows.iter().filter_map(|(_, figures)| Some(of(figures)?.value)))
    };
    let (per_watt, per_joule) = (unit(|it| it.per_watt), unit(|it| it.per_joule));
    let tokens = unit(|it| it.tokens_per_joule);
    let columns = [
        text_column(first),
        number_column("AT ONCE"),
        number_column("COVERED"),
        number_column("ACCURACY"),
        number_column("ENERGY"),
        number_column("POWER"),
        number_column("ATTRIBUTED"),
        number_column(per_watt.choose(["IPW 1/W", "IPW 1/kW", "IPW 1/MW", "IPW 1/GW"])),
        number_column(per_joule.choose(["IPJ 1/J", "IPJ 1/kJ", "IPJ 1/MJ", "IPJ 1/GJ"])),
        number_column(tokens.choose(["TOKENS/J", "TOKENS/kJ", "TOKENS/MJ", "TOKENS/GJ"])),
    ];
    let mut table = TextTable::new(columns);
    for (name, it) in rows {
        let both = |figure, combined, factor, unit: &str| {
            format_estimate(with_combined(figure, combined).as_ref(), factor, unit)
        };
        table.add_row(vec![
            row_name(name, it),
            concurrency_label(it.concurrency, it.queries_per_second),
            format!("{}/{}", it.covered, it.asked),
            format_estimate(it.accuracy.as_ref(), 100.0, " %"),
            both(it.energy_j, it.energy_combined_j, 1.0, " J"),
            both(it.power_w, it.power_combined_w, 1.0, " W"),
            // The interval of this secondary figure is in the page, CSV and JSON; the table would be too wide.
            format_estimate(
                it.attributed_power_w.map(|it| Estimate { interval: None, ..it }).as_ref(),
                1.0,
                " W",
            ),
            both(it.per_watt, it.per_watt_combined, per_watt.factor, ""),
            both(it.per_joule, it.per_joule_combined, per_joule.factor, ""),
            format_estimate(it.tokens_per_joule.as_ref(), tokens.factor, ""),
        ]);
    }
    table.render(terminal)
}
