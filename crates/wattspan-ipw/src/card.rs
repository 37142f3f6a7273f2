//! The result card: one JSON file with what is needed to believe a run's figures and to repeat them.
//!
//! A card has the run's conditions, the assumptions of its meter, its figures with their intervals, and the hash of the
//! rows from which they were computed. Checking a card against its run proves the arithmetic, not the measurement.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wattspan_client::protocol::DomainStatus;

use super::conditions::{ConditionOrigin, Conditions, sha256_of_file};
use super::metrics::{EfficiencyMetrics, MetricOptions};
use super::report::{EnergyPrices, Report};
use super::run_dir::{Manifest, RunDirError, io_error_at};
use super::scope::{IdlePolicy, RunDomain, Scope};
use super::table::RunTable;

/// The value of [`ResultCard::format`].
pub const CARD_FORMAT: &str = "wattspan-result-card";

/// The version of the format that this program writes.
pub const CARD_VERSION: u32 = 1;

/// What a check of a card proves; every card says it.
const STATEMENT: &str = "The figures follow from the rows with the given hash (wattspan ipw verify). That the rows are what was \
                         measured is the word of those who published them.";

/// A result card. `docs/result-card.schema.json` is its schema.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResultCard {
    pub format: String,
    pub version: u32,
    /// The version of the program that wrote the card.
    pub written_by: String,
    /// What a check of the card proves.
    pub statement: String,
    pub label: String,
    pub model: String,
    /// Start of the run, wall-clock time.
    pub began_unix_ns: u64,
    /// The machine: operating system, processor, number of CPUs.
    pub machine: String,
    /// The program that measured.
    pub meter: String,
    /// Whether the machine was simulated.
    pub simulated: bool,
    /// How the questions were asked: API, concurrency, limits, sampling, the hash of the prompts.
    pub settings: BTreeMap<String, String>,
    pub questions: CardQuestions,
    /// Engine, model file, driver, governor and others, each with its origin.
    pub conditions: Conditions,
    /// The domains whose energy counts, in the run's order.
    pub domains: Vec<RunDomain>,
    /// What the meter's guarantee assumes of each domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assumptions: Option<Vec<DomainStatus>>,
    /// The SHA-256 of the run's `rows.jsonl`.
    pub rows_sha256: String,
    pub scope: Scope,
    pub idle: IdlePolicy,
    /// Whether figures at less than 95 % coverage are printed.
    pub allow_partial: bool,
    pub figures: CardFigures,
}

/// The set of questions and how often each was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CardQuestions {
    /// The name of the set.
    pub set: String,
    pub fingerprint: String,
    pub count: usize,
    pub repeats: u32,
}

/// What the run amounts to: over all queries, in its steady state, and by subject.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CardFigures {
    pub all: EfficiencyMetrics,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steady_state: Option<EfficiencyMetrics>,
    pub subjects: Vec<EfficiencyMetrics>,
}

/// Which figures a card has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CardOptions {
    pub figures: MetricOptions,
    /// Whether figures at less than 95 % coverage are printed.
    pub allow_partial: bool,
}

impl ResultCard {
    /// Computes the card of a run. `stated` are conditions that the user adds; what the run itself recorded stays.
    ///
    /// # Errors
    /// The run cannot be read.
    pub fn of_run(run: &Path, options: CardOptions, stated: Conditions) -> Result<Self, RunDirError> {
        let table = RunTable::read(run)?;
        let rows_path = run.join("rows.jsonl");
        let (rows_sha256, _) = sha256_of_file(&rows_path).map_err(io_error_at(&rows_path))?;
        let mut report = Report::new(&table, &options.figures, EnergyPrices::default());
        if !options.allow_partial {
            report.withhold_if_partial();
        }
        let Manifest { settings, conditions, assumptions, domains, .. } = table.manifest.clone();
        let manifest = &table.manifest;
        Ok(Self {
            format: CARD_FORMAT.into(),
            version: CARD_VERSION,
            written_by: format!("wattspan {}", env!("CARGO_PKG_VERSION")),
            statement: STATEMENT.into(),
            label: manifest.label.clone(),
            model: manifest.model.clone(),
            began_unix_ns: manifest.began_unix_ns,
            machine: manifest.machine.clone(),
            meter: manifest.meter.clone(),
            simulated: manifest.is_simulated(),
            settings,
            questions: CardQuestions {
                // A path of the machine stays on the machine.
                set: manifest.questions.rsplit('/').next().unwrap_or_default().to_owned(),
                fingerprint: manifest.fingerprint.clone(),
                count: manifest.count,
                repeats: manifest.repeats,
            },
            conditions: stated.into_iter().chain(conditions).collect(),
            domains,
            assumptions,
            rows_sha256,
            scope: options.figures.scope,
            idle: options.figures.idle,
            allow_partial: options.allow_partial,
            figures: CardFigures {
                all: report.all,
                steady_state: report.steady_state.map(|steady| steady.figures),
                subjects: report.subjects,
            },
        })
    }
}

/// What a check needs of a card.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct CardHeader {
    pub written_by: String,
    pub rows_sha256: String,
    pub scope: Scope,
    pub idle: IdlePolicy,
    pub allow_partial: bool,
    pub conditions: Conditions,
}

/// A value of a card that is not what its run gives.
#[derive(Debug, Clone, PartialEq)]
pub struct CardDifference {
    /// The place in the card: "figures.all.per_watt.value".
    pub place: String,
    /// The value in the card; null if it is absent.
    pub in_card: Value,
    /// The value that the run gives; null if it has none.
    pub in_run: Value,
}

/// Computes the card of a run again and returns all differences to `card`, the card with this header. The program that wrote the card
/// and the conditions that a user stated are not compared: the run does not have them.
///
/// # Errors
/// The run cannot be read.
pub fn verify_card(
    header: &CardHeader,
    card: &Value,
    run: &Path,
) -> Result<Vec<CardDifference>, RunDirError> {
    let stated = header.conditions.iter().filter(|(_, condition)| condition.origin == ConditionOrigin::User);
    let stated = stated.map(|(name, condition)| (name.clone(), condition.clone())).collect();
    let options = CardOptions {
        figures: MetricOptions { scope: header.scope, idle: header.idle },
        allow_partial: header.allow_partial,
    };
    let again = ResultCard::of_run(run, options, stated)?;
    let again = ResultCard { written_by: header.written_by.clone(), ..again };
    // Through text, as the card went, so that equal figures are equal values.
    let again = serde_json::to_string(&again).expect("a card is plain data");
    let again = serde_json::from_str(&again).expect("it was written just now");
    let mut differences = Vec::new();
    collect_differences("", card, &again, &mut differences);
    // The causes come before the figures that follow from them.
    differences.sort_by_key(|difference| difference.place.starts_with("figures."));
    Ok(differences)
}

fn collect_differences(place: &str, card: &Value, run: &Value, differences: &mut Vec<CardDifference>) {
    let at = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
    match (card, run) {
        (Value::Object(of_card), Value::Object(of_run)) => {
            let names: BTreeSet<&String> = of_card.keys().chain(of_run.keys()).collect();
            for name in names {
                collect_differences(&at(name), &card[name], &run[name], differences);
            }
        }
        (Value::Array(of_card), Value::Array(of_run)) => {
            for index in 0..of_card.len().max(of_run.len()) {
                collect_differences(&at(&index.to_string()), &card[index], &run[index], differences);
            }
        }
        _ if card == run => {}
        _ => differences.push(CardDifference {
            place: place.to_owned(),
            in_card: card.clone(),
            in_run: run.clone(),
        }),
    }
}
