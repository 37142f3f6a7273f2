//! `wattspan ipw route --decisions`: evaluates decisions that a router made, with the router's own energy.

use std::fs::File;
use std::io::{BufRead, BufReader, stdout};
use std::path::Path;

use wattspan_client::account::Account;
use wattspan_client::protocol::ListSpans;
use wattspan_ipw::decisions::{
    DecisionReport, PolicyFigures, evaluate_decisions, read_decisions, router_energies, router_spans,
};
use wattspan_ipw::intervals::describe_shortage;
use wattspan_ipw::report::format::{format_estimate, format_significant};
use wattspan_ipw::report::uncertainty::with_combined;
use wattspan_ipw::report::units::InverseUnit;
use wattspan_ipw::route::RoutedModel;

use super::super::account_pages::{AccountPage, AccountPages};
use super::super::connect::{MeterConnector, MeterOptions};
use super::super::exit_status::{CliError, FAILURE, OK};
use super::super::output;
use super::super::table::{TextTable, number_column, text_column};
use super::super::terminal::{Terminal, printable};
use super::figure_tables::{self, describe_incomparable};
use super::options::FigureOptions;

/// What is evaluated.
pub struct DecisionRequest<'a> {
    /// The decisions, as JSON lines.
    pub file: &'a Path,
    /// The accounts of the router's spans; the daemon's if absent.
    pub accounts: Option<&'a Path>,
    pub figure_options: &'a FigureOptions,
    /// The assumed energy of a query of the reference.
    pub reference_joules: Option<f64>,
}

/// Evaluates decisions over runs that are comparable or are to be compared all the same.
pub fn evaluate(
    options: &MeterOptions,
    request: &DecisionRequest,
    locals: &[RoutedModel],
    reference: &RoutedModel,
) -> Result<u8, CliError> {
    let failed = |path: &Path, cause: &dyn std::fmt::Display| {
        CliError::new(FAILURE, printable(&format!("{}: {cause}", path.display())))
    };
    let in_file = |cause: &dyn std::fmt::Display| failed(request.file, cause);
    let opened = File::open(request.file).map_err(|cause| in_file(&cause))?;
    let decisions = read_decisions(BufReader::new(opened)).map_err(|cause| in_file(&cause))?;
    let names = router_spans(&decisions);
    let accounts = match request.accounts {
        _ if names.is_empty() => Vec::new(),
        Some(path) => read_accounts(path).map_err(|cause| failed(path, &cause))?,
        None => fetch_accounts(options, &names)?,
    };
    let terms = request.figure_options.terms();
    let router =
        router_energies(&decisions, &accounts, reference, &terms).map_err(|cause| in_file(&cause))?;
    let allow_partial = request.figure_options.allow_partial;
    let report = evaluate_decisions(locals, reference, &decisions, &router, &terms, allow_partial)
        .map_err(|cause| in_file(&cause))?;
    if report.partial && !allow_partial {
        let message = format!(
            "only {} of {} queries were decided, and delivered and scored in all of these runs, less than the 95 % that a \
             figure needs (--allow-partial evaluates them all the same)",
            report.queries, report.asked
        );
        return Err(CliError::new(FAILURE, message));
    }
    if options.json {
        output::print_json_pretty(&report)?;
    } else {
        output::print_text(&render(&report, request.reference_joules, Terminal::of(&stdout())))?;
    }
    Ok(OK)
}

/// Reads accounts as `wattspan --json spans` and `wattspan export jsonl` write them.
fn read_accounts(path: &Path) -> Result<Vec<Account>, String> {
    let file = File::open(path).map_err(|cause| cause.to_string())?;
    let mut accounts = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.map_err(|cause| cause.to_string())?;
        if !line.trim().is_empty() {
            let account = serde_json::from_str(&line);
            accounts.push(account.map_err(|cause| format!("line {number}: is no account: {cause}"))?);
        }
    }
    Ok(accounts)
}

/// Fetches all accounts of these names from the daemon.
fn fetch_accounts(options: &MeterOptions, names: &[&str]) -> Result<Vec<Account>, CliError> {
    const PAGE: usize = 1_000;
    let client = MeterConnector::connect_daemon(options)?;
    let mut accounts = Vec::new();
    for name in names {
        let request = ListSpans { name: Some((*name).to_owned()), ..ListSpans::default() };
        let mut pages = AccountPages::new(&client, request);
        while let Some(page) = pages.fetch(PAGE)? {
            match page {
                AccountPage::Accounts(page) => accounts.extend(page),
                AccountPage::Damaged(reason) => {
                    let message = format!("accounts of the router's span {name:?} are missing: {reason}");
                    return Err(CliError::new(FAILURE, printable(&message)));
                }
            }
        }
    }
    Ok(accounts)
}

fn render(report: &DecisionReport, reference_joules: Option<f64>, terminal: Terminal) -> String {
    let mut sends =
        TextTable::new([text_column("MODEL"), number_column("ROUTER SENDS"), number_column("ORACLE SENDS")]);
    for it in &report.sends {
        sends.add_row(vec![printable(&it.model), it.router.to_string(), it.oracle.to_string()]);
    }
    let partial = if report.partial { "PARTIAL: d" } else { "D" };
    let assumed = reference_joules.map_or_else(String::new, |joules| {
        format!(
            "  where the reference's energy was not measured, {} J a query were assumed\n",
            format_significant(joules)
        )
    });
    let unlike = match report.unlike.as_slice() {
        [] => String::new(),
        some => format!(
            "  {}\n",
            describe_incomparable("these runs are not comparable and were routed all the same:", some)
        ),
    };
    let shortage = report
        .questions_needed
        .map_or_else(String::new, |needed| format!("  {}\n", describe_shortage(needed)));
    let undecided = match report.undecided {
        0 => String::new(),
        count => format!("  {count} queries have no decision and are left out\n"),
    };
    format!(
        "\n{partial}ecisions over {} queries, {} of them as the oracle decides\n\n{}\n{}\n  {}\n  {}\n{undecided}{assumed}{shortage}{unlike}",
        report.queries,
        report.as_oracle,
        sends.render(terminal),
        policy_table(report).render(terminal),
        describe_router(report),
        describe_basis(report)
    )
}

fn policy_table(report: &DecisionReport) -> TextTable {
    let per_joule =
        InverseUnit::of(report.policies.iter().filter_map(|it| it.per_joule.map(|figure| figure.value)));
    let mut table = TextTable::new([
        text_column("POLICY"),
        number_column("ACCURACY"),
        number_column("ENERGY"),
        number_column(per_joule.choose(["IPJ 1/J", "IPJ 1/kJ", "IPJ 1/MJ", "IPJ 1/GJ"])),
        number_column("QUALITY LOST"),
        number_column("ENERGY SAVED"),
    ]);
    for it in &report.policies {
        let saved = with_combined(it.energy_saved, it.energy_saved_combined);
        table.add_row(vec![
            policy_name(it),
            format_estimate(Some(&it.accuracy), 100.0, " %"),
            format_estimate(it.energy_j.as_ref(), 1.0, " J"),
            format_estimate(it.per_joule.as_ref(), per_joule.factor, ""),
            format_estimate(it.quality_lost.as_ref(), 100.0, " points"),
            format_estimate(saved.as_ref(), 100.0, " %"),
        ]);
    }
    table
}

fn policy_name(figures: &PolicyFigures) -> String {
    let model = figures.model.as_ref().map_or_else(String::new, |model| format!(" ({})", printable(model)));
    format!("{}{model}", figures.policy)
}

/// The router's own energy, in one line.
fn describe_router(report: &DecisionReport) -> String {
    let Some(joules) = report.router_j else {
        return "the decisions state no energy of the router (router_uj, router_span): it counts as 0"
            .to_owned();
    };
    let error = report
        .router_error_j
        .map_or_else(String::new, |error| format!(" \u{b1} {} J", format_significant(error)));
    let part =
        report.policies.first().and_then(|router| router.energy_j).map_or_else(String::new, |energy| {
            format!(
                ", {} % of the energy of a routed query",
                format_significant(joules / energy.value * 100.0)
            )
        });
    format!("the router itself uses {} J{error} a decision{part}", format_significant(joules))
}

/// Scope, coverage and the meaning of the columns, in one line.
fn describe_basis(report: &DecisionReport) -> String {
    let energies =
        figure_tables::describe_energies(report.scope, report.idle, report.grade, report.simulated);
    format!(
        "{energies}; {} of {} queries covered; lost and saved: by the router against each policy, its own energy included; \
         brackets: 95 % confidence interval over the choice of questions, that of the saving widened by the meter's error where \
         it has a bound",
        report.queries, report.asked
    )
}
