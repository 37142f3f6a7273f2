//! Options and argument parsers shared by the `wattspan ipw` subcommands.

use std::path::{Path, PathBuf};

use clap::Args;

use wattspan_ipw::metrics::MetricOptions;
use wattspan_ipw::run_dir::Manifest;
use wattspan_ipw::scope::{IdlePolicy, Scope};
use wattspan_ipw::table::RunTable;

use super::super::exit_status::CliError;

/// Options that select the figures of a report.
#[derive(Debug, Clone, Args)]
pub struct FigureOptions {
    /// Domains whose energy is counted
    #[arg(long, value_enum, default_value_t = Scope::Host)]
    pub scope: Scope,
    /// Include or exclude idle power
    #[arg(long, value_enum, default_value_t = IdlePolicy::Included)]
    pub idle: IdlePolicy,
    /// Print IPW and IPJ also if less than 95 % of the queries are covered, marked as partial
    #[arg(long)]
    pub allow_partial: bool,
}

impl FigureOptions {
    pub fn terms(&self) -> MetricOptions {
        MetricOptions { scope: self.scope, idle: self.idle }
    }
}

/// Parses `NAME=VALUE`.
pub fn parse_named_value<T: std::str::FromStr>(text: &str) -> Result<(String, T), String>
where
    T::Err: std::fmt::Display,
{
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let value = value.parse().map_err(|error| format!("{value}: {error}"))?;
    Ok((name.to_owned(), value))
}

/// The label of a run, or the name of its directory where it has none.
pub fn run_label(path: &Path, manifest: &Manifest) -> String {
    if !manifest.label.is_empty() {
        return manifest.label.clone();
    }
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Reads runs with their labels; runs of the same label are identified by their directories.
pub fn read_runs(paths: &[PathBuf]) -> Result<Vec<(String, RunTable)>, CliError> {
    let tables = paths.iter().map(|path| RunTable::read(path)).collect::<Result<Vec<_>, _>>();
    let tables = tables.map_err(anyhow::Error::from)?;
    let labels: Vec<String> =
        paths.iter().zip(&tables).map(|(path, table)| run_label(path, &table.manifest)).collect();
    let unique_label = |(path, label): (&PathBuf, &String)| {
        let is_unique = labels.iter().filter(|other| *other == label).count() == 1;
        if is_unique { label.clone() } else { path.display().to_string() }
    };
    Ok(paths.iter().zip(&labels).map(unique_label).zip(tables).collect())
}
