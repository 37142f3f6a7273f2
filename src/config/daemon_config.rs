//! The configuration of the daemon: defaults, then files, then flags, then checks.
//!
//! Reads its files and opens nothing else. An unknown key is an error: a misspelt limit that is ignored would not limit
//! anything. A reload changes the keys that [`Config::apply_reload`] lists.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config_error::ConfigError;
use super::flags::Flags;
use super::section::{AccessGroups, DbusConfig, Limits, SourceConfig, StoreConfig};
use super::system_dirs::config_dir;
use super::trusted_path::{self, AcceptedOwner, UntrustedPathError};

/// The effective settings; printed as TOML by `wattspand --check`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The socket's path; absent: the first of [`listen_paths`](super::listen_paths) that this user can create.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Whether to serve D-Bus too, and on which bus; only on Linux.
    pub bus: DbusConfig,
    /// The state directory; absent: see [`default_state_dir`](super::default_state_dir).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Readings per second at the fixed rate, while a span is open or a client watches the domains.
    pub rate_hz: f64,
    /// Whether a file or a flag sets `rate_hz`: sources are then read at this rate even where reads at edges would do.
    #[serde(skip)]
    pub rate_is_configured: bool,
    /// Readings per second otherwise.
    pub idle_rate_hz: f64,
    /// The age up to which readings at the full rate are kept, in seconds.
    pub history_s: f64,
    /// How late a message may arrive and still take effect at the instant it names.
    pub horizon_ms: f64,
    /// Accounts do not wait longer than this for a counter to move.
    pub patience_ms: f64,
    /// The sources of readings.
    pub source: SourceConfig,
    /// Idle power by domain name, in watts; for other domains it is estimated.
    pub idle_w: BTreeMap<String, f64>,
    /// The highest power by domain name, in watts, at every instant; for other domains the machine's limits.
    pub ceiling_w: BTreeMap<String, f64>,
    /// The publishing lag of counters by domain name, in milliseconds; for other domains it is assumed.
    pub lag_ms: BTreeMap<String, f64>,
    /// The update interval of counters by domain name, in milliseconds; for other domains it is measured.
    pub update_interval_ms: BTreeMap<String, f64>,
    /// The unit of counters by domain name, in microjoules; for other domains that of the source.
    pub quantum_uj: BTreeMap<String, u64>,
    /// The averaging time of power sensors by domain name, in milliseconds; for other domains as the driver shows it.
    pub averaging_ms: BTreeMap<String, f64>,
    /// The part of the time that NVIDIA's power sensors observe, by domain name, in percent; for other domains it is assumed.
    pub sampled_percent: BTreeMap<String, f64>,
    /// The accounts on disk.
    pub ledger: StoreConfig,
    /// Limits per client, per user and in total.
    pub limits: Limits,
    /// The groups that have access.
    pub access: AccessGroups,
}

/// The keys that differ between two configurations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// The keys whose new values are effective.
    pub applied: Vec<String>,
    /// The keys that need a restart and keep their values.
    pub needs_restart: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: None,
            bus: DbusConfig::default(),
            state_dir: None,
            rate_hz: 1000.0,
            rate_is_configured: false,
            idle_rate_hz: 1.0,
            history_s: 16.0,
            horizon_ms: 10.0,
            patience_ms: 2000.0,
            source: SourceConfig::default(),
            idle_w: BTreeMap::new(),
            ceiling_w: BTreeMap::new(),
            lag_ms: BTreeMap::new(),
            update_interval_ms: BTreeMap::new(),
            quantum_uj: BTreeMap::new(),
            averaging_ms: BTreeMap::new(),
            sampled_percent: BTreeMap::new(),
            limits: Limits::default(),
            ledger: StoreConfig::default(),
            access: AccessGroups::default(),
        }
    }
}

impl Config {
    /// Reads the files and applies the flags. Without `--config` a missing file is no error.
    ///
    /// `owner`: the accepted owner of the configuration files and of the libraries that they name, which run in this process.
    /// A replayed trace is data and may have any owner; `state_dir` is checked where it is opened.
    pub fn load(flags: &Flags, owner: AcceptedOwner) -> Result<Self, ConfigError> {
        let files = match &flags.config {
            Some(file) => vec![file.clone()],
            None => config_files(&config_dir())?,
        };
        let mut config = Self::from_files(&files, owner)?;
        config.apply_flags(flags);
        config.check("the flags")?;
        if owner == AcceptedOwner::Root {
            config.check_libraries()?;
        }
        Ok(config)
    }

    /// Merges the files; a later one takes precedence.
    fn from_files(files: &[PathBuf], owner: AcceptedOwner) -> Result<Self, ConfigError> {
        let (mut whole, mut errors) = (toml::Table::new(), Vec::new());
        for file in files {
            let text =
                trusted_path::read(file, owner).map_err(|cause| ConfigError::from_path_error(file, cause))?;
            // Each file is parsed alone first, so that an error names its file.
            let malformed = |cause| ConfigError::Malformed { file: file.clone(), cause: Box::new(cause) };
            let alone: Self = toml::from_str(&text).map_err(malformed)?;
            errors.extend(alone.check(&file.display().to_string()).err());
            merge_tables(&mut whole, text.parse().map_err(malformed)?);
        }
        let last = || files.last().cloned().unwrap_or_default();
        let malformed = |cause| ConfigError::Malformed { file: last(), cause: Box::new(cause) };
        let rate_is_configured = whole.contains_key("rate_hz");
        let config: Self = whole.try_into().map_err(malformed)?;
        let config = Self { rate_is_configured, ..config };
        // The merged values count. If one file alone has the same error, that file is named.
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        let with_file = |error: ConfigError| {
            errors.into_iter().find(|file_error| file_error.is_same_value(&error)).unwrap_or(error)
        };
        config.check(&names.join(" and ")).map_err(with_file)?;
        Ok(config)
    }

    /// Checks the owners of libraries that are named with a directory. The loader looks up the others in the directories of the
    /// system.
    fn check_libraries(&self) -> Result<(), ConfigError> {
        let libraries = [&self.source.nvml_library, &self.source.apple_library];
        let named = libraries.into_iter().flatten().filter(|library| library.components().count() > 1);
        for library in named {
            match trusted_path::resolve(library) {
                Err(UntrustedPathError::Io(cause)) if cause.kind() == std::io::ErrorKind::NotFound => {}
                resolved => drop(resolved.map_err(|cause| ConfigError::from_path_error(library, cause))?),
            }
        }
        Ok(())
    }

    /// The configuration after a reload: the keys of `new` that change at run time, and all others of `self`. A key that is
    /// not listed here needs a restart. `max_rate_hz` is the rate for which the rings are sized.
    pub fn apply_reload(&self, new: &Self, max_rate_hz: f64) -> (Self, ConfigChange) {
        let mut next = self.clone();
        next.limits.clone_from(&new.limits);
        next.access.clone_from(&new.access);
        next.idle_w.clone_from(&new.idle_w);
        next.ceiling_w.clone_from(&new.ceiling_w);
        next.lag_ms.clone_from(&new.lag_ms);
        next.update_interval_ms.clone_from(&new.update_interval_ms);
        next.sampled_percent.clone_from(&new.sampled_percent);
        next.idle_rate_hz = new.idle_rate_hz;
        if new.rate_hz <= max_rate_hz {
            next.rate_hz = new.rate_hz;
            next.rate_is_configured = new.rate_is_configured;
        } else {
            // Keep idle_rate_hz <= rate_hz.
            next.idle_rate_hz = new.idle_rate_hz.min(next.rate_hz);
        }
        (
            next.clone(),
            ConfigChange { applied: changed_keys(self, &next), needs_restart: changed_keys(&next, new) },
        )
    }

    fn apply_flags(&mut self, flags: &Flags) {
        fn set<T: Clone>(target: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                target.clone_from(value);
            }
        }
        fn set_option<T: Clone>(target: &mut Option<T>, flag: &Option<T>) {
            if flag.is_some() {
                target.clone_from(flag);
            }
        }
        set_option(&mut self.socket, &flags.socket);
        set_option(&mut self.state_dir, &flags.state_dir);
        set(&mut self.rate_hz, &flags.rate_hz);
        self.rate_is_configured |= flags.rate_hz.is_some();
        set(&mut self.idle_rate_hz, &flags.idle_rate_hz);
        set(&mut self.source.sysfs_root, &flags.sysfs_root);
        set(&mut self.source.proc_root, &flags.proc_root);
        set_option(&mut self.source.nvml_library, &flags.nvml_library);
        set_option(&mut self.source.replay, &flags.replay);
    }

    /// Checks the tables by domain name.
    fn check_tables(
        &self,
        within: impl Fn(&str, f64, f64, f64) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let whole = |(domain, value): (&String, &u64)| (domain.clone(), *value as f64);
        for (table, values, min, max) in [
            ("idle_w", &self.idle_w, 0.0, 100_000.0),
            ("ceiling_w", &self.ceiling_w, 0.001, 1_000_000.0),
            ("lag_ms", &self.lag_ms, 0.0, 60_000.0),
            ("update_interval_ms", &self.update_interval_ms, 0.001, 60_000.0),
            ("quantum_uj", &self.quantum_uj.iter().map(whole).collect(), 1.0, 1e9),
            ("averaging_ms", &self.averaging_ms, 0.0, 60_000.0),
            ("sampled_percent", &self.sampled_percent, 0.01, 100.0),
        ] {
            for (domain, value) in values {
                within(&format!("{table}.{domain}"), *value, min, max)?;
            }
        }
        Ok(())
    }

    /// Checks that all values are in range; `location` is named in the error.
    pub fn check(&self, location: &str) -> Result<(), ConfigError> {
        let within = |key: &str, value: f64, min: f64, max: f64| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            let remedy = format!("choose a number from {min} to {max}");
            Err(ConfigError::InvalidValue {
                location: location.into(),
                key: key.into(),
                value: value.to_string(),
                remedy,
            })
        };
        within("rate_hz", self.rate_hz, 1.0, 10_000.0)?;
        within("idle_rate_hz", self.idle_rate_hz, 0.1, self.rate_hz)?;
        within("history_s", self.history_s, 1.0, 600.0)?;
        within("horizon_ms", self.horizon_ms, 0.0, 1000.0)?;
        within("patience_ms", self.patience_ms, 100.0, 60_000.0)?;
        self.check_tables(within)?;
        let idle = self.source.estimate_idle_w;
        within("source.estimate_idle_w", idle.unwrap_or(0.0), 0.0, 100_000.0)?;
        if let Some(max) = self.source.estimate_max_w {
            within("source.estimate_max_w", max, idle.unwrap_or(0.0), 100_000.0)?;
        }
        within("source.energy_filter_percent", self.source.energy_filter_percent.unwrap_or(0.0), 0.0, 99.0)?;
        if let (DbusConfig::Address(address), Some(remedy)) = (&self.bus, self.bus.invalid_reason()) {
            let (key, value) = ("bus".into(), address.clone());
            return Err(ConfigError::InvalidValue {
                location: location.into(),
                key,
                value,
                remedy: remedy.into(),
            });
        }
        within("ledger.days", self.ledger.days, 0.001, 36_500.0)?;
        within("ledger.megabytes", self.ledger.megabytes as f64, 1.0, 1e9)?;
        within("ledger.waiting_megabytes", self.ledger.waiting_megabytes as f64, 1.0, 1e6)?;
        let limits = &self.limits;
        within("limits.message_bytes", limits.message_bytes as f64, 1024.0, f64::from(1 << 20))?;
        within("limits.connections", limits.connections as f64, 1.0, 100_000.0)?;
        within("limits.connections_per_user", limits.connections_per_user as f64, 1.0, 100_000.0)?;
        within("limits.open_spans", limits.open_spans as f64, 1.0, 10_000_000.0)?;
        within("limits.open_spans_per_user", limits.open_spans_per_user as f64, 1.0, 10_000_000.0)?;
        let memory = [limits.span_memory_bytes, limits.span_memory_bytes_per_user];
        within("limits.span_memory_bytes", memory[0] as f64, f64::from(1 << 16), 1e12)?;
        within("limits.span_memory_bytes_per_user", memory[1] as f64, 4096.0, 1e12)?;
        within("limits.phases_per_span", limits.phases_per_span as f64, 0.0, 65_535.0)?;
        within("limits.weight_changes_per_span", limits.weight_changes_per_span as f64, 1.0, 1e6)?;
        within("limits.unread_bytes", limits.unread_bytes as f64, 4096.0, f64::from(16 << 20))?;
        for (key, calls) in [
            ("limits.calls_per_s", limits.calls_per_s),
            ("limits.calls_burst", limits.calls_burst),
            ("limits.coarse_calls_per_s", limits.coarse_calls_per_s),
            ("limits.coarse_calls_burst", limits.coarse_calls_burst),
            ("limits.stranger_calls_per_s", limits.stranger_calls_per_s),
            ("limits.stranger_calls_burst", limits.stranger_calls_burst),
        ] {
            within(key, calls, 0.01, 1e9)?;
        }
        within("limits.message_s", limits.message_s, 0.1, 3600.0)?;
        within("limits.stall_s", limits.stall_s, 0.1, 3600.0)
    }
}

/// The files of a configuration directory that exist: `wattspan.toml`, then `wattspan.toml.d/*.toml` by name.
///
/// # Errors
/// A file or the directory exists and cannot be read. Ignoring it would ignore settings.
fn config_files(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let (main, drop_ins) = (dir.join("wattspan.toml"), dir.join("wattspan.toml.d"));
    let unreadable = |file: &Path| {
        let file = file.to_owned();
        move |cause| ConfigError::Unreadable { file, cause }
    };
    let entries = match std::fs::read_dir(&drop_ins) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Vec::new(),
        entries => {
            entries.and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable(&drop_ins))?
        }
    };
    let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
    files.sort();
    match std::fs::symlink_metadata(&main) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => {}
        found => {
            found.map_err(unreadable(&main))?;
            files.insert(0, main);
        }
    }
    Ok(files)
}

/// Merges `over` into `under`, table by table.
fn merge_tables(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge_tables(under, over),
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

/// The keys whose values differ, in dotted notation.
fn changed_keys(old: &Config, new: &Config) -> Vec<String> {
    let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
    changed_keys_in("", &table(old), &table(new))
}

fn changed_keys_in(prefix: &str, old: &toml::Table, new: &toml::Table) -> Vec<String> {
    let mut keys: Vec<&String> = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))).collect();
    keys.sort();
    let empty = toml::Value::Table(toml::Table::new());
    keys.into_iter()
        .flat_map(|key| match (old.get(key).unwrap_or(&empty), new.get(key).unwrap_or(&empty)) {
            (toml::Value::Table(old), toml::Value::Table(new)) => {
                changed_keys_in(&format!("{prefix}{key}."), old, new)
            }
            (old, new) if old != new => vec![format!("{prefix}{key}")],
            _ => Vec::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn write_file(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let file = dir.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn later_files_and_then_flags_win_key_by_key() {
        let dir = tempfile::tempdir().unwrap();
        write_file(&dir, "wattspan.toml", "rate_hz = 500\n[limits]\nconnections = 10\nstall_s = 3\n");
        write_file(
            &dir,
            "wattspan.toml.d/20.toml",
            "[limits]\nconnections = 30\n[idle_w]\npackage-0 = 4.5\n",
        );
        write_file(&dir, "wattspan.toml.d/10.toml", "[limits]\nconnections = 20\n");
        write_file(&dir, "wattspan.toml.d/notes.txt", "not = 'read");
        let mut config = Config::from_files(&config_files(dir.path()).unwrap(), AcceptedOwner::Any).unwrap();
        assert_eq!((config.limits.connections, config.limits.stall_s), (30, 3.0));
        assert_eq!(config.idle_w["package-0"], 4.5);
        config.apply_flags(&Flags { rate_hz: Some(250.0), ..Flags::default() });
        assert_eq!((config.rate_hz, config.idle_rate_hz), (250.0, 1.0));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_file_and_the_known_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = write_file(&dir, "a.toml", "[limits]\nconections = 10\n");
        let error = Config::from_files(from_ref(&file), AcceptedOwner::Any).unwrap_err().to_string();
        for part in [file.to_str().unwrap(), "conections", "connections_per_user", "line 2"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_its_key_and_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let file = write_file(&dir, "a.toml", "rate_hz = 1e6\n");
        let error = Config::from_files(&[file], AcceptedOwner::Any).unwrap_err().to_string();
        assert!(error.contains("rate_hz = 1000000: choose a number from 1 to 10000"), "{error}");
        let nan = Config { horizon_ms: f64::NAN, ..Config::default() };
        assert!(nan.check("here").is_err());
    }

    #[test]
    fn files_are_validated_together_and_an_error_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let main = write_file(&dir, "wattspan.toml", "rate_hz = 5000\n");
        let more = write_file(&dir, "wattspan.toml.d/10.toml", "idle_rate_hz = 2000\n");
        let load = || Config::from_files(&config_files(dir.path())?, AcceptedOwner::Any);
        let config = load().unwrap();
        assert_eq!((config.rate_hz, config.idle_rate_hz), (5000.0, 2000.0));
        // Each file is valid alone.
        std::fs::write(&main, "rate_hz = 500\n").unwrap();
        std::fs::write(&more, "idle_rate_hz = 800\n").unwrap();
        let error = load().unwrap_err().to_string();
        for part in [main.to_str().unwrap(), more.to_str().unwrap(), "idle_rate_hz = 800: choose", "to 500"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
        // One file is invalid alone: the others are not named.
        std::fs::write(&more, "history_s = 0\n").unwrap();
        let error = load().unwrap_err().to_string();
        assert!(error.starts_with(&format!("in {}: history_s = 0", more.display())), "{error}");
    }

    #[test]
    fn an_unreadable_file_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let load = || Config::from_files(&config_files(dir.path())?, AcceptedOwner::Any);
        assert_eq!(load().unwrap(), Config::default());
        let more = write_file(&dir, "wattspan.toml.d", "rate_hz = 500\n");
        let error_text = |path: &PathBuf| {
            let error = load().unwrap_err().to_string();
            assert!(error.contains("cannot read") && error.contains(path.to_str().unwrap()), "{error}");
        };
        error_text(&more);
        std::fs::remove_file(&more).unwrap();
        let lost = more.join("10.toml");
        std::fs::create_dir(&more).unwrap();
        std::os::unix::fs::symlink("/nonexistent", &lost).unwrap();
        error_text(&lost);
        std::fs::remove_file(&lost).unwrap();
        load().unwrap();
        let main = dir.path().join("wattspan.toml");
        std::os::unix::fs::symlink(&main, &main).unwrap();
        error_text(&main);
        let nowhere = dir.path().join("file");
        std::fs::write(&nowhere, "").unwrap();
        assert!(config_files(&nowhere).is_err(), "a file in the place of the directory");
    }

    #[test]
    fn a_privileged_process_refuses_a_drop_in_that_others_can_write() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: files of root need root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        write_file(&dir, "wattspan.toml", "rate_hz = 500\n");
        let more = write_file(&dir, "wattspan.toml.d/10.toml", "rate_hz = 600\n");
        let load = |owner| Config::from_files(&config_files(dir.path()).unwrap(), owner);
        assert_eq!(load(AcceptedOwner::Root).unwrap().rate_hz, 600.0);
        let folder = more.parent().unwrap();
        for (path, sound) in [(more.as_path(), 0o644), (folder, 0o755)] {
            let chmod = |mode| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
                std::fs::set_permissions(path, mode).unwrap();
            };
            chmod(sound | 0o020);
            let error_text = load(AcceptedOwner::Root).unwrap_err().to_string();
            for part in [more.display().to_string(), format!("chmod go-w {}", path.display())] {
                assert!(error_text.contains(&part), "{part} is missing in: {error_text}");
            }
            assert_eq!(load(AcceptedOwner::Any).unwrap().rate_hz, 600.0);
            chmod(sound);
        }
    }

    #[test]
    fn the_effective_configuration_round_trips_through_toml() {
        let mut config = Config::default();
        config.idle_w.insert("package-0".into(), 4.5);
        config.source.replay = Some("machine.toml".into());
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn the_flags_are_a_valid_clap_command() {
        use clap::CommandFactory;
        Flags::command().debug_assert();
    }

    #[test]
    fn live_keys_are_applied_and_others_are_reported_as_needing_a_restart() {
        let old = Config::default();
        let mut new = old.clone();
        new.limits.connections = 7;
        new.access.span_group = "people".into();
        new.idle_w.insert("package-0".into(), 4.5);
        new.idle_rate_hz = 2.0;
        new.socket = Some("/elsewhere".into());
        new.source.enabled = Some(vec!["perf".into()]);
        let (next, change) = old.apply_reload(&new, 1000.0);
        let live = ["access.span_group", "idle_rate_hz", "idle_w.package-0", "limits.connections"];
        assert_eq!(change.applied, live);
        assert_eq!(change.needs_restart, ["socket", "source.enabled"]);
        assert_eq!((next.limits.connections, next.socket.as_ref()), (7, None));
        // A second reload reports the same keys and changes nothing else.
        let (again, change) = next.apply_reload(&new, 1000.0);
        assert_eq!((again, change.applied.len(), change.needs_restart.len()), (next, 0, 2));
    }

    #[test]
    fn rate_hz_may_fall_live_but_not_exceed_the_history_capacity() {
        let old = Config::default();
        let (next, change) = old.apply_reload(&Config { rate_hz: 500.0, ..old.clone() }, 1000.0);
        assert_eq!((next.rate_hz, change.applied), (500.0, vec!["rate_hz".to_owned()]));
        let (next, change) =
            next.apply_reload(&Config { rate_hz: 2000.0, idle_rate_hz: 900.0, ..old }, 1000.0);
        assert_eq!((next.rate_hz, next.idle_rate_hz), (500.0, 500.0));
        assert_eq!(change.needs_restart, ["idle_rate_hz", "rate_hz"]);
    }

    #[test]
    fn assumptions_out_of_range_are_refused_with_their_domain() {
        for (line, key) in [
            ("[update_interval_ms]\ngpu-0 = 0", "update_interval_ms.gpu-0"),
            ("[quantum_uj]\ngpu-0 = 0", "quantum_uj.gpu-0"),
            ("[averaging_ms]\nx = -1", "averaging_ms.x"),
            ("[sampled_percent]\nx = 101", "sampled_percent.x"),
            ("[lag_ms]\nx = -1", "lag_ms.x"),
            ("[ceiling_w]\nx = 0", "ceiling_w.x"),
            ("[source]\nenergy_filter_percent = 100", "source.energy_filter_percent"),
        ] {
            let config: Config = toml::from_str(line).unwrap();
            let error = config.check("a file").unwrap_err().to_string();
            assert!(error.contains(key), "{line}: {error}");
        }
    }

    #[test]
    fn the_live_tables_are_applied() {
        let old = Config::default();
        let mut new = old.clone();
        new.limits.stall_s = 9.0;
        new.access.telemetry_group = "x".into();
        new.idle_w.insert("a.b".into(), 1.0);
        new.lag_ms.insert("gpu-0".into(), 40.0);
        new.sampled_percent.insert("gpu-0".into(), 100.0);
        new.update_interval_ms.insert("gpu-0".into(), 100.0);
        new.ceiling_w.insert("gpu-0".into(), 900.0);
        let (_, change) = old.apply_reload(&new, 1000.0);
        for table in
            ["limits", "access", "idle_w", "lag_ms", "update_interval_ms", "sampled_percent", "ceiling_w"]
        {
            assert!(change.applied.iter().any(|key| key.starts_with(table)), "{table}: {change:?}");
        }
    }
}
