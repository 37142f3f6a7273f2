//! The `wattspan` program: arguments in, a verb, an exit status out.
//!
//! Owns the command line. Every verb is an ordinary client of the daemon, or of the embedded meter where none answers;
//! none reads hardware itself. Results go to standard output (those of `run` to standard error, beside the command's
//! own), remarks to standard error.

mod balance;
mod command;
mod csv;
mod doctor;
mod domain_tree;
mod ending;
mod generate;
mod ipw;
mod output;
mod proxy;
mod quantity;
mod reach;
mod read;
mod reload;
mod repeat;
mod report;
mod resolution;
mod run;
mod signal_ffi;
mod since;
mod spans;
mod spread;
mod table;
mod terminal;
mod tick;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use ending::Trouble;

/// What energy this machine uses, and for what.
#[derive(Debug, Parser)]
#[command(name = "wattspan", version, about = ABOUT, after_help = ending::TABLE, max_term_width = 100)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(flatten)]
    meter: Meter,
    #[command(subcommand)]
    verb: Verb,
}

const ABOUT: &str = "Measures the energy this machine uses, and bills it to commands and to questions put to a \
                     language model";

/// Which meter to ask, and in which form to answer.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which meter, which form")]
pub struct Meter {
    /// Ask the daemon at this socket, and no other [default: $WATTSPAN_SOCKET, else the usual places, else measure in
    /// this process]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Answer in JSON; keys carry their unit, and what is not known is absent
    #[arg(long, short = 'j', global = true)]
    json: bool,
    /// Measure a recorded or scripted machine instead of this one, in this process
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "socket")]
    replay: Option<PathBuf>,
    /// Settings for measuring in this process [default: the daemon's]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
}

impl Meter {
    /// clap sees no conflict between a flag before the verb and one after it.
    fn check(&self) -> Result<(), Trouble> {
        let here = [("--replay", self.replay.is_some()), ("--config", self.config.is_some())];
        match here.into_iter().find(|(_, given)| *given && self.socket.is_some()) {
            Some((flag, _)) => Err(Trouble::new(
                ending::USAGE,
                format!(
                    "--socket names a daemon, and {flag} a measurement in this process: leave one of them out"
                ),
            )),
            None => Ok(()),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a command and tell what energy it used
    #[command(after_help = ending::OF_RUN)]
    Run(run::Arguments),
    /// Tell every domain's energy and power now
    Read(read::Arguments),
    /// Tell what can be measured here, how well, and what would mend the rest
    Doctor,
    /// Tell of spans: one by name, or all as they settle
    Spans(spans::Arguments),
    /// Tell where the joules went: measured = attributed + unattributed
    Balance,
    /// Stand before an inference server, and tell the energy of each request
    Proxy(proxy::Arguments),
    /// Have the daemon read its configuration again; changes nothing where that is broken
    Reload,
    /// Measure intelligence per watt: accuracy per watt and per joule of a model on this machine
    #[command(subcommand)]
    Ipw(Box<ipw::Verb>),
    /// Write shell completions or manual pages
    Generate(generate::Arguments),
}

/// The whole program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(wrong) if wrong.exit_code() != 0 => {
            // Without clap's colours, since it repeats the wrong word as it is.
            let _ = output::text_beside(&wrong.render().to_string());
            return ExitCode::from(ending::USAGE);
        }
        Err(help) => help.exit(),
    };
    match perform(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(trouble) if trouble.is_closed_pipe() => ExitCode::from(ending::OK),
        Err(trouble) => {
            say(&trouble.to_string());
            ExitCode::from(trouble.status)
        }
    }
}

fn perform(arguments: Arguments) -> Result<u8, Trouble> {
    let meter = &arguments.meter;
    meter.check()?;
    match arguments.verb {
        Verb::Run(run) => run::run(meter, &run),
        Verb::Read(read) => read::read(meter, &read),
        Verb::Doctor => doctor::doctor(meter),
        Verb::Spans(spans) => spans::spans(meter, &spans),
        Verb::Balance => balance::balance(meter),
        Verb::Proxy(proxy) => proxy::proxy(meter, &proxy),
        Verb::Reload => reload::reload(meter),
        Verb::Ipw(verb) => ipw::ipw(meter, &verb),
        Verb::Generate(what) => generate::generate(&what),
    }
}

/// A message on standard error.
fn say(message: &str) {
    output::message(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_a_sound_description() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_commands_own_flags_are_left_to_it() {
        let arguments = Arguments::parse_from(["wattspan", "run", "--", "ls", "--json"]);
        assert!(!arguments.meter.json);
        let Verb::Run(run) = arguments.verb else { panic!("not run") };
        assert_eq!(run.words(), ["ls", "--json"]);
    }
}
