//! `wattspan run`: runs a command and shows the energy it used.
//!
//! A span opens before the command starts and closes at the instant its end is observed. The report goes to standard error
//! or to a file, after the command's output. If the meter fails meanwhile, the command's exit status is still passed on,
//! and the energy is unknown. Runs that have ended are reported also where a later one cannot start.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{stderr, stdout};
use std::path::PathBuf;

use wattspan_client::account::Account;
use wattspan_client::domain::Liveness;
use wattspan_client::protocol::{DomainStatus, OpenSpan};
use wattspan_client::{Client, ClientError, SpanGuard};
use wattspan_system::private_file::OpenOutput;

use super::child_process::{self, ChildExit, StartCommandError};
use super::connect::{MeterConnector, MeterOptions, ensure_measurable};
use super::exit_status::{CliError, FAILURE};
use super::resolution::too_short_domains;
use super::run_report::{MeasuredRun, RunReport};
use super::sample_statistics::SampleStatistics;
use super::signal_ffi::{self, SignalForwarder};
use super::table::KeyValueTable;
use super::terminal::{Terminal, printable};
use super::{
    account_report,
    output::{self, eprint_message},
    run_report,
};

/// Arguments of `wattspan run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Run the command N times and show mean, standard deviation, minimum and maximum
    #[arg(long, short = 'r', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Write the report to FILE instead of standard error ("-": standard output)
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the span [default: the command's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Attribute of the span; repeatable
    #[arg(long = "attribute", short = 'a', value_name = "KEY=VALUE", value_parser = parse_attribute)]
    attributes: Vec<(String, String)>,
    /// Count only this domain; repeatable [default: all]
    #[arg(long = "domain", short = 'd', value_name = "DOMAIN")]
    domains: Vec<String>,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

impl RunArgs {
    pub fn command(&self) -> &[OsString] {
        &self.words
    }

    fn open_request(&self) -> OpenSpan {
        let program = self.words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        let base = program.rsplit('/').next().unwrap_or(&program).to_owned();
        let attributes: BTreeMap<_, _> = self.attributes.iter().cloned().collect();
        OpenSpan {
            name: Some(self.name.clone().unwrap_or(base)),
            attributes: Some(attributes).filter(|attributes| !attributes.is_empty()),
            domains: Some(self.domains.clone()).filter(|domains| !domains.is_empty()),
            ..OpenSpan::default()
        }
    }
}

/// Runs `wattspan run`.
pub fn run(options: &MeterOptions, args: &RunArgs) -> Result<u8, CliError> {
    let (connector, client) = MeterConnector::open_for_commands(options, args.repeat)?;
    let info = client.info()?;
    ensure_measurable(&info)?;
    let output = ReportOutput::open(args.output.as_ref())?;
    if !options.json {
        connector.print_fallback_notice();
    }
    // A meter that rejects the first span would reject all: the command is not started.
    let first_span = client.open_span_with(args.open_request())?;
    // Kept until the report is printed: a signal may arrive twice, for this process and for its group.
    let signals = signal_ffi::install_handlers();
    let (mut runs, start_error) = run_repeatedly(&client, args, first_span, &signals);
    if let Some(error) = start_error.as_ref().filter(|_| runs.is_empty()) {
        eprint_message(&error.to_string());
        return Ok(error.shell_status());
    }
    // More update intervals are known after the runs; if the daemon is gone, the earlier ones are used.
    let domains = client.info().unwrap_or(info).domains;
    for run in &mut runs {
        run.too_short =
            run.account.as_ref().map_or_else(Vec::new, |account| too_short_domains(account, &domains));
        run.not_in_account = run
            .account
            .as_ref()
            .map_or_else(Vec::new, |account| domains_not_in_account(args, account, &domains));
    }
    let run_report = build_report(args, &connector, runs, start_error.as_ref());
    let text = if options.json {
        output::to_json_line(&run_report)?
    } else {
        format!("\n{}", render_report(&run_report, &domains, output.terminal()))
    };
    // A failure to write the report does not change the command's exit status.
    if let Err(error) = output.write(&text) {
        eprint_message(&format!("cannot write the report: {error}"));
    }
    if let Some(error) = start_error {
        eprint_message(&error.to_string());
    }
    // The process ends next, and an embedded meter with it: to stop its threads one by one would take longer.
    std::mem::forget(connector);
    Ok(run_report.exit_status)
}

/// Runs the command repeatedly until all runs are done, a termination signal arrives, or a run cannot start, for the reason
/// that is returned. `first_span` is the span of the first run.
fn run_repeatedly(
    client: &Client,
    args: &RunArgs,
    first_span: SpanGuard<'_>,
    signals: &SignalForwarder,
) -> (Vec<MeasuredRun>, Option<StartCommandError>) {
    let mut runs: Vec<MeasuredRun> = Vec::new();
    let mut span = Ok(first_span);
    loop {
        let command_run = match child_process::run_command(args.command(), signals) {
            Ok(command_run) => command_run,
            Err(error) => {
                // The daemon may be gone; the command's failure is what the user has to know.
                let _ = span.map(SpanGuard::cancel);
                return (runs, Some(error));
            }
        };
        let at_ns = i64::try_from(command_run.ended_ns).unwrap_or(i64::MAX);
        let account: Result<Account, ClientError> = span.and_then(|span| span.close_at(at_ns));
        let (account, unknown) = match account {
            Ok(account) => (Some(account), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let signal = if let ChildExit::Signaled(number) = command_run.exit { Some(number) } else { None };
        let duration_ns = command_run.ended_ns.saturating_sub(command_run.started_ns);
        runs.push(MeasuredRun {
            exit_status: command_run.exit.shell_status(),
            signal,
            duration_ns,
            account,
            unknown,
            too_short: Vec::new(),
            not_in_account: Vec::new(),
        });
        // In this order, a termination request is either seen here or kept for the next command.
        signals.discard_pending();
        if signal.is_some() || signals.is_termination_requested() || runs.len() >= args.repeat as usize {
            return (runs, None);
        }
        span = client.open_span_with(args.open_request());
    }
}

/// The domains of the host's total that the account lacks, because their counters had not advanced when the span opened.
/// Without a daemon only the command's own load shows whether such a counter is stuck.
fn domains_not_in_account(args: &RunArgs, account: &Account, all: &[DomainStatus]) -> Vec<String> {
    if !args.domains.is_empty() {
        return Vec::new();
    }
    let is_missing = |domain: &&DomainStatus| {
        let has_share = account.domains.iter().any(|share| share.domain == domain.name);
        domain.counted && domain.liveness == Liveness::Live && !has_share
    };
    all.iter().filter(is_missing).map(|domain| domain.name.clone()).collect()
}

fn build_report(
    args: &RunArgs,
    connector: &MeterConnector,
    runs: Vec<MeasuredRun>,
    start_error: Option<&StartCommandError>,
) -> RunReport {
    let start_status = start_error.map(StartCommandError::shell_status);
    let mut statuses = runs.iter().map(|run| run.exit_status).chain(start_status);
    let statistics_of = |value_of: fn(&Account) -> Option<u64>| {
        SampleStatistics::if_all_known(runs.iter().map(|run| run.account.as_ref().and_then(value_of)))
    };
    RunReport {
        command: args.command().iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        meter: connector.description(),
        exit_status: statuses.find(|&status| status != 0).unwrap_or(0),
        share_uj: statistics_of(|account| account.share_uj),
        mean_power_mw: statistics_of(|account| account.mean_power_mw),
        duration_ns: SampleStatistics::if_all_known(runs.iter().map(|run| Some(run.duration_ns))),
        runs,
    }
}

fn render_report(run_report: &RunReport, domains: &[DomainStatus], terminal: Terminal) -> String {
    let command = run_report.command.join(" ");
    match run_report.runs.as_slice() {
        [run] => match &run.account {
            Some(account) => {
                let title = format!("Energy of: {command}");
                let report =
                    account_report::render_account(&title, Some("the command"), account, domains, terminal);
                let mut missing = KeyValueTable::default();
                run_report::add_missing_domains(&run_report.runs, &mut missing);
                format!("{report}{}", missing.render(terminal))
            }
            None => {
                let reason = run.unknown.as_deref().unwrap_or_default();
                let mut lines = KeyValueTable::default();
                lines.add_row("energy", [super::quantity::format_unknown(reason).into()]);
                format!("Energy of: {}\n\n{}", printable(&command), lines.render(terminal))
            }
        },
        runs => run_report::render_runs(
            &format!("Energy of: {command}, {} runs", runs.len()),
            run_report,
            domains,
            terminal,
        ),
    }
}

/// The destination of the report, opened before the command runs so that an invalid path fails early. A file keeps its
/// content until the report is written.
enum ReportOutput {
    Stderr,
    Stdout,
    File(OpenOutput),
}

impl ReportOutput {
    fn open(path: Option<&PathBuf>) -> Result<Self, CliError> {
        match path {
            None => Ok(ReportOutput::Stderr),
            Some(path) if path.as_os_str() == "-" => Ok(ReportOutput::Stdout),
            Some(path) => OpenOutput::open(path)
                .map(ReportOutput::File)
                .map_err(|error| CliError::new(FAILURE, format!("--output {}: {error}", path.display()))),
        }
    }

    fn terminal(&self) -> Terminal {
        match self {
            ReportOutput::Stderr => Terminal::of(&stderr()),
            ReportOutput::Stdout => Terminal::of(&stdout()),
            ReportOutput::File(_) => Terminal::PLAIN,
        }
    }

    fn write(self, text: &str) -> Result<(), CliError> {
        match self {
            ReportOutput::Stderr => output::eprint_text(text),
            ReportOutput::Stdout => output::print_text(text),
            ReportOutput::File(file) => Ok(output::write_text(&mut file.emptied()?, text, Terminal::PLAIN)?),
        }
    }
}

fn parse_attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".into()),
    }
}
