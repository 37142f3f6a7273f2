//! Looks at the NVIDIA GPUs of a machine as the meter would, and writes down what they are like.
//!
//! For machines with a real GPU, which need no Rust: build it elsewhere (`cargo build --release --example nvml_check`), copy
//! `target/release/examples/nvml_check` there, and run
//!
//! ```text
//! ./nvml_check --into results --seconds 20 --load "python3 -c 'import torch; ...'"
//! ```
//!
//! It measures at rest, under the load where one is given (a shell command that runs until it is killed), and after it: what
//! the calls cost, how often counter and sensor move, what a field's time stamp is of, how far counter and integrated
//! power disagree over windows of 0.5 to 5 s, and what the meter itself makes of each board. Prints a summary and writes one
//! JSON file into the given directory. It has not run on a real GPU yet: the project's machines have none, so that
//! here it saw only the tests' stand-in library (`--nvml-library`).

use std::process::ExitCode;

#[cfg(target_os = "linux")]
mod boards;

#[cfg(not(target_os = "linux"))]
mod boards {
    use std::process::ExitCode;

    pub fn check() -> ExitCode {
        eprintln!("nvml_check: NVIDIA GPUs are read on Linux only");
        ExitCode::FAILURE
    }
}

fn main() -> ExitCode {
    boards::check()
}
