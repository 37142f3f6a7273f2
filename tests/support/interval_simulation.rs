//! Simulated runs with known figures, on which the coverage of confidence intervals is measured.
//!
//! A cell fixes the number of questions, the accuracy, the energies and their correlation with correctness. Whether an
//! answer is right and what it costs are a Gaussian copula: both are functions of normal variables with that
//! correlation. The power of a query grows with the fourth root of its energy. Cells of two runs add the ratio of their
//! accuracies and how much of their variables is common to the question; cells of routes the part of the questions that
//! the local model covers.

#![allow(dead_code, reason = "the test and the bench use different parts")]

use wattspan_ipw::bootstrap::{BootstrapSample, ConfidenceInterval, SplitMix64};
use wattspan_ipw::estimates::Figure;
use wattspan_ipw::intervals::{IntervalSample, MIN_QUESTIONS, SampleQuery};
use wattspan_ipw::paired_intervals::{PairedQuery, PairedSample};
use wattspan_ipw::saving_intervals::{RoutedCost, saved_cost};

/// The values of a query: score, energy, power.
pub type Row = [f64; 3];

pub const SCORE: usize = 0;
pub const ENERGY: usize = 1;
pub const POWER: usize = 2;

/// The figures whose intervals are tested.
pub const FIGURES: [&str; 3] = ["IPW", "IPJ", "energy"];

pub const QUESTIONS: [usize; 4] = [10, 20, 50, 200];
pub const CORRELATIONS: [f64; 2] = [0.0, -0.6];

/// Accuracies, each with the normal quantile above which an answer is right.
pub const ACCURACIES: [(f64, f64); 5] = [
    (0.05, 1.644_853_626_951_472_2),
    (0.5, 0.0),
    (0.9, -1.281_551_565_544_600_4),
    (0.98, -2.053_748_910_631_823),
    (1.0, f64::NEG_INFINITY),
];

/// How the energies of questions are distributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Energies {
    /// Log-normal with σ = 0.5.
    Narrow,
    /// Log-normal with σ = 1.
    Wide,
    /// One question in ten costs ten times the others.
    TwoPoint,
    /// Log-normal with σ = 1; the answer limit cuts the most expensive fifth.
    Capped,
}

pub const ENERGIES: [Energies; 4] = [Energies::Narrow, Energies::Wide, Energies::TwoPoint, Energies::Capped];

impl Energies {
    pub fn name(self) -> &'static str {
        match self {
            Self::Narrow => "log-normal 0.5",
            Self::Wide => "log-normal 1",
            Self::TwoPoint => "two-point",
            Self::Capped => "capped",
        }
    }

    fn draw(self, normal: f64) -> f64 {
        match self {
            Self::Narrow => (normal / 2.0).exp(),
            Self::Wide => normal.exp(),
            Self::TwoPoint => {
                if normal > 1.281_551_565_544_600_4 {
                    10.0
                } else {
                    1.0
                }
            }
            Self::Capped => normal.min(0.841_621_233_572_914_3).exp(),
        }
    }

    /// The means of the energy and of its fourth root.
    pub fn true_means(self) -> (f64, f64) {
        match self {
            Self::Narrow => (1.133_148_453_066_826_3, 1.007_843_097_206_448),
            Self::Wide => (1.648_721_270_700_128_2, 1.031_743_407_499_102_8),
            Self::TwoPoint => (1.9, 1.077_827_941_003_892_2),
            Self::Capped => (1.184_646_807_196_588_6, 0.992_732_339_309_721_4),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    pub questions: usize,
    pub accuracy: (f64, f64),
    pub energies: Energies,
    pub correlation: f64,
}

impl Cell {
    /// All cells of the grid.
    pub fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for energies in ENERGIES {
            for questions in QUESTIONS {
                for accuracy in ACCURACIES {
                    cells.extend(CORRELATIONS.map(|correlation| Self {
                        questions,
                        accuracy,
                        energies,
                        correlation,
                    }));
                }
            }
        }
        cells
    }

    pub fn name(&self) -> String {
        let (energies, accuracy) = (self.energies.name(), self.accuracy.0);
        format!("{energies:<14} n {:>3} p {accuracy:<4} r {:>4}", self.questions, self.correlation)
    }

    /// IPW, IPJ and mean energy of all questions that could be asked.
    pub fn truth(&self) -> [f64; 3] {
        let (energy, power) = self.energies.true_means();
        [self.accuracy.0 / power, self.accuracy.0 / energy, energy]
    }

    /// Draws the queries of a run.
    pub fn draw(&self, random: &mut SplitMix64) -> Vec<Row> {
        let independent = (1.0 - self.correlation * self.correlation).sqrt();
        let row = |_| {
            let (cost, other) = normal_pair(random);
            let energy = self.energies.draw(cost);
            let right = self.correlation * cost + independent * other > self.accuracy.1;
            [f64::from(u8::from(right)), energy, energy.sqrt().sqrt()]
        };
        (0..self.questions).map(row).collect()
    }
}

/// Draws two independent normal variables (Box & Muller).
pub fn normal_pair(random: &mut SplitMix64) -> (f64, f64) {
    let mut uniform = || ((random.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    let (radius, turn) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
    (radius * turn.cos(), radius * turn.sin())
}

/// The figures of a run.
pub fn figures(rows: &[Row]) -> [f64; 3] {
    let mean = |at: usize| rows.iter().map(|row| row[at]).sum::<f64>() / rows.len() as f64;
    [mean(SCORE) / mean(POWER), mean(SCORE) / mean(ENERGY), mean(ENERGY)]
}

/// The intervals of IPW, IPJ and mean energy that a method gives.
pub type Intervals = [Option<ConfidenceInterval>; 3];

/// The product's method.
pub fn product(rows: &[Row]) -> Intervals {
    let queries = rows.iter().enumerate().map(|(at, row)| SampleQuery {
        question: at as u64,
        open_s: [at as f64, at as f64 + 0.5],
        values: *row,
    });
    let sample = IntervalSample::new(queries, false);
    let [power, energy] = [POWER, ENERGY].map(|cost| sample.mean_cost(cost));
    [
        power.map(|power| sample.score_per_cost(SCORE, POWER, power)),
        energy.map(|energy| sample.score_per_cost(SCORE, ENERGY, energy)),
        energy.map(|energy| energy.interval()),
    ]
}

/// The percentile bootstrap, which the product used before.
pub fn percentile_bootstrap(rows: &[Row]) -> Intervals {
    let sample = BootstrapSample::new(rows.iter().copied(), 1);
    let seed = rows[0][ENERGY].to_bits();
    sample.confidence_intervals(seed, |sums| {
        [sums.mean(SCORE) / sums.mean(POWER), sums.mean(SCORE) / sums.mean(ENERGY), sums.mean(ENERGY)]
    })
}

/// How a method did in a cell, for each figure.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// The fraction of runs whose interval contains the truth; a run without an interval counts as missed.
    pub coverage: [f64; 3],
    /// The median width.
    pub width: [f64; 3],
    /// The number of intervals that did not contain the run's own figure.
    pub point_outside: usize,
}

/// Simulates `runs` runs of a cell.
pub fn simulate(cell: &Cell, runs: usize, seed: u64, method: impl Fn(&[Row]) -> Intervals) -> Outcome {
    let mut random = SplitMix64::new(seed);
    let truth = cell.truth();
    let (mut covered, mut point_outside) = ([0_usize; 3], 0);
    let mut widths: [Vec<f64>; 3] = Default::default();
    for _ in 0..runs {
        let rows = cell.draw(&mut random);
        let (points, intervals) = (figures(&rows), method(&rows));
        for at in 0..3 {
            let Some(interval) = intervals[at] else {
                widths[at].push(f64::INFINITY);
                continue;
            };
            // Sums in another order differ in the last digits.
            let holds =
                |value: f64| interval.low <= value * (1.0 + 1e-12) && value * (1.0 - 1e-12) <= interval.high;
            covered[at] += usize::from(holds(truth[at]));
            point_outside += usize::from(!holds(points[at]));
            widths[at].push(interval.high - interval.low);
        }
    }
    let width = widths.map(|mut all| {
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    });
    Outcome { coverage: covered.map(|count| count as f64 / runs as f64), width, point_outside }
}

/// The figures of two runs whose intervals are tested: differences of accuracy and energy, ratios of IPW and IPJ.
pub const PAIR_FIGURES: [&str; 4] = ["accuracy", "energy", "IPW ratio", "IPJ ratio"];

/// The correlation of two runs' variables of the same question.
pub const COMMON: [f64; 2] = [0.0, 0.7];

/// The accuracy of the other run / that of the first.
pub const RATIOS: [f64; 2] = [1.0, 2.0];

/// Half of each of [`ACCURACIES`], with the normal quantile above which an answer is right.
const HALF_ACCURACIES: [(f64, f64); 5] = [
    (0.025, 1.959_963_984_540_054),
    (0.25, 0.674_489_750_196_081_7),
    (0.45, 0.125_661_346_855_074_02),
    (0.49, 0.025_068_908_258_711_06),
    (0.5, 0.0),
];

/// Two runs of the same questions; `cell` has the accuracy of the other run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairCell {
    pub cell: Cell,
    pub ratio: f64,
    pub common: f64,
}

impl PairCell {
    /// All cells of two runs with these questions, energies and accuracy.
    pub fn all_of(questions: usize, energies: Energies, accuracy: (f64, f64)) -> Vec<Self> {
        let mut cells = Vec::new();
        for correlation in CORRELATIONS {
            let cell = Cell { questions, accuracy, energies, correlation };
            for ratio in RATIOS {
                cells.extend(COMMON.map(|common| Self { cell, ratio, common }));
            }
        }
        cells
    }

    fn first_accuracy(&self) -> (f64, f64) {
        if self.ratio == 1.0 {
            return self.cell.accuracy;
        }
        let at = ACCURACIES.iter().position(|accuracy| *accuracy == self.cell.accuracy);
        HALF_ACCURACIES[at.expect("an accuracy of the grid")]
    }

    pub fn truth(&self) -> [f64; 4] {
        [self.cell.accuracy.0 - self.first_accuracy().0, 0.0, self.ratio, self.ratio]
    }

    /// Whether a method can cover each figure: where more than 5 % of the runs hold no expensive question, none covers
    /// what depends on the mean energy.
    pub fn is_possible(&self) -> [bool; 4] {
        let of_energy = self.cell.energies != Energies::TwoPoint || self.cell.questions >= MIN_QUESTIONS;
        [true, of_energy, true, of_energy]
    }

    /// Draws the queries of the first and of the other run.
    pub fn draw(&self, random: &mut SplitMix64) -> Vec<[Row; 2]> {
        let rest = |correlation: f64| (1.0 - correlation * correlation).sqrt();
        let (apart, independent) = (rest(self.common), rest(self.cell.correlation));
        let row = |cost: f64, other: f64, quantile: f64| {
            let energy = self.cell.energies.draw(cost);
            let right = self.cell.correlation * cost + independent * other > quantile;
            [f64::from(u8::from(right)), energy, energy.sqrt().sqrt()]
        };
        let quantiles = [self.first_accuracy().1, self.cell.accuracy.1];
        (0..self.cell.questions)
            .map(|_| {
                let ((cost, other), (own_cost, own_other)) = (normal_pair(random), normal_pair(random));
                let (second_cost, second_other) =
                    (self.common * cost + apart * own_cost, self.common * other + apart * own_other);
                [row(cost, other, quantiles[0]), row(second_cost, second_other, quantiles[1])]
            })
            .collect()
    }
}

/// The product's figures of two runs with their intervals.
pub fn product_pair(rows: &[[Row; 2]]) -> [Figure; 4] {
    let queries: Vec<PairedQuery> = rows
        .iter()
        .enumerate()
        .map(|(at, values)| PairedQuery {
            question: at as u64,
            open_s: [[at as f64, at as f64 + 0.5]; 2],
            values: *values,
        })
        .collect();
    let sample = PairedSample::new(&queries, false);
    [
        sample.score_difference(),
        sample.cost_difference(ENERGY),
        sample.efficiency_ratio(POWER),
        sample.efficiency_ratio(ENERGY),
    ]
}

/// The percentile bootstrap of the same figures, which the product used before.
pub fn bootstrap_pair(rows: &[[Row; 2]]) -> [Figure; 4] {
    let both = rows.iter().map(|[first, other]| [first[0], first[1], first[2], other[0], other[1], other[2]]);
    let sample = BootstrapSample::new(both, 1);
    let figures = |of: [f64; 6]| {
        let per = |cost: usize| (of[3] / of[3 + cost]) / (of[0] / of[cost]);
        [of[3] - of[0], of[3 + ENERGY] - of[ENERGY], per(POWER), per(ENERGY)]
    };
    let means =
        |sums: &wattspan_ipw::bootstrap::ColumnSums<6>| figures(sums.sums.map(|sum| sum / sums.count));
    let intervals = sample.confidence_intervals(rows[0][0][ENERGY].to_bits(), means);
    let values = means(sample.total());
    std::array::from_fn(|at| (values[at], intervals[at]))
}

/// A local model beside a reference, to which the questions go that the local model does not cover.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouteCell {
    pub questions: usize,
    /// The covered fraction with the normal quantile above which a question is covered.
    pub covered: (f64, f64),
    pub energies: Energies,
    /// The correlation of being covered and the energy at the reference.
    pub correlation: f64,
    /// The correlation of the energies at both models.
    pub common: f64,
    /// By how much the local model's energies are smaller.
    pub factor: f64,
}

impl RouteCell {
    /// All cells of routes with these questions, energies and covered fraction.
    pub fn all_of(questions: usize, energies: Energies, covered: (f64, f64)) -> Vec<Self> {
        let mut cells = Vec::new();
        for correlation in CORRELATIONS {
            for common in COMMON {
                let of = |factor| Self { questions, covered, energies, correlation, common, factor };
                cells.extend([2.0, 10.0].map(of));
            }
        }
        cells
    }

    /// Whether coverage is claimed: the local model covers enough questions, and neither the covered nor the other ones may
    /// lack their expensive ones.
    pub fn is_possible(&self) -> bool {
        let covered = self.covered.0 * self.questions as f64;
        let other = self.questions as f64 - covered;
        let has_expensive_ones = |count: f64| count == 0.0 || count >= MIN_QUESTIONS as f64;
        let two_point = self.energies == Energies::TwoPoint;
        covered >= 20.0 && (!two_point || (has_expensive_ones(covered) && has_expensive_ones(other)))
    }

    pub fn draw(&self, random: &mut SplitMix64) -> Vec<RoutedCost> {
        let rest = |correlation: f64| (1.0 - correlation * correlation).sqrt();
        let (apart, independent) = (rest(self.common), rest(self.correlation));
        (0..self.questions as u64)
            .map(|question| {
                let ((cost, other), (own_cost, _)) = (normal_pair(random), normal_pair(random));
                let reference = self.energies.draw(cost);
                let is_covered = self.correlation * cost + independent * other > self.covered.1;
                let local = self.energies.draw(self.common * cost + apart * own_cost) / self.factor;
                let chosen = if is_covered { local } else { reference };
                RoutedCost { question, is_covered, chosen, reference }
            })
            .collect()
    }

    /// The saving over very many questions.
    pub fn truth(&self) -> f64 {
        let all = Self { questions: 400_000, ..*self }.draw(&mut SplitMix64::new(77));
        1.0 - all.iter().map(|cost| cost.chosen).sum::<f64>()
            / all.iter().map(|cost| cost.reference).sum::<f64>()
    }
}

/// The product's saving of a route with its interval.
pub fn product_saving(costs: &[RoutedCost]) -> Figure {
    let times: Vec<[f64; 2]> = (0..costs.len()).map(|at| [at as f64, at as f64 + 0.5]).collect();
    let saved = saved_cost(costs, &[times], false);
    (saved.value, saved.interval)
}

/// How figures did in a cell.
#[derive(Debug, Clone, Copy)]
pub struct FigureOutcomes<const N: usize> {
    /// The fraction of runs with the figure whose interval contains the truth.
    pub coverage: [f64; N],
    /// The number of intervals that did not contain the figure itself.
    pub point_outside: usize,
}

/// Simulates figures; one that does not exist (no right answer in the first run) is not counted.
pub fn simulate_figures<const N: usize>(
    runs: usize,
    truth: [f64; N],
    mut figures: impl FnMut() -> [Figure; N],
) -> FigureOutcomes<N> {
    let (mut covered, mut counted, mut point_outside) = ([0_usize; N], [0_usize; N], 0);
    for _ in 0..runs {
        for (at, (value, interval)) in figures().into_iter().enumerate().filter(|(_, of)| of.0.is_finite()) {
            counted[at] += 1;
            let Some(interval) = interval else { continue };
            // Sums in another order differ in the last digits.
            let holds = |value: f64| interval.low <= value + 1e-12 && value - 1e-12 <= interval.high;
            covered[at] += usize::from(holds(truth[at]));
            point_outside += usize::from(!holds(value));
        }
    }
    let coverage = std::array::from_fn(|at| covered[at] as f64 / counted[at].max(1) as f64);
    FigureOutcomes { coverage, point_outside }
}
