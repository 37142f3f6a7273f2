//! `wattspan run`: a command, and the energy it used.
//!
//! Owns the order: a span opens before the command starts and closes at the instant it was seen to end. The command's
//! standard streams are its own; the report comes after it on standard error, or in a file. Whatever happens to the
//! meter meanwhile, the command's exit status is passed on, and energy that could not be told is unknown.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{stderr, stdout};
use std::path::PathBuf;

use serde::Serialize;

use super::command::{self, Ended, NotStarted};
use super::ending::{FAILURE, Trouble};
use super::reach::{Named, Reach, something_to_measure};
use super::resolution::{TooShort, too_short};
use super::signal_ffi::{self, Forwarding};
use super::spread::Spread;
use super::table::Labelled;
use super::terminal::{Terminal, printable};
use super::{Meter, output, repeat, report, say};
use crate::attribution::account::Account;
use crate::client::{Client, Failure, Span};
use crate::private_file;
use crate::protocol::{DomainStatus, OpenSpan};

/// What to run, and what to do with the result.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Run the command N times and tell mean and spread
    #[arg(long, short = 'r', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Write the report to FILE instead of standard error ("-": standard output)
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Call the span NAME [default: the command's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Note something about the span; may be given again
    #[arg(long = "attribute", short = 'a', value_name = "KEY=VALUE", value_parser = attribute)]
    attributes: Vec<(String, String)>,
    /// Count only this domain; may be given again [default: all]
    #[arg(long = "domain", short = 'd', value_name = "DOMAIN")]
    domains: Vec<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

impl Arguments {
    /// The command and its arguments.
    pub fn words(&self) -> &[OsString] {
        &self.words
    }

    fn opening(&self) -> OpenSpan {
        let program = self.words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        let base = program.rsplit('/').next().unwrap_or(&program).to_owned();
        let attributes: BTreeMap<_, _> = self.attributes.iter().cloned().collect();
        OpenSpan {
            name: Some(self.name.clone().unwrap_or(base)),
            attributes: Some(attributes).filter(|notes| !notes.is_empty()),
            domains: Some(self.domains.clone()).filter(|domains| !domains.is_empty()),
            ..OpenSpan::default()
        }
    }
}

/// One run of the command and what it used.
#[derive(Debug, Serialize)]
pub struct Run {
    /// As a shell would give it.
    pub exit_status: u8,
    /// The signal that ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// From its start to its end.
    pub duration_ns: u64,
    /// What it used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// Why that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// The counters that the run was too short for: their figures in the account say little.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub too_short: Vec<TooShort>,
}

/// All that `run` has to tell, as JSON has it.
#[derive(Debug, Serialize)]
pub struct Told {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// The meter that was asked.
    pub meter: Named,
    /// The first status that is not 0, else 0.
    pub exit_status: u8,
    /// Every run.
    pub runs: Vec<Run>,
    /// Energy over the runs, where every run's is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_uj: Option<Spread>,
    /// Mean power over the runs, where every run's is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_power_mw: Option<Spread>,
    /// Time over the runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ns: Option<Spread>,
}

/// Runs the command and tells.
pub fn run(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let output = Output::of(asked.output.as_ref())?;
    let (reach, client) = Reach::of(meter)?;
    let info = client.info()?;
    something_to_measure(&info)?;
    if !meter.json {
        reach.tell();
    }
    // A meter that refuses the first span refuses them all: the command does not start.
    let first = client.open(asked.opening())?;
    // Until the report is printed: a signal may come twice, to this process and to its group.
    let signals = signal_ffi::forward();
    let mut runs = match repeatedly(&client, asked, first, &signals) {
        Ok(runs) => runs,
        Err(not_started) => {
            say(&not_started.to_string());
            return Ok(not_started.status());
        }
    };
    // After the runs more counters were seen to move; a daemon that is gone has said what it could before.
    let domains = client.info().unwrap_or(info).domains;
    for run in &mut runs {
        run.too_short = run.account.as_ref().map_or_else(Vec::new, |account| too_short(account, &domains));
    }
    let told = told(asked, &reach, runs);
    let text = if meter.json {
        output::json_line(&told)?
    } else {
        format!("\n{}", shown(&told, &domains, output.terminal()))
    };
    // The command has run; that its report has no place to go does not change how it ended.
    if let Err(error) = output.write(&text) {
        say(&format!("cannot write the report: {error}"));
    }
    Ok(told.exit_status)
}

/// Runs one after the other, until all are done, or a signal ended one or asked it to end. `first` is the span of the
/// first of them.
fn repeatedly(
    client: &Client,
    asked: &Arguments,
    first: Span<'_>,
    signals: &Forwarding,
) -> Result<Vec<Run>, NotStarted> {
    let mut runs: Vec<Run> = Vec::new();
    let mut span = Ok(first);
    loop {
        let ran = match command::run(asked.words(), signals) {
            Ok(ran) => ran,
            Err(not_started) => {
                // The daemon may be gone; the command's failure is what the user has to know.
                let _ = span.map(Span::cancel);
                return Err(not_started);
            }
        };
        let at_ns = i64::try_from(ran.ended_ns).unwrap_or(i64::MAX);
        let account: Result<Account, Failure> = span.and_then(|span| span.close_at(at_ns));
        let (account, unknown) = match account {
            Ok(account) => (Some(account), None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        let signal = if let Ended::Signal(number) = ran.ended { Some(number) } else { None };
        let duration_ns = ran.ended_ns.saturating_sub(ran.began_ns);
        runs.push(Run {
            exit_status: ran.ended.status(),
            signal,
            duration_ns,
            account,
            unknown,
            too_short: Vec::new(),
        });
        // In this order: a signal that asks for the end is either seen here or held for the next command.
        signals.drop_held();
        if signal.is_some() || signals.told_to_end() || runs.len() >= asked.repeat as usize {
            return Ok(runs);
        }
        span = client.open(asked.opening());
    }
}

fn told(asked: &Arguments, reach: &Reach, runs: Vec<Run>) -> Told {
    let of = |figure: fn(&Account) -> Option<u64>| {
        Spread::of_all_known(runs.iter().map(|run| run.account.as_ref().and_then(figure)))
    };
    Told {
        command: asked.words().iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        meter: reach.named(),
        exit_status: runs.iter().map(|run| run.exit_status).find(|&status| status != 0).unwrap_or(0),
        share_uj: of(|account| account.share_uj),
        mean_power_mw: of(|account| account.mean_power_mw),
        duration_ns: Spread::of_all_known(runs.iter().map(|run| Some(run.duration_ns))),
        runs,
    }
}

fn shown(told: &Told, domains: &[DomainStatus], terminal: Terminal) -> String {
    let command = told.command.join(" ");
    match told.runs.as_slice() {
        [run] => match &run.account {
            Some(account) => {
                let title = format!("Energy of: {command}");
                report::account(&title, Some("the command"), account, domains, terminal)
            }
            None => {
                let why = run.unknown.as_deref().unwrap_or_default();
                let mut lines = Labelled::default();
                lines.line("energy", [super::quantity::unknown(why).into()]);
                format!("Energy of: {}\n\n{}", printable(&command), lines.draw(terminal))
            }
        },
        runs => repeat::runs(&format!("Energy of: {command}, {} runs", runs.len()), told, domains, terminal),
    }
}

/// Where the report goes; opened before the command runs, so that a wrong path is told in time.
enum Output {
    Stderr,
    Stdout,
    File(File),
}

impl Output {
    fn of(path: Option<&PathBuf>) -> Result<Self, Trouble> {
        match path {
            None => Ok(Output::Stderr),
            Some(path) if path.as_os_str() == "-" => Ok(Output::Stdout),
            Some(path) => private_file::create(path)
                .map(Output::File)
                .map_err(|error| Trouble::new(FAILURE, format!("--output {}: {error}", path.display()))),
        }
    }

    fn terminal(&self) -> Terminal {
        match self {
            Output::Stderr => Terminal::of(&stderr()),
            Output::Stdout => Terminal::of(&stdout()),
            Output::File(_) => Terminal::PLAIN,
        }
    }

    fn write(self, text: &str) -> Result<(), Trouble> {
        match self {
            Output::Stderr => output::text_beside(text),
            Output::Stdout => output::text(text),
            Output::File(mut file) => Ok(output::write(&mut file, text, Terminal::PLAIN)?),
        }
    }
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".into()),
    }
}
