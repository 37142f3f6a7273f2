//! A client with coarse access reads a machine whose power differs by a secret within the steps of the grid.
//! The replies and their times must not depend on the secret, for any number of calls. Each call depends on
//! the earlier replies, as that of an adaptive attacker.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde_json::{Value, json};
use wattspan_client::account::SpanState;
use wattspan_client::protocol::Access;

use super::dispatch::dispatch;
use crate::clock::Clock;
use crate::config::Limits;
use crate::domain::EnergyReading;
use crate::service::access::Peer;
use crate::service::caller::{Caller, ReplyTo};
use crate::service::coarse_grid::{self, GRID_NS};
use crate::service::test_parts::{
    add_packages, no_readings, service_settings, store_settings, wait_until_open,
};
use crate::service::{Service, ServiceBuilder};
use crate::store::{Store, StoreQuery};

const MS_NS: u64 = 1_000_000;
const START_NS: u64 = 5_000_000_000;
const DOMAINS: [&str; 2] = ["package-0", "dram-0"];

/// Power added to a domain in each millisecond of a step of the grid, in watts. The sum over a step is the
/// same for each secret.
fn secret_w(secret: u64, cell: u64, ms: u64) -> i64 {
    // The resolution of an edge is one counter update, so the milliseconds next to an edge have no added
    // power.
    if !(5..95).contains(&ms) {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    (secret, cell).hash(&mut hasher);
    let bits = hasher.finish();
    let bit = bits & 1 == 1;
    let sign = match bits >> 1 & 3 {
        // A square wave of 1 kHz with the bit in its phase.
        0 => ms.is_multiple_of(2) == bit,
        // The bit is the half of the step with the higher power.
        1 => (ms < 50) == bit,
        // One short burst, and its opposite.
        2 => {
            return if ms == 10 + (bits >> 3) % 40 {
                20
            } else {
                -20 * i64::from(ms == 94 - (bits >> 9) % 40)
            };
        }
        _ => return 0,
    };
    if sign { 19 } else { -19 }
}

struct SecretMachine {
    service: Service,
    clock: Clock,
    secret: u64,
    fed_until_ms: u64,
    energy_uj: [u64; 2],
    /// A hash of each reply with its time, and the text of the first 5000.
    answer_hashes: Vec<u64>,
    answer_texts: Vec<String>,
    edge_instants: BTreeSet<u64>,
}

impl SecretMachine {
    fn answer_text(&self, at: usize) -> Option<&str> {
        self.answer_texts.get(at).map(String::as_str)
    }

    fn new(secret: u64) -> Self {
        Self::with_builder(secret, |builder| builder)
    }

    /// `configure` adds parts to the service.
    fn with_builder(secret: u64, configure: impl FnOnce(ServiceBuilder) -> ServiceBuilder) -> Self {
        let clock = Clock::manual(START_NS);
        let limits = Limits { coarse_calls_burst: 1e9, calls_burst: 1e9, ..Limits::default() };
        let settings = service_settings(limits);
        let builder = ServiceBuilder::with_collector(no_readings(), Vec::new(), settings, clock.clone());
        let mut service = configure(builder).build().unwrap();
        for (at, name) in DOMAINS.iter().enumerate() {
            service.domain_index.insert((*name).to_owned(), at);
        }
        add_packages(service.spans.domain_inputs(), &DOMAINS);
        let (answer_hashes, answer_texts, edge_instants) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self {
            service,
            clock,
            secret,
            fed_until_ms: START_NS / MS_NS,
            energy_uj: [0; 2],
            answer_hashes,
            answer_texts,
            edge_instants,
        }
    }

    /// Advances the clock. The counters change every millisecond and are read then.
    fn advance_to(&mut self, now_ns: u64) {
        while self.fed_until_ms <= now_ns / MS_NS {
            let at_ns = self.fed_until_ms * MS_NS;
            for domain in 0..2 {
                let energy_uj = self.energy_uj[domain];
                let reading = EnergyReading { valid: true, energy_uj, ..EnergyReading::default() };
                self.service.spans.domain_inputs().add_reading(domain, at_ns, at_ns + 2000, &reading);
            }
            self.clock.set(at_ns + 3000);
            self.pump();
            let (cell, ms) = (self.fed_until_ms / 100, self.fed_until_ms % 100);
            // The power of a whole step changes too, and is not secret.
            let watts = 30 + (cell * 7 % 11) as i64 * 5;
            self.energy_uj[0] += ((watts + secret_w(self.secret, cell, ms)) * 1000) as u64;
            self.energy_uj[1] += ((22 + secret_w(self.secret ^ 99, cell, ms)) * 1000) as u64;
            self.fed_until_ms += 1;
        }
        self.clock.set(now_ns);
    }

    fn pump(&mut self) {
        let mut finals = Vec::new();
        self.service.poll(&mut finals);
        for settled in finals {
            // A stream item for a coarse subscriber, or a deferred reply.
            if coarse_grid::is_coarse(&settled.account) || settled.reply_to.is_some() {
                let waited = settled.reply_to.map(|reply_to| reply_to.slot);
                let account = serde_json::to_value(&*settled.account).unwrap();
                self.record(json!([waited, account]));
            }
        }
    }

    fn call(&mut self, peer: Peer, connection: u64, method: &str, parameters: Value) -> Value {
        let method = format!("org.wattspan.Meter.{method}");
        let message = serde_json::to_vec(&json!({ "method": method, "parameters": parameters })).unwrap();
        let reply_to = ReplyTo { connection, slot: self.answer_hashes.len() as u64 };
        let mut out = Vec::new();
        dispatch(&mut self.service, &Caller { peer, process: None, reply_to }, &message, &mut out);
        out.pop();
        let answer: Value = if out.is_empty() { Value::Null } else { serde_json::from_slice(&out).unwrap() };
        self.record(answer.clone());
        answer
    }

    /// Records a reply and its time. The wall-clock time is removed, since it is that of the test machine.
    fn record(&mut self, mut answer: Value) {
        remove_wall_time(&mut answer);
        collect_edges(&answer, &mut self.edge_instants);
        let text = format!("{} {answer}", self.service.now_ns());
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        self.answer_hashes.push(hasher.finish());
        if self.answer_texts.len() < 5000 {
            self.answer_texts.push(text);
        }
    }
}

fn remove_wall_time(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("opened_unix_ns");
            fields.values_mut().for_each(remove_wall_time);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_wall_time),
        _ => {}
    }
}

/// The times of the edges at which counters were read for a client.
fn collect_edges(value: &Value, into: &mut BTreeSet<u64>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value.as_u64()) {
                    ("opened_ns" | "closed_ns", Some(at_ns)) => drop(into.insert(at_ns)),
                    _ => collect_edges(value, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_edges(item, into)),
        _ => {}
    }
}

/// A client that makes random calls, seeded by the earlier replies.
struct RandomClient {
    state: u64,
    peer: Peer,
    opened_spans: u64,
}

impl RandomClient {
    fn random_below(&mut self, below: u64) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    fn add_random_instant(&mut self, now_ns: u64, parameters: &mut Value) {
        let at_ns = match self.random_below(6) {
            0 => now_ns - self.random_below(4_000) * MS_NS,
            1 => now_ns - self.random_below(20 * MS_NS),
            2 => now_ns + self.random_below(MS_NS),
            3 => coarse_grid::round_up_to_grid(now_ns) - GRID_NS,
            _ => return,
        };
        parameters["at_ns"] = at_ns.into();
    }

    fn random_weight(&mut self) -> f64 {
        [0.0, 1.0 / 65_536.0, 0.37, 0.75, 1.0, 1e6][self.random_below(6) as usize]
    }

    fn call_at_random(&mut self, machine: &mut SecretMachine) {
        let now_ns = machine.service.now_ns();
        let connection = 1 + self.random_below(3);
        let recent = self.opened_spans.saturating_sub(self.random_below(20));
        let mut parameters = json!({ "span": format!("s{recent}") });
        let method = match self.random_below(20) {
            0..5 => {
                self.opened_spans += 1;
                parameters =
                    json!({ "span": format!("s{}", self.opened_spans), "weight": self.random_weight() });
                match self.random_below(4) {
                    0 => parameters["domains"] = json!(["package-0"]),
                    1 => parameters["domains"] = json!(["dram-0"]),
                    _ => {}
                }
                self.add_random_instant(now_ns, &mut parameters);
                "OpenSpan"
            }
            5..8 => {
                parameters["phase"] = "p".into();
                self.add_random_instant(now_ns, &mut parameters);
                "MarkPhase"
            }
            8..11 => {
                parameters["weight"] = self.random_weight().into();
                self.add_random_instant(now_ns, &mut parameters);
                "SetWeight"
            }
            11..15 => {
                parameters["wait_settled"] = (self.random_below(2) == 0).into();
                self.add_random_instant(now_ns, &mut parameters);
                "CloseSpan"
            }
            15..17 => "CancelSpan",
            17 => "GetSpan",
            18 => {
                parameters = json!({ "limit": 3 });
                "ListSpans"
            }
            _ if self.random_below(20) == 0 => return machine.service.close_connection(connection),
            _ => "GetSpan",
        };
        machine.call(self.peer, connection, method, parameters);
        // The next call depends on all earlier replies.
        self.state ^=
            machine.answer_hashes.iter().rev().take(4).fold(0_u64, |sum, hash| sum.rotate_left(7) ^ hash);
    }
}

fn peer(access: Access) -> Peer {
    Peer { uid: 4000, access, unlimited: false }
}

/// Runs `calls` calls of a client with this access against a machine with this secret.
fn run_client(access: Access, secret: u64, seed: u64, calls: usize) -> SecretMachine {
    let mut machine = SecretMachine::new(secret);
    let mut client = RandomClient { state: seed, peer: peer(access), opened_spans: 0 };
    let mut now_ns = START_NS + 1_500 * MS_NS;
    for _ in 0..calls {
        // From a few microseconds to a few milliseconds later.
        now_ns += match client.random_below(3) {
            0 => client.random_below(20_000),
            1 => client.random_below(MS_NS),
            _ => client.random_below(7 * MS_NS),
        };
        machine.advance_to(now_ns);
        client.call_at_random(&mut machine);
    }
    machine.advance_to(now_ns + 5_000 * MS_NS);
    machine
}

fn compare_secrets(calls: usize, secrets: std::ops::Range<u64>, seed: u64) {
    let first = run_client(Access::Coarse, secrets.start, seed, calls);
    for secret in secrets.skip(1) {
        let other = run_client(Access::Coarse, secret, seed, calls);
        let differs =
            first.answer_hashes.iter().zip(&other.answer_hashes).position(|(one, other)| one != other);
        let answers = differs.map(|at| (first.answer_text(at), other.answer_text(at)));
        assert_eq!(differs, None, "of {} answers: {answers:#?}", first.answer_hashes.len());
        assert_eq!(first.answer_hashes.len(), other.answer_hashes.len());
    }
}

#[test]
fn coarse_answers_and_their_times_do_not_depend_on_the_secret() {
    for seed in 1..4 {
        compare_secrets(1500, 10..12, seed);
    }
}

#[test]
#[ignore = "takes minutes; run it after a change of the replies to a coarse client"]
fn a_million_coarse_calls_do_not_depend_on_the_secret() {
    compare_secrets(1_000_000, 20..22, 77);
}

#[test]
fn the_same_calls_with_span_access_distinguish_the_secrets() {
    let one = run_client(Access::Span, 10, 1, 300);
    let other = run_client(Access::Span, 11, 1, 300);
    assert_ne!(one.answer_hashes, other.answer_hashes);
}

#[test]
fn a_coarse_client_sees_at_most_ten_instants_per_second() {
    let machine = run_client(Access::Coarse, 1, 5, 5000);
    let (first, last) = (machine.edge_instants.first().unwrap(), machine.edge_instants.last().unwrap());
    assert!(
        machine.edge_instants.iter().all(|at_ns| at_ns.is_multiple_of(GRID_NS)),
        "{:?}",
        machine.edge_instants
    );
    assert!(machine.edge_instants.len() > 40, "{}", machine.edge_instants.len());
    assert!(machine.edge_instants.len() as u64 <= (last - first) / GRID_NS + 1);
}

#[test]
fn energy_is_conserved_with_edges_in_the_future() {
    let machine = run_client(Access::Coarse, 1, 8, 3000);
    let balances = machine.service.spans.attributor().balance();
    assert_eq!(balances.len(), 2);
    for balance in balances {
        assert!(balance.attributed_uj > 0, "{balance:?}");
        assert_eq!(balance.measured_uj, balance.attributed_uj + balance.unattributed_uj);
    }
}

#[test]
fn two_users_that_close_in_the_same_step_see_the_same_instants_and_the_same_energy() {
    let mut machine = SecretMachine::new(1);
    let users = [peer(Access::Coarse), Peer { uid: 4001, ..peer(Access::Coarse) }];
    let begin_ns = START_NS + 2000 * MS_NS;
    for (at_ms, user) in [(3, 0), (88, 1)] {
        machine.advance_to(begin_ns + at_ms * MS_NS);
        machine.call(users[user], 1, "OpenSpan", json!({ "span": "s" }));
    }
    for (at_ms, user) in [(505, 1), (599, 0)] {
        machine.advance_to(begin_ns + at_ms * MS_NS);
        let closed = machine.call(users[user], 1, "CloseSpan", json!({ "span": "s" }));
        let account = &closed["parameters"]["account"];
        assert_eq!((&account["state"], account.get("share_uj")), (&json!("provisional"), None));
    }
    machine.advance_to(begin_ns + 900 * MS_NS);
    let mut settled = users.map(|user| machine.call(user, 2, "GetSpan", json!({ "span": "s" })));
    for (answer, moved_ms) in settled.iter_mut().zip([97 + 1, 12 + 95]) {
        let account = &mut answer["parameters"]["account"];
        assert_eq!(account["state"], "settled");
        assert_eq!(account["moved_ns"], moved_ms * MS_NS);
        (account["uid"], account["moved_ns"]) = (Value::Null, Value::Null);
        remove_wall_time(account);
    }
    assert_eq!(settled[0], settled[1]);
    let account = &settled[0]["parameters"]["account"];
    assert_eq!(account["opened_ns"], begin_ns + GRID_NS);
    assert_eq!(account["closed_ns"], begin_ns + 6 * GRID_NS);
}

#[test]
fn the_shortest_span_is_one_grid_step_and_settles_one_step_after_its_end() {
    let mut machine = SecretMachine::new(1);
    let begin_ns = START_NS + 2000 * MS_NS;
    machine.advance_to(begin_ns + 50 * MS_NS);
    machine.call(peer(Access::Coarse), 1, "OpenSpan", json!({ "span": "s" }));
    machine.call(peer(Access::Coarse), 1, "CloseSpan", json!({ "span": "s", "wait_settled": true }));
    let asked = machine.answer_hashes.len();
    machine.advance_to(begin_ns + 300 * MS_NS - 1);
    assert_eq!(machine.answer_hashes.len(), asked, "not before the next grid instant");
    machine.advance_to(begin_ns + 300 * MS_NS);
    assert_eq!(machine.answer_hashes.len(), asked + 1);
    let account =
        machine.call(peer(Access::Coarse), 1, "GetSpan", json!({ "span": "s" }))["parameters"]["account"]
            .take();
    assert_eq!(account["opened_ns"], begin_ns + GRID_NS);
    assert_eq!(account["closed_ns"], begin_ns + 2 * GRID_NS);
    assert_eq!(account["moved_ns"], 50 * MS_NS + 150 * MS_NS);
    // The share of both domains is correct within its uncertainty, and in whole millijoules.
    let number = |name: &str| account[name].as_u64().unwrap();
    let cell = (begin_ns + GRID_NS) / GRID_NS;
    let truth_uj = (30 + cell * 7 % 11 * 5 + 22) * 100_000;
    assert!(number("share_uj").abs_diff(truth_uj) <= number("error_uj"), "{account} {truth_uj}");
    assert!(number("share_uj").is_multiple_of(1000));
}

#[test]
fn a_coarse_caller_cannot_access_a_fine_span_of_the_same_user() {
    let mut machine = SecretMachine::new(1);
    let (fine, coarse) = (peer(Access::Span), peer(Access::Coarse));
    let begin_ns = START_NS + 2000 * MS_NS;
    machine.advance_to(begin_ns);
    machine.call(fine, 1, "OpenSpan", json!({ "span": "fine" }));
    let refused = |answer: Value| answer["error"].as_str().map(str::to_owned);
    let missing = Some("org.wattspan.Meter.NoSuchSpan".to_owned());
    let touches = [
        ("GetSpan", json!({ "span": "fine" })),
        ("MarkPhase", json!({ "span": "fine", "phase": "p" })),
        ("SetWeight", json!({ "span": "fine", "weight": 2 })),
        ("CancelSpan", json!({ "span": "fine" })),
        ("CloseSpan", json!({ "span": "fine" })),
    ];
    for (method, parameters) in &touches {
        assert_eq!(refused(machine.call(coarse, 2, method, parameters.clone())), missing, "{method}");
    }
    machine.advance_to(begin_ns + 33 * MS_NS);
    machine.call(fine, 1, "CloseSpan", json!({ "span": "fine" }));
    machine.advance_to(begin_ns + 500 * MS_NS);
    for (method, parameters) in &touches {
        assert_eq!(
            refused(machine.call(coarse, 2, method, parameters.clone())),
            missing,
            "{method}, settled"
        );
    }
    let listed = machine.call(coarse, 2, "ListSpans", json!({}));
    assert_eq!(listed["parameters"]["accounts"], json!([]));
    let listed = machine.call(fine, 2, "ListSpans", json!({}));
    assert_eq!(listed["parameters"]["accounts"][0]["span"], "fine");
    // A coarse span stays coarse whichever caller closes it.
    machine.call(coarse, 2, "OpenSpan", json!({ "span": "coarse" }));
    machine.advance_to(begin_ns + 733 * MS_NS);
    let closed = machine.call(fine, 1, "CloseSpan", json!({ "span": "coarse" }));
    assert_eq!(closed["parameters"]["account"]["closed_ns"], begin_ns + 800 * MS_NS);
    assert!(closed["parameters"]["account"].get("share_uj").is_none());
}

#[test]
fn a_span_opened_in_the_future_ends_on_the_grid_with_its_client() {
    let mut machine = SecretMachine::new(1);
    let coarse = peer(Access::Coarse);
    let now_ns = START_NS + 2000 * MS_NS + 99_500_000;
    machine.advance_to(now_ns);
    for span in ["gone", "closed", "dropped"] {
        let connection = if span == "gone" { 1 } else { 2 };
        machine.call(coarse, connection, "OpenSpan", json!({ "span": span, "at_ns": now_ns + 900_000 }));
    }
    machine.clock.set(now_ns + 1);
    machine.service.close_connection(1);
    machine.call(coarse, 2, "CloseSpan", json!({ "span": "closed" }));
    assert!(machine.call(coarse, 2, "CancelSpan", json!({ "span": "dropped" })).get("error").is_none());
    assert_eq!(machine.service.spans.attributor().open_span_count(), 0);
    machine.advance_to(now_ns + 500 * MS_NS);
    for (span, state) in [("gone", "abandoned"), ("closed", "settled")] {
        let account =
            machine.call(coarse, 2, "GetSpan", json!({ "span": span }))["parameters"]["account"].take();
        assert_eq!(account["state"], state, "{account}");
        let grid_ns = START_NS + 2200 * MS_NS;
        assert_eq!(
            (&account["opened_ns"], &account["closed_ns"]),
            (&json!(grid_ns), &json!(grid_ns + GRID_NS))
        );
        assert_eq!(account["moved_ns"], 2 * (99_600_000) + GRID_NS);
    }
}

#[test]
fn an_account_held_back_at_shutdown_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = store_settings(&dir.path().join("state"));
    let start = || Store::start(settings.clone(), |_| ()).unwrap();
    let mut machine = SecretMachine::with_builder(1, |builder| builder.store(start(), |_| ()));
    let begin_ns = START_NS + 2000 * MS_NS;
    machine.advance_to(begin_ns);
    machine.call(peer(Access::Coarse), 1, "OpenSpan", json!({ "span": "s" }));
    // The span is in the store's journal by then.
    machine.advance_to(begin_ns + 2550 * MS_NS);
    machine.call(peer(Access::Coarse), 1, "CloseSpan", json!({ "span": "s" }));
    machine.advance_to(begin_ns + 2650 * MS_NS);
    assert!(machine.service.spans.next_release_ns().is_some(), "settled and held back");
    machine.service.shut_down();
    drop(machine);
    let mut next = start();
    wait_until_open(&next);
    let question = StoreQuery::List { uid: None, filter: Default::default(), limit: 9, before: None };
    assert!(next.submit_query(1, question));
    let mut answers = Vec::new();
    while answers.is_empty() {
        std::thread::sleep(Duration::from_millis(1));
        answers = next.take_query_results();
    }
    let accounts = answers.remove(0).1.unwrap().accounts;
    assert_eq!(accounts.iter().map(|account| account.state).collect::<Vec<_>>(), [SpanState::Settled]);
    assert!(coarse_grid::is_coarse(&accounts[0]), "visible to its owner");
}
