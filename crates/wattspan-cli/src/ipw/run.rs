//! `wattspan ipw run`: runs a set of questions against a server and records the energy of each answer.

use std::io::stdout;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;
use wattspan_client::clock::unix_ns;
use wattspan_ipw::metering_thread::MeteringHandle;
use wattspan_ipw::power_series::PowerRecorder;
use wattspan_ipw::report::{EnergyPrices, Report};
use wattspan_ipw::row::QueryRow;
use wattspan_ipw::run::{RunOutcome, RunProgress, RunSetup, run_queries as ask_all};
use wattspan_ipw::run_dir::NO_METER;
use wattspan_ipw::table::RunTable;

use super::super::connect::MeterOptions;
use super::super::exit_status::{CliError, FAILURE, OK};
use super::super::output::{self, eprint_message};
use super::super::terminal::{Terminal, printable};
use super::super::termination::TerminationSignals;
use super::prepare::{PreparedRun, prepare_new, prepare_resumed};
use super::progress_line::ProgressLine;
use super::report;
use super::run_options::IpwRunArgs;
use super::server_options::DEFAULT_KEY_VARIABLE;

/// Exit status of an interrupted run: 128 + SIGINT.
pub const STATUS_INTERRUPTED: u8 = 130;

/// Runs `wattspan ipw run`.
pub fn run(options: &MeterOptions, args: &IpwRunArgs) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_questions(options, args))
}

async fn run_questions(options: &MeterOptions, args: &IpwRunArgs) -> Result<u8, CliError> {
    let prepared = match &args.resume {
        Some(path) => prepare_resumed(options, args, path).await?,
        None => prepare_new(options, args).await?,
    };
    let (path, ended) = ask_prepared(prepared, interrupt_signal()?).await.map_err(|(path, error)| {
        let hint =
            format!("the answers so far are saved; resume with: {}", resume_command(options, args, &path));
        CliError::new(FAILURE, format!("{error}\n{hint}"))
    })?;
    print_result(options, args, &path, &ended)
}

/// Runs the queries of a prepared run until all have ended or `interrupt` completes. Returns its directory, which an error
/// has too.
pub async fn ask_prepared(
    prepared: PreparedRun,
    interrupt: oneshot::Receiver<()>,
) -> Result<(PathBuf, RunOutcome), (PathBuf, CliError)> {
    let path = prepared.directory.path().to_owned();
    match ask_in_directory(prepared, interrupt).await {
        Ok(ended) => Ok((path, ended)),
        Err(error) => Err((path, error)),
    }
}

async fn ask_in_directory(
    prepared: PreparedRun,
    interrupt: oneshot::Receiver<()>,
) -> Result<RunOutcome, CliError> {
    let PreparedRun { request_settings, pool, run_settings, meter, mut directory, manifest, questions } =
        prepared;
    let names: Vec<String> = manifest.domains.iter().map(|domain| domain.name.clone()).collect();
    let (metering, watch) = match &meter {
        Some((connector, _)) => {
            let reconnect = Arc::clone(connector);
            let prefix = format!("ipw-{}-{}", std::process::id(), unix_ns() % 1_000_000_000);
            let (metering, _) = MeteringHandle::start(&prefix, Box::new(move || reconnect.connect()))?;
            let watch = connector
                .connect()
                .ok()
                .and_then(|client| PowerRecorder::start(client, directory.path(), &names).ok());
            (Some(metering), watch)
        }
        None => (None, None),
    };
    let model = printable(&manifest.model);
    eprint_message(&format!(
        "querying {model} at {}, writing to {}",
        request_settings.base_url,
        directory.path().display()
    ));
    let setup = RunSetup {
        pool,
        request_settings,
        metering,
        domains: manifest.domains.clone(),
        workload: run_settings.workload,
        warm_up: run_settings.warm_up,
        repeats: manifest.repeats,
        retries: run_settings.retries,
    };
    let mut progress_line = ProgressLine::new(manifest.domains);
    let update = |progress: &RunProgress, row: &QueryRow| progress_line.update(progress, row);
    let ended = ask_all(setup, &questions, &mut directory, update, interrupt).await;
    progress_line.finish();
    drop(watch);
    let ended = ended.map_err(|error| CliError::new(FAILURE, error))?;
    directory.finish().map_err(|error| CliError::new(FAILURE, error))?;
    Ok(ended)
}

/// Completes at the first SIGINT or SIGTERM.
fn interrupt_signal() -> Result<oneshot::Receiver<()>, CliError> {
    let mut signals = TerminationSignals::register()?;
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        signals.next().await;
        let _ = sender.send(());
        // A second signal exits without waiting for the last accounts.
        signals.next().await;
        std::process::exit(i32::from(STATUS_INTERRUPTED));
    });
    Ok(receiver)
}

fn print_result(
    options: &MeterOptions,
    args: &IpwRunArgs,
    path: &Path,
    ended: &RunOutcome,
) -> Result<u8, CliError> {
    let table = RunTable::read(path).map_err(anyhow::Error::from)?;
    let mut figures = Report::new(&table, &args.figure_options.terms(), EnergyPrices::default());
    if !args.figure_options.allow_partial {
        figures.withhold_if_partial();
    }
    if options.json {
        output::print_json_pretty(&figures)?;
    } else {
        output::print_text(&report::render_report(&figures, Terminal::of(&stdout())))?;
    }
    if ended.interrupted {
        eprint_message(&format!("interrupted; resume with: {}", resume_command(options, args, path)));
        return Ok(STATUS_INTERRUPTED);
    }
    let path = path.display().to_string();
    let page = shell_command([&program_name(), "ipw", "report", &path, "--html", "report.html"]);
    eprint_message(&format!("write an HTML report: {page}"));
    // A run without any answer is a failure; its rows contain the reasons.
    let progress = &ended.progress;
    if progress.total > 0 && progress.failed == progress.total {
        return Ok(FAILURE);
    }
    let accepted = args.without_meter && figures.run.meter == NO_METER;
    figures.no_energy.filter(|_| !accepted).map_or(Ok(OK), |reason| Err(report::no_energy_error(&reason)))
}

/// The command that resumes the run with the same program, meter and server.
fn resume_command(options: &MeterOptions, args: &IpwRunArgs, path: &Path) -> String {
    if let Some(command) = &args.resume_command {
        return command.clone();
    }
    let mut words = vec![program_name()];
    for (option, value) in
        [("--socket", &options.socket), ("--replay", &options.replay), ("--config", &options.config)]
    {
        words.extend(value.iter().flat_map(|value| [option.to_owned(), value.display().to_string()]));
    }
    words.extend(["ipw".into(), "run".into(), "--resume".into(), path.display().to_string()]);
    // The directory contains the original server only, without its key.
    if let (Some(_), Some(url)) = (&args.resume, &args.server.url) {
        words.extend(["--url".to_owned(), url.to_string()]);
    }
    if args.server.request.key_from != DEFAULT_KEY_VARIABLE {
        words.extend(["--key-from".to_owned(), args.server.request.key_from.clone()]);
    }
    if args.without_meter {
        words.push("--without-meter".into());
    }
    shell_command(words.iter().map(String::as_str))
}

/// The path with which this program was started; it may not be in PATH.
fn program_name() -> String {
    std::env::args().next().unwrap_or_else(|| "wattspan".into())
}

/// Quotes words for a shell.
fn shell_command<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let is_plain = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-:=,@+".contains(c))
    };
    let quote = |word: &str| {
        if is_plain(word) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_is_quoted_for_a_shell() {
        let words = ["/opt/a b/wattspan", "ipw", "--resume", "it's $HOME", ""];
        assert_eq!(shell_command(words), r"'/opt/a b/wattspan' ipw --resume 'it'\''s $HOME' ''");
    }
}
