//! The daemon's own affairs between two messages: its configuration read again, and the service manager kept informed.
//!
//! Owns the configuration that holds, how it is read again, and the beat of the watchdog. A reload is all or nothing: what
//! is broken changes nothing, what cannot change while it runs is named and stays. The watchdog is fed only from the
//! service's own thread, and only while every sampler's thread makes progress; a sampler that waits in a driver counts as
//! one, since ending a process in a driver's call helps nobody and may take the device down.

use crate::config::{Config, Wrong};
use crate::protocol::{Method, Refusal, Reload, Reloaded};
use crate::systemd::journal::{self, Entry, Tell};
use crate::systemd::notify::Manager;
use crate::unix_socket::Reach;

use super::access::Policy;
use super::plan::Plan;
use super::service::Service;

/// Reads files and flags again.
pub type Reread = Box<dyn FnMut() -> Result<Config, Wrong> + Send>;

/// What the daemon has beyond a meter inside a client.
pub struct Upkeep {
    config: Config,
    /// What the sockets were made for and the bus was joined with: they stay as they are.
    reach: Reach,
    bus_message_bytes: Option<usize>,
    reread: Reread,
    /// The rate that the history was made for.
    most_hz: f64,
    manager: Manager,
    tell: Tell,
    beat_at_ns: u64,
    /// Limits and policy changed, and the door has not taken them yet.
    renewed: bool,
}

impl Upkeep {
    /// For a daemon that was started with `config`.
    pub fn new(config: Config, reread: Reread, manager: Manager, tell: Tell) -> Self {
        let (most_hz, reach) = (config.rate_hz, Policy::new(&config.access).reach());
        let bus_message_bytes = config.bus.is_joined().then_some(config.limits.message_bytes);
        let (beat_at_ns, renewed) = (0, false);
        Self { config, reach, bus_message_bytes, reread, most_hz, manager, tell, beat_at_ns, renewed }
    }

    /// The keys that are taken, but hold in part only until the daemon starts again.
    fn in_part(&self, reach: Reach) -> Vec<String> {
        let limit = self.bus_message_bytes.filter(|bytes| *bytes != self.config.limits.message_bytes);
        let group = match (self.reach, reach) {
            (before, now) if before == now => None,
            (Reach::Everybody, _) | (_, Reach::Everybody) => Some("access.coarse_group"),
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
    pub fn reload(&mut self) -> Result<Reloaded, Refusal> {
        let Some(upkeep) = &mut self.upkeep else {
            return Err(Refusal::MethodNotImplemented { method: Reload::NAME.into() });
        };
        upkeep.manager.reloading();
        let read = (upkeep.reread)();
        let done = match read {
            Ok(config) => Ok(self.renew(&config)),
            Err(wrong) => Err(wrong.to_string()),
        };
        self.announce_reload(&done);
        self.say_ready();
        done.map_err(|reason| Refusal::InvalidValue { field: "configuration".into(), reason })
    }

    fn renew(&mut self, read: &Config) -> Reloaded {
        let Some(upkeep) = &mut self.upkeep else { return Reloaded::default() };
        let (next, mut change) = upkeep.config.adopt(read, upkeep.most_hz);
        let plan = Plan::of(&next);
        let rates = |config: &Config| (config.rate_hz, config.idle_rate_hz);
        if rates(&next) != rates(&upkeep.config) {
            self.feeds.set_rates(&plan.sampler);
        }
        upkeep.config = next;
        upkeep.renewed = true;
        change.needs_restart.append(&mut upkeep.in_part(plan.service.policy.reach()));
        change.needs_restart.sort();
        let ledger = &plan.service.ledger;
        self.ledger.reconfigure(ledger.idle_mw.clone(), ledger.max_open, ledger.max_changes);
        self.register.set_limits(plan.service.limits.clone());
        // The ledger's other settings need a restart, so what holds is what was.
        self.settings.limits = plan.service.limits;
        self.settings.policy = plan.service.policy;
        Reloaded { changed: change.live, needs_restart: change.needs_restart }
    }

    fn announce_reload(&self, done: &Result<Reloaded, String>) {
        let Some(upkeep) = &self.upkeep else { return };
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
                (upkeep.tell)(&Entry { event: &journal::RELOADED, message: &message, fields: &fields });
            }
            Err(reason) => {
                let message = format!("not reloaded, nothing changed: {reason}");
                let fields = [("WATTSPAN_REASON", reason.as_str())];
                (upkeep.tell)(&Entry { event: &journal::NOT_RELOADED, message: &message, fields: &fields });
            }
        }
    }

    /// Everything listens.
    pub fn say_ready(&self) {
        if let Some(upkeep) = &self.upkeep {
            upkeep.manager.ready(&format!("measures {}", self.names().join(", ")));
        }
    }

    /// The end has begun.
    pub fn say_stopping(&self) {
        if let Some(upkeep) = &self.upkeep {
            upkeep.manager.stopping();
        }
    }

    /// When the watchdog is to be fed next, if there is one.
    pub fn beat_at_ns(&self) -> Option<u64> {
        let upkeep = self.upkeep.as_ref()?;
        upkeep.manager.beat_ns().map(|_| upkeep.beat_at_ns)
    }

    /// Feeds the watchdog where it is time to, and where every thread makes progress.
    pub fn beat(&mut self, now_ns: u64) {
        let Some(upkeep) = &mut self.upkeep else { return };
        let Some(period_ns) = upkeep.manager.beat_ns().filter(|_| now_ns >= upkeep.beat_at_ns) else {
            return;
        };
        upkeep.beat_at_ns = now_ns + period_ns;
        if self.feeds.overdue_ns(now_ns) < period_ns {
            upkeep.manager.alive();
        }
    }

    /// Whether limits or policy changed since this was last asked.
    pub fn take_renewed(&mut self) -> bool {
        self.upkeep.as_mut().is_some_and(|upkeep| std::mem::take(&mut upkeep.renewed))
    }
}
