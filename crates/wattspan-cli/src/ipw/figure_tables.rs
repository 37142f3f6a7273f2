//! Tables of a run's figures for the terminal.
//!
//! Figures are always shown with their scope, idle policy, grade and coverage.

use std::collections::BTreeMap;

use wattspan_client::domain::Grade;
use wattspan_ipw::compare::Difference;
use wattspan_ipw::metrics::EfficiencyMetrics;
use wattspan_ipw::report::Report;
use wattspan_ipw::report::html_page::{format_estimate, format_significant, quantity_label};
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
        "{basis}; {} of {} queries covered; {error}; brackets: 95 % confidence interval over the choice of questions",
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
    format!(
        "  IPW {}, IPJ {}; {} of {} queries covered{}{}\n",
        format_estimate(all.per_watt.as_ref(), 1.0, " 1/W"),
        format_estimate(all.per_joule.as_ref(), 1.0, " 1/J"),
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

/// A table of figures, one row per run or subject.
pub fn figure_table(
    first: &'static str,
    rows: &[(String, &EfficiencyMetrics)],
    terminal: Terminal,
) -> String {
    let columns = [
        text_column(first),
        number_column("COVERED"),
        number_column("ACCURACY"),
        number_column("ENERGY"),
        number_column("POWER"),
        number_column("ATTRIBUTED"),
        number_column("IPW 1/W"),
        number_column("IPJ 1/J"),
        number_column("TOKENS/J"),
    ];
    let mut table = TextTable::new(columns);
    for (name, figures_of_row) in rows {
        table.add_row(vec![
            printable(name),
            format!("{}/{}", figures_of_row.covered, figures_of_row.asked),
            format_estimate(figures_of_row.accuracy.as_ref(), 100.0, " %"),
            format_estimate(figures_of_row.energy_j.as_ref(), 1.0, " J"),
            format_estimate(figures_of_row.power_w.as_ref(), 1.0, " W"),
            format_estimate(figures_of_row.attributed_power_w.as_ref(), 1.0, " W"),
            format_estimate(figures_of_row.per_watt.as_ref(), 1.0, ""),
            format_estimate(figures_of_row.per_joule.as_ref(), 1.0, ""),
            format_estimate(figures_of_row.tokens_per_joule.as_ref(), 1.0, ""),
        ]);
    }
    table.render(terminal)
}
