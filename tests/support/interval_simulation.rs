//! Simulated runs with known figures, on which the coverage of confidence intervals is measured.
//!
//! A cell fixes the number of questions, the accuracy, the energies and their correlation with correctness. Whether an
//! answer is right and what it costs are a Gaussian copula: both are functions of normal variables with that
//! correlation. The power of a query grows with the fourth root of its energy.

#![allow(dead_code, reason = "the test and the bench use different parts")]

use wattspan_ipw::bootstrap::{BootstrapSample, ConfidenceInterval, SplitMix64};
use wattspan_ipw::intervals::{IntervalSample, SampleQuery};

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
