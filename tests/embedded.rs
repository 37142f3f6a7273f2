//! The service inside another process, over socket pairs, on a machine whose power changes all the time: every account
//! holds the truth, which is computed here from the power alone.

mod support;

use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use support::{TestClient, number, pass};
use wattspan::clock::{Clock, monotonic_ns};
use wattspan::config::Config;
use wattspan::ipc::{Doors, Plan, serve};
use wattspan::source::Inventory;
use wattspan::source::replay::scripted;
use wattspan::source::script::Script;

/// Restless: power changes between counter updates, and the counters differ in pace and step.
const RESTLESS: &str = r#"
[[domain]]
name = "package-0"
kind = "package"
profile = [[0.0013, 20], [0.0021, 180], [0.0004, 5], [0.0100, 90], [0.0007, 240]]
quantum_uj = 61
ceiling_w = 250
jitter_ns = 100_000
[[domain]]
name = "gpu-0"
kind = "gpu"
profile = [[0.030, 60], [0.020, 400], [0.011, 150]]
update_ns = 20_000_000
phase_ns = 3_000_000
quantum_uj = 1000
ceiling_w = 500
"#;

/// A service in a thread of this process.
struct Embedded {
    script: Script,
    /// When the machine began, at the earliest and at the latest.
    began_ns: (u64, u64),
    clients: Vec<TestClient>,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl Embedded {
    fn start(connections: usize) -> Self {
        let script = Script::parse(RESTLESS).unwrap();
        let clock = Clock::Machine;
        let before_ns = monotonic_ns();
        let opened = scripted(script.clone(), &clock);
        let began_ns = (before_ns, monotonic_ns());
        let found = Inventory { opened: vec![opened], absent: vec![] };
        let service = Plan::of(&Config::default()).build_over(found, clock, |_| ()).unwrap();
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..connections).map(|_| UnixStream::pair().unwrap()).unzip();
        let doors = Doors { connections: theirs, ..Doors::default() };
        let thread = Some(std::thread::spawn(move || serve(service, doors)));
        Self { script, began_ns, clients: ours.into_iter().map(TestClient::over).collect(), thread }
    }

    /// True energy of a domain between two instants, in microjoules, with half the width of what is not known about the
    /// machine's start.
    fn energy_uj(&self, domain: usize, from_ns: u64, to_ns: u64) -> (f64, f64) {
        let between = |began_ns: u64| {
            let at = |ns: u64| self.script.domains[domain].profile.energy_pj(ns - began_ns) as f64;
            (at(to_ns) - at(from_ns)) / 1e6
        };
        let (one, other) = (between(self.began_ns.0), between(self.began_ns.1));
        // The start shifts both ends alike: at the worst the peak for as long as the start is not known.
        let peak_mw = self.script.domains[domain].profile.peak_mw() as f64;
        let doubt = peak_mw * (self.began_ns.1 - self.began_ns.0) as f64 / 1e6;
        ((one + other) / 2.0, doubt)
    }

    /// What a span truly used of a domain, beside all the others.
    fn share_uj(&self, domain: usize, span: &Value, all: &[Value]) -> (f64, f64) {
        let edge = |account: &Value, name: &str| number(account, name);
        let mut edges: Vec<u64> =
            all.iter().flat_map(|account| [edge(account, "opened_ns"), edge(account, "closed_ns")]).collect();
        edges.sort_unstable();
        edges.dedup();
        let open = |account: &Value, at_ns: u64| {
            edge(account, "opened_ns") <= at_ns && at_ns < edge(account, "closed_ns")
        };
        let weight = |account: &Value| account["weight"].as_f64().unwrap();
        let (mut sum, mut doubts) = (0.0, 0.0);
        for step in edges.windows(2).filter(|step| open(span, step[0])) {
            let all_weights: f64 = all.iter().filter(|account| open(account, step[0])).map(weight).sum();
            let (energy, doubt) = self.energy_uj(domain, step[0], step[1]);
            sum += energy * weight(span) / all_weights;
            doubts += doubt;
        }
        (sum, doubts)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.clients.clear();
        if let Some(thread) = self.thread.take() {
            // Without a listener and without clients there is nothing left to serve.
            thread.join().unwrap().unwrap();
        }
    }
}

#[test]
fn concurrent_spans_on_a_restless_machine_get_accounts_that_hold_the_truth() {
    let mut embedded = Embedded::start(4);
    for round in 0..6 {
        for (at, client) in embedded.clients.iter_mut().enumerate() {
            let weight = [1.0, 2.0, 0.5, 3.25][at];
            client.call("OpenSpan", json!({ "span": format!("{round}-{at}"), "weight": weight }));
            pass(3 + 5 * at as u64 % 7);
        }
        pass(15);
        for (at, client) in embedded.clients.iter_mut().enumerate() {
            if at % 2 == 0 {
                client.call("CloseSpan", json!({ "span": format!("{round}-{at}") }));
                pass(4);
            }
        }
        for (at, client) in embedded.clients.iter_mut().enumerate() {
            if at % 2 == 1 {
                client.call("CloseSpan", json!({ "span": format!("{round}-{at}") }));
            }
        }
    }
    let mut accounts = Vec::new();
    for round in 0..6 {
        for (at, client) in embedded.clients.iter_mut().enumerate() {
            let mut account = Value::Null;
            support::until("it settles", || {
                account =
                    client.call("GetSpan", json!({ "span": format!("{round}-{at}") }))["account"].take();
                account["state"] == "settled"
            });
            accounts.push(account);
        }
    }
    for account in &accounts {
        for (domain, share) in account["domains"].as_array().unwrap().iter().enumerate() {
            let (share_uj, error_uj) = (number(share, "share_uj") as f64, number(share, "error_uj") as f64);
            let (truth_uj, doubt_uj) = embedded.share_uj(domain, account, &accounts);
            let off_uj = (share_uj - truth_uj).abs();
            assert!(
                off_uj <= error_uj + doubt_uj + 1.0,
                "{share_uj} ± {error_uj}, but truly {truth_uj}: {account}"
            );
        }
    }
    let balance = embedded.clients[0].call("GetBalance", json!({}));
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
    let mut embedded = Embedded::start(2);
    let info = embedded.clients[0].call("GetInfo", json!({}));
    assert_eq!(info["access"], "admin");
    embedded.clients.truncate(1);
    embedded.clients[0].call("GetInfo", json!({}));
    drop(embedded);
}
