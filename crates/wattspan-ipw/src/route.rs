//! Savings from routing questions to small local models.
//!
//! Implements the routing analysis of *Intelligence per Watt* (arXiv 2511.07885, section 5). A local model *covers* a
//! question if its answer is right and its score is at least the reference's (win or tie); a question that both answer
//! wrongly is covered by neither and counted apart. The best-of-local covers a question if any local model does. The oracle
//! sends each question to the cheapest covering model, else to the reference. A router of accuracy p follows the oracle with probability p and otherwise uses the reference, so quality never falls and the
//! savings are p times the oracle's. All figures are over the questions that every run answered and scored. Invariant:
//! a saving is absent if the cost of any query in it is unknown. Queries are routed one by one; all queries of a question
//! are one trial of the intervals.

use std::collections::HashMap;

use serde::Serialize;
use wattspan_client::domain::Grade;

use super::bootstrap::ConfidenceInterval;
use super::columns::ScopeColumns;
use super::compare::{Difference, differences};
use super::intervals::proportion_interval;
use super::meter_error::widen_difference;
use super::metrics::{Estimate, MIN_COVERAGE, MetricOptions};
use super::run_settings::describe_workload;
use super::saving_intervals::{RoutedCost, SavedCost, saved_cost};
use super::scope::{IdlePolicy, Scope};
use super::table::{RunTable, known};

/// A run in the comparison.
#[derive(Debug)]
pub struct RoutedModel<'a> {
    /// The name of the run.
    pub label: String,
    /// The rows of the run.
    pub table: &'a RunTable,
    /// Assumed joules per query for rows without energy, as for a cloud model.
    pub assumed_j: Option<f64>,
    /// Active parameters of the model; a query takes 2 × parameters floating-point operations per token.
    pub active_parameters: Option<f64>,
    /// Price per million prompt tokens and output tokens.
    pub per_million_tokens: Option<(f64, f64)>,
}

/// A local model compared with the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coverage {
    /// The name of the run.
    pub label: String,
    /// Number of questions with a higher score than the reference.
    pub wins: usize,
    /// Number of questions that both answer right, with an equal score.
    pub ties: usize,
    /// Number of questions that both answer wrongly; they are not covered.
    pub both_wrong: usize,
    /// Wins and ties as a fraction of all questions.
    pub covered: Estimate,
}

/// Savings of a router relative to the reference alone, as fractions of the reference's use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Saving {
    /// Probability that the router follows the oracle.
    pub accuracy: f64,
    /// Saved fraction of the energy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy: Option<Estimate>,
    /// Guaranteed error of `energy`, independent of the choice of questions; an assumed energy has no error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_error: Option<f64>,
    /// The interval of `energy` widened by `energy_error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_combined: Option<ConfidenceInterval>,
    /// Saved fraction of the floating-point operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Estimate>,
    /// Saved fraction of the price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Estimate>,
}

/// The result of the routing analysis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routing {
    /// The scope of the energies.
    pub scope: Scope,
    /// Whether idle power is included.
    pub idle: IdlePolicy,
    /// The worst grade among the measured energies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Whether any run's machine was simulated (replayed from a file), whatever the grade.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// Number of queries in the largest of the runs; of an interrupted run all that it would have asked.
    pub asked: usize,
    /// `queries` / `asked`.
    pub coverage: f64,
    /// Whether the coverage is below [`MIN_COVERAGE`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// How queries followed each other in each run, by name, the reference last.
    pub concurrency: Vec<(String, String)>,
    /// Number of queries that every run delivered and scored; the figures are over these.
    pub queries: usize,
    /// Number of those whose energy at the reference is assumed.
    pub assumed: usize,
    /// Number of distinct questions among those; fewer than `queries` if questions were repeated.
    pub questions: usize,
    /// The name of the reference.
    pub reference: String,
    /// Each local model against the reference.
    pub models: Vec<Coverage>,
    /// The best of the local models on each question.
    pub best_of_local: Coverage,
    /// Savings of the oracle and of the requested routers.
    pub savings: Vec<Saving>,
    /// The number of questions from which the intervals of the savings hold, if there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions_needed: Option<usize>,
    /// Number of queries that the oracle sends to each model, by name; the reference is last.
    pub oracle_sends: Vec<(String, usize)>,
    /// Mismatches between the runs; empty unless the user forces the comparison.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unlike: Vec<IncomparableRuns>,
}

/// Two runs that are not comparable.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IncomparableRuns {
    /// The name of the first run, usually the reference.
    pub first: String,
    /// The name of the other run.
    pub other: String,
    /// The properties in which they differ.
    pub differs: Vec<Difference>,
}

/// Returns the runs that are not comparable. A reference with only assumed energies has neither grade nor domains; the
/// local models are then compared with the first of them.
pub fn incomparable_runs(
    locals: &[RoutedModel],
    reference: &RoutedModel,
    options: &MetricOptions,
) -> Vec<IncomparableRuns> {
    let energy = reference.table.columns.scope_columns(options.scope);
    let assumed = reference.assumed_j.is_some() && energy.share.iter().all(|joules| joules.is_nan());
    let compare = |first: &RoutedModel, other: &RoutedModel, counts: &dyn Fn(&Difference) -> bool| {
        let mut differs = differences(first.table, other.table, options);
        differs.retain(counts);
        let (first, other) = (first.label.clone(), other.label.clone());
        (!differs.is_empty()).then_some(IncomparableRuns { first, other, differs })
    };
    let against_reference =
        locals.iter().filter_map(|it| compare(reference, it, &|one| !(assumed && one.is_energy_related())));
    let among_locals = locals.iter().skip(1).filter(|_| assumed);
    let among_locals = among_locals.filter_map(|it| compare(&locals[0], it, &Difference::is_energy_related));
    against_reference.chain(among_locals).collect()
}

/// The score from which an answer is right; a judge may give a part of a point.
const RIGHT: f64 = 0.5;

/// A local model's answer beside the reference's, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The reference has a higher score.
    Worse,
    /// Neither answer is right.
    BothWrong,
    /// Right, with the reference's score.
    AsGood,
    /// Right, with a higher score than the reference.
    Better,
}

impl Outcome {
    fn of(local: f64, reference: f64) -> Self {
        match (local >= RIGHT, reference >= RIGHT) {
            (false, false) => Outcome::BothWrong,
            (false, true) => Outcome::Worse,
            _ if local > reference => Outcome::Better,
            _ if local < reference => Outcome::Worse,
            _ => Outcome::AsGood,
        }
    }

    fn is_covered(self) -> bool {
        self >= Outcome::AsGood
    }
}

/// The cost of a query: energy, operations, price; each if known.
pub(super) type QueryCosts = [Option<f64>; 3];

/// An answered and scored query.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoutedQuery {
    pub question: u64,
    /// Start and end, seconds.
    pub open_s: [f64; 2],
    pub score: f64,
    pub costs: QueryCosts,
    /// Guaranteed half-width of the energy.
    pub error_j: Option<f64>,
    /// Whether the energy is assumed.
    assumed: bool,
    grade: Option<Grade>,
}

/// What the oracle does with a query.
#[derive(Debug, Clone, Copy)]
pub(super) struct OracleChoice {
    /// The index of the model to which it is sent; that of the reference is the number of local models, and a local one
    /// covers the query.
    pub model: usize,
    /// The query at that model.
    pub query: RoutedQuery,
    /// Whether a local model covers it.
    is_covered: bool,
    /// The query at the reference.
    reference: RoutedQuery,
}

/// Computes the routing analysis over runs of the same questions; `None` if no question is in all of them.
pub fn evaluate_routing(
    locals: &[RoutedModel],
    reference: &RoutedModel,
    accuracies: &[f64],
    options: &MetricOptions,
) -> Option<Routing> {
    let shared = SharedQueries::find(locals, reference, options)?;
    let references = &shared.references;
    let coverage_of = |label: &str, outcome: &dyn Fn(&u64, f64) -> Outcome| {
        let outcomes = references.iter().map(|(key, query)| outcome(key, query.score));
        coverage(label, &outcomes.collect::<Vec<_>>(), shared.question_count)
    };
    let models = locals
        .iter()
        .enumerate()
        .map(|(at, model)| coverage_of(&model.label, &|key, score| shared.outcome(at, key, score)));
    let best_outcome = |key: &u64, score: f64| {
        (0..locals.len()).map(|at| shared.outcome(at, key, score)).max().unwrap_or(Outcome::Worse)
    };
    let (sends, choices) = shared.oracle_choices();
    let savings = OracleSavings::new(&shared, &choices);
    let runs = || locals.iter().chain([reference]);
    let names = runs().map(|model| model.label.clone());
    let asked = runs().map(|model| model.table.asked()).max().unwrap_or(0);
    let coverage = references.len() as f64 / asked as f64;
    let concurrency = |model: &RoutedModel| {
        let workload = describe_workload(&model.table.manifest.settings);
        (model.label.clone(), workload.unwrap_or_else(|| "unknown".into()))
    };
    Some(Routing {
        scope: options.scope,
        idle: options.idle,
        grade: shared.worst_grade(),
        simulated: locals.iter().chain([reference]).any(|model| model.table.manifest.is_simulated()),
        asked,
        coverage,
        partial: coverage < MIN_COVERAGE,
        concurrency: runs().map(concurrency).collect(),
        queries: references.len(),
        assumed: references.iter().filter(|(_, query)| query.assumed).count(),
        questions: shared.question_count,
        reference: reference.label.clone(),
        models: models.collect(),
        best_of_local: coverage_of("best of local", &best_outcome),
        savings: std::iter::once(&1.0).chain(accuracies).map(|p| savings.of_router(*p)).collect(),
        questions_needed: savings.questions_needed(),
        oracle_sends: names.zip(sends).collect(),
        unlike: incomparable_runs(locals, reference, options),
    })
}

/// The queries that every run delivered and scored.
pub(super) struct SharedQueries {
    /// The reference's queries with their keys, in the order of questions.
    pub references: Vec<(u64, RoutedQuery)>,
    /// Each local model's queries by key, in the order of the models.
    pub locals: Vec<HashMap<u64, RoutedQuery>>,
    question_count: usize,
    /// Whether a question was asked more than once.
    pub repeated: bool,
}

impl SharedQueries {
    /// Returns `None` if no query is in all runs, or there is no local model.
    pub fn find(locals: &[RoutedModel], reference: &RoutedModel, options: &MetricOptions) -> Option<Self> {
        let locals: Vec<HashMap<u64, RoutedQuery>> =
            locals.iter().map(|model| scored_queries(model, options).collect()).collect();
        let mut references: Vec<(u64, RoutedQuery)> = scored_queries(reference, options).collect();
        references.retain(|(key, _)| locals.iter().all(|queries| queries.contains_key(key)));
        references.sort_unstable_by_key(|(key, query)| (query.question, *key));
        if references.is_empty() || locals.is_empty() {
            return None;
        }
        let mut questions: Vec<u64> = references.iter().map(|(_, query)| query.question).collect();
        questions.dedup();
        let (question_count, repeated) = (questions.len(), questions.len() < references.len());
        Some(Self { references, locals, question_count, repeated })
    }

    /// The answer of the local model at `at` beside the reference's score of the same query.
    fn outcome(&self, at: usize, key: &u64, score: f64) -> Outcome {
        Outcome::of(self.locals[at][key].score, score)
    }

    /// Returns the starts and ends of the queries in each run, in the order of the references.
    fn open_times(&self) -> Vec<Vec<[f64; 2]>> {
        let of_references = self.references.iter().map(|(_, query)| query.open_s).collect();
        let of_locals = |queries: &HashMap<u64, RoutedQuery>| {
            self.references.iter().map(|(key, _)| queries[key].open_s).collect()
        };
        std::iter::once(of_references).chain(self.locals.iter().map(of_locals)).collect()
    }

    /// Returns the number of queries that the oracle sends to each model, the reference last, and its choices.
    pub fn oracle_choices(&self) -> (Vec<usize>, Vec<OracleChoice>) {
        let mut sends = vec![0; self.locals.len() + 1];
        let mut choices = Vec::new();
        for (key, query) in &self.references {
            let covering =
                (0..self.locals.len()).filter(|at| self.outcome(*at, key, query.score).is_covered());
            // The cheapest by energy; an unknown energy sorts last.
            let chosen = covering.min_by(|one, other| {
                let joules = |at: usize| self.locals[at][key].costs[0].unwrap_or(f64::INFINITY);
                joules(*one).total_cmp(&joules(*other))
            });
            let model = chosen.unwrap_or(self.locals.len());
            sends[model] += 1;
            choices.push(OracleChoice {
                model,
                is_covered: chosen.is_some(),
                query: chosen.map_or(*query, |at| self.locals[at][key]),
                reference: *query,
            });
        }
        (sends, choices)
    }

    /// Returns the worst grade of a measured energy.
    pub fn worst_grade(&self) -> Option<Grade> {
        let local_queries =
            self.locals.iter().flat_map(|queries| self.references.iter().map(|(key, _)| &queries[key]));
        let references = self.references.iter().map(|(_, query)| query);
        local_queries.chain(references).filter_map(|query| query.grade).max()
    }
}

/// Returns the savings of a router of accuracy `p` from the oracle's: misses use the reference and save nothing.
pub fn router_saving(oracle_saving: f64, p: f64) -> f64 {
    oracle_saving * p
}

/// Returns a run's answered and scored queries by key.
fn scored_queries<'a>(
    model: &RoutedModel<'a>,
    options: &MetricOptions,
) -> impl Iterator<Item = (u64, RoutedQuery)> + use<'a> {
    let &RoutedModel { table, assumed_j, active_parameters, per_million_tokens, .. } = model;
    let columns = &table.columns;
    let scope = options.scope;
    let ScopeColumns { share: share_j, error, .. } = columns.scope_columns(scope);
    let joules = columns.energy_j(scope, options.idle);
    // A scope's domains may have another grade than the host's total; the manifest has their grades.
    let of_scope = scope.grade(&table.manifest.domains);
    (0..columns.len()).filter_map(move |at| {
        let score = known(columns.score[at])?;
        let (tokens_in, tokens_out) = (known(columns.tokens_in[at]), known(columns.tokens_out[at]));
        let tokens = tokens_in.zip(tokens_out);
        // The energy of a metered query is never assumed, even if its idle part is unknown.
        let is_metered = known(share_j[at]).is_some();
        let energy = if is_metered { known(joules(at)) } else { assumed_j };
        let operations = active_parameters
            .zip(tokens)
            .map(|(n, (tokens_in, tokens_out))| 2.0 * n * (tokens_in + tokens_out));
        let cost = per_million_tokens.zip(tokens);
        let cost =
            cost.map(|((one, other), (tokens_in, tokens_out))| (one * tokens_in + other * tokens_out) / 1e6);
        let grade = if scope == Scope::Host { columns.grade[at] } else { of_scope };
        let query = RoutedQuery {
            question: columns.question_hash(at),
            open_s: columns.open_s(at),
            score,
            costs: [energy, operations, cost],
            error_j: if is_metered { known(error[at]) } else { assumed_j.map(|_| 0.0) },
            assumed: !is_metered && assumed_j.is_some(),
            grade: grade.filter(|_| is_metered),
        };
        Some((columns.query_hash(at), query))
    })
}

fn coverage(label: &str, outcomes: &[Outcome], question_count: usize) -> Coverage {
    let count = |which: Outcome| outcomes.iter().filter(|outcome| **outcome == which).count();
    let covered = outcomes.iter().filter(|outcome| outcome.is_covered()).count();
    let value = covered as f64 / outcomes.len() as f64;
    Coverage {
        label: label.to_owned(),
        wins: count(Outcome::Better),
        ties: count(Outcome::AsGood),
        both_wrong: count(Outcome::BothWrong),
        covered: Estimate { value, interval: proportion_interval(value, question_count as f64) },
    }
}

/// Savings of the oracle, each if the costs of all queries are known.
struct OracleSavings {
    energy: Option<SavedCost>,
    energy_error: Option<f64>,
    compute: Option<SavedCost>,
    cost: Option<SavedCost>,
}

impl OracleSavings {
    fn new(shared: &SharedQueries, choices: &[OracleChoice]) -> Self {
        let times = shared.open_times();
        let of = |which: usize| {
            let costs = choices.iter().map(|choice| {
                let (chosen, reference) = (choice.query.costs[which]?, choice.reference.costs[which]?);
                let (question, is_covered) = (choice.reference.question, choice.is_covered);
                Some(RoutedCost { question, is_covered, chosen, reference })
            });
            let costs: Vec<RoutedCost> = costs.collect::<Option<_>>()?;
            let saved = saved_cost(&costs, &times, shared.repeated);
            Some(saved).filter(|saved| saved.value.is_finite())
        };
        let energy = of(0);
        let sum = |of: &dyn Fn(&OracleChoice) -> [Option<f64>; 2]| {
            choices.iter().try_fold([0.0; 2], |[chosen, all], choice| {
                let [of_chosen, of_all] = of(choice);
                Some([chosen + of_chosen?, all + of_all?])
            })
        };
        let sums = sum(&|choice| [choice.query.costs[0], choice.reference.costs[0]]);
        let errors = sum(&|choice| [choice.query.error_j, choice.reference.error_j]);
        let energy_error = energy.and(sums.zip(errors)).and_then(|(sums, errors)| ratio_error(sums, errors));
        Self { energy, energy_error, compute: of(1), cost: of(2) }
    }

    /// Returns the savings of a router that follows the oracle with probability `p`.
    fn of_router(&self, p: f64) -> Saving {
        let estimate = |saved: Option<SavedCost>| {
            let limit = |value: f64| router_saving(value, p);
            saved.map(|saved| Estimate {
                value: limit(saved.value),
                interval: saved
                    .interval
                    .map(|of| ConfidenceInterval { low: limit(of.low), high: limit(of.high) }),
            })
        };
        let (energy, energy_error) =
            (estimate(self.energy), self.energy_error.map(|error| router_saving(error, p)));
        Saving {
            accuracy: p,
            energy,
            energy_error,
            energy_combined: widen_difference(energy.and_then(|estimate| estimate.interval), energy_error),
            compute: estimate(self.compute),
            cost: estimate(self.cost),
        }
    }

    /// Returns the number of questions from which the intervals hold, if there are fewer.
    fn questions_needed(&self) -> Option<usize> {
        let all = [self.energy, self.compute, self.cost].into_iter().flatten();
        all.filter_map(|saved| saved.questions_needed).max()
    }
}

/// Returns the error of a ratio from the errors of its parts; `None` if the denominator may be zero.
pub(super) fn ratio_error(
    [numerator, denominator]: [f64; 2],
    [numerator_error, denominator_error]: [f64; 2],
) -> Option<f64> {
    let ratio = numerator / denominator;
    let upper = (numerator + numerator_error) / (denominator - denominator_error);
    let lower = (numerator - numerator_error) / (denominator + denominator_error);
    (denominator > denominator_error).then(|| (upper - ratio).max(ratio - lower))
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::{OPTIONS, repeated, run};
    use super::super::run_dir::Manifest;
    use super::*;

    #[test]
    fn router_saving_is_accuracy_times_oracle_saving() {
        for (oracle, at_eight_tenths) in [(80.4, 64.3), (77.3, 61.8), (73.8, 59.0)] {
            assert_eq!((router_saving(oracle, 0.8) * 10.0).round() / 10.0, at_eight_tenths);
        }
    }

    fn model<'a>(label: &str, table: &'a RunTable) -> RoutedModel<'a> {
        RoutedModel {
            label: label.into(),
            table,
            assumed_j: None,
            active_parameters: None,
            per_million_tokens: None,
        }
    }

    #[test]
    fn the_oracle_picks_the_cheapest_covering_model() {
        // The reference answers all but the last correctly; small answers one of four, middle three, at 1 J and 2 J
        // against 10 J.
        let reference = run(&[1.0, 1.0, 1.0, 0.0], 10.0, |_| ());
        let (small, middle) =
            (run(&[1.0, 0.0, 0.0, 0.0], 1.0, |_| ()), run(&[1.0, 1.0, 0.0, 1.0], 2.0, |_| ()));
        let locals = [model("small", &small), model("middle", &middle)];
        let mut reference_model = model("reference", &reference);
        reference_model.active_parameters = Some(8e9);
        let routing = evaluate_routing(&locals, &reference_model, &[0.8], &OPTIONS).unwrap();
        assert_eq!(routing.questions, 4);
        let counts: Vec<[usize; 3]> =
            routing.models.iter().map(|it| [it.wins, it.ties, it.both_wrong]).collect();
        assert_eq!(counts, [[0, 1, 1], [1, 2, 0]]);
        assert_eq!(routing.best_of_local.covered.value, 0.75);
        let sends: Vec<usize> = routing.oracle_sends.iter().map(|(_, count)| *count).collect();
        assert_eq!(sends, [1, 2, 1], "of the last question only middle's answer is right");
        let saved = |at: usize| routing.savings[at].energy.unwrap().value;
        assert!((saved(0) - (1.0 - (1.0 + 2.0 + 10.0 + 2.0) / 40.0)).abs() < 1e-6);
        assert!((saved(1) - 0.8 * saved(0)).abs() < 1e-12);
        assert_eq!(routing.savings[0].compute, None, "the local models' parameters are not known");
    }

    #[test]
    fn an_unmetered_reference_needs_an_assumed_energy() {
        let reference = run(&[1.0, 1.0], 10.0, |_| ());
        let mut unmetered = run(&[1.0, 1.0], 10.0, |_| ());
        unmetered.columns.host_j.fill(f64::NAN);
        let locals = [model("local", &reference)];
        let mut cloud = model("cloud", &unmetered);
        assert_eq!(evaluate_routing(&locals, &cloud, &[], &OPTIONS).unwrap().savings[0].energy, None);
        cloud.assumed_j = Some(100.0);
        let saving =
            evaluate_routing(&locals, &cloud, &[], &OPTIONS).unwrap().savings[0].energy.unwrap().value;
        assert!((saving - 0.9).abs() < 1e-6);
    }

    #[test]
    fn repeats_do_not_narrow_the_saving_interval() {
        let scores: Vec<f64> = (0..50).map(|id| f64::from(id % 2)).collect();
        let of = |times| {
            let (small, large) =
                (repeated(times, &scores, 1.0, |_| ()), repeated(times, &[1.0; 50], 9.0, |_| ()));
            evaluate_routing(&[model("small", &small)], &model("large", &large), &[], &OPTIONS).unwrap()
        };
        let (once, ten) = (of(1), of(10));
        assert_eq!((once.questions, once.queries, ten.questions, ten.queries), (50, 50, 50, 500));
        assert_eq!((once.best_of_local.ties, ten.best_of_local.ties), (25, 250));
        assert_eq!((once.best_of_local.both_wrong, once.best_of_local.wins), (0, 0));
        for (one, other) in [
            (once.best_of_local.covered, ten.best_of_local.covered),
            (once.savings[0].energy.unwrap(), ten.savings[0].energy.unwrap()),
        ] {
            let (one, other) = (one.interval.unwrap(), other.interval.unwrap());
            assert!((one.low - other.low).abs() < 1e-9 && (one.high - other.high).abs() < 1e-9);
        }
    }

    #[test]
    fn excluded_idle_power_is_not_in_the_saving() {
        // 2 J against 4 J, each with an idle part of 0.5 J.
        let (small, large) = (run(&[1.0; 4], 2.0, |_| ()), run(&[1.0; 4], 4.0, |_| ()));
        let of = |idle, large: &RoutedModel| {
            let options = MetricOptions { idle, ..OPTIONS };
            evaluate_routing(&[model("small", &small)], large, &[], &options).unwrap()
        };
        let saved = |routing: &Routing| routing.savings[0].energy.unwrap().value;
        let reference = model("large", &large);
        assert!((saved(&of(IdlePolicy::Included, &reference)) - 0.5).abs() < 1e-5);
        let bare = of(IdlePolicy::Excluded, &reference);
        assert!((saved(&bare) - (1.0 - 1.5 / 3.5)).abs() < 1e-5, "{bare:?}");
        let mut unknown = run(&[1.0; 4], 4.0, |_| ());
        unknown.columns.host_idle_j.fill(f64::NAN);
        let reference = RoutedModel { assumed_j: Some(100.0), ..model("large", &unknown) };
        assert_eq!(
            of(IdlePolicy::Excluded, &reference).savings[0].energy,
            None,
            "what is metered is not assumed"
        );
    }

    #[test]
    fn a_routing_states_scope_grade_and_coverage() {
        let (small, large) = (run(&[1.0; 4], 2.0, |_| ()), run(&[1.0; 6], 4.0, |_| ()));
        let reference = model("large", &large);
        let routing = evaluate_routing(&[model("small", &small)], &reference, &[0.5], &OPTIONS).unwrap();
        assert_eq!(
            (routing.scope, routing.idle, routing.grade),
            (OPTIONS.scope, OPTIONS.idle, Some(Grade::Measured))
        );
        assert_eq!((routing.asked, routing.queries, routing.assumed), (6, 4, 0));
        assert!(routing.partial && (routing.coverage - 4.0 / 6.0).abs() < 1e-12);
        assert_eq!(routing.concurrency[1], ("large".to_owned(), "unknown".to_owned()));
        // 8 J \u{b1} 0.4 J of 16 J \u{b1} 0.4 J: at most 8.4 / 15.6.
        let error = routing.savings[0].energy_error.unwrap();
        assert!((error - (8.4 / 15.6 - 0.5)).abs() < 1e-5, "{error}");
        assert!((routing.savings[1].energy_error.unwrap() - error / 2.0).abs() < 1e-12);
        let (questions, both) = (
            routing.savings[0].energy.unwrap().interval.unwrap(),
            routing.savings[0].energy_combined.unwrap(),
        );
        assert!((both.high - questions.high - error).abs() < 1e-12, "{both:?}");
        let mut cloud = run(&[1.0; 4], 4.0, |_| ());
        cloud.columns.host_j.fill(f64::NAN);
        let cloud = RoutedModel { assumed_j: Some(100.0), ..model("cloud", &cloud) };
        let routing = evaluate_routing(&[model("small", &small)], &cloud, &[], &OPTIONS).unwrap();
        assert_eq!((routing.assumed, routing.grade), (4, Some(Grade::Measured)));
    }

    #[test]
    fn different_grades_are_incomparable_unless_the_reference_energy_is_assumed() {
        let estimated = |manifest: &mut Manifest| manifest.domains[0].grade = Grade::Estimated;
        let (small, middle) = (run(&[1.0; 2], 1.0, |_| ()), run(&[1.0; 2], 1.0, estimated));
        let mut large = run(&[1.0; 2], 9.0, |manifest| manifest.domains.clear());
        let locals = [model("small", &small), model("middle", &middle)];
        let names = |locals: &[RoutedModel], reference: &RoutedModel| -> Vec<(String, String)> {
            incomparable_runs(locals, reference, &OPTIONS)
                .into_iter()
                .map(|it| (it.first, it.other))
                .collect()
        };
        let pair = |first: &str, other: &str| (first.to_owned(), other.to_owned());
        assert_eq!(names(&locals[..1], &model("small", &small)), []);
        assert_eq!(names(&locals, &model("small", &small)), [pair("small", "middle")]);
        let metered = RoutedModel { assumed_j: Some(9.0), ..model("large", &large) };
        assert_eq!(names(&locals[..1], &metered), [pair("large", "small")]);
        large.columns.host_j.fill(f64::NAN);
        let assumed = RoutedModel { assumed_j: Some(9.0), ..model("large", &large) };
        assert_eq!(names(&locals[..1], &assumed), []);
        assert_eq!(names(&locals, &assumed), [pair("small", "middle")]);
        let routing = evaluate_routing(&locals, &assumed, &[], &OPTIONS).unwrap();
        assert_eq!(routing.unlike[0].differs[0].what, "grade of the energy");
    }

    #[test]
    fn runs_that_share_no_question_have_no_routing() {
        let (one, none) = (run(&[1.0], 1.0, |_| ()), run(&[], 1.0, |_| ()));
        assert!(evaluate_routing(&[model("a", &one)], &model("b", &none), &[], &OPTIONS).is_none());
        assert!(evaluate_routing(&[], &model("b", &one), &[], &OPTIONS).is_none());
    }
}
