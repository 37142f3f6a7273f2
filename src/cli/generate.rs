//! `wattspan generate`: completions and manual pages of both programs, for packages.
//!
//! Owns nothing but the call of clap's tools on the same description that parses the flags, so that what they say is
//! what the programs do.

use std::fs::{self, File};
use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};

use super::exit_status::{CliError, OK};
use super::output;
use crate::config::Flags;

/// What to write.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    #[command(subcommand)]
    command: GenerateCommand,
}

#[derive(Debug, Subcommand)]
enum GenerateCommand {
    /// Completions for a shell, on standard output
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
        /// For wattspand instead of wattspan
        #[arg(long)]
        daemon: bool,
    },
    /// Manual pages of both programs and every verb, into a directory
    Man {
        /// Where to
        directory: PathBuf,
    },
}

/// Writes what is asked for.
pub fn generate(args: &GenerateArgs) -> Result<u8, CliError> {
    match &args.command {
        GenerateCommand::Completions { shell, daemon } => {
            let (mut command, name) =
                if *daemon { (Flags::command(), "wattspand") } else { (super::Cli::command(), "wattspan") };
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, name, &mut text);
            output::print_bytes(&text)?;
        }
        GenerateCommand::Man { directory } => {
            fs::create_dir_all(directory)?;
            // No page for `help`: it shows what the other pages say.
            let program = super::Cli::command().disable_help_subcommand(true);
            clap_mangen::generate_to(program, directory)?;
            let daemon = clap_mangen::Man::new(Flags::command()).section("8");
            daemon.render(&mut File::create(directory.join("wattspand.8"))?)?;
        }
    }
    Ok(OK)
}
