//! `wattspan ipw route`: shows what routing questions to smaller models would save.
//!
//! Assumed values are marked as such beside the figures.

use std::io::stdout;
use std::path::PathBuf;

use wattspan_ipw::intervals::describe_shortage;
use wattspan_ipw::report::format::{format_estimate, format_significant};
use wattspan_ipw::report::uncertainty::with_combined;
use wattspan_ipw::route::{RoutedModel, Routing, evaluate_routing as routing, incomparable_runs};
use wattspan_ipw::table::RunTable;

use super::super::connect::MeterOptions;
use super::super::exit_status::{CliError, FAILURE, OK};
use super::super::output;
use super::super::table::{TextTable, number_column, text_column};
use super::super::terminal::{Terminal, printable};
use super::decisions::{self, DecisionRequest};
use super::figure_tables::{self, describe_incomparable};
use super::options::{FigureOptions, parse_named_value, read_runs};

/// Arguments of `wattspan ipw route`.
#[derive(Debug, clap::Args)]
pub struct RouteArgs {
    /// Runs of the local models
    #[arg(value_name = "RUN", required = true)]
    locals: Vec<PathBuf>,
    /// Run of the reference model, to which every question could go
    #[arg(long, value_name = "RUN")]
    reference: PathBuf,
    #[command(flatten)]
    figure_options: FigureOptions,
    /// Fraction of questions that the router routes correctly; repeatable
    #[arg(long = "accuracy", value_name = "0..1", default_values_t = [0.8], value_parser = parse_fraction)]
    accuracies: Vec<f64>,
    /// Assumed energy per query of the reference, in joules, where its run has none (a cloud model)
    #[arg(long, value_name = "J")]
    reference_joules: Option<f64>,
    /// Active parameters per token of a run, e.g. "small=135e6"; repeatable
    #[arg(long = "parameters", value_name = "NAME=COUNT", value_parser = parse_named_value::<f64>)]
    parameters: Vec<(String, f64)>,
    /// Price per million prompt and answer tokens of a run, e.g. "big=0.5:1.5"; repeatable
    #[arg(long = "price", value_name = "NAME=IN:OUT", value_parser = parse_named_value::<String>)]
    prices: Vec<(String, String)>,
    /// Evaluate decisions that a router made: JSON lines with id and model (the label of a run), and router_uj or
    /// router_span for the router's own energy
    #[arg(long, value_name = "FILE", conflicts_with_all = ["accuracies", "parameters", "prices"])]
    decisions: Option<PathBuf>,
    /// Accounts of the router's spans as JSON lines (`wattspan --json spans`) [default: those of the daemon]
    #[arg(long, value_name = "FILE", requires = "decisions")]
    router_accounts: Option<PathBuf>,
    /// Route even if questions, grades or domains differ
    #[arg(long)]
    anyway: bool,
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number between 0 and 1".to_owned())?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("expected a number between 0 and 1".into()) }
}

/// Runs `wattspan ipw route`.
pub fn route(options: &MeterOptions, args: &RouteArgs) -> Result<u8, CliError> {
    let terms = args.figure_options.terms();
    let mut locals = read_runs(&[args.locals.as_slice(), std::slice::from_ref(&args.reference)].concat())?;
    let reference = locals.pop().expect("the reference was read last");
    let reference_model = build_model(args, &reference, args.reference_joules)?;
    let models = locals.iter().map(|run| build_model(args, run, None)).collect::<Result<Vec<_>, _>>()?;
    let incomparable = incomparable_runs(&models, &reference_model, &terms);
    if !incomparable.is_empty() && !args.anyway {
        let message = describe_incomparable(
            "these runs are not comparable (--anyway routes all the same):",
            &incomparable,
        );
        return Err(CliError::new(FAILURE, message));
    }
    if let Some(file) = &args.decisions {
        let request = DecisionRequest {
            file,
            accounts: args.router_accounts.as_deref(),
            figure_options: &args.figure_options,
            reference_joules: args.reference_joules,
        };
        return decisions::evaluate(options, &request, &models, &reference_model);
    }
    let Some(routing) = routing(&models, &reference_model, &args.accuracies, &terms) else {
        return Err(CliError::new(FAILURE, "no question was answered and scored in all of these runs"));
    };
    if routing.partial && !args.figure_options.allow_partial {
        let message = format!(
            "only {} of {} queries were delivered and scored in all of these runs, less than the 95 % that a figure needs \
             (--allow-partial routes them all the same)",
            routing.queries, routing.asked
        );
        return Err(CliError::new(FAILURE, message));
    }
    if options.json {
        output::print_json_pretty(&routing)?;
    } else {
        output::print_text(&render_routing(&routing, args, Terminal::of(&stdout())))?;
    }
    Ok(OK)
}

fn build_model<'a>(
    args: &RouteArgs,
    (label, table): &'a (String, RunTable),
    assumed_j: Option<f64>,
) -> Result<RoutedModel<'a>, CliError> {
    let price = args.prices.iter().find(|(name, _)| name == label).map(|(_, price)| {
        let (read, written) = price.split_once(':')?;
        Some((read.parse().ok()?, written.parse().ok()?))
    });
    let invalid_price =
        || CliError::new(2, format!("the price of {label} must be IN:OUT, each per million tokens"));
    Ok(RoutedModel {
        label: label.clone(),
        table,
        assumed_j,
        active_parameters: args.parameters.iter().find(|(name, _)| name == label).map(|(_, count)| *count),
        per_million_tokens: price.map(|price| price.ok_or_else(invalid_price)).transpose()?,
    })
}

fn render_routing(routing: &Routing, args: &RouteArgs, terminal: Terminal) -> String {
    let mut covered = TextTable::new([
        text_column("MODEL"),
        text_column("CONCURRENCY"),
        number_column("BETTER"),
        number_column("AS GOOD"),
        number_column("BOTH WRONG"),
        number_column("COVERS"),
        number_column("ORACLE SENDS"),
    ]);
    let sends = |label: &str| {
        routing
            .oracle_sends
            .iter()
            .find(|(name, _)| name == label)
            .map_or(String::new(), |(_, n)| n.to_string())
    };
    let pace = |label: &str| {
        let pace = routing.concurrency.iter().find(|(name, _)| name == label);
        pace.map_or(String::new(), |(_, pace)| printable(pace))
    };
    for it in routing.models.iter().chain([&routing.best_of_local]) {
        covered.add_row(vec![
            printable(&it.label),
            pace(&it.label),
            it.wins.to_string(),
            it.ties.to_string(),
            it.both_wrong.to_string(),
            format_estimate(Some(&it.covered), 100.0, " %"),
            sends(&it.label),
        ]);
    }
    covered.add_row(vec![
        printable(&routing.reference),
        pace(&routing.reference),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
        sends(&routing.reference),
    ]);
    let assumed = args.reference_joules.map_or_else(String::new, |joules| {
        format!(
            "  where the reference's energy was not measured, {} J a query were assumed\n",
            format_significant(joules)
        )
    });
    let unlike = match routing.unlike.as_slice() {
        [] => String::new(),
        some => format!(
            "  {}\n",
            describe_incomparable("these runs are not comparable and were routed all the same:", some)
        ),
    };
    let times = match routing.queries {
        queries if queries > routing.questions => format!(", asked {queries} times in all"),
        _ => String::new(),
    };
    let shortage = routing
        .questions_needed
        .map_or_else(String::new, |needed| format!("  savings: {}\n", describe_shortage(needed)));
    let partial = if routing.partial { "PARTIAL: o" } else { "O" };
    format!(
        "\n{partial}ver {} questions{times}, against {}\n\n{}\n{}\n  {}\n{assumed}  savings against all on the reference, at no loss of \
         quality: misses go to the reference\n{shortage}{unlike}",
        routing.questions,
        printable(&routing.reference),
        covered.render(terminal),
        savings_table(routing).render(terminal),
        describe_basis(routing)
    )
}

fn savings_table(routing: &Routing) -> TextTable {
    let mut saved = TextTable::new([
        text_column("ROUTER"),
        number_column("ENERGY SAVED"),
        number_column("COMPUTE SAVED"),
        number_column("COST SAVED"),
    ]);
    for it in &routing.savings {
        let name = if it.accuracy >= 1.0 {
            "oracle".to_owned()
        } else {
            format!("right {} of the time", format_significant(it.accuracy))
        };
        let percent =
            |figure: &Option<wattspan_ipw::metrics::Estimate>| format_estimate(figure.as_ref(), 100.0, " %");
        let energy = with_combined(it.energy, it.energy_combined);
        saved.add_row(vec![name, percent(&energy), percent(&it.compute), percent(&it.cost)]);
    }
    saved
}

/// Scope, coverage and error of the figures, in one line.
fn describe_basis(routing: &Routing) -> String {
    let energies =
        figure_tables::describe_energies(routing.scope, routing.idle, routing.grade, routing.simulated);
    let assumed = match routing.assumed {
        0 => String::new(),
        count => format!(", {count} of them at an assumed energy of the reference"),
    };
    let error = routing.savings.first().and_then(|oracle| oracle.energy_error).map_or_else(
        || "the meter gave no guaranteed error".to_owned(),
        |error| {
            format!(
                "the meter guarantees the oracle's energy saving to \u{b1} {} points",
                format_significant(error * 100.0)
            )
        },
    );
    format!(
        "{energies}; {} of {} queries covered{assumed}; {error}; brackets: 95 % confidence interval over the choice of questions, that of the \
         energy widened by the meter's error where it has a bound",
        routing.queries, routing.asked
    )
}
