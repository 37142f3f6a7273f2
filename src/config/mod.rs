//! Settings of the daemon: defaults, then files, then flags, then checks.
//!
//! Owns every default figure that an administrator may change, and says of a wrong one which file, which key, and
//! what would be right. Plain data: knows no hardware and opens nothing but its files. An unknown key is refused,
//! because a misspelt limit that is silently ignored is no limit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod dbus;
mod flags;
mod getgrnam_ffi;
mod group_membership;
mod paths;
mod reload;
mod section;
mod trusted_path;

pub use dbus::DbusConfig;
pub use flags::Flags;
pub use getgrnam_ffi::gid_by_name;
pub use group_membership::{group_exists, join_commands, missing_group_warnings};
pub use paths::{default_state_dir, is_system_daemon, listen_paths, socket_paths};
pub use reload::ConfigChange;
pub use section::{AccessGroups, Limits, SourceConfig, StoreConfig, SyncConfig};
pub use trusted_path::{AcceptedOwner, UntrustedPathError};

use paths::{config_dir, config_files};

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration {}: {cause}", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// A file that another user could change, for a privileged process.
    #[error("cannot use {}: {cause}", file.display())]
    Untrusted {
        /// The file that was named.
        file: PathBuf,
        /// The component that is not accepted, and why.
        cause: UntrustedPathError,
    },
    /// A file is not TOML, or has a key that nobody knows, or a value of the wrong type.
    #[error("in the configuration {}: {cause}", file.display())]
    Malformed {
        /// Which file.
        file: PathBuf,
        /// Line, column, key, and what was expected.
        cause: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("in {location}: {key} = {value}: {remedy}")]
    InvalidValue {
        /// Which file or files, or "the flags".
        location: String,
        /// Which key.
        key: String,
        /// What it says.
        value: String,
        /// What would be right.
        remedy: String,
    },
}

impl ConfigError {
    fn from_path_error(file: &Path, cause: UntrustedPathError) -> Self {
        let file = file.to_owned();
        match cause {
            UntrustedPathError::Io(cause) => ConfigError::Unreadable { file, cause },
            cause => ConfigError::Untrusted { file, cause },
        }
    }

    /// Whether both are about the same value of the same key.
    fn is_same_value(&self, other: &Self) -> bool {
        match (self, other) {
            (
                ConfigError::InvalidValue { key, value, .. },
                ConfigError::InvalidValue { key: other_key, value: other_value, .. },
            ) => (key, value) == (other_key, other_value),
            _ => false,
        }
    }
}

/// The effective settings; printed as TOML by `wattspand --check`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen; absent: the first of [`socket_paths`] that this user can have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Whether to answer on D-Bus too, and on which; only on Linux.
    pub bus: DbusConfig,
    /// Where what must last is kept; absent: the system's place, or the user's own: see [`default_state_dir`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Readings a second while a span is open or somebody watches.
    pub rate_hz: f64,
    /// Readings a second otherwise.
    pub idle_rate_hz: f64,
    /// How far back readings are kept at the full rate, in seconds.
    pub history_s: f64,
    /// How late a message may come without its edge being moved.
    pub horizon_ms: f64,
    /// A counter that has not moved for this long no longer holds accounts up.
    pub patience_ms: f64,
    /// Where joules come from.
    pub source: SourceConfig,
    /// Idle power by domain name, in watts; the others learn it.
    pub idle_w: BTreeMap<String, f64>,
    /// How accounts are kept on disk.
    pub ledger: StoreConfig,
    /// What one client may take.
    pub limits: Limits,
    /// Who may know.
    pub access: AccessGroups,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: None,
            bus: DbusConfig::default(),
            state_dir: None,
            rate_hz: 1000.0,
            idle_rate_hz: 1.0,
            history_s: 16.0,
            horizon_ms: 10.0,
            patience_ms: 2000.0,
            source: SourceConfig::default(),
            idle_w: BTreeMap::new(),
            limits: Limits::default(),
            ledger: StoreConfig::default(),
            access: AccessGroups::default(),
        }
    }
}

impl Config {
    /// The settings that files and flags come to. Without `--config` a file that is not there is no error.
    ///
    /// `owner`: whose files are accepted. Applies to the configuration and to the libraries that it names, which are code of
    /// this process. A machine to replay is data and read whoever owns it; `state_dir` is checked where it is taken.
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

    /// The settings that these files come to, the later ones over the earlier.
    fn from_files(files: &[PathBuf], owner: AcceptedOwner) -> Result<Self, ConfigError> {
        let (mut whole, mut errors) = (toml::Table::new(), Vec::new());
        for file in files {
            let text =
                trusted_path::read(file, owner).map_err(|cause| ConfigError::from_path_error(file, cause))?;
            // Each file is read alone first, so that a mistake is told with the name of the file it is in.
            let malformed = |cause| ConfigError::Malformed { file: file.clone(), cause: Box::new(cause) };
            let alone: Self = toml::from_str(&text).map_err(malformed)?;
            errors.extend(alone.check(&file.display().to_string()).err());
            merge_tables(&mut whole, text.parse().map_err(malformed)?);
        }
        let last = || files.last().cloned().unwrap_or_default();
        let malformed = |cause| ConfigError::Malformed { file: last(), cause: Box::new(cause) };
        let config: Self = whole.try_into().map_err(malformed)?;
        // What counts is what they come to; where one file alone has the same fault, it is that one's.
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        let with_file = |error: ConfigError| {
            errors.into_iter().find(|file_error| file_error.is_same_value(&error)).unwrap_or(error)
        };
        config.check(&names.join(" and ")).map_err(with_file)?;
        Ok(config)
    }

    /// A library that is named without a directory is searched for by the loader, in directories of the system.
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
        set(&mut self.idle_rate_hz, &flags.idle_rate_hz);
        set(&mut self.source.sysfs_root, &flags.sysfs_root);
        set(&mut self.source.proc_root, &flags.proc_root);
        set_option(&mut self.source.nvml_library, &flags.nvml_library);
        set_option(&mut self.source.replay, &flags.replay);
    }

    /// Refuses figures that make no sense; `location` is where they were written.
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
        for (domain, watts) in &self.idle_w {
            within(&format!("idle_w.{domain}"), *watts, 0.0, 100_000.0)?;
        }
        let idle = self.source.estimate_idle_w;
        within("source.estimate_idle_w", idle.unwrap_or(0.0), 0.0, 100_000.0)?;
        if let Some(max) = self.source.estimate_max_w {
            within("source.estimate_max_w", max, idle.unwrap_or(0.0), 100_000.0)?;
        }
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
        within("limits.stall_s", limits.stall_s, 0.1, 3600.0)
    }
}

/// Puts the keys of `over` in place of those of `under`, table by table.
fn merge_tables(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge_tables(under, over),
            (_, value) => drop(under.insert(key, value)),
        }
    }
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
        // Each would do alone.
        std::fs::write(&main, "rate_hz = 500\n").unwrap();
        std::fs::write(&more, "idle_rate_hz = 800\n").unwrap();
        let error = load().unwrap_err().to_string();
        for part in [main.to_str().unwrap(), more.to_str().unwrap(), "idle_rate_hz = 800: choose", "to 500"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
        // One does not even alone: the others are not named.
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
}
