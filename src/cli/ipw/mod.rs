//! `wattspan ipw`: intelligence per watt, from questions to a page.
//!
//! Owns the subcommands below it. What they compute is in `crate::ipw`; here are words and tables. Results go to standard output,
//! the live line to standard error.

mod compare;
mod export;
mod figure_tables;
mod import;
mod prepare;
mod progress_line;
mod report;
mod route;
mod run;
mod score;
mod server_options;

use std::path::Path;

use clap::{Args, Subcommand};

use super::MeterOptions;
use super::exit_status::CliError;
use crate::ipw::metrics::MetricOptions;
use crate::ipw::scope::{IdlePolicy, Scope};

/// Which figures.
#[derive(Debug, Clone, Args)]
struct FigureOptions {
    /// Which domains count
    #[arg(long, value_enum, default_value_t = Scope::Host)]
    scope: Scope,
    /// Whether idle power is part of the figures
    #[arg(long, value_enum, default_value_t = IdlePolicy::Included)]
    idle: IdlePolicy,
    /// Of the resampling that gives the intervals
    #[arg(long, value_name = "N", default_value_t = 0)]
    interval_seed: u64,
}

impl FigureOptions {
    fn terms(&self) -> MetricOptions {
        MetricOptions { scope: self.scope, idle: self.idle, seed: self.interval_seed }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum IpwCommand {
    /// Ask a server a set of questions and keep what each answer used
    Run(run::IpwRunArgs),
    /// Score a run's answers again, without asking the model again
    Score(score::ScoreArgs),
    /// Tell what a run says: a table, JSON, CSV, or a page with pictures
    Report(report::ReportArgs),
    /// Put runs of the same questions side by side
    Compare(compare::CompareArgs),
    /// Tell what routing questions to small models would save
    Route(route::RouteArgs),
    /// Read results of the public harness as a run, and say what was missing or wrong in them
    Import(import::ImportArgs),
    /// Write a run for other programs: in the harness's schema, as Parquet, as flat JSON lines
    Export(export::ExportArgs),
}

/// Does it.
pub fn ipw(options: &MeterOptions, command: &IpwCommand) -> Result<u8, CliError> {
    match command {
        IpwCommand::Run(args) => run::run(options, args),
        IpwCommand::Score(args) => score::score(options, args),
        IpwCommand::Report(args) => report::report(options, args),
        IpwCommand::Compare(args) => compare::compare(options, args),
        IpwCommand::Route(args) => route::route(options, args),
        IpwCommand::Import(args) => import::import(options, args),
        IpwCommand::Export(args) => export::export(options, args),
    }
}

/// `NAME=VALUE` on the command line.
fn parse_named_value<T: std::str::FromStr>(text: &str) -> Result<(String, T), String>
where
    T::Err: std::fmt::Display,
{
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let value = value.parse().map_err(|error| format!("{value}: {error}"))?;
    Ok((name.to_owned(), value))
}

/// What people call a run that they name by its directory.
fn run_label(path: &Path, manifest: &crate::ipw::run_dir::Manifest) -> String {
    if !manifest.label.is_empty() {
        return manifest.label.clone();
    }
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
