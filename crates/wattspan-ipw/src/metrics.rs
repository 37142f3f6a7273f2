//! Intelligence per watt (IPW) and per joule (IPJ).
//!
//! All figures are ratios of means over the same queries (*Intelligence per Watt*, arXiv 2511.07885, section 3): those
//! that were answered and scored and whose energy in the scope is known (`covered` of `asked`). Power is the machine's
//! power in the scope while a query was open, so it does not depend on the number of concurrent queries. Attributed
//! power is a query's share over its time. Invariant: a figure has its confidence interval if one can be computed, and
//! no figure is computed over an empty set.

use serde::{Deserialize, Serialize};
use wattspan_client::domain::Grade;

use super::bootstrap::ConfidenceInterval;
use super::estimates::{
    ATTRIBUTED_POWER, ENERGY, Figure, LOGPROB, POWER, QuerySample, QueryValues, SCORE, TOKENS, VALUE_COUNT,
    figures,
};
use super::intervals::{IntervalSample, SampleQuery};
use super::scope::{IdlePolicy, Scope};
use super::table::{QueryColumns, RunTable, known};

/// A figure with its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The figure over all queries.
    pub value: f64,
    /// The 95 % confidence interval over the choice of questions; repeats do not make it narrower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<ConfidenceInterval>,
}

/// Options of the computation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricOptions {
    /// The scope of the energies.
    pub scope: Scope,
    /// Whether idle power is included.
    pub idle: IdlePolicy,
    /// The seed of the bootstrap, for comparisons and routes.
    pub seed: u64,
}

/// The figures over a set of queries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EfficiencyMetrics {
    /// The subject of the queries, or "all".
    pub of: String,
    /// The scope of the energies.
    pub scope: Scope,
    /// Whether idle power is included.
    pub idle: IdlePolicy,
    /// The worst grade among the queries' energies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Whether the run's machine was simulated (replayed from a file), whatever the grade.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// Queries in the run.
    pub asked: usize,
    /// Number of answered queries.
    pub answered: usize,
    /// Number of answered queries with a score.
    pub scored: usize,
    /// Number of scored queries with a known energy; the figures are over these.
    pub covered: usize,
    /// Fraction of the covered queries that are correct; of the scored ones if none is covered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Estimate>,
    /// Mean energy of a query, joules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_j: Option<Estimate>,
    /// Guaranteed error of `energy_j`, independent of the choice of questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_error_j: Option<f64>,
    /// Mean power of the machine in the scope while a query was open, watts; absent if unknown for a covered query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Estimate>,
    /// Guaranteed error of `power_w`, independent of the choice of questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_error_w: Option<f64>,
    /// Number of covered queries whose power is unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub without_power: usize,
    /// Mean attributed power, watts: a query's share over the time that its span was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributed_power_w: Option<Estimate>,
    /// IPW: accuracy / `power_w`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_watt: Option<Estimate>,
    /// IPJ: accuracy / mean energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_joule: Option<Estimate>,
    /// The number of questions from which the intervals hold, if there are fewer: rare expensive questions may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions_needed: Option<usize>,
    /// Output tokens per joule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_joule: Option<Estimate>,
    /// Queries per kilowatt-hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries_per_kwh: Option<Estimate>,
    /// Perplexity of the answers, exp(-mean log-probability), if the server reports log-probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Estimate>,
    /// 1 / (perplexity × mean power).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_per_watt: Option<Estimate>,
    /// 1 / (perplexity × mean energy).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_per_joule: Option<Estimate>,
}

/// Computes the figures over the queries of one subject, or over all.
pub fn compute_metrics(table: &RunTable, subject: Option<u32>, options: &MetricOptions) -> EfficiencyMetrics {
    let columns = &table.columns;
    let Some(subject) = subject else { return compute_metrics_over(table, "all", 0..columns.len(), options) };
    let chosen = (0..columns.len()).filter(|at| columns.subject[*at] == subject);
    compute_metrics_over(table, &table.subjects[subject as usize], chosen, options)
}

/// Computes the figures over the queries at `indices`.
pub fn compute_metrics_over(
    table: &RunTable,
    name: &str,
    indices: impl Iterator<Item = usize> + Clone,
    options: &MetricOptions,
) -> EfficiencyMetrics {
    let columns = &table.columns;
    let tally = tally_queries(columns, indices.clone(), options);
    let QueryTally { asked, answered, scored, covered, .. } = tally;
    let mut metrics = empty_metrics(name.to_owned(), options, [asked, answered, scored, covered]);
    // A scope's domains may have another grade than the host's total; the manifest has their grades.
    metrics.grade =
        if options.scope == Scope::Host { tally.grade } else { options.scope.grade(&table.manifest.domains) };
    metrics.simulated = table.manifest.is_simulated();
    if covered == 0 {
        metrics.accuracy = scored_accuracy(table, indices);
        return metrics;
    }
    metrics.energy_error_j = known(tally.error_j / covered as f64);
    metrics.power_error_w = known(tally.error_w / covered as f64);
    metrics.without_power = tally.without_power;
    let sample = QuerySample::new(sample_queries(columns, indices, options), columns.has_repeats());
    set_estimates(&mut metrics, &sample);
    metrics
}

/// Counts and sums over a set of queries; all after `scored` are of the covered queries.
#[derive(Default)]
struct QueryTally {
    asked: usize,
    answered: usize,
    scored: usize,
    covered: usize,
    without_power: usize,
    grade: Option<Grade>,
    /// Sums of the guaranteed errors; `NaN` if a query has none, since then the mean has none either.
    error_j: f64,
    error_w: f64,
}

fn tally_queries(
    columns: &QueryColumns,
    indices: impl Iterator<Item = usize>,
    options: &MetricOptions,
) -> QueryTally {
    let covered = covered_figures(columns, options);
    let watts = columns.power_w(options.scope, options.idle);
    let share_error = columns.scope_columns(options.scope).error;
    let watts_error = columns.power_error_w(options.scope);
    let mut tally = QueryTally::default();
    for at in indices {
        tally.asked += 1;
        tally.answered += usize::from(columns.answered[at]);
        tally.scored += usize::from(known(columns.score[at]).is_some());
        if covered(at).is_none() {
            continue;
        }
        tally.covered += 1;
        tally.grade = tally.grade.max(columns.grade[at]);
        tally.without_power += usize::from(known(watts(at)).is_none());
        tally.error_j += share_error[at];
        tally.error_w += watts_error(at);
    }
    tally
}

/// Returns a covered query's score, joules and attributed power.
fn covered_figures(columns: &QueryColumns, options: &MetricOptions) -> impl Fn(usize) -> Option<[f64; 3]> {
    let joules = columns.energy_j(options.scope, options.idle);
    let attributed = columns.attributed_power_w(options.scope, options.idle);
    move |at| Some([known(columns.score[at])?, known(joules(at))?, known(attributed(at))?])
}

/// Returns each covered query with its question, its time and its values.
fn sample_queries(
    columns: &QueryColumns,
    indices: impl Iterator<Item = usize>,
    options: &MetricOptions,
) -> impl Iterator<Item = SampleQuery<VALUE_COUNT>> {
    let covered = covered_figures(columns, options);
    let watts = columns.power_w(options.scope, options.idle);
    indices.filter_map(move |at| {
        let [score, joules, attributed] = covered(at)?;
        let mut values: QueryValues = Default::default();
        (values[SCORE], values[ENERGY], values[POWER]) = (score, joules, watts(at));
        values[ATTRIBUTED_POWER] = attributed;
        (values[TOKENS], values[LOGPROB]) = (columns.tokens_out[at], columns.mean_logprob[at]);
        Some(SampleQuery { question: columns.question_hash(at), open_s: open_s(columns, at), values })
    })
}

/// Returns the start and the end of a query.
fn open_s(columns: &QueryColumns, at: usize) -> [f64; 2] {
    [columns.began_s[at], columns.began_s[at] + columns.duration_s[at]]
}

/// Returns the accuracy of all scored queries, with or without a known energy.
fn scored_accuracy(table: &RunTable, indices: impl Iterator<Item = usize>) -> Option<Estimate> {
    let columns = &table.columns;
    let scores = indices.filter_map(|at| {
        let values = [known(columns.score[at])?];
        Some(SampleQuery { question: columns.question_hash(at), open_s: open_s(columns, at), values })
    });
    let sample = IntervalSample::new(scores, columns.has_repeats());
    estimate((sample.column_mean(0), sample.score_interval(0)))
}

fn empty_metrics(
    of: String,
    options: &MetricOptions,
    [asked, answered, scored, covered]: [usize; 4],
) -> EfficiencyMetrics {
    EfficiencyMetrics {
        of,
        scope: options.scope,
        idle: options.idle,
        grade: None,
        simulated: false,
        asked,
        answered,
        scored,
        covered,
        accuracy: None,
        energy_j: None,
        energy_error_j: None,
        power_w: None,
        power_error_w: None,
        without_power: 0,
        attributed_power_w: None,
        per_watt: None,
        per_joule: None,
        questions_needed: None,
        tokens_per_joule: None,
        queries_per_kwh: None,
        perplexity: None,
        perplexity_per_watt: None,
        perplexity_per_joule: None,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn estimate((value, interval): Figure) -> Option<Estimate> {
    value.is_finite().then_some(Estimate { value, interval })
}

fn set_estimates(metrics: &mut EfficiencyMetrics, sample: &QuerySample) {
    let figures = figures(sample);
    metrics.questions_needed = figures.questions_needed;
    metrics.accuracy = estimate(figures.accuracy);
    metrics.energy_j = estimate(figures.energy_j);
    metrics.power_w = estimate(figures.power_w);
    metrics.attributed_power_w = estimate(figures.attributed_power_w);
    metrics.per_watt = estimate(figures.per_watt);
    metrics.per_joule = estimate(figures.per_joule);
    metrics.queries_per_kwh = estimate(figures.queries_per_kwh);
    metrics.tokens_per_joule = estimate(figures.tokens_per_joule);
    metrics.perplexity = estimate(figures.perplexity);
    metrics.perplexity_per_watt = estimate(figures.perplexity_per_watt);
    metrics.perplexity_per_joule = estimate(figures.perplexity_per_joule);
}

#[cfg(test)]
mod tests {
    use super::super::question;
    use super::super::row::{QueryEnergy, QueryRow, ReplyText};
    use super::super::run_dir::{FORMAT_VERSION, Manifest, RunDir};
    use super::*;

    fn table(rows: impl Iterator<Item = QueryRow>) -> RunTable {
        let dir = tempfile::tempdir().unwrap();
        let questions = question::built_in();
        let fingerprint = question::fingerprint(&questions);
        let manifest = Manifest { version: FORMAT_VERSION, fingerprint, ..Manifest::default() };
        let mut run = RunDir::create(dir.path(), &manifest, &questions).unwrap();
        rows.for_each(|row| run.append_row(&row, &ReplyText::default()).unwrap());
        RunTable::read(dir.path()).unwrap()
    }

    fn row(id: usize, score: Option<f64>, share_uj: Option<u64>) -> QueryRow {
        let energy = QueryEnergy {
            share_uj,
            error_uj: Some(100_000),
            idle_uj: Some(1_000_000),
            // Two concurrent queries: half of the window belongs to the other.
            window_uj: share_uj.map(|share_uj| share_uj * 2),
            at_once: 2,
            span_ns: 2_000_000_000,
            grade: Some(Grade::Measured),
            ..QueryEnergy::default()
        };
        let subject = if id.is_multiple_of(2) { "even" } else { "odd" };
        QueryRow {
            id: id.to_string(),
            subject: subject.into(),
            score,
            duration_ns: 2_000_000_000,
            tokens_out: Some(30),
            mean_logprob: Some(-(2.0_f64.ln())),
            energy: Some(energy),
            ..QueryRow::default()
        }
    }

    const OPTIONS: MetricOptions = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included, seed: 1 };

    #[test]
    fn estimates_are_ratios_of_means() {
        // Energies 2 J of 4 J and 4 J of 8 J over 2 s each, one correct: accuracy 0.5, mean 3 J, machine power 3 W.
        let table =
            table([row(0, Some(1.0), Some(2_000_000)), row(1, Some(0.0), Some(4_000_000))].into_iter());
        let all = compute_metrics(&table, None, &OPTIONS);
        let value = |figure: Option<Estimate>| figure.unwrap().value;
        assert_eq!((value(all.accuracy), value(all.energy_j), value(all.power_w)), (0.5, 3.0, 3.0));
        assert_eq!(value(all.attributed_power_w), 1.5);
        assert_eq!((value(all.per_watt), value(all.per_joule)), (0.5 / 3.0, 0.5 / 3.0));
        assert_eq!((value(all.tokens_per_joule), value(all.queries_per_kwh)), (10.0, 1.2e6));
        assert_eq!(all.energy_error_j, Some(0.1));
        assert!((value(all.perplexity) - 2.0).abs() < 1e-12);
        assert!((value(all.perplexity_per_watt) - 1.0 / 6.0).abs() < 1e-12);
        // Each window has 2 J of idle energy: twice the idle part of a share that is half of the window.
        let bare = compute_metrics(&table, None, &MetricOptions { idle: IdlePolicy::Excluded, ..OPTIONS });
        assert_eq!((value(bare.energy_j), value(bare.power_w)), (2.0, 2.0));
        assert_eq!(value(bare.attributed_power_w), 1.0);
        let even = compute_metrics(&table, Some(0), &OPTIONS);
        assert_eq!((even.of.as_str(), even.asked, value(even.energy_j)), ("even", 1, 2.0));
    }

    #[test]
    fn failed_and_unmetered_queries_are_not_covered() {
        let failed = QueryRow { error: Some("no answer".into()), ..row(2, Some(0.0), Some(1)) };
        let table = table(
            [row(0, Some(1.0), Some(2_000_000)), row(1, Some(0.0), None), failed, row(3, None, Some(5))]
                .into_iter(),
        );
        let all = compute_metrics(&table, None, &OPTIONS);
        assert_eq!((all.asked, all.answered, all.scored, all.covered), (4, 3, 2, 1));
        assert_eq!(all.accuracy.unwrap().value, 1.0);
        assert_eq!(all.energy_j.unwrap().value, 2.0);
    }

    #[test]
    fn zero_accuracy_has_a_nonempty_interval() {
        let table = table((0..20).map(|id| row(id, Some(0.0), Some(2_000_000))));
        let all = compute_metrics(&table, None, &OPTIONS);
        let accuracy = all.accuracy.unwrap();
        assert_eq!(accuracy.value, 0.0);
        assert!(accuracy.interval.unwrap().high > 0.15);
        let per_watt = all.per_watt.unwrap();
        assert_eq!(per_watt.value, 0.0);
        let (of_watt, of_all) = (per_watt.interval.unwrap().high, accuracy.interval.unwrap().high);
        assert!((of_watt * 2.0 - of_all).abs() < 1e-12, "at 2 W");
    }

    /// Fifty questions, each repeated with the same outcome.
    fn repeated_table(times: u32, score: impl Fn(usize) -> f64) -> RunTable {
        let all = (0..times).flat_map(|repeat| (0..50).map(move |id| (id, repeat)));
        table(all.map(|(id, repeat)| {
            let share_uj = Some(2_000_000 + id as u64 * 70_000);
            QueryRow { repeat, ..row(id, Some(score(id)), share_uj) }
        }))
    }

    #[test]
    fn repeats_do_not_narrow_the_interval() {
        let some = |id: usize| f64::from(u8::from(id.is_multiple_of(3)));
        for (once, ten) in [
            (repeated_table(1, some), repeated_table(10, some)),
            (repeated_table(1, |_| 1.0), repeated_table(10, |_| 1.0)),
        ] {
            let (once, ten) = (compute_metrics(&once, None, &OPTIONS), compute_metrics(&ten, None, &OPTIONS));
            assert_eq!((once.covered, ten.covered), (50, 500));
            let intervals = |of: &EfficiencyMetrics| {
                let all = [
                    of.accuracy,
                    of.energy_j,
                    of.power_w,
                    of.per_watt,
                    of.per_joule,
                    of.perplexity_per_joule,
                ];
                all.map(|figure| figure.unwrap().interval.unwrap())
            };
            for (one, other) in intervals(&once).iter().zip(intervals(&ten)) {
                let near = |one: f64, other: f64| (one - other).abs() < 1e-9;
                assert!(near(one.low, other.low) && near(one.high, other.high), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn power_error_is_the_window_error_and_absent_beside_a_heavier_span() {
        let of = |change: fn(&mut QueryEnergy)| {
            let mut row = row(0, Some(1.0), Some(2_000_000));
            row.energy.iter_mut().for_each(change);
            let table = table([row].into_iter());
            compute_metrics(&table, None, &OPTIONS)
        };
        // A share has an error of 0.1 J, so the window of two equal spans has an error of 0.2 J, over 2 s.
        assert!((of(|_| ()).power_error_w.unwrap() - 0.1).abs() < 1e-12);
        let heavy = of(|energy| energy.window_uj = Some(5_000_000));
        assert_eq!((heavy.power_error_w, heavy.power_w.unwrap().value), (None, 2.5));
        assert_eq!(of(|energy| energy.error_uj = None).power_error_w, None);
        // The account began half a second late: 4 J over 1.5 s or over 2 s.
        let moved = of(|energy| energy.span_ns = 1_500_000_000).power_error_w.unwrap();
        assert!((moved - 0.1 - (4.0 / 1.5 - 2.0)).abs() < 1e-12, "{moved}");
    }

    #[test]
    fn rows_without_a_window_have_power_only_at_concurrency_one() {
        let of = |at_once| {
            let mut row = row(0, Some(1.0), Some(2_000_000));
            row.energy.iter_mut().for_each(|energy| (energy.window_uj, energy.at_once) = (None, at_once));
            let whole = super::tests::row(1, Some(1.0), Some(2_000_000));
            let table = table([row, whole].into_iter());
            compute_metrics(&table, None, &OPTIONS)
        };
        let alone = of(1);
        assert_eq!((alone.power_w.unwrap().value, alone.without_power), (1.5, 0));
        let side_by_side = of(2);
        assert_eq!((side_by_side.power_w, side_by_side.per_watt), (None, None));
        assert_eq!((side_by_side.without_power, side_by_side.covered), (1, 2));
        assert_eq!(side_by_side.per_joule.unwrap().value, 0.5);
    }

    #[test]
    fn without_energy_accuracy_is_over_scored_queries() {
        let table = table((0..20).map(|id| row(id, Some(f64::from(u8::from(id < 5))), None)));
        let all = compute_metrics(&table, None, &OPTIONS);
        assert_eq!((all.covered, all.accuracy.unwrap().value), (0, 0.25));
        let interval = all.accuracy.unwrap().interval.unwrap();
        assert!(interval.low > 0.0 && interval.high < 0.55, "{interval:?}");
        assert_eq!((all.power_w, all.per_watt, all.energy_j), (None, None, None));
    }

    #[test]
    fn no_covered_query_gives_no_estimates() {
        let table = table([QueryRow { error: Some("refused".into()), ..row(0, None, None) }].into_iter());
        let all = compute_metrics(&table, None, &OPTIONS);
        assert_eq!(
            (all.accuracy, all.energy_j, all.per_watt, all.tokens_per_joule),
            (None, None, None, None)
        );
        let nothing = compute_metrics(&table, None, &MetricOptions { scope: Scope::Accelerator, ..OPTIONS });
        assert_eq!((nothing.covered, nothing.grade), (0, None));
    }
}
