//! `wattspan export`: writes stored accounts to files, each account once, or sends them to a service.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use wattspan_client::Client;
use wattspan_export::{ExportFormat, ExportSettings, ExportSummary, Exporter};

use super::connect::{MeterConnector, MeterOptions};
use super::exit_status::{CliError, OK, USAGE};
use super::export_options::{machine_name, named_or_default_attributes, parse_interval, to_cli_error};
use super::export_otlp::{self, OtlpArgs};
use super::export_prometheus::{self, PrometheusArgs};
use super::output;

/// Arguments of `wattspan export`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ExportArgs {
    #[command(subcommand)]
    service: Option<ExportService>,
    #[command(flatten)]
    files: Option<FileExportArgs>,
}

/// Services that accounts are sent to.
#[derive(Debug, clap::Subcommand)]
enum ExportService {
    /// Send accounts as spans, and energy as metrics, to an OpenTelemetry collector (OTLP/HTTP, JSON)
    Otlp(OtlpArgs),
    /// Serve metrics to Prometheus: energy of domains, and of spans by model
    #[command(after_help = export_prometheus::SECURITY_HELP)]
    Prometheus(PrometheusArgs),
}

/// Arguments of an export to files.
#[derive(Debug, clap::Args)]
struct FileExportArgs {
    /// File format: jsonl, csv, parquet, or trace (Chrome and Perfetto)
    #[arg(value_name = "FORMAT", value_parser = parse_format)]
    format: ExportFormat,
    /// Directory of the partitions date=YYYY-MM-DD/host=HOST, by the UTC date of the closing
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Export again after each interval, until interrupted: 30s, 10m, 1h
    #[arg(long, value_name = "INTERVAL", value_parser = parse_interval)]
    every: Option<Duration>,
    /// File with the number up to which accounts are exported [default: in DIR, one for each format]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Host in the names of the partitions [default: the machine's name]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Export this attribute of the spans, and only those that are named; repeatable [default: gen_ai.request.model,
    /// gen_ai.response.model, gen_ai.operation.name, gen_ai.usage.input_tokens, gen_ai.usage.output_tokens]
    #[arg(long = "attribute", short = 'a', value_name = "KEY")]
    attributes: Vec<String>,
}

fn parse_format(text: &str) -> Result<ExportFormat, String> {
    let all = [
        ("jsonl", ExportFormat::Jsonl),
        ("csv", ExportFormat::Csv),
        ("parquet", ExportFormat::Parquet),
        ("trace", ExportFormat::Trace),
    ];
    let found = all.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, format)| format).ok_or_else(|| "expected jsonl, csv, parquet or trace".to_owned())
}

/// The result in JSON output.
#[derive(Serialize)]
struct ExportOutput {
    accounts: u64,
    files: u64,
}

/// Runs `wattspan export`.
pub fn export(options: &MeterOptions, args: &ExportArgs) -> Result<u8, CliError> {
    match (&args.service, &args.files) {
        (Some(ExportService::Otlp(args)), _) => export_otlp::export_otlp(options, args),
        (Some(ExportService::Prometheus(args)), _) => export_prometheus::export_prometheus(options, args),
        (None, Some(files)) => export_files(options, files),
        (None, None) => Err(CliError::new(USAGE, "name a format or a service; see wattspan export --help")),
    }
}

fn export_files(options: &MeterOptions, args: &FileExportArgs) -> Result<u8, CliError> {
    if let Some(reason) = args.format.missing_feature() {
        return Err(CliError::new(USAGE, reason));
    }
    let mut exporter = Exporter::open(ExportSettings {
        format: args.format,
        directory: args.to.clone(),
        state: args.state.clone(),
        host: args.host.clone().unwrap_or_else(machine_name),
        attributes: named_or_default_attributes(&args.attributes),
    })
    .map_err(to_cli_error)?;
    loop {
        let result = run_once(options, &mut exporter);
        let Some(interval) = args.every else {
            print_summary(options, args, &result?)?;
            return Ok(OK);
        };
        match result {
            Ok(summary) if summary.files > 0 => {
                // The accounts are in their files, whether or not the summary is read.
                if let Err(error) = print_summary(options, args, &summary) {
                    output::eprint_message(&format!(
                        "cannot write the summary to standard output: {error}; the export goes on"
                    ));
                }
            }
            Ok(_) => {}
            // The daemon may be restarting, or the disk full: the next turn continues with the same range.
            Err(error) => output::eprint_message(&format!("{error}; the export is repeated")),
        }
        thread::sleep(interval);
    }
}

fn run_once(options: &MeterOptions, exporter: &mut Exporter) -> Result<ExportSummary, CliError> {
    let place = MeterConnector::daemon_socket(options)?;
    let mut report = |message: &str| output::eprint_message(message);
    exporter.run(&mut || Client::connect(&place), &mut report).map_err(to_cli_error)
}

fn print_summary(
    options: &MeterOptions,
    args: &FileExportArgs,
    summary: &ExportSummary,
) -> Result<(), CliError> {
    let ExportSummary { accounts, files, .. } = *summary;
    if options.json {
        return output::print_json(&ExportOutput { accounts, files });
    }
    let directory = super::terminal::printable(&args.to.to_string_lossy());
    output::print_text(&format!("exported {accounts} accounts in {files} files to {directory}\n"))
}
