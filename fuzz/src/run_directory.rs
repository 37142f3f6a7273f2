//! The files of a run: manifest, rows, replies, power, decisions.

use wattspan_ipw::decisions::read_decisions;
use wattspan_ipw::power_series::read_power_series;
use wattspan_ipw::row::ReplyText;
use wattspan_ipw::table::RunTable;
use wattspan_ipw::{run_dir, run_settings};

use super::{assert_json_round_trip, first_line, scratch_dir};

/// The first line is the manifest; the others are the lines of each of the other files. What is read reads back as written,
/// and the table has the rows that can be read.
pub fn check(bytes: &[u8]) {
    let (manifest, lines) = first_line(bytes);
    let dir = scratch_dir();
    let write = |name: &str, content: &[u8]| {
        std::fs::write(dir.path().join(name), content).expect("it can be written")
    };
    write("run.json", manifest);
    for name in ["rows.jsonl", "texts.jsonl", "power.jsonl"] {
        write(name, lines);
    }
    let mut rows = 0;
    run_dir::for_each_row(&dir.path().join("rows.jsonl"), |row| {
        rows += 1;
        assert_json_round_trip(&row);
    })
    .expect("the file can be read");
    run_dir::for_each_text(dir.path(), |text: ReplyText| assert_json_round_trip(&text))
        .expect("the file can be read");
    if let Ok(series) = read_power_series(dir.path(), &[0, 1], (0.0, f64::MAX)) {
        assert!(series.iter().all(|(at_s, watts)| at_s.is_finite() && *watts >= 0.0));
    }
    if let Ok(decisions) = read_decisions(lines) {
        assert!(
            decisions.iter().all(|decision| decision.router_uj.is_none() || decision.router_span.is_none())
        );
    }
    let Ok(manifest) = run_dir::read_manifest(dir.path()) else { return };
    assert_json_round_trip(&manifest);
    let _ = (manifest.is_simulated(), run_settings::describe_workload(&manifest.settings));
    let _ = run_settings::workload(&manifest.settings);
    if let Ok(table) = RunTable::read(dir.path()) {
        assert!(table.asked() >= rows.min(1), "{rows} rows");
    }
}
