//! The service inside another process, over socket pairs, on a machine of varying power. Every account must contain the
//! truth, which is computed here from the power alone.

use crate::support;

use std::sync::mpsc::channel;

use crate::support::in_process::{InProcessService, VARYING_POWER_MACHINE, WeightInterval};
use crate::support::{TestClient, get_u64, sleep_ms};
use serde_json::{Value, json};
use wattspan::server::{ForwardedCall, ForwardedClient, forwarded_calls};
use wattspan::service::{MethodResult, Request};
use wattspan_client::protocol::{CloseSpan, MethodName, OpenSpan};
use wattspan_system::unix_socket::PeerCredentials;

fn held(account: &Value) -> WeightInterval {
    let weight = account["weight"].as_f64().unwrap();
    WeightInterval { from_ns: get_u64(account, "opened_ns"), to_ns: get_u64(account, "closed_ns"), weight }
}

#[test]
fn concurrent_spans_on_a_restless_machine_get_accounts_that_hold_the_truth() {
    let machine = InProcessService::start(VARYING_POWER_MACHINE, 4);
    let mut clients: Vec<_> = (0..4).map(|_| TestClient::from_stream(machine.connection())).collect();
    for round in 0..6 {
        for (at, client) in clients.iter_mut().enumerate() {
            let weight = [1.0, 2.0, 0.5, 3.25][at];
            client.call("OpenSpan", json!({ "span": format!("{round}-{at}"), "weight": weight }));
            sleep_ms(3 + 5 * at as u64 % 7);
        }
        sleep_ms(15);
        for (at, client) in clients.iter_mut().enumerate() {
            if at % 2 == 0 {
                client.call("CloseSpan", json!({ "span": format!("{round}-{at}") }));
                sleep_ms(4);
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
            support::wait_until("it settles", || {
                account =
                    client.call("GetSpan", json!({ "span": format!("{round}-{at}") }))["account"].take();
                account["state"] == "settled"
            });
            accounts.push(account);
        }
    }
    let all: Vec<WeightInterval> = accounts.iter().map(held).collect();
    for account in &accounts {
        for (domain, share) in account["domains"].as_array().unwrap().iter().enumerate() {
            let (share_uj, error_uj) = (get_u64(share, "share_uj") as f64, get_u64(share, "error_uj") as f64);
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
            get_u64(of, "measured_uj"),
            get_u64(of, "attributed_uj") + get_u64(of, "unattributed_uj"),
            "{of}"
        );
        let given: u64 =
            accounts.iter().map(|account| get_u64(&account["domains"][domain], "share_uj")).sum();
        assert_eq!(get_u64(of, "attributed_uj"), given, "{of}");
    }
}

#[test]
fn a_service_without_listeners_ends_with_its_last_client() {
    let machine = InProcessService::start(VARYING_POWER_MACHINE, 2);
    let mut clients: Vec<_> = (0..2).map(|_| TestClient::from_stream(machine.connection())).collect();
    let info = clients[0].call("GetInfo", json!({}));
    assert_eq!(info["access"], "admin");
    clients.truncate(1);
    clients[0].call("GetInfo", json!({}));
    drop(clients);
    drop(machine);
}

/// Calls a method as the thread of D-Bus does, and waits for the reply.
fn forward(client: &ForwardedClient, method: MethodName, request: Request) -> MethodResult {
    let (sender, replies) = channel();
    let reply = Box::new(move |result| drop(sender.send(result)));
    client.call(ForwardedCall { method, request: Ok(request), oneway: false, reply });
    replies.recv().expect("each call is answered")
}

#[test]
fn calls_of_two_threads_are_each_performed_once() {
    const SPANS: u64 = 200;
    let (sender, receiver) = forwarded_calls();
    let machine = InProcessService::start_with(VARYING_POWER_MACHINE, 2, Some(receiver));
    let mut clients: Vec<_> = (0..2).map(|_| TestClient::from_stream(machine.connection())).collect();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let forwarding = std::thread::spawn(move || {
        let client = sender.connect(PeerCredentials { uid, gid, groups: Vec::new() }, None);
        for at in 0..SPANS {
            let span = format!("forwarded-{at}");
            let open = OpenSpan { span: Some(span.clone()), ..OpenSpan::default() };
            forward(&client, MethodName::OpenSpan, Request::OpenSpan(open)).unwrap();
            let close = CloseSpan { span, attributes: None, at_ns: None, wait_settled: None };
            forward(&client, MethodName::CloseSpan, Request::CloseSpan(close)).unwrap();
        }
    });
    for at in 0..SPANS {
        clients[0].call("OpenSpan", json!({ "span": format!("socket-{at}") }));
        clients[0].call("CloseSpan", json!({ "span": format!("socket-{at}") }));
    }
    forwarding.join().unwrap();
    let spans = clients[1].call("GetInfo", json!({}))["spans"].clone();
    assert_eq!((get_u64(&spans, "opened"), get_u64(&spans, "closed")), (2 * SPANS, 2 * SPANS), "{spans}");
}
