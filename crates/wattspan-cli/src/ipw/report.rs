//! `wattspan ipw report`: shows the results of a run as a table, JSON, CSV or an HTML page.

use std::io::stdout;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use wattspan_ipw::metrics::EfficiencyMetrics;
use wattspan_ipw::report::format::{format_estimate, format_inverse, format_significant};
use wattspan_ipw::report::html_page::render_page;
use wattspan_ipw::report::{EnergyPrices, Report};
use wattspan_ipw::table::RunTable;
use wattspan_system::private_file;

use super::super::connect::MeterOptions;
use super::super::exit_status::{CliError, NO_COUNTER, OK};
use super::super::terminal::{Terminal, printable};
use super::super::{csv::escape_cell, output};
use super::figure_tables;
use super::options::FigureOptions;

/// Arguments of `wattspan ipw report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    #[command(flatten)]
    figure_options: FigureOptions,
    /// Write a self-contained HTML page with charts to FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the figures as CSV, one line per subject, to FILE ("-": standard output)
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Price of a kilowatt-hour
    #[arg(long, value_name = "MONEY", value_parser = parse_rate)]
    price_per_kwh: Option<f64>,
    /// Carbon intensity: grams of CO2 per kilowatt-hour
    #[arg(long, value_name = "GRAMS", value_parser = parse_rate)]
    co2_per_kwh: Option<f64>,
}

/// Runs `wattspan ipw report`.
pub fn report(options: &MeterOptions, args: &ReportArgs) -> Result<u8, CliError> {
    let table = RunTable::read(&args.run).map_err(anyhow::Error::from)?;
    let prices = EnergyPrices { per_kwh: args.price_per_kwh, co2_g_per_kwh: args.co2_per_kwh };
    let mut report = Report::new(&table, &args.figure_options.terms(), prices);
    if !args.figure_options.allow_partial {
        report.withhold_if_partial();
    }
    if let Some(file) = &args.html {
        write_output(file, render_page(&report).as_bytes())?;
    }
    if let Some(file) = &args.csv {
        write_output(file, render_csv(&report).as_bytes())?;
    }
    if options.json {
        output::print_json_pretty(&report)?;
    } else if args.csv.as_deref() != Some(Path::new("-")) {
        output::print_text(&render_report(&report, Terminal::of(&stdout())))?;
    }
    report.no_energy.map_or(Ok(OK), |reason| Err(no_energy_error(&reason)))
}

/// The error for a run without energy.
pub fn no_energy_error(reason: &str) -> CliError {
    CliError::new(NO_COUNTER, format!("no energy was measured: {reason}"))
}

/// Parses a price or a carbon intensity: a finite number of at least 0.
fn parse_rate(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("expected a number of at least 0".into()) }
}

fn write_output(file: &Path, bytes: &[u8]) -> Result<(), CliError> {
    if file == Path::new("-") {
        return output::print_bytes(bytes);
    }
    private_file::write(file, bytes).map_err(|cause| anyhow::anyhow!("{}: {cause}", file.display()).into())
}

/// The report on a terminal.
pub fn render_report(report: &Report, terminal: Terminal) -> String {
    let run = &report.run;
    let mut out = format!(
        "\nIntelligence per watt: {}\n\n",
        printable(if run.label.is_empty() { &run.model } else { &run.label })
    );
    out += &figure_tables::format_headline(report);
    out += "\n";
    let mut rows = vec![("all".to_owned(), &report.all)];
    rows.extend(report.steady_state.iter().map(|steady| ("steady state".to_owned(), &steady.figures)));
    rows.extend(report.subjects.iter().map(|figures| (figures.of.clone(), figures)));
    out += &figure_tables::figure_table("SUBJECT", &rows, terminal);
    out += &format!("\n  {}\n", figure_tables::describe_basis(&report.all));
    out += &figure_tables::uncertainty_table(&report.all, terminal);
    out += &render_details(report, terminal);
    if let Some(phases) = &report.phases {
        let per_token = |joules: Option<f64>| {
            joules
                .map_or_else(|| "unknown".into(), |joules| format!("{} J/token", format_significant(joules)))
        };
        out += &format!(
            "  prefill {} J ({}), decode {} J ({}) a query\n",
            format_significant(phases.prefill_j),
            per_token(phases.prefill_j_per_token),
            format_significant(phases.decode_j),
            per_token(phases.decode_j_per_token)
        );
    }
    out += &render_failures(report);
    for remark in report.remarks() {
        out += &format!("  {}\n", printable(&remark));
    }
    if report.broken_lines > 0 {
        out += &format!("  {} invalid lines of the run's file were skipped\n", report.broken_lines);
    }
    let sum = &report.sum;
    out += &format!(
        "  all together, including idle power and queries that are in no figure: {} J over {} queries",
        format_significant(sum.energy_j),
        sum.metered
    );
    out += &sum.cost.map_or_else(String::new, |cost| format!(", costing {}", format_significant(cost)));
    out += &sum.co2_g.map_or_else(String::new, |grams| format!(", {} g CO2", format_significant(grams)));
    out + "\n"
}

/// The failed queries with their reasons: those that are wrong answers, and those that were not asked.
fn render_failures(report: &Report) -> String {
    let mut out = String::new();
    for (failures, meaning) in [
        (
            &report.failures,
            "queries failed after they were delivered: they are wrong, and their energy counts:",
        ),
        (&report.not_delivered, "queries were never delivered: they are not asked, and in no figure:"),
    ] {
        let count: usize = failures.values().sum();
        if count > 0 {
            out += &format!("  {count} {meaning}\n");
        }
        for (reason, count) in failures {
            out += &format!("    {count} \u{d7} {}\n", printable(reason));
        }
    }
    out
}

/// Other scopes, distributions, and figures that only some runs have.
fn render_details(report: &Report, terminal: Terminal) -> String {
    let mut out = String::new();
    let all = &report.all;
    if let Some(figure) = &all.queries_per_kwh {
        out += &format!("  {} queries per kWh\n", format_estimate(Some(figure), 1.0, ""));
    }
    if all.perplexity.is_some() {
        out += &format!(
            "  perplexity {}; 1/perplexity per watt {}, per joule {}\n",
            format_estimate(all.perplexity.as_ref(), 1.0, ""),
            format_inverse(all.perplexity_per_watt.as_ref(), "W"),
            format_inverse(all.perplexity_per_joule.as_ref(), "J")
        );
    }
    let others: Vec<(String, &EfficiencyMetrics)> = report
        .scopes
        .iter()
        .filter(|it| (it.scope, it.idle) != (report.scope, report.idle))
        .map(|it| (figure_tables::scope_label(it), it))
        .collect();
    if !others.is_empty() {
        out += &format!("\n{}", figure_tables::figure_table("ALL, BY SCOPE", &others, terminal));
    }
    if !report.spreads.is_empty() {
        out += &format!("\n{}\n", figure_tables::spread_table(&report.spreads, terminal));
    }
    out
}

/// One line per subject; an unknown figure is an empty cell.
fn render_csv(report: &Report) -> String {
    let mut out = String::from(
        "subject,scope,idle,grade,asked,answered,scored,covered,accuracy,accuracy_low,accuracy_high,energy_j,energy_low_j,\
         energy_high_j,energy_error_j,power_w,power_low_w,power_high_w,ipw_per_w,ipw_low,ipw_high,ipj_per_j,ipj_low,ipj_high,\
         tokens_per_joule,queries_per_kwh,perplexity,perplexity_per_watt,perplexity_per_joule,power_error_w,\
         attributed_power_w,attributed_power_low_w,attributed_power_high_w,simulated,delivered,coverage,partial,concurrency,\
         queries_per_second,energy_combined_low_j,energy_combined_high_j,power_combined_low_w,power_combined_high_w,\
         ipw_combined_low,ipw_combined_high,ipj_combined_low,ipj_combined_high\n",
    );
    let steady_state = report.steady_state.iter().map(|steady| &steady.figures);
    for figures in std::iter::once(&report.all).chain(steady_state).chain(&report.subjects) {
        let mut cells = vec![
            escape_cell(&figures.of),
            value_name(figures.scope),
            value_name(figures.idle),
            figures
                .grade
                .map_or_else(String::new, |grade| super::super::account_report::grade_name(grade).to_owned()),
            figures.asked.to_string(),
            figures.answered.to_string(),
            figures.scored.to_string(),
            figures.covered.to_string(),
        ];
        let number = |value: Option<f64>| value.map_or_else(String::new, format_number);
        for (column, figure) in
            [&figures.accuracy, &figures.energy_j, &figures.power_w, &figures.per_watt, &figures.per_joule]
                .iter()
                .enumerate()
        {
            let interval = figure.and_then(|figure| figure.interval);
            cells.push(number(figure.map(|figure| figure.value)));
            cells.push(number(interval.map(|it| it.low)));
            cells.push(number(interval.map(|it| it.high)));
            if column == 1 {
                cells.push(number(figures.energy_error_j));
            }
        }
        let rest = [
            figures.tokens_per_joule,
            figures.queries_per_kwh,
            figures.perplexity,
            figures.perplexity_per_watt,
            figures.perplexity_per_joule,
        ];
        cells.extend(rest.map(|figure| number(figure.map(|figure| figure.value))));
        let interval = figures.attributed_power_w.and_then(|figure| figure.interval);
        cells.extend([
            number(figures.power_error_w),
            number(figures.attributed_power_w.map(|figure| figure.value)),
            number(interval.map(|it| it.low)),
            number(interval.map(|it| it.high)),
            figures.simulated.to_string(),
            figures.delivered.to_string(),
            format_number(figures.coverage),
            figures.partial.to_string(),
            figures.concurrency.map_or_else(String::new, |concurrency| concurrency.to_string()),
            number(figures.queries_per_second),
        ]);
        for combined in [
            figures.energy_combined_j,
            figures.power_combined_w,
            figures.per_watt_combined,
            figures.per_joule_combined,
        ] {
            cells.extend([number(combined.map(|it| it.low)), number(combined.map(|it| it.high))]);
        }
        out += &(cells.join(",") + "\n");
    }
    out
}

/// Formats a number with its shortest exact digits; -0 becomes 0.
fn format_number(value: f64) -> String {
    (value + 0.0).to_string()
}

/// The command-line name of an enum value.
fn value_name(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_zero_is_written_as_zero() {
        assert_eq!(
            (format_number(-0.0), format_number(0.0), format_number(-0.5), format_number(12.25)),
            ("0".into(), "0".into(), "-0.5".into(), "12.25".into())
        );
    }

    #[test]
    fn a_rate_is_a_number_of_at_least_zero() {
        assert_eq!((parse_rate("0.3"), parse_rate("0")), (Ok(0.3), Ok(0.0)));
        for wrong in ["-1", "nan", "inf", "x", ""] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
