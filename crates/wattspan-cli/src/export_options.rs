//! Options that the exports to files and to services have in common.

use std::time::Duration;

use wattspan_export::{DEFAULT_ATTRIBUTES, ExportError};

use super::exit_status::{CliError, FAILURE};

/// Parses the value of `--every`.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let parts = text.split_at_checked(text.len().saturating_sub(1));
    let seconds = parts.and_then(|(digits, unit)| {
        let unit_s = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(unit_s)
    });
    let valid = seconds.filter(|seconds| (1..=86_400).contains(seconds));
    valid
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a time from 1s to 24h, such as 30s, 10m or 1h".to_owned())
}

/// The host where `--host` names none.
pub fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The allowed attributes: those that are named, else the default ones.
pub fn named_or_default_attributes(named: &[String]) -> Vec<String> {
    if named.is_empty() { DEFAULT_ATTRIBUTES.map(str::to_owned).to_vec() } else { named.to_vec() }
}

/// The exit status of a failed export.
pub fn to_cli_error(error: ExportError) -> CliError {
    match error {
        ExportError::Client(error) => error.into(),
        other => CliError::new(FAILURE, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_seconds_minutes_and_hours() {
        assert_eq!(parse_interval("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_interval("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_interval("24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "m", "10", "0s", "25h", "1d", "-1m", "1 m", "ä"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
    }
}
