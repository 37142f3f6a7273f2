//! What would be saved if questions went to small local models wherever those are good enough.
//!
//! Owns the arithmetic of *Intelligence per Watt*'s routing (arXiv 2511.07885, section 5): a local model *covers* a question
//! where its score is at least the reference's (win or tie); the best-of-local covers where any does; the oracle sends each
//! question to the cheapest model that covers it, else to the reference; a router of accuracy p takes the oracle's choice with
//! probability p and the reference otherwise, so that quality never falls and savings are p times the oracle's. Works over the
//! questions that every run answered and scored. Invariant: a saving needs the cost of every query it counts; one that is
//! not known makes it absent.

use std::collections::HashMap;

use serde::Serialize;

use super::bootstrap::{Pool, Sums};
use super::metric::{Figure, Terms};
use super::table::{Table, known};

/// A run that takes part.
#[derive(Debug)]
pub struct Model<'a> {
    /// Its name.
    pub label: String,
    /// Its rows.
    pub table: &'a Table,
    /// Joules of a query whose row has none, as for a model in the cloud; an assumption of the user's.
    pub assumed_j: Option<f64>,
    /// Parameters that work on a token; the floating-point operations of a query are twice that for each token.
    pub active_parameters: Option<f64>,
    /// Money for a million tokens of the prompt, and of the answer.
    pub per_million_tokens: Option<(f64, f64)>,
}

/// One local model against the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coverage {
    /// Its name.
    pub label: String,
    /// Of the questions, where it was better.
    pub wins: usize,
    /// Where it was as good.
    pub ties: usize,
    /// Both, as a part of all.
    pub covered: Figure,
}

/// What a way of routing saves against all on the reference, as parts of the reference's use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Saving {
    /// How often the router takes the oracle's choice.
    pub accuracy: f64,
    /// Of energy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy: Option<Figure>,
    /// Of floating-point operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Figure>,
    /// Of money.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Figure>,
}

/// The whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routing {
    /// The questions that every run answered and scored.
    pub questions: usize,
    /// Of the reference's name.
    pub reference: String,
    /// Each local model.
    pub models: Vec<Coverage>,
    /// The best of the local models on each question.
    pub best_of_local: Coverage,
    /// The oracle, and the routers that were asked for.
    pub savings: Vec<Saving>,
    /// How many questions the oracle gives to each model, by name, the reference last.
    pub oracle_sends: Vec<(String, usize)>,
}

/// What a query costs: energy, operations, money; each if known.
type Costs = [Option<f64>; 3];

/// The arithmetic over runs of the same questions. `None` where no question is in all of them.
pub fn route(locals: &[Model], reference: &Model, accuracies: &[f64], terms: &Terms) -> Option<Routing> {
    let local: Vec<HashMap<u64, (f64, Costs)>> = locals.iter().map(|model| rows(model, terms)).collect();
    let mut reference_rows: Vec<(u64, (f64, Costs))> = rows(reference, terms).into_iter().collect();
    reference_rows.retain(|(key, _)| local.iter().all(|rows| rows.contains_key(key)));
    reference_rows.sort_unstable_by_key(|(key, _)| *key);
    if reference_rows.is_empty() || locals.is_empty() {
        return None;
    }
    let covers = |rows: &HashMap<u64, (f64, Costs)>, key: &u64, score: f64| rows[key].0.total_cmp(&score);
    let of_one = |label: &str, order: &dyn Fn(&u64, f64) -> std::cmp::Ordering| {
        let orders: Vec<_> = reference_rows.iter().map(|(key, (score, _))| order(key, *score)).collect();
        coverage(label, &orders, terms.seed)
    };
    let models = locals
        .iter()
        .zip(&local)
        .map(|(model, rows)| of_one(&model.label, &|key, score| covers(rows, key, score)));
    let best = |key: &u64, score: f64| {
        local.iter().map(|rows| covers(rows, key, score)).max().unwrap_or(std::cmp::Ordering::Less)
    };
    let mut sends = vec![0; locals.len() + 1];
    let mut pairs: Vec<[Costs; 2]> = Vec::new();
    for (key, (score, costs)) in &reference_rows {
        let fit = (0..local.len()).filter(|at| covers(&local[*at], key, *score).is_ge());
        // The cheapest by energy; one whose energy is not known comes after all others.
        let chosen = fit.min_by(|one, other| {
            let joules = |at: usize| local[at][key].1[0].unwrap_or(f64::INFINITY);
            joules(*one).total_cmp(&joules(*other))
        });
        sends[chosen.unwrap_or(locals.len())] += 1;
        pairs.push([chosen.map_or(*costs, |at| local[at][key].1), *costs]);
    }
    let names = locals.iter().chain([reference]).map(|model| model.label.clone());
    Some(Routing {
        questions: reference_rows.len(),
        reference: reference.label.clone(),
        models: models.collect(),
        best_of_local: of_one("best of local", &best),
        savings: std::iter::once(&1.0).chain(accuracies).map(|p| savings(&pairs, *p, terms.seed)).collect(),
        oracle_sends: names.zip(sends).collect(),
    })
}

/// The savings of a router of accuracy `p`, from those of the oracle: misses go to the reference and save nothing.
pub fn routed(oracle_saving: f64, p: f64) -> f64 {
    oracle_saving * p
}

fn rows(model: &Model, terms: &Terms) -> HashMap<u64, (f64, Costs)> {
    let columns = &model.table.columns;
    let [energy, ..] = columns.scoped(terms.scope);
    let row = |at: usize| {
        let score = known(columns.score[at])?;
        let (read, written) = (known(columns.tokens_in[at]), known(columns.tokens_out[at]));
        let tokens = read.zip(written);
        let joules = known(energy[at]).or(model.assumed_j);
        let operations =
            model.active_parameters.zip(tokens).map(|(n, (read, written))| 2.0 * n * (read + written));
        let money = model.per_million_tokens.zip(tokens);
        let money = money.map(|((one, other), (read, written))| (one * read + other * written) / 1e6);
        Some((columns.key(at), (score, [joules, operations, money])))
    };
    (0..columns.len()).filter_map(row).collect()
}

fn coverage(label: &str, orders: &[std::cmp::Ordering], seed: u64) -> Coverage {
    let wins = orders.iter().filter(|order| order.is_gt()).count();
    let ties = orders.iter().filter(|order| order.is_eq()).count();
    let pool = Pool::new(orders.iter().map(|order| [f64::from(u8::from(order.is_ge()))]), seed);
    let [interval] = pool.intervals(seed, |sums| [sums.mean(0)]);
    Coverage {
        label: label.to_owned(),
        wins,
        ties,
        covered: Figure { value: pool.total().mean(0), interval },
    }
}

fn savings(pairs: &[[Costs; 2]], p: f64, seed: u64) -> Saving {
    let of = |which: usize| {
        let known = pairs.iter().map(|[chosen, reference]| Some([chosen[which]?, reference[which]?]));
        let rows: Vec<[f64; 2]> = known.collect::<Option<_>>()?;
        let pool = Pool::new(rows.into_iter(), seed);
        let saved = |sums: &Sums<2>| [routed(1.0 - sums.of[0] / sums.of[1], p)];
        let value = saved(pool.total())[0];
        let interval = pool.intervals(seed, saved)[0];
        value.is_finite().then_some(Figure { value, interval })
    };
    Saving { accuracy: p, energy: of(0), compute: of(1), cost: of(2) }
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::{TERMS, run};
    use super::*;

    #[test]
    fn a_router_of_accuracy_p_saves_p_of_the_oracle_as_the_paper_has_it() {
        for (oracle, at_eight_tenths) in [(80.4, 64.3), (77.3, 61.8), (73.8, 59.0)] {
            assert_eq!((routed(oracle, 0.8) * 10.0).round() / 10.0, at_eight_tenths);
        }
    }

    fn model<'a>(label: &str, table: &'a Table) -> Model<'a> {
        Model {
            label: label.into(),
            table,
            assumed_j: None,
            active_parameters: None,
            per_million_tokens: None,
        }
    }

    #[test]
    fn each_question_goes_to_the_cheapest_model_that_is_good_enough() {
        // The reference knows all but the last; small knows one of four, middle three, at 1 J and 2 J against 10 J.
        let reference = run(&[1.0, 1.0, 1.0, 0.0], 10.0, |_| ());
        let (small, middle) =
            (run(&[1.0, 0.0, 0.0, 0.0], 1.0, |_| ()), run(&[1.0, 1.0, 0.0, 1.0], 2.0, |_| ()));
        let locals = [model("small", &small), model("middle", &middle)];
        let mut whole = model("reference", &reference);
        whole.active_parameters = Some(8e9);
        let routing = route(&locals, &whole, &[0.8], &TERMS).unwrap();
        assert_eq!(routing.questions, 4);
        let counts: Vec<(usize, usize)> = routing.models.iter().map(|it| (it.wins, it.ties)).collect();
        assert_eq!(counts, [(0, 2), (1, 2)]);
        assert_eq!(routing.best_of_local.covered.value, 0.75);
        let sends: Vec<usize> = routing.oracle_sends.iter().map(|(_, count)| *count).collect();
        assert_eq!(sends, [2, 1, 1], "the last question ties at 0, and small is cheaper");
        let saved = |at: usize| routing.savings[at].energy.unwrap().value;
        assert!((saved(0) - (1.0 - (1.0 + 2.0 + 10.0 + 1.0) / 40.0)).abs() < 1e-6);
        assert!((saved(1) - 0.8 * saved(0)).abs() < 1e-12);
        assert_eq!(routing.savings[0].compute, None, "the local models' parameters are not known");
    }

    #[test]
    fn a_reference_without_a_meter_saves_nothing_unless_its_energy_is_assumed() {
        let reference = run(&[1.0, 1.0], 10.0, |_| ());
        let mut unmetered = run(&[1.0, 1.0], 10.0, |_| ());
        unmetered.columns.host_j.fill(f64::NAN);
        let locals = [model("local", &reference)];
        let mut cloud = model("cloud", &unmetered);
        assert_eq!(route(&locals, &cloud, &[], &TERMS).unwrap().savings[0].energy, None);
        cloud.assumed_j = Some(100.0);
        let saving = route(&locals, &cloud, &[], &TERMS).unwrap().savings[0].energy.unwrap().value;
        assert!((saving - 0.9).abs() < 1e-6);
    }

    #[test]
    fn runs_that_share_no_question_have_no_routing() {
        let (one, none) = (run(&[1.0], 1.0, |_| ()), run(&[], 1.0, |_| ()));
        assert!(route(&[model("a", &one)], &model("b", &none), &[], &TERMS).is_none());
        assert!(route(&[], &model("b", &one), &[], &TERMS).is_none());
    }
}
