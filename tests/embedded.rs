//! The service inside another process, over socket pairs, on a machine whose power changes all the time: every account
//! holds the truth, which is computed here from the power alone.

mod support;

use serde_json::{Value, json};
use support::in_process::{Held, InProcess, RESTLESS};
use support::{TestClient, number, pass};

fn held(account: &Value) -> Held {
    let weight = account["weight"].as_f64().unwrap();
    Held { from_ns: number(account, "opened_ns"), to_ns: number(account, "closed_ns"), weight }
}

#[test]
fn concurrent_spans_on_a_restless_machine_get_accounts_that_hold_the_truth() {
    let machine = InProcess::on(RESTLESS, 4);
    let mut clients: Vec<_> = (0..4).map(|_| TestClient::over(machine.connection())).collect();
    for round in 0..6 {
        for (at, client) in clients.iter_mut().enumerate() {
            let weight = [1.0, 2.0, 0.5, 3.25][at];
            client.call("OpenSpan", json!({ "span": format!("{round}-{at}"), "weight": weight }));
            pass(3 + 5 * at as u64 % 7);
        }
        pass(15);
        for (at, client) in clients.iter_mut().enumerate() {
            if at % 2 == 0 {
                client.call("CloseSpan", json!({ "span": format!("{round}-{at}") }));
                pass(4);
            }
        }
        for (at, client) in clients.iter_mut().enumerate() {
            if at % 2 == 1 {
                client.call("CloseSpan", json!({ "span": format!("{round}-{at}") }));
            }
        }
    }
    let mut accounts = Vec::new();
    for round in 0..6 {
        for (at, client) in clients.iter_mut().enumerate() {
            let mut account = Value::Null;
            support::until("it settles", || {
                account =
                    client.call("GetSpan", json!({ "span": format!("{round}-{at}") }))["account"].take();
                account["state"] == "settled"
            });
            accounts.push(account);
        }
    }
    let all: Vec<Held> = accounts.iter().map(held).collect();
    for account in &accounts {
        for (domain, share) in account["domains"].as_array().unwrap().iter().enumerate() {
            let (share_uj, error_uj) = (number(share, "share_uj") as f64, number(share, "error_uj") as f64);
            let (truth_uj, doubt_uj) = machine.share_uj(domain, held(account), &all);
            let off_uj = (share_uj - truth_uj).abs();
            assert!(
                off_uj <= error_uj + doubt_uj + 1.0,
                "{share_uj} ± {error_uj}, but truly {truth_uj}: {account}"
            );
        }
    }
    let balance = clients[0].call("GetBalance", json!({}));
    assert_eq!(balance["balance"].as_array().unwrap().len(), 2, "{balance}");
    for (domain, of) in balance["balance"].as_array().unwrap().iter().enumerate() {
        assert_eq!(
            number(of, "measured_uj"),
            number(of, "attributed_uj") + number(of, "unattributed_uj"),
            "{of}"
        );
        let given: u64 = accounts.iter().map(|account| number(&account["domains"][domain], "share_uj")).sum();
        assert_eq!(number(of, "attributed_uj"), given, "{of}");
    }
}

#[test]
fn a_service_without_a_door_ends_with_its_last_client() {
    let machine = InProcess::on(RESTLESS, 2);
    let mut clients: Vec<_> = (0..2).map(|_| TestClient::over(machine.connection())).collect();
    let info = clients[0].call("GetInfo", json!({}));
    assert_eq!(info["access"], "admin");
    clients.truncate(1);
    clients[0].call("GetInfo", json!({}));
    drop(clients);
    drop(machine);
}
