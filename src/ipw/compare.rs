//! Runs of the same questions side by side.
//!
//! Owns what may be compared and the paired differences. Two runs are paired query by query, which takes the questions'
//! own difficulty out of the difference. Invariant: runs that differ in what a figure means (questions, scope, grade, idle
//! policy, repeats) are refused unless the user insists, and then the differences are part of the result.

use std::collections::HashMap;

use serde::Serialize;

use super::bootstrap::{Pool, Sums};
use super::metric::{Figure, Figures, Terms, figures};
use super::scope::Idle;
use super::table::{Table, known};

/// What two runs differ in, so that their figures mean different things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// In what.
    pub what: &'static str,
    /// What the first run has.
    pub first: String,
    /// What this one has.
    pub other: String,
}

impl Difference {
    /// Whether it is one of the energies, which tells nothing against scores.
    pub fn is_of_energy(&self) -> bool {
        [GRADE, MACHINE, DOMAINS, IDLE].contains(&self.what)
    }
}

const GRADE: &str = "grade of the energy";
const MACHINE: &str = "machine";
const DOMAINS: &str = "domains in the scope";
const IDLE: &str = "idle power";

/// A run beside the first one.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    /// Its name.
    pub label: String,
    /// Its own figures.
    pub figures: Figures,
    /// What makes it not comparable; empty where it is.
    pub differs: Vec<Difference>,
    /// Against the first run, query by query; absent for the first run itself, and where no query is in both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paired: Option<Paired>,
    /// No other run is both more accurate and cheaper.
    pub on_frontier: bool,
}

/// Differences (this run minus the first) over the queries that both cover.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// How many queries.
    pub count: usize,
    /// Of the accuracies.
    pub accuracy: Figure,
    /// Of the mean energies, in joules.
    pub energy_j: Figure,
    /// Of the machine's mean powers while a query was open, in watts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Figure>,
    /// This run's IPW over the first one's.
    pub per_watt_ratio: Option<Figure>,
    /// This run's IPJ over the first one's.
    pub per_joule_ratio: Option<Figure>,
}

/// Puts runs side by side, the first one as the measure of the others.
pub fn compare(runs: &[(String, Table)], terms: &Terms) -> Vec<Column> {
    let Some((_, first)) = runs.first() else { return Vec::new() };
    let mut columns: Vec<Column> = runs
        .iter()
        .enumerate()
        .map(|(place, (label, table))| Column {
            label: label.clone(),
            figures: figures(table, None, terms),
            differs: differences(first, table, terms),
            paired: if place == 0 { None } else { paired(first, table, terms) },
            on_frontier: false,
        })
        .collect();
    let points: Vec<Option<(f64, f64)>> = columns.iter().map(|column| point(&column.figures)).collect();
    for (column, own) in columns.iter_mut().zip(&points) {
        column.on_frontier = own.is_some_and(|own| points.iter().flatten().all(|other| !beats(*other, own)));
    }
    columns
}

/// Accuracy and power: the frontier's plane.
fn point(figures: &Figures) -> Option<(f64, f64)> {
    Some((figures.accuracy?.value, figures.power_w?.value))
}

/// At least as good in both and better in one.
fn beats((accuracy, power): (f64, f64), (than_accuracy, than_power): (f64, f64)) -> bool {
    accuracy >= than_accuracy && power <= than_power && (accuracy > than_accuracy || power < than_power)
}

/// What a run has under a name.
type Told<'a> = (&'static str, &'a dyn Fn(&Table) -> String);

/// What makes two runs not comparable.
pub fn differences(first: &Table, other: &Table, terms: &Terms) -> Vec<Difference> {
    let text = |of: &dyn Fn(&Table) -> String, what| {
        let (first, other) = (of(first), of(other));
        (first != other).then_some(Difference { what, first, other })
    };
    let grade = |table: &Table| match figures_grade(table, terms) {
        Some(grade) => format!("{grade:?}").to_lowercase(),
        None => "unknown".into(),
    };
    let kinds = |table: &Table| {
        let domains = &table.manifest.domains;
        let mut kinds: Vec<String> =
            terms.scope.domains(domains).into_iter().map(|at| format!("{:?}", domains[at].kind)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        if kinds.is_empty() { "none".into() } else { kinds.join(" + ").to_lowercase() }
    };
    let idle = |table: &Table| match terms.idle {
        Idle::Included => String::new(),
        Idle::Excluded => table.manifest.idle.clone(),
    };
    let machine = |table: &Table| {
        let simulated = table.manifest.is_simulated();
        if simulated { "simulated".into() } else { "real".to_owned() }
    };
    let all: [Told; 6] = [
        ("questions", &|table| table.manifest.fingerprint.clone()),
        ("times asked", &|table| table.manifest.repeats.to_string()),
        (GRADE, &grade),
        (MACHINE, &machine),
        (DOMAINS, &kinds),
        (IDLE, &idle),
    ];
    all.into_iter().filter_map(|(what, of)| text(of, what)).collect()
}

fn figures_grade(table: &Table, terms: &Terms) -> Option<crate::domain::Grade> {
    terms.scope.grade(&table.manifest.domains).or_else(|| table.columns.grade.iter().flatten().max().copied())
}

/// The score, energy and power of a covered query; a power that is not known is `NaN`.
fn query(table: &Table, at: usize, terms: &Terms) -> Option<[f64; 3]> {
    let (columns, Terms { scope, idle, .. }) = (&table.columns, *terms);
    known(columns.attributed_watts(scope, idle)(at))?;
    Some([known(columns.score[at])?, columns.joules(scope, idle)(at), columns.watts(scope, idle)(at)])
}

/// The places of a run's complete queries, and what they tell.
fn complete(table: &Table, terms: &Terms) -> impl Iterator<Item = (usize, [f64; 3])> {
    (0..table.columns.len()).filter_map(move |at| Some((at, query(table, at, terms)?)))
}

fn paired(first: &Table, other: &Table, terms: &Terms) -> Option<Paired> {
    let ours: HashMap<u64, [f64; 3]> =
        complete(first, terms).map(|(at, of)| (first.columns.key(at), of)).collect();
    let rows: Vec<(u64, [f64; 6])> = complete(other, terms)
        .filter_map(|(at, [score, energy, power])| {
            let [was_score, was_energy, was_power] = ours.get(&other.columns.key(at))?;
            let both = [*was_score, *was_energy, *was_power, score, energy, power];
            Some((other.columns.question(at), both))
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let count = rows.len();
    let pool = Pool::of_queries(count, rows.into_iter(), other.columns.repeated(), terms.seed);
    let of = |sums: &Sums<6>| {
        let [was_score, was_energy, was_power, score, energy, power] = sums.of;
        let mean = |sum: f64| sum / sums.count;
        // The counts are equal, so that ratios of sums are ratios of means.
        let gain = |cost: f64, was_cost: f64| (score / cost) / (was_score / was_cost);
        [
            mean(score - was_score),
            mean(energy - was_energy),
            mean(power - was_power),
            gain(power, was_power),
            gain(energy, was_energy),
        ]
    };
    let (values, intervals) = (of(pool.total()), pool.intervals(terms.seed, of));
    let figure = |at: usize| Figure { value: values[at], interval: intervals[at] };
    let if_known = |at: usize| values[at].is_finite().then(|| figure(at));
    Some(Paired {
        count,
        accuracy: figure(0),
        energy_j: figure(1),
        power_w: if_known(2),
        per_watt_ratio: if_known(3),
        per_joule_ratio: if_known(4),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::question;
    use super::super::row::{Energy, Row, Text};
    use super::super::run_dir::{Manifest, RunDir, VERSION};
    use super::super::scope::{Meter, Scope};
    use super::*;
    use crate::domain::{Grade, Kind};

    pub const TERMS: Terms = Terms { scope: Scope::Host, idle: Idle::Included, seed: 1 };

    /// A run with these scores, each query of this energy over one second.
    pub fn run(scores: &[f64], joules: f64, change: impl FnOnce(&mut Manifest)) -> Table {
        repeated(1, scores, joules, change)
    }

    /// The same, asked so many times with the same outcome.
    pub fn repeated(times: u32, scores: &[f64], joules: f64, change: impl FnOnce(&mut Manifest)) -> Table {
        let dir = tempfile::tempdir().unwrap();
        let questions = question::starter();
        let meter = Meter {
            name: "package-0".into(),
            kind: Kind::Package,
            source: "replay".into(),
            device: None,
            parent: None,
            counted: true,
            grade: Grade::Measured,
            update_interval_ns: None,
        };
        let fingerprint = question::fingerprint(&questions);
        let mut manifest =
            Manifest { version: VERSION, fingerprint, domains: vec![meter], ..Manifest::default() };
        let mut run = RunDir::begin(dir.path(), &manifest, &questions).unwrap();
        let all = (0..times).flat_map(|repeat| (0..scores.len()).map(move |id| (id, repeat)));
        for (id, repeat) in all {
            let share_uj = Some((joules * 1e6) as u64 + id as u64);
            let (error_uj, idle_uj) = (Some(100_000), Some(500_000));
            let span_ns = 1_000_000_000;
            let grade = Some(Grade::Measured);
            let energy =
                Energy { share_uj, error_uj, idle_uj, span_ns, grade, at_once: 1, ..Energy::default() };
            let tokens = Some(10);
            let row = Row {
                id: id.to_string(),
                repeat,
                score: Some(scores[id]),
                energy: Some(energy),
                tokens_in: tokens,
                tokens_out: tokens,
                ..Row::default()
            };
            run.add(&row, &Text::default()).unwrap();
        }
        change(&mut manifest);
        std::fs::write(dir.path().join("run.json"), serde_json::to_string(&manifest).unwrap()).unwrap();
        Table::read(dir.path()).unwrap()
    }

    #[test]
    fn pairs_take_the_questions_difficulty_out_of_the_difference() {
        let hard: Vec<f64> = (0..40).map(|id| f64::from(id % 2)).collect();
        let better: Vec<f64> = (0..40).map(|id| f64::from(u8::from(id % 2 == 1 || id % 8 == 0))).collect();
        let runs = [("a".into(), run(&hard, 2.0, |_| ())), ("b".into(), run(&better, 1.0, |_| ()))];
        let columns = compare(&runs, &TERMS);
        assert!(columns[1].differs.is_empty() && columns[0].paired.is_none());
        let paired = columns[1].paired.unwrap();
        assert_eq!((paired.count, paired.accuracy.value), (40, 5.0 / 40.0));
        let interval = paired.accuracy.interval.unwrap();
        assert!(interval.low > 0.0 && interval.high < 0.26, "{interval:?}");
        assert!((paired.energy_j.value + 1.0).abs() < 1e-9);
        assert!((paired.per_joule_ratio.unwrap().value - 2.5).abs() < 1e-3);
        assert!(!columns[0].on_frontier && columns[1].on_frontier);
    }

    #[test]
    fn asking_the_same_questions_again_makes_no_difference_more_certain() {
        let (low, high): (Vec<f64>, Vec<f64>) =
            (0..50).map(|id| (f64::from(id % 2), f64::from(u8::from(id % 3 > 0)))).unzip();
        let of = |times| {
            paired(&repeated(times, &low, 2.0, |_| ()), &repeated(times, &high, 1.0, |_| ()), &TERMS).unwrap()
        };
        let (once, ten) = (of(1), of(10));
        assert_eq!((once.count, ten.count), (50, 500));
        for (one, other) in [
            (once.accuracy, ten.accuracy),
            (once.energy_j, ten.energy_j),
            (once.per_joule_ratio.unwrap(), ten.per_joule_ratio.unwrap()),
        ] {
            let (one, other) = (one.interval.unwrap(), other.interval.unwrap());
            assert!((one.low - other.low).abs() < 1e-9 && (one.high - other.high).abs() < 1e-9);
        }
    }

    #[test]
    fn what_is_not_comparable_is_named() {
        let first = run(&[1.0, 0.0], 2.0, |_| ());
        let other = run(&[1.0, 0.0], 2.0, |manifest| {
            manifest.fingerprint = "another".into();
            manifest.domains[0].grade = Grade::Estimated;
            manifest.domains[0].kind = Kind::Cpu;
            manifest.repeats = 3;
        });
        let named: Vec<&str> = differences(&first, &other, &TERMS).iter().map(|it| it.what).collect();
        assert_eq!(named, ["questions", "times asked", "grade of the energy", "domains in the scope"]);
        assert!(differences(&first, &first, &TERMS).is_empty());
    }

    #[test]
    fn runs_that_share_nothing_have_no_difference_and_a_model_that_knows_nothing_no_ratio() {
        let (none, all) = (run(&[0.0; 5], 1.0, |_| ()), run(&[1.0; 5], 1.0, |_| ()));
        assert_eq!(paired(&none, &all, &TERMS).unwrap().per_watt_ratio, None);
        assert!(paired(&all, &run(&[], 1.0, |_| ()), &TERMS).is_none());
    }
}
