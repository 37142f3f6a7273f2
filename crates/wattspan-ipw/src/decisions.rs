//! Decisions that a router made: what they cost, the router's own energy included, and what quality they lost.
//!
//! The decided queries are looked up in runs of the same questions, one for each model, and compared with sending all of
//! them to the best model, all to the cheapest one, and each as the oracle does (`route.rs`). Invariant: every policy is
//! evaluated over the same queries, and an energy is absent if that of any query is unknown.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;

use serde::{Deserialize, Serialize};
use wattspan_client::account::{Account, SpanState};
use wattspan_client::domain::Grade;

use super::bootstrap::ConfidenceInterval;
use super::columns::hash_query;
use super::estimates::{ENERGY, Figure, SCORE};
use super::intervals::{IntervalSample, SampleQuery};
use super::meter_error::widen_difference;
use super::metrics::{Estimate, MIN_COVERAGE, MetricOptions};
use super::paired_intervals::{PairedQuery, PairedSample};
use super::route::{IncomparableRuns, RoutedModel, SharedQueries, incomparable_runs, ratio_error};
use super::run_dir;
use super::scope::{IdlePolicy, RunDomain, Scope};

/// One decision of a router: a line of the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Decision {
    /// The id of the question.
    pub id: String,
    /// The repeat of the question; without it the decision holds for every time that the question was asked.
    #[serde(default)]
    pub repeat: Option<u32>,
    /// The model to which the question is sent: the label of a run, or the name of its directory.
    pub model: String,
    /// The router's own energy for this decision, microjoules.
    #[serde(default)]
    pub router_uj: Option<u64>,
    /// Guaranteed half-width of `router_uj`.
    #[serde(default)]
    pub router_error_uj: Option<u64>,
    /// The name of the spans that measured the router; decisions of the same name share their energy equally.
    #[serde(default)]
    pub router_span: Option<String>,
    /// The number of the line, from 1.
    #[serde(skip)]
    pub line: usize,
}

/// Decisions that cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecisionsError {
    /// A line cannot be read or is no decision.
    #[error("line {line}: {reason}")]
    Invalid {
        /// The number of the line, from 1.
        line: usize,
        reason: String,
    },
    /// No run has the question.
    #[error("line {line}: no run has the question {id:?}")]
    UnknownQuestion {
        line: usize,
        /// The id of the question, with its repeat if the line has one.
        id: String,
    },
    /// No run belongs to the model.
    #[error("line {line}: no run is named {model:?}; the runs are {known}")]
    UnknownModel { line: usize, model: String, known: String },
    /// Two lines decide about the same query.
    #[error("line {line}: the question {id:?} was already decided in line {first}")]
    Duplicate { line: usize, first: usize, id: String },
    /// Some queries have no decision.
    #[error("{count} of {queries} queries have no decision: {examples} (--allow-partial leaves them out)")]
    Missing {
        count: usize,
        /// The number of queries that all runs delivered and scored.
        queries: usize,
        /// The ids of the first few.
        examples: String,
    },
    /// Some decisions have an energy of the router and others have none.
    #[error(
        "line {line} has no energy of the router (router_uj, router_span), and line {first} has one: give it for every decision or for none"
    )]
    MixedEnergy { line: usize, first: usize },
    /// The energy of the router's spans is unknown.
    #[error("the router's span {name:?}: {reason}")]
    Span { name: String, reason: String },
    /// No query was decided that all runs delivered and scored.
    #[error("no decided question was answered and scored in all of these runs")]
    NoQuery,
}

/// The router's own energy for one decision, joules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterEnergy {
    pub energy_j: f64,
    /// Guaranteed half-width.
    pub error_j: Option<f64>,
}

/// The figures of a way to send the queries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyFigures {
    /// "router", "always best", "always cheapest" or "oracle".
    pub policy: &'static str,
    /// The model to which all queries go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub accuracy: Estimate,
    /// Mean energy of a query, joules; of the router with its own energy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_j: Option<Estimate>,
    /// Guaranteed error of `energy_j`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_error_j: Option<f64>,
    /// IPJ: accuracy / mean energy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_joule: Option<Estimate>,
    /// The accuracy of this policy minus that of the router; absent for the router.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality_lost: Option<Estimate>,
    /// The part of this policy's energy that the router saves, its own energy included; absent for the router.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_saved: Option<Estimate>,
    /// Guaranteed error of `energy_saved`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_saved_error: Option<f64>,
    /// The interval of `energy_saved` widened by `energy_saved_error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_saved_combined: Option<ConfidenceInterval>,
}

/// Queries that were sent to a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelSends {
    pub model: String,
    /// By the router's decisions.
    pub router: usize,
    /// By the oracle.
    pub oracle: usize,
}

/// The result of the evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecisionReport {
    pub scope: Scope,
    /// Whether idle power is included.
    pub idle: IdlePolicy,
    /// The worst grade among the measured energies of the queries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Whether any run's machine was simulated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// Number of queries in the largest of the runs.
    pub asked: usize,
    /// Number of decided queries that every run delivered and scored; all figures are over these.
    pub queries: usize,
    /// `queries` / `asked`.
    pub coverage: f64,
    /// Whether the coverage is below [`MIN_COVERAGE`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Number of queries without a decision.
    pub undecided: usize,
    /// Number of queries for which the router decided as the oracle does.
    pub as_oracle: usize,
    /// The router's own mean energy for a decision, joules; absent if the decisions have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_j: Option<f64>,
    /// Guaranteed error of `router_j`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_error_j: Option<f64>,
    pub sends: Vec<ModelSends>,
    /// The router, always the best model, always the cheapest one if the energies are known, and the oracle.
    pub policies: Vec<PolicyFigures>,
    /// The number of questions from which the intervals hold, if there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions_needed: Option<usize>,
    /// Mismatches between the runs; empty unless the user forces the comparison.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unlike: Vec<IncomparableRuns>,
}

/// Reads decisions: JSON lines. Empty lines are skipped.
///
/// # Errors
/// A line cannot be read or is no decision.
pub fn read_decisions(text: impl BufRead) -> Result<Vec<Decision>, DecisionsError> {
    let mut decisions = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let invalid = |reason| DecisionsError::Invalid { line, reason };
        let text = text.map_err(|cause| invalid(cause.to_string()))?;
        if text.trim().is_empty() {
            continue;
        }
        let mut decision: Decision =
            serde_json::from_str(&text).map_err(|cause| invalid(format!("is no decision: {cause}")))?;
        if decision.router_uj.is_some() && decision.router_span.is_some() {
            return Err(invalid("has both router_uj and router_span".into()));
        }
        decision.line = line;
        decisions.push(decision);
    }
    Ok(decisions)
}

/// Returns the names of the router's spans, each once.
pub fn router_spans(decisions: &[Decision]) -> Vec<&str> {
    let mut seen = HashSet::new();
    let names = decisions.iter().filter_map(|decision| decision.router_span.as_deref());
    names.filter(|name| seen.insert(*name)).collect()
}

/// Returns the router's energy of each decision; empty if no decision has one. `accounts` are those of the router's spans,
/// and `reference` is a run with the domains of the scope.
///
/// # Errors
/// Only some decisions have an energy, or the energy of a span is unknown.
pub fn router_energies(
    decisions: &[Decision],
    accounts: &[Account],
    reference: &RoutedModel,
    options: &MetricOptions,
) -> Result<Vec<RouterEnergy>, DecisionsError> {
    let has_energy = |it: &&Decision| it.router_uj.is_some() || it.router_span.is_some();
    let Some(first) = decisions.iter().find(has_energy) else { return Ok(Vec::new()) };
    if let Some(without) = decisions.iter().find(|it| !has_energy(it)) {
        return Err(DecisionsError::MixedEnergy { line: without.line, first: first.line });
    }
    let mut of_spans = HashMap::new();
    for name in router_spans(decisions) {
        let sharing = decisions.iter().filter(|it| it.router_span.as_deref() == Some(name)).count() as f64;
        let all = spans_energy(name, accounts, reference, options)
            .map_err(|reason| DecisionsError::Span { name: name.to_owned(), reason })?;
        let each =
            RouterEnergy { energy_j: all.energy_j / sharing, error_j: all.error_j.map(|it| it / sharing) };
        of_spans.insert(name, each);
    }
    let joules = |uj: u64| uj as f64 / 1e6;
    let energy_of = |it: &Decision| match &it.router_span {
        Some(name) => of_spans[name.as_str()],
        None => RouterEnergy {
            energy_j: joules(it.router_uj.unwrap_or_default()),
            error_j: it.router_error_uj.map(joules),
        },
    };
    Ok(decisions.iter().map(energy_of).collect())
}

/// Returns the energy of all spans of a name in the scope, or why it is unknown.
fn spans_energy(
    name: &str,
    accounts: &[Account],
    reference: &RoutedModel,
    options: &MetricOptions,
) -> Result<RouterEnergy, String> {
    let manifest = &reference.table.manifest;
    let (mut sum, mut count) = (RouterEnergy { energy_j: 0.0, error_j: Some(0.0) }, 0);
    for account in accounts.iter().filter(|account| account.name == name) {
        if matches!(account.state, SpanState::Open | SpanState::Provisional) {
            return Err("is not settled yet".into());
        }
        if account.simulated.unwrap_or(false) != manifest.is_simulated() {
            return Err("either its machine or that of the runs is simulated, and not both".into());
        }
        let [share, error, idle] = account_energy_j(account, &manifest.domains, options.scope);
        let idle = match options.idle {
            IdlePolicy::Included => Some(0.0),
            IdlePolicy::Excluded => idle,
        };
        let unknown =
            || format!("its energy is unknown: {}, {}", options.scope.title(), options.idle.title());
        sum.energy_j += share.zip(idle).map(|(share, idle)| share - idle).ok_or_else(unknown)?;
        sum.error_j = sum.error_j.zip(error).map(|(sum, error)| sum + error);
        count += 1;
    }
    if count == 0 { Err("no account has this name".into()) } else { Ok(sum) }
}

/// Returns share, error and idle part of an account in a scope, joules; each if known.
fn account_energy_j(account: &Account, domains: &[RunDomain], scope: Scope) -> [Option<f64>; 3] {
    let in_joules = |uj: Option<u64>| uj.map(|uj| uj as f64 / 1e6);
    if scope == Scope::Host {
        return [account.share_uj, account.error_uj, account.idle_uj].map(in_joules);
    }
    let indices = scope.domain_indices(domains);
    let mut sums = [Some(0_u64); 3];
    for at in &indices {
        let share = account.domains.iter().find(|share| *share.domain == *domains[*at].name);
        let parts = share.map_or([None; 3], |share| [share.share_uj, share.error_uj, share.idle_uj]);
        for (sum, part) in sums.iter_mut().zip(parts) {
            *sum = sum.zip(part).map(|(sum, part)| sum.saturating_add(part));
        }
    }
    if indices.is_empty() { [None; 3] } else { sums.map(in_joules) }
}

/// Evaluates decisions over runs of the same questions. `router` has the router's energy of each decision, or is empty.
/// With `allow_partial`, queries without a decision are left out.
///
/// # Errors
/// A decision names an unknown question or model, a query is decided twice or not at all, or none can be evaluated.
pub fn evaluate_decisions(
    locals: &[RoutedModel],
    reference: &RoutedModel,
    decisions: &[Decision],
    router: &[RouterEnergy],
    options: &MetricOptions,
    allow_partial: bool,
) -> Result<DecisionReport, DecisionsError> {
    let runs: Vec<&RoutedModel> = locals.iter().chain([reference]).collect();
    let plan = DecisionPlan::new(&runs, decisions)?;
    let shared = SharedQueries::find(locals, reference, options).ok_or(DecisionsError::NoQuery)?;
    let undecided: Vec<u64> = shared
        .references
        .iter()
        .map(|(key, _)| *key)
        .filter(|key| !plan.of_query.contains_key(key))
        .collect();
    if !undecided.is_empty() && !allow_partial {
        return Err(missing(&undecided, shared.references.len(), reference));
    }
    let queries = DecidedQueries::new(&shared, &plan, router);
    if queries.models.is_empty() {
        return Err(DecisionsError::NoQuery);
    }
    let asked = runs.iter().map(|run| run.table.asked()).max().unwrap_or(0);
    let count = queries.models.len();
    let coverage = count as f64 / asked as f64;
    let sends = runs.iter().enumerate().map(|(model, run)| {
        let sent = |all: &[usize]| all.iter().filter(|sent_to| **sent_to == model).count();
        ModelSends { model: run.label.clone(), router: sent(&queries.models), oracle: sent(&queries.oracle) }
    });
    let (policies, questions_needed) = queries.policies(&runs);
    let of_router = |of: &dyn Fn(&RouterEnergy) -> Option<f64>| -> Option<f64> {
        let all: Vec<f64> = queries.router.iter().map(of).collect::<Option<_>>()?;
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    };
    Ok(DecisionReport {
        scope: options.scope,
        idle: options.idle,
        grade: shared.worst_grade(),
        simulated: runs.iter().any(|run| run.table.manifest.is_simulated()),
        asked,
        queries: count,
        coverage,
        partial: coverage < MIN_COVERAGE,
        undecided: undecided.len(),
        as_oracle: queries.models.iter().zip(&queries.oracle).filter(|(one, other)| one == other).count(),
        router_j: of_router(&|it| Some(it.energy_j)),
        router_error_j: of_router(&|it| it.error_j),
        sends: sends.collect(),
        policies,
        questions_needed,
        unlike: incomparable_runs(locals, reference, options),
    })
}

fn missing(undecided: &[u64], queries: usize, reference: &RoutedModel) -> DecisionsError {
    const MAX_EXAMPLES: usize = 5;
    let table = reference.table;
    let questions = run_dir::read_questions(&table.run).unwrap_or_default();
    let names: HashMap<u64, String> = (0..table.manifest.repeats.max(1))
        .flat_map(|repeat| {
            questions.iter().map(move |it| (hash_query(&it.id, repeat), query_name(&it.id, repeat)))
        })
        .collect();
    let named: Vec<&str> =
        undecided.iter().filter_map(|key| names.get(key)).map(String::as_str).take(MAX_EXAMPLES).collect();
    let more = if undecided.len() > named.len() { ", ..." } else { "" };
    DecisionsError::Missing { count: undecided.len(), queries, examples: named.join(", ") + more }
}

/// The id of a question, with its repeat if it was asked more than once.
fn query_name(id: &str, repeat: u32) -> String {
    if repeat == 0 { id.to_owned() } else { format!("{id} (repeat {repeat})") }
}

/// Which decision belongs to which query.
struct DecisionPlan {
    /// The index of the decision by the key of the query.
    of_query: HashMap<u64, usize>,
    /// The index of the model of each decision.
    models: Vec<usize>,
}

impl DecisionPlan {
    fn new(runs: &[&RoutedModel], decisions: &[Decision]) -> Result<Self, DecisionsError> {
        let known: HashSet<u64> = runs.iter().flat_map(|run| run.table.columns.query_hashes()).collect();
        let repeats = runs.iter().map(|run| run.table.manifest.repeats).max().unwrap_or(1).max(1);
        let (mut of_query, mut models) = (HashMap::new(), Vec::new());
        for (index, decision) in decisions.iter().enumerate() {
            let Decision { id, line, .. } = decision;
            let in_file = match decision.repeat {
                Some(repeat) => repeat..repeat.saturating_add(1),
                None => 0..repeats,
            };
            let keys: Vec<u64> =
                in_file.map(|repeat| hash_query(id, repeat)).filter(|key| known.contains(key)).collect();
            if keys.is_empty() {
                let id = query_name(id, decision.repeat.unwrap_or(0));
                return Err(DecisionsError::UnknownQuestion { line: *line, id });
            }
            for key in keys {
                if let Some(first) = of_query.insert(key, index) {
                    let first: &Decision = &decisions[first];
                    return Err(DecisionsError::Duplicate { line: *line, first: first.line, id: id.clone() });
                }
            }
            models.push(find_model(runs, decision)?);
        }
        Ok(Self { of_query, models })
    }
}

/// Returns the index of the run that a decision names by its label, or by its directory.
fn find_model(runs: &[&RoutedModel], decision: &Decision) -> Result<usize, DecisionsError> {
    let by_label = runs.iter().position(|run| run.label == decision.model);
    let by_directory = || {
        let is_named =
            |run: &&RoutedModel| run.table.run.file_name().is_some_and(|it| *it == *decision.model);
        let mut named = (0..runs.len()).filter(|at| is_named(&runs[*at]));
        named.next().filter(|_| named.next().is_none())
    };
    by_label.or_else(by_directory).ok_or_else(|| DecisionsError::UnknownModel {
        line: decision.line,
        model: decision.model.clone(),
        known: runs.iter().map(|run| run.label.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// A query as a policy sends it. What is unknown is `NaN`.
#[derive(Debug, Clone, Copy)]
struct PolicyQuery {
    question: u64,
    open_s: [f64; 2],
    score: f64,
    energy_j: f64,
    error_j: f64,
}

/// The decided queries that every run has.
struct DecidedQueries {
    /// The queries at each model, the reference last.
    at_model: Vec<Vec<PolicyQuery>>,
    /// The index of the model to which each query is sent.
    models: Vec<usize>,
    /// The same of the oracle.
    oracle: Vec<usize>,
    /// The router's energy for each query, or empty.
    router: Vec<RouterEnergy>,
    /// Whether a question was asked more than once.
    repeated: bool,
}

impl DecidedQueries {
    fn new(shared: &SharedQueries, plan: &DecisionPlan, router: &[RouterEnergy]) -> Self {
        let (_, choices) = shared.oracle_choices();
        let mut queries = Self {
            at_model: vec![Vec::new(); shared.locals.len() + 1],
            models: Vec::new(),
            oracle: Vec::new(),
            router: Vec::new(),
            repeated: shared.repeated,
        };
        for ((key, reference), choice) in shared.references.iter().zip(&choices) {
            let Some(decision) = plan.of_query.get(key) else { continue };
            let of_locals = shared.locals.iter().map(|queries| &queries[key]);
            for (column, query) in queries.at_model.iter_mut().zip(of_locals.chain([reference])) {
                column.push(PolicyQuery {
                    question: query.question,
                    open_s: query.open_s,
                    score: query.score,
                    energy_j: query.costs[0].unwrap_or(f64::NAN),
                    error_j: query.error_j.unwrap_or(f64::NAN),
                });
            }
            queries.models.push(plan.models[*decision]);
            queries.oracle.push(choice.model);
            queries.router.extend(router.get(*decision));
        }
        queries
    }

    /// Returns the queries as they are sent to these models.
    fn sent_to(&self, models: &[usize]) -> Vec<PolicyQuery> {
        models.iter().enumerate().map(|(at, model)| self.at_model[*model][at]).collect()
    }

    /// Returns the queries as the router sends them, each with the router's own energy.
    fn sent_by_router(&self) -> Vec<PolicyQuery> {
        let mut sent = self.sent_to(&self.models);
        for (query, router) in sent.iter_mut().zip(&self.router) {
            query.energy_j += router.energy_j;
            query.error_j += router.error_j.unwrap_or(f64::NAN);
        }
        sent
    }

    /// Returns the index of the model with the highest accuracy, and that of the one with the lowest energy if the energies
    /// are known. Of equal ones the cheaper and then the first counts.
    fn extremes(&self) -> (usize, Option<usize>) {
        let sums: Vec<[f64; 2]> = self
            .at_model
            .iter()
            .map(|all| {
                all.iter().fold([0.0; 2], |[score, joules], it| [score + it.score, joules + it.energy_j])
            })
            .collect();
        let cost = |at: usize| if sums[at][1].is_nan() { f64::INFINITY } else { sums[at][1] };
        let all = || 0..sums.len();
        let best = all().min_by(|one, other| {
            sums[*other][0].total_cmp(&sums[*one][0]).then(cost(*one).total_cmp(&cost(*other)))
        });
        let cheapest = all().min_by(|one, other| cost(*one).total_cmp(&cost(*other)));
        let is_known = sums.iter().all(|sum| sum[1].is_finite());
        (best.unwrap_or(0), cheapest.filter(|_| is_known))
    }

    /// Returns the figures of all policies, the router's first, and the number of questions that the intervals need.
    fn policies(&self, runs: &[&RoutedModel]) -> (Vec<PolicyFigures>, Option<usize>) {
        let router = self.sent_by_router();
        let (best, cheapest) = self.extremes();
        let always = |policy, model: usize| (policy, Some(model), vec![model; router.len()]);
        let mut baselines = vec![always("always best", best)];
        baselines.extend(cheapest.map(|model| always("always cheapest", model)));
        baselines.push(("oracle", None, self.oracle.clone()));
        let (own, mut needed) = self.figures("router", None, &router);
        let mut all = vec![own];
        for (policy, model, models) in baselines {
            let sent = self.sent_to(&models);
            let label = model.map(|model| runs[model].label.clone());
            let (figures, needs) = self.figures(policy, label, &sent);
            needed = needed.max(needs);
            all.push(self.against_router(figures, &sent, &router));
        }
        let questions = self.at_model[0].iter().map(|it| it.question).collect::<HashSet<_>>().len();
        (all, needed.filter(|needed| *needed > questions))
    }

    /// Returns the figures of one policy, and the number of questions that their intervals need.
    fn figures(
        &self,
        policy: &'static str,
        model: Option<String>,
        sent: &[PolicyQuery],
    ) -> (PolicyFigures, Option<usize>) {
        let values = sent.iter().map(|it| SampleQuery {
            question: it.question,
            open_s: it.open_s,
            values: [it.score, it.energy_j],
        });
        let sample: IntervalSample<2> = IntervalSample::new(values, self.repeated);
        let (score, joules) = (sample.column_mean(SCORE), sample.column_mean(ENERGY));
        let cost = sample.mean_cost(ENERGY);
        let known = |value: f64, interval| value.is_finite().then_some(Estimate { value, interval });
        let per_joule = cost.map(|cost| sample.score_per_cost(SCORE, ENERGY, cost));
        let error = sent.iter().map(|it| it.error_j).sum::<f64>() / sent.len() as f64;
        let figures = PolicyFigures {
            policy,
            model,
            accuracy: Estimate { value: score, interval: sample.score_interval(SCORE) },
            energy_j: known(joules, cost.map(|cost| cost.interval())),
            energy_error_j: error.is_finite().then_some(error),
            per_joule: known(score / joules, per_joule),
            quality_lost: None,
            energy_saved: None,
            energy_saved_error: None,
            energy_saved_combined: None,
        };
        (figures, cost.and_then(|cost| cost.questions_needed))
    }

    /// Adds what the router loses and saves against a policy.
    fn against_router(
        &self,
        figures: PolicyFigures,
        sent: &[PolicyQuery],
        router: &[PolicyQuery],
    ) -> PolicyFigures {
        let pair = |(of_policy, of_router): (&PolicyQuery, &PolicyQuery)| PairedQuery {
            question: of_router.question,
            open_s: [of_router.open_s, of_policy.open_s],
            // No figure here is per watt.
            values: [of_router, of_policy].map(|it| [it.score, it.energy_j, f64::NAN]),
        };
        let pairs: Vec<PairedQuery> = sent.iter().zip(router).map(pair).collect();
        let (lost, lost_interval) = PairedSample::new(&pairs, self.repeated).score_difference();
        let swapped: Vec<PairedQuery> = pairs
            .iter()
            .map(|it| PairedQuery {
                question: it.question,
                open_s: [it.open_s[1], it.open_s[0]],
                values: [it.values[1], it.values[0]],
            })
            .collect();
        let (ratio, interval): Figure = PairedSample::new(&swapped, self.repeated).cost_ratio(ENERGY);
        let saved = ratio.is_finite().then_some(Estimate {
            value: 1.0 - ratio,
            interval: interval.map(|it| ConfidenceInterval { low: 1.0 - it.high, high: 1.0 - it.low }),
        });
        let sum = |of: fn(&PolicyQuery) -> f64| [router, sent].map(|all| all.iter().map(of).sum::<f64>());
        let errors = sum(|it| it.error_j);
        let error = saved.filter(|_| errors.iter().all(|error| error.is_finite()));
        let error = error.and_then(|_| ratio_error(sum(|it| it.energy_j), errors));
        PolicyFigures {
            quality_lost: Some(Estimate { value: lost, interval: lost_interval }),
            energy_saved: saved,
            energy_saved_error: error,
            energy_saved_combined: widen_difference(saved.and_then(|saved| saved.interval), error),
            ..figures
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::{OPTIONS, repeated, run};
    use super::super::table::RunTable;
    use super::*;

    fn model<'a>(label: &str, table: &'a RunTable) -> RoutedModel<'a> {
        RoutedModel {
            label: label.into(),
            table,
            assumed_j: None,
            active_parameters: None,
            per_million_tokens: None,
        }
    }

    fn decisions(lines: &[String]) -> Result<Vec<Decision>, DecisionsError> {
        read_decisions(lines.join("\n").as_bytes())
    }

    fn sent(models: &[&str]) -> Vec<Decision> {
        let lines: Vec<String> = models
            .iter()
            .enumerate()
            .map(|(id, model)| format!(r#"{{"id":"{id}","model":"{model}","router_uj":100000}}"#))
            .collect();
        decisions(&lines).unwrap()
    }

    fn evaluate(
        tables: [&RunTable; 2],
        decisions: &[Decision],
        accounts: &[Account],
    ) -> Result<DecisionReport, DecisionsError> {
        let [small, large] = tables;
        let reference = model("large", large);
        let router = router_energies(decisions, accounts, &reference, &OPTIONS)?;
        evaluate_decisions(&[model("small", small)], &reference, decisions, &router, &OPTIONS, false)
    }

    #[test]
    fn decisions_are_evaluated_with_the_routers_own_energy() {
        // Small is right on the first two of four at 1 J, large on all but the last at 10 J. The router sends the first
        // and the third to small, and uses 0.1 J for each decision.
        let (small, large) =
            (run(&[1.0, 1.0, 0.0, 0.0], 1.0, |_| ()), run(&[1.0, 1.0, 1.0, 0.0], 10.0, |_| ()));
        let report = evaluate([&small, &large], &sent(&["small", "large", "small", "large"]), &[]).unwrap();
        let [router, best, cheapest, oracle] = report.policies.as_slice() else { panic!("{report:?}") };
        let near = |one: f64, other: f64| (one - other).abs() < 1e-5;
        assert_eq!((router.accuracy.value, best.accuracy.value), (0.5, 0.75));
        assert!(near(router.energy_j.unwrap().value, 5.6), "{router:?}");
        assert_eq!((best.model.as_deref(), cheapest.model.as_deref()), (Some("large"), Some("small")));
        assert_eq!(best.quality_lost.unwrap().value, 0.25);
        assert_eq!((cheapest.quality_lost.unwrap().value, oracle.quality_lost.unwrap().value), (0.0, 0.25));
        assert!(near(best.energy_saved.unwrap().value, 1.0 - 5.6 / 10.0), "{best:?}");
        assert!(near(cheapest.energy_saved.unwrap().value, 1.0 - 5.6 / 1.0));
        // The oracle: small, small, large, large.
        assert!(
            near(oracle.energy_j.unwrap().value, 5.5) && near(oracle.energy_saved.unwrap().value, -0.1 / 5.5)
        );
        assert_eq!((report.as_oracle, report.queries, report.router_j), (2, 4, Some(0.1)));
        let counts: Vec<_> = report.sends.iter().map(|it| (it.router, it.oracle)).collect();
        assert_eq!(counts, [(2, 2), (2, 2)]);
        // The router states no error, so the sum has none.
        assert_eq!((router.energy_error_j, best.energy_saved_error), (None, None));
        assert!(near(best.energy_error_j.unwrap(), 0.1));
        for policy in &report.policies {
            let (energy, accuracy) = (policy.energy_j.unwrap(), policy.accuracy);
            assert!(near(policy.per_joule.unwrap().value, accuracy.value / energy.value));
            for figure in
                [Some(energy), Some(accuracy), policy.quality_lost, policy.energy_saved].into_iter().flatten()
            {
                let interval = figure.interval.unwrap();
                assert!(interval.low <= figure.value && figure.value <= interval.high, "{policy:?}");
            }
        }
    }

    #[test]
    fn a_router_that_decides_as_the_oracle_saves_what_the_oracle_saves() {
        let scores: Vec<f64> = (0..40).map(|id| f64::from(id % 2)).collect();
        let (small, large) = (run(&scores, 1.0, |_| ()), run(&[1.0; 40], 10.0, |_| ()));
        let lines: Vec<String> = (0..40)
            .map(|id| format!(r#"{{"id":"{id}","model":"{}"}}"#, ["large", "small"][id % 2]))
            .collect();
        let report = evaluate([&small, &large], &decisions(&lines).unwrap(), &[]).unwrap();
        let routing = super::super::route::evaluate_routing(
            &[model("small", &small)],
            &model("large", &large),
            &[],
            &OPTIONS,
        );
        let oracle = routing.unwrap().savings[0].energy.unwrap().value;
        let best = &report.policies[1];
        assert!((best.energy_saved.unwrap().value - oracle).abs() < 1e-12);
        assert_eq!((report.as_oracle, report.router_j), (40, None));
        let against_oracle = &report.policies[3];
        assert_eq!(against_oracle.energy_saved.unwrap().value, 0.0);
        let interval = against_oracle.energy_saved.unwrap().interval.unwrap();
        assert!(interval.low.abs() < 1e-9 && interval.high.abs() < 1e-9, "the same queries: {interval:?}");
    }

    #[test]
    fn each_error_names_its_line() {
        let (small, large) = (run(&[1.0; 3], 1.0, |_| ()), run(&[1.0; 3], 10.0, |_| ()));
        let refused = |lines: &[&str]| {
            let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            let result = decisions(&lines).and_then(|all| evaluate([&small, &large], &all, &[]));
            result.unwrap_err().to_string()
        };
        let (first, second, third) = (
            r#"{"id":"0","model":"small"}"#,
            r#"{"id":"1","model":"large"}"#,
            r#"{"id":"2","model":"small"}"#,
        );
        for (lines, wanted) in [
            (&[first, second, r#"{"id":"9","model":"small"}"#][..], "line 3: no run has the question \"9\""),
            (&[first, "", first, second, third], "line 3: the question \"0\" was already decided in line 1"),
            (
                &[first, r#"{"id":"0","repeat":0,"model":"large"}"#],
                "line 2: the question \"0\" was already decided",
            ),
            (&[r#"{"id":"0","model":"medium"}"#], "no run is named \"medium\"; the runs are small, large"),
            (&[r#"{"id":"0","repeat":4,"model":"small"}"#], "no run has the question \"0 (repeat 4)\""),
            (&[first, second], "1 of 3 queries have no decision"),
            (&["[]"], "line 1: is no decision"),
            (&[r#"{"id":"0","model":"small","router_uj":-5}"#], "line 1: is no decision"),
            (
                &[r#"{"id":"0","model":"small","router_uj":5,"router_span":"r"}"#],
                "both router_uj and router_span",
            ),
            (
                &[first, r#"{"id":"1","model":"small","router_uj":5}"#, third],
                "line 1 has no energy of the router",
            ),
            (&[r#"{"id":"0","model":"small","router_span":"r"}"#], "the router's span \"r\": no account"),
            (&[], "3 of 3 queries have no decision"),
        ] {
            let message = refused(lines);
            assert!(message.contains(wanted), "{message}\nand not {wanted}");
        }
    }

    #[test]
    fn a_decision_without_a_repeat_holds_for_all_of_them() {
        let (small, large) = (
            repeated(3, &[1.0; 2], 1.0, |it| it.repeats = 3),
            repeated(3, &[1.0; 2], 4.0, |it| it.repeats = 3),
        );
        let lines = [r#"{"id":"0","model":"small"}"#.to_owned(), r#"{"id":"1","model":"large"}"#.to_owned()];
        let report = evaluate([&small, &large], &decisions(&lines).unwrap(), &[]).unwrap();
        assert_eq!((report.queries, report.sends[0].router, report.sends[1].router), (6, 3, 3));
    }

    fn account(name: &str, share_uj: u64, state: &str) -> Account {
        serde_json::from_value(serde_json::json!({
            "span": "1", "name": name, "attributes": {}, "state": state, "uid": 0, "opened_ns": 0, "moved_ns": 0,
            "opened_unix_ns": 0, "weight": 1.0, "share_uj": share_uj, "error_uj": 30_000, "idle_uj": 100_000,
            "simulated": true, "peak_concurrency": 1, "domains": [], "phases": [],
        }))
        .unwrap()
    }

    #[test]
    fn decisions_share_the_energy_of_the_spans_that_they_name() {
        let (small, large) = (run(&[1.0, 1.0, 0.0], 1.0, |_| ()), run(&[1.0; 3], 10.0, |_| ()));
        let lines: Vec<String> =
            (0..3).map(|id| format!(r#"{{"id":"{id}","model":"small","router_span":"switch"}}"#)).collect();
        let all = decisions(&lines).unwrap();
        let spans = [
            account("switch", 1_000_000, "settled"),
            account("switch", 500_000, "settled"),
            account("x", 9, "open"),
        ];
        let report = evaluate([&small, &large], &all, &spans).unwrap();
        assert!((report.router_j.unwrap() - 0.5).abs() < 1e-12);
        assert!((report.router_error_j.unwrap() - 0.02).abs() < 1e-12);
        // 1.5 J \u{b1} 0.12 J of 10 J \u{b1} 0.1 J, in the mean.
        let best = &report.policies[1];
        assert!((best.energy_saved_error.unwrap() - (1.62 / 9.9 - 0.15)).abs() < 1e-4, "{best:?}");
        let reference = model("large", &large);
        let excluded = MetricOptions { idle: IdlePolicy::Excluded, ..OPTIONS };
        let bare = router_energies(&all, &spans, &reference, &excluded).unwrap();
        assert!((bare[0].energy_j - 1.3 / 3.0).abs() < 1e-12);
        let open = [account("switch", 1, "provisional")];
        let refused = router_energies(&all, &open, &reference, &OPTIONS).unwrap_err();
        assert!(refused.to_string().contains("not settled"), "{refused}");
    }
}
