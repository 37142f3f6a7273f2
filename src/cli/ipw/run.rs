//! `wattspan ipw run`: questions, a server, a meter, a directory.
//!
//! Owns the wiring and what is said at the start and the end, also where a signal ended the run.

use std::io::stdout;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::super::ending::{FAILURE, OK, Trouble};
use super::super::terminal::{Terminal, printable};
use super::super::{Meter, output, say};
use super::begun::{Begun, begun, resumed};
use super::live::Live;
use super::server::{KEY_VARIABLE, Server};
use super::{Wanted, report};
use crate::clock::unix_ns;
use crate::ipw::metering::Metering;
use crate::ipw::power::Watch;
use crate::ipw::report::{Prices, Report};
use crate::ipw::row::Row;
use crate::ipw::run::{Ended, MOST_A_SECOND, Progress, Setup, run as ask_all};
use crate::ipw::run_dir::NO_METER;
use crate::ipw::table::Table;

/// The exit status of a run that a signal ended.
const INTERRUPTED: u8 = 130;

/// What to ask, of whom, how.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    pub server: Server,
    /// The questions, JSON lines [default: 50 built-in ones]
    #[arg(long, short = 'q', value_name = "FILE")]
    pub questions: Option<PathBuf>,
    /// Ask only the first N
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Keep the run here [default: runs/MODEL-TIME]
    #[arg(long, short = 'o', value_name = "DIRECTORY", conflicts_with = "resume")]
    pub out: Option<PathBuf>,
    /// Go on with a run that was interrupted, as it was begun; failed queries are asked again
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = BEGUN)]
    pub resume: Option<PathBuf>,
    /// Print COMMAND as the way to continue an interrupted run, for a script that starts this program
    #[arg(long, value_name = "COMMAND")]
    pub resume_command: Option<String>,
    /// What the run is called in reports [default: the model]
    #[arg(long, value_name = "NAME")]
    pub label: Option<String>,
    /// So many queries are open at once
    #[arg(long, short = 'c', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub concurrency: u64,
    /// So many queries begin each second, whether or not others have ended
    #[arg(long, value_name = "RATE", conflicts_with = "concurrency", value_parser = rate)]
    pub rate: Option<f64>,
    /// Ask each question N times
    #[arg(long, short = 'r', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Ask N other questions first, which are not counted
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub warm_up: u32,
    /// Try a failed query N times more
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub retries: u32,
    /// Go on where no meter can be had: the rows have no energy then
    #[arg(long)]
    pub without_meter: bool,
    #[command(flatten)]
    wanted: Wanted,
}

/// What a run that goes on has already.
const BEGUN: [&str; 17] = [
    "questions",
    "limit",
    "label",
    "concurrency",
    "rate",
    "repeats",
    "warm_up",
    "retries",
    "timeout",
    "model",
    "api",
    "max_tokens",
    "temperature",
    "seed",
    "system",
    "no_stream",
    "logprobs",
];

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write a number".to_owned())?;
    if rate > 0.0 && rate <= MOST_A_SECOND {
        Ok(rate)
    } else {
        Err("write a rate above 0 and up to 100000".into())
    }
}

/// Asks and tells.
pub fn run(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(whole(meter, asked))
}

async fn whole(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let Begun { asking, pool, conduct, metered, mut directory, manifest, questions } = match &asked.resume {
        Some(path) => resumed(meter, asked, path).await?,
        None => begun(meter, asked).await?,
    };
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
    let model = printable(&manifest.model);
    say(&format!("asks {model} at {}, into {}", asking.target, directory.path().display()));
    let setup = Setup {
        pool,
        asking,
        metering,
        domains: manifest.domains.clone(),
        pace: conduct.pace,
        warm_up: conduct.warm_up,
        repeats: manifest.repeats,
        retries: conduct.retries,
    };
    let mut live = Live::new(manifest.domains);
    let tell = |progress: &Progress, row: &Row| live.tell(progress, row);
    let ended = ask_all(setup, &questions, &mut directory, tell, interrupted()?).await;
    live.end();
    drop(watch);
    let path = directory.path();
    let ended = ended.map_err(|unusable| {
        let mend = format!("what was answered is kept; go on with: {}", resume_command(meter, asked, path));
        Trouble::new(FAILURE, format!("{unusable}\n{mend}"))
    })?;
    told(meter, asked, path, &ended)
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
        // Who asks twice does not want to wait for the last accounts.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(i32::from(INTERRUPTED));
    });
    Ok(told)
}

fn told(meter: &Meter, asked: &Arguments, path: &Path, ended: &Ended) -> Result<u8, Trouble> {
    let table = Table::read(path).map_err(anyhow::Error::from)?;
    let figures = Report::of(&table, &asked.wanted.terms(), Prices::default());
    if meter.json {
        output::json_pretty(&figures)?;
    } else {
        output::text(&report::text(&figures, Terminal::of(&stdout())))?;
    }
    if ended.interrupted {
        say(&format!("interrupted; go on with: {}", resume_command(meter, asked, path)));
        return Ok(INTERRUPTED);
    }
    let path = path.display().to_string();
    let page = command_line([&program(), "ipw", "report", &path, "--html", "report.html"]);
    say(&format!("a page with pictures: {page}"));
    // A run in which nothing at all was answered is no success, and its rows say why.
    let progress = &ended.progress;
    if progress.of > 0 && progress.failed == progress.of {
        return Ok(FAILURE);
    }
    let agreed = asked.without_meter && figures.run.meter == NO_METER;
    figures.no_energy.filter(|_| !agreed).map_or(Ok(OK), |reason| Err(report::no_energy(&reason)))
}

/// The command that continues the run: the same program, meter and server, which need not be the default ones.
fn resume_command(meter: &Meter, asked: &Arguments, path: &Path) -> String {
    if let Some(command) = &asked.resume_command {
        return command.clone();
    }
    let mut words = vec![program()];
    for (option, value) in
        [("--socket", &meter.socket), ("--replay", &meter.replay), ("--config", &meter.config)]
    {
        words.extend(value.iter().flat_map(|value| [option.to_owned(), value.display().to_string()]));
    }
    words.extend(["ipw".into(), "run".into(), "--resume".into(), path.display().to_string()]);
    // The directory has the server at which the run began, and neither a later one nor its key.
    if let (Some(_), Some(url)) = (&asked.resume, &asked.server.url) {
        words.extend(["--url".to_owned(), url.to_string()]);
    }
    if asked.server.key_from != KEY_VARIABLE {
        words.extend(["--key-from".to_owned(), asked.server.key_from.clone()]);
    }
    if asked.without_meter {
        words.push("--without-meter".into());
    }
    command_line(words.iter().map(String::as_str))
}

/// This program as it was called, which may be off the PATH.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "wattspan".into())
}

/// Words as a shell reads them.
fn command_line<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let plain = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-:=,@+".contains(c))
    };
    let quoted = |word: &str| {
        if plain(word) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_is_what_a_shell_takes_apart_again() {
        let words = ["/opt/a b/wattspan", "ipw", "--resume", "it's $HOME", ""];
        assert_eq!(command_line(words), r"'/opt/a b/wattspan' ipw --resume 'it'\''s $HOME' ''");
    }
}
