//! The truth is within the error of every account on random machines: the short form of
//! `cargo run --release --example simulated_accounts`.

use crate::simulated_accounts_support::{Comparison, simulate};

const MACHINES: u64 = 400;

#[test]
fn the_truth_is_within_the_error_of_every_account_on_random_machines() {
    let mut comparison = Comparison::default();
    (1..=MACHINES).for_each(|seed| comparison.add(simulate(seed)));
    assert!(comparison.outside.is_empty(), "{:#?}", comparison.outside);
    assert!(comparison.accounts >= 4_000, "only {} accounts have a guarantee", comparison.accounts);
    // A machine that never attains the bound would hide a bound that is a little too small.
    assert!(comparison.worst_ratio > 0.97, "{}", comparison.worst_ratio);
    let without = comparison.without_guarantee * 10;
    assert!(without < comparison.accounts, "{} accounts have no guarantee", comparison.without_guarantee);
}
