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
    pub fn new(config: Config, reread: ConfigLoader, manager: ServiceManager, tell: LogFn) -> Self {
        let (most_hz, reach) = (config.rate_hz, AccessPolicy::new(&config.access).socket_permissions());
        let bus_message_bytes = config.bus.is_enabled().then_some(config.limits.message_bytes);
        let (beat_at_ns, renewed) = (0, false);
        Self {
            config,
            socket_permissions: reach,
            bus_message_bytes,
            load_config: reread,
            max_rate_hz: most_hz,
            service_manager: manager,
            log: tell,
            watchdog_due_ns: beat_at_ns,
            has_new_settings: renewed,
        }
    }

    /// The keys that are taken, but hold in part only until the daemon starts again.
    fn partially_applied_keys(&self, reach: SocketPermissions) -> Vec<String> {
        let limit = self.bus_message_bytes.filter(|bytes| *bytes != self.config.limits.message_bytes);
        let group = match (self.socket_permissions, reach) {
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
        let Some(upkeep) = &mut self.daemon else {
            return Err(MethodError::MethodNotImplemented { method: Reload::NAME.into() });
        };
        upkeep.service_manager.notify_reloading();
        let read = (upkeep.load_config)();
        let done = match read {
            Ok(config) => Ok(self.apply_config(&config)),
            Err(wrong) => Err(wrong.to_string()),
        };
        self.log_reload(&done);
        self.notify_ready();
        done.map_err(|reason| MethodError::InvalidValue { field: "configuration".into(), reason })
    }

    fn apply_config(&mut self, read: &Config) -> ReloadReply {
        let Some(upkeep) = &mut self.daemon else { return ReloadReply::default() };
        let (next, mut change) = upkeep.config.apply_reload(read, upkeep.max_rate_hz);
        let plan = StartupSettings::from_config(&next);
        let rates = |config: &Config| (config.rate_hz, config.idle_rate_hz);
        if rates(&next) != rates(&upkeep.config) {
            self.collector.set_rates(&plan.sampler);
        }
        upkeep.config = next;
        upkeep.has_new_settings = true;
        change
            .needs_restart
            .append(&mut upkeep.partially_applied_keys(plan.service.policy.socket_permissions()));
        change.needs_restart.sort();
        let attribution_settings = &plan.service.attribution;
        self.attributor.reconfigure(
            attribution_settings.idle_mw.clone(),
            attribution_settings.max_open_spans,
            attribution_settings.max_pending_weight_changes,
        );
        self.registry.set_limits(plan.service.limits.clone());
        // The attributor's other settings need a restart, so what holds is what was.
        self.settings.limits = plan.service.limits;
        self.settings.policy = plan.service.policy;
        ReloadReply { changed: change.applied, needs_restart: change.needs_restart }
    }

    fn log_reload(&self, done: &Result<ReloadReply, String>) {
        let Some(upkeep) = &self.daemon else { return };
        match done {
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
                (upkeep.log)(&LogEntry {
                    event: &journal::CONFIG_RELOADED,
                    message: &message,
                    fields: &fields,
                });
            }
            Err(reason) => {
                let message = format!("not reloaded, nothing changed: {reason}");
                let fields = [("WATTSPAN_REASON", reason.as_str())];
                (upkeep.log)(&LogEntry {
                    event: &journal::CONFIG_REJECTED,
                    message: &message,
                    fields: &fields,
                });
            }
        }
    }

    /// Everything listens.
    pub fn notify_ready(&self) {
        if let Some(upkeep) = &self.daemon {
            upkeep.service_manager.notify_ready(&format!("measures {}", self.domain_names().join(", ")));
        }
    }

    /// The end has begun.
    pub fn notify_stopping(&self) {
        if let Some(upkeep) = &self.daemon {
            upkeep.service_manager.notify_stopping();
        }
    }

    /// When the watchdog is to be fed next, if there is one.
    pub fn watchdog_due_ns(&self) -> Option<u64> {
        let upkeep = self.daemon.as_ref()?;
        upkeep.service_manager.watchdog_interval_ns().map(|_| upkeep.watchdog_due_ns)
    }

    /// Feeds the watchdog where it is time to, and where every thread makes progress.
    pub fn notify_watchdog(&mut self, now_ns: u64) {
        let Some(upkeep) = &mut self.daemon else { return };
        let Some(period_ns) =
            upkeep.service_manager.watchdog_interval_ns().filter(|_| now_ns >= upkeep.watchdog_due_ns)
        else {
            return;
        };
        upkeep.watchdog_due_ns = now_ns + period_ns;
        if self.collector.overdue_ns(now_ns) < period_ns {
            upkeep.service_manager.notify_watchdog();
        }
    }

    /// Whether limits or policy changed since this was last asked.
    pub fn take_new_settings(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|upkeep| std::mem::take(&mut upkeep.has_new_settings))
    }
}
