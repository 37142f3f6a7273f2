//! The daemon program: one call into the library.

fn main() -> std::process::ExitCode {
    wattspan::daemon::main()
}
