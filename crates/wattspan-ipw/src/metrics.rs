//! Intelligence per watt (IPW) and per joule (IPJ).
//!
//! All figures are ratios of means over the same queries (*Intelligence per Watt*, arXiv 2511.07885, section 3): those
//! that were delivered to the server and scored and whose energy in the scope is known (`covered` of `asked`). A delivered
//! query that failed is wrong, and its energy counts. Power is the machine's power in the scope while a query was open, so
//! it does not depend on the number of concurrent queries. Attributed power is a query's share over its time. Invariant: a
//! figure has its confidence interval if one can be computed, and no figure is computed over an empty set.

use serde::{Deserialize, Serialize};
use wattspan_client::domain::Grade;

use super::bootstrap::ConfidenceInterval;
use super::estimates::{
    ATTRIBUTED_POWER, ENERGY, Figure, LOGPROB, POWER, QuerySample, QueryValues, SCORE, TOKENS, VALUE_COUNT,
    figures,
};
use super::intervals::{IntervalSample, SampleQuery};
use super::meter_error::{widen_mean, widen_ratio};
use super::run::Workload;
use super::run_settings::workload;
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
}

/// The figures over a set of queries.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
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
    /// The number of queries that were open at a time (closed loop).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// The number of queries that began each second (open loop).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries_per_second: Option<f64>,
    /// Queries in the run; of an interrupted run all that it would have asked.
    pub asked: usize,
    /// Number of queries that the server received.
    #[serde(default)]
    pub delivered: usize,
    /// Number of answered queries.
    pub answered: usize,
    /// Number of delivered queries with a score; those that failed are wrong.
    pub scored: usize,
    /// Number of scored queries with a known energy; the figures are over these.
    pub covered: usize,
    /// `covered` / `asked`.
    #[serde(default)]
    pub coverage: f64,
    /// Whether the coverage is below [`MIN_COVERAGE`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Whether IPW, IPJ and what is derived from them were withheld, because the figures are partial.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
    /// Fraction of the covered queries that are correct; of the scored ones if none is covered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Estimate>,
    /// Mean energy of a query, joules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_j: Option<Estimate>,
    /// Guaranteed error of `energy_j`, independent of the choice of questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_error_j: Option<f64>,
    /// The interval of `energy_j` widened by `energy_error_j`: both uncertainties together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_combined_j: Option<ConfidenceInterval>,
    /// Mean power of the machine in the scope while a query was open, watts; absent if unknown for a covered query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Estimate>,
    /// Guaranteed error of `power_w`, independent of the choice of questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_error_w: Option<f64>,
    /// The interval of `power_w` widened by `power_error_w`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_combined_w: Option<ConfidenceInterval>,
    /// Number of covered queries whose power is unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub without_power: usize,
    /// Mean attributed power, watts: a query's share over the time that its span was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributed_power_w: Option<Estimate>,
    /// IPW: accuracy / `power_w`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_watt: Option<Estimate>,
    /// The interval of `per_watt` widened by the meter's relative error of the power; without an upper bound (null in JSON)
    /// if that error is 100 % or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_watt_combined: Option<ConfidenceInterval>,
    /// IPJ: accuracy / mean energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_joule: Option<Estimate>,
    /// The interval of `per_joule` widened by the meter's relative error of the energy, in the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_joule_combined: Option<ConfidenceInterval>,
    /// The number of questions from which the intervals hold, if there are fewer: rare expensive questions may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions_needed: Option<usize>,
    /// Output tokens per joule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_joule: Option<Estimate>,
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

/// The coverage below which IPW and IPJ are no figures of the question set.
pub const MIN_COVERAGE: f64 = 0.95;

impl EfficiencyMetrics {
    /// Removes IPW, IPJ and what is derived from them if too few of the queries are covered.
    pub fn withhold_if_partial(&mut self) {
        if !self.partial {
            return;
        }
        self.withheld = true;
        (self.per_watt, self.per_joule) = (None, None);
        (self.per_watt_combined, self.per_joule_combined) = (None, None);
        (self.perplexity_per_watt, self.perplexity_per_joule) = (None, None);
    }

    /// Sets the coverage over `asked` queries.
    fn set_coverage(&mut self, asked: usize) {
        self.asked = asked;
        self.coverage = if asked > 0 { self.covered as f64 / asked as f64 } else { 0.0 };
        self.partial = self.coverage < MIN_COVERAGE;
    }

    /// Widens the intervals by the meter's errors.
    fn combine_errors(&mut self) {
        let relative = |of: Option<Estimate>, error: Option<f64>| Some(error? / of?.value);
        let energy_relative = relative(self.energy_j, self.energy_error_j);
        let power_relative = relative(self.power_w, self.power_error_w);
        let mean = |of: Option<Estimate>, error| widen_mean(of?.value, of?.interval, error);
        let ratio = |of: Option<Estimate>, error| widen_ratio(of?.interval, error);
        self.energy_combined_j = mean(self.energy_j, energy_relative);
        self.power_combined_w = mean(self.power_w, power_relative);
        self.per_joule_combined = ratio(self.per_joule, energy_relative);
        self.per_watt_combined = ratio(self.per_watt, power_relative);
    }
}

/// Computes the figures over the queries of one subject, or over all.
pub fn compute_metrics(table: &RunTable, subject: Option<u32>, options: &MetricOptions) -> EfficiencyMetrics {
    let columns = &table.columns;
    let Some(subject) = subject else {
        let mut all = compute_metrics_over(table, "all", 0..columns.len(), options);
        // An interrupted run covers the questions that it has not asked yet as little as those that failed.
        all.set_coverage(table.asked());
        return all;
    };
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
    let QueryTally { asked, covered, .. } = tally;
    let mut metrics = empty_metrics(name.to_owned(), options, &tally);
    metrics.set_coverage(asked);
    match workload(&table.manifest.settings) {
        Some(Workload::ClosedLoop(concurrency)) => metrics.concurrency = Some(concurrency),
        Some(Workload::OpenLoop(rate)) => metrics.queries_per_second = Some(rate),
        None => {}
    }
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
    metrics.combine_errors();
    metrics
}

/// Counts and sums over a set of queries; all after `scored` are of the covered queries.
#[derive(Default)]
struct QueryTally {
    asked: usize,
    delivered: usize,
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
        tally.delivered += usize::from(columns.delivered[at]);
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
pub(super) fn covered_figures(
    columns: &QueryColumns,
    options: &MetricOptions,
) -> impl Fn(usize) -> Option<[f64; 3]> {
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
        Some(SampleQuery { question: columns.question_hash(at), open_s: columns.open_s(at), values })
    })
}

/// Returns the accuracy of all scored queries, with or without a known energy.
fn scored_accuracy(table: &RunTable, indices: impl Iterator<Item = usize>) -> Option<Estimate> {
    let columns = &table.columns;
    let scores = indices.filter_map(|at| {
        let values = [known(columns.score[at])?];
        Some(SampleQuery { question: columns.question_hash(at), open_s: columns.open_s(at), values })
    });
    let sample = IntervalSample::new(scores, columns.has_repeats());
    estimate((sample.column_mean(0), sample.score_interval(0)))
}

fn empty_metrics(of: String, options: &MetricOptions, tally: &QueryTally) -> EfficiencyMetrics {
    let QueryTally { asked, delivered, answered, scored, covered, .. } = *tally;
    EfficiencyMetrics {
        of,
        scope: options.scope,
        idle: options.idle,
        asked,
        delivered,
        answered,
        scored,
        covered,
        ..EfficiencyMetrics::default()
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

    const OPTIONS: MetricOptions = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included };

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
    fn a_delivered_failure_is_wrong_with_its_energy_and_an_undelivered_one_is_not_asked() {
        let failed = |id, delivered| QueryRow {
            error: Some("no answer".into()),
            delivered: Some(delivered),
            ..row(id, None, Some(4_000_000))
        };
        let table = table(
            [
                row(0, Some(1.0), Some(2_000_000)),
                row(1, Some(0.0), None),
                failed(2, true),
                failed(3, false),
                row(4, None, Some(5)),
            ]
            .into_iter(),
        );
        let all = compute_metrics(&table, None, &OPTIONS);
        assert_eq!((all.asked, all.delivered, all.answered, all.scored, all.covered), (5, 4, 3, 3, 2));
        assert_eq!((all.coverage, all.partial), (0.4, true));
        let value = |figure: Option<Estimate>| figure.unwrap().value;
        // One of two right; 2 J of a window of 4 J, and 4 J of 8 J, over 2 s each.
        assert_eq!((value(all.accuracy), value(all.energy_j), value(all.power_w)), (0.5, 3.0, 3.0));
        assert_eq!((value(all.per_watt), value(all.per_joule)), (0.5 / 3.0, 0.5 / 3.0));
    }

    #[test]
    fn below_the_least_coverage_ipw_and_ipj_are_withheld() {
        let metered = |count: usize| {
            let rows = (0..20).map(move |id| row(id, Some(1.0), (id < count).then_some(2_000_000)));
            compute_metrics(&table(rows), None, &OPTIONS)
        };
        let mut enough = metered(19);
        assert_eq!((enough.coverage, enough.partial), (0.95, false));
        let before = enough.clone();
        enough.withhold_if_partial();
        assert_eq!(enough, before);
        let mut partial = metered(18);
        assert!(partial.partial && partial.per_watt.is_some() && partial.per_joule_combined.is_some());
        partial.withhold_if_partial();
        assert_eq!((partial.per_watt, partial.per_joule, partial.withheld), (None, None, true));
        assert_eq!((partial.per_watt_combined, partial.perplexity_per_joule), (None, None));
        assert!(partial.accuracy.is_some() && partial.energy_j.is_some());
    }

    #[test]
    fn an_interrupted_run_covers_the_questions_of_its_plan() {
        let mut table = table((0..10).map(|id| row(id, Some(1.0), Some(2_000_000))));
        (table.manifest.count, table.manifest.repeats) = (10, 2);
        let all = compute_metrics(&table, None, &OPTIONS);
        assert_eq!((all.asked, all.covered, all.coverage, all.partial), (20, 10, 0.5, true));
    }

    #[test]
    fn the_meter_error_widens_the_interval_of_the_questions() {
        // A mean of 3.8 J that the meter knows to 3.4 J only.
        let rows = (0..50).map(|id| {
            let mut row = row(id, Some(1.0), Some(3_700_000 + id as u64 % 5 * 50_000));
            row.energy.as_mut().unwrap().error_uj = Some(3_400_000);
            row
        });
        let all = compute_metrics(&table(rows), None, &OPTIONS);
        let (sampling, both) = (all.energy_j.unwrap().interval.unwrap(), all.energy_combined_j.unwrap());
        assert!(sampling.high - sampling.low < 0.1, "{sampling:?}");
        assert!(both.low < 0.41 && both.high > 7.19, "{both:?}");
        let (ipj, both) = (all.per_joule.unwrap(), all.per_joule_combined.unwrap());
        assert!(
            both.low < ipj.interval.unwrap().low && both.low < 1.0 / 7.2 && both.high > 1.0 / 0.4,
            "{both:?}"
        );
        // The share is half of the window, so the power has the same relative error.
        assert!(all.power_combined_w.unwrap().high > 7.19 && all.per_watt_combined.unwrap().low < 1.0 / 7.2);
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
        let refused =
            QueryRow { error: Some("refused".into()), delivered: Some(false), ..row(0, None, None) };
        let table = table([refused].into_iter());
        let all = compute_metrics(&table, None, &OPTIONS);
        assert_eq!(
            (all.accuracy, all.energy_j, all.per_watt, all.tokens_per_joule),
            (None, None, None, None)
        );
        let nothing = compute_metrics(&table, None, &MetricOptions { scope: Scope::Accelerator, ..OPTIONS });
        assert_eq!((nothing.covered, nothing.grade), (0, None));
    }
}
