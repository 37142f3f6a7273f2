//! `wattspan ipw`: intelligence per watt, from questions to a page.
//!
//! Owns the verbs below it. What they compute is in `crate::ipw`; here are words and tables. Results go to standard output,
//! the live line to standard error.

mod begun;
mod compare;
mod export;
mod import;
mod live;
mod report;
mod route;
mod run;
mod score;
mod server;
mod shown;

use std::path::Path;

use clap::{Args, Subcommand};

use super::Meter;
use super::ending::Trouble;
use crate::ipw::metric::Terms;
use crate::ipw::scope::{Idle, Scope};

/// Which figures.
#[derive(Debug, Clone, Args)]
struct Wanted {
    /// Which domains count
    #[arg(long, value_enum, default_value_t = Scope::Host)]
    scope: Scope,
    /// Whether idle power is part of the figures
    #[arg(long, value_enum, default_value_t = Idle::Included)]
    idle: Idle,
    /// Of the resampling that gives the intervals
    #[arg(long, value_name = "N", default_value_t = 0)]
    interval_seed: u64,
}

impl Wanted {
    fn terms(&self) -> Terms {
        Terms { scope: self.scope, idle: self.idle, seed: self.interval_seed }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Ask a server a set of questions and keep what each answer used
    Run(run::Arguments),
    /// Score a run's answers again, without asking the model again
    Score(score::Arguments),
    /// Tell what a run says: a table, JSON, CSV, or a page with pictures
    Report(report::Arguments),
    /// Put runs of the same questions side by side
    Compare(compare::Arguments),
    /// Tell what routing questions to small models would save
    Route(route::Arguments),
    /// Read results of the public harness as a run, and say what was missing or wrong in them
    Import(import::Arguments),
    /// Write a run for other programs: in the harness's schema, as Parquet, as flat JSON lines
    Export(export::Arguments),
}

/// Does it.
pub fn ipw(meter: &Meter, verb: &Verb) -> Result<u8, Trouble> {
    match verb {
        Verb::Run(asked) => run::run(meter, asked),
        Verb::Score(asked) => score::score(meter, asked),
        Verb::Report(asked) => report::report(meter, asked),
        Verb::Compare(asked) => compare::compare(meter, asked),
        Verb::Route(asked) => route::route(meter, asked),
        Verb::Import(asked) => import::import(meter, asked),
        Verb::Export(asked) => export::export(meter, asked),
    }
}

/// `NAME=VALUE` on the command line.
fn named<T: std::str::FromStr>(text: &str) -> Result<(String, T), String>
where
    T::Err: std::fmt::Display,
{
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let value = value.parse().map_err(|wrong| format!("{value}: {wrong}"))?;
    Ok((name.to_owned(), value))
}

/// What people call a run that they name by its directory.
fn label(path: &Path, manifest: &crate::ipw::run_dir::Manifest) -> String {
    if !manifest.label.is_empty() {
        return manifest.label.clone();
    }
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
