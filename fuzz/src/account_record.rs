//! The stored columns of an account, which the store, its sums, its filters and its journal decode.

use wattspan::store::fuzz_entry::{StoredColumns, encode_account};
use wattspan_client::account::Account;

use super::first_byte;

/// A decoded account reads back as it is written, sums and filters see the same fields, and a journal's clocks only add.
pub fn check(bytes: &[u8]) {
    if let Ok(mut account) = serde_json::from_slice::<Account>(bytes) {
        // No phase ends before it begins, and no counter reaches the largest number.
        account.phases.retain(|phase| {
            phase.closed_ns.is_none_or(|closed_ns| closed_ns >= phase.opened_ns && closed_ns < u64::MAX)
                && [phase.share_uj, phase.error_uj].iter().all(|figure| *figure != Some(u64::MAX))
        });
        check_account(&account);
        return;
    }
    let (layout_length, rest) = first_byte(bytes);
    let (clock_length, rest) = first_byte(rest);
    let (layout, rest) = rest.split_at(usize::from(layout_length).min(rest.len()));
    let (clocks, figures) = rest.split_at(usize::from(clock_length).min(rest.len()));
    let columns = StoredColumns { uid: 1000, span: "a", name: "b", layout, figures };
    let _ = columns.summed_fields();
    let Some(account) = columns.account() else { return };
    check_account(&account);
    for key in [0, 1, 7] {
        let extended = columns.extended_account(clocks, key).expect("its figures are valid");
        for (before, after) in account.domains.iter().zip(&extended.domains) {
            let is_lost = after.share_uj.is_none();
            assert!(is_lost || after.share_uj >= before.share_uj, "{before:?} became {after:?}");
            assert!(
                after.window_uj.is_none()
                    || after.window_uj >= after.share_uj
                    || after.window_uj == before.window_uj
            );
        }
        assert!(extended.closed_ns >= account.closed_ns);
    }
}

/// Panics unless the account comes back from its columns.
fn check_account(account: &Account) {
    let (layout, figures) = encode_account(account);
    let columns = StoredColumns {
        uid: account.uid,
        span: &account.span,
        name: &account.name,
        layout: &layout,
        figures: &figures,
    };
    let again = columns.account().expect("what was written can be read");
    let (again_layout, again_figures) = encode_account(&again);
    assert_eq!((again_layout, again_figures), (layout.clone(), figures.clone()));
    assert_eq!(
        (&again.attributes, &again.phases, again.state),
        (&account.attributes, &account.phases, account.state)
    );
    assert_eq!(
        (&again.cgroup, again.uid, again.opened_ns),
        (&account.cgroup, account.uid, account.opened_ns)
    );
    let summed = columns.summed_fields().expect("what was written can be read");
    assert_eq!(
        (summed.state, summed.grade, summed.opened_unix_ns),
        (again.state, again.grade, again.opened_unix_ns)
    );
    assert_eq!(summed.energy_uj, [again.share_uj, again.idle_uj, again.error_uj]);
    assert_eq!(summed.model.as_deref(), again.model());
    assert_eq!(summed.duration_ns.is_some(), again.closed_ns.is_some());
    assert!(columns.passes_filter(&again.attributes), "the filter hides the account from a search");
}
