//! `wattspan ipw import`: imports results of the public harness or of an evaluator as a run, and reports what is missing or
//! wrong in them.

use std::path::PathBuf;

use wattspan_ipw::harness::{import::import as import_run, results_reader};

use super::super::connect::MeterOptions;
use super::super::exit_status::{CliError, OK};
use super::super::output::{self, eprint_message};
use super::super::terminal::printable;
use super::import_evaluator::{EvaluatorOptions, import_evaluator};

/// Arguments of `wattspan ipw import`.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// Results directory of the harness (data-*.arrow, or records as JSON lines or JSON), or one file of it
    #[arg(value_name = "HARNESS_DIR", required_unless_present_any = ["inspect", "lm_eval"])]
    source: Option<PathBuf>,
    #[command(flatten)]
    evaluator: EvaluatorOptions,
    /// Output directory of the run
    #[arg(long, short = 'o', value_name = "DIRECTORY")]
    out: PathBuf,
    /// Model whose answers are imported, if the results contain several
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Label of the run in reports [default: the model]
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
}

/// Runs `wattspan ipw import`.
pub fn import(options: &MeterOptions, args: &ImportArgs) -> Result<u8, CliError> {
    let Some(source) = &args.source else {
        return import_evaluator(options, &args.evaluator, args.label.as_deref(), &args.out);
    };
    let found = results_reader::read_results(source).map_err(anyhow::Error::from)?;
    let findings = import_run(source, found, args.model.as_deref(), args.label.as_deref(), &args.out)
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
    eprint_message(&format!("show the results: wattspan ipw report {out}"));
    Ok(OK)
}
