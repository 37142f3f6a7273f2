//! The key `bus`: whether the daemon answers on D-Bus, and on which.
//!
//! Owns the three ways to write it: `true` (the system bus), `false`, or an address. Connects to nothing.

use serde::{Deserialize, Serialize};

/// Where the daemon answers on D-Bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true (the system bus), false, or the address of a bus in quotes")]
pub enum DbusConfig {
    /// On the system bus, or on none.
    System(bool),
    /// On the bus at this address, which must be a Unix socket.
    Address(String),
}

impl Default for DbusConfig {
    fn default() -> Self {
        DbusConfig::System(true)
    }
}

impl DbusConfig {
    /// Whether the daemon is on a bus, once there is one.
    pub fn is_enabled(&self) -> bool {
        *self != DbusConfig::System(false) && std::env::consts::OS == "linux"
    }

    /// What is wrong with it, in words, if anything is.
    pub(super) fn invalid_reason(&self) -> Option<&'static str> {
        match self {
            DbusConfig::Address(address) if !address.starts_with("unix:") => {
                Some("write true, false, or an address such as \"unix:path=/run/dbus/system_bus_socket\"")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn bus_is_true_false_or_an_address() {
        let read = |text: &str| toml::from_str::<Config>(text).map(|config| config.bus);
        assert_eq!(read("").unwrap(), DbusConfig::System(true));
        assert_eq!(read("bus = false").unwrap(), DbusConfig::System(false));
        assert_eq!(read("bus = \"unix:path=/a\"").unwrap(), DbusConfig::Address("unix:path=/a".into()));
        let error = read("bus = 3").unwrap_err().to_string();
        assert!(error.contains("true (the system bus)"), "{error}");
        let elsewhere = Config { bus: DbusConfig::Address("tcp:host=a".into()), ..Config::default() };
        assert!(elsewhere.check("here").unwrap_err().to_string().contains("bus = tcp:host=a: write true"));
    }
}
