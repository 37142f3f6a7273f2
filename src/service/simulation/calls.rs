//! Random calls, valid and invalid, with the answers that the contract names for them.

use std::collections::BTreeMap;

use wattspan_client::account::{Account, SpanState};
use wattspan_client::protocol::{
    CloseSpan, ListSpans, MarkPhase, MethodError, OpenSpan, ReadWindow, ReloadReply, SetWeight,
};

use super::counter::lock;
use super::machine::{PHASES_PER_SPAN, start_config};
use super::model::{self, ModelState, SpanModel};
use super::schedule::{Simulation, Waiting};
use super::stored_calls;
use crate::service::caller::AccountOutcome;

const MS_NS: u64 = 1_000_000;
const HORIZON_NS: u64 = 10 * MS_NS;
const HISTORY_NS: u64 = 16_000 * MS_NS;

/// The kinds of answers that the contract allows for a call.
type Allowed = &'static [&'static str];

const OK: Allowed = &["ok"];

/// The name of an answer in [`Allowed`].
fn kind<T>(result: &Result<T, MethodError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(MethodError::NoSuchSpan { .. }) => "NoSuchSpan",
        Err(MethodError::SpanExists { .. }) => "SpanExists",
        Err(MethodError::AlreadyClosed { .. }) => "AlreadyClosed",
        Err(MethodError::NoSuchDomain { .. }) => "NoSuchDomain",
        Err(MethodError::InvalidTime { .. }) => "InvalidTime",
        Err(MethodError::InvalidValue { .. }) => "InvalidValue",
        Err(MethodError::QuotaExceeded { .. }) => "QuotaExceeded",
        Err(MethodError::StoreUnavailable { .. }) => "StoreUnavailable",
        Err(_) => "another error",
    }
}

/// An instant for a call, and whether it is valid whatever the span.
#[derive(Debug, Clone, Copy)]
struct Instant {
    at_ns: Option<i64>,
    is_valid: bool,
}

/// Makes one call and checks its answer.
pub(super) fn make_random(run: &mut Simulation) {
    let user = run.random.below(3) as usize;
    match run.random.below(37) {
        0..8 => open(run, user),
        8..11 => mark_phase(run, user),
        11..14 => set_weight(run, user),
        14..22 => close(run, user),
        22..24 => cancel(run, user),
        24..28 => get_again(run, user),
        28 => list_open(run, user),
        29 => read_window(run),
        30 => get_figures(run, user),
        31 | 32 => stored_calls::list_after(run, user),
        33 => stored_calls::sum(run, user),
        34 => reload(run),
        35 => stored_calls::watch(run, user),
        _ if run.random.one_in(4) => run.close_connection(user),
        _ => {}
    }
}

fn check<T>(run: &mut Simulation, what: &str, result: &Result<T, MethodError>, allowed: Allowed) {
    let found = kind(result);
    if found != "ok" {
        run.figures.refused += 1;
    }
    let error = result.as_ref().err();
    assert!(allowed.contains(&found), "{what} gave {found} ({error:?}) in place of {allowed:?}");
}

/// Now, late within the horizon or beyond it, slightly ahead, or invalid.
fn instant(run: &mut Simulation) -> Instant {
    let now_ns = run.clock.now_ns();
    let (at_ns, is_valid) = match run.random.below(24) {
        0..10 => return Instant { at_ns: None, is_valid: true },
        10..18 => (now_ns - run.random.below(HORIZON_NS), true),
        18..20 => (now_ns - run.random.below(10 * HORIZON_NS), true),
        20 => (now_ns + run.random.below(MS_NS), true),
        21 => (now_ns + 2 * MS_NS + run.random.below(1 << 40), false),
        22 => (now_ns.saturating_sub(HISTORY_NS + 1), false),
        _ => return Instant { at_ns: Some(-1 - run.random.below(1 << 60).cast_signed()), is_valid: false },
    };
    // At the start of the clock the history reaches back to 0.
    let is_valid = is_valid || at_ns == 0;
    Instant { at_ns: Some(at_ns.cast_signed()), is_valid }
}

fn open(run: &mut Simulation, user: usize) {
    let (peer, now_ns, unix_ns) = (run.peer(user), run.clock.now_ns(), run.clock.unix_ns());
    let at = instant(run);
    run.next_name += 1;
    let mut name = format!("s{}", run.next_name);
    let weight = [1.0, 1.0, 0.0, 0.25, 0.5, 1.0 / 65_536.0, 17.0][run.random.below(7) as usize];
    let weight = if run.kind.has_coarse { f64::min(weight, 1.0) } else { weight };
    let mut call = OpenSpan { weight: Some(weight), at_ns: at.at_ns, ..OpenSpan::default() };
    let mut allowed = if at.is_valid { OK } else { &["InvalidTime"] };
    let own_open =
        run.spans.iter().filter(|span| span.uid == peer.uid && span.state == ModelState::Open).count();
    if own_open >= run.open_limit && at.is_valid {
        allowed = &["QuotaExceeded"];
    }
    let is_plain = allowed == OK;
    match run.random.below(40) {
        0 if is_plain => {
            (call.weight, allowed) =
                (Some([f64::NAN, -1.0, 1e7][run.random.below(3) as usize]), &["InvalidValue"])
        }
        1 if is_plain => (call.domains, allowed) = (Some(Vec::new()), &["InvalidValue"]),
        2 if is_plain => (call.domains, allowed) = (Some(vec!["gpu-7".into()]), &["NoSuchDomain"]),
        3 if is_plain => (name, allowed) = ("bell\u{7}".into(), &["InvalidValue"]),
        4 if is_plain => (name, allowed) = (String::new(), &["InvalidValue"]),
        5 if is_plain => (call.name, allowed) = (Some("n".repeat(257)), &["InvalidValue"]),
        6 if is_plain => {
            let key = |at: usize| (format!("k{at}"), String::new());
            (call.attributes, allowed) = (Some((0..65).map(key).collect()), &["InvalidValue"]);
        }
        7..10 if is_plain => (name, allowed) = reuse_name(run, user, name),
        10..14 => call.domains = Some(vec!["package-0".into()]),
        14 => call.domains = Some(vec!["gpu-0".into(), "dram-0".into(), "gpu-0".into()]),
        _ => {}
    }
    call.span = Some(name.clone());
    let (caller, weight) = (run.caller(user), call.weight.unwrap_or(1.0));
    let result = run.machine().service.open_span(&caller, call);
    check(run, &format!("OpenSpan {name} at {at:?}, now {now_ns},"), &result, allowed);
    if result.is_err() {
        return;
    }
    let requested_ns = at.at_ns.map_or(now_ns, i64::cast_unsigned);
    let opened_ns = requested_ns.max(now_ns - HORIZON_NS);
    let mut span = SpanModel {
        uid: peer.uid,
        name: name.clone(),
        connection: caller.reply_to.connection,
        is_coarse: run.is_coarse(user),
        requested_ns,
        opened_ns,
        opened_unix_ns: unix_ns.saturating_add(requested_ns).saturating_sub(now_ns),
        closed_ns: None,
        weights: vec![(opened_ns, weight)],
        phases: Vec::new(),
        scope: 0,
        state: ModelState::Open,
        is_final: false,
    };
    run.counts.opened += 1;
    run.counts.open += 1;
    let account = current_account(run, user, &name).expect("it is open");
    assert_eq!(account.state, SpanState::Open, "{account:?}");
    for (domain, counter) in run.counters.iter().enumerate() {
        let name = lock(counter).name;
        span.scope |= u64::from(account.domains.iter().any(|share| share.domain == *name)) << domain;
    }
    run.finals.remove(&(peer.uid, name.clone()));
    run.used_names.insert((peer.uid, name.clone()));
    run.latest.insert((peer.uid, name), run.spans.len());
    run.spans.push(span);
}

/// A name that the user has used before, if any.
fn reuse_name(run: &mut Simulation, user: usize, fresh: String) -> (String, Allowed) {
    let uid = run.peer(user).uid;
    let back = run.random.below(60);
    let name = format!("s{}", run.next_name.saturating_sub(back));
    let used = run.used_names.contains(&(uid, name.clone()));
    // A store may have two accounts of one name, of which the later one is found.
    if !used || run.kind.has_store {
        return (fresh, OK);
    }
    match run.latest.get(&(uid, name.clone())).map(|at| &run.spans[*at]) {
        Some(span) if span.state == ModelState::Cancelled => (name, OK),
        Some(span) if !span.is_final => (name, &["SpanExists"]),
        // It may be forgotten.
        _ => (name, &["SpanExists", "ok"]),
    }
}

/// A span for a call: mostly an open one of the user, else any or none. Its index, its name, and the answers to a valid call.
fn pick(run: &mut Simulation, user: usize) -> (Option<usize>, String, Allowed) {
    let uid = run.peer(user).uid;
    let choice = run.random.below(16);
    if choice == 0 {
        return (None, "none".into(), &["NoSuchSpan"]);
    }
    let is_candidate = |span: &&SpanModel| match choice {
        1 => true,
        2 => span.uid == uid,
        _ => span.uid == uid && span.state == ModelState::Open,
    };
    let names: Vec<(u32, String)> =
        run.spans.iter().filter(is_candidate).map(|span| (span.uid, span.name.clone())).collect();
    if names.is_empty() {
        return (None, "none".into(), &["NoSuchSpan"]);
    }
    let (owner, name) = names[run.random.below(names.len() as u64) as usize].clone();
    if owner != uid && !run.latest.contains_key(&(uid, name.clone())) {
        let allowed: Allowed = if run.used_names.contains(&(uid, name.clone())) {
            &["NoSuchSpan", "AlreadyClosed"]
        } else {
            &["NoSuchSpan"]
        };
        return (None, name, allowed);
    }
    let at = run.latest[&(uid, name.clone())];
    let span = &run.spans[at];
    match span.state {
        ModelState::Open => (Some(at), name, OK),
        ModelState::Cancelled => (None, name, &["NoSuchSpan"]),
        _ if !span.is_final => (None, name, &["AlreadyClosed"]),
        // It may be forgotten.
        _ => (None, name, &["AlreadyClosed", "NoSuchSpan"]),
    }
}

/// The instant at which an edge of a span takes effect; `None` if the call is refused.
fn edge_ns(run: &Simulation, at: usize, instant: Instant, now_ns: u64) -> Option<u64> {
    let span = &run.spans[at];
    let requested_ns = instant.at_ns.map_or(now_ns.max(span.requested_ns), i64::cast_unsigned);
    let is_valid = instant.is_valid && requested_ns >= span.requested_ns;
    is_valid.then(|| requested_ns.max(now_ns - HORIZON_NS).max(span.opened_ns))
}

/// The answers to a call about a span at an instant, and when it takes effect.
fn expected(
    run: &Simulation,
    at: Option<usize>,
    instant: Instant,
    now_ns: u64,
    allowed: Allowed,
) -> (Option<u64>, Allowed) {
    let Some(at) = at else { return (None, allowed) };
    match edge_ns(run, at, instant, now_ns) {
        Some(edge_ns) => (Some(edge_ns), OK),
        None => (None, &["InvalidTime"]),
    }
}

fn mark_phase(run: &mut Simulation, user: usize) {
    let (at, span, allowed) = pick(run, user);
    let (instant, now_ns, peer) = (instant(run), run.clock.now_ns(), run.peer(user));
    let (edge_ns, mut allowed) = expected(run, at, instant, now_ns, allowed);
    let mut phase = format!("p{}", run.random.below(3));
    if let Some(at) = at.filter(|_| instant.is_valid) {
        if run.spans[at].phases.len() >= PHASES_PER_SPAN {
            allowed = if allowed == OK { &["QuotaExceeded"] } else { &["QuotaExceeded", "InvalidTime"] };
        } else if allowed == OK && run.random.one_in(20) {
            (phase, allowed) = (String::new(), &["InvalidValue"]);
        }
    }
    let call = MarkPhase { span: span.clone(), phase: phase.clone(), at_ns: instant.at_ns };
    let result = run.machine().service.mark_phase(&peer, call);
    check(run, &format!("MarkPhase {span} at {instant:?}, now {now_ns},"), &result, allowed);
    if let (Ok(()), Some(at), Some(edge_ns)) = (result, at, edge_ns) {
        run.spans[at].begin_phase(edge_ns, phase);
    }
}

fn set_weight(run: &mut Simulation, user: usize) {
    let (at, span, allowed) = pick(run, user);
    let (instant, now_ns, peer) = (instant(run), run.clock.now_ns(), run.peer(user));
    let (edge_ns, mut allowed) = expected(run, at, instant, now_ns, allowed);
    let mut weight = [0.0, 0.5, 1.0, 0.75, 0.125][run.random.below(5) as usize];
    if allowed == OK && run.random.one_in(16) {
        (weight, allowed) =
            ([f64::NAN, -0.5, f64::INFINITY][run.random.below(3) as usize], &["InvalidValue"]);
    }
    let call = SetWeight { span: span.clone(), weight, at_ns: instant.at_ns };
    let result = run.machine().service.set_weight(&peer, &call);
    check(run, &format!("SetWeight {span} at {instant:?}, now {now_ns},"), &result, allowed);
    if let (Ok(()), Some(at), Some(edge_ns)) = (result, at, edge_ns) {
        run.spans[at].set_weight(edge_ns, weight);
    }
}

fn close(run: &mut Simulation, user: usize) {
    let (at, span, allowed) = pick(run, user);
    let (instant, now_ns) = (instant(run), run.clock.now_ns());
    let (edge_ns, mut allowed) = expected(run, at, instant, now_ns, allowed);
    let mut attributes = run.random.one_in(3).then(|| BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    if allowed == OK && run.random.one_in(20) {
        (attributes, allowed) =
            (Some(BTreeMap::from([("k".to_owned(), "\n".to_owned())])), &["InvalidValue"]);
    }
    let (caller, wait) = (run.caller(user), run.random.one_in(2));
    let call = CloseSpan { span: span.clone(), attributes, at_ns: instant.at_ns, wait_settled: Some(wait) };
    let result = run.machine().service.close_span(&caller, call, wait);
    check(run, &format!("CloseSpan {span} at {instant:?}, now {now_ns},"), &result, allowed);
    let (Ok(outcome), Some(at), Some(edge_ns)) = (result, at, edge_ns) else { return };
    run.spans[at].state = ModelState::Closed;
    run.spans[at].closed_ns = Some(edge_ns);
    run.counts.open -= 1;
    run.counts.closed += 1;
    match outcome {
        AccountOutcome::Deferred => {
            assert!(wait);
            let name = run.spans[at].name.clone();
            let place = (caller.reply_to.connection, caller.reply_to.slot);
            run.waiting.insert(place, Waiting::Close(caller.peer.uid, name));
        }
        AccountOutcome::Ready(account) => {
            assert!(!wait);
            model::check_consistency(&account, run.is_coarse(user));
        }
    }
}

fn cancel(run: &mut Simulation, user: usize) {
    let (at, span, allowed) = pick(run, user);
    let (now_ns, peer) = (run.clock.now_ns(), run.peer(user));
    let result = run.machine().service.cancel_span(&peer, &span);
    check(run, &format!("CancelSpan {span}"), &result, allowed);
    let (Ok(()), Some(at)) = (result, at) else { return };
    let span = &mut run.spans[at];
    span.state = ModelState::Cancelled;
    span.closed_ns = Some(now_ns.max(span.requested_ns).max(span.opened_ns));
    run.counts.open -= 1;
    run.counts.cancelled += 1;
}

/// The account as of now of a span in memory.
fn current_account(run: &mut Simulation, user: usize, span: &str) -> Result<Account, MethodError> {
    let caller = run.caller(user);
    match run.machine().service.get_span(&caller, span, false)? {
        AccountOutcome::Ready(account) => Ok(*account),
        AccountOutcome::Deferred => panic!("a call that cannot wait was deferred"),
    }
}

/// Reads an account again that was final before, or the account so far of an open span.
fn get_again(run: &mut Simulation, user: usize) {
    let uid = run.peer(user).uid;
    if run.random.one_in(3) {
        let (at, span, _) = pick(run, user);
        if at.is_some() {
            let account = current_account(run, user, &span).expect("it is open");
            model::check_consistency(&account, run.is_coarse(user));
        }
        return;
    }
    let own: Vec<&(u32, String)> = run.finals.keys().filter(|(owner, _)| *owner == uid).collect();
    if own.is_empty() {
        return;
    }
    let span = own[run.random.clone().below(own.len() as u64) as usize].1.clone();
    run.random.next();
    let (caller, wait) = (run.caller(user), run.kind.has_store);
    let is_durable = run.finals[&(uid, span.clone())].durable == Some(true);
    match run.machine().service.get_span(&caller, &span, wait) {
        Ok(AccountOutcome::Ready(account)) => run.check_unchanged(&account),
        Ok(AccountOutcome::Deferred) => {
            let place = (caller.reply_to.connection, caller.reply_to.slot);
            run.waiting.insert(place, Waiting::Query(uid, span));
        }
        Err(MethodError::NoSuchSpan { .. }) => assert!(!is_durable, "{span} was durable"),
        Err(MethodError::StoreUnavailable { .. }) => assert!(run.kind.has_store && !run.is_disk_well()),
        Err(error) => panic!("{error:?}"),
    }
}

fn list_open(run: &mut Simulation, user: usize) {
    let peer = run.peer(user);
    let call = ListSpans { state: Some(SpanState::Open), limit: Some(256), ..ListSpans::default() };
    let caller = run.caller(user);
    let listed = run.machine().service.list_spans(&caller, &call, false).expect("a valid list");
    let accounts = listed.expect("open spans are in memory").accounts;
    accounts.iter().for_each(|account| model::check_consistency(account, run.kind.has_coarse));
    let mut found: Vec<(u32, String)> =
        accounts.into_iter().map(|account| (account.uid, account.span)).collect();
    let is_listed = |span: &&SpanModel| {
        span.state == ModelState::Open && peer.uid_filter().is_none_or(|uid| uid == span.uid)
    };
    let mut open: Vec<(u32, String)> =
        run.spans.iter().filter(is_listed).map(|span| (span.uid, span.name.clone())).collect();
    found.sort();
    open.sort();
    assert_eq!(found, open, "the list of open spans");
}

/// Reads the energy of a past window, whose truth is known.
fn read_window(run: &mut Simulation) {
    let now_ns = run.clock.now_ns();
    let from_ns = now_ns - run.random.below(HISTORY_NS.min(now_ns - 5_000 * MS_NS));
    let to_ns = from_ns + run.random.below(now_ns - from_ns + 1);
    let call = ReadWindow { from_ns: from_ns.cast_signed(), to_ns: to_ns.cast_signed() };
    let result = run.machine().service.read_window(&call);
    check(run, "ReadWindow", &result, OK);
    for share in result.into_iter().flat_map(|window| window.domains) {
        let (Some(share_uj), Some(error_uj)) = (share.share_uj, share.error_uj) else { continue };
        let counter =
            run.counters.iter().find(|counter| share.domain == *lock(counter).name).expect("it is known");
        let true_uj = lock(counter).energy_uj(from_ns, to_ns);
        assert!(
            (share_uj as f64 - true_uj).abs() <= error_uj as f64,
            "window {from_ns}..{to_ns}, now {now_ns}: truly {true_uj} µJ: {share:?}"
        );
        run.figures.shares.bounded += 1;
    }
}

/// Reads the balance and the counts through their methods.
fn get_figures(run: &mut Simulation, user: usize) {
    let peer = run.peer(user);
    for balance in run.machine().service.get_balance(&peer).balance {
        assert_eq!(balance.measured_uj, balance.attributed_uj + balance.unattributed_uj, "{balance:?}");
        assert_eq!(balance.open_uj.is_some(), peer.uid_filter().is_none());
    }
    let info = run.machine().service.get_info(&peer);
    assert_eq!(info.spans, peer.uid_filter().is_none().then_some(run.counts));
}

/// Reads a configuration with another limit, with a key that needs a restart, or with an error.
fn reload(run: &mut Simulation) {
    if run.random.one_in(4) {
        let result = run.machine().reload(None);
        check(run, "Reload", &result, &["InvalidValue"]);
        return;
    }
    let (limit, has_history) = (run.random.between(6, 10) as usize, run.random.one_in(4));
    let mut config = start_config();
    config.limits.open_spans_per_user = limit;
    config.history_s += f64::from(u8::from(has_history));
    let result = run.machine().reload(Some(config));
    check(run, "Reload", &result, OK);
    let named = |is_named: bool, key: &str| Vec::from_iter(is_named.then(|| key.to_owned()));
    let expected = ReloadReply {
        changed: named(limit != run.open_limit, "limits.open_spans_per_user"),
        needs_restart: named(has_history, "history_s"),
    };
    assert_eq!(result.ok(), Some(expected));
    run.open_limit = limit;
}
