//! `wattspan ipw import`: results of the public harness as a run.
//!
//! Owns what is said of them: what was missing or wrong, on standard error, and the way on.

use std::path::PathBuf;

use super::super::ending::{OK, Trouble};
use super::super::terminal::printable;
use super::super::{Meter, output, say};
use crate::ipw::harness::{import::import as as_run, source};

/// Which results, and where the run goes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The harness's results directory (data-*.arrow, or its records as JSON lines or JSON), or one file of it
    #[arg(value_name = "HARNESS_DIR")]
    source: PathBuf,
    /// Keep the run here
    #[arg(long, short = 'o', value_name = "DIRECTORY")]
    out: PathBuf,
    /// Whose answers, where the results have several models'
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// What the run is called in reports [default: the model]
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
}

/// Reads, writes and tells.
pub fn import(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let found = source::read(&asked.source).map_err(anyhow::Error::from)?;
    let findings = as_run(&asked.source, found, asked.model.as_deref(), asked.label.as_deref(), &asked.out)
        .map_err(anyhow::Error::from)?;
    if meter.json {
        output::json_pretty(&findings)?;
        return Ok(OK);
    }
    let out = asked.out.display();
    output::text(&format!("{} queries of {} in {out}\n", findings.records, printable(&findings.model)))?;
    for sentence in findings.sentences() {
        output::text(&format!("  {}\n", printable(&sentence)))?;
    }
    say(&format!("what it says: wattspan ipw report {out}"));
    Ok(OK)
}
