//! The `wattspan` command-line program.
//!
//! Every subcommand is a client of the daemon, or of the embedded meter where no daemon runs. None measures
//! itself. Results go to standard output (those of `run` to standard error), messages to standard error.

#![warn(clippy::unwrap_used)]

mod account_pages;
mod account_report;
mod balance;
mod bundle;
mod busy_loop;
mod characterise;
mod child_process;
mod connect;
mod csv;
mod doctor;
mod domain_ticks;
mod domain_tree;
mod exit_status;
mod export;
mod export_options;
mod export_otlp;
mod export_prometheus;
#[doc(hidden)]
pub mod fuzz_entry;
mod generate;
mod ipw;
mod listen_group;
mod mechanism_comparison;
mod output;
mod proxy;
mod quantity;
mod read;
mod reload;
mod resolution;
mod run;
mod run_report;
mod sample_statistics;
mod serve;
mod signal_ffi;
mod span_sums;
mod spans;
mod table;
mod terminal;
mod termination;
mod top;
mod usage_error;
mod utc_time;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use connect::MeterOptions;
use exit_status::CliError;

/// The command line of `wattspan`.
#[derive(Debug, Parser)]
#[command(name = "wattspan", version, about = ABOUT_TEXT, after_help = exit_status::EXIT_STATUS_HELP, max_term_width = 100)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    meter_options: MeterOptions,
    #[command(subcommand)]
    command: Command,
}

const ABOUT_TEXT: &str = "Measure the energy this machine uses, and attribute it to commands and to requests of a \
                     language model";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command and show the energy it used
    #[command(after_help = exit_status::RUN_EXIT_STATUS_HELP)]
    Run(run::RunArgs),
    /// Show each domain's energy and power
    Read(read::ReadArgs),
    /// Show available sources, their quality, and how to enable the others
    Doctor(doctor::DoctorArgs),
    /// List spans, or show the account of one
    Spans(spans::SpansArgs),
    /// Export stored accounts to files, each account once, to a collector, or as metrics
    Export(export::ExportArgs),
    /// Show the energy balance of each domain: measured = attributed + unattributed
    Balance,
    /// Show where the energy goes: domains, models and open spans, updated twice a second
    #[command(after_help = top::SETTINGS_HELP)]
    Top(top::TopArgs),
    /// Serve a live page: power, models, requests and health, with a history of 24 hours
    Serve(serve::ServeArgs),
    /// Run a reverse proxy that measures the energy of each request
    Proxy(proxy::ProxyArgs),
    /// Reload the daemon's configuration; an invalid one changes nothing
    Reload,
    /// Measure intelligence per watt: accuracy per watt and per joule of a model on this machine
    #[command(subcommand)]
    Ipw(Box<ipw::IpwCommand>),
    /// Print shell completions or write manual pages
    Generate(generate::GenerateArgs),
}

/// Entry point of the program.
pub fn main() -> ExitCode {
    signal_ffi::keep_exit_statuses();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.exit_code() != 0 => {
            let _ = output::eprint_text(&usage_error::render_usage_error(error));
            return ExitCode::from(exit_status::USAGE);
        }
        Err(help) => help.exit(),
    };
    match dispatch(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) if error.is_broken_pipe() => ExitCode::from(exit_status::OK),
        Err(error) => {
            output::eprint_message(&error.to_string());
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
        Command::Doctor(args) => doctor::doctor(options, &args),
        Command::Spans(spans) => spans::spans(options, &spans),
        Command::Export(args) => export::export(options, &args),
        Command::Balance => balance::balance(options),
        Command::Top(top) => top::top(options, &top),
        Command::Serve(serve) => serve::serve(options, &serve),
        Command::Proxy(proxy) => proxy::proxy(options, &proxy),
        Command::Reload => reload::reload(options),
        Command::Ipw(command) => ipw::ipw(options, &command),
        Command::Generate(args) => generate::generate(&args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clap_definition_is_valid() {
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
