//! SumSpans: equal to the sums of the listed accounts, for each caller those that it may list; its errors and limits.

use crate::support::{STEADY_MACHINE, TestClient, TestDaemon, domain_row, get_u64, wait_until};
use serde_json::{Value, json};

fn run_spans(client: &mut TestClient, prefix: &str, count: usize, model: &str) {
    for at in 0..count {
        let attributes = json!({ "gen_ai.request.model": model, "gen_ai.usage.output_tokens": "10" });
        let span = format!("{prefix}{at}");
        client.call("OpenSpan", json!({ "span": span, "name": prefix, "attributes": attributes }));
        client.close_and_settle(&span);
    }
}

fn list(client: &mut TestClient) -> Vec<Value> {
    let list = client.call("ListSpans", json!({ "after": 0, "limit": 4096 }));
    assert_eq!(list["at_end"], true);
    list["accounts"].as_array().unwrap().clone()
}

/// The sum of a field of the accounts that `matches` accepts.
fn sum_of(accounts: &[Value], field: &str, matches: impl Fn(&Value) -> bool) -> u64 {
    accounts.iter().filter(|account| matches(account)).map(|account| get_u64(account, field)).sum()
}

#[test]
fn sums_are_those_of_the_listed_accounts() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    run_spans(&mut client, "a", 7, "small");
    run_spans(&mut client, "b", 5, "large");
    client.open("still open");
    let accounts = list(&mut client);
    let call = json!({ "by": ["model", "user", "day"], "utc_offset_min": 0 });
    let reply = client.call("SumSpans", call);
    let models: Vec<&str> =
        reply["sums"].as_array().unwrap().iter().map(|sum| sum["model"].as_str().unwrap()).collect();
    // They may run over midnight.
    assert!(models.contains(&"large") && models.contains(&"small") && models.is_sorted(), "{reply}");
    let total = &reply["total"];
    for (field, of_account) in [("energy_uj", "share_uj"), ("error_uj", "error_uj")] {
        assert_eq!(get_u64(total, field), sum_of(&accounts, of_account, |_| true), "{field}");
        let groups = reply["sums"].as_array().unwrap();
        assert_eq!(get_u64(total, field), sum_of(groups, field, |_| true), "{field}");
    }
    assert_eq!((get_u64(total, "accounts"), get_u64(total, "without_energy")), (12, 0));
    assert_eq!((get_u64(total, "output_tokens"), total.get("input_tokens")), (120, None));
    assert_eq!((&reply["open"], &reply["last"]), (&json!(1), &json!(12)));
    assert_eq!((reply.get("missing"), reply.get("other")), (None, None));
    let small = client.call("SumSpans", json!({ "model": "small" }));
    let is_small = |account: &Value| account["name"] == "a";
    assert_eq!(get_u64(&small["total"], "energy_uj"), sum_of(&accounts, "share_uj", is_small));
    assert_eq!(small["sums"], json!([]));
    let named = client.call("SumSpans", json!({ "name": "b", "by": ["name"] }));
    assert_eq!((&named["sums"][0]["name"], get_u64(&named["total"], "accounts")), (&json!("b"), 5));
    let none = client.call("SumSpans", json!({ "name": "c" }));
    assert_eq!((get_u64(&none["total"], "accounts"), none["total"].get("energy_uj")), (0, None));
}

#[test]
fn sums_refuse_what_they_cannot_answer() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    for (call, field) in [
        (json!({ "by": ["colour"] }), "by"),
        (json!({ "by": ["model", "model"] }), "by"),
        (json!({ "by": ["day"] }), "utc_offset_min"),
        (json!({ "utc_offset_min": 0 }), "utc_offset_min"),
        (json!({ "by": ["day"], "utc_offset_min": 1440 }), "utc_offset_min"),
        (json!({ "by": ["day"], "utc_offset_min": i64::MIN }), "utc_offset_min"),
        (json!({ "since_unix_ns": -1 }), "since_unix_ns"),
        (json!({ "until_unix_ns": -1 }), "until_unix_ns"),
        (json!({ "uid": -1 }), "uid"),
        (json!({ "state": "open" }), "state"),
    ] {
        let (error, parameters) = client.call_error("SumSpans", call.clone());
        assert_eq!((error.as_str(), &parameters["field"]), ("InvalidValue", &json!(field)), "{call}");
    }
    client.send("SumSpans", json!({}), &["oneway"]);
    assert!(client.call("GetInfo", json!({}))["version"].is_string(), "a oneway call has no reply");
    let without_store = TestDaemon::start_with_config(STEADY_MACHINE, "[ledger]\nkeep = false\n");
    let (error, _) = without_store.client().call_error("SumSpans", json!({}));
    assert_eq!(error, "StoreUnavailable");
}

#[test]
fn one_call_of_a_user_runs_at_a_time_and_ends_with_its_client() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    run_spans(&mut client, "a", 1, "small");
    let calls = [0; 3].map(|_| crate::support::encode_call("SumSpans", json!({}), &[])).concat();
    let expected = json!({ "quota": "sums of spans at a time", "limit": 1 });
    // The thread of the first call may end before the second call is performed, so this may need another try.
    wait_until("a call is refused while one runs", || {
        assert!(client.send_raw(&calls));
        let answers = [0; 3].map(|_| client.receive().unwrap());
        let (refused, answered): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.get("error").is_some());
        assert_eq!(get_u64(&answers[0]["parameters"]["total"], "accounts"), 1, "{answers:?}");
        for answer in &refused {
            assert_eq!(answer["error"], "org.wattspan.Meter.QuotaExceeded", "{answers:?}");
            assert_eq!(answer["parameters"], expected);
        }
        answered.len() < answers.len()
    });
    // A client that goes away frees the place of its user.
    for _ in 0..20 {
        let mut gone = daemon.client();
        gone.send("SumSpans", json!({}), &[]);
        drop(gone);
    }
    wait_until("another call runs", || {
        client.call_raw("SumSpans", json!({}))["parameters"]["total"]["accounts"] == 1
    });
}

#[test]
fn the_energy_of_spans_is_settled_abandoned_open_or_cancelled_to_the_microjoule() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let mut client = daemon.client();
    run_spans(&mut client, "a", 9, "small");
    for at in 0..6 {
        let mut gone = daemon.client();
        gone.open(&format!("gone{at}"));
        client.open(&format!("cancelled{at}"));
        run_spans(&mut client, &format!("beside{at}-"), 2, "small");
        client.call("CancelSpan", json!({ "span": format!("cancelled{at}") }));
        drop(gone);
    }
    client.open("open");
    // Without spans in between, each account has settled and is on disk.
    wait_until("all have settled", || {
        let is_kept = list(&mut client).len() == 9 + 6 + 12;
        is_kept && get_u64(&client.call("GetInfo", json!({}))["keeping"], "waiting") == 0
    });
    let accounts = list(&mut client);
    let balance = client.call("GetBalance", json!({}))["balance"].take();
    for domain in ["package-0", "core-0", "dram-0"] {
        let row = domain_row(&balance, domain);
        let share = |account: &Value| get_u64(domain_row(&account["domains"], domain), "share_uj");
        let of_state =
            |state: &str| accounts.iter().filter(|account| account["state"] == state).map(share).sum::<u64>();
        assert_eq!(get_u64(row, "settled_uj"), of_state("settled"), "{domain}");
        assert_eq!(get_u64(row, "abandoned_uj"), of_state("abandoned"), "{domain}");
        assert!(of_state("settled") > 0 && of_state("abandoned") > 0 && get_u64(row, "cancelled_uj") > 0);
        let parts = ["settled_uj", "abandoned_uj", "not_kept_uj", "open_uj"];
        let attributed_uj = parts.iter().map(|part| get_u64(row, part)).sum::<u64>();
        assert_eq!(get_u64(row, "attributed_uj"), attributed_uj, "{domain}");
        let measured_uj = get_u64(row, "attributed_uj") + get_u64(row, "unattributed_uj");
        assert_eq!(get_u64(row, "measured_uj"), measured_uj, "{domain}");
        assert_eq!((get_u64(row, "not_kept_uj"), &row["rounding_uj"]), (0, &json!(0)));
    }
    // The total of the sums is that of the counted domains.
    let total = client.call("SumSpans", json!({}))["total"].take();
    let kept_uj = |domain: &str| {
        let row = domain_row(&balance, domain);
        get_u64(row, "settled_uj") + get_u64(row, "abandoned_uj")
    };
    assert_eq!(get_u64(&total, "energy_uj"), kept_uj("package-0") + kept_uj("dram-0"));
}
