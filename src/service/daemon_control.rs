//! Reload of the configuration, and the notifications to the service manager.
//!
//! Owns the effective configuration and the function that reads it again. A reload is all or nothing: a faulty
//! configuration changes nothing. A key that cannot change at run time is reported and keeps its value.

use wattspan_client::protocol::{MethodError, ReloadReply};
use wattspan_system::unix_socket::SocketPermissions;

use super::access::AccessPolicy;
use super::startup::StartupSettings;
use super::watchdog::Watchdog;
use crate::config::{Config, ConfigError};
use crate::systemd::journal::{self, LogEntry, LogFn};
use crate::systemd::notify::ServiceManager;

/// Reads the configuration files and flags again.
pub type ConfigLoader = Box<dyn FnMut() -> Result<Config, ConfigError> + Send>;

/// The parts that a daemon has in addition to an embedded meter.
pub struct DaemonControl {
    config: Config,
    /// Permissions of the sockets and message size of the bus connection. Both are fixed at startup.
    socket_permissions: SocketPermissions,
    bus_message_bytes: Option<usize>,
    load_config: ConfigLoader,
    /// The rings are sized for this rate.
    max_rate_hz: f64,
    service_manager: ServiceManager,
    log: LogFn,
    watchdog: Watchdog,
    /// Limits and policy have changed since [`DaemonControl::take_new_settings`].
    has_new_settings: bool,
}

/// The result of a successful reload.
pub(crate) struct ReloadedSettings {
    pub(crate) reply: ReloadReply,
    pub(crate) settings: StartupSettings,
    pub(crate) has_new_rates: bool,
}

impl DaemonControl {
    /// For a daemon that started with `config`.
    pub fn new(
        config: Config,
        load_config: ConfigLoader,
        service_manager: ServiceManager,
        log: LogFn,
    ) -> Self {
        Self {
            socket_permissions: AccessPolicy::new(&config.access).socket_permissions(),
            bus_message_bytes: config.bus.is_enabled().then_some(config.limits.message_bytes),
            max_rate_hz: config.rate_hz,
            config,
            load_config,
            service_manager,
            log,
            watchdog: Watchdog::default(),
            has_new_settings: false,
        }
    }

    /// Reads the configuration again and logs the result. The caller applies the settings and then calls
    /// [`DaemonControl::notify_ready`], also after an error.
    ///
    /// # Errors
    /// The configuration is faulty; the message names file and key.
    pub(crate) fn reload(&mut self) -> Result<ReloadedSettings, MethodError> {
        self.service_manager.notify_reloading();
        let reloaded = (self.load_config)().map(|new_config| self.apply(&new_config));
        match reloaded {
            Ok(reloaded) => {
                self.log_reloaded(&reloaded.reply);
                Ok(reloaded)
            }
            Err(error) => {
                let reason = error.to_string();
                self.log_rejected(&reason);
                Err(MethodError::InvalidValue { field: "configuration".into(), reason })
            }
        }
    }

    fn apply(&mut self, new_config: &Config) -> ReloadedSettings {
        let (next, mut change) = self.config.apply_reload(new_config, self.max_rate_hz);
        let settings = StartupSettings::from_config(&next);
        let rates = |config: &Config| (config.rate_hz, config.rate_is_configured, config.idle_rate_hz);
        let has_new_rates = rates(&next) != rates(&self.config);
        self.config = next;
        self.has_new_settings = true;
        change
            .needs_restart
            .append(&mut self.partially_applied_keys(settings.service.policy.socket_permissions()));
        change.needs_restart.sort();
        let reply = ReloadReply { changed: change.applied, needs_restart: change.needs_restart };
        ReloadedSettings { reply, settings, has_new_rates }
    }

    /// The keys that are applied in part and need a restart for the rest.
    fn partially_applied_keys(&self, socket_permissions: SocketPermissions) -> Vec<String> {
        let limit = self.bus_message_bytes.filter(|bytes| *bytes != self.config.limits.message_bytes);
        let group = match (self.socket_permissions, socket_permissions) {
            (before, now) if before == now => None,
            (SocketPermissions::AllUsers, _) | (_, SocketPermissions::AllUsers) => {
                Some("access.coarse_group")
            }
            _ => Some("access.span_group"),
        };
        group.into_iter().chain(limit.map(|_| "limits.message_bytes")).map(str::to_owned).collect()
    }

    fn log_reloaded(&self, reply: &ReloadReply) {
        let keys = |keys: &[String]| if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
        let changed = keys(&reply.changed);
        let mut message = format!("reloaded: {changed} changed");
        let restart = keys(&reply.needs_restart);
        if !reply.needs_restart.is_empty() {
            message = format!("{message}; {restart} needs a restart");
        }
        let fields = [("WATTSPAN_CHANGED", changed.as_str()), ("WATTSPAN_NEEDS_RESTART", restart.as_str())];
        (self.log)(&LogEntry { event: &journal::CONFIG_RELOADED, message: &message, fields: &fields });
    }

    fn log_rejected(&self, reason: &str) {
        let message = format!("not reloaded, nothing changed: {reason}");
        let fields = [("WATTSPAN_REASON", reason)];
        (self.log)(&LogEntry { event: &journal::CONFIG_REJECTED, message: &message, fields: &fields });
    }

    pub(crate) fn notify_ready(&self, domain_names: &[&str]) {
        self.service_manager.notify_ready(&format!("measures {}", domain_names.join(", ")));
    }

    pub(crate) fn notify_stopping(&self) {
        self.service_manager.notify_stopping();
    }

    pub(crate) fn watchdog_due_ns(&self) -> Option<u64> {
        self.watchdog.due_ns(&self.service_manager)
    }

    pub(crate) fn notify_watchdog(&mut self, now_ns: u64, overdue_ns: impl FnOnce() -> u64) {
        self.watchdog.notify_if_due(&self.service_manager, now_ns, overdue_ns);
    }

    /// Whether limits or policy have changed since the last call.
    pub(crate) fn take_new_settings(&mut self) -> bool {
        std::mem::take(&mut self.has_new_settings)
    }
}
