//! The figures of `ipw` are those of numpy and scipy on the same rows, to 1e-9.
//!
//! `tests/fixtures/ipw/statistics.py` made the expected values.

use wattspan::ipw::metrics::{Estimate, MetricOptions, compute_metrics};
use wattspan::ipw::question;
use wattspan::ipw::row::{QueryEnergy, QueryRow, ReplyText};
use wattspan::ipw::run_dir::{FORMAT_VERSION, Manifest, RunDir};
use wattspan::ipw::scope::{IdlePolicy, Scope};
use wattspan::ipw::statistics::{LinearFit, fit_linear, fit_log_linear};
use wattspan::ipw::table::RunTable;
use wattspan::ipw::{bootstrap, table};

#[derive(serde::Deserialize)]
struct Expected {
    rows: Vec<[u64; 7]>,
    seed: u64,
    figures: [f64; 6],
    low: [f64; 6],
    high: [f64; 6],
    lines: std::collections::BTreeMap<String, [f64; 4]>,
    wilson: [f64; 4],
}

fn expected() -> Expected {
    serde_json::from_str(include_str!("fixtures/ipw/statistics.json")).unwrap()
}

fn table(rows: &[[u64; 7]]) -> RunTable {
    let dir = tempfile::tempdir().unwrap();
    let questions = question::built_in();
    let fingerprint = question::fingerprint(&questions);
    let manifest = Manifest { version: FORMAT_VERSION, fingerprint, ..Manifest::default() };
    let mut run = RunDir::create(dir.path(), &manifest, &questions).unwrap();
    for (at, row) in rows.iter().enumerate() {
        let [score, share_uj, duration_ns, tokens_in, tokens_out, first_token_ns, window_uj] = row;
        let (share_uj, window_uj) = (Some(*share_uj), Some(*window_uj));
        let energy = QueryEnergy { share_uj, window_uj, span_ns: *duration_ns, ..QueryEnergy::default() };
        let row = QueryRow {
            id: at.to_string(),
            score: Some(*score as f64),
            duration_ns: *duration_ns,
            tokens_in: Some(*tokens_in),
            tokens_out: Some(*tokens_out),
            first_token_ns: Some(*first_token_ns),
            energy: Some(energy),
            ..QueryRow::default()
        };
        run.append_row(&row, &ReplyText::default()).unwrap();
    }
    RunTable::read(dir.path()).unwrap()
}

fn near(name: &str, ours: f64, theirs: f64) {
    assert!((ours - theirs).abs() <= 1e-9 * theirs.abs().max(1.0), "{name}: {ours}, and not {theirs}");
}

#[test]
fn means_ratios_and_their_intervals_are_those_of_numpy() {
    let expected = expected();
    let terms = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included, seed: expected.seed };
    let ours = compute_metrics(&table(&expected.rows), None, &terms);
    let names = ["accuracy", "energy", "power", "ipw", "ipj", "attributed power"];
    let got =
        [ours.accuracy, ours.energy_j, ours.power_w, ours.per_watt, ours.per_joule, ours.attributed_power_w];
    for (at, (name, figure)) in names.into_iter().zip(got).enumerate() {
        let Estimate { value, interval } = figure.unwrap();
        let interval = interval.unwrap();
        near(name, value, expected.figures[at]);
        near(&format!("{name}, low"), interval.low, expected.low[at]);
        near(&format!("{name}, high"), interval.high, expected.high[at]);
    }
    let [right, of, low, high] = expected.wilson;
    let wilson = bootstrap::wilson_interval(right, of).unwrap();
    near("Wilson, low", wilson.low, low);
    near("Wilson, high", wilson.high, high);
}

#[test]
fn regressions_are_those_of_scipy() {
    let expected = expected();
    let read = table(&expected.rows);
    let columns = &read.columns;
    let known = |value: &f64| table::known(*value).unwrap();
    let tokens: Vec<f64> =
        columns.tokens_in.iter().zip(&columns.tokens_out).map(|(one, other)| one + other).collect();
    let energy: Vec<f64> = columns.host_j.iter().map(known).collect();
    let watts = columns.power_w(Scope::Host, IdlePolicy::Included);
    let power: Vec<f64> = (0..columns.len()).map(watts).collect();
    let of =
        |x: &[f64], y: &[f64]| -> LinearFit { fit_linear(x.iter().copied().zip(y.iter().copied())).unwrap() };
    let got = [
        ("energy", of(&tokens, &energy)),
        ("latency", of(&tokens, &columns.duration_s)),
        ("first_token", of(&columns.tokens_in, &columns.first_token_s)),
        ("power", of(&tokens, &power)),
        ("power_log", fit_log_linear(tokens.iter().copied().zip(power.iter().copied())).unwrap()),
    ];
    for (name, ours) in got {
        let [slope, intercept, r2, mean_y] = expected.lines[name];
        near(name, ours.slope, slope);
        near(name, ours.intercept, intercept);
        near(name, ours.r2.unwrap(), r2);
        near(name, ours.mean_y, mean_y);
    }
}
