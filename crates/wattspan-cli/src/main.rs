//! The client program: one call into the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    wattspan_cli::main()
}
