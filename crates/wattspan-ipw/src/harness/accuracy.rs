//! The file `analysis/accuracy.json` of a results directory, as the harness's analysis writes it.
//!
//! Its arithmetic: accuracy over the evaluated records, means over those of them with a positive energy, and the power of a
//! query as its energy over its time. At more than one query at a time that is the attributed power.

use serde::Serialize;

use super::ProfilingRecord;

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccuracyAnalysis {
    analysis: &'static str,
    pub summary: AccuracySummary,
}

/// The figures of a model; null where they are unknown.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct AccuracySummary {
    pub accuracy: Option<f64>,
    /// The number of evaluated records.
    pub scored: usize,
    pub avg_energy_j: Option<f64>,
    pub avg_power_w: Option<f64>,
    #[serde(rename = "IPJ")]
    pub per_joule: Option<f64>,
    #[serde(rename = "IPW")]
    pub per_watt: Option<f64>,
}

/// The energy up to which the harness takes a query for unmetered, joules.
const NO_ENERGY_J: f64 = 1e-12;

impl AccuracyAnalysis {
    /// Computes the figures of a model's records.
    pub fn new(records: &[ProfilingRecord], model: &str) -> Self {
        let (mut right, mut scored) = (0_usize, 0_usize);
        let (mut energies, mut powers) = (Vec::new(), Vec::new());
        for metrics in records.iter().filter_map(|record| record.model_metrics.get(model)?.as_ref()) {
            let Some(is_correct) = metrics.evaluation.as_ref().and_then(|it| it.is_correct) else { continue };
            scored += 1;
            right += usize::from(is_correct);
            let joules = metrics.energy_metrics.per_query_joules.filter(|joules| *joules > NO_ENERGY_J);
            if let Some((joules, seconds)) = joules.zip(metrics.latency_metrics.total_query_seconds) {
                energies.push(joules);
                powers.push(joules / seconds);
            }
        }
        let mean = |all: &[f64]| (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64);
        let accuracy = (scored > 0).then(|| right as f64 / scored as f64);
        let (avg_energy_j, avg_power_w) = (mean(&energies), mean(&powers));
        let per = |cost: Option<f64>| Some(accuracy? / cost?);
        let (per_joule, per_watt) = (per(avg_energy_j), per(avg_power_w));
        let summary = AccuracySummary { accuracy, scored, avg_energy_j, avg_power_w, per_joule, per_watt };
        Self { analysis: "accuracy", summary }
    }
}
