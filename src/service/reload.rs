//! The daemon's own affairs between two messages: its configuration read again, and the service manager kept informed.
//!
//! Owns the configuration that holds, how it is read again, and the beat of the watchdog. A reload is all or nothing: what
//! is broken changes nothing, what cannot change while it runs is named and stays. The watchdog is fed only from the
//! service's own thread, and only while every sampler's thread makes progress; a sampler that waits in a driver counts as
//! one, since ending a process in a driver's call helps nobody and may take the device down.

use crate::config::{Config, ConfigError};
use crate::protocol::{Method, MethodError, Reload, ReloadReply};
use crate::systemd::journal::{self, LogEntry, LogFn};
use crate::systemd::notify::ServiceManager;
use crate::unix_socket::SocketPermissions;

use super::access::AccessPolicy;
use super::service::Service;
use super::startup::StartupSettings;

/// Reads files and flags again.
pub type ConfigLoader = Box<dyn FnMut() -> Result<Config, ConfigError> + Send>;

/// What the daemon has beyond a meter inside a client.
pub struct DaemonControl {
    config: Config,
    /// What the sockets were made for and the bus was joined with: they stay as they are.
    socket_permissions: SocketPermissions,
    bus_message_bytes: Option<usize>,
    load_config: ConfigLoader,
    /// The rate that the history was made for.
    max_rate_hz: f64,
    service_manager: ServiceManager,
    log: LogFn,
    watchdog_due_ns: u64,
    /// Limits and policy changed, and the door has not taken them yet.
    has_new_settings: bool,
}

impl DaemonControl {
    /// For a daemon that was started with `config`.
    pub fn new(
        config: Config,
        load_config: ConfigLoader,
        service_manager: ServiceManager,
        log: LogFn,
    ) -> Self {
        let (max_rate_hz, socket_permissions) =
            (config.rate_hz, AccessPolicy::new(&config.access).socket_permissions());
        let bus_message_bytes = config.bus.is_enabled().then_some(config.limits.message_bytes);
        let (watchdog_due_ns, has_new_settings) = (0, false);
        Self {
            config,
            socket_permissions,
            bus_message_bytes,
            load_config,
            max_rate_hz,
            service_manager,
            log,
            watchdog_due_ns,
            has_new_settings,
        }
    }

    /// The keys that are taken, but hold in part only until the daemon starts again.
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
}

impl Service {
    /// Reload: everything that can change live does, together, or nothing does.
    ///
    /// # Errors
    /// What was read is broken, in words with file and key; or this is no daemon.
    pub fn reload(&mut self) -> Result<ReloadReply, MethodError> {
        let Some(daemon) = &mut self.daemon else {
            return Err(MethodError::MethodNotImplemented { method: Reload::NAME.into() });
        };
        daemon.service_manager.notify_reloading();
        let new_config = (daemon.load_config)();
        let result = match new_config {
            Ok(config) => Ok(self.apply_config(&config)),
            Err(error) => Err(error.to_string()),
        };
        self.log_reload(&result);
        self.notify_ready();
        result.map_err(|reason| MethodError::InvalidValue { field: "configuration".into(), reason })
    }

    fn apply_config(&mut self, new_config: &Config) -> ReloadReply {
        let Some(daemon) = &mut self.daemon else { return ReloadReply::default() };
        let (next, mut change) = daemon.config.apply_reload(new_config, daemon.max_rate_hz);
        let settings = StartupSettings::from_config(&next);
        let rates = |config: &Config| (config.rate_hz, config.idle_rate_hz);
        if rates(&next) != rates(&daemon.config) {
            self.collector.set_rates(&settings.sampler);
        }
        daemon.config = next;
        daemon.has_new_settings = true;
        change
            .needs_restart
            .append(&mut daemon.partially_applied_keys(settings.service.policy.socket_permissions()));
        change.needs_restart.sort();
        let attribution_settings = &settings.service.attribution;
        self.attributor.reconfigure(
            attribution_settings.idle_mw.clone(),
            attribution_settings.max_open_spans,
            attribution_settings.max_pending_weight_changes,
        );
        self.registry.set_limits(settings.service.limits.clone());
        // The attributor's other settings need a restart, so what holds is what was.
        self.settings.limits = settings.service.limits;
        self.settings.policy = settings.service.policy;
        ReloadReply { changed: change.applied, needs_restart: change.needs_restart }
    }

    fn log_reload(&self, result: &Result<ReloadReply, String>) {
        let Some(daemon) = &self.daemon else { return };
        match result {
            Ok(reloaded) => {
                let keys = |keys: &[String]| if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
                let changed = keys(&reloaded.changed);
                let mut message = format!("reloaded: {changed} changed");
                let restart = keys(&reloaded.needs_restart);
                if !reloaded.needs_restart.is_empty() {
                    message = format!("{message}; {restart} needs a restart");
                }
                let fields =
                    [("WATTSPAN_CHANGED", changed.as_str()), ("WATTSPAN_NEEDS_RESTART", restart.as_str())];
                (daemon.log)(&LogEntry {
                    event: &journal::CONFIG_RELOADED,
                    message: &message,
                    fields: &fields,
                });
            }
            Err(reason) => {
                let message = format!("not reloaded, nothing changed: {reason}");
                let fields = [("WATTSPAN_REASON", reason.as_str())];
                (daemon.log)(&LogEntry {
                    event: &journal::CONFIG_REJECTED,
                    message: &message,
                    fields: &fields,
                });
            }
        }
    }

    /// Everything listens.
    pub fn notify_ready(&self) {
        if let Some(daemon) = &self.daemon {
            daemon.service_manager.notify_ready(&format!("measures {}", self.domain_names().join(", ")));
        }
    }

    /// The end has begun.
    pub fn notify_stopping(&self) {
        if let Some(daemon) = &self.daemon {
            daemon.service_manager.notify_stopping();
        }
    }

    /// When the watchdog is to be fed next, if there is one.
    pub fn watchdog_due_ns(&self) -> Option<u64> {
        let daemon = self.daemon.as_ref()?;
        daemon.service_manager.watchdog_interval_ns().map(|_| daemon.watchdog_due_ns)
    }

    /// Feeds the watchdog where it is time to, and where every thread makes progress.
    pub fn notify_watchdog(&mut self, now_ns: u64) {
        let Some(daemon) = &mut self.daemon else { return };
        let Some(period_ns) =
            daemon.service_manager.watchdog_interval_ns().filter(|_| now_ns >= daemon.watchdog_due_ns)
        else {
            return;
        };
        daemon.watchdog_due_ns = now_ns + period_ns;
        if self.collector.overdue_ns(now_ns) < period_ns {
            daemon.service_manager.notify_watchdog();
        }
    }

    /// Whether limits or policy changed since this was last asked.
    pub fn take_new_settings(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| std::mem::take(&mut daemon.has_new_settings))
    }
}
