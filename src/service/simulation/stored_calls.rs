//! Calls that the store answers: lists after a number, as an exporter makes them, streams of stored accounts, and sums.
//!
//! A follower of each user lists, and a watcher of each user streams, as WatchSpans delivers it: the watcher reads each page
//! for some time, may lose its connection within a page, and continues after the last account that it has read. Each gets
//! each stored account that the user may see once, over faults of the disk and restarts. At the end of a run each has every
//! account that was reported as durable, and the sums are those of the follower's accounts.

use serde::Deserialize;
use wattspan_client::account::{Account, SpanState};
use wattspan_client::protocol::{
    ListSpans, MESSAGE_TERMINATOR, MethodError, SpanAccounts, SumSpans, WatchSpans, WatchedSpan,
};

use super::model::Watcher;
use super::schedule::{Simulation, Waiting};
use crate::service::caller::{Caller, ReplyTo};
use crate::service::durability::AccountPage;
use crate::service::reply::{MethodResult, Reply};
use crate::service::stored_stream::StoredStream;

const MS_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;

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

    /// Delivers the pages that the store has completed to the watchers, and requests the next ones.
    pub(super) fn advance_watchers(&mut self) {
        advance_watchers(self);
    }

    /// Lets the streams come to their ends, and compares them with what was reported.
    pub(super) fn check_watchers(&mut self) {
        check_watchers(self);
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
    let deletes = run.kind.deletes_accounts();
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
    if !run.kind.has_store || run.kind.deletes_accounts() {
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

/// Begins the stream of a user, or ends it.
pub(super) fn watch(run: &mut Simulation, user: usize) {
    if run.watchers[user].stream.is_none() {
        begin_stream(run, user);
    } else if run.random.one_in(4) {
        run.watchers[user].disconnect();
    }
}

fn begin_stream(run: &mut Simulation, user: usize) {
    let (peer, connection) = (run.peer(user), run.caller(user).reply_to.slot + (1 << 32));
    let watcher = &run.watchers[user];
    let call = WatchSpans { after: Some(watcher.after.cast_signed()), database: watcher.database.clone() };
    match run.machine().service.watch_spans(&peer, &call) {
        Ok(position) => {
            let stream = StoredStream::new(position.expect("the call has a position"));
            run.watchers[user].stream = Some((connection, stream));
        }
        Err(error) => check_refusal(run, user, &error),
    }
}

fn advance_watchers(run: &mut Simulation) {
    for page in run.machine().service.take_account_pages() {
        deliver(run, page);
    }
    for user in 0..run.watchers.len() {
        request(run, user);
    }
}

fn request(run: &mut Simulation, user: usize) {
    let (peer, now_ns) = (run.peer(user), run.clock.now_ns());
    let machine = run.machine.as_mut().expect("it runs");
    let Some(last_number) = machine.service.last_store_number() else { return };
    let Watcher { stream: Some((connection, stream)), reads_until_ns, .. } = &mut run.watchers[user] else {
        return;
    };
    if now_ns < *reads_until_ns {
        return;
    }
    let Some(query) = stream.next_query(peer.uid_filter(), last_number, now_ns) else { return };
    let caller = Caller { peer, reply_to: ReplyTo { connection: *connection, slot: 0 }, process: None };
    if machine.service.request_account_page(&caller, query) {
        stream.begin_query(last_number);
        machine.after_call();
    }
}

fn deliver(run: &mut Simulation, page: AccountPage) {
    #[derive(Deserialize)]
    struct Item {
        parameters: WatchedSpan,
    }
    let is_of_page = |watcher: &Watcher| matches!(watcher.stream, Some((id, _)) if id == page.connection);
    let Some(user) = run.watchers.iter().position(is_of_page) else { return };
    let now_ns = run.clock.now_ns();
    let longest_ns = MS_NS << run.random.below(12);
    let (reads_ns, loses_connection) = (run.random.below(longest_ns), run.random.one_in(20));
    let page = page.result.unwrap_or_else(|error| panic!("the stream of user {user}: {error:?}"));
    let watcher = &mut run.watchers[user];
    watcher.reads_until_ns = now_ns + reads_ns;
    if let Some((_, stream)) = &mut watcher.stream {
        stream.end_query(page.as_ref(), now_ns);
    }
    let messages = page.map_or_else(Vec::new, |page| page.messages);
    for message in messages.split_inclusive(|byte| *byte == MESSAGE_TERMINATOR) {
        if loses_connection && run.random.one_in(4) {
            return run.watchers[user].disconnect();
        }
        let text = message.strip_suffix(&[MESSAGE_TERMINATOR]).expect("a whole message");
        check_item(run, user, serde_json::from_slice::<Item>(text).expect("an item").parameters);
    }
}

fn check_item(run: &mut Simulation, user: usize, item: WatchedSpan) {
    let WatchedSpan { mut account, after, database, .. } = item;
    run.figures.watched += 1;
    let peer = run.peer(user);
    assert!(peer.uid_filter().is_none_or(|uid| uid == account.uid), "of another user: {account:?}");
    assert!(!matches!(account.state, SpanState::Open | SpanState::Provisional), "not final: {account:?}");
    let (after, number) = (after.expect("a position"), account.number.take());
    run.check_unchanged(&account);
    let watcher = &mut run.watchers[user];
    assert!(watcher.database.is_none() || watcher.database == database, "another database: {database:?}");
    // The positions of callers who see the accounts of one user are encrypted, and their accounts have no numbers.
    assert_eq!(number, peer.uid_filter().is_none().then_some(after), "{account:?}");
    assert!(number.is_none_or(|number| number > watcher.after), "{number:?} is not after {}", watcher.after);
    assert!(watcher.seen.insert((account.uid, account.span.clone())), "streamed twice: {account:?}");
    (watcher.after, watcher.database) = (after, database);
}

fn check_watchers(run: &mut Simulation) {
    if !run.kind.has_store || run.kind.deletes_accounts() {
        return;
    }
    for user in (0..run.watchers.len()).filter(|user| !run.is_coarse(*user)).collect::<Vec<_>>() {
        check_watcher(run, user);
        // A new one begins with the first account, and reads more than a page.
        run.watchers[user] = Watcher::default();
        check_watcher(run, user);
    }
}

fn check_watcher(run: &mut Simulation, user: usize) {
    let deadline_ns = run.clock.now_ns() + 60 * SECOND_NS;
    while !is_at_end(run, user) {
        assert!(run.clock.now_ns() < deadline_ns, "the stream of user {user} does not come to its end");
        if run.watchers[user].stream.is_none() {
            begin_stream(run, user);
        }
        run.run_on(50 * MS_NS);
    }
    let (peer, watcher) = (run.peer(user), &run.watchers[user]);
    for (name, account) in &run.finals {
        let is_visible = peer.uid_filter().is_none_or(|own| own == name.0);
        let must_be_seen = is_visible && account.durable == Some(true);
        assert!(!must_be_seen || watcher.seen.contains(name), "durable and not streamed: {account:?}");
    }
}

fn is_at_end(run: &mut Simulation, user: usize) -> bool {
    let last_number = run.machine().service.last_store_number().expect("a store");
    run.watchers[user].stream.as_ref().is_some_and(|(_, stream)| stream.is_at_end(last_number))
}
