//! `wattspan ipw run`: questions, a server, a meter, a directory.
//!
//! Owns the wiring and what is said at the start and the end. A meter that cannot be had is said at once, and the run goes on
//! without energies only where the user agrees.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::super::ending::{FAILURE, OK, Trouble};
use super::super::reach::{Reach, something_to_measure};
use super::super::terminal::Terminal;
use super::super::{Meter, say};
use super::live::Live;
use super::server::Server;
use super::{Wanted, report};
use crate::clock::unix_ns;
use crate::ipw::metering::Metering;
use crate::ipw::power::Watch;
use crate::ipw::question::{self, Question};
use crate::ipw::report::{Prices, Report};
use crate::ipw::run::{Ended, Pace, Setup, run as ask_all, settings};
use crate::ipw::run_dir::{Manifest, RunDir, VERSION};
use crate::ipw::scope;
use crate::ipw::table::Table;
use crate::protocol::Info;

/// What to ask, of whom, how.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    server: Server,
    /// The questions, JSON lines [default: 50 built-in ones]
    #[arg(long, short = 'q', value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Ask only the first N
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Keep the run here [default: runs/MODEL-TIME]
    #[arg(long, short = 'o', value_name = "DIRECTORY", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Go on with a run that was interrupted, as it was begun; failed queries are asked again
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["questions", "limit", "label"])]
    resume: Option<PathBuf>,
    /// What the run is called in reports [default: the model]
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// So many queries are open at once
    #[arg(long, short = 'c', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=4096))]
    concurrency: u64,
    /// So many queries begin each second, whether or not others have ended
    #[arg(long, value_name = "RATE", conflicts_with = "concurrency", value_parser = rate)]
    rate: Option<f64>,
    /// Ask each question N times
    #[arg(long, short = 'r', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Ask N other questions first, which are not counted
    #[arg(long, value_name = "N", default_value_t = 3)]
    warm_up: u32,
    /// Try a failed query N times more
    #[arg(long, value_name = "N", default_value_t = 2)]
    retries: u32,
    /// Go on where no meter can be had: the rows have no energy then
    #[arg(long)]
    without_meter: bool,
    #[command(flatten)]
    wanted: Wanted,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write a number".to_owned())?;
    if rate > 0.0 && rate <= 1e5 { Ok(rate) } else { Err("write a rate above 0 and up to 100000".into()) }
}

/// Asks and tells.
pub fn run(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(whole(meter, asked))
}

async fn whole(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let (mut asking, pool) = asked.server.reach().await?;
    let metered = metered(meter, asked)?;
    let domains = metered.as_ref().map_or_else(Vec::new, |(_, info)| domains(info));
    let pace = asked.rate.map_or(Pace::AtOnce(asked.concurrency as usize), Pace::PerSecond);
    let (mut directory, manifest, questions) = match &asked.resume {
        Some(path) => RunDir::resume(path).map_err(anyhow::Error::from)?,
        None => {
            let questions = questions(asked)?;
            let manifest = Manifest {
                version: VERSION,
                label: asked.label.clone().unwrap_or_else(|| asking.model.clone()),
                model: asking.model.clone(),
                server: asked.server.url.to_string(),
                settings: settings(&asking, pace, asked.warm_up, asked.retries),
                questions: asked
                    .questions
                    .as_ref()
                    .map_or("built in".into(), |file| file.display().to_string()),
                fingerprint: question::fingerprint(&questions),
                count: questions.len(),
                repeats: asked.repeats,
                machine: machine(),
                meter: metered.as_ref().map_or("none".into(), |(reach, info)| {
                    format!("{} {}", reach.named().kind, info.version)
                }),
                idle: "as the meter learnt it or was told".into(),
                domains: domains.clone(),
                began_unix_ns: unix_ns(),
            };
            let path = asked.out.clone().unwrap_or_else(|| usual_place(&manifest));
            let directory = RunDir::begin(&path, &manifest, &questions).map_err(anyhow::Error::from)?;
            (directory, manifest, questions)
        }
    };
    if asked.resume.is_some() {
        same_machine(&manifest, &domains)?;
        asking.model.clone_from(&manifest.model);
    }
    let names: Vec<String> = manifest.domains.iter().map(|domain| domain.name.clone()).collect();
    let (metering, watch) = match &metered {
        Some((reach, _)) => {
            let again = Arc::clone(reach);
            let prefix = format!("ipw-{}-{}", std::process::id(), unix_ns() % 1_000_000_000);
            let (metering, _) = Metering::start(&prefix, Box::new(move || again.again()))?;
            let watch =
                reach.again().ok().and_then(|client| Watch::start(client, directory.path(), &names).ok());
            (Some(metering), watch)
        }
        None => (None, None),
    };
    say(&format!("asks {} at {}, into {}", manifest.model, manifest.server, directory.path().display()));
    let setup = Setup {
        pool,
        asking,
        metering,
        domains: names,
        pace,
        warm_up: asked.warm_up,
        repeats: manifest.repeats,
        retries: asked.retries,
    };
    let mut live = Live::new();
    let ended =
        ask_all(setup, &questions, &mut directory, |progress, _| live.tell(progress), interrupted()?).await;
    live.end();
    drop(watch);
    told(meter, asked, directory.path(), &ended.map_err(anyhow::Error::from)?)
}

fn metered(meter: &Meter, asked: &Arguments) -> Result<Option<(Arc<Reach>, Info)>, Trouble> {
    let found = Reach::of(meter).and_then(|(reach, client)| {
        let info = client.info()?;
        something_to_measure(&info)?;
        reach.tell();
        Ok((Arc::new(reach), info))
    });
    match found {
        Ok(found) => Ok(Some(found)),
        Err(trouble) if asked.without_meter => {
            say(&format!("{trouble}; going on without energies"));
            Ok(None)
        }
        Err(trouble) => {
            say("without a meter there is no figure per watt; --without-meter asks all the same");
            Err(trouble)
        }
    }
}

fn domains(info: &Info) -> Vec<scope::Meter> {
    let of = |domain: &crate::protocol::DomainStatus| scope::Meter {
        name: domain.name.clone(),
        kind: domain.kind,
        source: domain.source.clone(),
        device: domain.device.clone(),
        parent: domain.parent.clone(),
        counted: domain.counted,
        grade: domain.grade,
        update_interval_ns: domain.update_interval_ns,
    };
    info.domains.iter().map(of).collect()
}

fn questions(asked: &Arguments) -> Result<Vec<Question>, Trouble> {
    let mut questions = match &asked.questions {
        None => question::starter(),
        Some(path) => {
            let file = std::fs::File::open(path)
                .map_err(|cause| Trouble::new(FAILURE, format!("{}: {cause}", path.display())))?;
            let name = path.display().to_string();
            question::parse(&name, std::io::BufReader::new(file)).map_err(anyhow::Error::from)?
        }
    };
    questions.truncate(asked.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    Ok(questions)
}

/// A resumed run goes on only on the machine whose domains its rows have.
fn same_machine(manifest: &Manifest, domains: &[scope::Meter]) -> Result<(), Trouble> {
    let names =
        |domains: &[scope::Meter]| domains.iter().map(|domain| domain.name.clone()).collect::<Vec<_>>();
    let (was, is) = (names(&manifest.domains), names(domains));
    if was == is || domains.is_empty() {
        return Ok(());
    }
    let wrong =
        format!("the run was begun with the domains {}, and here are {}", was.join(", "), is.join(", "));
    Err(Trouble::new(FAILURE, wrong))
}

fn usual_place(manifest: &Manifest) -> PathBuf {
    let last = manifest.label.rsplit('/').next().unwrap_or_default();
    let word: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let word = word.trim_start_matches('.').chars().take(60).collect::<String>();
    Path::new("runs").join(format!("{word}-{}", manifest.began_unix_ns / 1_000_000_000))
}

/// The machine in words: system, processor.
fn machine() -> String {
    let name = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or_else(|| part(name.machine()), |(_, model)| model.trim().to_owned());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{} {}, {model}, {cpus} CPUs", part(name.sysname()), part(name.release()))
}

/// Comes when the user or the system asks the program to stop.
fn interrupted() -> Result<oneshot::Receiver<()>, Trouble> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        let _ = tell.send(());
    });
    Ok(told)
}

fn told(meter: &Meter, asked: &Arguments, path: &Path, ended: &Ended) -> Result<u8, Trouble> {
    const INTERRUPTED: u8 = 130;
    let table = Table::read(path).map_err(anyhow::Error::from)?;
    let figures = Report::of(&table, &asked.wanted.terms(), Prices::default());
    if meter.json {
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&figures)?)?;
    } else {
        stdout().write_all(report::text(&figures, Terminal::of(&stdout())).as_bytes())?;
    }
    let path = path.display();
    if ended.interrupted {
        say(&format!("interrupted; go on with: wattspan ipw run --resume {path} (and the same server)"));
        return Ok(INTERRUPTED);
    }
    say(&format!("a page with pictures: wattspan ipw report {path} --html report.html"));
    // A run in which nothing at all was answered is no success, and its rows say why.
    let progress = &ended.progress;
    Ok(if progress.of > 0 && progress.failed == progress.of { FAILURE } else { OK })
}
