//! The two uncertainties of each figure, apart and together.
//!
//! The interval over the choice of questions shrinks with their number; the meter's error is a bound that does not. Invariant:
//! a figure is shown with both, and a missing bound is shown as such.

use serde::Serialize;

use super::super::bootstrap::ConfidenceInterval;
use super::super::metrics::{EfficiencyMetrics, Estimate};
use super::format::format_significant;
use super::units::InverseUnit;

/// One figure with its uncertainties, as text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FigureUncertainty {
    /// The name of the figure, with its unit.
    pub figure: String,
    /// The figure.
    pub value: String,
    /// The 95 % interval over the choice of questions.
    pub questions: String,
    /// The meter's guaranteed error.
    pub meter: String,
    /// The interval with the meter's error.
    pub both: String,
}

/// Returns a figure with its combined interval; with that of the questions if the meter's error has no bound.
pub fn with_combined(figure: Option<Estimate>, combined: Option<ConfidenceInterval>) -> Option<Estimate> {
    figure.map(|figure| Estimate { interval: combined.or(figure.interval), ..figure })
}

/// Returns the uncertainties of energy, power, IPW and IPJ, as far as they are known.
pub fn figure_uncertainties(all: &EfficiencyMetrics) -> Vec<FigureUncertainty> {
    let unit = |of: Option<Estimate>| InverseUnit::of(of.iter().map(|figure| figure.value));
    let (per_watt, per_joule) = (unit(all.per_watt), unit(all.per_joule));
    let relative = |of: Option<Estimate>, error: Option<f64>| Some(error? / of?.value.abs());
    let percent = |of: Option<f64>| of.map(|of| format!("\u{b1} {} %", format_significant(of * 100.0)));
    let absolute = |error: Option<f64>, unit: &str, relative: Option<f64>| {
        let percent = percent(relative)?.replace("\u{b1} ", "");
        Some(format!("\u{b1} {} {unit} ({percent})", format_significant(error?)))
    };
    let energy = relative(all.energy_j, all.energy_error_j);
    let power = relative(all.power_w, all.power_error_w);
    let figures = [
        (
            "energy, J".to_owned(),
            all.energy_j,
            1.0,
            absolute(all.energy_error_j, "J", energy),
            all.energy_combined_j,
        ),
        (
            "power, W".to_owned(),
            all.power_w,
            1.0,
            absolute(all.power_error_w, "W", power),
            all.power_combined_w,
        ),
        (
            format!("IPW, {}", per_watt.name("1", "W")),
            all.per_watt,
            per_watt.factor,
            percent(power),
            all.per_watt_combined,
        ),
        (
            format!("IPJ, {}", per_joule.name("1", "J")),
            all.per_joule,
            per_joule.factor,
            percent(energy),
            all.per_joule_combined,
        ),
    ];
    let figures = figures.into_iter().filter_map(|(figure, estimate, factor, meter, both)| {
        let (estimate, dash) = (estimate?, || "\u{2013}".to_owned());
        let range = |it: ConfidenceInterval| {
            format!("{} .. {}", format_significant(it.low * factor), format_significant(it.high * factor))
        };
        Some(FigureUncertainty {
            figure,
            value: format_significant(estimate.value * factor),
            questions: estimate.interval.map_or_else(dash, range),
            meter: meter.unwrap_or_else(|| "no bound".into()),
            both: both.map_or_else(dash, range),
        })
    });
    figures.collect()
}
