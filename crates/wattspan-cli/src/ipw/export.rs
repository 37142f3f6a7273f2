//! `wattspan ipw export`: exports a run in the public harness's schema, or one flat row for each query as Parquet or JSON
//! lines.

use std::path::PathBuf;

use wattspan_ipw::harness::columnar;
use wattspan_ipw::harness::export::RunExport;
use wattspan_ipw::harness::output::write_json_lines;
use wattspan_ipw::scope::Scope;

use super::super::connect::MeterOptions;
use super::super::exit_status::{CliError, OK};
use super::super::output::eprint_message;

/// Arguments of `wattspan ipw export`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("form").required(true).multiple(true))]
pub struct ExportArgs {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Write a results directory in the public harness's schema
    #[arg(long, value_name = "DIRECTORY", group = "form")]
    harness: Option<PathBuf>,
    /// Write a flat row for each query as Parquet
    #[arg(long, value_name = "FILE", group = "form")]
    parquet: Option<PathBuf>,
    /// Write a flat row for each query as JSON lines ("-": standard output)
    #[arg(long, value_name = "FILE", group = "form")]
    jsonl: Option<PathBuf>,
    /// Domains counted in the harness's energies; the harness itself counts accelerators only
    #[arg(long, value_enum, default_value_t = Scope::Host, requires = "harness")]
    scope: Scope,
}

/// Runs `wattspan ipw export`.
pub fn export(_: &MeterOptions, args: &ExportArgs) -> Result<u8, CliError> {
    let read = || RunExport::read(&args.run).map_err(anyhow::Error::from);
    if let Some(folder) = &args.harness {
        let run = read()?;
        run.write_harness_dir(folder, args.scope).map_err(anyhow::Error::from)?;
        let forms = if columnar::IS_SUPPORTED { "Arrow and JSON lines" } else { "JSON lines" };
        eprint_message(&format!(
            "{}: {} queries as {forms}, energies of: {}",
            folder.display(),
            run.len(),
            args.scope.title()
        ));
    }
    if let Some(file) = &args.jsonl {
        let count = write_json_lines(file, read()?.into_flat_rows()).map_err(anyhow::Error::from)?;
        eprint_message(&format!("{}: {count} queries", file.display()));
    }
    if let Some(file) = &args.parquet {
        let count = columnar::write_parquet(file, read()?.into_flat_rows()).map_err(anyhow::Error::from)?;
        eprint_message(&format!("{}: {count} queries", file.display()));
    }
    Ok(OK)
}
