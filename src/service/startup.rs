//! The settings of each stage, from the configuration.
//!
//! Converts the units of the configuration (watts, milliseconds, group names) to those of the stages (milliwatts,
//! nanoseconds, group numbers), for the daemon and the embedded meter alike.

use std::path::PathBuf;

use super::access::AccessPolicy;
use super::domain_assumptions::AssumptionSettings;
use crate::config::{Config, Limits};
use crate::process_usage::KernelRoots;
use crate::{attribution, sampler, sources};

/// The settings of [`Service`](super::Service).
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// Settings of the attributor.
    pub attribution: attribution::AttributionSettings,
    /// Limits per client, per user and in total.
    pub limits: Limits,
    /// The rule from credentials to access.
    pub policy: AccessPolicy,
    /// Minimum age up to which readings are kept and edges are accepted.
    pub history_ns: u64,
    /// Mount points of `/proc` and `/sys`.
    pub roots: KernelRoots,
    /// A library to load instead of the system's NVML.
    pub nvml_library: Option<PathBuf>,
    /// The configured assumptions about domains.
    pub assumptions: AssumptionSettings,
}

/// The settings of every stage.
#[derive(Debug, Clone)]
pub struct StartupSettings {
    /// Which sources are opened, and where.
    pub sources: sources::SourceSettings,
    /// Rates and ring sizes.
    pub sampler: sampler::SamplerSettings,
    /// Limits, access and attribution.
    pub service: ServiceSettings,
}

impl StartupSettings {
    /// Converts a configuration that [`Config::check`] has accepted.
    pub fn from_config(config: &Config) -> Self {
        Self::with_policy(config, AccessPolicy::new(&config.access))
    }

    /// For a meter that only its own process can reach. The groups of the configuration have no effect, and a look-up in
    /// the group database can take longer than the rest of the start.
    pub fn for_own_process(config: &Config) -> Self {
        Self::with_policy(config, AccessPolicy::own_user_only())
    }

    fn with_policy(config: &Config, policy: AccessPolicy) -> Self {
        let sources = source_settings(config);
        let service = ServiceSettings {
            attribution: attribution_settings(config),
            limits: config.limits.clone(),
            policy,
            history_ns: round_to_ns(config.history_s * 1e9),
            roots: KernelRoots {
                proc_root: config.source.proc_root.clone(),
                sysfs_root: config.source.sysfs_root.clone(),
            },
            nvml_library: config.source.nvml_library.clone(),
            assumptions: assumption_settings(config, &sources),
        };
        Self { sources, sampler: sampler_settings(config), service }
    }
}

fn source_settings(config: &Config) -> sources::SourceSettings {
    let defaults = sources::SourceSettings::default();
    let watts = (config.source.estimate_idle_w, config.source.estimate_max_w);
    sources::SourceSettings {
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
        energy_filter_ppm: config.source.energy_filter_percent.map(percent_to_ppm),
        averaging_ns: config.averaging_ms.iter().map(named_ns).collect(),
        probe_load: defaults.probe_load,
        finds_new_devices: defaults.finds_new_devices,
    }
}

fn sampler_settings(config: &Config) -> sampler::SamplerSettings {
    sampler::SamplerSettings {
        rate_hz: config.rate_hz,
        fixed_rate: config.rate_is_configured,
        idle_rate_hz: config.idle_rate_hz,
        // Otherwise a client that opens spans in a loop would change the sampling rate twice per span.
        linger_ns: 1_000_000_000,
        ring_samples: (config.history_s * config.rate_hz).ceil() as usize,
        ..sampler::SamplerSettings::default()
    }
}

fn attribution_settings(config: &Config) -> attribution::AttributionSettings {
    attribution::AttributionSettings {
        horizon_ns: round_to_ns(config.horizon_ms * 1e6),
        counter_timeout_ns: round_to_ns(config.patience_ms * 1e6),
        max_open_spans: config.limits.open_spans,
        max_pending_weight_changes: config.limits.weight_changes_per_span as u64,
        idle_mw: config.idle_w.iter().map(|(name, watts)| (name.clone(), watts_to_mw(*watts))).collect(),
        ..attribution::AttributionSettings::default()
    }
}

fn assumption_settings(config: &Config, sources: &sources::SourceSettings) -> AssumptionSettings {
    let ppm = |(name, percent): (&String, &f64)| (name.clone(), percent_to_ppm(*percent));
    let ceiling = |(name, watts): (&String, &f64)| (name.clone(), watts_to_mw(*watts));
    AssumptionSettings {
        ceiling_mw: config.ceiling_w.iter().map(ceiling).collect(),
        lag_ns: config.lag_ms.iter().map(named_ns).collect(),
        quantum_uj: config.quantum_uj.clone(),
        update_interval_ns: config.update_interval_ms.iter().map(named_ns).collect(),
        averaging_ns: config.averaging_ms.iter().map(named_ns).collect(),
        sampled_ppm: config.sampled_percent.iter().map(ppm).collect(),
        energy_filter: sources::EnergyFilter::detect(sources),
    }
}

fn named_ns((name, ms): (&String, &f64)) -> (String, u64) {
    (name.clone(), round_to_ns(*ms * 1e6))
}

fn percent_to_ppm(percent: f64) -> u64 {
    (percent * 1e4).round() as u64
}

fn watts_to_mw(watts: f64) -> u64 {
    (watts * 1e3).round() as u64
}

fn round_to_ns(value: f64) -> u64 {
    value.round() as u64
}
