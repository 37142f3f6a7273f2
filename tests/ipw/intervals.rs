//! Confidence intervals: their coverage in simulated runs, and an independent recomputation from the run's directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use wattspan_ipw::bootstrap::SplitMix64;
use wattspan_ipw::compare::compare_runs;
use wattspan_ipw::estimates::Figure;
use wattspan_ipw::metrics::{EfficiencyMetrics, Estimate, MetricOptions, compute_metrics};
use wattspan_ipw::question;
use wattspan_ipw::route::{RoutedModel, evaluate_routing};
use wattspan_ipw::row::{QueryEnergy, QueryRow, ReplyText};
use wattspan_ipw::run_dir::{FORMAT_VERSION, Manifest, RunDir};
use wattspan_ipw::scope::{IdlePolicy, Scope};
use wattspan_ipw::table::RunTable;

use super::interval_simulation::{
    ACCURACIES, Cell, ENERGIES, Energies, FIGURES, FigureOutcomes, PAIR_FIGURES, PairCell, RouteCell, Row,
    bootstrap_pair, percentile_bootstrap, product, product_pair, product_saving, simulate, simulate_figures,
};
use super::numpy;

/// Runs of a cell, and the least number of them that must cover: a method that covers 93 % misses it once in 1,000
/// cells (three standard deviations).
const RUNS: usize = 400;
const MIN_COVERAGE: f64 = 0.93 - 3.0 * 0.012_76;

#[test]
fn intervals_cover_and_contain_their_figure() {
    let mut cells = 0;
    for energies in ENERGIES {
        for questions in [10, 50] {
            for accuracy in ACCURACIES {
                if energies == Energies::TwoPoint && questions == 10 {
                    continue;
                }
                let cell = Cell { questions, accuracy, energies, correlation: -0.6 };
                let outcome = simulate(&cell, RUNS, 7, product);
                assert_eq!(outcome.point_outside, 0, "{}", cell.name());
                for (figure, coverage) in FIGURES.iter().zip(outcome.coverage) {
                    assert!(coverage >= MIN_COVERAGE, "{figure} of {}: {coverage}", cell.name());
                }
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 35);
}

#[test]
fn the_check_of_coverage_can_fail() {
    // All right, log-normal energies: the interval of IPJ by percentiles of resamples is far too narrow.
    let cell = Cell { questions: 10, accuracy: ACCURACIES[4], energies: Energies::Wide, correlation: 0.0 };
    let [ipw, ipj, energy] = simulate(&cell, RUNS / 4, 7, percentile_bootstrap).coverage;
    assert!(ipj < MIN_COVERAGE && energy < MIN_COVERAGE, "{ipw} {ipj} {energy}");
}

/// Simulates a cell of two runs and returns the coverage of its figures.
fn simulate_pair(cell: &PairCell, runs: usize, method: fn(&[[Row; 2]]) -> [Figure; 4]) -> FigureOutcomes<4> {
    let mut random = SplitMix64::new(11);
    simulate_figures(runs, cell.truth(), || method(&cell.draw(&mut random)))
}

#[test]
fn intervals_of_two_runs_cover_and_contain_their_figure() {
    let mut figures = 0;
    for energies in ENERGIES {
        for questions in [10, 50] {
            for accuracy in ACCURACIES {
                let cells = PairCell::all_of(questions, energies, accuracy);
                // Equal accuracies of questions in common, and a ratio of two of independent questions.
                for cell in cells.iter().filter(|it| (it.ratio == 1.0) == (it.common > 0.0)) {
                    let outcome = simulate_pair(cell, RUNS, product_pair);
                    assert_eq!(outcome.point_outside, 0, "{cell:?}");
                    let of = PAIR_FIGURES.iter().zip(outcome.coverage).zip(cell.is_possible());
                    for ((figure, coverage), _) in of.filter(|(_, is_possible)| *is_possible) {
                        assert!(coverage >= MIN_COVERAGE, "{figure} of {cell:?}: {coverage}");
                        figures += 1;
                    }
                }
            }
        }
    }
    assert_eq!(figures, 4 * 160 - 2 * 20);
    // Percentiles of resamples are far too narrow.
    let cell = Cell { questions: 10, accuracy: ACCURACIES[2], energies: Energies::Wide, correlation: 0.0 };
    let cell = PairCell { cell, ratio: 1.0, common: 0.7 };
    let coverage = simulate_pair(&cell, RUNS / 4, bootstrap_pair).coverage;
    assert!(coverage.iter().any(|of| *of < MIN_COVERAGE), "{coverage:?}");
}

#[test]
fn intervals_of_savings_cover_and_contain_their_figure() {
    let mut cells = 0;
    for energies in ENERGIES {
        for questions in [50, 200] {
            for covered in ACCURACIES {
                let all = RouteCell::all_of(questions, energies, covered);
                for cell in
                    all.iter().filter(|it| it.is_possible() && (it.factor == 2.0) == (it.common > 0.0))
                {
                    let mut random = SplitMix64::new(12);
                    let saving = || [product_saving(&cell.draw(&mut random))];
                    let outcome = simulate_figures(RUNS / 2, [cell.truth()], saving);
                    assert_eq!(outcome.point_outside, 0, "{cell:?}");
                    let least = 0.93 - 3.0 * 0.018_04;
                    assert!(outcome.coverage[0] >= least, "{cell:?}: {:?}", outcome.coverage);
                    cells += 1;
                }
            }
        }
    }
    // Of log-normal and capped energies four covered parts of each number of questions, of two-point ones one and two.
    assert_eq!(cells, 4 * (3 * (4 + 4) + 1 + 2));
}

/// Writes a run whose queries begin every `gap_ms`, each question `repeats` times.
fn write_run(run: &Path, questions: usize, repeats: u32, gap_ms: u64, seed: u64) {
    let asked = question::built_in();
    let fingerprint = question::fingerprint(&asked);
    let manifest = Manifest { version: FORMAT_VERSION, fingerprint, ..Manifest::default() };
    let mut dir = RunDir::create(run, &manifest, &asked).unwrap();
    let mut random = SplitMix64::new(seed);
    for at in 0..questions as u64 * u64::from(repeats) {
        let tokens = 5 + random.next_below(50).pow(2) as u64;
        let duration_ns = 200_000_000 + tokens * 2_000_000;
        let share_uj = 2_000_000 + tokens * (20_000 + random.next_below(20_000) as u64);
        let energy = QueryEnergy {
            share_uj: Some(share_uj),
            window_uj: Some(share_uj + random.next_below(share_uj as usize) as u64),
            span_ns: duration_ns + 10_000,
            at_once: 4,
            ..QueryEnergy::default()
        };
        let row = QueryRow {
            id: (at / u64::from(repeats)).to_string(),
            repeat: (at % u64::from(repeats)) as u32,
            score: Some(f64::from(u8::from(random.next_below(600) as u64 > tokens))),
            began_ns: at * gap_ms * 1_000_000,
            duration_ns,
            tokens_out: (at % 5 > 0).then_some(tokens),
            mean_logprob: (at % 3 > 0).then(|| -0.2 - random.next_below(100) as f64 / 300.0),
            energy: Some(energy),
            ..QueryRow::default()
        };
        dir.append_row(&row, &ReplyText::default()).unwrap();
    }
}

fn figures(of: &EfficiencyMetrics) -> [(&'static str, Option<Estimate>); 11] {
    [
        ("accuracy", of.accuracy),
        ("energy_j", of.energy_j),
        ("power_w", of.power_w),
        ("attributed_power_w", of.attributed_power_w),
        ("per_watt", of.per_watt),
        ("per_joule", of.per_joule),
        ("queries_per_kwh", of.queries_per_kwh),
        ("tokens_per_joule", of.tokens_per_joule),
        ("perplexity", of.perplexity),
        ("perplexity_per_watt", of.perplexity_per_watt),
        ("perplexity_per_joule", of.perplexity_per_joule),
    ]
}

#[test]
fn an_independent_script_finds_the_same_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let Some(python) = numpy::python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ipw/recompute_intervals.py");
    // Few and many questions, one at a time and several at once, asked once and repeatedly.
    let runs = [(8, 1, 9_000), (60, 1, 9_000), (60, 1, 150), (30, 3, 100), (300, 1, 9_000)];
    for (at, (questions, repeats, gap_ms)) in runs.into_iter().enumerate() {
        let run = dir.path().join(format!("run-{at}"));
        write_run(&run, questions, repeats, gap_ms, at as u64);
        let options = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included };
        let ours = compute_metrics(&RunTable::read(&run).unwrap(), None, &options);
        let output = Command::new(&python).arg(&script).arg(&run).output().unwrap();
        let theirs: BTreeMap<String, [f64; 2]> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        for (name, figure) in figures(&ours) {
            let interval = figure.unwrap().interval.unwrap();
            for (limit, expected) in [interval.low, interval.high].into_iter().zip(theirs[name]) {
                let near = (limit - expected).abs() <= 1e-9 * expected.abs();
                assert!(near, "{name} of run {at}: {limit}, and not {expected}");
            }
        }
    }
}

#[test]
fn an_independent_script_finds_the_same_intervals_of_two_runs() {
    let dir = tempfile::tempdir().unwrap();
    let Some(python) = numpy::python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ipw/recompute_pairs.py");
    let options = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included };
    // One at a time and several at once, asked once and repeatedly; the second run asks fewer questions.
    let pairs = [(12, 1, 9_000, 9_000), (60, 1, 9_000, 150), (60, 1, 150, 100), (30, 3, 9_000, 100)];
    for (at, (questions, repeats, first_gap_ms, other_gap_ms)) in pairs.into_iter().enumerate() {
        let path = |name: &str| dir.path().join(format!("{name}-{at}"));
        write_run(&path("first"), questions, repeats, first_gap_ms, 100 + at as u64);
        write_run(&path("other"), questions - 2, repeats, other_gap_ms, 200 + at as u64);
        let [first, other] =
            ["first", "other"].map(|name| (name.to_owned(), RunTable::read(&path(name)).unwrap()));
        let output =
            Command::new(&python).arg(&script).args([path("first"), path("other")]).output().unwrap();
        let theirs: BTreeMap<String, [f64; 3]> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let model = |of: &'static str, table| RoutedModel {
            label: of.to_owned(),
            table,
            assumed_j: None,
            active_parameters: None,
            per_million_tokens: None,
        };
        let local = [model("first", &first.1)];
        let routing = evaluate_routing(&local, &model("other", &other.1), &[0.25], &options).unwrap();
        let both = [first, other];
        let paired = compare_runs(&both, &options)[1].paired.unwrap();
        assert_eq!(paired.count, (questions - 2) * repeats as usize);
        let ours = [
            ("accuracy", Some(paired.accuracy)),
            ("energy_j", Some(paired.energy_j)),
            ("power_w", paired.power_w),
            ("per_watt_ratio", paired.per_watt_ratio),
            ("per_joule_ratio", paired.per_joule_ratio),
            ("covered", Some(routing.models[0].covered)),
            ("saving", routing.savings[0].energy),
            ("quarter_of_saving", routing.savings[1].energy),
        ];
        assert_eq!(theirs.len(), ours.len());
        for (name, figure) in ours {
            let Estimate { value, interval } = figure.unwrap();
            let interval = interval.unwrap();
            for (ours, expected) in [value, interval.low, interval.high].into_iter().zip(theirs[name]) {
                let near = (ours - expected).abs() <= 1e-9 * expected.abs();
                assert!(near || ours == expected, "{name} of pair {at}: {ours}, and not {expected}");
            }
        }
    }
}
