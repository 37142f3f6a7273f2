//! The interface contract, method by method and error by error, as any client sees it.

use crate::support;

use crate::support::{
    SLOW_COUNTER_MACHINE, STEADY_MACHINE, TestClient, TestDaemon, domain_row, encode_call, error_of, get_u64,
    sleep_ms, wait_until,
};
use serde_json::{Value, json};

/// A name of 129 bytes, one more than allowed.
const LONG: &str = "spanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanspanX";

#[test]
fn the_machine_is_described_with_every_domain_and_every_source_that_is_not_there() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let mut info = json!(null);
    wait_until("the counters are characterised", || {
        info = client.call("GetInfo", json!({}));
        info["domains"].as_array().unwrap().iter().all(|domain| domain["update_interval_ns"].is_u64())
    });
    assert_eq!(
        (info["version"].as_str(), info["access"].as_str()),
        (Some(env!("CARGO_PKG_VERSION")), Some("admin"))
    );
    assert_eq!(info["simulated"], true, "the machine is a replayed one");
    assert_eq!(get_u64(&info, "horizon_ns"), 10_000_000);
    assert!(get_u64(&info, "history_ns") >= 1_000_000_000);
    let (started_ns, now_ns) = (get_u64(&info, "started_ns"), get_u64(&info, "now_ns"));
    assert!(0 < started_ns && started_ns < now_ns, "{started_ns} {now_ns}");
    assert_eq!(get_u64(&client.call("GetInfo", json!({})), "started_ns"), started_ns, "it is of the start");
    assert!(info["absent"].is_array() && !info["boot_id"].as_str().unwrap().is_empty());
    let sampler = &info["samplers"][0];
    assert_eq!(
        (&sampler["source"], &sampler["domains"]),
        (&json!("replay"), &json!(["package-0", "core-0", "dram-0"]))
    );
    assert!(get_u64(sampler, "ticks") > 0, "{sampler}");
    assert!(get_u64(sampler, "late") <= get_u64(sampler, "ticks") && sampler["missed"].is_u64(), "{sampler}");
    let core = domain_row(&info["domains"], "core-0");
    assert_eq!(
        (&core["kind"], &core["source"], &core["grade"]),
        (&json!("core"), &json!("replay"), &json!("measured"))
    );
    assert_eq!(
        (&core["parent"], &core["counted"], &core["liveness"]),
        (&json!("package-0"), &json!(false), &json!("live"))
    );
    let package = domain_row(&info["domains"], "package-0");
    assert_eq!(package["counted"], true);
    assert!((200_000..5_000_000).contains(&get_u64(package, "update_interval_ns")), "{package}");
    assert!(get_u64(package, "energy_uj") > 0 && get_u64(package, "read_cost_ns") > 0);
    let seen = get_u64(package, "energy_uj");
    wait_until("the power is that of the machine, 80 W, once enough updates are known", || {
        let now = client.call("GetInfo", json!({}));
        (79_000..81_000).contains(&get_u64(domain_row(&now["domains"], "package-0"), "power_mw"))
    });
    wait_until("the energy grows", || {
        get_u64(domain_row(&client.call("GetInfo", json!({}))["domains"], "package-0"), "energy_uj") > seen
    });
}

#[test]
fn a_counter_that_never_moves_is_stuck_with_a_reason_and_shows_no_energy() {
    let machine = format!(
        "{STEADY_MACHINE}\n[[domain]]\nname = \"psys\"\nkind = \"psys\"\nprofile = [[1.0, 0]]\nstuck = true\n"
    );
    let daemon = TestDaemon::start(&machine);
    let mut client = daemon.client();
    let info = client.call("GetInfo", json!({}));
    let psys = domain_row(&info["domains"], "psys");
    assert_eq!((&psys["liveness"], &psys["counted"]), (&json!("stuck"), &json!(false)), "{psys}");
    assert!(psys["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{psys}");
    assert!(psys.get("energy_uj").is_none() && psys.get("power_mw").is_none(), "{psys}");
    client.open("a");
    sleep_ms(40);
    let account = client.close_and_settle("a");
    assert!(
        account["domains"].as_array().unwrap().iter().all(|share| share["domain"] != "psys"),
        "{account}"
    );
    assert!(get_u64(&account, "share_uj") > 0);
}

#[test]
fn a_span_is_named_by_the_client_or_by_the_daemon() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.open("by the client");
    let named = client.call("OpenSpan", json!({}));
    let name = named["span"].as_str().unwrap();
    assert_eq!(name.len(), 32);
    assert_ne!(name, client.call("OpenSpan", json!({}))["span"].as_str().unwrap());
    client.close_and_settle(name);
}

#[test]
fn a_span_carries_its_name_its_attributes_and_its_weight() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let opening =
        json!({ "span": "a", "name": "a question", "attributes": { "model": "m", "x": "1" }, "weight": 0.5 });
    client.call("OpenSpan", opening);
    client.call("SetWeight", json!({ "span": "a", "weight": 2.5 }));
    let open = client.call("GetSpan", json!({ "span": "a" }))["account"].take();
    assert_eq!((&open["state"], open.get("closed_ns")), (&json!("open"), None));
    let closing = json!({ "span": "a", "attributes": { "x": "2", "tokens": "7" }, "wait_settled": true });
    let account = client.call("CloseSpan", closing)["account"].take();
    assert_eq!(account["name"], "a question");
    assert_eq!(account["attributes"], json!({ "model": "m", "x": "2", "tokens": "7" }));
    assert_eq!((&account["weight"], &account["state"]), (&json!(2.5), &json!("settled")));
    assert_eq!((&account["grade"], &account["simulated"]), (&json!("measured"), &json!(true)));
    assert!(get_u64(&account, "opened_unix_ns") > 1_600_000_000_000_000_000);
    assert_eq!(client.call("GetSpan", json!({ "span": "a" }))["account"], account);
}

#[test]
fn a_close_that_does_not_wait_is_answered_at_once_with_the_account_so_far() {
    let daemon = TestDaemon::start(SLOW_COUNTER_MACHINE);
    let mut client = daemon.client();
    client.open("a");
    let account = client.call("CloseSpan", json!({ "span": "a" }))["account"].take();
    assert_eq!(account["state"], "provisional", "{account}");
}

#[test]
fn a_oneway_call_is_done_and_never_answered_not_even_with_a_refusal() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.send("OpenSpan", json!({ "span": "a" }), &["oneway"]);
    client.send("OpenSpan", json!({ "span": "a" }), &["oneway"]);
    client.send("Nothing", json!({}), &["oneway"]);
    client.send("CloseSpan", json!({ "span": "a", "wait_settled": true }), &["oneway"]);
    assert_eq!(client.call_error("CloseSpan", json!({ "span": "a" })).0, "AlreadyClosed");
}

#[test]
fn answers_to_pipelined_calls_come_in_the_order_of_the_calls() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let mut calls = Vec::new();
    for turn in 0..50 {
        let span = format!("s{turn}");
        calls.extend(encode_call("OpenSpan", json!({ "span": span }), &[]));
        calls.extend(encode_call("CloseSpan", json!({ "span": span, "wait_settled": turn % 2 == 0 }), &[]));
        calls.extend(encode_call("GetSpan", json!({ "span": format!("none{turn}") }), &[]));
    }
    assert!(client.send_raw(&calls));
    for turn in 0..50 {
        let mut next = || client.receive().unwrap();
        assert_eq!(next()["parameters"]["span"], format!("s{turn}"));
        let closed = next();
        assert_eq!(closed["parameters"]["account"]["span"], format!("s{turn}"), "{closed}");
        if turn % 2 == 0 {
            assert_eq!(closed["parameters"]["account"]["state"], "settled");
        }
        assert_eq!(error_of(next()), ("NoSuchSpan".into(), json!({ "span": format!("none{turn}") })));
    }
}

#[test]
fn every_refusal_comes_with_what_it_is_about() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "[limits]\nopen_spans = 3\n");
    let mut client = daemon.client();
    client.open("open");
    client.open("closed");
    client.call("CloseSpan", json!({ "span": "closed" }));
    let mut refused = |method: &str, parameters: Value| client.call_error(method, parameters);
    for method in ["CloseSpan", "CancelSpan", "GetSpan"] {
        assert_eq!(refused(method, json!({ "span": "x" })), ("NoSuchSpan".into(), json!({ "span": "x" })));
    }
    assert_eq!(refused("MarkPhase", json!({ "span": "x", "phase": "p" })).0, "NoSuchSpan");
    assert_eq!(refused("SetWeight", json!({ "span": "x", "weight": 1 })).0, "NoSuchSpan");
    assert_eq!(
        refused("OpenSpan", json!({ "span": "open" })),
        ("SpanExists".into(), json!({ "span": "open" }))
    );
    assert_eq!(refused("OpenSpan", json!({ "span": "closed" })).0, "SpanExists");
    for (method, more) in
        [("CloseSpan", json!({})), ("CancelSpan", json!({})), ("MarkPhase", json!({ "phase": "p" }))]
    {
        let mut parameters = more;
        parameters["span"] = json!("closed");
        assert_eq!(refused(method, parameters), ("AlreadyClosed".into(), json!({ "span": "closed" })));
    }
    assert_eq!(
        refused("OpenSpan", json!({ "domains": ["dram-0", "x"] })),
        ("NoSuchDomain".into(), json!({ "domain": "x" }))
    );
    // The span that was closed above counts until it settles, so the first refusal is the one to look at: a later call may
    // find room again.
    let mut refusal = None;
    wait_until("there is no more room", || {
        refusal = Some(client.call_raw("OpenSpan", json!({}))).filter(|reply| reply.get("error").is_some());
        refusal.is_some()
    });
    let (name, details) = error_of(refusal.unwrap());
    assert_eq!((name.as_str(), &details["limit"]), ("QuotaExceeded", &json!(3)), "{details}");
}

#[test]
fn a_time_in_the_future_or_before_the_history_is_refused_with_the_bounds() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.open("a");
    let now_ns = get_u64(&client.call("GetInfo", json!({})), "now_ns") as i64;
    let opened_ns = get_u64(&client.call("GetSpan", json!({ "span": "a" }))["account"], "opened_ns") as i64;
    let in_a_minute = now_ns + 60_000_000_000;
    let calls = [
        ("OpenSpan", json!({ "at_ns": in_a_minute })),
        ("OpenSpan", json!({ "at_ns": 0 })),
        ("OpenSpan", json!({ "at_ns": -1 })),
        ("CloseSpan", json!({ "span": "a", "at_ns": in_a_minute })),
        ("CloseSpan", json!({ "span": "a", "at_ns": opened_ns - 1 })),
        ("MarkPhase", json!({ "span": "a", "phase": "p", "at_ns": in_a_minute })),
        ("SetWeight", json!({ "span": "a", "weight": 1, "at_ns": in_a_minute })),
        ("ReadWindow", json!({ "from_ns": now_ns - 1000, "to_ns": in_a_minute })),
        ("ReadWindow", json!({ "from_ns": 0, "to_ns": now_ns })),
        ("ReadWindow", json!({ "from_ns": now_ns, "to_ns": now_ns - 1000 })),
    ];
    for (method, parameters) in calls {
        let (name, details) = client.call_error(method, parameters.clone());
        assert_eq!(name, "InvalidTime", "{method} {parameters}");
        let (earliest, latest) =
            (get_u64(&details, "earliest_ns") as i64, get_u64(&details, "latest_ns") as i64);
        let at = details["at_ns"].as_i64().unwrap();
        assert!(earliest <= latest && !(earliest..=latest).contains(&at), "{method} {parameters}: {details}");
    }
    assert_eq!(client.close_and_settle("a")["state"], "settled");
}

#[test]
fn an_invalid_value_is_refused_with_its_field_and_the_reason() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    client.open("a");
    let pairs =
        |count: usize| (0..count).map(|at| (format!("k{at}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    let calls = [
        ("OpenSpan", json!({ "weight": -1 }), "weight"),
        ("OpenSpan", json!({ "weight": 1e300 }), "weight"),
        ("SetWeight", json!({ "span": "a", "weight": -0.5 }), "weight"),
        ("OpenSpan", json!({ "domains": [] }), "domains"),
        ("OpenSpan", json!({ "span": "" }), "span"),
        ("OpenSpan", json!({ "span": LONG }), "span"),
        ("OpenSpan", json!({ "span": "a\nb" }), "span"),
        ("OpenSpan", json!({ "name": "\u{1b}[2J" }), "name"),
        ("OpenSpan", json!({ "name": "n".repeat(257) }), "name"),
        ("OpenSpan", json!({ "attributes": pairs(65) }), "attributes"),
        ("OpenSpan", json!({ "attributes": { "": "v" } }), "attributes"),
        ("OpenSpan", json!({ "attributes": { "k".repeat(65): "v" } }), "attributes"),
        ("OpenSpan", json!({ "attributes": { "k": "v".repeat(1025) } }), "attributes"),
        ("CloseSpan", json!({ "span": "a", "attributes": { "k": "\u{7}" } }), "attributes"),
        ("MarkPhase", json!({ "span": "a", "phase": "" }), "phase"),
        ("ListSpans", json!({ "limit": 0 }), "limit"),
        ("WatchDomains", json!({ "rate_hz": 0 }), "rate_hz"),
        ("WatchDomains", json!({ "rate_hz": -3 }), "rate_hz"),
    ];
    for (method, parameters, field) in calls {
        let (name, details) = client.call_error(method, parameters);
        assert_eq!((name.as_str(), details["field"].as_str()), ("InvalidValue", Some(field)), "{details}");
        assert!(details["reason"].as_str().unwrap().len() > 5, "{details}");
    }
    client.call("OpenSpan", json!({ "attributes": pairs(64) }));
    client.close_and_settle("a");
}

#[test]
fn varlink_service_errors_follow_the_specification() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let named = |name: &str| format!("org.varlink.service.{name}");
    let calls = [
        ("Nothing", json!({}), "MethodNotFound", json!({ "method": "org.wattspan.Meter.Nothing" })),
        ("org.nobody.Here.Do", json!({}), "InterfaceNotFound", json!({ "interface": "org.nobody.Here" })),
        ("OpenSpan", json!({ "wieght": 2 }), "InvalidParameter", json!({ "parameter": "wieght" })),
        ("OpenSpan", json!({ "name": 7 }), "InvalidParameter", json!({ "parameter": "name" })),
        ("OpenSpan", json!({ "at_ns": 1.5 }), "InvalidParameter", json!({ "parameter": "at_ns" })),
        ("OpenSpan", json!([]), "InvalidParameter", json!({ "parameter": "parameters" })),
        ("OpenSpan", json!(["a"]), "InvalidParameter", json!({ "parameter": "parameters" })),
        ("CloseSpan", json!({}), "InvalidParameter", json!({ "parameter": "span" })),
        ("GetInfo", json!({ "x": 1 }), "InvalidParameter", json!({ "parameter": "x" })),
        ("WatchSpans", json!({}), "ExpectedMore", json!({})),
        ("WatchDomains", json!({}), "ExpectedMore", json!({})),
    ];
    for (method, parameters, name, details) in calls {
        assert_eq!(client.call_error(method, parameters), (named(name), details), "{method}");
    }
    client.send("GetInfo", json!({}), &["upgrade"]);
    assert_eq!(error_of(client.receive().unwrap()).0, named("MethodNotImplemented"));
}

#[test]
fn the_service_describes_itself_with_the_contract_word_for_word() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    let about = client.call("org.varlink.service.GetInfo", json!({}));
    assert_eq!(about["interfaces"], json!(["org.varlink.service", "org.wattspan.Meter"]));
    assert_eq!(
        (&about["product"], about["version"].as_str()),
        (&json!("wattspand"), Some(env!("CARGO_PKG_VERSION")))
    );
    let calls = json!({ "interface": "org.wattspan.Meter" });
    let described = client.call("org.varlink.service.GetInterfaceDescription", calls);
    assert_eq!(
        described["description"],
        include_str!("../../crates/wattspan-client/src/protocol/org.wattspan.Meter.varlink")
    );
    let (name, _) =
        client.call_error("org.varlink.service.GetInterfaceDescription", json!({ "interface": "x.y" }));
    assert_eq!(name, "org.varlink.service.InterfaceNotFound");
}

#[test]
fn parameters_may_be_left_out_where_none_are_needed() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    for bare in [
        "{\"method\":\"org.wattspan.Meter.GetInfo\"}\0",
        "{\"method\":\"org.wattspan.Meter.OpenSpan\",\"parameters\":{}}\0",
    ] {
        assert!(client.send_raw(bare.as_bytes()));
        assert!(client.receive().unwrap().get("error").is_none());
    }
}

#[test]
fn a_span_watcher_gets_each_account_once_as_it_settles() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let (mut watcher, mut client) = (daemon.client(), daemon.client());
    watcher.send("WatchSpans", json!({}), &["more"]);
    wait_for_first_update(&mut watcher, &mut client);
    for span in ["a", "b"] {
        client.open(span);
        sleep_ms(15);
        let account = client.close_and_settle(span);
        let details = watcher.receive().unwrap();
        assert_eq!((&details["parameters"]["account"], &details["continues"]), (&account, &json!(true)));
    }
}

/// A stream has no initial reply: opens and settles spans until the first update arrives.
fn wait_for_first_update(watcher: &mut TestClient, client: &mut TestClient) {
    watcher.stream().set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let mut turn = 0;
    wait_until("the stream begins", || {
        turn += 1;
        client.open(&format!("probe{turn}"));
        client.close_and_settle(&format!("probe{turn}"));
        let mut byte = [0; 1];
        rustix::net::recv(watcher.stream(), &mut byte, rustix::net::RecvFlags::PEEK).is_ok()
    });
    watcher.stream().set_read_timeout(Some(support::TEST_TIMEOUT)).unwrap();
    loop {
        let details = watcher.receive().unwrap();
        if details["parameters"]["account"]["span"] == format!("probe{turn}") {
            return;
        }
    }
}

#[test]
fn a_domain_watcher_gets_an_immediate_update_and_periodic_ones() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut watcher = daemon.client();
    watcher.send("WatchDomains", json!({ "rate_hz": 200 }), &["more"]);
    let mut last = 0;
    for _ in 0..5 {
        let details = watcher.receive().unwrap();
        assert_eq!(details["continues"], true);
        assert!(get_u64(&details["parameters"], "now_ns") > last);
        last = get_u64(&details["parameters"], "now_ns");
        assert_eq!(details["parameters"]["domains"].as_array().unwrap().len(), 3);
    }
    wait_until("the energy is fresh", || {
        let details = watcher.receive().unwrap();
        get_u64(domain_row(&details["parameters"]["domains"], "package-0"), "energy_uj") > 0
    });
}

#[test]
fn after_a_rest_the_first_tick_is_as_fresh_as_the_time_beside_it() {
    // At rest the samplers read once per second; some of these rests end long after the last reading.
    for rest_ms in [1300, 1500, 1700, 1900] {
        let daemon = TestDaemon::start(STEADY_MACHINE);
        sleep_ms(rest_ms);
        let mut watcher = daemon.client();
        watcher.send("WatchDomains", json!({ "rate_hz": 10 }), &["more"]);
        let mut tick = || {
            let tick = watcher.receive().unwrap()["parameters"].take();
            let energy_uj = get_u64(domain_row(&tick["domains"], "package-0"), "energy_uj");
            (get_u64(&tick, "now_ns"), energy_uj)
        };
        // Over half a second, so that some milliseconds between the clock and the energy of one tick do not matter.
        let (first, last) = (tick(), (0..5).map(|_| tick()).last().unwrap());
        let power_mw = (last.1 - first.1) * 1_000_000 / (last.0 - first.0);
        // 80 W; with a first energy that is half a second old the result would be 160 W.
        assert!((60_000..100_000).contains(&power_mw), "{power_mw} mW after {rest_ms} ms");
    }
}
