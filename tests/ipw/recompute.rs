//! Every figure of a run equals that of an independent script (`recompute.py`, numpy), computed from the run's files.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::numpy;
use crate::runs::{IpwFixture, LONG_HORIZON_ARGS, output_text};

const TOLERANCE: f64 = 1e-9;

/// Asserts that the program has every value that the script has. Absent and null are the same.
fn assert_same(path: &str, ours: &Value, theirs: &Value, compared: &mut usize) {
    match theirs {
        Value::Object(all) => {
            all.iter()
                .for_each(|(name, it)| assert_same(&format!("{path}.{name}"), &ours[name], it, compared));
        }
        Value::Array(all) => {
            assert_eq!(ours.as_array().map(Vec::len), Some(all.len()), "{path}");
            let each = all.iter().enumerate();
            each.for_each(|(at, it)| assert_same(&format!("{path}[{at}]"), &ours[at], it, compared));
        }
        Value::Number(number) => {
            let (wanted, got) = (number.as_f64().unwrap(), ours.as_f64());
            let got = got.unwrap_or_else(|| panic!("{path}: {ours}, and not {wanted}"));
            assert!((got - wanted).abs() <= TOLERANCE * wanted.abs(), "{path}: {got}, and not {wanted}");
            *compared += 1;
        }
        // A flag that is not set is left out.
        Value::Bool(flag) => assert_eq!(ours.as_bool().unwrap_or(false), *flag, "{path}"),
        _ => assert_eq!(ours, theirs, "{path}"),
    }
}

/// Compares the figures of a run in some scopes, with both idle policies.
fn assert_recomputed(fixture: &IpwFixture, python: &Path, run: &str, scopes: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ipw/recompute.py");
    for scope in scopes {
        for idle in ["included", "excluded"] {
            let ours = fixture.report(run, &["--allow-partial", "--scope", *scope, "--idle", idle]);
            let reported = fixture.path("reported.json");
            std::fs::write(&reported, ours.to_string()).unwrap();
            let mut command = Command::new(python);
            command.arg(script).arg(fixture.path(run)).args([*scope, idle]);
            let output = command.stdin(std::fs::File::open(&reported).unwrap()).output().unwrap();
            assert!(output.status.success(), "{}", output_text(&output));
            let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
            let mut compared = 0;
            assert_same(&format!("{run}, {scope}, {idle}: "), &ours, &theirs, &mut compared);
            // Counts and figures of the run, of its steady state, and of each subject.
            let subjects = theirs["subjects"].as_array().unwrap().len();
            assert!(theirs["all"]["covered"].as_u64() > Some(0) && compared > 12 * subjects, "{theirs}");
            assert!(theirs["steady_state"]["figures"]["per_watt"]["value"].is_f64(), "{theirs}");
        }
    }
}

/// Changes each row of a run by its number.
fn edit_rows(fixture: &IpwFixture, run: &str, change: impl Fn(usize, &mut Value)) {
    let mut rows = fixture.rows(run);
    rows.iter_mut().enumerate().for_each(|(at, row)| change(at, row));
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(fixture.path(run).join("rows.jsonl"), lines.join("\n") + "\n").unwrap();
}

#[test]
fn figures_recomputed_from_the_files_are_the_same() {
    let Some(python) = numpy::python() else { return };
    let fixture = IpwFixture::new();
    // Each question breaks off once; the resumed run asks it again, so that its energy is that of both tries.
    let (output, rows) = fixture.run("breaksonce-20", &["-c", "4", "-n", "40", "--retries", "0"]);
    assert_eq!((output.status.code(), rows.len()), (Some(1), 40), "{}", output_text(&output));
    let resumed = fixture.command("run").args(LONG_HORIZON_ARGS).args(["--resume", "breaksonce-20"]).output();
    let resumed = resumed.unwrap();
    assert!(resumed.status.success(), "{}", output_text(&resumed));
    // A simulated machine has no idle power: a quarter of each share is made one.
    edit_rows(&fixture, "breaksonce-20", |_, row| {
        let idle = |of: &mut Value| of["idle_uj"] = (of["share_uj"].as_u64().unwrap() / 4).into();
        idle(&mut row["energy"]);
        row["energy"]["domains"].as_array_mut().unwrap().iter_mut().for_each(idle);
    });
    assert_recomputed(&fixture, &python, "breaksonce-20", &["host"]);
    edit_rows(&fixture, "breaksonce-20", |at, row| match at {
        41 => (row["error"], row["delivered"]) = ("no connection: refused".into(), false.into()),
        43 => (row["error"], row["delivered"]) = ("no answer within 1s".into(), true.into()),
        47 => row["finish"] = "length".into(),
        53 => row["energy"] = Value::Null,
        59 => row["score"] = Value::Null,
        61 => row["energy"]["error_uj"] = Value::Null,
        _ if at % 3 == 0 => row["score"] = 0.into(),
        _ => {}
    });
    let report = fixture.report("breaksonce-20", &["--allow-partial"]);
    assert_eq!(report["all"]["partial"], true, "37 of 40 are covered: {report}");
    assert_recomputed(&fixture, &python, "breaksonce-20", &["host", "compute", "accelerator"]);
}
