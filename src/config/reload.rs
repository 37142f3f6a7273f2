//! What differs between two configurations, and which of it a running daemon can take.
//!
//! Owns the list of what changes live. Everything else, a key that a later version adds included, needs a restart until
//! it is named here: a change that is reported as taken and is not would be a lie.

use super::Config;

/// What became of each key that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// These are taken.
    pub applied: Vec<String>,
    /// These would need a restart, and stay as they were.
    pub needs_restart: Vec<String>,
}

impl Config {
    /// The configuration after `new` was read: its live keys, and all others as they are. `max_rate_hz` is the highest rate
    /// that the history was made for.
    pub fn apply_reload(&self, new: &Self, max_rate_hz: f64) -> (Self, ConfigChange) {
        let mut next = self.clone();
        next.limits.clone_from(&new.limits);
        next.access.clone_from(&new.access);
        next.idle_w.clone_from(&new.idle_w);
        next.idle_rate_hz = new.idle_rate_hz;
        if new.rate_hz <= max_rate_hz {
            next.rate_hz = new.rate_hz;
        } else {
            // Still a sound pair.
            next.idle_rate_hz = new.idle_rate_hz.min(next.rate_hz);
        }
        (
            next.clone(),
            ConfigChange { applied: changed_keys(self, &next), needs_restart: changed_keys(&next, new) },
        )
    }
}

/// The keys, as one writes them, whose values differ.
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
    use super::*;

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
        // Asked again, what was not taken is named again, and nothing else changes.
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
    fn the_live_tables_are_applied() {
        let old = Config::default();
        let mut new = old.clone();
        new.limits.stall_s = 9.0;
        new.access.telemetry_group = "x".into();
        new.idle_w.insert("a.b".into(), 1.0);
        let (_, change) = old.apply_reload(&new, 1000.0);
        for table in ["limits", "access", "idle_w"] {
            assert!(change.applied.iter().any(|key| key.starts_with(table)), "{table}: {change:?}");
        }
    }
}
