//! The `wattspan` program: arguments in, a command, an exit status out.
//!
//! Owns the command line. Every command is an ordinary client of the daemon, or of the embedded meter where none answers;
//! none reads hardware itself. Results go to standard output (those of `run` to standard error, beside the command's
//! own), remarks to standard error.

mod account_report;
mod balance;
mod child_process;
mod connect;
mod csv;
mod doctor;
mod domain_ticks;
mod domain_tree;
mod exit_status;
mod generate;
mod ipw;
mod output;
mod proxy;
mod quantity;
mod read;
mod reload;
mod repeat_report;
mod resolution;
mod run;
mod sample_statistics;
mod signal_ffi;
mod spans;
mod table;
mod terminal;
mod utc_time;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use exit_status::CliError;

/// What energy this machine uses, and for what.
#[derive(Debug, Parser)]
#[command(name = "wattspan", version, about = ABOUT_TEXT, after_help = exit_status::EXIT_STATUS_HELP, max_term_width = 100)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    meter_options: MeterOptions,
    #[command(subcommand)]
    command: Command,
}

const ABOUT_TEXT: &str = "Measures the energy this machine uses, and bills it to commands and to questions put to a \
                     language model";

/// Which meter to ask, and in which form to answer.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which meter, which form")]
pub struct MeterOptions {
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

impl MeterOptions {
    /// clap sees no conflict between a flag before the verb and one after it.
    fn ensure_consistent(&self) -> Result<(), CliError> {
        let embedded_only = [("--replay", self.replay.is_some()), ("--config", self.config.is_some())];
        match embedded_only.into_iter().find(|(_, given)| *given && self.socket.is_some()) {
            Some((flag, _)) => Err(CliError::new(
                exit_status::USAGE,
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
pub enum Command {
    /// Run a command and tell what energy it used
    #[command(after_help = exit_status::RUN_EXIT_STATUS_HELP)]
    Run(run::RunArgs),
    /// Tell every domain's energy and power now
    Read(read::ReadArgs),
    /// Tell what can be measured here, how well, and what would mend the rest
    Doctor,
    /// Tell of spans: one by name, or all as they settle
    Spans(spans::SpansArgs),
    /// Tell where the joules went: measured = attributed + unattributed
    Balance,
    /// Stand before an inference server, and tell the energy of each request
    Proxy(proxy::ProxyArgs),
    /// Have the daemon read its configuration again; changes nothing where that is broken
    Reload,
    /// Measure intelligence per watt: accuracy per watt and per joule of a model on this machine
    #[command(subcommand)]
    Ipw(Box<ipw::IpwCommand>),
    /// Write shell completions or manual pages
    Generate(generate::GenerateArgs),
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.exit_code() != 0 => {
            // Without clap's colours, since it repeats the wrong word as it is.
            let _ = output::eprint_text(&error.render().to_string());
            return ExitCode::from(exit_status::USAGE);
        }
        Err(help) => help.exit(),
    };
    match dispatch(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) if error.is_broken_pipe() => ExitCode::from(exit_status::OK),
        Err(error) => {
            eprint_message(&error.to_string());
            ExitCode::from(error.status)
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8, CliError> {
    let options = &cli.meter_options;
    options.ensure_consistent()?;
    match cli.command {
        Command::Run(run) => run::run(options, &run),
        Command::Read(read) => read::read(options, &read),
        Command::Doctor => doctor::doctor(options),
        Command::Spans(spans) => spans::spans(options, &spans),
        Command::Balance => balance::balance(options),
        Command::Proxy(proxy) => proxy::proxy(options, &proxy),
        Command::Reload => reload::reload(options),
        Command::Ipw(command) => ipw::ipw(options, &command),
        Command::Generate(args) => generate::generate(&args),
    }
}

/// A message on standard error.
fn eprint_message(message: &str) {
    output::eprint_message(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clap_definition_is_valid() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_the_measured_command_are_not_parsed() {
        let cli = Cli::parse_from(["wattspan", "run", "--", "ls", "--json"]);
        assert!(!cli.meter_options.json);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.command(), ["ls", "--json"]);
    }
}
