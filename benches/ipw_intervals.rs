//! Coverage and width of the confidence intervals of IPW, IPJ and mean energy.
//!
//! Simulates 2,000 runs in each cell of number of questions × accuracy × energies × correlation and prints, for each
//! figure, the fraction of runs whose 95 % interval contains the truth (target: 93 %), the same for the percentile
//! bootstrap (2,000 resamples; a twentieth of the runs), and the median width as a multiple of the narrowest method that
//! covers (target: 1.5). A method covers if it reaches 93 % at all five accuracies: where all answers are right, one that
//! gives the accuracy no interval reaches it by chance. With fewer than 29 questions and two-point energies no method
//! covers IPJ and energy: the expensive questions are absent from too many runs.
//!
//! Then the same for two runs (differences of accuracy and energy, ratios of IPW and IPJ, each the least coverage over
//! ratios of the accuracies of 1 and 2, correlations and questions in common or not) and for the energy that a route
//! saves. `WATTSPAN_BENCH_RUNS` changes the number of runs.

#[path = "../tests/support/interval_simulation.rs"]
mod interval_simulation;
#[path = "table/mod.rs"]
mod table;

use std::thread;

use interval_simulation::{
    ACCURACIES, Cell, ENERGIES, ENERGY, Energies, FIGURES, Intervals, Outcome, PAIR_FIGURES, POWER, PairCell,
    QUESTIONS, RouteCell, Row, SCORE, bootstrap_pair, percentile_bootstrap, product, product_pair,
    product_saving, simulate, simulate_figures,
};
use wattspan_ipw::bootstrap::{ConfidenceInterval, SplitMix64};
use wattspan_ipw::intervals::{MIN_QUESTIONS, proportion_interval};

/// The coverage that counts as covered.
const COVERS: f64 = 0.93;

type Method = (&'static str, fn(&[Row]) -> Intervals);

/// The methods with which the product's is compared.
const OTHERS: [Method; 6] = [
    ("delta", delta),
    ("log delta", log_delta),
    ("Wilson with log-t", |rows| mover_log_t(rows, wilson)),
    ("Wilson with Cox", |rows| mover_cox(rows, wilson)),
    ("Agresti-Coull with log-t", |rows| mover_log_t(rows, agresti_coull)),
    ("Agresti-Coull with Cox", |rows| mover_cox(rows, agresti_coull)),
];

fn main() {
    let runs = std::env::var("WATTSPAN_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(2_000);
    let mut shown = table::Table::new("ipw intervals");
    println!("coverage in % (bootstrap) width against the best");
    println!("{:<36} {:^22} {:^22} {:^22}", "", FIGURES[0], FIGURES[1], FIGURES[2]);
    let cells = Cell::all();
    // The cells of all accuracies with the same questions, energies and correlation.
    let groups: Vec<Vec<Cell>> = cells
        .iter()
        .filter(|cell| cell.accuracy == ACCURACIES[0])
        .map(|first| {
            let same = |cell: &&Cell| Cell { accuracy: first.accuracy, ..**cell } == *first;
            cells.iter().filter(same).copied().collect()
        })
        .collect();
    let measured: Vec<Measured> =
        in_parallel(&groups, |cells| measure(cells, runs)).into_iter().flatten().collect();
    measured.iter().for_each(|cell| println!("{}", cell.line));
    let figures = || measured.iter().flat_map(|cell| &cell.figures).filter(|figure| figure.possible);
    let count = |of: &dyn Fn(&&FigureOutcome) -> bool| Some(figures().filter(of).count() as f64);
    shown.note("figures of cells where some method covers", count(&|_| true), "");
    shown.at_most("of them below 93 %", count(&|figure| figure.coverage < COVERS), 0.0, "");
    let least = figures().map(|figure| figure.coverage).fold(1.0, f64::min);
    shown.note("least coverage", Some(least * 100.0), "%");
    let widest = figures().map(|figure| figure.width).fold(0.0, f64::max);
    shown.at_most("greatest width against the best covering method", Some(widest), 1.5, "times");
    let outside: usize = measured.iter().map(|cell| cell.outside).sum();
    shown.at_most("intervals without their own figure", Some(outside as f64), 0.0, "");
    let bootstrap = count(&|figure| figure.bootstrap < COVERS);
    shown.note("figures that the percentile bootstrap does not cover", bootstrap, "");
    show_pairs(&mut shown, runs);
    show_savings(&mut shown, runs);
}

/// Computes a value for each item on all processors, in order.
fn in_parallel<T: Sync, V: Send>(items: &[T], compute: impl Fn(&T) -> V + Sync) -> Vec<V> {
    let part = items.len().div_ceil(thread::available_parallelism().map_or(1, Into::into));
    let compute = &compute;
    thread::scope(|scope| {
        let parts = items
            .chunks(part)
            .map(|items| scope.spawn(move || items.iter().map(compute).collect::<Vec<_>>()));
        let handles: Vec<_> = parts.collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("a simulation does not panic")).collect()
    })
}

/// The energies, numbers of questions and accuracies of the grid.
fn grid() -> Vec<(Energies, usize, (f64, f64))> {
    let of = |energies| QUESTIONS.map(|questions| ACCURACIES.map(|accuracy| (energies, questions, accuracy)));
    ENERGIES.into_iter().flat_map(of).flatten().collect()
}

/// The least coverage over cells and whether each is possible, of the product and of the bootstrap.
struct Least {
    coverage: f64,
    bootstrap: f64,
    /// The number of figures that some method covers.
    possible: usize,
    below: usize,
    below_bootstrap: usize,
}

impl Least {
    fn new(outcomes: impl Iterator<Item = (bool, f64, f64)>) -> Self {
        let none = Self { coverage: 1.0, bootstrap: 1.0, possible: 0, below: 0, below_bootstrap: 0 };
        outcomes.fold(none, |least, (is_possible, coverage, bootstrap)| Self {
            coverage: least.coverage.min(coverage),
            bootstrap: least.bootstrap.min(bootstrap),
            possible: least.possible + usize::from(is_possible),
            below: least.below + usize::from(is_possible && coverage < COVERS),
            below_bootstrap: least.below_bootstrap + usize::from(is_possible && bootstrap < COVERS),
        })
    }

    fn text(&self) -> String {
        let mark = if self.possible > 0 { ' ' } else { '*' };
        if self.bootstrap < 1.0 {
            return format!(" {:>6.1}{mark}({:>5.1})  ", self.coverage * 100.0, self.bootstrap * 100.0);
        }
        format!(" {:>6.1}{mark}", self.coverage * 100.0)
    }
}

fn show_pairs(shown: &mut table::Table, runs: usize) {
    println!("two runs: least coverage in % (bootstrap) over ratios, correlations and questions in common");
    println!("{:<36} {}", "", PAIR_FIGURES.map(|name| format!("{name:^17}")).concat());
    let measured = in_parallel(&grid(), |(energies, questions, accuracy)| {
        let cells = PairCell::all_of(*questions, *energies, *accuracy);
        let outcomes: Vec<_> = cells
            .iter()
            .map(|cell| {
                let of = |method: fn(&[[Row; 2]]) -> _, runs| {
                    let mut random = SplitMix64::new(*questions as u64);
                    simulate_figures(runs, cell.truth(), || method(&cell.draw(&mut random)))
                };
                (cell.is_possible(), of(product_pair, runs), of(bootstrap_pair, runs / 20))
            })
            .collect();
        let outside: usize = outcomes.iter().map(|(_, ours, _)| ours.point_outside).sum();
        let least = [0, 1, 2, 3].map(|at| {
            Least::new(
                outcomes
                    .iter()
                    .map(|(possible, ours, theirs)| (possible[at], ours.coverage[at], theirs.coverage[at])),
            )
        });
        let name = format!("{:<14} n {questions:>3} p {:<4}", energies.name(), accuracy.0);
        (format!("{name:<36}{}", least.each_ref().map(Least::text).concat()), outside, least)
    });
    measured.iter().for_each(|(line, ..)| println!("{line}"));
    let sum =
        |of: fn(&Least) -> usize| measured.iter().flat_map(|(.., least)| least).map(of).sum::<usize>() as f64;
    shown.note("figures of two runs where some method covers", Some(sum(|least| least.possible)), "");
    shown.at_most("of them below 93 %", Some(sum(|least| least.below)), 0.0, "");
    shown.note(
        "of them below 93 % with the percentile bootstrap",
        Some(sum(|least| least.below_bootstrap)),
        "",
    );
    let outside: usize = measured.iter().map(|(_, outside, _)| outside).sum();
    shown.at_most("intervals of two runs without their own figure", Some(outside as f64), 0.0, "");
}

fn show_savings(shown: &mut table::Table, runs: usize) {
    println!(
        "energy saved by a route: least coverage in % over correlations, energies in common and their ratios"
    );
    let measured = in_parallel(&grid(), |(energies, questions, covered)| {
        let cells = RouteCell::all_of(*questions, *energies, *covered);
        let outcomes: Vec<_> = cells
            .iter()
            .map(|cell| {
                let mut random = SplitMix64::new(*questions as u64);
                let saving = || [product_saving(&cell.draw(&mut random))];
                (cell.is_possible(), simulate_figures(runs, [cell.truth()], saving))
            })
            .collect();
        let outside: usize = outcomes.iter().map(|(_, outcome)| outcome.point_outside).sum();
        let least =
            Least::new(outcomes.iter().map(|(possible, outcome)| (*possible, outcome.coverage[0], 1.0)));
        let name = format!("{:<14} n {questions:>3} covered {:<4}", energies.name(), covered.0);
        (format!("{name:<36}{}", least.text()), outside, least)
    });
    measured.iter().for_each(|(line, ..)| println!("{line}"));
    let sum = |of: fn(&Least) -> usize| measured.iter().map(|(.., least)| of(least)).sum::<usize>() as f64;
    shown.note("savings for which coverage is claimed", Some(sum(|least| least.possible)), "");
    shown.at_most("of them below 93 %", Some(sum(|least| least.below)), 0.0, "");
    let outside: usize = measured.iter().map(|(_, outside, _)| outside).sum();
    shown.at_most("intervals of savings without their own figure", Some(outside as f64), 0.0, "");
}

/// A cell with its line of the table.
struct Measured {
    line: String,
    outside: usize,
    figures: [FigureOutcome; 3],
}

struct FigureOutcome {
    /// Whether some method can cover.
    possible: bool,
    coverage: f64,
    /// The median width against that of the best covering method.
    width: f64,
    bootstrap: f64,
}

fn measure(cells: &[Cell], runs: usize) -> Vec<Measured> {
    let of = |method: fn(&[Row]) -> Intervals, runs: usize| -> Vec<Outcome> {
        cells.iter().map(|cell| simulate(cell, runs, cell.questions as u64, method)).collect()
    };
    let (ours, bootstrap) = (of(product, runs), of(percentile_bootstrap, runs / 20));
    let all: Vec<Vec<Outcome>> = OTHERS.iter().map(|(_, method)| of(*method, runs)).collect();
    let narrowest = |cell: usize, figure: usize| {
        let covers = |of: &&Vec<Outcome>| of.iter().all(|cell| cell.coverage[figure] >= COVERS);
        let width = |of: &Vec<Outcome>| of[cell].width[figure];
        all.iter().chain([&ours]).filter(covers).map(width).fold(f64::INFINITY, f64::min)
    };
    let measured = |(at, cell): (usize, &Cell)| {
        let figures = [0, 1, 2].map(|figure| FigureOutcome {
            possible: FIGURES[figure] == "IPW"
                || cell.energies != Energies::TwoPoint
                || cell.questions >= MIN_QUESTIONS,
            coverage: ours[at].coverage[figure],
            width: ours[at].width[figure] / narrowest(at, figure).min(f64::MAX),
            bootstrap: bootstrap[at].coverage[figure],
        });
        let text = figures.iter().map(|of| {
            let mark = if of.possible { ' ' } else { '*' };
            let (coverage, bootstrap) = (of.coverage * 100.0, of.bootstrap * 100.0);
            format!(" {coverage:>6.1}{mark}({bootstrap:>5.1}) {:>4.2}  ", of.width)
        });
        Measured {
            line: format!("{:<36}{}", cell.name(), text.collect::<String>()),
            outside: ours[at].point_outside,
            figures,
        }
    };
    cells.iter().enumerate().map(measured).collect()
}

/// The two costs with their index among the figures.
const COSTS: [usize; 2] = [POWER, ENERGY];

struct Moments {
    count: f64,
    score: f64,
    cost: f64,
    /// Standard errors of the means, and the covariance of the means.
    score_error: f64,
    cost_error: f64,
    covariance: f64,
}

fn moments(rows: &[Row], cost: usize) -> Moments {
    let count = rows.len() as f64;
    let mean = |at: usize| rows.iter().map(|row| row[at]).sum::<f64>() / count;
    let (score_mean, cost_mean) = (mean(SCORE), mean(cost));
    let sum = |of: &dyn Fn(f64, f64) -> f64| {
        rows.iter().map(|row| of(row[SCORE] - score_mean, row[cost] - cost_mean)).sum::<f64>()
            / (count - 1.0)
            / count
    };
    Moments {
        count,
        score: score_mean,
        cost: cost_mean,
        score_error: sum(&|score, _| score * score).sqrt(),
        cost_error: sum(&|_, cost| cost * cost).sqrt(),
        covariance: sum(&|score, cost| score * cost),
    }
}

/// Student's quantile within 1e-3, which is enough to compare widths (Cornish & Fisher).
fn student(degrees: f64) -> f64 {
    let z = 1.959_963_984_540_054_f64;
    let (z3, z5) = (z.powi(3), z.powi(5));
    z + (z3 + z) / 4.0 / degrees
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / 96.0 / degrees.powi(2)
        + (3.0 * z.powi(7) + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / 384.0 / degrees.powi(3)
}

fn by_figure(
    rows: &[Row],
    ratio: impl Fn(&Moments) -> Option<[f64; 2]>,
    cost: impl Fn(&Moments) -> [f64; 2],
) -> Intervals {
    let interval = |[low, high]: [f64; 2]| ConfidenceInterval { low, high };
    let [of_power, of_energy] = COSTS.map(|at| moments(rows, at));
    [ratio(&of_power).map(interval), ratio(&of_energy).map(interval), Some(interval(cost(&of_energy)))]
}

/// Student's interval with the delta method's error.
fn delta(rows: &[Row]) -> Intervals {
    let ratio = |of: &Moments| {
        let value = of.score / of.cost;
        let variance = of.score_error.powi(2) + (value * of.cost_error).powi(2) - 2.0 * value * of.covariance;
        let half_width = student(of.count - 1.0) * variance.max(0.0).sqrt() / of.cost;
        Some([value - half_width, value + half_width])
    };
    by_figure(rows, ratio, |of| {
        let half_width = student(of.count - 1.0) * of.cost_error;
        [of.cost - half_width, of.cost + half_width]
    })
}

/// The same on the logarithmic scale.
fn log_delta(rows: &[Row]) -> Intervals {
    let ratio = |of: &Moments| {
        let value = of.score / of.cost;
        let (score, cost) = (of.score_error / of.score, of.cost_error / of.cost);
        let variance = score * score + cost * cost - 2.0 * of.covariance / of.score / of.cost;
        let half_width = student(of.count - 1.0) * variance.max(0.0).sqrt();
        (of.score > 0.0).then(|| [value * (-half_width).exp(), value * half_width.exp()])
    };
    by_figure(rows, ratio, |of| {
        let half_width = student(of.count - 1.0) * of.cost_error / of.cost;
        [of.cost * (-half_width).exp(), of.cost * half_width.exp()]
    })
}

fn wilson(proportion: f64, count: f64) -> [f64; 2] {
    let z = 1.959_963_984_540_054_f64;
    let all = 1.0 + z * z / count;
    let center = (proportion + z * z / 2.0 / count) / all;
    let half_width = z * (proportion * (1.0 - proportion) / count + (z / 2.0 / count).powi(2)).sqrt() / all;
    [(center - half_width).max(0.0), (center + half_width).min(1.0)]
}

fn agresti_coull(proportion: f64, count: f64) -> [f64; 2] {
    let interval = proportion_interval(proportion, count).expect("a proportion of some questions");
    [interval.low, interval.high]
}

type Proportion = fn(f64, f64) -> [f64; 2];

/// MOVER on the logarithmic scale without correlation: the interval of the proportion, and a cost's center and half
/// width there.
fn mover(score: f64, [low, high]: [f64; 2], center: f64, half_width: f64) -> Option<[f64; 2]> {
    if score == 0.0 {
        return Some([0.0, high / center]);
    }
    let [below, above] = [(score / low).ln(), (high / score).ln()].map(|of| of.hypot(half_width));
    Some([score / center * (-below).exp(), score / center * above.exp()])
}

/// Student's interval of the logarithm of the mean cost.
fn mover_log_t(rows: &[Row], proportion: Proportion) -> Intervals {
    let half_width = |of: &Moments| student(of.count - 1.0) * of.cost_error / of.cost;
    by_figure(
        rows,
        |of| mover(of.score, proportion(of.score, of.count), of.cost, half_width(of)),
        |of| [of.cost * (-half_width(of)).exp(), of.cost * half_width(of).exp()],
    )
}

/// Cox's interval of a log-normal mean.
fn mover_cox(rows: &[Row], proportion: Proportion) -> Intervals {
    let count = rows.len() as f64;
    let cox = |at: usize| {
        let logs = || rows.iter().map(|row| row[at].ln());
        let mean = logs().sum::<f64>() / count;
        let variance = logs().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let error = (variance / count + variance * variance / 2.0 / (count - 1.0)).sqrt();
        ((mean + variance / 2.0).exp(), student(count - 1.0) * error)
    };
    let score = rows.iter().map(|row| row[SCORE]).sum::<f64>() / count;
    let interval = |[low, high]: [f64; 2]| ConfidenceInterval { low, high };
    let ratio = |at: usize| {
        let (center, half_width) = cox(at);
        mover(score, proportion(score, count), center, half_width).map(interval)
    };
    let (center, half_width) = cox(ENERGY);
    let energy = interval([center * (-half_width).exp(), center * half_width.exp()]);
    [ratio(POWER), ratio(ENERGY), Some(energy)]
}
