//! A machine for the tests: accounts, balances and snapshots with known energies.

use serde_json::json;
use wattspan_client::account::{Account, Balance};

use super::account_totals::AccountTotals;
use super::meter_feed::MeterSnapshot;

/// A settled account of 2 s with shares and idle parts, in microjoules. Its error is 10 µJ.
pub fn account(span: &str, model: &str, shares: &[(&str, u64, u64)]) -> Account {
    let domains: Vec<serde_json::Value> = shares
        .iter()
        .map(|(domain, share_uj, idle_uj)| {
            json!({"domain": domain, "grade": "measured", "share_uj": share_uj, "idle_uj": idle_uj, "unknown_ns": 0})
        })
        .collect();
    serde_json::from_value(json!({
        "span": span, "name": "chat", "attributes": {"gen_ai.request.model": model}, "state": "settled",
        "uid": 1000, "opened_ns": 90_000_000_000_u64, "closed_ns": 92_000_000_000_u64, "moved_ns": 0,
        "opened_unix_ns": 0, "weight": 1.0, "share_uj": shares.iter().map(|share| share.1).sum::<u64>(),
        "error_uj": 10, "peak_concurrency": 1, "domains": domains, "phases": [],
    }))
    .unwrap()
}

/// A machine 100 s after its start, with live domains: measured and attributed microjoules.
pub fn snapshot(domains: &[(&str, u64, u64)]) -> MeterSnapshot {
    let status = |(name, measured_uj, _): &(&str, u64, u64)| {
        json!({
            "name": name, "kind": "package", "source": "perf", "counted": true, "grade": "measured",
            "liveness": "live", "energy_uj": measured_uj, "power_mw": measured_uj / 100
        })
    };
    let statuses: Vec<serde_json::Value> = domains.iter().map(status).collect();
    MeterSnapshot {
        version: "1".into(),
        now_ns: 100_000_000_000,
        started_ns: Some(0),
        domains: serde_json::from_value(json!(statuses)).unwrap(),
        at_least: None,
        balance: domains
            .iter()
            .map(|&(name, measured_uj, attributed_uj)| Balance {
                domain: name.into(),
                measured_uj,
                attributed_uj,
                unattributed_uj: measured_uj - attributed_uj,
                ..Balance::default()
            })
            .collect(),
        open: Vec::new(),
        samplers: Vec::new(),
        store: None,
    }
}

/// The totals of these accounts on a machine that counts package-0 and dram-0.
pub fn totals_of(accounts: &[Account]) -> AccountTotals {
    let counted = ["package-0".to_owned(), "dram-0".to_owned()];
    let mut totals = AccountTotals::default();
    accounts.iter().for_each(|account| totals.add(account, &counted));
    totals
}
