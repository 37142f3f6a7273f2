//! The result card of a run: it follows its schema, holds the run's conditions, and no changed value passes its check.

use std::process::Command;

use serde_json::{Value, json};

use crate::llm_stub::STUB_VERSION;
use crate::numpy;
use crate::runs::{IpwFixture, output_text};

fn read(fixture: &IpwFixture, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture.path(name)).unwrap()).unwrap()
}

/// A run with its card, `card.json`.
fn run_with_card() -> (IpwFixture, Value) {
    let fixture = IpwFixture::new();
    std::fs::write(fixture.path("tiny-Q4_K_M.gguf"), "abc").unwrap();
    let conditions = ["--model-file", "tiny-Q4_K_M.gguf", "--condition", "engine_flags=--threads 2"];
    let (output, rows) = fixture.run("good-20", &conditions);
    assert!(rows.iter().any(|row| row["energy"]["share_uj"].is_u64()), "{}", output_text(&output));
    let card = ["good-20", "-o", "card.json", "--condition", "room=21 C", "--condition", "engine=other"];
    let output = fixture.command("card").args(card).output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(output_text(&output).contains("engine: the run recorded it"), "{}", output_text(&output));
    let card = read(&fixture, "card.json");
    (fixture, card)
}

/// The text of a check that must fail.
fn refused(fixture: &IpwFixture, card: &Value) -> String {
    std::fs::write(fixture.path("changed.json"), card.to_string()).unwrap();
    let output = fixture.command("verify").args(["changed.json", "good-20"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    output_text(&output)
}

#[test]
fn a_card_holds_the_conditions_of_its_run_and_follows_from_it() {
    let (fixture, card) = run_with_card();
    let condition = |value: &str, origin: &str| json!({"value": value, "origin": origin});
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (name, wanted) in [
        ("engine", condition("vLLM", "server")),
        ("engine_version", condition(STUB_VERSION, "server")),
        ("engine_flags", condition("--threads 2", "user")),
        ("model_file", condition("tiny-Q4_K_M.gguf", "file")),
        ("model_sha256", condition(hash, "file")),
        ("quantization", condition("Q4_K_M", "file")),
        ("room", condition("21 C", "user")),
    ] {
        assert_eq!(card["conditions"][name], wanted, "{name}");
    }
    assert_eq!((&card["simulated"], &card["questions"]["count"]), (&json!(true), &json!(12)));
    let assumed = &card["assumptions"][0];
    assert_eq!((&assumed["name"], assumed.get("energy_uj")), (&json!("package-0"), None));
    assert!(assumed["ceilings"][0]["origin"].is_string(), "{assumed}");
    // The figures are those of the report.
    let report = fixture.report("good-20", &[]);
    assert_eq!(card["figures"]["all"], report["all"]);
    assert!(card["figures"]["all"]["per_watt"]["value"].as_f64() > Some(0.0), "{card}");
    let output = fixture.command("verify").args(["card.json", "good-20"]).output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(output_text(&output).contains("proves the arithmetic, not the measurement"));
}

#[test]
fn no_changed_value_passes_the_check() {
    let (fixture, card) = run_with_card();
    let value = card["figures"]["all"]["per_watt"]["value"].as_f64().unwrap();
    for (place, wrong) in [
        ("/figures/all/per_watt/value", json!(value * (1.0 + 1e-14))),
        ("/figures/all/per_watt/interval/low", json!(0.0)),
        ("/figures/all/covered", json!(11)),
        ("/figures/all/power_error_w", json!(0)),
        ("/settings/at once", json!("2")),
        ("/conditions/engine_version/value", json!("0.1")),
        ("/assumptions/0/assumed_quantum_uj", json!(1)),
        ("/simulated", json!(false)),
        ("/label", json!("another")),
    ] {
        let mut changed = card.clone();
        *changed.pointer_mut(place).unwrap_or_else(|| panic!("{place} is not in {card}")) = wrong;
        let text = refused(&fixture, &changed);
        let name = place[1..].replace('/', ".");
        assert!(text.contains("1 values differ") && text.contains(&name), "{place}: {text}");
    }
    let mut added = card.clone();
    added["figures"]["all"]["per_dollar"] = json!(1);
    assert!(refused(&fixture, &added).contains("figures.all.per_dollar: 1 in the card, null from the run"));
    // What the run recorded is not the user's to state.
    let mut claimed = card.clone();
    claimed["conditions"]["engine"] = json!({"value": "faster", "origin": "user"});
    assert!(refused(&fixture, &claimed).contains("conditions.engine.value"));
    for other in [json!({}), json!({"format": "wattspan-result-card", "version": 2}), json!([1])] {
        refused(&fixture, &other);
    }
    // Another row: its hash and what follows from it.
    let rows = fixture.path("good-20").join("rows.jsonl");
    let text = std::fs::read_to_string(&rows).unwrap();
    std::fs::write(&rows, text.replacen("\"score\":1", "\"score\":0", 1)).unwrap();
    let text = refused(&fixture, &card);
    assert!(text.contains("rows_sha256") && text.contains("figures.all.accuracy.value"), "{text}");
}

#[test]
fn a_card_follows_its_schema() {
    let Some(python) = numpy::python() else { return };
    let (fixture, card) = run_with_card();
    let check = |card: &Value| {
        std::fs::write(fixture.path("checked.json"), card.to_string()).unwrap();
        let script = "import json, sys, jsonschema\n\
            schema = json.load(open(sys.argv[1]))\n\
            jsonschema.Draft202012Validator.check_schema(schema)\n\
            jsonschema.Draft202012Validator(schema).validate(json.load(open(sys.argv[2])))";
        let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/result-card.schema.json");
        Command::new(&python).args(["-c", script, schema]).arg(fixture.path("checked.json")).output().unwrap()
    };
    let output = check(&card);
    assert!(output.status.success(), "{}", output_text(&output));
    // The schema finds what is wrong.
    for (place, wrong) in [
        ("/rows_sha256", json!("0")),
        ("/scope", json!("wall")),
        ("/figures/all/per_watt/value", json!("much")),
        ("/conditions/engine/origin", json!("rumour")),
    ] {
        let mut changed = card.clone();
        *changed.pointer_mut(place).unwrap() = wrong;
        assert!(!check(&changed).status.success(), "{place}");
    }
}
