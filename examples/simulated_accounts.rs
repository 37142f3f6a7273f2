//! Compares accounts with the truth on random simulated machines: `cargo run --release --example simulated_accounts --
//! --accounts 1000000 --seed 1`. `--replay SEED` repeats one machine.
//!
//! Exits with status 1 if the truth of a value is outside its guaranteed error.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[path = "../tests/support/ground_truth.rs"]
mod ground_truth;
#[path = "../tests/support/simulated_accounts.rs"]
mod simulated_accounts;

use simulated_accounts::{ASSUMPTIONS, Comparison, simulate};

/// Simulates machines of consecutive seeds until there are enough accounts.
fn simulate_many(accounts: u64, first_seed: u64) -> Comparison {
    let (comparison, next_seed) = (Mutex::new(Comparison::default()), AtomicU64::new(first_seed));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let machine = simulate(next_seed.fetch_add(1, Ordering::Relaxed));
                    let mut comparison = comparison.lock().expect("no simulation panics");
                    comparison.add(machine);
                    if comparison.accounts >= accounts {
                        break;
                    }
                }
            });
        }
    });
    comparison.into_inner().expect("no simulation panics")
}

fn print(comparison: &Comparison) {
    println!("assumptions, which the simulated machines keep:");
    ASSUMPTIONS.iter().for_each(|assumption| println!("  - {assumption}"));
    println!("machines                         {}", comparison.machines);
    println!("accounts with a guaranteed error {}", comparison.accounts);
    println!("accounts without one             {}", comparison.without_guarantee);
    println!("values compared                  {}", comparison.values);
    println!("accounts with the truth outside  {}", comparison.outside.len());
    println!(
        "largest |share - truth| / error  {:.4} (seed {})",
        comparison.worst_ratio, comparison.worst_seed
    );
    println!("accounts by |share - truth| / error of the total:");
    for (twentieth, count) in comparison.ratios.iter().enumerate() {
        let percent = 100.0 * *count as f64 / comparison.accounts.max(1) as f64;
        println!(
            "  {:.2} to {:.2}  {count:>9}  {percent:6.3} %",
            twentieth as f64 / 20.0,
            (twentieth + 1) as f64 / 20.0
        );
    }
    for outside in comparison.outside.iter().take(20) {
        println!("OUTSIDE {outside}; repeat it with --replay");
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let value = |option: &str| {
        let at = args.iter().position(|arg| arg == option)?;
        Some(args.get(at + 1)?.parse::<u64>().expect("a number"))
    };
    let comparison = match value("--replay") {
        Some(seed) => simulate(seed),
        None => simulate_many(value("--accounts").unwrap_or(10_000), value("--seed").unwrap_or(1)),
    };
    print(&comparison);
    if comparison.outside.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
