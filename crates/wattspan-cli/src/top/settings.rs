//! Settings of `wattspan top`: the XDG configuration file, then the options.
//!
//! Cost and carbon need factors that depend on the place, so they have no default.

use std::env;
use std::path::PathBuf;

use serde::Deserialize;

use super::group_table::SortKey;
use super::grouping::Grouping;
use super::unit::{EnergyUnit, UnitFactors};
use crate::exit_status::{CliError, USAGE};

/// The file's content. A key that is absent has its default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopSettings {
    pub group: Grouping,
    pub sort: SortKey,
    pub unit: EnergyUnit,
    /// The price of a kilowatt-hour.
    pub cost_per_kwh: Option<f64>,
    /// The name of the currency of `cost_per_kwh`, for example EUR.
    pub currency: Option<String>,
    /// Grams of CO2 per kilowatt-hour.
    pub co2_g_per_kwh: Option<f64>,
}

impl TopSettings {
    /// Reads `wattspan/top.toml` in `$XDG_CONFIG_HOME`, else in `~/.config`. A file that does not exist has no settings.
    pub fn load() -> Result<Self, CliError> {
        let Some(path) = settings_path() else { return Ok(Self::default()) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(CliError::new(USAGE, format!("cannot read {}: {error}", path.display())));
            }
        };
        Self::parse(&text)
            .map_err(|error| CliError::new(USAGE, format!("{}: {error}; correct it", path.display())))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        for (key, value) in
            [("cost_per_kwh", settings.cost_per_kwh), ("co2_g_per_kwh", settings.co2_g_per_kwh)]
        {
            if value.is_some_and(|value| !(0.0..=1e9).contains(&value)) {
                return Err(format!("{key}: choose a number from 0 to 1000000000"));
            }
        }
        Ok(settings)
    }

    /// The factors of the units that need one, in millionths per kilowatt-hour.
    pub fn unit_factors(&self) -> UnitFactors {
        let millionths = |value: f64| (value * 1e6).round() as u64;
        UnitFactors {
            cost_millionths_per_kwh: self.cost_per_kwh.map(millionths),
            currency: self.currency.clone().unwrap_or_default(),
            co2_ug_per_kwh: self.co2_g_per_kwh.map(millionths),
        }
    }
}

fn settings_path() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(folder.join("wattspan").join("top.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_a_wrong_key_or_value_is_named() {
        let text = "group = 'user'\nsort = 'requests'\nunit = 'wh'\ncost_per_kwh = 0.31\ncurrency = 'EUR'\n";
        let settings = TopSettings::parse(text).unwrap();
        assert_eq!((settings.group, settings.sort), (Grouping::User, SortKey::Requests));
        assert_eq!(settings.unit, EnergyUnit::WattHours);
        assert_eq!(settings.unit_factors().cost_millionths_per_kwh, Some(310_000));
        assert!(TopSettings::parse("grup = 'user'").unwrap_err().contains("grup"));
        assert!(TopSettings::parse("cost_per_kwh = -1.0").unwrap_err().contains("cost_per_kwh"));
    }
}
