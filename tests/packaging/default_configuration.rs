//! The installed configuration file: every key with its default, commented out.

use std::collections::BTreeSet;

use wattspan::config::Config;

const FILE: &str = include_str!("../../packaging/wattspan.toml");

/// Keys without a default; the file shows examples for them.
const WITHOUT_DEFAULT: &[&str] = &[
    "socket",
    "idle_w.package-0",
    "ceiling_w.package-0",
    "lag_ms.gpu-0",
    "update_interval_ms.gpu-0",
    "quantum_uj.gpu-0",
    "averaging_ms.module-0",
    "sampled_percent.gpu-0",
    "source.enabled",
    "source.estimate_idle_w",
    "source.estimate_max_w",
    "source.energy_filter_percent",
    "source.nvml_library",
    "source.replay",
    "access.coarse_group",
    "source.apple_library",
    "state_dir",
];

/// The file with its settings uncommented.
fn uncommented() -> toml::Table {
    let in_force = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting.to_owned(),
        _ => line.to_owned(),
    };
    FILE.lines().map(in_force).collect::<Vec<_>>().join("\n").parse().unwrap()
}

/// Every key with its dotted path.
fn keys(under: &str, table: &toml::Table) -> BTreeSet<String> {
    let each = |(key, value): (&String, &toml::Value)| match value {
        toml::Value::Table(table) => keys(&format!("{under}{key}."), table),
        _ => BTreeSet::from([format!("{under}{key}")]),
    };
    table.iter().flat_map(each).collect()
}

#[test]
fn as_it_is_installed_it_changes_nothing() {
    assert_eq!(toml::from_str::<Config>(FILE).unwrap(), Config::default());
}

#[test]
fn what_it_shows_as_default_is_the_default_and_no_key_is_missing() {
    let shown = uncommented();
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    let expected: BTreeSet<String> =
        keys("", &defaults).into_iter().chain(WITHOUT_DEFAULT.iter().map(|key| (*key).to_owned())).collect();
    assert_eq!(keys("", &shown), expected);
    let mut config: Config = shown.try_into().expect("every example is sound");
    config.check("the packaged file").unwrap();
    let Config {
        socket,
        state_dir,
        access,
        idle_w,
        ceiling_w,
        lag_ms,
        update_interval_ms,
        quantum_uj,
        averaging_ms,
        sampled_percent,
        source,
        ..
    } = Config::default();
    config.socket = socket;
    config.state_dir = state_dir;
    config.access.coarse_group = access.coarse_group;
    config.source.apple_library = source.apple_library;
    config.idle_w = idle_w;
    config.ceiling_w = ceiling_w;
    config.lag_ms = lag_ms;
    config.update_interval_ms = update_interval_ms;
    config.quantum_uj = quantum_uj;
    config.averaging_ms = averaging_ms;
    config.sampled_percent = sampled_percent;
    config.source.enabled = source.enabled;
    config.source.estimate_idle_w = source.estimate_idle_w;
    config.source.estimate_max_w = source.estimate_max_w;
    config.source.energy_filter_percent = source.energy_filter_percent;
    config.source.nvml_library = source.nvml_library;
    config.source.replay = source.replay;
    assert_eq!(config, Config::default());
}

#[test]
fn no_key_without_a_default_is_forgotten() {
    // On an unknown key the parser lists every known one.
    for table in ["", "[source]", "[access]", "[limits]"] {
        let wrong = toml::from_str::<Config>(&format!("{table}\nno_such_key = 1\n")).unwrap_err().to_string();
        let known: Vec<&str> = wrong.split('`').skip(3).step_by(2).collect();
        assert!(!known.is_empty(), "{wrong}");
        for key in known {
            assert!(
                FILE.contains(&format!("#{key} = ")) || FILE.contains(&format!("[{key}]")),
                "{table} {key} is missing"
            );
        }
    }
}
