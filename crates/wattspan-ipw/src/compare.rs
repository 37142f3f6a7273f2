//! Comparison of runs of the same questions.
//!
//! Runs are paired query by query, which removes the difficulty of the questions from the differences. Invariant: runs
//! that differ in the meaning of a figure (questions, repeats, concurrency or request rate, interface, answer limit,
//! temperature, system prompt, idle policy) are refused unless the user forces the comparison; the mismatches are then part
//! of the result. Machines may differ: comparing them is the purpose.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use wattspan_client::domain::Grade;

use super::bootstrap::ConfidenceInterval;
use super::estimates::{ENERGY, Figure, POWER};
use super::meter_error::{widen_difference, widen_relative};
use super::metrics::{
    EfficiencyMetrics, Estimate, MIN_COVERAGE, MetricOptions, compute_metrics, covered_figures,
};
use super::paired_intervals::{PairedQuery, PairedSample};
use super::run_settings::{API, EXTRA_BODY, MAX_TOKENS, SYSTEM_PROMPT, TEMPERATURE, describe_workload};
use super::scope::IdlePolicy;
use super::table::{RunTable, known};

/// A property in which two runs differ, so that their figures are not comparable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The name of the property.
    pub what: &'static str,
    /// Its value in the first run.
    pub first: String,
    /// Its value in this run.
    pub other: String,
}

impl Difference {
    /// Whether the mismatch concerns energy only and leaves scores comparable.
    pub fn is_energy_related(&self) -> bool {
        [GRADE, MACHINE, IDLE, WORKLOAD].contains(&self.what)
    }
}

const GRADE: &str = "grade of the energy";
const MACHINE: &str = "machine";
const WORKLOAD: &str = "concurrency";
const IDLE: &str = "idle power";

/// One run of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct ComparedRun {
    pub label: String,
    /// The run's own figures.
    pub figures: EfficiencyMetrics,
    /// Mismatches with the first run; empty if comparable.
    pub differs: Vec<Difference>,
    /// Paired differences from the first run; absent for the first run itself and if no query is in both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paired: Option<PairedDifference>,
    /// Whether the run is Pareto-optimal: no other run is at least as good in accuracy and power and better in one.
    pub on_frontier: bool,
}

/// Paired differences (this run minus the first) over the queries that both cover.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PairedDifference {
    /// The number of paired queries.
    pub count: usize,
    /// Whether these are less than [`MIN_COVERAGE`] of the queries of either run.
    pub partial: bool,
    /// Difference of the accuracies.
    pub accuracy: Estimate,
    /// Difference of the mean energies, joules.
    pub energy_j: Estimate,
    /// The interval of `energy_j` widened by both runs' guaranteed errors of the meter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_combined_j: Option<ConfidenceInterval>,
    /// Difference of the machine's mean powers while a query was open, watts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Estimate>,
    /// The interval of `power_w` widened in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_combined_w: Option<ConfidenceInterval>,
    /// Ratio of this run's IPW to the first run's.
    pub per_watt_ratio: Option<Estimate>,
    /// The interval of `per_watt_ratio` widened in the same way; without an upper bound (null in JSON) if an error is 100 %
    /// or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_watt_ratio_combined: Option<ConfidenceInterval>,
    /// Ratio of this run's IPJ to the first run's.
    pub per_joule_ratio: Option<Estimate>,
    /// The interval of `per_joule_ratio` widened in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_joule_ratio_combined: Option<ConfidenceInterval>,
    /// The number of questions from which the intervals hold, if there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions_needed: Option<usize>,
}

impl ComparedRun {
    /// Removes IPW and IPJ, and their ratios, where they are over too few of the queries.
    pub fn withhold_if_partial(&mut self) {
        self.figures.withhold_if_partial();
        if let Some(paired) = self.paired.as_mut().filter(|paired| paired.partial) {
            (paired.per_watt_ratio, paired.per_joule_ratio) = (None, None);
            (paired.per_watt_ratio_combined, paired.per_joule_ratio_combined) = (None, None);
        }
    }
}

/// Compares runs with the first one.
pub fn compare_runs(runs: &[(String, RunTable)], options: &MetricOptions) -> Vec<ComparedRun> {
    let Some((_, first)) = runs.first() else { return Vec::new() };
    let mut compared: Vec<ComparedRun> = runs
        .iter()
        .enumerate()
        .map(|(index, (label, table))| ComparedRun {
            label: label.clone(),
            figures: compute_metrics(table, None, options),
            differs: differences(first, table, options),
            paired: if index == 0 { None } else { paired_difference(first, table, options) },
            on_frontier: false,
        })
        .collect();
    let first_asked = compared.first().map_or(0, |run| run.figures.asked);
    for run in &mut compared {
        let asked = run.figures.asked.max(first_asked) as f64;
        if let Some(paired) = &mut run.paired {
            paired.partial = (paired.count as f64) < MIN_COVERAGE * asked;
        }
    }
    let points: Vec<Option<(f64, f64)>> = compared.iter().map(|run| frontier_point(&run.figures)).collect();
    for (run, point) in compared.iter_mut().zip(&points) {
        run.on_frontier = point
            .is_some_and(|point| points.iter().flatten().all(|other_point| !dominates(*other_point, point)));
    }
    compared
}

/// Accuracy and power: the axes of the Pareto frontier.
fn frontier_point(metrics: &EfficiencyMetrics) -> Option<(f64, f64)> {
    Some((metrics.accuracy?.value, metrics.power_w?.value))
}

/// Returns whether a point is at least as good in both axes and better in one.
fn dominates((accuracy, power): (f64, f64), (than_accuracy, than_power): (f64, f64)) -> bool {
    accuracy >= than_accuracy && power <= than_power && (accuracy > than_accuracy || power < than_power)
}

/// A property of a run with its name.
type ComparedProperty<'a> = (&'static str, &'a dyn Fn(&RunTable) -> String);

/// Returns the mismatches between two runs.
pub fn differences(first: &RunTable, other: &RunTable, options: &MetricOptions) -> Vec<Difference> {
    let difference = |of: &dyn Fn(&RunTable) -> String, what| {
        let (first, other) = (of(first), of(other));
        (first != other).then_some(Difference { what, first, other })
    };
    // Sensors differ between machines; a model of the load is no measurement of it.
    let grade = |table: &RunTable| match energy_grade(table, options) {
        Some(Grade::Estimated) => "estimated".to_owned(),
        Some(_) => "measured".into(),
        None => "unknown".into(),
    };
    let idle = |table: &RunTable| match options.idle {
        IdlePolicy::Included => String::new(),
        IdlePolicy::Excluded => table.manifest.idle.clone(),
    };
    let machine = |table: &RunTable| {
        let simulated = table.manifest.is_simulated();
        if simulated { "simulated".into() } else { "real".to_owned() }
    };
    let all: [ComparedProperty; 5] = [
        ("questions", &|table| table.manifest.fingerprint.clone()),
        ("times asked", &|table| table.manifest.repeats.to_string()),
        (GRADE, &grade),
        (MACHINE, &machine),
        (IDLE, &idle),
    ];
    let of_settings = SETTINGS.iter().filter_map(|(what, of)| {
        // An imported run may not have its settings.
        let (first, other) = (of(&first.manifest.settings)?, of(&other.manifest.settings)?);
        (first != other).then_some(Difference { what, first, other })
    });
    all.into_iter().filter_map(|(what, of)| difference(of, what)).chain(of_settings).collect()
}

/// Reads a setting of a run; `None` if the run has no settings.
type ReadSetting = fn(&BTreeMap<String, String>) -> Option<String>;

/// The settings that change the meaning of a figure, each with its name in messages.
const SETTINGS: [(&str, ReadSetting); 6] = [
    (WORKLOAD, describe_workload),
    ("interface", |settings| settings.get(API).cloned()),
    ("answer limit", |settings| settings.get(MAX_TOKENS).map(|tokens| format!("{tokens} tokens"))),
    ("temperature", |settings| settings.get(TEMPERATURE).cloned()),
    ("system prompt", |settings| {
        // A run without a system prompt stores none.
        settings.get(API)?;
        Some(settings.get(SYSTEM_PROMPT).map_or("none".to_owned(), |prompt| format!("{prompt:?}")))
    }),
    ("extra body", |settings| {
        settings.get(API)?;
        Some(settings.get(EXTRA_BODY).map_or("none".to_owned(), Clone::clone))
    }),
];

fn energy_grade(table: &RunTable, options: &MetricOptions) -> Option<Grade> {
    options
        .scope
        .grade(&table.manifest.domains)
        .or_else(|| table.columns.grade.iter().flatten().max().copied())
}

/// A covered query: what is compared, and the meter's errors of energy and power; what is unknown is `NaN`.
#[derive(Clone, Copy)]
struct CoveredQuery {
    open_s: [f64; 2],
    /// Score, joules, watts.
    values: [f64; 3],
    error_j: f64,
    error_w: f64,
}

/// Returns a run's covered queries with their indices.
fn covered_queries(table: &RunTable, options: &MetricOptions) -> impl Iterator<Item = (usize, CoveredQuery)> {
    let (columns, scope) = (&table.columns, options.scope);
    let (covered, watts) = (covered_figures(columns, options), columns.power_w(scope, options.idle));
    let (error_j, error_w) = (columns.scope_columns(scope).error, columns.power_error_w(scope));
    (0..columns.len()).filter_map(move |at| {
        let [score, joules, _] = covered(at)?;
        let (values, open_s) = ([score, joules, watts(at)], columns.open_s(at));
        Some((at, CoveredQuery { open_s, values, error_j: error_j[at], error_w: error_w(at) }))
    })
}

fn paired_difference(
    first: &RunTable,
    other: &RunTable,
    options: &MetricOptions,
) -> Option<PairedDifference> {
    let first_queries: HashMap<u64, CoveredQuery> =
        covered_queries(first, options).map(|(at, of)| (first.columns.query_hash(at), of)).collect();
    let (mut errors_j, mut errors_w) = ([0.0; 2], [0.0; 2]);
    let queries: Vec<PairedQuery> = covered_queries(other, options)
        .filter_map(|(at, query)| {
            let both = [*first_queries.get(&other.columns.query_hash(at))?, query];
            errors_j.iter_mut().zip(both).for_each(|(sum, of)| *sum += of.error_j);
            errors_w.iter_mut().zip(both).for_each(|(sum, of)| *sum += of.error_w);
            Some(PairedQuery {
                question: other.columns.question_hash(at),
                open_s: both.map(|of| of.open_s),
                values: both.map(|of| of.values),
            })
        })
        .collect();
    if queries.is_empty() {
        return None;
    }
    let count = queries.len();
    let sample = PairedSample::new(&queries, other.columns.has_repeats());
    let estimate = |(value, interval): Figure| Estimate { value, interval };
    let if_known = |figure: Figure| figure.0.is_finite().then(|| estimate(figure));
    let sum = |run: usize, cost: usize| queries.iter().map(|query| query.values[run][cost]).sum::<f64>();
    let relative =
        |errors: [f64; 2], cost: usize| [0, 1].map(|run| known(errors[run] / sum(run, cost).abs()));
    let offset = |errors: [f64; 2]| known((errors[0] + errors[1]) / count as f64);
    let (energy_j, power_w) = (sample.cost_difference(ENERGY), sample.cost_difference(POWER));
    let (per_watt, per_joule) = (sample.efficiency_ratio(POWER), sample.efficiency_ratio(ENERGY));
    Some(PairedDifference {
        count,
        partial: false,
        accuracy: estimate(sample.score_difference()),
        energy_j: estimate(energy_j),
        energy_combined_j: widen_difference(energy_j.1, offset(errors_j)),
        power_w: if_known(power_w),
        power_combined_w: widen_difference(power_w.1, offset(errors_w)),
        per_watt_ratio: if_known(per_watt),
        per_watt_ratio_combined: widen_relative(per_watt.1, relative(errors_w, POWER)),
        per_joule_ratio: if_known(per_joule),
        per_joule_ratio_combined: widen_relative(per_joule.1, relative(errors_j, ENERGY)),
        questions_needed: sample.questions_needed(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use wattspan_client::domain::DomainKind;

    use super::super::question;
    use super::super::row::{QueryEnergy, QueryRow, ReplyText};
    use super::super::run_dir::{FORMAT_VERSION, Manifest, RunDir};
    use super::super::scope::{RunDomain, Scope};
    use super::*;

    pub const OPTIONS: MetricOptions = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included };

    /// Builds a run with these scores; each query uses this energy over one second.
    pub fn run(scores: &[f64], joules: f64, change: impl FnOnce(&mut Manifest)) -> RunTable {
        repeated(1, scores, joules, change)
    }

    /// The same with each question repeated and the same outcome in each repeat.
    pub fn repeated(times: u32, scores: &[f64], joules: f64, change: impl FnOnce(&mut Manifest)) -> RunTable {
        let dir = tempfile::tempdir().unwrap();
        let questions = question::built_in();
        let domain = RunDomain {
            name: "package-0".into(),
            kind: DomainKind::Package,
            source: "replay".into(),
            device: None,
            parent: None,
            counted: true,
            grade: Grade::Measured,
            update_interval_ns: None,
        };
        let fingerprint = question::fingerprint(&questions);
        let mut manifest =
            Manifest { version: FORMAT_VERSION, fingerprint, domains: vec![domain], ..Manifest::default() };
        let mut run = RunDir::create(dir.path(), &manifest, &questions).unwrap();
        let all = (0..times).flat_map(|repeat| (0..scores.len()).map(move |id| (id, repeat)));
        for (id, repeat) in all {
            let share_uj = Some((joules * 1e6) as u64 + id as u64);
            let (error_uj, idle_uj) = (Some(100_000), Some(500_000));
            let span_ns = 1_000_000_000;
            let grade = Some(Grade::Measured);
            let energy = QueryEnergy {
                share_uj,
                error_uj,
                idle_uj,
                span_ns,
                grade,
                at_once: 1,
                ..QueryEnergy::default()
            };
            let tokens = Some(10);
            let row = QueryRow {
                id: id.to_string(),
                repeat,
                score: Some(scores[id]),
                energy: Some(energy),
                tokens_in: tokens,
                tokens_out: tokens,
                ..QueryRow::default()
            };
            run.append_row(&row, &ReplyText::default()).unwrap();
        }
        change(&mut manifest);
        std::fs::write(dir.path().join("run.json"), serde_json::to_string(&manifest).unwrap()).unwrap();
        RunTable::read(dir.path()).unwrap()
    }

    #[test]
    fn paired_differences_remove_question_difficulty() {
        let hard: Vec<f64> = (0..40).map(|id| f64::from(id % 2)).collect();
        let better: Vec<f64> = (0..40).map(|id| f64::from(u8::from(id % 2 == 1 || id % 8 == 0))).collect();
        let runs = [("a".into(), run(&hard, 2.0, |_| ())), ("b".into(), run(&better, 1.0, |_| ()))];
        let columns = compare_runs(&runs, &OPTIONS);
        assert!(columns[1].differs.is_empty() && columns[0].paired.is_none());
        let paired = columns[1].paired.unwrap();
        assert_eq!((paired.count, paired.accuracy.value), (40, 5.0 / 40.0));
        let interval = paired.accuracy.interval.unwrap();
        assert!(interval.low > 0.0 && interval.high < 0.26, "{interval:?}");
        assert!((paired.energy_j.value + 1.0).abs() < 1e-9);
        assert!((paired.per_joule_ratio.unwrap().value - 2.5).abs() < 1e-3);
        assert!(!columns[0].on_frontier && columns[1].on_frontier);
        // The meter knows 2 J and 1 J to 0.1 J each.
        let (energy, both) = (paired.energy_j.interval.unwrap(), paired.energy_combined_j.unwrap());
        assert!((energy.low - both.low - 0.2).abs() < 1e-9 && (both.high - energy.high - 0.2).abs() < 1e-9);
        let (ratio, both) =
            (paired.per_joule_ratio.unwrap().interval.unwrap(), paired.per_joule_ratio_combined.unwrap());
        assert!((ratio.high / both.high - 0.9 / 1.05).abs() < 1e-4, "{ratio:?} {both:?}");
        assert!((ratio.low / both.low - 1.1 / 0.95).abs() < 1e-4, "{ratio:?} {both:?}");
    }

    #[test]
    fn ratios_over_too_few_paired_queries_are_withheld() {
        let runs = [("a".into(), run(&[1.0; 40], 2.0, |_| ())), ("b".into(), run(&[1.0; 37], 1.0, |_| ()))];
        let mut compared = compare_runs(&runs, &OPTIONS);
        let paired = compared[1].paired.unwrap();
        assert!(paired.partial && paired.per_watt_ratio.is_some());
        compared.iter_mut().for_each(ComparedRun::withhold_if_partial);
        let paired = compared[1].paired.unwrap();
        assert_eq!((paired.per_watt_ratio, paired.per_joule_ratio), (None, None));
        assert!(compared[1].figures.per_watt.is_some(), "the run itself is complete");
    }

    #[test]
    fn repeats_do_not_narrow_the_paired_interval() {
        let (low, high): (Vec<f64>, Vec<f64>) =
            (0..50).map(|id| (f64::from(id % 2), f64::from(u8::from(id % 3 > 0)))).unzip();
        let of = |times| {
            paired_difference(
                &repeated(times, &low, 2.0, |_| ()),
                &repeated(times, &high, 1.0, |_| ()),
                &OPTIONS,
            )
            .unwrap()
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
    fn incomparable_settings_are_named() {
        let first = run(&[1.0, 0.0], 2.0, |_| ());
        let other = run(&[1.0, 0.0], 2.0, |manifest| {
            manifest.fingerprint = "another".into();
            manifest.domains[0].grade = Grade::Estimated;
            manifest.repeats = 3;
        });
        let named: Vec<&str> = differences(&first, &other, &OPTIONS).iter().map(|it| it.what).collect();
        assert_eq!(named, ["questions", "times asked", "grade of the energy"]);
        assert!(differences(&first, &first, &OPTIONS).is_empty());
    }

    #[test]
    fn settings_that_change_a_figure_are_named_and_machines_may_differ() {
        let with = |changes: &[(&str, &str)]| {
            let mut settings = BTreeMap::from(
                [("at once", "1"), ("interface", "chat"), ("most tokens", "512"), ("temperature", "0")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
            settings.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            run(&[1.0, 0.0], 2.0, |manifest| manifest.settings = settings)
        };
        let first = with(&[]);
        for (name, value, what) in [
            ("at once", "4", "concurrency"),
            ("interface", "ollama", "interface"),
            ("most tokens", "64", "answer limit"),
            ("temperature", "0.7", "temperature"),
            ("system prompt", "Be short.", "system prompt"),
        ] {
            let named = differences(&first, &with(&[(name, value)]), &OPTIONS);
            assert_eq!(named.iter().map(|it| it.what).collect::<Vec<_>>(), [what]);
        }
        // The label of the seed, the retries and the timeout do not change the meaning of a figure.
        assert!(differences(&first, &with(&[("seed", "7"), ("retries", "9")]), &OPTIONS).is_empty());
        let other_machine = run(&[1.0, 0.0], 2.0, |manifest| {
            manifest.domains[0].kind = DomainKind::Soc;
            manifest.domains[0].grade = Grade::Modelled;
            manifest.machine = "another".into();
        });
        let same_settings = run(&[1.0, 0.0], 2.0, |_| ());
        assert!(differences(&same_settings, &other_machine, &OPTIONS).is_empty());
        assert!(differences(&first, &other_machine, &OPTIONS).is_empty(), "an imported run has no settings");
    }

    #[test]
    fn ratios_keep_their_interval_where_few_answers_are_right() {
        let right =
            |count: usize| -> Vec<f64> { (0..12).map(|id| f64::from(u8::from(id < count))).collect() };
        let of = |first: usize, other: usize| {
            let (first, other) = (run(&right(first), 2.0, |_| ()), run(&right(other), 1.0, |_| ()));
            let paired = paired_difference(&first, &other, &OPTIONS).unwrap();
            paired.per_joule_ratio.map(|ratio| (ratio.value, ratio.interval.unwrap()))
        };
        // Two of twelve: a tenth of the resamples of a bootstrap have none of them.
        let (value, interval) = of(6, 2).unwrap();
        assert!(interval.low > 0.0 && interval.low < value && value < interval.high, "{interval:?}");
        assert!(interval.high > 1.0 && interval.high < 3.0, "{interval:?}");
        let (value, interval) = of(2, 6).unwrap();
        assert!(interval.low > 1.0 && interval.low < value && interval.high.is_finite(), "{interval:?}");
        let (value, interval) = of(6, 0).unwrap();
        assert!(value == 0.0 && interval.low == 0.0 && (0.5..3.0).contains(&interval.high), "{interval:?}");
        // The first model may be unable to answer any of the kind.
        assert_eq!(of(1, 6).unwrap().1.high, f64::INFINITY);
        assert_eq!(of(0, 6), None);
    }

    #[test]
    fn disjoint_runs_have_no_paired_difference() {
        let (none, all) = (run(&[0.0; 5], 1.0, |_| ()), run(&[1.0; 5], 1.0, |_| ()));
        assert_eq!(paired_difference(&none, &all, &OPTIONS).unwrap().per_watt_ratio, None);
        assert!(paired_difference(&all, &run(&[], 1.0, |_| ()), &OPTIONS).is_none());
    }
}
