//! Calls that the store answers: lists after a number, as an exporter makes them, and sums.
//!
//! A follower of each user gets each stored account that the user may see once, over faults of the disk and restarts. At the
//! end of a run it has every account that was reported as durable, and the sums are those of its accounts.

use wattspan_client::account::Account;
use wattspan_client::protocol::{ListSpans, MethodError, SpanAccounts, SumSpans};

use super::schedule::{Simulation, Waiting};
use crate::service::reply::{MethodResult, Reply};

const MS_NS: u64 = 1_000_000;

impl Simulation {
    /// Checks the reply to a list or to sums of a user.
    pub(super) fn check_stored_reply(&mut self, waiting: &Waiting, result: MethodResult) {
        match waiting {
            Waiting::After(user) => check_page(self, *user, result),
            Waiting::Sums(user) => check_sums(self, *user, result),
            other => panic!("{other:?} {result:?}"),
        }
    }

    /// Reads what the followers have left, and compares it with what was reported.
    pub(super) fn check_followers(&mut self) {
        check_all(self);
    }
}

/// Lists accounts after the last one that the user has read, unless such a call waits.
pub(super) fn list_after(run: &mut Simulation, user: usize) {
    if run.waiting.values().any(|waiting| *waiting == Waiting::After(user)) {
        return;
    }
    let (caller, limit) = (run.caller(user), run.random.between(1, 40));
    let follower = &run.followers[user];
    let call = ListSpans {
        after: Some(follower.after.cast_signed()),
        database: follower.database.clone(),
        limit: Some(limit.cast_signed()),
        ..ListSpans::default()
    };
    match run.machine().service.list_spans(&caller, &call, true) {
        Ok(None) => {
            let place = (caller.reply_to.connection, caller.reply_to.slot);
            run.waiting.insert(place, Waiting::After(user));
        }
        Ok(Some(page)) => panic!("a list from memory: {page:?}"),
        Err(error) => check_refusal(run, user, &error),
    }
}

/// Sums the accounts that the user may see.
pub(super) fn sum(run: &mut Simulation, user: usize) {
    let is_waiting = run.waiting.values().any(|waiting| *waiting == Waiting::Sums(user));
    let caller = run.caller(user);
    match run.machine().service.sum_spans(&caller, &SumSpans::default()) {
        Ok(()) => {
            let place = (caller.reply_to.connection, caller.reply_to.slot);
            run.waiting.insert(place, Waiting::Sums(user));
        }
        // One call of a user runs at a time.
        Err(MethodError::QuotaExceeded { .. }) => assert!(is_waiting),
        Err(error) => check_refusal(run, user, &error),
    }
}

/// Coarse access shows no order of accounts; without a store, or while its disk fails, there is no list.
fn check_refusal(run: &mut Simulation, user: usize, error: &MethodError) {
    run.figures.refused += 1;
    match error {
        MethodError::AccessDenied { .. } => assert!(run.is_coarse(user)),
        MethodError::StoreUnavailable { .. } => {
            assert!(!run.kind.has_store || !run.is_disk_well(), "{error:?}");
        }
        error => panic!("{error:?}"),
    }
}

/// Checks the reply to a list.
fn check_page(run: &mut Simulation, user: usize, result: MethodResult) {
    let page = match result {
        Ok(Reply::Encoded(message)) => Reply::decode_accounts(&message).expect("a page"),
        Ok(other) => panic!("{other:?}"),
        Err(error) => return check_refusal(run, user, &error),
    };
    let SpanAccounts { accounts, after, at_end, database, .. } = page;
    for account in accounts {
        check_listed(run, user, &account);
    }
    // The positions of callers who see the accounts of one user are encrypted.
    let is_number = run.peer(user).uid_filter().is_none();
    let follower = &mut run.followers[user];
    assert!(follower.database.is_none() || follower.database == database, "another database: {database:?}");
    let after = after.expect("a position");
    assert!(!is_number || after >= follower.after, "{after} is before {}", follower.after);
    (follower.after, follower.database) = (after, database);
    follower.is_at_end = at_end == Some(true);
}

fn check_listed(run: &mut Simulation, user: usize, account: &Account) {
    run.figures.listed += 1;
    let peer = run.peer(user);
    assert!(peer.uid_filter().is_none_or(|uid| uid == account.uid), "of another user: {account:?}");
    run.check_unchanged(&Account { number: None, ..account.clone() });
    let follower = &mut run.followers[user];
    assert!(follower.seen.insert((account.uid, account.span.clone())), "listed twice: {account:?}");
    follower.energy_uj += account.share_uj.unwrap_or(0);
    follower.without_energy += u64::from(account.share_uj.is_none());
}

/// Checks the reply to sums: they only grow, because nothing is deleted.
fn check_sums(run: &mut Simulation, user: usize, result: MethodResult) {
    let sums = match result {
        Ok(Reply::Sums(sums)) => *sums,
        Ok(other) => panic!("{other:?}"),
        Err(error) => return check_refusal(run, user, &error),
    };
    run.figures.sums += 1;
    let deletes = run.kind.max_age_s < 86_400;
    let follower = &mut run.followers[user];
    if let Some(before) = &follower.last_sums {
        let grows =
            sums.total.accounts >= before.total.accounts && sums.total.energy_uj >= before.total.energy_uj;
        assert!(grows || deletes, "{sums:?} after {before:?}");
    }
    follower.last_sums = Some(sums);
}

/// Reads what is left, and compares it with what was reported.
fn check_all(run: &mut Simulation) {
    if !run.kind.has_store || run.kind.max_age_s < 86_400 {
        return;
    }
    for user in (0..3).filter(|user| !run.is_coarse(*user)).collect::<Vec<_>>() {
        run.followers[user].is_at_end = false;
        while !run.followers[user].is_at_end {
            list_after(run, user);
            run.run_on(50 * MS_NS);
        }
        let peer = run.peer(user);
        let follower = &run.followers[user];
        for ((uid, span), account) in &run.finals {
            let is_visible = peer.uid_filter().is_none_or(|own| own == *uid);
            let is_listed = follower.seen.contains(&(*uid, span.clone()));
            assert!(
                is_listed || !is_visible || account.durable != Some(true),
                "durable and not listed: {account:?}"
            );
        }
        run.followers[user].last_sums = None;
        while run.followers[user].last_sums.is_none() {
            sum(run, user);
            run.run_on(50 * MS_NS);
        }
        let follower = &run.followers[user];
        let total = &follower.last_sums.as_ref().expect("it was waited for").total;
        let found = (total.accounts, total.without_energy, total.energy_uj.unwrap_or(0));
        assert_eq!(found, (follower.seen.len() as u64, follower.without_energy, follower.energy_uj));
    }
}
