//! What a configuration comes to, stage by stage, and the service built from it.
//!
//! Owns the translation from what people write (watts, milliseconds, group names) to what the stages take
//! (milliwatts, nanoseconds, group numbers), once for the daemon and for the meter inside a client. Decides nothing.

use std::io;
use std::time::Duration;

use super::access::AccessPolicy;
use super::readings::{PendingSources, ReadingCollector};
use super::service::{Service, ServiceSettings};
use crate::clock::Clock;
use crate::config::Config;
use crate::process_usage::KernelRoots;
use crate::sources::{Inventory, topology};
use crate::systemd::journal::LogFn;
use crate::{attribution, sampler, sources};

/// How long the meter inside a client waits for its sources: its spans open at once, and a GPU's driver that keeps nothing
/// warm needs seconds.
const EMBEDDED_DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a daemon's readiness waits for its sources: most answer within milliseconds, and what is there from the start
/// is in every span.
pub const DAEMON_DISCOVERY_TIMEOUT: Duration = Duration::from_millis(500);

/// The settings of every stage.
#[derive(Debug, Clone)]
pub struct StartupSettings {
    /// Where joules come from.
    pub sources: sources::SourceSettings,
    /// How often they are looked at.
    pub sampler: sampler::SamplerSettings,
    /// Whose they are.
    pub service: ServiceSettings,
}

impl StartupSettings {
    /// What the configuration, which is checked, comes to.
    pub fn from_config(config: &Config) -> Self {
        let defaults = sources::SourceSettings::default();
        let watts = (config.source.estimate_idle_w, config.source.estimate_max_w);
        let sources = sources::SourceSettings {
            sysfs_root: config.source.sysfs_root.clone(),
            proc_root: config.source.proc_root.clone(),
            msr_root: config.source.msr_root.clone(),
            nvml_library: config.source.nvml_library.clone(),
            apple_library: config.source.apple_library.clone(),
            replay: config.source.replay.clone(),
            enabled: config.source.enabled.clone().unwrap_or(defaults.enabled),
            estimate_mw: match watts {
                (Some(idle_w), Some(max_w)) => Some((watts_to_mw(idle_w), watts_to_mw(max_w))),
                _ => None,
            },
        };
        let history_ns = round_to_ns(config.history_s * 1e9);
        let sampler = sampler::SamplerSettings {
            rate_hz: config.rate_hz,
            idle_rate_hz: config.idle_rate_hz,
            // A client in a loop must not make the samplers change pace twice for each question.
            linger_ns: 1_000_000_000,
            ring_samples: (config.history_s * config.rate_hz).ceil() as usize,
            ..sampler::SamplerSettings::default()
        };
        let attribution_settings = attribution::AttributionSettings {
            horizon_ns: round_to_ns(config.horizon_ms * 1e6),
            counter_timeout_ns: round_to_ns(config.patience_ms * 1e6),
            max_open_spans: config.limits.open_spans,
            max_pending_weight_changes: config.limits.weight_changes_per_span as u64,
            idle_mw: config.idle_w.iter().map(|(name, watts)| (name.clone(), watts_to_mw(*watts))).collect(),
            ..attribution::AttributionSettings::default()
        };
        let policy = AccessPolicy::new(&config.access);
        let roots = KernelRoots {
            proc_root: config.source.proc_root.clone(),
            sysfs_root: config.source.sysfs_root.clone(),
        };
        let nvml_library = config.source.nvml_library.clone();
        let service = ServiceSettings {
            attribution: attribution_settings,
            limits: config.limits.clone(),
            policy,
            history_ns,
            roots,
            nvml_library,
        };
        Self { sources, sampler, service }
    }

    /// Finds the sources, starts their samplers and puts the service over them. `log` is told of every later change of
    /// a domain's state.
    ///
    /// # Errors
    /// The system gives no thread or no random device.
    pub fn start(self, clock: Clock, log: LogFn) -> io::Result<Service> {
        let found = sources::discover_within(&self.sources, &clock, EMBEDDED_DISCOVERY_TIMEOUT);
        self.start_with_sources(found, clock, log)
    }

    /// The same over sources that are found already.
    ///
    /// # Errors
    /// As for [`StartupSettings::start`].
    pub fn start_with_sources(self, found: Inventory, clock: Clock, log: LogFn) -> io::Result<Service> {
        let start = |opened| sampler::start(opened, &self.sampler, clock.clone());
        let samplers = found.opened.into_iter().map(start).collect::<io::Result<Vec<_>>>()?;
        let mut collector = ReadingCollector::new(samplers, found.duplicates, log);
        if let Some(starting) = found.starting {
            let packages = topology::physical_packages(&self.sources.sysfs_root);
            collector.add_pending_sources(PendingSources {
                starting,
                settings: self.sampler,
                clock: clock.clone(),
                packages,
            });
        }
        collector.wait_for_first_readings();
        Service::new(collector, found.absent, self.service, clock)
    }
}

fn watts_to_mw(watts: f64) -> u64 {
    (watts * 1e3).round() as u64
}

fn round_to_ns(value: f64) -> u64 {
    value.round() as u64
}
