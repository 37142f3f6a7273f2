//! `wattspan ipw import`: results of the public harness as a run.
//!
//! Owns what is said of them: what was missing or wrong, on standard error, and the way on.

use std::path::PathBuf;

use super::super::exit_status::{CliError, OK};
use super::super::terminal::printable;
use super::super::{MeterOptions, eprint_message, output};
use crate::ipw::harness::{import::import as import_run, results_reader};

/// Which results, and where the run goes.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
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
pub fn import(options: &MeterOptions, args: &ImportArgs) -> Result<u8, CliError> {
    let found = results_reader::read_results(&args.source).map_err(anyhow::Error::from)?;
    let findings = import_run(&args.source, found, args.model.as_deref(), args.label.as_deref(), &args.out)
        .map_err(anyhow::Error::from)?;
    if options.json {
        output::print_json_pretty(&findings)?;
        return Ok(OK);
    }
    let out = args.out.display();
    output::print_text(&format!(
        "{} queries of {} in {out}\n",
        findings.records,
        printable(&findings.model)
    ))?;
    for sentence in findings.sentences() {
        output::print_text(&format!("  {}\n", printable(&sentence)))?;
    }
    eprint_message(&format!("what it says: wattspan ipw report {out}"));
    Ok(OK)
}
