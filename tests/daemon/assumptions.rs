//! The assumptions of the guaranteed error: configured, shown with their origin, and in effect.

use crate::support::{STEADY_MACHINE, TestClient, TestDaemon, domain_row, get_u64, wait_until};
use serde_json::{Value, json};

fn configuration_file(daemon: &TestDaemon) -> std::path::PathBuf {
    daemon.socket().parent().unwrap().with_file_name("wattspan.toml")
}

fn domain(client: &mut TestClient, name: &str) -> Value {
    domain_row(&client.call("GetInfo", json!({}))["domains"], name).clone()
}

#[test]
fn a_configured_update_interval_replaces_the_measured_one_at_a_reload() {
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "");
    let mut client = daemon.client();
    wait_until("the interval is measured", || {
        domain(&mut client, "package-0")["update_interval_origin"] == "measured"
    });
    assert!((200_000..5_000_000).contains(&get_u64(&domain(&mut client, "package-0"), "update_interval_ns")));
    std::fs::write(configuration_file(&daemon), "bus = false\n[update_interval_ms]\npackage-0 = 7.5\n")
        .unwrap();
    let reloaded = client.call("Reload", json!({}));
    assert!(reloaded["changed"].to_string().contains("update_interval_ms.package-0"), "{reloaded}");
    let package = domain(&mut client, "package-0");
    assert_eq!(get_u64(&package, "update_interval_ns"), 7_500_000);
    assert_eq!(package["update_interval_origin"], "configured");
    assert_eq!(domain(&mut client, "dram-0")["update_interval_origin"], "measured");
}

/// The guaranteed error of the package in a span of 50 ms.
fn error_uj(client: &mut TestClient, span: &str) -> u64 {
    client.call("OpenSpan", json!({ "span": span }));
    crate::support::sleep_ms(50);
    let account = client.call("CloseSpan", json!({ "span": span, "wait_settled": true }))["account"].take();
    let shares = account["domains"].as_array().unwrap();
    get_u64(shares.iter().find(|share| share["domain"] == "package-0").unwrap(), "error_uj")
}

#[test]
fn a_configured_quantum_widens_the_error_and_keeps_its_value_until_a_restart() {
    const QUANTUM_UJ: u64 = 90_000_000;
    let configuration = |quantum_uj: u64| format!("bus = false\n[quantum_uj]\npackage-0 = {quantum_uj}\n");
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, &configuration(QUANTUM_UJ));
    let mut client = daemon.client();
    let (package, dram) = (domain(&mut client, "package-0"), domain(&mut client, "dram-0"));
    assert_eq!(get_u64(&package, "assumed_quantum_uj"), QUANTUM_UJ);
    assert_eq!(package["quantum_origin"], "configured");
    assert_eq!((get_u64(&dram, "assumed_quantum_uj"), &dram["quantum_origin"]), (15, &json!("recorded")));
    // Some 4 J in the span; without the quantum the error is below the energy.
    let wide_uj = error_uj(&mut client, "wide");
    assert!(wide_uj >= QUANTUM_UJ, "{wide_uj}");
    std::fs::write(configuration_file(&daemon), configuration(61)).unwrap();
    let reloaded = client.call("Reload", json!({}));
    assert!(reloaded["needs_restart"].to_string().contains("quantum_uj.package-0"), "{reloaded}");
    assert_eq!(get_u64(&domain(&mut client, "package-0"), "assumed_quantum_uj"), QUANTUM_UJ);
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, "");
    let narrow_uj = error_uj(&mut daemon.client(), "narrow");
    assert!(narrow_uj < QUANTUM_UJ / 2, "{narrow_uj}");
}
