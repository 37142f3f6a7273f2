//! Intelligence per watt and per joule.
//!
//! Owns the figures over a set of queries. All are ratios of means over the same queries (*Intelligence per Watt*, arXiv
//! 2511.07885, section 3): those that were answered, scored, and whose energy is known in the scope; `covered` of `asked`
//! says how many that were. A query's power is its energy over the time its account lasted. Invariant: no figure without
//! its interval where one can be given, and none at all over nothing.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Interval, Pool, Sums, wilson};
use super::scope::{Idle, Scope};
use super::table::{Table, known};
use crate::energy::Grade;

/// A figure and how far it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The figure over all queries.
    pub value: f64,
    /// 95 %, over the choice of questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Which domains count.
    pub scope: Scope,
    /// Whether idle power does.
    pub idle: Idle,
    /// Of the resampling.
    pub seed: u64,
}

/// The figures over a set of queries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// What they are over: a subject, or everything.
    pub of: String,
    /// Which domains count.
    pub scope: Scope,
    /// Whether idle power does.
    pub idle: Idle,
    /// The worst grade among the queries' energies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<Grade>,
    /// Queries in the run.
    pub asked: usize,
    /// Of those, answered.
    pub answered: usize,
    /// Of those, scored.
    pub scored: usize,
    /// Of those, with a known energy: what the figures are over.
    pub covered: usize,
    /// Right ones of the covered, in 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Figure>,
    /// Mean energy of a query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_j: Option<Figure>,
    /// How far the meter's guarantee lets `energy_j` be off, whatever the questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_error_j: Option<f64>,
    /// Mean power of a query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Figure>,
    /// IPW: accuracy over mean power.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_watt: Option<Figure>,
    /// IPJ: accuracy over mean energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_joule: Option<Figure>,
    /// Tokens of the answers for each joule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_joule: Option<Figure>,
    /// Queries for each kilowatt-hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries_per_kwh: Option<Figure>,
    /// Perplexity of the answers, exp(-mean log-probability), where the server tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Figure>,
    /// 1 / (perplexity × mean power).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_per_watt: Option<Figure>,
    /// 1 / (perplexity × mean energy).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_per_joule: Option<Figure>,
}

const SCORE: usize = 0;
const ENERGY: usize = 1;
const POWER: usize = 2;
const ERROR: usize = 3;

/// The figures over the queries of one subject, or over all.
pub fn figures(table: &Table, subject: Option<u32>, terms: &Terms) -> Figures {
    let columns = &table.columns;
    let [energy, error, idle] = columns.scoped(terms.scope);
    let of = subject.map_or("all", |subject| table.subjects[subject as usize].as_str()).to_owned();
    let chosen = |at: &usize| subject.is_none_or(|subject| columns.subject[*at] == subject);
    let joules = |at: usize| match terms.idle {
        Idle::Included => known(energy[at]),
        Idle::Excluded => Some(known(energy[at])? - known(idle[at])?),
    };
    let (mut asked, mut answered, mut scored) = (0, 0, 0);
    let mut grade = None;
    let mut rows = Vec::new();
    let mut tokens = Vec::new();
    let mut surprise = Vec::new();
    for at in (0..columns.len()).filter(chosen) {
        asked += 1;
        answered += usize::from(columns.answered[at]);
        let metered = joules(at).zip(known(columns.span_s[at]).filter(|seconds| *seconds > 0.0));
        let Some(score) = known(columns.score[at]) else { continue };
        scored += 1;
        let Some((joules, seconds)) = metered else { continue };
        grade = grade.max(columns.grade[at]);
        rows.push([score, joules, joules / seconds, error[at]]);
        if let Some(count) = known(columns.tokens_out[at]) {
            tokens.push([count, joules]);
        }
        if let Some(logprob) = known(columns.mean_logprob[at]) {
            surprise.push([logprob, joules, joules / seconds]);
        }
    }
    let covered = rows.len();
    let mut figures = empty(of, terms, [asked, answered, scored, covered]);
    // A scope's own domains may be better or worse than the host's total; the manifest knows them.
    figures.grade =
        if terms.scope == Scope::Host { grade } else { terms.scope.grade(&table.manifest.domains) };
    intelligence(&mut figures, rows, terms.seed);
    by_tokens(&mut figures, tokens, terms.seed);
    by_perplexity(&mut figures, surprise, terms.seed);
    figures
}

fn empty(of: String, terms: &Terms, [asked, answered, scored, covered]: [usize; 4]) -> Figures {
    Figures {
        of,
        scope: terms.scope,
        idle: terms.idle,
        grade: None,
        asked,
        answered,
        scored,
        covered,
        accuracy: None,
        energy_j: None,
        energy_error_j: None,
        power_w: None,
        per_watt: None,
        per_joule: None,
        tokens_per_joule: None,
        queries_per_kwh: None,
        perplexity: None,
        perplexity_per_watt: None,
        perplexity_per_joule: None,
    }
}

/// A ratio that means something only over what is there: energy with the idle part taken off may come out at nothing.
fn ratio(above: f64, below: f64) -> f64 {
    if below > 0.0 { above / below } else { f64::NAN }
}

fn figure(value: f64, interval: Option<Interval>) -> Option<Figure> {
    value.is_finite().then_some(Figure { value, interval })
}

fn intelligence(into: &mut Figures, rows: Vec<[f64; 4]>, seed: u64) {
    const JOULES_PER_KWH: f64 = 3.6e6;
    if rows.is_empty() {
        return;
    }
    let alike = rows.iter().all(|row| row[SCORE] == 0.0) || rows.iter().all(|row| row[SCORE] == 1.0);
    let pool = Pool::new(rows.into_iter(), seed);
    let of = |sums: &Sums<4>| {
        let (score, energy, power) = (sums.mean(SCORE), sums.mean(ENERGY), sums.mean(POWER));
        [score, energy, power, ratio(score, power), ratio(score, energy), ratio(JOULES_PER_KWH, energy)]
    };
    let values = of(pool.total());
    let mut intervals = pool.intervals(seed, of);
    if alike {
        // Resampling equal scores says that they are certain. They are not: Wilson's interval is, over the mean's cost.
        let total = pool.total();
        let accuracy = wilson(total.of[SCORE], total.count);
        let over = |cost: f64| {
            accuracy.filter(|_| cost > 0.0).map(|it| Interval { low: it.low / cost, high: it.high / cost })
        };
        (intervals[0], intervals[3], intervals[4]) = (accuracy, over(values[2]), over(values[1]));
    }
    into.accuracy = figure(values[0], intervals[0]);
    into.energy_j = figure(values[1], intervals[1]);
    into.energy_error_j = known(pool.total().mean(ERROR));
    into.power_w = figure(values[2], intervals[2]);
    into.per_watt = figure(values[3], intervals[3]);
    into.per_joule = figure(values[4], intervals[4]);
    into.queries_per_kwh = figure(values[5], intervals[5]);
}

fn by_tokens(into: &mut Figures, rows: Vec<[f64; 2]>, seed: u64) {
    if rows.is_empty() {
        return;
    }
    let pool = Pool::new(rows.into_iter(), seed);
    let of = |sums: &Sums<2>| [ratio(sums.of[0], sums.of[1])];
    into.tokens_per_joule = figure(of(pool.total())[0], pool.intervals(seed, of)[0]);
}

fn by_perplexity(into: &mut Figures, rows: Vec<[f64; 3]>, seed: u64) {
    if rows.is_empty() {
        return;
    }
    let pool = Pool::new(rows.into_iter(), seed);
    let of = |sums: &Sums<3>| {
        let perplexity = (-sums.mean(0)).exp();
        let [energy, power] = [sums.mean(1), sums.mean(2)];
        [perplexity, ratio(1.0, perplexity * power), ratio(1.0, perplexity * energy)]
    };
    let (values, intervals) = (of(pool.total()), pool.intervals(seed, of));
    into.perplexity = figure(values[0], intervals[0]);
    into.perplexity_per_watt = figure(values[1], intervals[1]);
    into.perplexity_per_joule = figure(values[2], intervals[2]);
}

#[cfg(test)]
mod tests {
    use super::super::question;
    use super::super::row::{Energy, Row, Text};
    use super::super::run_dir::{Manifest, RunDir, VERSION};
    use super::*;

    fn table(rows: impl Iterator<Item = Row>) -> Table {
        let dir = tempfile::tempdir().unwrap();
        let questions = question::starter();
        let fingerprint = question::fingerprint(&questions);
        let manifest = Manifest { version: VERSION, fingerprint, ..Manifest::default() };
        let mut run = RunDir::begin(dir.path(), &manifest, &questions).unwrap();
        rows.for_each(|row| run.add(&row, &Text::default()).unwrap());
        Table::read(dir.path()).unwrap()
    }

    fn row(id: usize, score: Option<f64>, share_uj: Option<u64>) -> Row {
        let energy = Energy {
            share_uj,
            error_uj: Some(100_000),
            idle_uj: Some(1_000_000),
            span_ns: 2_000_000_000,
            grade: Some(Grade::Measured),
            ..Energy::default()
        };
        let subject = if id % 2 == 0 { "even" } else { "odd" };
        Row {
            id: id.to_string(),
            subject: subject.into(),
            score,
            duration_ns: 2_000_000_000,
            tokens_out: Some(30),
            mean_logprob: Some(-(2.0_f64.ln())),
            energy: Some(energy),
            ..Row::default()
        }
    }

    const TERMS: Terms = Terms { scope: Scope::Host, idle: Idle::Included, seed: 1 };

    #[test]
    fn the_figures_are_ratios_of_means() {
        // Energies 2 J and 4 J over 2 s each, one right: accuracy 0.5, 3 J, 1.5 W.
        let table =
            table([row(0, Some(1.0), Some(2_000_000)), row(1, Some(0.0), Some(4_000_000))].into_iter());
        let all = figures(&table, None, &TERMS);
        let value = |figure: Option<Figure>| figure.unwrap().value;
        assert_eq!((value(all.accuracy), value(all.energy_j), value(all.power_w)), (0.5, 3.0, 1.5));
        assert_eq!((value(all.per_watt), value(all.per_joule)), (0.5 / 1.5, 0.5 / 3.0));
        assert_eq!((value(all.tokens_per_joule), value(all.queries_per_kwh)), (10.0, 1.2e6));
        assert_eq!(all.energy_error_j, Some(0.1));
        assert!((value(all.perplexity) - 2.0).abs() < 1e-12);
        assert!((value(all.perplexity_per_watt) - 1.0 / 3.0).abs() < 1e-12);
        let bare = figures(&table, None, &Terms { idle: Idle::Excluded, ..TERMS });
        assert_eq!(value(bare.energy_j), 2.0);
        let even = figures(&table, Some(0), &TERMS);
        assert_eq!((even.of.as_str(), even.asked, value(even.energy_j)), ("even", 1, 2.0));
    }

    #[test]
    fn what_failed_or_was_not_metered_is_told_and_not_counted() {
        let failed = Row { error: Some("no answer".into()), ..row(2, Some(0.0), Some(1)) };
        let table = table(
            [row(0, Some(1.0), Some(2_000_000)), row(1, Some(0.0), None), failed, row(3, None, Some(5))]
                .into_iter(),
        );
        let all = figures(&table, None, &TERMS);
        assert_eq!((all.asked, all.answered, all.scored, all.covered), (4, 3, 2, 1));
        assert_eq!(all.accuracy.unwrap().value, 1.0);
        assert_eq!(all.energy_j.unwrap().value, 2.0);
    }

    #[test]
    fn where_nothing_was_right_the_interval_still_leaves_room() {
        let table = table((0..20).map(|id| row(id, Some(0.0), Some(2_000_000))));
        let all = figures(&table, None, &TERMS);
        let accuracy = all.accuracy.unwrap();
        assert_eq!(accuracy.value, 0.0);
        assert!(accuracy.interval.unwrap().high > 0.15);
        let per_watt = all.per_watt.unwrap();
        assert_eq!(per_watt.value, 0.0);
        assert!((per_watt.interval.unwrap().high - accuracy.interval.unwrap().high).abs() < 1e-12, "at 1 W");
    }

    #[test]
    fn over_nothing_there_is_no_figure() {
        let table = table([Row { error: Some("refused".into()), ..row(0, None, None) }].into_iter());
        let all = figures(&table, None, &TERMS);
        assert_eq!(
            (all.accuracy, all.energy_j, all.per_watt, all.tokens_per_joule),
            (None, None, None, None)
        );
        let nothing = figures(&table, None, &Terms { scope: Scope::Accelerator, ..TERMS });
        assert_eq!((nothing.covered, nothing.grade), (0, None));
    }
}
