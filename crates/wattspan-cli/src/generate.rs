//! `wattspan generate`: shell completions and manual pages of both programs, for packages.
//!
//! They are generated from the same clap definitions that parse the command lines.

use std::fs::{self, File};
use std::path::PathBuf;

use clap::{Command, CommandFactory, Subcommand};

use super::exit_status::{CliError, OK};
use super::output;
use wattspan::config::Flags;

/// Arguments of `wattspan generate`.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    #[command(subcommand)]
    command: GenerateCommand,
}

#[derive(Debug, Subcommand)]
enum GenerateCommand {
    /// Print completions for a shell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
        /// Completions of wattspand instead of wattspan
        #[arg(long)]
        daemon: bool,
    },
    /// Write manual pages of both programs and every subcommand to a directory
    Man {
        /// Output directory
        directory: PathBuf,
    },
}

/// Runs `wattspan generate`; `client` is the command definition of `wattspan`.
pub fn generate(args: &GenerateArgs, client: Command) -> Result<u8, CliError> {
    match &args.command {
        GenerateCommand::Completions { shell, daemon } => {
            let (mut command, name) =
                if *daemon { (Flags::command(), "wattspand") } else { (client, "wattspan") };
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, name, &mut text);
            output::print_bytes(&text)?;
        }
        GenerateCommand::Man { directory } => {
            fs::create_dir_all(directory)?;
            // `help` only repeats the other pages.
            let program = client.disable_help_subcommand(true);
            clap_mangen::generate_to(program, directory)?;
            let daemon = clap_mangen::Man::new(Flags::command()).section("8");
            daemon.render(&mut File::create(directory.join("wattspand.8"))?)?;
        }
    }
    Ok(OK)
}
