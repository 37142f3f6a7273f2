//! `wattspan ipw export`: a run for other programs.
//!
//! Owns the choice of form: the public harness's schema, or one flat row for each query as Parquet or JSON lines.

use std::path::PathBuf;

use super::super::ending::{OK, Trouble};
use super::super::{Meter, say};
use crate::ipw::harness::columnar;
use crate::ipw::harness::export::{Exported, to_file};
use crate::ipw::scope::Scope;

/// Which run, and into what.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("form").required(true).multiple(true))]
pub struct Arguments {
    /// The run's directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Write a results directory in the public harness's schema
    #[arg(long, value_name = "DIRECTORY", group = "form")]
    harness: Option<PathBuf>,
    /// Write a flat row for each query as Parquet (needs a build with the feature `parquet`)
    #[arg(long, value_name = "FILE", group = "form")]
    parquet: Option<PathBuf>,
    /// Write a flat row for each query as JSON lines ("-": standard output)
    #[arg(long, value_name = "FILE", group = "form")]
    jsonl: Option<PathBuf>,
    /// Which domains the harness's energies count; the harness itself counts accelerators only
    #[arg(long, value_enum, default_value_t = Scope::Host, requires = "harness")]
    scope: Scope,
}

/// Reads, writes and tells.
pub fn export(_: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let read = || Exported::read(&asked.run).map_err(anyhow::Error::from);
    if let Some(folder) = &asked.harness {
        let run = read()?;
        run.to_harness(folder, asked.scope).map_err(anyhow::Error::from)?;
        let forms = if columnar::BUILT_IN { "Arrow and JSON lines" } else { "JSON lines" };
        say(&format!(
            "{}: {} queries as {forms}, energies of: {}",
            folder.display(),
            run.len(),
            asked.scope.title()
        ));
    }
    if let Some(file) = &asked.jsonl {
        let count = to_file(file, read()?.flat()).map_err(anyhow::Error::from)?;
        say(&format!("{}: {count} queries", file.display()));
    }
    if let Some(file) = &asked.parquet {
        let count = columnar::write_flat(file, read()?.flat()).map_err(anyhow::Error::from)?;
        say(&format!("{}: {count} queries", file.display()));
    }
    Ok(OK)
}
