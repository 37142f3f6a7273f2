//! `wattspan ipw compare`: compares runs of the same questions.
//!
//! Runs that are not comparable are rejected with the differences, unless the user overrides that.

use std::io::stdout;
use std::path::PathBuf;

use wattspan_ipw::compare::{ComparedRun, compare_runs as side_by_side};
use wattspan_ipw::intervals::describe_shortage;
use wattspan_ipw::report::format::format_estimate;
use wattspan_ipw::report::uncertainty::with_combined;

use super::super::connect::MeterOptions;
use super::super::exit_status::{CliError, FAILURE, OK};
use super::super::output;
use super::super::table::{TextTable, number_column, text_column};
use super::super::terminal::{Terminal, printable};
use super::figure_tables;
use super::options::{FigureOptions, read_runs};

/// Arguments of `wattspan ipw compare`.
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    /// Run directories; the first is the baseline
    #[arg(value_name = "RUN", num_args = 2..)]
    runs: Vec<PathBuf>,
    #[command(flatten)]
    figure_options: FigureOptions,
    /// Compare even if questions, grades or domains differ
    #[arg(long)]
    anyway: bool,
}

/// Runs `wattspan ipw compare`.
pub fn compare(options: &MeterOptions, args: &CompareArgs) -> Result<u8, CliError> {
    let runs = read_runs(&args.runs)?;
    let mut columns = side_by_side(&runs, &args.figure_options.terms());
    if !args.figure_options.allow_partial {
        columns.iter_mut().for_each(ComparedRun::withhold_if_partial);
    }
    if !args.anyway && columns.iter().any(|column| !column.differs.is_empty()) {
        return Err(CliError::new(FAILURE, describe_differences(&columns)));
    }
    if options.json {
        output::print_json_pretty(&columns)?;
    } else {
        output::print_text(&render_comparison(&columns, Terminal::of(&stdout())))?;
    }
    Ok(OK)
}

fn describe_differences(columns: &[ComparedRun]) -> String {
    let first = columns.first().map_or("", |column| column.label.as_str());
    let mut out = String::from("these runs are not comparable (--anyway compares them all the same):");
    for column in columns {
        out += &figure_tables::format_differences(first, &column.label, &column.differs);
    }
    out
}

fn render_comparison(columns: &[ComparedRun], terminal: Terminal) -> String {
    let name =
        |column: &ComparedRun| format!("{}{}", column.label, if column.on_frontier { " *" } else { "" });
    let rows: Vec<_> = columns.iter().map(|column| (name(column), &column.figures)).collect();
    let mut out = format!("\n{}", figure_tables::figure_table("RUN", &rows, terminal));
    if let Some(first) = columns.first() {
        out += &format!("\n  {}\n", figure_tables::describe_basis(&first.figures));
    }
    let partial = |column: &ComparedRun| column.figures.partial || column.paired.is_some_and(|it| it.partial);
    if columns.iter().any(partial) {
        out += "  PARTIAL: less than 95 % of the queries are covered; IPW and IPJ of such runs need --allow-partial\n";
    }
    out += "  *: on the frontier: no other run is more accurate at less power\n";
    if columns.iter().any(|column| !column.differs.is_empty()) {
        out += &format!(
            "  {}\n",
            describe_differences(columns)
                .replace("(--anyway compares them all the same)", "and were compared all the same")
        );
    }
    let mut paired = TextTable::new([
        text_column("VERSUS THE FIRST"),
        number_column("QUERIES"),
        number_column("ACCURACY"),
        number_column("ENERGY"),
        number_column("POWER"),
        number_column("IPW"),
        number_column("IPJ"),
    ]);
    for (column, it) in columns.iter().filter_map(|column| Some((column, column.paired?))) {
        let both =
            |figure, combined, unit| format_estimate(with_combined(figure, combined).as_ref(), 1.0, unit);
        paired.add_row(vec![
            printable(&column.label) + if it.partial { " (partial)" } else { "" },
            it.count.to_string(),
            format_estimate(Some(&it.accuracy), 100.0, " points"),
            both(Some(it.energy_j), it.energy_combined_j, " J"),
            both(it.power_w, it.power_combined_w, " W"),
            both(it.per_watt_ratio, it.per_watt_ratio_combined, " \u{d7}"),
            both(it.per_joule_ratio, it.per_joule_ratio_combined, " \u{d7}"),
        ]);
    }
    out += &format!("\n{}", paired.render(terminal));
    for (column, needed) in columns.iter().filter_map(|it| Some((it, it.paired?.questions_needed?))) {
        out += &format!("  {}: {}\n", printable(&column.label), describe_shortage(needed));
    }
    for column in columns {
        let uncertainties = figure_tables::uncertainty_table(&column.figures, terminal);
        if !uncertainties.is_empty() {
            out += &format!("\n{}{uncertainties}", printable(&column.label));
        }
    }
    out
}
