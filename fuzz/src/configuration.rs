//! The configuration file of the daemon.

use wattspan::config::Config;

/// A configuration that passes the checks reads back from what `wattspand --check` prints.
pub fn check(bytes: &[u8]) {
    let Some(config) = std::str::from_utf8(bytes).ok().and_then(|text| toml::from_str::<Config>(text).ok())
    else {
        return;
    };
    if let Err(error) = config.check("the file") {
        assert!(!error.to_string().is_empty());
        return;
    }
    let printed = toml::to_string(&config).expect("a configuration can be printed");
    let again: Config = toml::from_str(&printed).unwrap_or_else(|error| panic!("{error} in {printed}"));
    assert_eq!(again, config);
    // A reload takes the limits, and another one of the same file changes nothing.
    let (reloaded, _) = Config::default().apply_reload(&config, 1_000.0);
    assert_eq!(reloaded.limits, config.limits);
    let (_, change) = config.apply_reload(&config, 1_000.0);
    assert!(change.needs_restart.is_empty() || config.rate_hz > 1_000.0, "{change:?}");
    let still_valid = reloaded.check("the reloaded configuration");
    assert!(still_valid.is_ok(), "{still_valid:?}");
}
