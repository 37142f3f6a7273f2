//! The truth is within the error of every account on random machines: the short form of
//! `cargo run --release --example simulated_accounts`.

use crate::simulated_accounts_support::{Tally, simulate};

const MACHINES: u64 = 400;

#[test]
fn the_truth_is_within_the_error_of_every_account_on_random_machines() {
    let mut tally = Tally::default();
    (1..=MACHINES).for_each(|seed| tally.add(simulate(seed)));
    assert!(tally.outside.is_empty(), "{:#?}", tally.outside);
    assert!(tally.accounts >= 4_000, "only {} accounts have a guarantee", tally.accounts);
    // A machine that never attains the bound would hide a bound that is a little too small.
    assert!(tally.worst_ratio > 0.97, "{}", tally.worst_ratio);
    let without = tally.without_guarantee * 10;
    assert!(without < tally.accounts, "{} accounts have no guarantee", tally.without_guarantee);
}
