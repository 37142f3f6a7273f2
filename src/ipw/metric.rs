//! Intelligence per watt and per joule.
//!
//! Owns the figures over a set of queries. All are ratios of means over the same queries (*Intelligence per Watt*, arXiv
//! 2511.07885, section 3): those that were answered, scored, and whose energy is known in the scope; `covered` of `asked`
//! says how many that were. The power is the machine's in the scope while a query was open, so that it does not depend on how
//! many are open at once; a query's share over its time is its attributed power. Invariant: no figure without its interval
//! where one can be given, and none at all over nothing.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Interval, Pool, Sums, wilson};
use super::scope::{Idle, Scope};
use super::table::{Table, known};
use crate::domain::Grade;

/// A figure and how far it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The figure over all queries.
    pub value: f64,
    /// 95 %, over the choice of questions; asking the same ones again makes it no narrower.
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
    /// The run's machine was replayed from a file, whatever the grade.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// Queries in the run.
    pub asked: usize,
    /// Of those, answered.
    pub answered: usize,
    /// Of those, scored.
    pub scored: usize,
    /// Of those, with a known energy: what the figures are over.
    pub covered: usize,
    /// Right ones of the covered, in 0..1; where none is covered, of the scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Figure>,
    /// Mean energy of a query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_j: Option<Figure>,
    /// How far the meter's guarantee lets `energy_j` be off, whatever the questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_error_j: Option<f64>,
    /// Mean power of the machine in the scope while a query was open; absent where it is unknown of a covered query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Figure>,
    /// How far the meter's guarantee lets `power_w` be off, whatever the questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_error_w: Option<f64>,
    /// Covered queries of which `power_w` is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub without_power: usize,
    /// Mean attributed power: a query's share over the time it was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributed_power_w: Option<Figure>,
    /// IPW: accuracy over `power_w`.
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

/// The columns of a covered query. What only some queries tell stands with its own count, energy and power, so that one
/// resampling serves every figure.
const SCORE: usize = 0;
const ENERGY: usize = 1;
const POWER: usize = 2;
const TOKENS: usize = 3;
const TOKENS_ENERGY: usize = 4;
const TOLD: usize = 5;
const LOGPROB: usize = 6;
const LOGPROB_ENERGY: usize = 7;
const LOGPROB_POWER: usize = 8;
const ATTRIBUTED: usize = 9;
const WIDTH: usize = 10;

/// The figures over the queries of one subject, or over all.
pub fn figures(table: &Table, subject: Option<u32>, terms: &Terms) -> Figures {
    let columns = &table.columns;
    let Some(subject) = subject else { return over(table, "all", 0..columns.len(), terms) };
    let chosen = (0..columns.len()).filter(|at| columns.subject[*at] == subject);
    over(table, &table.subjects[subject as usize], chosen, terms)
}

/// The figures over some queries, given by their places.
pub fn over(
    table: &Table,
    name: &str,
    places: impl Iterator<Item = usize> + Clone,
    terms: &Terms,
) -> Figures {
    let columns = &table.columns;
    let error = columns.scoped(terms.scope).error;
    let (joules, watts) = (columns.joules(terms.scope, terms.idle), columns.watts(terms.scope, terms.idle));
    let (attributed, watts_error) =
        (columns.attributed_watts(terms.scope, terms.idle), columns.watts_error(terms.scope));
    let covered = |at: usize| Some((known(columns.score[at])?, known(joules(at))?, known(attributed(at))?));
    let (mut asked, mut answered, mut scored, mut count) = (0, 0, 0, 0);
    let (mut wrong, mut right, mut without_power) = (0, 0, 0);
    let mut grade = None;
    let (mut error_j, mut error_w) = (0.0, 0.0);
    for at in places.clone() {
        asked += 1;
        answered += usize::from(columns.answered[at]);
        scored += usize::from(known(columns.score[at]).is_some());
        let Some((score, ..)) = covered(at) else { continue };
        count += 1;
        wrong += usize::from(score == 0.0);
        right += usize::from(score == 1.0);
        grade = grade.max(columns.grade[at]);
        without_power += usize::from(known(watts(at)).is_none());
        // One query without a guarantee leaves the mean without one.
        error_j += error[at];
        error_w += watts_error(at);
    }
    let mut figures = empty(name.to_owned(), terms, [asked, answered, scored, count]);
    // A scope's own domains may be better or worse than the host's total; the manifest knows them.
    figures.grade =
        if terms.scope == Scope::Host { grade } else { terms.scope.grade(&table.manifest.domains) };
    figures.simulated = table.manifest.is_simulated();
    if count == 0 {
        figures.accuracy = of_scored(table, places, scored, terms.seed);
        return figures;
    }
    figures.energy_error_j = known(error_j / count as f64);
    figures.power_error_w = known(error_w / count as f64);
    figures.without_power = without_power;
    let rows = places.filter_map(|at| {
        let (score, joules, attributed) = covered(at)?;
        let watts = watts(at);
        let mut row = [0.0; WIDTH];
        (row[SCORE], row[ENERGY], row[POWER], row[ATTRIBUTED]) = (score, joules, watts, attributed);
        if let Some(tokens) = known(columns.tokens_out[at]) {
            (row[TOKENS], row[TOKENS_ENERGY]) = (tokens, joules);
        }
        if let Some(logprob) = known(columns.mean_logprob[at]) {
            (row[TOLD], row[LOGPROB], row[LOGPROB_ENERGY], row[LOGPROB_POWER]) =
                (1.0, logprob, joules, watts);
        }
        Some((columns.question(at), row))
    });
    let pool = Pool::of_queries(count, rows, columns.repeated(), terms.seed);
    fill(&mut figures, &pool, terms.seed, wrong == count || right == count);
    figures
}

/// The accuracy of the scored queries, whatever is known of their energy.
fn of_scored(table: &Table, places: impl Iterator<Item = usize>, scored: usize, seed: u64) -> Option<Figure> {
    let columns = &table.columns;
    let mut alike = [true; 2];
    let scores = places.filter_map(|at| Some((columns.question(at), [known(columns.score[at])?])));
    let scores = scores.inspect(|(_, [score])| {
        alike = [alike[0] && *score == 0.0, alike[1] && *score == 1.0];
    });
    let pool = Pool::of_queries(scored, scores, columns.repeated(), seed);
    let value = pool.total().mean(0);
    let interval = match alike {
        [false, false] => pool.intervals(seed, |sums| [sums.mean(0)])[0],
        _ => wilson(value * pool.questions() as f64, pool.questions() as f64),
    };
    figure(value, interval)
}

fn empty(of: String, terms: &Terms, [asked, answered, scored, covered]: [usize; 4]) -> Figures {
    Figures {
        of,
        scope: terms.scope,
        idle: terms.idle,
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn figure(value: f64, interval: Option<Interval>) -> Option<Figure> {
    value.is_finite().then_some(Figure { value, interval })
}

/// Every figure from the sums; `NaN` where the queries do not give it.
fn values(sums: &Sums<WIDTH>) -> [f64; 11] {
    const JOULES_PER_KWH: f64 = 3.6e6;
    let (score, energy, power) = (sums.mean(SCORE), sums.mean(ENERGY), sums.mean(POWER));
    let told = sums.of[TOLD];
    let perplexity = if told > 0.0 { (-sums.of[LOGPROB] / told).exp() } else { f64::NAN };
    [
        score,
        energy,
        power,
        ratio(score, power),
        ratio(score, energy),
        ratio(JOULES_PER_KWH, energy),
        ratio(sums.of[TOKENS], sums.of[TOKENS_ENERGY]),
        perplexity,
        ratio(1.0, perplexity * sums.of[LOGPROB_POWER] / told),
        ratio(1.0, perplexity * sums.of[LOGPROB_ENERGY] / told),
        sums.mean(ATTRIBUTED),
    ]
}

fn fill(into: &mut Figures, pool: &Pool<WIDTH>, seed: u64, alike: bool) {
    let found = values(pool.total());
    let mut intervals = pool.intervals(seed, values);
    if alike {
        // Resampling equal scores says that they are certain. They are not: Wilson's interval is, over the mean's cost.
        let questions = pool.questions() as f64;
        let accuracy = wilson(found[0] * questions, questions);
        let over = |cost: f64| {
            accuracy.filter(|_| cost > 0.0).map(|it| Interval { low: it.low / cost, high: it.high / cost })
        };
        (intervals[0], intervals[3], intervals[4]) = (accuracy, over(found[2]), over(found[1]));
    }
    let slots = [
        &mut into.accuracy,
        &mut into.energy_j,
        &mut into.power_w,
        &mut into.per_watt,
        &mut into.per_joule,
        &mut into.queries_per_kwh,
        &mut into.tokens_per_joule,
        &mut into.perplexity,
        &mut into.perplexity_per_watt,
        &mut into.perplexity_per_joule,
        &mut into.attributed_power_w,
    ];
    for (slot, (value, interval)) in slots.into_iter().zip(found.into_iter().zip(intervals)) {
        *slot = figure(value, interval);
    }
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
            // Two at once: half of the window is another query's.
            window_uj: share_uj.map(|share_uj| share_uj * 2),
            at_once: 2,
            span_ns: 2_000_000_000,
            grade: Some(Grade::Measured),
            ..Energy::default()
        };
        let subject = if id.is_multiple_of(2) { "even" } else { "odd" };
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
        // Energies 2 J of 4 J and 4 J of 8 J over 2 s each, one right: accuracy 0.5, 3 J, 3 W of the machine's.
        let table =
            table([row(0, Some(1.0), Some(2_000_000)), row(1, Some(0.0), Some(4_000_000))].into_iter());
        let all = figures(&table, None, &TERMS);
        let value = |figure: Option<Figure>| figure.unwrap().value;
        assert_eq!((value(all.accuracy), value(all.energy_j), value(all.power_w)), (0.5, 3.0, 3.0));
        assert_eq!(value(all.attributed_power_w), 1.5);
        assert_eq!((value(all.per_watt), value(all.per_joule)), (0.5 / 3.0, 0.5 / 3.0));
        assert_eq!((value(all.tokens_per_joule), value(all.queries_per_kwh)), (10.0, 1.2e6));
        assert_eq!(all.energy_error_j, Some(0.1));
        assert!((value(all.perplexity) - 2.0).abs() < 1e-12);
        assert!((value(all.perplexity_per_watt) - 1.0 / 6.0).abs() < 1e-12);
        // Of each window 2 J are idle: twice the idle part of a share that is half of the window.
        let bare = figures(&table, None, &Terms { idle: Idle::Excluded, ..TERMS });
        assert_eq!((value(bare.energy_j), value(bare.power_w)), (2.0, 2.0));
        assert_eq!(value(bare.attributed_power_w), 1.0);
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
        let (of_watt, of_all) = (per_watt.interval.unwrap().high, accuracy.interval.unwrap().high);
        assert!((of_watt * 2.0 - of_all).abs() < 1e-12, "at 2 W");
    }

    /// Fifty questions, each asked so many times with the same outcome.
    fn asked(times: u32, score: impl Fn(usize) -> f64) -> Table {
        let all = (0..times).flat_map(|repeat| (0..50).map(move |id| (id, repeat)));
        table(all.map(|(id, repeat)| {
            let share_uj = Some(2_000_000 + id as u64 * 70_000);
            Row { repeat, ..row(id, Some(score(id)), share_uj) }
        }))
    }

    #[test]
    fn asking_the_same_questions_again_makes_no_interval_narrower() {
        let some = |id: usize| f64::from(u8::from(id.is_multiple_of(3)));
        for (once, ten) in [(asked(1, some), asked(10, some)), (asked(1, |_| 1.0), asked(10, |_| 1.0))] {
            let (once, ten) = (figures(&once, None, &TERMS), figures(&ten, None, &TERMS));
            assert_eq!((once.covered, ten.covered), (50, 500));
            let intervals = |of: &Figures| {
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
    fn the_powers_error_is_the_windows_and_absent_where_another_span_weighed_more() {
        let of = |change: fn(&mut Energy)| {
            let mut row = row(0, Some(1.0), Some(2_000_000));
            row.energy.iter_mut().for_each(change);
            let table = table([row].into_iter());
            figures(&table, None, &TERMS)
        };
        // A share is off by at most 0.1 J, so that the window of two equal spans is by at most 0.2 J, over 2 s.
        assert!((of(|_| ()).power_error_w.unwrap() - 0.1).abs() < 1e-12);
        let heavy = of(|energy| energy.window_uj = Some(5_000_000));
        assert_eq!((heavy.power_error_w, heavy.power_w.unwrap().value), (None, 2.5));
        assert_eq!(of(|energy| energy.error_uj = None).power_error_w, None);
        // The account began half a second late: 4 J over 1.5 s or over 2 s.
        let moved = of(|energy| energy.span_ns = 1_500_000_000).power_error_w.unwrap();
        assert!((moved - 0.1 - (4.0 / 1.5 - 2.0)).abs() < 1e-12, "{moved}");
    }

    #[test]
    fn rows_without_a_window_have_a_power_only_where_they_were_alone() {
        let of = |at_once| {
            let mut row = row(0, Some(1.0), Some(2_000_000));
            row.energy.iter_mut().for_each(|energy| (energy.window_uj, energy.at_once) = (None, at_once));
            let whole = super::tests::row(1, Some(1.0), Some(2_000_000));
            let table = table([row, whole].into_iter());
            figures(&table, None, &TERMS)
        };
        let alone = of(1);
        assert_eq!((alone.power_w.unwrap().value, alone.without_power), (1.5, 0));
        let side_by_side = of(2);
        assert_eq!((side_by_side.power_w, side_by_side.per_watt), (None, None));
        assert_eq!((side_by_side.without_power, side_by_side.covered), (1, 2));
        assert_eq!(side_by_side.per_joule.unwrap().value, 0.5);
    }

    #[test]
    fn without_any_energy_the_accuracy_is_over_the_scored() {
        let table = table((0..20).map(|id| row(id, Some(f64::from(u8::from(id < 5))), None)));
        let all = figures(&table, None, &TERMS);
        assert_eq!((all.covered, all.accuracy.unwrap().value), (0, 0.25));
        let interval = all.accuracy.unwrap().interval.unwrap();
        assert!(interval.low > 0.0 && interval.high < 0.55, "{interval:?}");
        assert_eq!((all.power_w, all.per_watt, all.energy_j), (None, None, None));
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
