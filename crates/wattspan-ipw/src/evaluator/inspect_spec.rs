//! The head of a log of inspect-ai: what was evaluated, and the results over all samples.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// `header.json`, `_journal/start.json`, or the head of a `.json` log. Other fields are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectHeader {
    /// "success", "error", "cancelled" or "started"; absent in the journal of an unfinished evaluation.
    pub status: Option<String>,
    pub eval: InspectSpec,
    pub results: Option<InspectResults>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectSpec {
    pub task: Option<String>,
    pub model: Option<String>,
    pub model_base_url: Option<String>,
    /// ISO 8601.
    pub created: Option<String>,
    pub packages: Option<BTreeMap<String, Value>>,
    pub dataset: Option<InspectDataset>,
    pub config: Option<InspectConfig>,
    pub model_generate_config: Option<InspectConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectDataset {
    pub samples: Option<usize>,
    pub sample_ids: Option<Vec<Value>>,
}

/// The parts of the evaluation's and of the model's settings that concern the figures.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectConfig {
    pub epochs: Option<usize>,
    pub max_samples: Option<u64>,
    pub max_connections: Option<u64>,
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InspectResults {
    pub scores: Vec<InspectScorer>,
}

/// The results of one scorer, or of one value of a scorer with several.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct InspectScorer {
    pub name: String,
    pub scorer: String,
    pub metrics: BTreeMap<String, InspectMetric>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct InspectMetric {
    pub value: Option<f64>,
}

impl InspectScorer {
    /// The evaluator's mean of the score.
    pub fn own_score(&self) -> Option<f64> {
        let metric = self.metrics.get("accuracy").or_else(|| self.metrics.get("mean"));
        metric.and_then(|metric| metric.value)
    }
}

impl InspectHeader {
    /// Chooses the scorer by name; without a name the first one.
    ///
    /// # Errors
    /// There is no scorer of this name.
    pub fn choose_scorer(&self, name: Option<&str>) -> Result<InspectScorer, String> {
        let scorers = self.results.as_ref().map_or(&[][..], |results| &results.scores);
        let Some(name) = name else { return Ok(scorers.first().cloned().unwrap_or_default()) };
        let found = scorers.iter().find(|scorer| scorer.name == name);
        let names = || scorers.iter().map(|scorer| scorer.name.as_str()).collect::<Vec<_>>().join(", ");
        match found {
            Some(scorer) => Ok(scorer.clone()),
            // The results of an unfinished evaluation are only in its samples.
            None if scorers.is_empty() => Ok(InspectScorer {
                name: name.to_owned(),
                scorer: name.to_owned(),
                ..InspectScorer::default()
            }),
            None => Err(format!("has no scorer {name}; there are: {}", names())),
        }
    }

    /// The number of samples that were to be evaluated, each epoch counted.
    pub fn planned(&self) -> Option<usize> {
        let dataset = self.eval.dataset.as_ref()?;
        let samples = dataset.sample_ids.as_ref().map(Vec::len).or(dataset.samples)?;
        let epochs = self.eval.config.as_ref().and_then(|config| config.epochs).unwrap_or(1);
        samples.checked_mul(epochs)
    }
}
