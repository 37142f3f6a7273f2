//! A simulation of the whole service on a virtual clock, from a seed.
//!
//! Counters with known true power, the samplers with their schedules, the rings, attribution, the store and the methods of the
//! service run on one thread; no step waits for real time. The seed decides calls, delays and faults. After each step the
//! balance, the counts of spans and each new account are compared with a model. A run depends on nothing but its seed:
//! `WATTSPAN_SEED=N` repeats a run that failed, which names itself.

mod calls;
mod counter;
mod machine;
mod model;
mod random;
mod schedule;
mod stored_calls;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use wattspan_client::account::Account;

use crate::clock::Clock;
use schedule::{RunFigures, RunKind, START_NS, Simulation};

const SECOND_NS: u64 = 1_000_000_000;

/// Prints how to repeat a run that panics.
struct FailureNotice {
    seed: u64,
    clock: Clock,
}

impl Drop for FailureNotice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "the simulation of seed {0} failed after {1} simulated seconds; to repeat it: WATTSPAN_SEED={0} cargo test -p \
                 wattspan service::simulation::random_runs",
                self.seed,
                (self.clock.now_ns() - START_NS) / SECOND_NS
            );
        }
    }
}

fn run(seed: u64, kind: RunKind) -> Simulation {
    let mut simulation = Simulation::new(seed, kind, calls::make_random);
    let _notice = FailureNotice { seed, clock: simulation.clock.clone() };
    simulation.run();
    simulation
}

/// After so many failures a test ends.
const MAX_FAILURES: usize = 20;

/// A number in an environment variable.
fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs seeds from `first` on until this many hours are simulated, on this many threads. Goes on after a failure, and names all
/// of them.
fn run_hours(first: u64, hours: f64, threads: usize) -> RunFigures {
    let (next, all) = (AtomicU64::new(first), Mutex::new((RunFigures::default(), Vec::new())));
    let take_seed = || {
        let (figures, failed) = &*all.lock().expect("no thread panics with it");
        let is_done = figures.simulated_ns as f64 >= hours * 3.6e12 || failed.len() >= MAX_FAILURES;
        (!is_done).then(|| next.fetch_add(1, Ordering::Relaxed))
    };
    let run_seeds = || {
        while let Some(seed) = take_seed() {
            let ended = std::panic::catch_unwind(|| run(seed, RunKind::of(seed)).figures);
            let (figures, failed) = &mut *all.lock().expect("no thread panics with it");
            match ended {
                Ok(of_run) => figures.add(&of_run),
                Err(_) => failed.push(seed),
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run_seeds))));
    let (figures, failed) = all.into_inner().expect("no thread panics with it");
    eprintln!("{}", figures.describe());
    assert!(failed.is_empty(), "seeds failed: {failed:?}");
    figures
}

#[test]
fn random_runs_keep_every_invariant() {
    if let Some(seed) = variable("WATTSPAN_SEED") {
        eprintln!("{:?}: {}", RunKind::of(seed), run(seed, RunKind::of(seed)).figures.describe());
        return;
    }
    let figures = run_hours(1, 0.8, 1);
    assert!(figures.shares.bounded > 1_000 && figures.refused > 100 && figures.restarts > 0, "{figures:?}");
    assert!(figures.listed > 100 && figures.watched > 100 && figures.sums > 10, "{figures:?}");
}

#[test]
#[ignore = "long: WATTSPAN_HOURS simulated hours (100 if unset) from seed WATTSPAN_FIRST_SEED on"]
fn many_random_runs_keep_every_invariant() {
    let first = variable("WATTSPAN_FIRST_SEED").unwrap_or(1_000);
    let hours = variable("WATTSPAN_HOURS").unwrap_or(100);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    run_hours(first, hours as f64, threads);
}

/// The accounts of a run, in an order that does not depend on those of hash tables.
fn sorted(accounts: &[Account]) -> Vec<Account> {
    let mut accounts = accounts.to_vec();
    accounts.sort_by(|one, other| {
        (one.closed_ns, one.uid, &one.span).cmp(&(other.closed_ns, other.uid, &other.span))
    });
    accounts
}

/// Compares the accounts of two runs.
fn assert_same(one: &[Account], other: &[Account]) {
    let different = one.iter().zip(other).find(|(one, other)| one != other);
    assert_eq!(different, None, "the first difference");
    assert_eq!(one.len(), other.len());
}

#[test]
fn a_run_depends_on_its_seed_alone() {
    let kind = RunKind { has_store: true, duration_ns: 60 * SECOND_NS, ..RunKind::of(7) };
    assert_same(&sorted(&run(7, kind).history), &sorted(&run(7, kind).history));
}

#[test]
fn a_wall_clock_that_jumps_by_years_changes_no_energy_and_deletes_no_account() {
    let mut wall_steps = 0;
    for seed in 40..42 {
        let kind = RunKind {
            has_store: true,
            has_coarse: false,
            max_age_s: 60,
            duration_ns: 200 * SECOND_NS,
            ..RunKind::of(seed)
        };
        let (steady, stepped) = (run(seed, RunKind { steps_wall: false, ..kind }), run(seed, kind));
        wall_steps += stepped.wall_steps;
        let wall_times = |run: &Simulation| -> Vec<u64> {
            sorted(&run.history).iter().map(|account| account.opened_unix_ns).collect()
        };
        assert_ne!(wall_times(&steady), wall_times(&stepped), "the clock was not set");
        let others = |run: &Simulation| -> Vec<Account> {
            let without = |account: Account| Account { opened_unix_ns: 0, ..account };
            sorted(&run.history).into_iter().map(without).collect()
        };
        assert_same(&others(&steady), &others(&stepped));
        let durable = steady.history.iter().filter(|account| account.durable == Some(true)).count();
        let (steady, stepped) = (steady.stored_spans(), stepped.stored_spans());
        assert_eq!(steady, stepped);
        assert!(!steady.is_empty() && steady.len() < durable, "{} of {durable} are kept", steady.len());
    }
    assert!(wall_steps >= 4, "{wall_steps} steps are too few");
}
