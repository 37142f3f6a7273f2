//! The unit of the energy columns, and figures of one column that add up to its total.
//!
//! All figures of a column have the same unit and number of decimal places. Uses integers; the factors of cost and carbon
//! are in millionths.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::values_after::values_after;

/// The unit in which the energy columns are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnergyUnit {
    /// Joules
    #[default]
    #[serde(rename = "j")]
    #[value(name = "j")]
    Joules,
    /// Watt-hours
    #[serde(rename = "wh")]
    #[value(name = "wh")]
    WattHours,
    /// Watts: the mean power since the daemon started
    #[serde(rename = "w")]
    #[value(name = "w")]
    Watts,
    /// Cost of the energy; needs cost_per_kwh in the settings
    Cost,
    /// Grams of CO2; needs co2_g_per_kwh in the settings
    Co2,
}

/// Factors of the units that depend on the place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitFactors {
    pub cost_millionths_per_kwh: Option<u64>,
    pub currency: String,
    pub co2_ug_per_kwh: Option<u64>,
}

/// Microjoules in a kilowatt-hour.
const UJ_PER_KWH: u128 = 3_600_000_000_000;

impl EnergyUnit {
    /// The next unit that can be shown.
    pub fn next(self, factors: &UnitFactors) -> Self {
        values_after(self).find(|unit| unit.missing_setting(factors).is_none()).unwrap_or(self)
    }

    /// The setting that this unit needs and that is absent.
    pub fn missing_setting(self, factors: &UnitFactors) -> Option<&'static str> {
        match self {
            EnergyUnit::Cost if factors.cost_millionths_per_kwh.is_none() => Some("cost_per_kwh"),
            EnergyUnit::Co2 if factors.co2_ug_per_kwh.is_none() => Some("co2_g_per_kwh"),
            _ => None,
        }
    }
}

/// One column of figures: a factor from microjoules to the last digit shown, and the digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnScale {
    pub unit_name: String,
    /// One last digit is `divisor / multiplier` microjoules.
    multiplier: u128,
    divisor: u128,
    decimals: usize,
}

impl ColumnScale {
    /// The scale for a column whose total is `total_uj` over `uptime_ns`.
    pub fn choose(unit: EnergyUnit, factors: &UnitFactors, total_uj: u64, uptime_ns: Option<u64>) -> Self {
        let scale = |unit_name: &str, multiplier: u128, divisor: u128, decimals| ColumnScale {
            unit_name: unit_name.to_owned(),
            multiplier,
            divisor: divisor.max(1),
            decimals,
        };
        match (unit, uptime_ns) {
            (EnergyUnit::WattHours, _) if total_uj < 3_600_000_000_000 => {
                scale("Wh", 10_000, UJ_PER_KWH / 1_000, 4)
            }
            (EnergyUnit::WattHours, _) => scale("kWh", 10_000, UJ_PER_KWH, 4),
            // A milliwatt is a microjoule per million nanoseconds.
            (EnergyUnit::Watts, Some(uptime_ns)) => scale("W", 1_000_000, u128::from(uptime_ns), 3),
            (EnergyUnit::Cost, _) => {
                let factor = factors.cost_millionths_per_kwh.unwrap_or(0);
                scale(&factors.currency, u128::from(factor), UJ_PER_KWH * 10, 5)
            }
            (EnergyUnit::Co2, _) => {
                scale("g CO2", u128::from(factors.co2_ug_per_kwh.unwrap_or(0)), UJ_PER_KWH * 1_000, 3)
            }
            _ if total_uj < 10_000_000_000 => scale("J", 1, 1_000, 3),
            _ if total_uj < 10_000_000_000_000 => scale("kJ", 1, 1_000_000, 3),
            _ => scale("MJ", 1, 1_000_000_000, 3),
        }
    }

    /// The number of last digits in an energy, rounded.
    fn digits(&self, uj: u64) -> u64 {
        let digits = (u128::from(uj) * self.multiplier + self.divisor / 2) / self.divisor;
        u64::try_from(digits).unwrap_or(u64::MAX)
    }

    fn format_digits(&self, digits: u64) -> String {
        let one = 10u64.pow(u32::try_from(self.decimals).unwrap_or(0));
        format!("{}.{:0width$}", digits / one, digits % one, width = self.decimals)
    }

    /// One figure, without the unit.
    pub fn format(&self, uj: u64) -> String {
        self.format_digits(self.digits(uj))
    }

    /// Figures, and their total last, that add up as printed. Each is rounded by itself, and `residual` takes the
    /// remainder of the roundings; if it is too small for that, the largest figure does.
    pub fn format_sum(&self, parts_uj: &[u64], residual: usize) -> Vec<String> {
        let mut digits: Vec<u64> = parts_uj.iter().map(|&uj| self.digits(uj)).collect();
        let total = self.digits(parts_uj.iter().sum());
        let sum: u64 = digits.iter().sum();
        let fits = |part: &u64| part + total >= sum;
        let largest = (0..digits.len()).max_by_key(|&at| digits[at]);
        let taker = Some(residual).filter(|&at| digits.get(at).is_some_and(fits)).or(largest);
        if let Some(part) = taker.and_then(|at| digits.get_mut(at)) {
            *part = (*part + total).saturating_sub(sum);
        }
        digits.push(total);
        digits.into_iter().map(|digits| self.format_digits(digits)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joules() -> ColumnScale {
        ColumnScale::choose(EnergyUnit::Joules, &UnitFactors::default(), 0, None)
    }

    #[test]
    fn printed_figures_add_up_to_the_printed_total() {
        // 0.4 + 0.4 + 0.4 mJ is 1.2 mJ: rounded separately they would print as 0 + 0 + 0 = 1.
        assert_eq!(joules().format_sum(&[400, 400, 400], 2), ["0.000", "0.000", "0.001", "0.001"]);
        // 0.5 + 0.5 mJ: rounded separately they would print as 1 + 1 = 1; the residual of 0 cannot take the difference.
        assert_eq!(joules().format_sum(&[500, 500, 0], 2), ["0.001", "0.000", "0.000", "0.001"]);
        assert_eq!(joules().format_sum(&[], 0), ["0.000"]);
    }

    #[test]
    fn the_units_are_those_of_one_kilowatt_hour() {
        let factors = UnitFactors {
            cost_millionths_per_kwh: Some(310_000),
            currency: "EUR".into(),
            co2_ug_per_kwh: Some(400_000_000),
        };
        let kwh_uj = 3_600_000_000_000;
        let hour_ns = Some(3_600_000_000_000);
        let show = |unit| {
            let scale = ColumnScale::choose(unit, &factors, kwh_uj, hour_ns);
            format!("{} {}", scale.format(kwh_uj), scale.unit_name)
        };
        assert_eq!(show(EnergyUnit::Joules), "3600.000 kJ");
        assert_eq!(show(EnergyUnit::WattHours), "1.0000 kWh");
        assert_eq!(show(EnergyUnit::Watts), "1000.000 W");
        assert_eq!(show(EnergyUnit::Cost), "0.31000 EUR");
        assert_eq!(show(EnergyUnit::Co2), "400.000 g CO2");
    }

    #[test]
    fn units_without_their_factor_are_skipped() {
        let factors = UnitFactors::default();
        assert_eq!(EnergyUnit::Watts.next(&factors), EnergyUnit::Joules);
        let factors = UnitFactors { co2_ug_per_kwh: Some(1), ..factors };
        assert_eq!(EnergyUnit::Watts.next(&factors), EnergyUnit::Co2);
    }
}
