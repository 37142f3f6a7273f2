//! Mean, standard deviation, minimum and maximum of repeated figures, for `run --repeat`.
//!
//! No outlier is removed. The standard deviation of a single figure is absent, not 0.

use serde::Serialize;

/// Statistics of repeated figures, in their own unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SampleStatistics {
    pub count: usize,
    pub mean: u64,
    /// The sample standard deviation (n - 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standard_deviation: Option<u64>,
    pub min: u64,
    pub max: u64,
}

impl SampleStatistics {
    /// The statistics of `values`; `None` if there are none.
    pub fn of(values: &[u64]) -> Option<Self> {
        let (min, max) = (*values.iter().min()?, *values.iter().max()?);
        let count = values.len();
        let sum: u128 = values.iter().map(|&figure| u128::from(figure)).sum();
        let mean = sum as f64 / count as f64;
        let squares: f64 = values.iter().map(|&figure| (figure as f64 - mean).powi(2)).sum();
        let standard_deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt().round() as u64);
        Some(SampleStatistics { count, mean: mean.round() as u64, standard_deviation, min, max })
    }

    /// The statistics of `values`, if every one is known.
    pub fn if_all_known(values: impl IntoIterator<Item = Option<u64>>) -> Option<Self> {
        Self::of(&values.into_iter().collect::<Option<Vec<u64>>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_deviation_is_that_of_a_sample() {
        let statistics = SampleStatistics::of(&[2, 4, 4, 4, 5, 5, 7, 9]).unwrap();
        assert_eq!(
            (statistics.mean, statistics.standard_deviation, statistics.min, statistics.max),
            (5, Some(2), 2, 9)
        );
    }

    #[test]
    fn one_value_has_no_deviation_and_none_has_no_mean() {
        assert_eq!(SampleStatistics::of(&[7]).unwrap().standard_deviation, None);
        assert_eq!(SampleStatistics::of(&[]), None);
    }

    #[test]
    fn one_unknown_value_makes_the_mean_unknown() {
        assert_eq!(SampleStatistics::if_all_known([Some(1), None]), None);
    }
}
