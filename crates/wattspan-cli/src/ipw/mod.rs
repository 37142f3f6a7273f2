//! `wattspan ipw`: intelligence per watt.
//!
//! Command-line options and text output of the subcommands; the computations are in `wattspan_ipw`. Results go to standard
//! output, progress to standard error.

mod card;
mod compare;
mod decisions;
mod export;
mod figure_tables;
mod import;
mod import_evaluator;
mod options;
mod prepare;
mod progress_line;
mod report;
mod route;
mod run;
mod run_options;
mod score;
mod server_options;
mod sweep;

use clap::Subcommand;

use super::connect::MeterOptions;
use super::exit_status::CliError;

/// Subcommands of `wattspan ipw`.
#[derive(Debug, Subcommand)]
pub enum IpwCommand {
    /// Run a set of questions against a server and record the energy of each answer
    Run(run_options::IpwRunArgs),
    /// Run the questions at several concurrencies, models and servers, and show which points are worth it
    Sweep(sweep::SweepArgs),
    /// Rescore a run's answers without querying the model again
    Score(score::ScoreArgs),
    /// Show the results of a run as a table, JSON, CSV or an HTML page
    Report(report::ReportArgs),
    /// Compare runs of the same questions
    Compare(compare::CompareArgs),
    /// Show what routing questions to smaller models would save, or what a router's decisions saved
    Route(route::RouteArgs),
    /// Write a run's result card: figures, conditions and assumptions as one JSON file
    Card(card::CardArgs),
    /// Check that the figures of a result card follow from its run
    Verify(card::VerifyArgs),
    /// Import results of the public harness or of an evaluator as a run, and list what is missing or wrong in them
    Import(import::ImportArgs),
    /// Export a run in the harness's schema, as Parquet or as flat JSON lines
    Export(export::ExportArgs),
}

/// Dispatches to the subcommand.
pub fn ipw(options: &MeterOptions, command: &IpwCommand) -> Result<u8, CliError> {
    match command {
        IpwCommand::Run(args) => run::run(options, args),
        IpwCommand::Sweep(args) => sweep::sweep(options, args),
        IpwCommand::Score(args) => score::score(options, args),
        IpwCommand::Report(args) => report::report(options, args),
        IpwCommand::Compare(args) => compare::compare(options, args),
        IpwCommand::Route(args) => route::route(options, args),
        IpwCommand::Card(args) => card::card(options, args),
        IpwCommand::Verify(args) => card::verify(options, args),
        IpwCommand::Import(args) => import::import(options, args),
        IpwCommand::Export(args) => export::export(options, args),
    }
}
