//! `wattspan ipw sweep`: runs of the same questions at several concurrencies, models and servers.
//!
//! Each point is a run of its own in the sweep's directory. The same command continues an interrupted sweep: a finished
//! point is not run again, an interrupted one is resumed.

use std::hash::Hasher;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use fnv::FnvHasher;
use tokio::sync::{oneshot, watch};
use wattspan_client::clock::{monotonic_ns, thread_cpu_ns};
use wattspan_http::BaseUrl;
use wattspan_ipw::question_sets::QuestionSet;
use wattspan_ipw::report::format::{format_estimate, format_significant};
use wattspan_ipw::report::sweep_page::{
    describe_best, describe_limits, describe_sweep, front_name, render_sweep_page,
};
use wattspan_ipw::report::uncertainty::with_combined;
use wattspan_ipw::report::units::InverseUnit;
use wattspan_ipw::run_dir::{has_rows_without_text, read_manifest};
use wattspan_ipw::sweep::{CLIENT_LOAD_FILE, ClientLoad, LatencyMeasure, SweepPoint, SweepReport};
use wattspan_ipw::table::RunTable;
use wattspan_system::private_file;

use super::super::connect::MeterOptions;
use super::super::exit_status::{CliError, FAILURE, NO_COUNTER, OK, PERMISSION_DENIED, UNREACHABLE};
use super::super::output::{self, eprint_message};
use super::super::table::{TextTable, number_column, text_column};
use super::super::terminal::{Terminal, printable};
use super::super::termination::TerminationSignals;
use super::options::{FigureOptions, parse_named_value};
use super::prepare::{changed_settings, load_questions, prepare_new, prepare_resumed};
use super::run::{STATUS_INTERRUPTED, ask_prepared};
use super::run_options::IpwRunArgs;
use super::server_options::{RequestOptions, ServerOptions};

/// How many queries a slot answers at least, so that ramp and drain are a small part of a point.
const MIN_QUERIES_PER_SLOT: u64 = 8;

/// Arguments of `wattspan ipw sweep`.
#[derive(Debug, clap::Args)]
pub struct SweepArgs {
    /// Base URL of a server (OpenAI-compatible servers: with /v1); repeatable [default: http://127.0.0.1:8000/v1]
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<BaseUrl>,
    /// Model; repeatable [default: the first one that each server lists]
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// Numbers of concurrent queries
    #[arg(long = "concurrency", short = 'c', value_name = "N,...", value_delimiter = ',', default_value = "1,2,4,8",
          value_parser = clap::value_parser!(u64).range(1..=4096))]
    concurrencies: Vec<u64>,
    /// Directory of the sweep; the same command continues it
    #[arg(long, short = 'o', value_name = "DIRECTORY")]
    out: PathBuf,
    /// Name the points that are best at a latency of at most S seconds
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    latency_bound: Option<f64>,
    /// Latency that counts, of the answered queries
    #[arg(long, value_enum, default_value_t = LatencyMeasure::P95)]
    latency: LatencyMeasure,
    /// Write a self-contained HTML page with charts to FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Questions as JSON lines [default: 50 built-in questions]
    #[arg(long, short = 'q', value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Read FILE as this published set, as it is distributed (JSON lines, JSON or CSV; a directory for MATH)
    #[arg(long = "as", value_name = "SET", requires = "questions", value_enum)]
    question_set: Option<QuestionSet>,
    /// Use only the first N questions
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Ask each question N times [default: as often as 8 queries for each concurrent one need]
    #[arg(long, short = 'r', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: Option<u32>,
    /// Number of uncounted warm-up queries of each point
    #[arg(long, value_name = "N", default_value_t = 3)]
    warm_up: u32,
    /// Number of retries of a failed query
    #[arg(long, value_name = "N", default_value_t = 2)]
    retries: u32,
    /// State a condition for the result cards, e.g. engine_flags="-ngl 99"; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_named_value::<String>)]
    condition: Vec<(String, String)>,
    #[command(flatten)]
    request: RequestOptions,
    #[command(flatten)]
    figure_options: FigureOptions,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if seconds > 0.0 && seconds.is_finite() { Ok(seconds) } else { Err("expected seconds above 0".into()) }
}

/// A point that is to be run.
struct PlannedPoint {
    run: IpwRunArgs,
    directory: PathBuf,
    /// The point in messages.
    name: String,
}

/// How a sweep ended.
struct SweepOutcome {
    /// The points that have a run, in order.
    points: Vec<PathBuf>,
    failures: usize,
    interrupted: bool,
}

/// How the run of a point ended.
enum PointEnd {
    Finished,
    Interrupted,
    /// The run in its directory has other settings, so that its figures belong to another sweep.
    OtherSettings(CliError),
}

/// Runs `wattspan ipw sweep`.
pub fn sweep(options: &MeterOptions, args: &SweepArgs) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run_points(options, args))?;
    let terms = args.figure_options.terms();
    let read = |path: &PathBuf| {
        SweepPoint::read(path, args.latency, &terms, args.figure_options.allow_partial)
            .map_err(anyhow::Error::from)
    };
    let points = outcome.points.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let report = SweepReport::new(points, args.latency, args.latency_bound);
    if let Some(file) = &args.html {
        private_file::write(file, render_sweep_page(&report))
            .map_err(|cause| anyhow::anyhow!("{}: {cause}", file.display()))?;
    }
    if options.json {
        output::print_json_pretty(&report)?;
    } else {
        output::print_text(&render(&report, Terminal::of(&stdout())))?;
    }
    if outcome.interrupted {
        eprint_message("interrupted; the same command continues the sweep");
        return Ok(STATUS_INTERRUPTED);
    }
    Ok(if outcome.failures > 0 { FAILURE } else { OK })
}

/// Runs every point that is not finished.
async fn run_points(options: &MeterOptions, args: &SweepArgs) -> Result<SweepOutcome, CliError> {
    let interrupted = watch_interrupts()?;
    let planned = plan(args).await?;
    let mut outcome = SweepOutcome { points: Vec::new(), failures: 0, interrupted: false };
    for (number, point) in (1..).zip(&planned) {
        if *interrupted.borrow() {
            outcome.interrupted = true;
            break;
        }
        let of = format!("point {number} of {}: {}", planned.len(), point.name);
        match run_point(options, point, &of, &interrupted).await {
            Ok(PointEnd::Finished) => {}
            Ok(PointEnd::Interrupted) => outcome.interrupted = true,
            Ok(PointEnd::OtherSettings(error)) => {
                outcome.failures += 1;
                eprint_message(&format!("{of}: {error}"));
                continue;
            }
            // Without a meter no point has an energy.
            Err(error) if [NO_COUNTER, UNREACHABLE, PERMISSION_DENIED].contains(&error.status) => {
                return Err(error);
            }
            Err(error) => {
                outcome.failures += 1;
                eprint_message(&format!("{of}: {error}"));
            }
        }
        if point.directory.join("run.json").exists() {
            outcome.points.push(point.directory.clone());
        }
        if outcome.interrupted {
            break;
        }
    }
    Ok(outcome)
}

/// Runs a point, or what is left of it.
async fn run_point(
    options: &MeterOptions,
    point: &PlannedPoint,
    of: &str,
    interrupted: &watch::Receiver<bool>,
) -> Result<PointEnd, CliError> {
    let mut run = point.run.clone();
    let prepared = if point.directory.join("run.json").exists() {
        let manifest = read_manifest(&point.directory).map_err(anyhow::Error::from)?;
        let changed = changed_settings(&run, &manifest).await?;
        if !changed.is_empty() {
            let path = point.directory.display();
            let changed = changed.join("; ");
            return Ok(PointEnd::OtherSettings(CliError::new(
                FAILURE,
                format!("{path} was run with other settings ({changed}): name another directory (-o)"),
            )));
        }
        if is_finished(&point.directory)? {
            eprint_message(&format!("{of}: finished before"));
            return Ok(PointEnd::Finished);
        }
        eprint_message(&format!("{of}: resumed"));
        run.resume = Some(point.directory.clone());
        prepare_resumed(options, &run, &point.directory).await?
    } else {
        eprint_message(of);
        prepare_new(options, &run).await?
    };
    let interrupt = interrupt_of(interrupted);
    // This thread sends all queries.
    let (cpu_ns, wall_ns) = (thread_cpu_ns(), monotonic_ns());
    let (path, ended) = ask_prepared(prepared, interrupt).await.map_err(|(_, error)| error)?;
    let load = ClientLoad { cpu_ns: thread_cpu_ns() - cpu_ns, wall_ns: monotonic_ns() - wall_ns };
    let file = path.join(CLIENT_LOAD_FILE);
    let bytes = serde_json::to_vec(&load)?;
    private_file::write_atomically(&file, 0o600, |mut file| file.write_all(&bytes))
        .map_err(|cause| anyhow::anyhow!("{}: {cause}", file.display()))?;
    if ended.progress.total > 0 && ended.progress.failed == ended.progress.total && !ended.interrupted {
        return Err(CliError::new(FAILURE, "every query failed"));
    }
    Ok(if ended.interrupted { PointEnd::Interrupted } else { PointEnd::Finished })
}

/// Whether every planned query of a run was delivered, and no power cut took its text: a row of one that was not delivered
/// says only that no server took it.
fn is_finished(directory: &Path) -> Result<bool, CliError> {
    // A power cut may have taken the name of the rows, too.
    if !directory.join("rows.jsonl").exists()
        || has_rows_without_text(directory).map_err(anyhow::Error::from)?
    {
        return Ok(false);
    }
    let table = RunTable::read(directory).map_err(anyhow::Error::from)?;
    Ok(table.columns.delivered.iter().filter(|is_delivered| **is_delivered).count() >= table.asked())
}

/// Becomes true at the first SIGINT or SIGTERM; a second one ends the program.
fn watch_interrupts() -> Result<watch::Receiver<bool>, CliError> {
    let mut signals = TerminationSignals::register()?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        signals.next().await;
        let _ = sender.send(true);
        signals.next().await;
        std::process::exit(i32::from(STATUS_INTERRUPTED));
    });
    Ok(receiver)
}

/// Completes when the sweep is interrupted.
fn interrupt_of(interrupted: &watch::Receiver<bool>) -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    let mut interrupted = interrupted.clone();
    tokio::spawn(async move {
        if interrupted.wait_for(|is_interrupted| *is_interrupted).await.is_ok() {
            let _ = sender.send(());
        } else {
            // The sweep has ended; its run ignores a sender that is kept.
            std::future::pending::<()>().await;
        }
    });
    receiver
}

/// All points: servers × models × concurrencies.
async fn plan(args: &SweepArgs) -> Result<Vec<PlannedPoint>, CliError> {
    let urls: Vec<Option<BaseUrl>> = match args.urls.as_slice() {
        [] => vec![None],
        urls => urls.iter().cloned().map(Some).collect(),
    };
    let mut points = Vec::new();
    for url in &urls {
        let mut models = args.models.clone();
        let server = |model| ServerOptions { url: url.clone(), model, request: args.request.clone() };
        if models.is_empty() {
            models.push(server(None).connect().await?.0.model);
        }
        for model in &models {
            let mut concurrencies = args.concurrencies.clone();
            concurrencies.sort_unstable();
            concurrencies.dedup();
            for concurrency in concurrencies {
                points.push(planned_point(args, server(Some(model.clone())), model, concurrency)?);
            }
        }
    }
    Ok(points)
}

fn planned_point(
    args: &SweepArgs,
    server: ServerOptions,
    model: &str,
    concurrency: u64,
) -> Result<PlannedPoint, CliError> {
    let url = server.url.as_ref().map_or_else(String::new, ToString::to_string);
    let directory = args.out.join(directory_name(&url, model, concurrency));
    let mut run = IpwRunArgs {
        server,
        questions: args.questions.clone(),
        question_set: args.question_set,
        limit: args.limit,
        out: Some(directory.clone()),
        resume: None,
        resume_command: None,
        label: Some(format!("{model}, {concurrency} at once")),
        concurrency,
        rate: None,
        repeats: 1,
        warm_up: args.warm_up,
        retries: args.retries,
        without_meter: false,
        model_file: None,
        condition: args.condition.clone(),
        figure_options: args.figure_options.clone(),
    };
    let questions = load_questions(&run)?.len().max(1) as u64;
    let needed = u32::try_from((concurrency * MIN_QUERIES_PER_SLOT).div_ceil(questions)).unwrap_or(u32::MAX);
    run.repeats = args.repeats.unwrap_or(needed);
    let at_server = if url.is_empty() { String::new() } else { format!(", {url}") };
    Ok(PlannedPoint {
        run,
        directory,
        name: printable(&format!("{model}, {concurrency} at once{at_server}")),
    })
}

/// The name of a point's directory: the same for the same server, model and concurrency.
fn directory_name(url: &str, model: &str, concurrency: u64) -> String {
    let mut hasher = FnvHasher::default();
    hasher.write(url.as_bytes());
    hasher.write_u8(0xFF);
    hasher.write(model.as_bytes());
    let last = model.rsplit('/').next().unwrap_or_default();
    let readable: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let readable: String = readable.trim_start_matches('.').chars().take(40).collect();
    format!("{readable}-{:08x}-{concurrency}", hasher.finish() as u32)
}

fn render(report: &SweepReport, terminal: Terminal) -> String {
    let unit = InverseUnit::of(
        report.points.iter().filter_map(|point| point.figures.per_watt.map(|figure| figure.value)),
    );
    let several = report.points.iter().any(|point| point.server != report.points[0].server);
    let mut columns = vec![text_column("MODEL")];
    columns.extend(several.then(|| text_column("SERVER")));
    columns.extend([
        number_column("AT ONCE"),
        number_column("QUERIES"),
        number_column(match report.latency {
            LatencyMeasure::P50 => "LATENCY p50",
            LatencyMeasure::P95 => "LATENCY p95",
            LatencyMeasure::P99 => "LATENCY p99",
        }),
        number_column("TOKENS/s"),
        number_column("J/TOKEN"),
        number_column("ACCURACY"),
        number_column(unit.choose(["IPW 1/W", "IPW 1/kW", "IPW 1/MW", "IPW 1/GW"])),
        text_column("FRONT"),
    ]);
    let mut table = TextTable::new(columns);
    let plain = |value: Option<f64>, unit: &str| {
        value.map_or("\u{2013}".to_owned(), |value| format!("{}{unit}", format_significant(value)))
    };
    for point in &report.points {
        let figures = &point.figures;
        let mut cells = vec![printable(&point.model)];
        cells.extend(several.then(|| printable(&point.server)));
        cells.extend([
            point.concurrency.to_string(),
            format!("{}{}", figures.covered, if point.steady { "" } else { " (no steady state)" }),
            plain(point.latency_s, " s"),
            plain(point.tokens_per_second, ""),
            format_estimate(point.token_j.as_ref(), 1.0, ""),
            format_estimate(figures.accuracy.as_ref(), 100.0, " %"),
            format_estimate(
                with_combined(figures.per_watt, figures.per_watt_combined).as_ref(),
                unit.factor,
                "",
            ),
            front_name(point).to_owned(),
        ]);
        table.add_row(cells);
    }
    let limit = |point: &SweepPoint| {
        let limits = printable(&describe_limits(point));
        format!("  {}, {} at once: {limits}\n", printable(&point.model), point.concurrency)
    };
    let limits: String = report.points.iter().map(limit).collect();
    let best: String = describe_best(report).iter().map(|line| format!("  {}\n", printable(line))).collect();
    format!(
        "\n{}\n{best}\n  limited by\n{limits}\n  {}; steady state of each point; FRONT: no other point has less energy of a token, or a \
         higher IPW, at no higher latency; brackets: 95 % confidence interval over the choice of questions\n",
        table.render(terminal),
        describe_sweep(report)
    )
}
