//! Chrome's trace event format: spans and their phases as complete events, and the attributed power as a counter.
//!
//! Times are in whole microseconds of wall time. The process of a span's event is its user ID, and the thread is a lane, in
//! which spans do not overlap.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fs::File;
use std::io::{self, BufWriter, Write};

use serde_json::{Value, json};
use wattspan_client::account::Account;

use super::columns::{account_json, closed_unix_ns};

pub fn write(file: &File, accounts: &[Account], attributes: &[String]) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(b"{\"traceEvents\":[")?;
    let mut separator = "\n";
    let mut write_event = |event: Value| {
        write!(out, "{separator}{event}")?;
        separator = ",\n";
        Ok::<(), io::Error>(())
    };
    let mut ordered: Vec<&Account> = accounts.iter().collect();
    ordered.sort_by_key(|account| account.opened_unix_ns);
    for (account, lane) in ordered.iter().zip(lanes(&ordered)) {
        write_event(span_event(account, lane, attributes))?;
        for event in phase_events(account, lane) {
            write_event(event)?;
        }
    }
    for (at_ns, power_mw) in power_steps(&ordered) {
        let watts = power_mw as f64 / 1e3;
        write_event(json!({
            "name": "attributed power (W)", "ph": "C", "ts": at_ns / 1000, "pid": 0, "args": { "W": watts }
        }))?;
    }
    out.write_all(b"\n]}\n")?;
    out.flush()
}

fn span_event(account: &Account, lane: usize, attributes: &[String]) -> Value {
    let title = match account.name.as_str() {
        "" => account.model().unwrap_or("span"),
        name => name,
    };
    let mut details = account_json(account, attributes);
    details.remove("phases");
    let closed_us = closed_unix_ns(account) / 1000;
    let opened_us = account.opened_unix_ns / 1000;
    json!({
        "name": title, "cat": "span", "ph": "X", "ts": opened_us, "dur": closed_us.saturating_sub(opened_us),
        "pid": account.uid, "tid": lane, "args": details
    })
}

fn phase_events(account: &Account, lane: usize) -> impl Iterator<Item = Value> {
    let wall_us = |at_ns: u64| {
        let since_opening_ns = at_ns.saturating_sub(account.opened_ns);
        account.opened_unix_ns.saturating_add(since_opening_ns) / 1000
    };
    account.phases.iter().filter(|phase| !phase.name.is_empty()).map(move |phase| {
        let opened_us = wall_us(phase.opened_ns);
        let closed_us = phase.closed_ns.map_or(opened_us, wall_us);
        json!({
            "name": phase.name, "cat": "phase", "ph": "X", "ts": opened_us,
            "dur": closed_us.saturating_sub(opened_us), "pid": account.uid, "tid": lane,
            "args": { "share_uj": phase.share_uj, "error_uj": phase.error_uj }
        })
    })
}

/// The lane of each account, for accounts in the order of their openings: the lowest one that is free.
fn lanes(ordered: &[&Account]) -> Vec<usize> {
    let (mut busy, mut free, mut count) = (BinaryHeap::new(), BTreeSet::new(), 0);
    ordered
        .iter()
        .map(|account| {
            while let Some(Reverse((end_ns, lane))) = busy.peek().copied()
                && end_ns <= account.opened_unix_ns
            {
                busy.pop();
                free.insert(lane);
            }
            let lane = free.pop_first().unwrap_or_else(|| {
                count += 1;
                count - 1
            });
            busy.push(Reverse((closed_unix_ns(account), lane)));
            lane
        })
        .collect()
}

/// The sum of the mean powers of the spans that are open, at each instant at which it changes.
fn power_steps(accounts: &[&Account]) -> Vec<(u64, i64)> {
    let mut changes: BTreeMap<u64, i64> = BTreeMap::new();
    for account in accounts {
        let Some(power_mw) = account.mean_power_mw.and_then(|power_mw| i64::try_from(power_mw).ok()) else {
            continue;
        };
        *changes.entry(account.opened_unix_ns).or_default() += power_mw;
        *changes.entry(closed_unix_ns(account)).or_default() -= power_mw;
    }
    let sums = changes.into_iter().scan(0, |sum_mw, (at_ns, change_mw)| {
        *sum_mw += change_mw;
        Some((at_ns, *sum_mw))
    });
    sums.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(from: u64, to: u64, power_mw: u64) -> Account {
        let account: Account = serde_json::from_str(include_str!("test_account.json")).unwrap();
        let closed_ns = Some(account.opened_ns + to - from);
        Account { opened_unix_ns: from, closed_ns, mean_power_mw: Some(power_mw), ..account }
    }

    #[test]
    fn spans_of_one_lane_do_not_overlap_and_power_adds_up() {
        let all = [account(0, 10, 5), account(3, 6, 7), account(6, 9, 1), account(8, 12, 2)];
        let all: Vec<&Account> = all.iter().collect();
        assert_eq!(lanes(&all), [0, 1, 1, 2]);
        let expected = [(0, 5), (3, 12), (6, 6), (8, 8), (9, 7), (10, 2), (12, 0)];
        assert_eq!(power_steps(&all), expected);
    }
}
