//! `wattspan ipw`: runs against a stub of an inference server, figures against a known truth.

#[cfg(target_os = "linux")]
#[path = "../faulty_fs/mod.rs"]
mod faulty_fs;
#[cfg(target_os = "linux")]
#[path = "../support/ground_truth.rs"]
mod ground_truth;
#[path = "../support/interval_simulation.rs"]
mod interval_simulation;
#[path = "../support/ipw_runs.rs"]
mod ipw_runs;
#[path = "../support/llm_stub.rs"]
mod llm_stub;
#[path = "../support/numpy.rs"]
mod numpy;
#[cfg(target_os = "linux")]
#[path = "../other_user/mod.rs"]
mod other_user;
#[path = "../support/programs.rs"]
mod programs;
#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod access;
mod card;
mod decisions;
mod documented;
mod ground_truth_runs;
mod harness;
mod harness_judged;
mod interrupted;
mod intervals;
#[cfg(target_os = "linux")]
mod power_cuts;
mod recompute;
mod runs;
mod scoring;
mod statistics;
mod sweep;

// Where `ipw_runs` finds it, which a bench uses too.
use support::in_process;
