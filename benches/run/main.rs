//! Cost of `wattspan run` without a daemon: CPU time above the bare command, and the delay of the command's start.
//!
//! Both are differences between the measured and the bare command, which run in turn; the median of the pairs counts. The
//! command is this program, which writes the time at which its `main` begins. `wattspan` measures a simulated machine, which
//! needs no initialisation, and this machine with all its sources. Run with `cargo bench --bench run`.

mod children_cpu_ffi;
#[path = "../../tests/support/programs.rs"]
mod programs;
#[path = "../table/mod.rs"]
mod table;

use std::path::Path;
use std::process::{Command, Stdio};

use children_cpu_ffi::children_cpu_ns;
use table::Table;
use wattspan::clock::monotonic_ns;

/// Pairs of a bare and a measured command.
const ROUNDS: usize = 40;

/// Set in the process that is the command.
const IS_COMMAND: &str = "WATTSPAN_BENCH_COMMAND";

const MACHINE: &str = "[[domain]]\nname = \"package-0\"\nkind = \"package\"\nprofile = [[1.0, 80]]\nquantum_uj = 61\n\
                       ceiling_w = 400\n";

fn main() {
    if std::env::var_os(IS_COMMAND).is_some() {
        println!("{}", monotonic_ns());
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let (machine, config) = (file("machine.toml", MACHINE), file("wattspan.toml", ""));
    let mut table = Table::new("wattspan run without a daemon, above the bare command (medians)");
    measure(&mut table, "simulated machine", &["--replay".as_ref(), &machine]);
    measure(&mut table, "this machine", &["--config".as_ref(), &config]);
}

/// CPU time and delay of the start of one run, in ns.
#[derive(Clone, Copy)]
struct RunCost {
    cpu_ns: u64,
    start_ns: u64,
}

fn run(program: &mut Command) -> Option<RunCost> {
    let cpu_before_ns = children_cpu_ns();
    let begun_ns = monotonic_ns();
    let output = program.env(IS_COMMAND, "1").stderr(Stdio::null()).output().expect("the program starts");
    let started_ns: u64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(RunCost { cpu_ns: children_cpu_ns() - cpu_before_ns, start_ns: started_ns - begun_ns })
}

fn measure(table: &mut Table, machine: &str, options: &[&Path]) {
    let command = std::env::current_exe().expect("this program");
    let run_pair = || {
        let bare = run(&mut Command::new(&command))?;
        let mut wattspan = Command::new(programs::wattspan());
        let measured = run(wattspan.args(options).args(["run", "--"]).arg(&command))?;
        Some((bare, measured))
    };
    // The first pair reads the programs from disk.
    let pairs: Vec<(RunCost, RunCost)> = (0..=ROUNDS).map_while(|_| run_pair()).skip(1).collect();
    let median_ms = |figure: &dyn Fn(&(RunCost, RunCost)) -> f64| {
        median(&mut pairs.iter().map(|pair| figure(pair) / 1e6).collect::<Vec<_>>())
    };
    let above_bare = |figure: fn(&RunCost) -> u64| {
        median_ms(&|(bare, measured)| figure(measured) as f64 - figure(bare) as f64)
    };
    table.note("CPU time of the bare command", median_ms(&|(bare, _)| bare.cpu_ns as f64), "ms");
    table.at_most(&format!("CPU time, {machine}"), above_bare(|cost| cost.cpu_ns), 5.0, "ms");
    table.at_most(&format!("start of the command, {machine}"), above_bare(|cost| cost.start_ns), 10.0, "ms");
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
